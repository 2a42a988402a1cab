"""Bad input ends in an error that names what is wrong and the remedy, before training starts and without a traceback."""

import pickle

import pytest
import torch
from conftest import TINY, run_script

import train
import train_h2l
import utils


def h2l_options(data, out, *more):
    return [str(option) for option in ["--data", data, "--out", out, "--max-steps", 1, *TINY, *more]]


def sr_options(data, out, h2l, *more):
    return h2l_options(data, out, "--h2l", h2l, "--vgg-weights", "random", *more)


def copy_lists(demo_data, folder):
    """The demo's lists in another folder, their paths absolute, so that one of them can be spoiled."""
    folder.mkdir()
    for name in ("HR_train", "HR_test", "LR_train", "LR_test"):
        rows = (demo_data / f"{name}.csv").read_text().split()
        (folder / f"{name}.csv").write_text("\n".join([rows[0], *(str(demo_data / row) for row in rows[1:])]))
    return folder


@pytest.mark.parametrize("name", ["HR_train", "LR_train", "HR_test", "LR_test"])
def test_a_missing_list(name, demo_data, tmp_path):
    data = copy_lists(demo_data, tmp_path / "data")
    (data / f"{name}.csv").unlink()
    result = run_script("train_h2l.py", *h2l_options(data, tmp_path / "out"))
    assert result.returncode == 1
    assert f"{name}.csv is missing" in result.stderr and "make_csv.py" in result.stderr
    assert "Traceback" not in result.stderr and "it/s" not in result.stderr


def test_a_missing_file_in_a_list(demo_data, tmp_path):
    data = copy_lists(demo_data, tmp_path / "data")
    with open(data / "LR_train.csv", "a") as stream:
        stream.write("\nnowhere/face.png\n")
    result = run_script("train_h2l.py", *h2l_options(data, tmp_path / "out"))
    assert result.returncode == 1
    assert f"LR_train.csv, row 26: {data}/nowhere/face.png cannot be read (no such file)" in result.stderr
    assert not (tmp_path / "out" / "h2l.pth").exists()


def test_fewer_faces_than_a_batch(demo_data, tmp_path):
    with pytest.raises(utils.UserError, match="24 usable faces, fewer than --batch-size 25"):
        train_h2l.main(h2l_options(demo_data, tmp_path, "--batch-size", 25))


def test_stage_2_without_stage_1(demo_data, tmp_path):
    result = run_script("train.py", *h2l_options(demo_data, tmp_path, "--vgg-weights", "random"))
    assert result.returncode == 1
    assert "h2l.pth is missing: run train_h2l.py first" in result.stderr


def test_weights_of_another_network(demo_data, sr, tmp_path):
    with pytest.raises(utils.UserError, match="holds 'sr', not 'h2l': run train_h2l.py first"):
        train.main(sr_options(demo_data, tmp_path, sr))
    result = run_script("test.py", "--weights", sr.parent / "h2l.pth", "--output", tmp_path)
    assert result.returncode == 1 and "holds 'h2l', not 'sr'" in result.stderr


def test_weights_of_another_width(demo_data, h2l, tmp_path):
    with pytest.raises(utils.UserError, match="has width 4, this run 8: give the same --width to both stages"):
        train.main(sr_options(demo_data, tmp_path, h2l, "--width", 8))
    content = torch.load(h2l, weights_only=True)
    torch.save({**content, "width": 8}, tmp_path / "wrong.pth")
    with pytest.raises(utils.UserError, match=r"tensor head.0.weight has shape \(4, 19, 1, 1\), expected \(8, 19, 1, 1\)"):
        train.main(sr_options(demo_data, tmp_path, tmp_path / "wrong.pth", "--width", 8))


def test_weights_of_another_version(demo_data, h2l, tmp_path):
    torch.save({**torch.load(h2l, weights_only=True), "version": 99}, tmp_path / "new.pth")
    with pytest.raises(utils.UserError, match="format version 99, this program reads 1"):
        train.main(sr_options(demo_data, tmp_path, tmp_path / "new.pth"))


class Payload:
    def __reduce__(self):
        return print, ("this ran",)


@pytest.mark.parametrize("damage", ["half", "text", "empty", "foreign", "code", "tensor missing", "tensor extra", "nan"])
def test_damaged_or_hostile_weights(damage, demo_data, h2l, tmp_path, capsys):
    path = tmp_path / "bad.pth"
    content = torch.load(h2l, weights_only=True)
    weights = content["weights"]["generator"]
    reason = "is not a whole, safe file"
    if damage == "half":
        path.write_bytes(h2l.read_bytes()[: h2l.stat().st_size // 2])
    elif damage == "text":
        path.write_text("these are not weights")
    elif damage == "empty":
        path.touch()
    elif damage == "code":
        path.write_bytes(pickle.dumps(Payload()))
    elif damage == "foreign":
        torch.save({"state_dict": {}}, path)
        reason = "not a checkpoint of this project"
    else:
        if damage == "tensor missing":
            reason = f"tensor {(name := next(iter(weights)))} is missing"
            del weights[name]
        elif damage == "tensor extra":
            weights["surplus"] = torch.zeros(1)
            reason = "tensor surplus is unknown"
        else:
            weights["tail.bias"][1] = float("nan")
            reason = "tensor tail.bias of DegradationGenerator has values that are not finite"
        torch.save(content, path)
    with pytest.raises(utils.UserError, match=reason):
        train.main(sr_options(demo_data, tmp_path, path))
    assert "this ran" not in capsys.readouterr().out


def test_a_damaged_state_names_the_remedies(demo_data, tmp_path):
    train_h2l.main(h2l_options(demo_data, tmp_path))
    state = tmp_path / "h2l_state.pth"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(utils.UserError, match="h2l_state.pth is not a whole, safe file .*--restart"):
        train_h2l.main(h2l_options(demo_data, tmp_path))


@pytest.mark.parametrize("term", ["critic_loss", "gradient_penalty"])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_state(term, demo_data, tmp_path, monkeypatch):
    train_h2l.main(h2l_options(demo_data, tmp_path))
    before = (tmp_path / "h2l_state.pth").read_bytes()
    function = getattr(train_h2l, term)
    monkeypatch.setattr(train_h2l, term, lambda *arguments: function(*arguments) * float("nan"))
    with pytest.raises(FloatingPointError, match=rf"is nan at iteration 2.*{tmp_path / 'h2l_state.pth'}"):
        train_h2l.main(h2l_options(demo_data, tmp_path, "--max-steps", 5, "--save-every", 1))
    assert (tmp_path / "h2l_state.pth").read_bytes() == before


def test_weights_that_are_not_finite_are_never_saved(demo_data, tmp_path, monkeypatch):
    def spoil(run, optimizer, loss):
        run.networks["generator"].tail.bias.data.fill_(float("inf"))

    monkeypatch.setattr(utils.Run, "step", spoil)
    with pytest.raises(FloatingPointError, match="tensor tail.bias of generator is not finite"):
        train_h2l.main(h2l_options(demo_data, tmp_path))
    assert not (tmp_path / "h2l_state.pth").exists()


def test_vgg_download_failure_names_the_alternatives(demo_data, h2l, tmp_path):
    proxy = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    options = h2l_options(demo_data, tmp_path, "--h2l", h2l)
    result = run_script("train.py", *options, environment={**proxy, "no_proxy": "", "TORCH_HOME": str(tmp_path / "hub")})
    assert result.returncode == 1
    assert "--vgg-weights PATH" in result.stderr and "--vgg-weights random" in result.stderr
    assert "Traceback" not in result.stderr


def test_vgg_weights_from_a_path(demo_data, h2l, tmp_path):
    layers = {f"{i}.{kind}": t for i, c in utils.torchvision.models.vgg19().features.named_children()
              for kind, t in c.state_dict().items()}  # fmt: skip
    torch.save(layers, tmp_path / "features.pth")
    torch.save({f"features.{name}": tensor for name, tensor in layers.items()}, tmp_path / "whole.pth")
    a, b = (utils.load_perceptual_weights(str(tmp_path / f"{name}.pth")) for name in ("features", "whole"))
    assert len(a) == 10 and utils.digest(a) == utils.digest(b)
    train.main(h2l_options(demo_data, tmp_path, "--h2l", h2l, "--vgg-weights", tmp_path / "features.pth"))
    del layers["5.bias"]
    torch.save(layers, tmp_path / "lacking.pth")
    with pytest.raises(utils.UserError, match="no tensor 5.bias"):
        utils.load_perceptual_weights(str(tmp_path / "lacking.pth"))
    with pytest.raises(utils.UserError, match="nowhere.pth is missing"):
        utils.load_perceptual_weights(str(tmp_path / "nowhere.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(utils.UserError, match="not a whole, safe file"):
        utils.load_perceptual_weights(str(tmp_path / "text.pth"))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), None])
def test_out_of_memory_names_the_batch_size(error):
    with pytest.raises(utils.UserError, match="out of memory with --batch-size 13 .*lower --batch-size"):
        with utils.explain_out_of_memory(13, "lower --batch-size"):
            if error:
                raise error
            torch.empty(1 << 58, dtype=torch.uint8)  # the CPU allocator's own error
    with pytest.raises(RuntimeError, match="something else"):
        with utils.explain_out_of_memory(13, ""):
            raise RuntimeError("something else")


def test_out_of_memory_while_training(demo_data, tmp_path, monkeypatch):
    def fail(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(train_h2l, "critic_loss", fail)
    with pytest.raises(utils.UserError, match="--batch-size 4 .*Tried to allocate 2 GiB.*lower --batch-size.*--width"):
        train_h2l.main(h2l_options(demo_data, tmp_path))


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--width", "6"], "--width 6: must be a positive multiple of 4"),
        (["--batch-size", "1"], "--batch-size 1: must be at least 2"),
        (["--epochs", "0"], "--epochs 0: must be at least 1"),
        (["--crop", "32"], "--crop 32: must be at least 64"),
        (["--resize", "80", "--crop", "90"], "--resize 80: must be at least --crop"),
        (["--generator-lr", "nan"], "--generator-lr nan: must be a number"),
        (["--gradient-penalty-weight", "-1"], "must be a number of at least 0"),
        (["--save-every", "0"], "--save-every 0: must be at least 1"),
    ],
)
def test_bad_options(options, reason, capsys):
    with pytest.raises(SystemExit) as error:
        train_h2l.main(options)
    assert error.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu(demo_data, tmp_path):
    with pytest.raises(utils.UserError, match="finds no CUDA GPU"):
        train_h2l.main(h2l_options(demo_data, tmp_path, "--device", "cuda"))


def test_an_output_folder_that_cannot_be_made(demo_data, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(utils.UserError, match="name another with --out"):
        train_h2l.main(h2l_options(demo_data, tmp_path / "file" / "out"))

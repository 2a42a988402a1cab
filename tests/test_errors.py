"""Bad input ends in an error that names what is wrong and the remedy, before training starts and without a traceback."""

import os
import pickle
import shutil
import sys

import pytest
import torch
import torchvision
from conftest import TINY, run_script

import train
import train_h2l
import utils
from training.run import Run
from training.state import exclusive


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
    assert "remove their rows" in result.stderr
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


def test_weights_without_their_state_are_not_overwritten(demo_data, tmp_path):
    train_h2l.main(h2l_options(demo_data, tmp_path))
    (tmp_path / "h2l_state.pth").unlink()
    before = (tmp_path / "h2l.pth").read_bytes()
    with pytest.raises(utils.UserError, match="h2l.pth is there without h2l_state.pth.*--restart"):
        train_h2l.main(h2l_options(demo_data, tmp_path))
    assert (tmp_path / "h2l.pth").read_bytes() == before


def test_restart_with_bad_data_moves_nothing(demo_data, tmp_path):
    train_h2l.main(h2l_options(demo_data, tmp_path))
    with pytest.raises(utils.UserError, match="is missing"):
        train_h2l.main(h2l_options(tmp_path / "nowhere", tmp_path, "--restart"))
    assert (tmp_path / "h2l.pth").exists() and not list(tmp_path.glob("before_restart*"))


def test_a_damaged_state_names_the_remedies(demo_data, tmp_path):
    train_h2l.main(h2l_options(demo_data, tmp_path))
    state = tmp_path / "h2l_state.pth"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(utils.UserError, match="h2l_state.pth is not a whole, safe file .*--restart"):
        train_h2l.main(h2l_options(demo_data, tmp_path))


STAGE_1_TERMS = ["critic_loss", "gradient_penalty", "adversarial_loss", "mse_loss"]
STAGE_2_TERMS = ["critic_loss", "gradient_penalty", "adversarial_loss", "alignment_loss", "l1_loss", "perceptual"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage, term", [*(("h2l", t) for t in STAGE_1_TERMS), *(("sr", t) for t in STAGE_2_TERMS)])
def test_a_nan_in_any_loss_stops_the_run_in_that_iteration(stage, term, precision, demo_data, h2l, tmp_path, monkeypatch):
    module = train_h2l if stage == "h2l" else train
    more = ["--precision", precision, "--critic-updates", 1, "--save-every", 1]
    options = (h2l_options if stage == "h2l" else sr_options)(
        demo_data, tmp_path, *([h2l] if stage == "sr" else []), *more, *(["--ot-start-epoch", 1] if stage == "sr" else [])
    )
    module.main(options)
    before = (tmp_path / f"{stage}_state.pth").read_bytes()
    if term == "perceptual":
        monkeypatch.setattr(train.PerceptualLoss, "forward", lambda self, x, target: x.mean() * float("nan"))
    else:
        owner = torch.nn.functional if term in ("mse_loss", "l1_loss") else module
        function = getattr(owner, term)
        monkeypatch.setattr(owner, term, lambda *arguments, **more: function(*arguments, **more) * float("nan"))
    with pytest.raises(FloatingPointError, match=r"(loss|penalty|wasserstein) is nan at iteration 2\.") as error:
        module.main([*options, "--max-steps", "3"])
    assert str(tmp_path / f"{stage}_state.pth") in str(error.value)
    assert (tmp_path / f"{stage}_state.pth").read_bytes() == before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage, name", [("h2l", "generator"), ("h2l", "critic"), ("sr", "extractor"), ("sr", "decoder"),
                                         ("sr", "critic"), ("sr", "h2l"), ("h2l", "noise")])  # fmt: skip
def test_a_nan_in_any_network_or_input_stops_the_run(stage, name, precision, demo_data, h2l, tmp_path, monkeypatch):
    module = train_h2l if stage == "h2l" else train
    more = ["--precision", precision, "--max-steps", 3]
    options = (h2l_options if stage == "h2l" else sr_options)(demo_data, tmp_path, *([h2l] if stage == "sr" else []), *more)
    step, normal, load_networks = Run.step, Run.normal, utils.load_networks

    def spoiled_step(run, optimizer, loss):  # after the first iteration's last update
        step(run, optimizer, loss)
        if name in run.networks and run.iteration == 0:
            weight = next(run.networks[name].parameters()).data
            weight[(0,) * weight.ndim] = float("nan")

    def spoiled_networks(*arguments):
        loaded = load_networks(*arguments)
        loaded["generator"].tail.bias.data[0] = float("nan")
        return loaded

    monkeypatch.setattr(Run, "step", spoiled_step)
    if name == "noise":
        monkeypatch.setattr(Run, "normal", lambda run, n: normal(run, n) * (float("nan") if run.iteration else 1))
    if name == "h2l":
        monkeypatch.setattr(utils, "load_networks", spoiled_networks)
    with pytest.raises(FloatingPointError, match=f"is nan at iteration {1 if name == 'h2l' else 2}"):
        module.main(options)
    assert not (tmp_path / f"{stage}_state.pth").exists()


@pytest.mark.parametrize("stage", ["h2l", "sr"])
def test_an_absurd_learning_rate_ends_in_an_error(stage, demo_data, h2l, tmp_path):
    more = ["--generator-lr", "1e3", "--epochs", 1000, "--max-steps", 150, "--critic-updates", 1, "--log-every", 50]
    if stage == "h2l":
        options = h2l_options(demo_data, tmp_path, *more)
    else:
        options = sr_options(demo_data, tmp_path, h2l, *more, "--adversarial-weight", 0, "--no-alignment")
    with pytest.raises(FloatingPointError, match="is nan|is inf|is -inf|saturated: over half"):
        (train_h2l if stage == "h2l" else train).main(options)


def test_saturation_has_to_last(monkeypatch, demo_data, tmp_path):
    """99 saturated updates in a row are borne, 100 are not; the count survives an interruption."""
    monkeypatch.setattr(train_h2l.utils, "saturated", lambda images: torch.tensor(0.9))
    intervals = ["--save-every", 1000, "--log-every", 1000, "--sample-every", 1000]
    options = h2l_options(demo_data, tmp_path, "--critic-updates", 1, "--epochs", 1000, *intervals)
    train_h2l.main([*options, "--max-steps", "60"])
    train_h2l.main([*options, "--max-steps", "99"])
    with pytest.raises(FloatingPointError, match="saturated: over half .* at iteration 100"):
        train_h2l.main([*options, "--max-steps", "101"])


def test_a_second_run_on_one_folder_is_refused_and_a_dead_ones_lock_is_not(demo_data, tmp_path):
    with exclusive(str(tmp_path), "h2l"):
        result = run_script("train_h2l.py", *h2l_options(demo_data, tmp_path))
        assert result.returncode == 1
        assert f"is in use by process {os.getpid()} on " in result.stderr
        with exclusive(str(tmp_path), "sr"):  # the other stage may run
            pass
    (tmp_path / ".h2l.lock").write_text("process 1 on somewhere")  # left by a killed run
    (tmp_path / "h2l_state.pth.123.tmp").touch()
    train_h2l.main(h2l_options(demo_data, tmp_path))
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on file sizes")
def test_a_full_disk_leaves_the_last_state_whole(demo_data, tmp_path):
    """A limit on the size of files stands in for the full disk: the next state no longer fits."""
    train_h2l.main(h2l_options(demo_data, tmp_path))
    state = tmp_path / "h2l_state.pth"
    before = state.read_bytes()
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2}, -1)); import utils, train_h2l;"
        "utils.run_script(lambda: train_h2l.main(sys.argv[1:]))"
    )
    result = run_script("-c", code, *h2l_options(demo_data, tmp_path, "--max-steps", 3))
    assert result.returncode == 1
    assert "cannot write" in result.stderr and "Traceback" not in result.stderr
    assert state.read_bytes() == before
    train_h2l.main(h2l_options(demo_data, tmp_path, "--max-steps", 3))
    assert torch.load(state, weights_only=True)["iteration"] == 3


def test_a_folder_that_vanishes_ends_in_an_error(demo_data, tmp_path, monkeypatch):
    def vanish(run):
        shutil.rmtree(tmp_path / "out")
        save(run)

    save = Run.save
    monkeypatch.setattr(Run, "save", vanish)
    monkeypatch.setattr(sys, "argv", ["train_h2l.py", *h2l_options(demo_data, tmp_path / "out")])
    with pytest.raises(SystemExit) as error:
        utils.run_script(train_h2l.main)
    assert "cannot write" in str(error.value) and "h2l_state.pth" in str(error.value)


def test_weights_that_are_not_finite_are_never_saved(demo_data, tmp_path, monkeypatch):
    def spoil(run, optimizer, loss):
        run.networks["generator"].tail.bias.data.fill_(float("inf"))

    monkeypatch.setattr(Run, "step", spoil)
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
    layers = {f"{i}.{kind}": t for i, c in torchvision.models.vgg19().features.named_children()
              for kind, t in c.state_dict().items()}  # fmt: skip
    torch.save(layers, tmp_path / "features.pth")
    torch.save({f"features.{name}": tensor for name, tensor in layers.items()}, tmp_path / "whole.pth")
    a, b = (utils.load_perceptual_weights(str(tmp_path / f"{name}.pth")) for name in ("features", "whole"))
    assert len(a) == 10 and utils.digest(a) == utils.digest(b)
    train.main(h2l_options(demo_data, tmp_path, "--h2l", h2l, "--vgg-weights", tmp_path / "features.pth"))
    torch.save({**layers, "7.weight": layers["5.weight"]}, tmp_path / "shape.pth")
    with pytest.raises(utils.UserError, match="7.weight .* has not the shape"):
        utils.load_perceptual_weights(str(tmp_path / "shape.pth"))
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

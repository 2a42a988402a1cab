"""Both trainers: what they write, that they do what the method says, and that a run continues as if never interrupted."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from conftest import ROOT, TINY, run_script
from PIL import Image
from torch.optim.swa_utils import AveragedModel

import train
import train_h2l
import utils
from models import FeatureExtractor
from training.options import ADDED, CHANGEABLE, PER_START
from training.run import Run
from training.state import exclusive


def main(module, *options):
    module.main([str(option) for option in options])


def h2l_options(data, out, *more):
    return ["--data", data, "--out", out, *TINY, *more]


def sr_options(data, out, h2l, *more):
    return ["--data", data, "--out", out, "--h2l", h2l, "--vgg-weights", "random", *TINY, *more]


def assert_equal_states(a, b):
    """Everything in two saved states is the same, bit for bit; the options may differ where they may change."""
    a, b = (torch.load(path, weights_only=True) for path in (a, b))

    def compare(x, y, where):
        if where.endswith("/images_per_second"):
            return
        assert type(x) is type(y), where
        if isinstance(x, dict):
            assert x.keys() == y.keys(), where
            for key in x:
                if where != "/options" or key not in CHANGEABLE | PER_START:
                    compare(x[key], y[key], f"{where}/{key}")
        elif isinstance(x, (list, tuple)):
            assert len(x) == len(y), where
            for i, (one, other) in enumerate(zip(x, y)):
                compare(one, other, f"{where}/{i}")
        elif isinstance(x, torch.Tensor):
            assert torch.equal(x, y), where
        else:
            assert x == y, where

    compare(a, b, "")


def test_every_file_is_written(sr):
    out = sr.parent
    for name, log, samples in (("h2l", "train_h2l.csv", "samples_h2l"), ("sr", "train.csv", "samples_sr")):
        weights = torch.load(out / f"{name}.pth", weights_only=True)
        assert weights["kind"] == name and weights["width"] == 4 and weights["settings"]["batch_size"] == 4
        state = torch.load(out / f"{name}_state.pth", weights_only=True)
        assert state["iteration"] == 2
        assert json.loads((out / f"{name}_options.json").read_text())["width"] == 4
        table = pd.read_csv(out / log)
        assert list(table["iteration"]) == [1, 2]
        assert table[["critic_loss", "gradient_penalty", "wasserstein", "images_per_second"]].notna().all(axis=None)
        assert table["psnr_degraded"].notna().tolist() == [False, True]
        with Image.open(out / samples / "0000002.png") as sheet:
            assert sheet.width > 500 and sheet.height > 400
        with Image.open(out / f"{name}_curves.png") as curves:
            assert curves.width > 500
    assert sorted(torch.load(out / "h2l.pth", weights_only=True)["weights"]) == ["generator"]
    assert sorted(torch.load(out / "sr.pth", weights_only=True)["weights"]) == ["decoder", "extractor"]
    assert not list(out.glob("*.tmp"))


@pytest.mark.parametrize("stage", ["h2l", "sr"])
def test_continued_run_equals_an_uninterrupted_one_bit_for_bit(stage, demo_data, h2l, tmp_path):
    """Stopped within an epoch, between two generator updates and two rows of the log; other intervals, workers, lengths."""
    module = train_h2l if stage == "h2l" else train

    def options(out, *more):
        schedule = ["--steps-per-epoch", 6, "--critic-updates", 2, "--log-every", 4, "--epochs", 3, *more]
        return h2l_options(demo_data, out, *schedule) if stage == "h2l" else sr_options(demo_data, out, h2l, *schedule)

    main(module, *options(tmp_path / "whole", "--save-every", 5, "--sample-every", 7))
    main(module, *options(tmp_path / "parts", "--max-steps", 7, "--sample-every", 7))
    assert torch.load(tmp_path / "parts" / f"{stage}_state.pth", weights_only=True)["iteration"] == 7
    main(module, *options(tmp_path / "parts", "--workers", 1, "--save-every", 100, "--sample-every", 7))
    assert_equal_states(tmp_path / "whole" / f"{stage}_state.pth", tmp_path / "parts" / f"{stage}_state.pth")
    log = "train_h2l.csv" if stage == "h2l" else "train.csv"
    whole, parts = (pd.read_csv(tmp_path / name / log).drop(columns="images_per_second") for name in ("whole", "parts"))
    pd.testing.assert_frame_equal(whole, parts)
    if stage == "sr":
        assert whole["alignment_loss"].notna().sum() >= 2


def test_rows_after_the_saved_state_are_written_again(demo_data, tmp_path):
    options = h2l_options(demo_data, tmp_path, "--save-every", 3)
    main(train_h2l, *options, "--max-steps", 3)
    log = tmp_path / "train_h2l.csv"
    with open(log, "a") as stream:  # as if killed after iteration 5, before the next save
        stream.write("4,1,9,9,9,9,9,9,9,9,9,9\n5,1,9,9,9,9,9,9,9,9,9,9\n1,")
    main(train_h2l, *options, "--max-steps", 6)
    table = pd.read_csv(log)
    assert list(table["iteration"]) == [1, 2, 3, 4, 5, 6]
    assert (table["learning_rate"] < 1).all()


def test_seeds_make_runs_the_same_or_different(demo_data, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        main(train_h2l, *h2l_options(demo_data, tmp_path / name, "--max-steps", 2, "--seed", seed))
    weights = [torch.load(tmp_path / n / "h2l_state.pth", weights_only=True)["networks"]["critic"] for n in "abc"]
    assert utils.digest(weights[0]) == utils.digest(weights[1]) != utils.digest(weights[2])


class Recorder:
    """Records every update of a run: which optimizer stepped, and which networks it changed."""

    def __init__(self, monkeypatch):
        self.updates = []
        step = Run.step

        def recorded(run, optimizer, loss):
            before = {name: utils.digest(dict(network.named_parameters())) for name, network in run.networks.items()}
            step(run, optimizer, loss)
            changed = {n for n, network in run.networks.items() if utils.digest(dict(network.named_parameters())) != before[n]}
            name = next(name for name, known in run.optimizers.items() if known is optimizer)
            self.updates.append((run.iteration + 1, name, changed))

        monkeypatch.setattr(Run, "step", recorded)

    def of(self, name):
        return [(iteration, changed) for iteration, update, changed in self.updates if update == name]


def test_stage_1_updates(demo_data, tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 11))
    assert recorder.of("critic") == [(i, {"critic"}) for i in range(1, 12)]
    assert recorder.of("generator") == [(i, {"generator"}) for i in (5, 10)]


def test_stage_2_updates(demo_data, h2l, tmp_path, monkeypatch):
    """Five critic updates a generator update; the alignment from epoch 2 on, moving E and never S; G frozen."""
    recorder = Recorder(monkeypatch)
    frozen = []
    load_networks = utils.load_networks
    monkeypatch.setattr(utils, "load_networks", lambda *a: frozen.append(load_networks(*a)) or frozen[0])
    main(train, *sr_options(demo_data, tmp_path, h2l, "--steps-per-epoch", 10, "--epochs", 2))
    assert recorder.of("critic") == [(i, {"critic"}) for i in range(1, 21)]
    assert recorder.of("generator") == [(i, {"extractor", "decoder"}) for i in (5, 10, 15, 20)]
    assert recorder.of("alignment") == [(15, {"extractor"}), (20, {"extractor"})]
    weights = torch.load(h2l, weights_only=True)["weights"]["generator"]
    after = frozen[0]["generator"].state_dict()
    assert all(torch.equal(weights[name], after[name]) for name in weights)
    assert not frozen[0]["generator"].training


def test_no_alignment_leaves_it_out(demo_data, h2l, tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    main(train, *sr_options(demo_data, tmp_path, h2l, "--steps-per-epoch", 5, "--epochs", 2, "--no-alignment"))
    assert [i for i, _ in recorder.of("generator")] == [5, 10]
    assert recorder.of("alignment") == []


def test_adversarial_weight_0_leaves_the_critic_out(demo_data, h2l, tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    main(train, *sr_options(demo_data, tmp_path, h2l, "--steps-per-epoch", 2, "--epochs", 2, "--adversarial-weight", 0))
    assert [i for i, _ in recorder.of("generator")] == [1, 2, 3, 4]
    assert [i for i, _ in recorder.of("critic")] == []
    assert [i for i, _ in recorder.of("alignment")] == [3, 4]


def test_frozen_batchnorm_is_measured_once_and_never_moves(demo_data, h2l, tmp_path, monkeypatch):
    """Measured before the first iteration; then E and S train in the mode and with the statistics they are tested in."""
    modes = []
    iterate = train.SuperResolution.iterate

    def recorded(stage, iteration, *faces):
        modes.append((iteration, stage.extractor.training, stage.decoder.training))
        return iterate(stage, iteration, *faces)

    def statistics(file):
        content = torch.load(file, weights_only=True)
        networks = content.get("weights") or content["networks"]
        names = ("extractor", "decoder")
        return {f"{n}.{key}": t for n in names for key, t in networks[n].items() if "running" in key or "batches" in key}

    monkeypatch.setattr(train.SuperResolution, "iterate", recorded)
    freeze = ["--steps-per-epoch", 2, "--freeze-batchnorm", "--batchnorm-batches", 2, "--critic-updates", 2, "--epochs", 2]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    main(train, *sr_options(demo_data, whole, h2l, *freeze))
    assert modes == [(i, False, False) for i in range(1, 5)]
    main(train, *sr_options(demo_data, parts, h2l, *freeze, "--max-steps", 2))
    before = statistics(parts / "sr_state.pth")
    main(train, *sr_options(demo_data, parts, h2l, *freeze))
    assert_equal_states(whole / "sr_state.pth", parts / "sr_state.pth")
    after, written = statistics(parts / "sr_state.pth"), statistics(parts / "sr.pth")
    assert any(tensor.abs().max() > 0 for name, tensor in before.items() if "mean" in name)
    assert all(torch.equal(before[name], after[name]) and torch.equal(after[name], written[name]) for name in after)


def test_learning_rates_fall_by_epochs(demo_data, tmp_path):
    main(train_h2l, *h2l_options(demo_data, tmp_path, "--steps-per-epoch", 2, "--epochs", 3, "--generator-lr", 1e-4))
    table = pd.read_csv(tmp_path / "train_h2l.csv")
    assert table["learning_rate"].tolist() == pytest.approx([1e-4, 1e-4, 5e-5, 5e-5, 2.5e-5, 2.5e-5])
    assert table["epoch"].tolist() == [1, 1, 2, 2, 3, 3]


def test_a_short_epoch_is_remarked_on(demo_data, tmp_path, capsys):
    """A few faces make a run of a few iterations: said, unless the user has chosen the epoch's length."""
    main(train_h2l, *h2l_options(demo_data, tmp_path / "a", "--max-steps", 1))
    assert "one pass over 24 faces is short" in (said := capsys.readouterr().out) and "--steps-per-epoch 9143" in said
    main(train_h2l, *h2l_options(demo_data, tmp_path / "b", "--max-steps", 1, "--steps-per-epoch", 6))
    assert "is short" not in capsys.readouterr().out


def test_sampling_leaves_no_trace(demo_data, h2l, tmp_path):
    """Sample sheets are made in eval mode: neither BatchNorm's statistics nor any random state notice them."""
    main(train, *sr_options(demo_data, tmp_path / "seldom", h2l, "--max-steps", 4, "--sample-every", 100))
    main(train, *sr_options(demo_data, tmp_path / "often", h2l, "--max-steps", 4, "--sample-every", 1))
    assert len(list((tmp_path / "often" / "samples_sr").iterdir())) == 4
    a, b = (torch.load(tmp_path / n / "sr_state.pth", weights_only=True)["networks"] for n in ("seldom", "often"))
    assert all(utils.digest(a[name]) == utils.digest(b[name]) for name in a)


def test_bf16_trains_both_stages(demo_data, h2l, tmp_path):
    options = ["--precision", "bf16", "--max-steps", 5]
    main(train_h2l, *h2l_options(demo_data, tmp_path, *options))
    main(train, *sr_options(demo_data, tmp_path, h2l, *options, "--ot-start-epoch", 1))
    table = pd.read_csv(tmp_path / "train.csv")
    assert table["alignment_loss"].notna().sum() == 1
    state = torch.load(tmp_path / "sr_state.pth", weights_only=True)
    assert all(tensor.dtype != torch.bfloat16 for network in state["networks"].values() for tensor in network.values())


def test_states_of_older_versions_resume(demo_data, h2l, tmp_path, capsys):
    """Options that came later are as their versions did; renamed and removed ones keep their meaning or are refused."""
    options = sr_options(demo_data, tmp_path, h2l)
    main(train, *options, "--max-steps", 1, "--ema-decay", 0.5, "--freeze-batchnorm", "--no-alignment")
    today = torch.load(tmp_path / "sr_state.pth", weights_only=True)
    own = {name: value for name, value in today["options"].items() if name not in ADDED}
    path = tmp_path / "sr_state.pth"

    def save(**older):
        torch.save({**today, "options": own | older}, path)

    save(average_decay=0.5, hold_batchnorm_epoch=1, ot_weight=0.0, warm_start_steps=1)
    main(train, *options, "--max-steps", 2)
    resumed = torch.load(path, weights_only=True)["options"]
    assert (resumed["ema_decay"], resumed["freeze_batchnorm"], resumed["no_alignment"]) == (0.5, True, True)
    for flag, value in (("hold_batchnorm_epoch", 2), ("ot_weight", 0.5), ("warm_start_steps", 2), ("critic_momentum", 0.9)):
        save(**{flag: value})
        with pytest.raises(utils.UserError, match=f"--{flag.replace('_', '-')} {value}, an option that no longer exists"):
            main(train, *options, "--max-steps", 2)
    save()
    with pytest.raises(utils.UserError, match=r"--freeze-batchnorm \(the run has none\).*--restart"):
        main(train, *options, "--max-steps", 2, "--freeze-batchnorm")


def test_a_term_without_a_column_is_an_error(demo_data, tmp_path, monkeypatch):
    monkeypatch.setattr(train_h2l, "COLUMNS", [name for name in train_h2l.COLUMNS if name != "wasserstein"])
    with pytest.raises(ValueError, match="wasserstein has no column in the log"):
        main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 1))


def test_options_that_contradict_the_saved_ones_are_named(sr, demo_data, h2l, tmp_path):
    options = sr_options(demo_data, sr.parent, h2l)
    with pytest.raises(utils.UserError, match=r"--l1-weight 0.7 \(the run has 0.5\).*--restart"):
        main(train, *options, "--max-steps", 3, "--l1-weight", 0.7)
    with pytest.raises(utils.UserError, match=r"--batch-size 5 \(the run has 4\)"):
        main(train_h2l, *h2l_options(demo_data, sr.parent), "--batch-size", 5)


def test_options_left_out_are_the_runs_own(demo_data, tmp_path, capsys):
    main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 2, "--pixel-weight", 7))
    main(train_h2l, "--data", demo_data, "--out", tmp_path, "--max-steps", 3, "--device", "cpu", "--save-every", 9)
    printed = capsys.readouterr().out
    assert "with --pixel-weight 7.0" in printed and "with --log-every 1" in printed and "iteration 2" in printed
    assert json.loads((tmp_path / "h2l_options.json").read_text())["save_every"] == 9
    state = torch.load(tmp_path / "h2l_state.pth", weights_only=True)
    assert state["iteration"] == 3 and state["options"]["pixel_weight"] == 7


def test_other_data_or_another_generator_cannot_continue_a_run(sr, demo_data, h2l, tmp_path):
    result = run_script("Datasets/make_demo.py", "--out", tmp_path / "data", "--hr", 24, "--lr", 24, "--seed", 9)
    assert result.returncode == 0
    with pytest.raises(utils.UserError, match="HR_train differs from what the run"):
        main(train, *sr_options(tmp_path / "data", sr.parent, h2l, "--max-steps", 3))
    main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 1, "--seed", 8))
    with pytest.raises(utils.UserError, match="h2l differs from what the run"):
        main(train, *sr_options(demo_data, sr.parent, tmp_path / "h2l.pth", "--max-steps", 3))


def test_restart_keeps_the_old_files_aside(demo_data, tmp_path):
    main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 2))
    old = (tmp_path / "h2l_state.pth").read_bytes()
    main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 1, "--restart", "--pixel-weight", 3))
    (kept,) = tmp_path.glob("before_restart_h2l_*")
    assert (kept / "h2l_state.pth").read_bytes() == old
    assert (kept / "samples_h2l").is_dir() and (kept / "train_h2l.csv").exists()
    assert torch.load(tmp_path / "h2l_state.pth", weights_only=True)["iteration"] == 1


def test_a_complete_run_says_so(demo_data, tmp_path, capsys):
    options = h2l_options(demo_data, tmp_path, "--max-steps", 2)
    main(train_h2l, *options)
    written = (tmp_path / "h2l_state.pth").stat().st_mtime_ns
    main(train_h2l, *options)
    assert "complete after 2 iterations" in capsys.readouterr().out
    assert (tmp_path / "h2l_state.pth").stat().st_mtime_ns == written


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM that a process can catch")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_finish_the_iteration_and_save(number, demo_data, tmp_path):
    options = h2l_options(demo_data, tmp_path, "--epochs", 100000)
    with subprocess.Popen([sys.executable, "train_h2l.py", *map(str, options)], cwd=ROOT, stderr=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + 120
        while not (tmp_path / "train_h2l.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        run.send_signal(number)
        assert run.wait(timeout=60) == 128 + number
    iteration = torch.load(tmp_path / "h2l_state.pth", weights_only=True)["iteration"]
    assert iteration == pd.read_csv(tmp_path / "train_h2l.csv")["iteration"].max()


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_a_second_sigint_exits_at_once(demo_data, tmp_path):
    """The first one waits for the iteration, which here takes a minute; the second does not."""
    code = (
        "import sys, time, train_h2l, training.run;"
        "training.run.Run.finish = lambda *arguments: print('within', flush=True) or time.sleep(60);"
        "train_h2l.main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, *map(str, h2l_options(demo_data, tmp_path))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as run:
        assert any(line == "within\n" for line in run.stdout)
        run.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            run.wait(timeout=2)
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=10) == 130


def torchrun(script, *options):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command, *map(str, options)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )


def test_two_processes_do_what_one_does(demo_data, tmp_path):
    """Stage 1 has no BatchNorm: with the same global batch and noise, two processes take the very same steps."""
    options = ["--max-steps", 10, "--critic-updates", 2]
    main(train_h2l, *h2l_options(demo_data, tmp_path / "one", *options))
    result = torchrun("train_h2l.py", *h2l_options(demo_data, tmp_path / "two", *options))
    assert result.returncode == 0, result.stderr
    one, two = (torch.load(tmp_path / n / "h2l_state.pth", weights_only=True) for n in ("one", "two"))
    for name in ("generator", "critic"):
        for key, tensor in one["networks"][name].items():
            assert torch.allclose(tensor, two["networks"][name][key], atol=2e-5), f"{name} {key}"
    assert torch.equal(one["noise"], two["noise"])
    assert len(pd.read_csv(tmp_path / "two" / "train_h2l.csv")) == 10  # one writer


def test_two_processes_train_stage_2_and_continue(demo_data, h2l, tmp_path):
    options = sr_options(demo_data, tmp_path, h2l, "--steps-per-epoch", 5, "--epochs", 2)
    result = torchrun("train.py", *options, "--max-steps", 7)
    assert result.returncode == 0, result.stderr
    result = torchrun("train.py", *options)
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(tmp_path / "train.csv")
    assert table["iteration"].tolist() == list(range(1, 11))
    assert table["alignment_loss"].notna().sum() == 1


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_one_killed_process_ends_the_other(demo_data, tmp_path):
    options = h2l_options(demo_data, tmp_path, "--epochs", 100000)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train_h2l.py"]
    run = subprocess.Popen([*command, *map(str, options)], cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    with run:
        deadline = time.monotonic() + 120
        while not (tmp_path / "train_h2l.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        owner = int((tmp_path / ".h2l.lock").read_text().split()[1])
        os.kill(owner, signal.SIGKILL)
        assert run.wait(timeout=60) != 0
    with exclusive(str(tmp_path), "h2l"):  # nobody holds the folder any more
        pass


def test_the_same_seed_gives_the_same_run_with_any_workers(demo_data, h2l, tmp_path):
    digests = []
    for workers, seed in ((0, 0), (1, 0), (4, 0), (0, 1)):
        options = sr_options(demo_data, tmp_path / f"{workers}-{seed}", h2l, "--max-steps", 5)
        main(train, *options, "--workers", workers, "--seed", seed, "--ot-start-epoch", 1)
        state = torch.load(tmp_path / f"{workers}-{seed}" / "sr_state.pth", weights_only=True)
        digests.append([utils.digest(weights) for weights in state["networks"].values()])
    assert digests[0] == digests[1] == digests[2] != digests[3]


def test_a_batch_that_the_processes_do_not_divide(demo_data, tmp_path):
    result = torchrun("train_h2l.py", *h2l_options(demo_data, tmp_path, "--batch-size", 5))
    assert result.returncode != 0
    assert "--batch-size 5 cannot be divided among 2 processes" in result.stderr


def test_restart_gives_tensorboard_a_folder_of_its_own(demo_data, tmp_path):
    for more in ([], ["--restart"]):
        main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 1, "--tensorboard", *more))
    (kept,) = tmp_path.glob("before_restart_h2l_*")
    assert len(list((kept / "h2l_tensorboard").iterdir())) == 1
    assert len(list((tmp_path / "h2l_tensorboard").iterdir())) == 1


def test_tensorboard_logs_or_names_the_package(demo_data, tmp_path, monkeypatch):
    main(train_h2l, *h2l_options(demo_data, tmp_path / "a", "--max-steps", 1, "--tensorboard"))
    assert list((tmp_path / "a" / "h2l_tensorboard").iterdir())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(utils.UserError, match="pip install tensorboard"):
        main(train_h2l, *h2l_options(demo_data, tmp_path / "b", "--max-steps", 1, "--tensorboard"))


def test_without_matplotlib_there_are_no_curves(demo_data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 1))
    assert not (tmp_path / "h2l_curves.png").exists()


@pytest.mark.parametrize("script", ["train_h2l.py", "train.py", "test.py", "Datasets/make_csv.py", "Datasets/make_demo.py"])
def test_help_shows_every_default(script):
    result = run_script(script, "--help")
    assert result.returncode == 0
    assert "default" in result.stdout
    if script.startswith("train"):
        assert "reference" in result.stdout and "paper" in result.stdout


def test_importing_a_script_does_nothing():
    code = "import train, train_h2l, test, utils; print(open)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stdout.startswith("<built-in")


def test_a_run_can_begin_with_the_weights_of_another(demo_data, h2l, sr, tmp_path, capsys):
    """E and S are the file's, the critic is new; what it continues from later is its own state."""
    options = sr_options(demo_data, tmp_path, h2l, "--initial-weights", sr, "--generator-lr", 0, "--batchnorm-batches", 0)
    main(train, *options, "--max-steps", 1)
    assert f"starting with the weights of {sr}" in capsys.readouterr().out
    given, state = torch.load(sr, weights_only=True), torch.load(tmp_path / "sr_state.pth", weights_only=True)
    for name, weights in given["weights"].items():
        for key, tensor in weights.items():
            if "running" not in key and "num_batches" not in key:
                assert torch.equal(tensor, state["networks"][name][key]), (name, key)
    main(train, *options, "--max-steps", 2)
    printed = capsys.readouterr().out
    assert "resuming from" in printed and "starting with" not in printed
    with pytest.raises(utils.UserError, match="holds 'h2l', not 'sr': --initial-weights takes a sr.pth"):
        main(train, *sr_options(demo_data, tmp_path / "b", h2l, "--initial-weights", h2l))


def test_moving_averages_are_what_is_written(demo_data, h2l, tmp_path, monkeypatch):
    """The average over the generator's updates in closed form, also over a stop; the trained networks go their own way."""
    seen = []
    update = AveragedModel.update_parameters

    def recorded(average, network):
        if isinstance(network, FeatureExtractor):
            seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        update(average, network)

    monkeypatch.setattr(AveragedModel, "update_parameters", recorded)
    options = sr_options(demo_data, tmp_path, h2l, "--ema-decay", 0.75, "--critic-updates", 2, "--batchnorm-batches", 0)
    main(train, *options, "--max-steps", 5)
    main(train, *options, "--max-steps", 8)
    assert len(seen) == 4  # 2 before the stop, at iterations 2 and 4, and 2 after it
    written = torch.load(tmp_path / "sr.pth", weights_only=True)["weights"]["extractor"]
    state = torch.load(tmp_path / "sr_state.pth", weights_only=True)["networks"]["extractor"]
    for name, tensor in written.items():
        if tensor.is_floating_point():
            expected = seen[0][name]
            for later in seen[1:]:
                expected = 0.75 * expected + 0.25 * later[name]
            assert torch.allclose(tensor, expected, atol=1e-6), name
        assert torch.equal(state[name], seen[-1][name]), name
    assert any(not torch.equal(tensor, state[name]) for name, tensor in written.items())
    with pytest.raises(SystemExit):
        main(train, *sr_options(demo_data, tmp_path / "b", h2l, "--ema-decay", 1))

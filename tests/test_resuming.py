"""A run that was stopped resumes as if it never had been, keeps its options and its log, and loses nothing to a failure."""

import json
import os
import shutil
import sys

import pandas as pd
import pytest
import torch
from helpers import assert_equal_states, h2l_options, main, one_step, run_script, sr_options

import train
import train_h2l
import utils
from training.run import Run


@pytest.mark.parametrize("stage", ["h2l", "sr"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(stage, demo_data, h2l, tmp_path):
    """Stopped within an epoch, between two generator updates and two rows of the log."""
    module = train_h2l if stage == "h2l" else train

    def options(out, *more):
        schedule = ["--steps-per-epoch", 6, "--critic-updates", 2, "--epochs", 3, "--save-every", 80, "--ema-decay", 0.5, *more]
        return h2l_options(demo_data, out, *schedule) if stage == "h2l" else sr_options(demo_data, out, h2l, *schedule)

    main(module, *options(tmp_path / "whole"))
    main(module, *options(tmp_path / "parts", "--max-steps", 7))
    assert torch.load(tmp_path / "parts" / f"{stage}_state.pth", weights_only=True)["iteration"] == 7
    main(module, *options(tmp_path / "parts"))
    assert_equal_states(tmp_path / "whole" / f"{stage}_state.pth", tmp_path / "parts" / f"{stage}_state.pth")
    log = "train_h2l.csv" if stage == "h2l" else "train.csv"
    whole, parts = (pd.read_csv(tmp_path / name / log).set_index("iteration") for name in ("whole", "parts"))
    assert [*whole.index] == [4, 8, 12, 16, 18] and [*parts.index] == [4, 7, 8, 12, 16, 18]  # 7: the end of its first part
    later = whole.loc[12:].drop(columns="images_per_second")
    pd.testing.assert_frame_equal(later, parts.loc[12:].drop(columns="images_per_second"))
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


def test_a_state_of_another_version_is_refused(demo_data, tmp_path):
    options = h2l_options(demo_data, tmp_path)
    main(train_h2l, *options, "--max-steps", 1)
    state = torch.load(tmp_path / "h2l_state.pth", weights_only=True)
    del state["options"]["colour_weight"]
    torch.save(state, tmp_path / "h2l_state.pth")
    with pytest.raises(utils.UserError, match="another version.*--colour-weight.*--restart"):
        main(train_h2l, *options, "--max-steps", 2)


def test_options_that_contradict_the_saved_ones_are_named(sr, demo_data, h2l, tmp_path):
    options = sr_options(demo_data, sr.parent, h2l)
    with pytest.raises(utils.UserError, match=r"--l1-weight 0.7 \(the run: --l1-weight 0.5\).*--restart"):
        main(train, *options, "--max-steps", 3, "--l1-weight", 0.7)
    with pytest.raises(utils.UserError, match=r"--batch-size 5 \(the run: --batch-size 4\)"):
        main(train_h2l, *h2l_options(demo_data, sr.parent), "--batch-size", 5)


def test_options_left_out_are_the_runs_own(demo_data, tmp_path, capsys):
    main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 2, "--pixel-weight", 7))
    main(train_h2l, "--data", demo_data, "--out", tmp_path, "--max-steps", 3, "--device", "cpu", "--save-every", 9)
    printed = capsys.readouterr().out
    assert "with --pixel-weight 7.0" in printed and "with --batch-size 4" in printed and "iteration 2" in printed
    assert json.loads((tmp_path / "h2l_options.json").read_text())["save_every"] == 9
    state = torch.load(tmp_path / "h2l_state.pth", weights_only=True)
    assert state["iteration"] == 3 and state["options"]["pixel_weight"] == 7


def test_other_data_or_another_generator_cannot_resume_a_run(sr, demo_data, h2l, tmp_path):
    result = run_script("Datasets/make_demo.py", "--out", tmp_path / "data", "--hr", 24, "--lr", 24, "--seed", 9)
    assert result.returncode == 0
    with pytest.raises(utils.UserError, match="HR_train differs from what the run"):
        main(train, *sr_options(tmp_path / "data", sr.parent, h2l, "--max-steps", 3))
    main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 1, "--seed", 8))
    with pytest.raises(utils.UserError, match="h2l differs from what the run"):
        main(train, *sr_options(demo_data, sr.parent, tmp_path / "h2l.pth", "--max-steps", 3))


def test_restart_keeps_the_old_files(demo_data, tmp_path):
    main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 2))
    old = (tmp_path / "h2l_state.pth").read_bytes()
    main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 1, "--restart", "--pixel-weight", 3))
    (kept,) = tmp_path.glob("before_restart_h2l_*")
    assert (kept / "h2l_state.pth").read_bytes() == old
    assert (kept / "samples_h2l").is_dir() and (kept / "train_h2l.csv").exists()
    assert torch.load(tmp_path / "h2l_state.pth", weights_only=True)["iteration"] == 1


def test_restart_with_the_runs_own_weights_can_be_repeated(demo_data, tmp_path, monkeypatch):
    """Killed before its first state, the same command finds the weights that it names."""
    main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 1))
    options = h2l_options(demo_data, tmp_path, "--max-steps", 2, "--restart", "--initial-weights", tmp_path / "h2l.pth")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(train_h2l.Degradation, "iterate", lambda *arguments: sys.exit(9))
        main(train_h2l, *options)
    assert not (tmp_path / "h2l_state.pth").exists()
    main(train_h2l, *options)


def test_restart_gives_tensorboard_a_folder_of_its_own(demo_data, tmp_path):
    for more in ([], ["--restart"]):
        main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 1, "--tensorboard", *more))
    (kept,) = tmp_path.glob("before_restart_h2l_*")
    assert len(list((kept / "h2l_tensorboard").iterdir())) == 1
    assert len(list((tmp_path / "h2l_tensorboard").iterdir())) == 1


def test_a_complete_run_says_so(demo_data, tmp_path, capsys):
    options = h2l_options(demo_data, tmp_path, "--max-steps", 2)
    main(train_h2l, *options)
    written = (tmp_path / "h2l_state.pth").stat().st_mtime_ns
    main(train_h2l, *options)
    assert "complete after 2 iterations" in capsys.readouterr().out
    assert (tmp_path / "h2l_state.pth").stat().st_mtime_ns == written


def test_weights_without_their_state_are_not_overwritten(demo_data, tmp_path):
    train_h2l.main(one_step(demo_data, tmp_path))
    (tmp_path / "h2l_state.pth").unlink()
    before = (tmp_path / "h2l.pth").read_bytes()
    with pytest.raises(utils.UserError, match="h2l.pth is there without h2l_state.pth.*--restart"):
        train_h2l.main(one_step(demo_data, tmp_path))
    assert (tmp_path / "h2l.pth").read_bytes() == before


def test_restart_with_bad_data_moves_nothing(demo_data, tmp_path):
    train_h2l.main(one_step(demo_data, tmp_path))
    with pytest.raises(utils.UserError, match="is missing"):
        train_h2l.main(one_step(tmp_path / "nowhere", tmp_path, "--restart"))
    assert (tmp_path / "h2l.pth").exists() and not list(tmp_path.glob("before_restart*"))


def test_a_damaged_state_names_the_remedies(demo_data, tmp_path):
    train_h2l.main(one_step(demo_data, tmp_path))
    state = tmp_path / "h2l_state.pth"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(utils.UserError, match="h2l_state.pth is truncated, or not a safe file .*--restart"):
        train_h2l.main(one_step(demo_data, tmp_path))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on file sizes")
def test_a_full_disk_leaves_the_last_state_whole(demo_data, tmp_path):
    """A limit on the size of files stands in for the full disk: the next state no longer fits."""
    train_h2l.main(one_step(demo_data, tmp_path))
    state = tmp_path / "h2l_state.pth"
    before = state.read_bytes()
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2}, -1)); import utils, train_h2l;"
        "utils.run_script(lambda: train_h2l.main(sys.argv[1:]))"
    )
    result = run_script("-c", code, *one_step(demo_data, tmp_path, "--max-steps", 3))
    assert result.returncode == 1
    assert "cannot write" in result.stderr and "Traceback" not in result.stderr
    assert state.read_bytes() == before
    train_h2l.main(one_step(demo_data, tmp_path, "--max-steps", 3))
    assert torch.load(state, weights_only=True)["iteration"] == 3


def test_a_folder_that_vanishes_ends_in_an_error(demo_data, tmp_path, monkeypatch):
    def vanish(run):
        shutil.rmtree(tmp_path / "out")
        save(run)

    save = Run.save
    monkeypatch.setattr(Run, "save", vanish)
    monkeypatch.setattr(sys, "argv", ["train_h2l.py", *one_step(demo_data, tmp_path / "out")])
    with pytest.raises(SystemExit) as error:
        utils.run_script(train_h2l.main)
    assert "cannot write" in str(error.value) and "h2l_state.pth" in str(error.value)


def test_weights_that_are_not_finite_are_never_saved(demo_data, tmp_path, monkeypatch):
    def spoil(run, optimizer, loss):
        run.state.networks["generator"].tail.bias.data.fill_(float("inf"))

    monkeypatch.setattr(Run, "step", spoil)
    with pytest.raises(FloatingPointError, match="tensor tail.bias of generator is not finite"):
        train_h2l.main(one_step(demo_data, tmp_path))
    assert not (tmp_path / "h2l_state.pth").exists()


def test_rows_that_could_not_be_written_are_written_later(demo_data, tmp_path, monkeypatch, capsys):
    """The log cannot be written from iteration 2 on, as while it is open in a spreadsheet, and the run goes on."""
    to_csv, blocked = pd.DataFrame.to_csv, [True]

    def refuse(table, path, *arguments, **settings):
        if blocked[0] and 2 in table["iteration"].values:
            raise PermissionError(13, "Permission denied", str(path))
        to_csv(table, path, *arguments, **settings)

    monkeypatch.setattr(pd.DataFrame, "to_csv", refuse)
    options = h2l_options(demo_data, tmp_path, "--epochs", 5)
    main(train_h2l, *options, "--max-steps", 4)
    said = capsys.readouterr().out
    assert said.count("train_h2l.csv failed (UserError: cannot write") == 1 and "done: 4 iterations" in said
    assert list(pd.read_csv(tmp_path / "train_h2l.csv")["iteration"]) == [1]
    blocked[0] = False
    main(train_h2l, *options, "--max-steps", 6)
    table = pd.read_csv(tmp_path / "train_h2l.csv")
    assert list(table["iteration"]) == [1, 2, 3, 4, 5, 6]
    assert table["critic_loss"].notna().all()


def test_a_log_that_recovers_has_every_row(demo_data, tmp_path, monkeypatch, capsys):
    """A write that fails halfway, as on a full disk, leaves neither half a row nor a gap."""
    to_csv = pd.DataFrame.to_csv

    def half(table, path, *arguments, **settings):
        if list(table["iteration"]) == [1, 2]:
            path.write_text("iteration,epo")
            raise OSError(28, "No space left on device")
        to_csv(table, path, *arguments, **settings)

    monkeypatch.setattr(pd.DataFrame, "to_csv", half)
    main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 4))
    assert "works again" in capsys.readouterr().out
    assert list(pd.read_csv(tmp_path / "train_h2l.csv")["iteration"]) == [1, 2, 3, 4]


def test_an_iteration_is_saved_before_anything_is_shown(demo_data, tmp_path, monkeypatch):
    """Whatever ends the process in the sample sheet: the iteration is in the state, and its row with it."""

    def die(stage, path):
        raise SystemExit(9)

    options = h2l_options(demo_data, tmp_path, "--save-every", 2)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(train_h2l.Degradation, "sample", die)
        main(train_h2l, *options, "--max-steps", 3)
    state = torch.load(tmp_path / "h2l_state.pth", weights_only=True)
    assert state["iteration"] == 2 and [row["iteration"] for row in state["rows"]] == [2]
    main(train_h2l, *options, "--max-steps", 3)
    assert list(pd.read_csv(tmp_path / "train_h2l.csv")["iteration"]) == [1, 2, 3]


def test_the_precision_of_a_run_stays_what_auto_meant(demo_data, tmp_path, monkeypatch, capsys):
    options = ["--data", demo_data, "--out", tmp_path, "--width", 4, "--batch-size", 4, "--device", "cpu"]
    monkeypatch.setattr(utils, "has_bf16", lambda device: True)
    main(train_h2l, *options, "--max-steps", 1)
    path = tmp_path / "h2l_state.pth"
    state = torch.load(path, weights_only=True)
    assert state["options"]["precision"] == "bf16"
    monkeypatch.setattr(utils, "has_bf16", lambda device: False)
    main(train_h2l, *options, "--max-steps", 2, "--precision", "auto")
    said = capsys.readouterr().out
    assert "resuming with --precision bf16" in said and "bf16, which is emulated and slow" in said
    assert torch.load(path, weights_only=True)["options"]["precision"] == "bf16"
    with pytest.raises(utils.UserError, match=r"--precision fp32 \(the run: --precision bf16\)"):
        main(train_h2l, *options, "--max-steps", 3, "--precision", "fp32")


def test_only_errors_of_the_disk_are_called_that(tmp_path):
    class Spoiled:
        def __reduce__(self):
            raise RuntimeError("an error in the program")

    with pytest.raises(RuntimeError, match="an error in the program"):
        utils.save_checkpoint(tmp_path / "h2l.pth", "h2l", {"weights": Spoiled()})
    assert not list(tmp_path.iterdir())

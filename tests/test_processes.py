"""Signals, several processes, the folder's lock and the console: what happens to a run from outside."""

import errno
import io
import os
import platform
import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch
from helpers import HANGING, h2l_options, main, one_step, run_script, sr_options, start_script, torchrun, wait_for
from tqdm import tqdm

import train
import train_h2l
import training.folder
import utils
from training.folder import exclusive
from training.options import parse_options
from training.run import Run


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_to_the_whole_group_saves(number, demo_data, tmp_path):
    """As Ctrl-C in `train_h2l.py | tee log`: the output's reader is gone."""
    options = h2l_options(demo_data, tmp_path, "--epochs", 100000, "--save-every", 1)
    with start_script("train_h2l.py", *options, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
        wait_for(tmp_path / "h2l_state.pth")
        run.stdout.close()
        os.killpg(run.pid, number)
        assert run.wait(timeout=HANGING) == 128 + number
    iteration = torch.load(tmp_path / "h2l_state.pth", weights_only=True)["iteration"]
    assert iteration == pd.read_csv(tmp_path / "train_h2l.csv")["iteration"].max()


def test_a_stop_by_signal_writes_the_weights_of_that_iteration(demo_data, h2l, tmp_path, monkeypatch):
    """sr.pth is the one that --max-steps gives there, BatchNorm's statistics included."""
    options = ["--adversarial-weight", 0, "--ema-decay", 0.9, "--ot-start-epoch", 1]
    main(train, *sr_options(demo_data, tmp_path / "whole", h2l, *options, "--max-steps", 6))
    iterate = train.SuperResolution.iterate

    def interrupted(stage, iteration, *faces):
        if iteration == 6:
            signal.raise_signal(signal.SIGTERM)
        return iterate(stage, iteration, *faces)

    monkeypatch.setattr(train.SuperResolution, "iterate", interrupted)
    with pytest.raises(SystemExit):
        main(train, *sr_options(demo_data, tmp_path / "stopped", h2l, *options))
    whole, stopped = (torch.load(tmp_path / name / "sr.pth", weights_only=True)["weights"] for name in ("whole", "stopped"))
    for name, weights in whole.items():
        assert all(torch.equal(tensor, stopped[name][key]) for key, tensor in weights.items()), name


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_nohup_is_respected(tmp_path, monkeypatch):
    run = Run("h2l", *parse_options(train_h2l.build_parser(), h2l_options("", tmp_path)), [])
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    handlers = run._catch_signals()
    try:
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.SIGHUP not in handlers
        assert {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU} <= set(handlers)
    finally:
        for number, handler in {**handlers, signal.SIGHUP: before}.items():
            signal.signal(number, handler)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_a_second_sigint_exits_at_once(demo_data, tmp_path):
    """The first one waits for the iteration, which here takes a minute; the second does not."""
    code = (
        "import sys, time, train_h2l, training.run;"
        "training.run.Run.finish = lambda *arguments: print('within', flush=True) or time.sleep(60);"
        "train_h2l.main(sys.argv[1:])"
    )
    options = h2l_options(demo_data, tmp_path)
    with start_script("-c", code, *options, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as run:
        assert any(line == "within\n" for line in run.stdout)
        run.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            run.wait(timeout=2)
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=HANGING) == 130


def test_two_processes_do_what_one_does(demo_data, tmp_path):
    """Stage 1 has no BatchNorm: with the same global batch and noise, two processes have the very
    same gradients. Adam's first steps have their signs alone, which rounding decides where they
    are 0: at rates of 0, its running means show the gradients themselves.
    """
    options = ["--max-steps", 10, "--critic-updates", 2, "--critic-lr", 0, "--generator-lr", 0]
    main(train_h2l, *h2l_options(demo_data, tmp_path / "one", *options))
    result = torchrun("train_h2l.py", *h2l_options(demo_data, tmp_path / "two", *options))
    assert result.returncode == 0, result.stderr
    one, two = (torch.load(tmp_path / n / "h2l_state.pth", weights_only=True) for n in ("one", "two"))
    for name in ("generator", "critic"):
        moments = [state["optimizers"][name]["state"] for state in (one, two)]
        assert len(moments[0]) == len(moments[1]) == len([*one["networks"][name]])
        largest = max(parameter["exp_avg"].abs().max() for parameter in moments[0].values())
        assert largest > 1e-3
        for key, parameter in moments[0].items():
            other = moments[1][key]["exp_avg"]
            assert torch.allclose(parameter["exp_avg"], other, rtol=1e-3, atol=2e-5 * largest), f"{name} {key}"
    assert torch.equal(one["noise"], two["noise"])
    assert len(pd.read_csv(tmp_path / "two" / "train_h2l.csv")) == 10  # one writer


def test_two_processes_train_stage_2_and_resume(demo_data, h2l, tmp_path):
    """All of the loop: critic, mix, x_s and alignment; both processes keep the same weights, and the log has one writer."""
    options = h2l_options(demo_data, tmp_path, "--h2l", h2l, "--vgg-weights", "random", "--adversarial-weight", 0.05)
    options += ["--critic-updates", "2", "--ot-start-epoch", "2", "--steps-per-epoch", "5", "--epochs", "2"]
    for more in (["--max-steps", 7], []):
        result = torchrun("train.py", *options, *more)
        assert result.returncode == 0, result.stderr
    table = pd.read_csv(tmp_path / "train.csv")
    assert table["iteration"].tolist() == list(range(1, 11))
    assert table["alignment_loss"].notna().tolist() == [i in (6, 8, 10) for i in range(1, 11)]
    assert "broadcast_buffers" not in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_one_killed_process_ends_the_other(demo_data, tmp_path):
    options = h2l_options(demo_data, tmp_path, "--epochs", 100000)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train_h2l.py"]
    with start_script(*command, *options, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        wait_for(tmp_path / "train_h2l.csv")
        owner = int((tmp_path / ".h2l.lock").read_text().split()[1])
        os.kill(owner, signal.SIGKILL)
        assert run.wait(timeout=HANGING) != 0
    with exclusive(str(tmp_path), "h2l"):  # nobody holds the folder any more
        pass


@pytest.mark.parametrize(
    "module, size, error",
    [
        (train_h2l, 5, "--batch-size 5 cannot be divided among 2 processes: choose a multiple of 2"),
        (train, 2, "--batch-size 2 leaves 1 face to each of 2 processes, and BatchNorm needs 2: give --batch-size 4"),
    ],
)
def test_batch_sizes_that_do_not_suit_the_processes(module, size, error, tmp_path, monkeypatch):
    for name in ("init_process_group", "new_group"):
        monkeypatch.setattr(torch.distributed, name, lambda *arguments, **settings: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(utils.UserError, match=error):
        main(module, *h2l_options(tmp_path, tmp_path, "--batch-size", size))


def test_a_second_run_on_one_folder_is_refused_and_a_dead_ones_lock_is_not(demo_data, tmp_path):
    with exclusive(str(tmp_path), "h2l"):
        result = run_script("train_h2l.py", *one_step(demo_data, tmp_path))
        assert result.returncode == 1
        assert f"is in use by process {os.getpid()} on " in result.stderr
        with exclusive(str(tmp_path), "sr"):  # the other stage may run
            pass
    (tmp_path / ".h2l.lock").write_text("process 1 on somewhere")  # left by a killed run
    (tmp_path / "h2l_state.pth.123.tmp").touch()
    train_h2l.main(one_step(demo_data, tmp_path))
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.skipif(os.name == "nt", reason="flock is POSIX")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(number, tmp_path, monkeypatch, capsys):
    """The lock file's text stands in: a living process of this host is respected, a dead one's or another host's is not."""
    import fcntl

    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(training.folder, "LOCK_PATIENCE", 0)
    lock, here = tmp_path / ".h2l.lock", platform.node()
    for number, host in ((os.getpid(), here), (999999999, here), (os.getppid(), "elsewhere")):
        lock.write_text(f"process {number} on {host}")
        with exclusive(str(tmp_path), "h2l"):
            pass
        assert capsys.readouterr().out.count("cannot be locked") == 1
    lock.write_text(f"process {os.getppid()} on {here}\n")
    with pytest.raises(utils.UserError, match=f"in use by process {os.getppid()}"):
        with exclusive(str(tmp_path), "h2l"):
            pass


class Broken(io.TextIOBase):
    """A console whose terminal is gone."""

    def write(self, text):
        raise OSError(errno.EIO, "Input/output error")

    flush = close = lambda self: self.write("")


@pytest.mark.parametrize("stream", [Broken, lambda: None])
@pytest.mark.parametrize("end, status", [(lambda: None, 0), (lambda: sys.exit(143), 143), (lambda: 1 / 0, None)])
def test_a_console_that_is_gone_ends_nothing(stream, end, status, monkeypatch):
    monkeypatch.setattr(sys, "stdout", stream())
    monkeypatch.setattr(sys, "stderr", stream())
    reached = []

    def script():
        print("a message", flush=True)
        print("another", file=sys.stderr)
        tqdm.write("and one more", file=sys.stdout)
        with utils.progress(total=1, disable=False) as bar:
            bar.update()
        reached.append(True)
        end()

    if status is None:
        with pytest.raises(ZeroDivisionError):
            utils.run_script(script)
    elif status:
        with pytest.raises(SystemExit) as error:
            utils.run_script(script)
        assert error.value.code == status
    else:
        utils.run_script(script)
    assert reached

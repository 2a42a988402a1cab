"""What the tests share: ways to run the scripts as users do, and to compare what they leave."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

import utils
from training.options import CHANGEABLE, PER_START

HANGING = 1500  # s after which a child counts as hanging, on however busy a machine
ROOT = Path(__file__).resolve().parent.parent
TINY = ["--width", "4", "--batch-size", "4", "--precision", "fp32", "--device", "cpu"]
TINY += ["--save-every", "20"]  # a row of the log for each iteration
# Stage 2 as the reference has it, but for the perceptual network
REFERENCE = ["--betas", 0, 0.5, "--lr-decay", 0.2, "--ema-decay", 0, "--alpha", 0.3, "--synthetic-share", 0]
REFERENCE += ["--augment", "none", "--generator-lr", 1e-4, "--l1-weight", 0.5, "--adversarial-weight", 0.05]
REFERENCE += ["--alignment-lr", 1e-6, "--ot-start-epoch", 2, "--alignment-target", "online"]


def run_script(script: str, *options: object, environment: dict | None = None, **settings) -> subprocess.CompletedProcess:
    """Run a script of the repository in a process of its own, from its root."""
    command = [sys.executable, script, *map(str, options)]
    settings = {"capture_output": True, "text": True, "timeout": HANGING, **settings}
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **(environment or {})}, **settings)


def torchrun(script, *options):
    """Run a script in two processes."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script]
    return run_script(*command, *options, environment={"OMP_NUM_THREADS": "1"})


@contextlib.contextmanager
def start_script(script, *options, **settings):
    """Run a script in a process and a group of its own, which end with the block.

    Its SIGHUP is as from a terminal, also where the tests themselves run under nohup.
    """
    code = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])"
    start = [sys.executable, "-c", code] if hasattr(signal, "SIGHUP") else []
    command = [*start, sys.executable, script, *map(str, options)]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **settings) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(path: Path, seconds: float = HANGING) -> None:
    """Wait until a file is there."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.1)


def main(module, *options):
    """Call a script's main in this process."""
    module.main([str(option) for option in options])


def h2l_options(data, out, *more):
    """Options of train_h2l.py for a tiny run, as text."""
    return [str(option) for option in ("--data", data, "--out", out, *TINY, *more)]


def sr_options(data, out, h2l, *more):
    return h2l_options(data, out, "--h2l", h2l, "--vgg-weights", "random", *REFERENCE, *more)


def one_step(data, out, *more):
    return h2l_options(data, out, "--max-steps", 1, *more)


def one_sr_step(data, out, h2l, *more):
    return sr_options(data, out, h2l, "--max-steps", 1, *more)


def write_weights(path, kind, networks, width, settings=None):
    """An inference file of these networks, by name; returns its path."""
    weights = {name: network.state_dict() for name, network in networks.items()}
    utils.save_checkpoint(path, kind, {"width": width, "settings": settings or {}, "weights": weights})
    return path


def copy_lists(demo_data, folder):
    """The demo's lists in another folder, their paths absolute, so that one of them can be spoiled."""
    folder.mkdir()
    for name in ("HR_train", "HR_test", "LR_train", "LR_test"):
        rows = (demo_data / f"{name}.csv").read_text().split()
        (folder / f"{name}.csv").write_text("\n".join([rows[0], *(str(demo_data / row) for row in rows[1:])]))
    return folder


def assert_equal_states(a, b):
    """Everything in two saved states is the same, bit for bit; the options may differ where they may change."""
    a, b = (torch.load(path, weights_only=True) for path in (a, b))
    for state in (a, b):
        state["options"] = {name: value for name, value in state["options"].items() if name not in CHANGEABLE | PER_START}
        for row in state["rows"]:
            del row["images_per_second"]
    assert all(a.pop(name) == b.pop(name) for name in ("kind", "options", "fingerprints"))
    torch.testing.assert_close(a, b, rtol=0, atol=0)

"""training/group.py: what the processes of a run wait for and agree on, and how they leave."""

import signal

import pytest
import torch
from helpers import ROOT, TINY, run_script
from torch import distributed

import train_h2l
from training.group import PATIENCE, Group

PROGRAM = """
import os, sys, torch
sys.path.insert(0, {root!r})
import utils
from training.group import Group

os.chdir({folder!r})
group = Group(torch.device("cpu"))
with group.first():
    open("order", "a").write(str(group.rank))
assert group.values(group.rank + 5) == [5, 6]
group.check_iteration(7)
try:
    group.check_iteration(100 * group.rank)
except utils.UserError as error:
    open(f"said{{group.rank}}", "w").write(str(error))
tensors = [torch.full((2, 2), float(group.rank)), torch.tensor([3.0 * group.rank])]
group.average(tensors)
assert tensors[0].eq(0.5).all() and tensors[1].item() == 1.5
utils.leave_group()
assert not torch.distributed.is_initialized()
"""


def test_two_processes(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM.format(root=str(ROOT), folder=str(tmp_path)))
    result = run_script("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", tmp_path / "program.py")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "order").read_text() == "01"
    for rank in (0, 1):
        assert "different iterations (0, 100): all machines must see the same --out" in (tmp_path / f"said{rank}").read_text()


@pytest.mark.parametrize("kind, nccl, backend", [("cpu", True, "gloo"), ("cuda", True, "nccl"), ("cuda", False, "gloo")])
def test_the_backend_follows_the_device_and_waits_by_gloo(kind, nccl, backend, monkeypatch):
    calls = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "is_nccl_available", lambda: nccl)
    for name in ("init_process_group", "new_group"):
        monkeypatch.setattr(distributed, name, lambda *arguments, **settings: calls.append((arguments, settings)))
    device = torch.device(kind, 1)
    Group(device)
    (arguments, settings), (_, waiting) = calls
    assert arguments == (backend,) and settings["device_id"] == (device if backend == "nccl" else None)
    assert waiting == {"backend": "gloo", "timeout": PATIENCE} and PATIENCE.total_seconds() > 10 * 3600


def test_a_run_that_ends_by_a_signal_leaves_its_group(demo_data, tmp_path, monkeypatch):
    iterate = train_h2l.Degradation.iterate

    def interrupted(stage, *arguments):
        signal.raise_signal(signal.SIGINT)
        return iterate(stage, *arguments)

    monkeypatch.setattr(train_h2l.Degradation, "iterate", interrupted)
    distributed.init_process_group("gloo", f"file://{tmp_path}/group", rank=0, world_size=1)
    with pytest.raises(SystemExit) as ended:
        train_h2l.main(["--data", str(demo_data), "--out", str(tmp_path), *TINY])
    assert ended.value.code == 130 and (tmp_path / "h2l_state.pth").exists()
    assert not distributed.is_initialized()

"""A run's folder: its lock, the state to resume from, and what must be equal to resume it."""

import contextlib
import errno
import os
import platform
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from utils import UserError, load_checkpoint, make_folder

LOCK_PATIENCE = 8  # s; the loader processes of a killed run hold its folder for up to 5 s more
LOGS = {"h2l": "train_h2l.csv", "sr": "train.csv"}


def _try_lock(stream: IO) -> bool:
    """Lock an open file for this process without waiting; False if another has it. Warns where
    there are no locks.
    """
    try:
        if os.name == "nt":
            import msvcrt

            stream.seek(1 << 20)  # far behind the text, which others must be able to read
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK):  # the last one on Windows
            return False
        print(f"warning: {stream.name} cannot be locked ({error.strerror}): do not start a second run in this folder")
    return True


@contextlib.contextmanager
def exclusive(folder: str, name: str) -> Iterator[None]:
    """Hold the output folder for one run of a stage; a second run, on this machine, is refused.

    The system releases the lock however its process ends, so that no lock is ever stale. Temporary
    files that a killed run left behind are removed.
    """
    if int(os.environ.get("RANK", 0)) > 0:  # the first process holds it for all
        yield
        return
    path = Path(folder) / f".{name}.lock"
    make_folder(path.parent, "--out")
    try:
        stream = open(path, "a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write to the folder {folder} ({error}): name another with --out") from error
    with stream:
        deadline = time.monotonic() + LOCK_PATIENCE
        while not _try_lock(stream):
            if time.monotonic() > deadline:
                stream.seek(0)
                owner = stream.read().strip() or "another run"
                raise UserError(f"{folder} is in use by {owner}: wait for it, stop it, or name another --out")
            time.sleep(0.5)
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {platform.node()}\n")
        stream.flush()
        for pattern in (f"{name}*.tmp", f"samples_{name}/*.tmp", f"{LOGS[name]}.*.tmp"):
            for leftover in path.parent.glob(pattern):
                leftover.unlink()
        yield


def find_state(folder: Path, name: str) -> dict | None:
    """The state that a run of the stage left in the folder, or None.

    Raises UserError for a state that cannot be read and for weights without their state, which
    would be overwritten.
    """
    path, weights = folder / f"{name}_state.pth", folder / f"{name}.pth"
    if path.exists():
        return load_checkpoint(path, f"{name}_state", "restore it, or start over with --restart")
    if weights.exists():
        raise UserError(
            f"{weights} is there without {path.name}: the run cannot be resumed and would overwrite it. "
            "Give --restart to start over (the file is kept), or another --out"
        )
    return None


def move_aside(folder: Path, name: str) -> Path | None:
    """Move the files of a stage's run into a dated folder; returns it, or None if there is nothing
    to move.
    """
    patterns = (f"{name}.pth", f"{name}_*", f"samples_{name}", LOGS[name])
    files = [file for pattern in patterns for file in sorted(folder.glob(pattern))]
    if not files:
        return None
    kept = folder / f"before_restart_{name}_{time.strftime('%Y%m%d-%H%M%S')}"
    kept.mkdir()
    for file in files:
        shutil.move(str(file), str(kept / file.name))
    return kept


def check_fingerprints(saved: dict[str, str], present: dict[str, str], path: Path) -> None:
    """Raise a UserError if the data or the frozen weights differ from those that the run in `path`
    began with.
    """
    for name, fingerprint in present.items():
        if saved.get(name) != fingerprint:
            raise UserError(
                f"{name} differs from what the run in {path} began with: give it the same data and weights, "
                "--restart to start over, or another --out"
            )

"""A run's folder: its lock, the state to resume from, and what must be equal to resume it."""

import contextlib
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from utils import UserError, load_checkpoint, make_folder

LOCK_PATIENCE = 8  # s; the loader processes of a killed run hold its folder for up to 5 s more
LOGS = {"h2l": "train_h2l.csv", "sr": "train.csv"}


def _try_lock(stream: IO) -> bool | None:
    """Lock an open file for this process without waiting; False if another has it, None where there are no locks."""
    try:
        if os.name == "nt":
            import msvcrt

            stream.seek(1 << 20)  # far behind the text, which others must be able to read
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if isinstance(error, (BlockingIOError, PermissionError)) else None  # the second one on Windows
    return True


def _living(owner: str) -> bool:
    """Whether a lock file's text names another process of this host that runs."""
    found = re.fullmatch(r"process (\d+) on (.*)\n?", owner)
    if not found or found[2] != platform.node() or int(found[1]) == os.getpid() or os.name == "nt":
        return False
    try:
        os.kill(int(found[1]), 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # it runs, as another user's
    return True


@contextlib.contextmanager
def exclusive(folder: str, name: str) -> Iterator[None]:
    """Hold the output folder for one run of a stage; a second run, on this machine, is refused.

    The system releases the lock however its process ends, so that no lock is ever stale. Where it
    has no locks, a file that names a living process of this host stands for one. Temporary files
    that a killed run left behind are removed.
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
        stream.seek(0)
        owner = stream.read()
        deadline = time.monotonic() + LOCK_PATIENCE
        while (locked := _try_lock(stream)) is False or (locked is None and _living(owner)):
            if time.monotonic() > deadline:
                stream.seek(0)
                owner = stream.read().strip() or "another run"
                raise UserError(f"{folder} is in use by {owner}: wait for it, stop it, or name another --out")
            time.sleep(0.5)
        if locked is None:
            print(f"warning: {path} cannot be locked: do not start a second run in this folder from another machine")
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {platform.node()}\n")
        stream.flush()
        for pattern in (f"{name}*.tmp", f"samples_{name}/*.tmp", f"{LOGS[name]}.*.tmp"):
            for leftover in path.parent.glob(pattern):
                leftover.unlink()
        try:
            yield
        finally:
            stream.truncate(0)


def find_state(folder: Path, name: str, options: dict) -> dict | None:
    """The state that a run of the stage left in the folder, or None.

    options: those of today, by name. Raises UserError for a state that cannot be read or has
    options of another version, and for weights without their state, which would be overwritten.
    """
    path, weights = folder / f"{name}_state.pth", folder / f"{name}.pth"
    if path.exists():
        state = load_checkpoint(path, f"{name}_state", "restore it, or start over with --restart")
        if other := set(state["options"]) ^ set(options):
            flags = ", ".join(f"--{option.replace('_', '-')}" for option in sorted(other))
            raise UserError(
                f"{path} is of another version of this program, which differs in {flags}: finish it with the version that "
                "began it, start over with --restart, or name another --out"
            )
        return state
    if weights.exists():
        raise UserError(
            f"{weights} is there without {path.name}: the run cannot be resumed and would overwrite it. "
            "Give --restart to start over (the file is kept), or another --out"
        )
    return None


def move_aside(folder: Path, name: str, needed: str = "") -> Path | None:
    """Move the files of a stage's run into a dated folder; returns it, or None if there is nothing
    to move.

    needed: a file that stays, as a copy: the same command can be given again.
    """
    patterns = (f"{name}.pth", f"{name}_*", f"samples_{name}", LOGS[name])
    files = [file for pattern in patterns for file in sorted(folder.glob(pattern))]
    if not files:
        return None
    stem = f"before_restart_{name}_{time.strftime('%Y%m%d-%H%M%S')}"
    number = len([*folder.glob(f"{stem}*")])  # of restarts within this second
    kept = folder / (f"{stem}_{number}" if number else stem)
    kept.mkdir()
    for file in files:
        stays = needed and file.resolve() == Path(needed).resolve()
        (shutil.copy2 if stays else shutil.move)(str(file), str(kept / file.name))
    return kept


def check_fingerprints(saved: dict[str, str], present: dict[str, str], path: Path) -> None:
    """Raise a UserError if the data or the frozen weights differ from those that the run in `path` began with."""
    for name, fingerprint in present.items():
        if saved.get(name) != fingerprint:
            raise UserError(
                f"{name} differs from what the run in {path} began with: give it the same data and weights, "
                "--restart to start over, or another --out"
            )

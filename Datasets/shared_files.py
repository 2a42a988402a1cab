"""Files that several programs use: their space is reserved, and no reader loses its file.

Whoever reads or writes a file holds a lock on it, which the system releases when the process ends
in whatever way. A file that nobody holds can be removed. Where a file system has no such locks
nothing is ever removed.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, which itself refuses to remove a file that is open
    fcntl = None

NO_RESERVATION = {errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


def open_to_read(path: Path) -> IO[bytes] | None:
    """Open a file and hold it as a reader until it is closed; None if there is no such file."""
    try:
        stream = open(path, "rb")
    except (FileNotFoundError, NotADirectoryError):
        return None
    if fcntl:
        with contextlib.suppress(OSError):  # no locks on this file system: nobody removes the file, either
            fcntl.flock(stream, fcntl.LOCK_SH)
    if path.exists():  # it was not removed before it was held
        return stream
    stream.close()
    return None


@contextlib.contextmanager
def create(path: Path, size: int) -> Iterator[Path]:
    """A temporary file of `size` bytes, held while the block fills it, then renamed to `path`.

    Yields its path. Its space on the disk is reserved first: OSError (ENOSPC) if the disk is too
    small. If the block fails the file is removed.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as stream:
            if fcntl:
                with contextlib.suppress(OSError):
                    fcntl.flock(stream, fcntl.LOCK_EX)
            _reserve(stream, size)
            yield temporary
            os.fsync(stream.fileno())
            if fcntl:
                os.replace(temporary, path)  # while it is held
        if not fcntl:
            os.replace(temporary, path)  # Windows renames no open file
    finally:
        temporary.unlink(missing_ok=True)


def remove_unused(folder: Path, pattern: str, keep: Path | None = None) -> None:
    """Remove the files of a pattern that no process holds, but for one."""
    for path in folder.glob(pattern):
        if path == keep:
            continue
        with contextlib.suppress(OSError), open(path, "rb+") as stream:
            if fcntl:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError if it is held, or if there are no locks
                path.unlink()
        if not fcntl:
            with contextlib.suppress(OSError):
                path.unlink()


def _reserve(stream: IO[bytes], size: int) -> None:
    """Give a new file its whole size on the disk: a write through a map to a full disk kills."""
    try:
        os.posix_fallocate(stream.fileno(), 0, size)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_RESERVATION:
            raise
        block = bytes(1 << 20)
        for start in range(0, size, len(block)):
            stream.write(block[: size - start])
        stream.flush()

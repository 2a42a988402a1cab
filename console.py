"""Standard output and standard error that never end a program, whatever becomes of the reader."""

import contextlib
import os
import sys
from typing import Any, TextIO


class Console:
    """A text stream whose writes may fail: what cannot be shown is lost, and the work goes on.

    Fails: a pipe whose reader has gone (`| head -1`), a terminal that was closed, a full disk
    behind `> log`. Characters that the stream's encoding lacks are shown as escapes.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def protect() -> None:
    """Put a Console in the place of standard output and standard error, which may also be missing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # None if it was closed, or under pythonw
        if not isinstance(stream, Console):
            setattr(sys, name, Console(stream))

"""The command line of every script: errors, options, progress, and an output that cannot end the work."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import distributed
from tqdm import tqdm

from models import HR_SIZE

# What a RuntimeError says if memory is lacking: the CPU's two, CUDA's, cuBLAS's and cuDNN's
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")


class UserError(Exception):
    """A problem that the user can solve; the message says what is wrong and the remedy."""


def run_script(main: Callable[[], None]) -> None:
    """Call a script's main, and exit with status 1 and a message for what the user can solve.

    No message can end a script or change its exit status: see `Console`.
    """
    protect()
    try:
        main()
        leave_group()
    except (UserError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:  # a full disk, a folder that vanished or became read-only
        sys.exit(f"error: {error}. Files written before are intact: fix the cause, and run the same command again")


def leave_group() -> None:
    """Let the processes of a run, if it has several, leave their group after all have come here."""
    if distributed.is_initialized():
        distributed.barrier()  # gloo may hang on a process that has already exited
        distributed.destroy_process_group()


@contextlib.contextmanager
def explain_out_of_memory(
    batch_size: int, remedy: str = "lower --batch-size, or train with a smaller --width or with --precision bf16"
) -> Iterator[None]:
    """Turn PyTorch's out-of-memory errors, of a GPU or the CPU, into one with the batch size and the remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not known and not any(sign in str(error) for sign in OUT_OF_MEMORY):
            raise
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"out of memory with --batch-size {batch_size} ({first_line}): {remedy}") from error


def progress(*arguments: Any, **settings: Any) -> tqdm:
    """tqdm's progress bar where standard error is a terminal; elsewhere, such as in a log file, none."""
    return tqdm(*arguments, **{"disable": None} | settings)


def plural(count: int, noun: str) -> str:
    """1 image, 2 images."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


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


# --- options -------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An argument parser whose help shows every default and, for the method's settings, its source."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.defaults: dict[str, Any] = {}
        self.sections: dict[str, Any] = {}
        self.current: Any = self

    def section(self, title: str) -> None:
        """Put the options that follow under this title in the help."""
        if title not in self.sections:
            self.sections[title] = self.add_argument_group(title)
        self.current = self.sections[title]

    def option(self, name: str, default: Any, text: str, source: str | None = None, **settings: Any) -> None:
        """Add --name; source: where the default comes from: the paper, the reference code or this project.

        Values with the metavar PATH, the default for text, or DIR are paths: ~ becomes the home folder.
        """
        origin = f", {source}" if source else ""
        if "choices" not in settings and "action" not in settings:
            settings.setdefault("metavar", {int: "N", float: "X"}.get(type(default), "PATH"))
            settings.setdefault("type", os.path.expanduser if settings["metavar"] in ("PATH", "DIR") else type(default))
        self.defaults[name.replace("-", "_")] = default
        text = f"{text} (default: {default if default not in ('', []) else 'empty'}{origin})"
        self.current.add_argument(f"--{name}", default=argparse.SUPPRESS, help=text.replace("%", "%%"), **settings)

    def switch(self, name: str, text: str) -> None:
        """Add --name, which is off unless it is given."""
        self.defaults[name.replace("-", "_")] = False
        self.current.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS, help=text.replace("%", "%%"))

    def parse(self, argv: list[str] | None = None) -> tuple[argparse.Namespace, set[str]]:
        """Parse the command line; returns all options and the names of those that the user gave."""
        given = vars(super().parse_args(argv))
        return argparse.Namespace(**self.defaults | given), set(given)

    def parse_args(self, argv: list[str] | None = None, namespace: None = None) -> argparse.Namespace:
        """Parse the command line: all options."""
        return self.parse(argv)[0]


def check_framing(parser: Parser, options: argparse.Namespace) -> None:
    """End with an error of the parser if --resize and --crop cannot make an HR face."""
    if options.crop < HR_SIZE:
        parser.error(f"--crop {options.crop}: must be at least {HR_SIZE}, the side of an HR face")
    if options.resize < options.crop:
        parser.error(f"--resize {options.resize}: must be at least --crop")


def warn_framing(path: Path, content: dict, options: argparse.Namespace) -> None:
    """Print it if a weights file was trained on faces that were framed otherwise than the options say."""
    settings = content.get("settings", {})
    names = [name for name in ("resize", "crop") if name in settings]
    trained, here = (" ".join(f"--{name} {values[name]}" for name in names) for values in (settings, vars(options)))
    if trained != here:
        print(f"warning: {path} was trained with {trained}, this is {here}: its faces were framed otherwise")

"""What a run shows of itself: CSV, progress bar, TensorBoard, curves. None of it can end a run."""

import contextlib
import importlib.util
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

import utils
from training.folder import LOGS

LINE_EVERY = 30  # s, at least, between the lines that stand in for the bar without a terminal


class Log:
    """The log of one run: sums of terms since the last row, and rows that wait to be written."""

    def __init__(self, folder: Path, name: str, columns: list[str], say: Callable[[str], None]) -> None:
        """name: the stage. columns: its terms and measurements. say: prints a line."""
        self.path, self.curves = folder / LOGS[name], folder / f"{name}_curves.png"
        self.columns = ["iteration", "epoch", *columns, "learning_rate", "images_per_second"]
        self.say = say
        self.sums, self.counts = Counter(), Counter()  # of the terms since the last row
        self.rows: list[dict[str, float]] = []  # not yet in the file
        self.written: list[dict[str, float]] | None = None  # those that are; None: not read yet
        self.kept = 0  # the file's rows up to this iteration stay; a resumed run computes later ones again
        self.failing: set[str] = set()
        self.tensorboard: Any = None
        self.bar: Any = None
        self.images, self.clock = 0, time.perf_counter()
        self.opened, self.line_clock = (0, self.clock), self.clock

    def open(self, iteration: int, total: int, show: bool) -> Any:
        """Start the clocks and, on a terminal, the progress bar, which is returned. show: False in all processes but one."""
        settings = {"total": total, "initial": iteration, "desc": self.path.stem, "unit": "it"}
        self.bar = utils.progress(**settings, disable=None if show else True)
        self.restart_clock()
        self.opened, self.line_clock = (iteration, self.clock), self.clock
        return self.bar

    @contextlib.contextmanager
    def optional(self, what: str) -> Iterator[None]:
        """Let the run go on if the block fails, for whatever reason; say so once."""
        try:
            yield
        except Exception as error:  # a full disk, a file open elsewhere, matplotlib, ...
            if what not in self.failing:
                self.failing.add(what)
                self.say(f"warning: {what} failed ({type(error).__name__}: {error}); training goes on without it")
        else:
            if what in self.failing:
                self.failing.remove(what)
                self.say(f"{what} works again")

    def add(self, terms: dict[str, float], images: int) -> None:
        """Count an iteration's terms and images."""
        self.images += images
        self.sums.update(terms)
        self.counts.update(terms.keys())

    def close_row(self, iteration: int, epoch: int, learning_rate: float) -> None:
        """Make a row of the terms' means since the last one."""
        means = {name: self.sums[name] / self.counts[name] for name in self.sums}
        rate = self.images / (time.perf_counter() - self.clock)
        row = {"iteration": iteration, "epoch": epoch, **means, "learning_rate": learning_rate, "images_per_second": rate}
        self.rows.append(row)
        self.sums, self.counts = Counter(), Counter()

    def complete_row(self, measurements: dict[str, float]) -> None:
        """Add measurements to the last row. Raises ValueError for a term or measurement that has no column."""
        self.rows[-1] |= measurements
        if unknown := self.rows[-1].keys() - {*self.columns}:
            raise ValueError(f"{min(unknown)} has no column in the log: add it to the trainer's COLUMNS")

    def show_row(self) -> None:
        """Write the rows that wait; show the last one in the progress bar and in TensorBoard."""
        row = self.rows[-1]
        with self.optional(f"writing {self.path}"):
            self.write()
        with self.optional("showing the row"):
            self._show_progress(row)
        if self.tensorboard:
            with self.optional("TensorBoard"):
                for name in self.columns[1:]:
                    if name in row:
                        self.tensorboard.add_scalar(name, row[name], row["iteration"])
                self.tensorboard.flush()

    def _show_progress(self, row: dict[str, float]) -> None:
        """A row in the progress bar; where there is none, as a plain line, seldom."""
        shown = {name: f"{row[name]:.3g}" for name in self.columns[2:-2] if name in row}
        shown["images/s"] = f"{row['images_per_second']:.1f}"
        self.bar.set_postfix(shown)
        now = time.perf_counter()
        if self.bar.disable and now - self.line_clock >= LINE_EVERY:
            self.line_clock = now
            done, left = row["iteration"] - self.opened[0], self.bar.total - row["iteration"]
            time_left = self.bar.format_interval(left * (now - self.opened[1]) / done)
            text = ", ".join(f"{name} {value}" for name, value in shown.items())
            self.say(f"iteration {row['iteration']} of {self.bar.total}, {time_left} left: {text}")

    def open_tensorboard(self, folder: Path, iteration: int) -> None:
        """Also log to TensorBoard; what it had of later iterations is hidden.

        Raises UserError if it is not installed; a package that is broken and a folder that cannot be written are said.
        """
        if importlib.util.find_spec("tensorboard") is None:
            raise utils.UserError("--tensorboard needs its package: pip install tensorboard")
        with self.optional("TensorBoard"):
            utils.make_folder(folder, "--out")  # where TensorBoard cannot write, its own thread would end the run
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(folder, purge_step=iteration + 1 if iteration else None)

    def restart_clock(self) -> None:
        """Let the next row's images per second count from now on."""
        self.images, self.clock = 0, time.perf_counter()

    def write(self) -> None:
        """Write the file anew, atomically: its rows up to `kept`, and those that wait."""
        if self.written is None:
            table = pd.DataFrame({"iteration": []})
            if self.kept and self.path.exists():
                table = pd.read_csv(self.path, on_bad_lines="skip")
            self.written = table[table["iteration"] <= self.kept].to_dict("records")
        rows = [*self.written, *self.rows]
        # a row that the state kept waiting may have reached the file
        table = pd.DataFrame(rows, columns=self.columns).drop_duplicates("iteration")
        utils.write_atomic(self.path, lambda temporary: table.to_csv(temporary, index=False, float_format="%.6g"), flush=False)
        self.written, self.rows = rows, []

    def plot(self) -> None:
        """Draw every column of the file over the iterations, if matplotlib is installed (requirements-dev.txt has it)."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return
        table = pd.read_csv(self.path)
        names = [name for name in table.columns[2:] if table[name].notna().any()]
        rows = -(-len(names) // 3)
        figure = Figure(figsize=(14, 2.6 * rows))
        axes = figure.subplots(rows, 3, squeeze=False)
        for axis, name in zip(axes.flat, names):
            points = table[["iteration", name]].dropna()
            axis.plot(points["iteration"], points[name], marker="." if len(points) < 30 else None)
            axis.set_title(name, fontsize=9)
            axis.grid(alpha=0.3)
        for axis in axes.flat[len(names) :]:
            axis.axis("off")
        figure.tight_layout()
        utils.write_atomic(self.curves, lambda temporary: figure.savefig(temporary, format="png", dpi=80), flush=False)

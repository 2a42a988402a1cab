"""A training run of either stage: it starts or resumes, hands out batches, and closes, logs and saves every iteration."""

import argparse
import contextlib
import json
import math
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import utils
from Datasets.faces import PreparedFaces, ResidentFaces, batch_indices, load_faces
from training.folder import check_fingerprints, find_state, move_aside
from training.group import Group
from training.log import Log
from training.options import REFERENCE_DECAY, WARM_UP, adopt_options
from training.state import Network, State
from utils import UserError

SATURATED_UPDATES = 100  # consecutive generator updates with mostly saturated outputs stop a run
ROWS = 20  # of the log between two saved states
READ_EVERY = 20  # iterations, at most, between reads of the terms from a GPU: each one waits
REFERENCE_EPOCH = {"h2l": 9143, "sr": 14066}  # iterations, with the authors' 182,866 HR faces

# Ctrl-C; an end of a job; the terminal's end; a scheduler's warnings that the time is nearly over
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
STOP_SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


class Run:
    """One training run of either stage: where it computes, what it has saved, what it logs, and
    how it resumes.

    In this order: make it; load its `faces`; make its networks (`network`), and optimizers
    (`optimizer`); go through `batches`, closing every iteration with `finish`. Another order raises
    RuntimeError. Everything is written by the first process alone.
    """

    def __init__(self, name: str, options: argparse.Namespace, given: set[str], columns: list[str]) -> None:
        """name: "h2l" or "sr", the first part of the files' names. columns: the log's terms and measurements."""
        self.name, self.options = name, options
        self.out = Path(options.out)
        self.state_path = self.out / f"{name}_state.pth"
        self.device = utils.choose_device(options.device)
        self.group = Group(self.device)
        self.rank, self.world = self.group.rank, self.group.size
        self.main = self.rank == 0
        self.saved = None if options.restart else find_state(self.out, name, vars(options))
        if self.saved is not None:
            for line in adopt_options(options, given, self.saved, self.state_path):
                self.say(line)
        if options.batch_size % self.world:
            raise UserError(
                f"--batch-size {options.batch_size} cannot be divided among {self.world} processes: "
                f"choose a multiple of {self.world}"
            )
        dtype = utils.choose_precision(options.precision, self.device)
        options.precision = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]  # resumed on any machine
        if options.precision == "bf16" and not utils.has_bf16(self.device):
            self.say("warning: this machine does not compute in bf16, which is emulated and slow; --precision fp32 is faster")
        torch.manual_seed(options.seed)
        torch.backends.cudnn.benchmark = True  # the shapes stay the same; without effect on the CPU
        self.state = State(self.device, dtype, options.ema_decay, options.seed)
        self.rates: dict[str, float] = {}  # of the optimizers, before the schedule
        self.prepared: dict[str, PreparedFaces] = {}
        self.fingerprints: dict[str, str] = {}
        self.unread: list[tuple[int, list[str], Tensor]] = []  # iteration, and its terms' names and values
        self.read_every = READ_EVERY if self.device.type == "cuda" else 1
        self.log = Log(self.out, name, columns, self.say)
        self.started = False
        self.steps_per_epoch = self.total = self.stop_at = self.saturated_updates = self.stop_signal = 0

    def say(self, text: str) -> None:
        """Print a line, above the progress bar, once for all processes."""
        if self.main:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    # --- what a trainer builds -------------------------------------------------------------------

    def faces(self, list_name: str) -> PreparedFaces:
        """The prepared faces of a list, such as "HR_train"; the first process prepares them, the others wait for it."""
        if list_name not in self.prepared:
            options, (kind, part) = self.options, list_name.split("_")
            with self.group.first():
                faces = load_faces(options.data, kind, part, options.cache, options.resize, options.crop)
            if list_name.endswith("train") and len(faces) < options.batch_size:
                raise UserError(
                    f"{list_name}.csv has {len(faces)} usable faces, fewer than --batch-size {options.batch_size}: "
                    "add faces or lower --batch-size"
                )
            stride = max(1, len(faces) // 1000)
            self.fingerprints[list_name] = utils.digest({f"{len(faces)}": faces[::stride][0]})
            self.prepared[list_name] = faces
        return self.prepared[list_name]

    def _check_not_started(self) -> None:
        if self.started:
            raise RuntimeError("networks and optimizers are made before the first batch: what is made later is not resumed")

    def network(self, name: str, module: nn.Module, inference: bool = False) -> Network:
        """A network to train, on the device, kept in the state and, if asked, in the inference file."""
        self._check_not_started()
        return self.state.network(name, module, inference)

    def optimizer(self, name: str, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Keep an optimizer in the state; its learning rate follows the run's schedule."""
        self._check_not_started()
        self.state.optimizers[name] = optimizer
        self.rates[name] = optimizer.param_groups[0]["lr"]
        return optimizer

    def load_initial_weights(self) -> None:
        """--initial-weights: the networks of a weights file of the same stage, unless a run resumes."""
        self._check_not_started()
        if self.saved is not None:
            return
        path = Path(self.options.initial_weights)
        content = utils.load_checkpoint(path, self.name, f"--initial-weights takes a {self.name}.pth")
        self.state.load_weights(path, content)
        if self.main:
            utils.warn_framing(path, content, self.options)
        self.say(f"starting with the weights of {path}")

    # --- what an iteration needs -----------------------------------------------------------------

    def normal(self, *shape: int) -> Tensor:
        """Standard normal: this process's part [N, *shape] of the draw for the global batch."""
        return self._part(torch.randn(self.options.batch_size, *shape, generator=self.state.noise))

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0, 1): this process's part [N, *shape] of the draw for the global batch."""
        return self._part(torch.rand(self.options.batch_size, *shape, generator=self.state.noise))

    def _part(self, draw: Tensor) -> Tensor:
        return draw.chunk(self.world)[self.rank].to(self.device, non_blocking=True)

    def epoch(self, iteration: int) -> int:
        """The epoch, from 1, that an iteration, from 1, belongs to."""
        return (iteration - 1) // self.steps_per_epoch + 1

    def progress(self, iteration: int) -> float:
        """How much of the run, in [0, 1), lies before an iteration, from 1."""
        return (iteration - 1) / (self.options.epochs * self.steps_per_epoch)

    def schedule(self, iteration: int) -> float:
        """The factor on every learning rate: a warm-up and one cosine, or --lr-decay by epochs."""
        if decay := self.options.lr_decay:
            return decay ** ((self.epoch(iteration) - 1) // REFERENCE_DECAY[self.name][0])
        return min(1, iteration / WARM_UP) * 0.5 * (1 + math.cos(math.pi * self.progress(iteration)))

    def step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """One update: clear the gradients, back-propagate, average over the processes, step."""
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        self.group.average([parameter.grad for parameter in parameters if parameter.grad is not None])
        optimizer.step()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[list[Network]]:
        """The networks of the inference file as it has them, in eval mode and without gradients."""
        modules = list(self.state.trained().values())
        modes = [module.training for module in modules]
        try:
            with torch.no_grad():
                yield [Network(module.eval(), self.device, self.state.dtype) for module in modules]
        finally:
            for module, mode in zip(modules, modes):
                module.train(mode)

    # --- the loop --------------------------------------------------------------------------------

    def batches(self, hr: PreparedFaces, lr: PreparedFaces | None = None) -> Iterator[tuple[int, list[Tensor]]]:
        """Start or resume; yield the iterations, from 1, and their faces on the device in [-1, 1]: y, x_c
        and, if `lr` is given, x_r.

        Shows the progress bar, and stops when the run is complete, or on a signal after it has saved.
        """
        self._start(len(hr))
        if self.state.iteration >= self.stop_at:
            self.say(f"the run is complete after {self.state.iteration} iterations: more --epochs or --max-steps prolong it")
        options, cuda = self.options, self.device.type == "cuda"
        indices = batch_indices(
            len(hr), len(lr or hr), options.batch_size, options.seed, self.state.iteration, self.stop_at, self.rank, self.world
        )
        hr, lr = self._resident(hr, lr)
        handlers = self._catch_signals()
        try:
            with self.log.open(self.state.iteration, self.stop_at, self.main):
                for hr_chosen, lr_chosen in indices:
                    iteration = self.state.iteration + 1
                    for name, optimizer in self.state.optimizers.items():
                        optimizer.param_groups[0]["lr"] = self.rates[name] * self.schedule(iteration)
                    faces = hr[hr_chosen] + (lr[lr_chosen] if lr else ())
                    yield iteration, [utils.to_unit_range(part.to(self.device, non_blocking=cuda)) for part in faces]
                    if self.state.iteration != iteration:
                        raise RuntimeError(f"iteration {iteration} was not closed with Run.finish")
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        of = "" if self.stop_at == self.total else f" of {self.total} (--max-steps)"
        self.say(f"done: {self.state.iteration} iterations{of}; weights in {self.out / self.name}.pth")

    def _start(self, faces: int) -> None:
        """Lay out the run's length, and load the saved state if there is one."""
        if self.started:
            raise RuntimeError("a run goes through its batches once")
        options = self.options
        self.started = True
        self.steps_per_epoch = options.steps_per_epoch or max(1, faces // options.batch_size)
        self.total = options.epochs * self.steps_per_epoch
        self.stop_at = min(self.total, options.max_steps or self.total)
        if self.main:
            self._prepare_folder()
        if self.saved is not None:
            self._resume(self.saved)
            self.saved = None
        self.group.check_iteration(self.state.iteration)
        if self.main:
            text = json.dumps(vars(options), indent=2) + "\n"
            utils.write_atomic(self.out / f"{self.name}_options.json", lambda temporary: temporary.write_text(text))
            with self.log.optional(f"writing {self.log.path}"):
                self.log.write()
        self.say(
            f"{platform.node()}: {self.world} process(es) on {self.device.type}, {options.precision}, PyTorch "
            f"{torch.__version__}\n{json.dumps(vars(options))}\n{self.total} iterations of {options.batch_size} "
            f"images, {self.steps_per_epoch} an epoch"
        )
        epoch = REFERENCE_EPOCH[self.name]
        if options.lr_decay and not options.steps_per_epoch and self.steps_per_epoch < epoch / 4:
            self.say(
                f"note: the learning rates fall and the run ends by epochs, and one pass over {faces} faces is short. The "
                f"reference's epoch had {epoch} iterations: --steps-per-epoch {epoch}, or what you have time for"
            )

    def _prepare_folder(self) -> None:
        """--restart and --tensorboard; only now that the options, the data and the other weights have proved good."""
        if self.options.restart and (kept := move_aside(self.out, self.name, self.options.initial_weights)):
            self.say(f"--restart: the files of the run so far are kept in {kept}")
        if self.options.tensorboard:
            self.log.open_tensorboard(self.out / f"{self.name}_tensorboard", self.saved["iteration"] if self.saved else 0)

    def _resume(self, saved: dict) -> None:
        """Go on from a saved state: what is trained, and the log's sums and waiting rows."""
        check_fingerprints(saved["fingerprints"], self.fingerprints, self.state_path)
        self.state.load_state_dict(saved, self.state_path)
        self.log.sums.update(saved["sums"])
        self.log.counts.update(saved["counts"])
        self.log.rows, self.log.kept, self.saturated_updates = saved["rows"], self.state.iteration, saved["saturated_updates"]
        self.say(f"resuming from {self.state_path}, iteration {self.state.iteration}")

    def _resident(self, hr: PreparedFaces, lr: PreparedFaces | None) -> tuple[PreparedFaces | ResidentFaces | None, ...]:
        """The faces, in the GPU's memory if they take at most a quarter of what is free."""
        parts = [hr, lr] if lr else [hr]
        if self.device.type != "cuda" or sum(part.size() for part in parts) > torch.cuda.mem_get_info(self.device)[0] / 4:
            return hr, lr
        return ResidentFaces(hr, self.device), lr and ResidentFaces(lr, self.device)

    def _catch_signals(self) -> dict[int, Any]:
        """Let STOP_SIGNALS end the run after the iteration, saved; a second SIGINT exits at once. Returns the old handlers."""

        def stop(number: int, _frame: Any) -> None:
            if self.stop_signal and number == signal.SIGINT:
                os._exit(128 + number)
            self.stop_signal = self.stop_signal or number

        # nohup ignores SIGHUP. A shell ignores SIGINT for what it runs in the background, but a
        # user may still send it
        ignored = [number for number in STOP_SIGNALS if number != signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN]
        return {number: signal.signal(number, stop) for number in STOP_SIGNALS if number not in ignored}

    # --- the end of an iteration -----------------------------------------------------------------

    def finish(self, terms: dict[str, Tensor], sample: Callable[[Path], dict[str, float]]) -> None:
        """Close an iteration: check its terms, save if it is time, and only then log and sample.

        On a GPU the terms are read every READ_EVERY iterations, and before anything is logged,
        sampled or saved.

        terms: name -> scalar, for the log; "generator_loss" or "alignment_loss" is there where
        more than the critic was updated. sample: writes a sheet to the given path and returns
        measurements for the log.
        Raises FloatingPointError, before anything is saved, if a term is not finite.
        """
        state, options = self.state, self.options
        state.iteration += 1
        if not terms.keys().isdisjoint(("generator_loss", "alignment_loss")):
            state.update_averages()
        stop = max(self.group.values(self.stop_signal))  # what one process got, all of them get
        sampled = state.iteration % options.save_every == 0 or state.iteration == self.stop_at
        logged = state.iteration % max(1, options.save_every // ROWS) == 0 or sampled
        self.unread.append((state.iteration, list(terms), torch.stack([term.detach().float() for term in terms.values()])))
        if logged or stop or len(self.unread) >= self.read_every:
            self._read_terms()
        if logged and self.main:
            rate = next(iter(state.optimizers.values())).param_groups[0]["lr"]
            self.log.close_row(state.iteration, self.epoch(state.iteration), rate)
        if sampled or stop:
            self.save()
        if self.main:
            self._show(logged, sample if sampled else None)
        if stop:
            self.log.bar.close()
            self.say(f"stopped by signal {stop} and saved at iteration {state.iteration} of {self.total}")
            utils.leave_group()
            sys.exit(128 + stop)

    def _read_terms(self) -> None:
        """Read the unread terms from the device, all at once, as means over the processes, and
        check each iteration's in turn.
        """
        values = torch.cat([terms for _, _, terms in self.unread])
        self.group.average([values])
        values = values.tolist()
        for iteration, names, _ in self.unread:
            self._check(iteration, dict(zip(names, values)))
            del values[: len(names)]
        self.unread.clear()

    def _check(self, iteration: int, values: dict[str, float]) -> None:
        """Count the terms for the log; raise FloatingPointError for one that is not finite, or for lasting saturation."""
        for name, value in values.items():
            if not np.isfinite(value):
                raise FloatingPointError(
                    f"{name} is {value} at iteration {iteration}. The last good state is "
                    + (f"in {self.state_path}" if self.state_path.exists() else "not saved yet")
                    + "; lower the learning rates or use --precision fp32"
                )
        if self.main:
            self.log.add(values, self.options.batch_size)
        if "saturated" in values:
            self.saturated_updates = self.saturated_updates + 1 if values["saturated"] > 0.5 else 0
        if self.saturated_updates >= SATURATED_UPDATES:
            raise FloatingPointError(
                f"saturated: over half of the generator's output values were beyond [-1, 1] in each of the last "
                f"{SATURATED_UPDATES} updates, at iteration {iteration}; the pictures are lost. Lower the learning rates"
            )

    def _show(self, logged: bool, sample: Callable[[Path], dict[str, float]] | None) -> None:
        """What the run shows of an iteration; a failure is said, and ends nothing. sample: as for `finish`, or None."""
        measurements = {}
        if sample is not None:
            with self.log.optional("the sample sheet"):
                folder = self.out / f"samples_{self.name}"
                folder.mkdir(exist_ok=True)
                measurements = sample(folder / f"{self.state.iteration:07d}.png")
        if logged:
            self.log.complete_row(measurements)
            self.log.show_row()
        if sample is not None:
            with self.log.optional(f"drawing {self.log.curves}"):
                self.log.plot()
        with self.log.optional("the progress bar"):
            self.log.bar.update()
        if logged:
            self.log.restart_clock()

    def save(self) -> None:
        """Write the state, then the inference file; refuses to write weights that are not finite."""
        if not self.main:
            return
        log, settings = self.log, {**vars(self.options), "iteration": self.state.iteration}
        state = self.state.state_dict() | {
            "options": vars(self.options), "fingerprints": self.fingerprints, "sums": dict(log.sums),
            "counts": dict(log.counts), "rows": log.rows, "saturated_updates": self.saturated_updates,
        }  # fmt: skip
        utils.save_checkpoint(self.state_path, f"{self.name}_state", state)
        weights = {name: network.state_dict() for name, network in self.state.trained().items()}
        content = {"width": self.options.width, "settings": settings, "weights": weights}
        utils.save_checkpoint(self.out / f"{self.name}.pth", self.name, content)

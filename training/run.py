"""A training run of either stage: it starts or resumes, hands out batches, and closes, logs and
saves every iteration.
"""

import argparse
import json
import os
import platform
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

import utils
from Datasets.faces import BatchIndices, FaceBatches, PreparedFaces, ResidentFaces, load_faces
from training.group import Group
from training.log import Log
from training.options import adopt_options
from training.phases import BATCHES, EMA_DECAYS, Phase, check_lengths, lay_out, remaining
from training.state import check_fingerprints, find_state, move_aside
from utils import UserError

SATURATED_UPDATES = 100  # consecutive generator updates with mostly saturated outputs stop a run
READ_EVERY = 20  # iterations, at most, between reads of the terms from a GPU: each one waits
REFERENCE_EPOCH = {"h2l": 9143, "sr": 14066}  # iterations, with the authors' 182,866 HR faces

# Ctrl-C; an end of a job; the terminal's end
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def ignore_signals(_worker: int) -> None:
    """In a process that loads batches: a signal to the whole group, such as Ctrl-C, is for the run
    to handle.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Run:
    """One training run of either stage: where it computes, what it has saved, what it logs, and
    how it resumes.

    The trainers make their networks and optimizers through it, call `begin`, and go through
    `batches`, closing every iteration with `finish`. Everything is written by the first process
    alone.
    """

    def __init__(self, name: str, options: argparse.Namespace, given: set[str], columns: list[str]) -> None:
        """name: "h2l" or "sr", the first part of the files' names. columns: the log's terms and
        measurements.
        """
        self.name, self.options = name, options
        self.out = Path(options.out)
        self.state_path = self.out / f"{name}_state.pth"
        self.device = utils.choose_device(options.device)
        self.group = Group(self.device)
        self.rank, self.world = self.group.rank, self.group.size
        self.main = self.rank == 0
        self.state = None if options.restart else find_state(self.out, name)
        if self.state is not None:
            for line in adopt_options(options, given, self.state, self.state_path):
                self.say(line)
        if options.batch_size % self.world:
            raise UserError(
                f"--batch-size {options.batch_size} cannot be divided among {self.world} processes: "
                f"choose a multiple of {self.world}"
            )
        self.dtype = utils.choose_precision(options.precision, self.device)
        options.precision = {torch.bfloat16: "bf16", torch.float32: "fp32"}[self.dtype]  # resumed on any machine
        if options.precision == "bf16" and not utils.has_bf16(self.device):
            self.say("warning: this machine does not compute in bf16, which is emulated and slow; --precision fp32 is faster")
        torch.manual_seed(options.seed)
        self.noise = torch.Generator().manual_seed(options.seed)
        self.networks: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.schedulers: dict[str, torch.optim.lr_scheduler.LRScheduler] = {}
        self.inference: list[str] = []
        self.averages: dict[str, AveragedModel] = {}
        self.prepared: dict[str, PreparedFaces] = {}
        self.fingerprints: dict[str, str] = {}
        self.unread: list[tuple[int, list[str], Tensor]] = []  # iteration, and its terms' names and values
        self.read_every = READ_EVERY if self.device.type == "cuda" else 1
        torch.backends.cudnn.benchmark = True  # the shapes stay the same; without effect on the CPU
        self.log = Log(self.out, name, columns, self.say)
        self.phase: Phase | None = None
        self.batch_size = options.batch_size  # that of the phase
        self.iteration = self.steps_per_epoch = self.total = self.saturated_updates = self.stop_signal = 0

    def say(self, text: str) -> None:
        """Print a line, above the progress bar, once for all processes."""
        if self.main:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    # --- what a trainer builds -------------------------------------------------------------------

    def faces(self, list_name: str) -> PreparedFaces:
        """The prepared faces of a list, such as "HR_train"; the first process prepares them, the
        others wait for it.
        """
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

    def network(self, name: str, network: nn.Module, inference: bool = False, channels_last: bool = True) -> nn.Module:
        """Move a network to the device; keep it in the state and, if asked, in the inference file."""
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        network = network.to(self.device, memory_format=memory_format).train()
        self.networks[name] = network
        if inference:
            self.inference.append(name)
        return network

    def trained(self, *names: str) -> list[nn.Module]:
        """The networks as the inference file has them: their EMA with --ema-decay, else as they
        are.
        """
        return [utils.unwrap(self.averages.get(name, self.networks[name])) for name in names]

    def optimizer(
        self, name: str, optimizer: torch.optim.Optimizer, factor: Callable[[int], float] | None = None
    ) -> torch.optim.Optimizer:
        """Keep an optimizer and its schedule in the state.

        factor: on its learning rate, by iteration of the phase, from 0; None: --lr-decay every --lr-decay-epochs.
        """
        options, schedules = self.options, torch.optim.lr_scheduler
        self.optimizers[name] = optimizer
        self.schedulers[name] = (
            schedules.LambdaLR(optimizer, factor) if factor
            else schedules.StepLR(optimizer, options.lr_decay_epochs, options.lr_decay)
        )  # fmt: skip
        return optimizer

    def distribute(self, name: str) -> nn.Module:
        """The network to train, wrapped for several processes; BatchNorm's statistics stay each
        process's own.
        """
        network = self.networks[name]
        if self.world == 1:
            return network
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False)

    # --- its beginning ---------------------------------------------------------------------------

    def lay_out(self) -> list[Phase]:
        """The run's phases by HR_train and the options, from that of the saved state to the last."""
        options, iteration = self.options, self.state["iteration"] if self.state else 0
        self.steps_per_epoch = options.steps_per_epoch or max(1, len(self.faces("HR_train")) // options.batch_size)
        phases = lay_out(vars(options), self.steps_per_epoch)
        if self.state:
            check_lengths(self.state, vars(options), self.steps_per_epoch, self.state_path)
        self.total = min(phases[-1].end, options.max_steps or phases[-1].end)
        left = remaining(phases, iteration)
        if left[0].start == 0 and left[0].name != "interleaved" and not (iteration or options.initial_weights):
            raise UserError(f"--phases {options.phases}: {left[0].name} starts with trained networks: name --initial-weights")
        return left

    def enter(self, phase: Phase) -> None:
        """Enter a phase. The trained networks go on as they are written; what else the phase before
        had is dropped.
        """
        if self.phase:
            for name, written in zip(self.inference, self.trained(*self.inference)):
                self.networks[name].load_state_dict(written.state_dict())
                self.group.share(self.networks[name])
            self.networks = {name: self.networks[name] for name in self.inference}
            self.optimizers, self.schedulers, self.saturated_updates = {}, {}, 0
        self.phase = phase
        self.batch_size = self.options.batch_size * BATCHES.get(phase.name, 1)
        self._start_averages(self.options.ema_decay or EMA_DECAYS.get(phase.name, 0.0))
        if phase.name != "interleaved":
            self.say(f"{phase.name}: iterations {phase.start + 1} to {phase.end}, of {self.batch_size} images each")

    def begin(self) -> None:
        """Start: from the saved state if there is one, else from nothing."""
        options = self.options
        if self.phase is None:  # there is only one
            self.load_initial_weights()
            self.enter(self.lay_out()[0])
        if self.main:
            self._prepare_folder()
        if self.state is not None:
            self._resume(self.state)
            self.state = None
        self.group.check_iteration(self.iteration)
        if self.main:
            text = json.dumps(vars(options), indent=2) + "\n"
            utils.write_atomic(self.out / f"{self.name}_options.json", lambda temporary: temporary.write_text(text))
            with self.log.optional(f"writing {self.log.path}"):
                self.log.write()
        self._introduce(len(self.faces("HR_train")))

    def _prepare_folder(self) -> None:
        """--restart and --tensorboard; only now that the options, the data and the other weights
        have proved good.
        """
        if self.options.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UserError("--tensorboard needs its package: pip install tensorboard") from error
        if self.options.restart and (kept := move_aside(self.out, self.name)):
            self.say(f"--restart: the files of the run so far are kept in {kept}")
        if self.options.tensorboard:
            self.log.tensorboard = SummaryWriter(self.out / f"{self.name}_tensorboard")

    def load_initial_weights(self) -> None:
        """--initial-weights: the networks of a weights file of the same stage, unless a run resumes."""
        if self.options.initial_weights and self.state is None:
            path = Path(self.options.initial_weights)
            content = utils.load_checkpoint(path, self.name, f"--initial-weights takes a {self.name}.pth")
            for name in self.inference:
                utils.load_weights(self.networks[name], content.get("weights", {}).get(name, {}), path)
            self.say(f"starting with the weights of {path}")

    def _start_averages(self, decay: float) -> None:
        """The EMA of the networks in the inference file, which begins as a copy; decay 0: none."""
        self.averages = {}
        for name in self.inference if decay else ():
            self.averages[name] = AveragedModel(self.networks[name], multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

    def _resume(self, state: dict) -> None:
        """Load a state: networks and their EMA, optimizers, schedules, the noise, and the log's
        sums and waiting rows.
        """
        check_fingerprints(state["fingerprints"], self.fingerprints, self.state_path)
        for name, network in self.networks.items():
            utils.load_weights(network, state["networks"][name], self.state_path)
        for name, average in self.averages.items():
            average.load_state_dict(state["averages"][name])
        for name in self.optimizers:
            self.optimizers[name].load_state_dict(state["optimizers"][name])
            self.schedulers[name].load_state_dict(state["schedulers"][name])
        self.noise.set_state(state["noise"])
        self.log.sums, self.log.counts = state["sums"], state["counts"]
        self.log.rows = state.get("rows", [])  # states of older versions have none
        self.log.kept = self.iteration = state["iteration"]
        self.saturated_updates = state["saturated_updates"]
        self.say(f"resuming from {self.state_path}, iteration {self.iteration}")

    def _introduce(self, faces: int) -> None:
        """Say what runs where; and if it is short, that it is."""
        self.say(
            f"{platform.node()}: {self.world} process(es) on {self.device.type}, {str(self.dtype)[6:]}, PyTorch "
            f"{torch.__version__}\n{json.dumps(vars(self.options))}\n{self.total} iterations of {self.options.batch_size} "
            f"images, {self.steps_per_epoch} an epoch"
        )
        reference = REFERENCE_EPOCH[self.name]
        by_epochs = self.phase.name == "interleaved" and not self.options.steps_per_epoch
        if by_epochs and not self.iteration and self.steps_per_epoch < reference / 4:
            self.say(
                f"note: the learning rates fall and the run ends by epochs, and one pass over {faces} faces is short. The "
                f"reference's epoch had {reference} iterations: --steps-per-epoch {reference}, or what you have time for"
            )

    # --- what an iteration needs -----------------------------------------------------------------

    def autocast(self) -> torch.autocast:
        """Convolutions and linear layers in the run's precision."""
        return utils.autocast(self.device, self.dtype)

    def normal(self, *shape: int) -> Tensor:
        """z ~ N(0, I): this process's part [N, *shape] of the draw for the global batch, whatever
        their number.
        """
        return self._part(torch.randn(self.batch_size, *shape, generator=self.noise))

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0, 1): this process's part [N, *shape] of the draw for the global batch."""
        return self._part(torch.rand(self.batch_size, *shape, generator=self.noise))

    def _part(self, draw: Tensor) -> Tensor:
        return draw.chunk(self.world)[self.rank].to(self.device, non_blocking=True)

    def epoch(self, iteration: int) -> int:
        """The epoch, from 1, that an iteration, from 1, belongs to."""
        return (iteration - 1) // self.steps_per_epoch + 1

    def step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """One update: clear the gradients, back-propagate, step."""
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def batches(self, hr: PreparedFaces, lr: PreparedFaces | None = None) -> Iterator[tuple[int, list[Tensor]]]:
        """Yield the phase's iterations, from 1, and their faces on the device in [-1, 1]: y, x_c
        and, if `lr` is given, x_r.

        Shows the progress bar, and stops when the phase is complete, or on a signal after it has
        saved.
        """
        if self.iteration >= self.total:
            length = "--epochs" if self.phase.name == "interleaved" else f"--{self.phase.name}-steps"
            self.say(f"the run is complete after {self.iteration} iterations; {length} or --max-steps make it longer")
        if self.iteration >= self._stop:
            return
        options, cuda = self.options, self.device.type == "cuda"
        indices = BatchIndices(
            len(hr), len(lr or hr), self.batch_size, options.seed, self.iteration, self._stop, self.rank, self.world
        )
        loader = self._resident(hr, lr, indices) or DataLoader(
            FaceBatches(hr, lr), batch_size=None, sampler=indices, num_workers=options.workers, pin_memory=cuda,
            worker_init_fn=ignore_signals,
        )  # fmt: skip
        handlers = self._catch_signals()
        try:
            with self.log.open(self.iteration, self.total, self.main):
                for faces in loader:
                    yield self.iteration + 1, [utils.to_unit_range(face.to(self.device, non_blocking=cuda)) for face in faces]
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _resident(self, hr: PreparedFaces, lr: PreparedFaces | None, indices: BatchIndices) -> Iterator[tuple] | None:
        """Batches from faces in the GPU's memory, if they take at most a quarter of what is free."""
        parts = [hr, lr] if lr else [hr]
        if self.device.type != "cuda" or sum(part.size() for part in parts) > torch.cuda.mem_get_info(self.device)[0] / 4:
            return None
        faces = FaceBatches(*(ResidentFaces(part, self.device) for part in parts))
        return map(faces.__getitem__, indices)

    @property
    def _stop(self) -> int:
        """The phase's last iteration."""
        return min(self.phase.end, self.total)

    def _catch_signals(self) -> dict[int, Any]:
        """Let STOP_SIGNALS end the run after the iteration, saved; a second SIGINT exits at once.
        Returns the old handlers.
        """

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
        """Close an iteration: check its terms, move the schedules, save if it is time, and only
        then log and sample.

        On a GPU the terms are read every READ_EVERY iterations, and before anything is logged,
        sampled or saved.

        terms: name -> scalar, for the log; "generator_loss" or "alignment_loss" is there where
        more than the critic was
        updated. sample: writes a sheet to the given path and returns measurements for the log.
        Raises FloatingPointError, before anything is saved, if a term is not finite.
        """
        self.iteration += 1
        options, last = self.options, self.iteration == self._stop
        if not terms.keys().isdisjoint(("generator_loss", "alignment_loss")):
            for name, average in self.averages.items():
                average.update_parameters(self.networks[name])
        stop = self._agree_to_stop()
        sampled = self.iteration % options.sample_every == 0 or last
        logged = self.iteration % options.log_every == 0 or sampled
        saved = self.iteration % options.save_every == 0 or last or stop
        self.unread.append((self.iteration, list(terms), torch.stack([term.detach().float() for term in terms.values()])))
        if logged or saved or len(self.unread) >= self.read_every:
            self._read_terms()
        if logged and self.main:
            rate = next(iter(self.optimizers.values())).param_groups[0]["lr"]
            self.log.close_row(self.iteration, self.epoch(self.iteration), rate)
        self._move_schedules()
        if saved:
            self.save()
        if self.main:
            self._show(logged, sample if sampled else None)
        if stop:
            self.log.bar.close()
            self.say(f"stopped by signal {stop} and saved at iteration {self.iteration}")
            utils.leave_group()
            sys.exit(128 + stop)

    def _read_terms(self) -> None:
        """Read the unread terms from the device, all at once, and check each iteration's in turn."""
        values = torch.cat([terms for _, _, terms in self.unread]).tolist()
        for iteration, names, _ in self.unread:
            self._check(iteration, dict(zip(names, values)))
            del values[: len(names)]
        self.unread.clear()

    def _check(self, iteration: int, values: dict[str, float]) -> None:
        """Count the terms for the log; raise FloatingPointError for one that is not finite, or for
        lasting saturation.
        """
        for name, value in values.items():
            if not np.isfinite(value):
                raise FloatingPointError(
                    f"{name} is {value} at iteration {iteration}. The last good state is "
                    + (f"in {self.state_path}" if self.state_path.exists() else "not saved yet")
                    + "; lower the learning rates or use --precision fp32"
                )
        if self.main:
            self.log.add(values, self.batch_size)
        if "saturated" in values:
            self.saturated_updates = self.saturated_updates + 1 if values["saturated"] > 0.5 else 0
        if self.saturated_updates >= SATURATED_UPDATES:
            raise FloatingPointError(
                f"saturated: over half of the generator's output values were beyond [-1, 1] in each of the last "
                f"{SATURATED_UPDATES} updates, at iteration {iteration}; the pictures are lost. Lower the learning rates"
            )

    def _agree_to_stop(self) -> int:
        """The signal to stop by after this iteration, or 0: what one process got, all of them get.

        Asked once an iteration, since a signal may come at any moment of it.
        """
        return max(self.group.values(self.stop_signal))

    def _move_schedules(self) -> None:
        """By iterations in the phases that have their own schedules, by epochs in the others."""
        with warnings.catch_warnings():  # the alignment's optimizer rightly has not stepped in the first epoch
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for scheduler in self.schedulers.values():
                if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR) or self.iteration % self.steps_per_epoch == 0:
                    scheduler.step()

    def _show(self, logged: bool, sample: Callable[[Path], dict[str, float]] | None) -> None:
        """What the run shows of an iteration; a failure is said, and ends nothing. sample: as for
        `finish`, or None.
        """
        measurements = {}
        if sample is not None:
            with self.log.optional("the sample sheet"):
                folder = self.out / f"samples_{self.name}"
                folder.mkdir(exist_ok=True)
                measurements = sample(folder / f"{self.iteration:07d}.png")
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

    # --- what is saved ---------------------------------------------------------------------------

    def save(self) -> None:
        """Write the state, then the inference file; refuses to write weights that are not finite."""
        if not self.main:
            return
        networks = {name: network.state_dict() for name, network in self.networks.items()}
        for name, weights in networks.items():
            for key, tensor in weights.items():
                if not torch.isfinite(tensor).all():
                    raise FloatingPointError(
                        f"tensor {key} of {name} is not finite at iteration {self.iteration}; the last good state is kept"
                    )
        state = {
            "iteration": self.iteration,
            "options": vars(self.options),
            "fingerprints": self.fingerprints,
            "networks": networks,
            "averages": {name: average.state_dict() for name, average in self.averages.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "schedulers": {name: scheduler.state_dict() for name, scheduler in self.schedulers.items()},
            "noise": self.noise.get_state(),  # the one random state: a batch's faces follow from seed and iteration
            "sums": self.log.sums,
            "counts": self.log.counts,
            "rows": self.log.rows,
            "saturated_updates": self.saturated_updates,
        }
        utils.save_checkpoint(self.state_path, f"{self.name}_state", state)
        self.save_weights()

    def save_weights(self) -> None:
        """Write the inference file alone."""
        weights = {
            name: {key: tensor.cpu().contiguous() for key, tensor in network.state_dict().items()}
            for name, network in zip(self.inference, self.trained(*self.inference))
        }
        settings = {**vars(self.options), "iteration": self.iteration}
        content = {"width": self.options.width, "settings": settings, "weights": weights}
        utils.save_checkpoint(self.out / f"{self.name}.pth", self.name, content)

    def done(self) -> None:
        """Say that the run is complete; the last word, when its weights are final."""
        self.say(f"done: {self.total} iterations; weights in {self.out / self.name}.pth")

"""The phases of train.py: their iterations, and what a resumed run may still change of them."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from training.options import ADDED
from utils import UserError

PHASES = ("interleaved", "align", "joint", "decoder")
BATCHES = {"align": 2}  # times --batch-size: align costs a quarter of the others, and W needs many faces
EMA_DECAYS = {"align": 0.99, "joint": 0.998, "decoder": 0.99}  # unless --ema-decay is given


class Phase(NamedTuple):
    """A phase of a run: it has the iterations start + 1 to end, counted over all phases."""

    name: str
    start: int
    end: int


INTERLEAVED = Phase("interleaved", 0, 0)  # where no length is needed


def phase_names(options: dict[str, Any]) -> list[str]:
    """The phases that a run has. Raises ValueError for a list that is no part of PHASES in order.

    train_h2l.py has no option for them: its one phase goes by epochs, as the interleaved one does.
    """
    names = [name.strip() for name in options.get("phases", "interleaved").split(",")]
    if names != [name for name in PHASES if name in names]:
        raise ValueError(f"must be one or more of {','.join(PHASES)}, in this order")
    return [name for name in names if not (name == "align" and options["no_alignment"])]


def lay_out(options: dict[str, Any], steps_per_epoch: int) -> list[Phase]:
    """The phases of a run, without those of no iterations. Raises UserError if none is left."""
    lengths = {name: options.get(f"{name}_steps", options["epochs"] * steps_per_epoch) for name in phase_names(options)}
    ends = itertools.accumulate(lengths.values())
    phases = [Phase(name, end - lengths[name], end) for name, end in zip(lengths, ends) if lengths[name]]
    if not phases:
        raise UserError("the run has no iterations: with --no-alignment there is no phase align; see --phases and its lengths")
    return phases


def remaining(phases: list[Phase], iteration: int) -> list[Phase]:
    """The phase that an iteration belongs to, the last one included, and the phases after it."""
    return [phase for phase in phases if phase.end >= iteration] or phases[-1:]


def check_lengths(state: dict, options: dict[str, Any], steps_per_epoch: int, path: Path) -> None:
    """Raise a UserError if lengths put a saved state into another phase, or move its beginning."""
    saved = remaining(lay_out(options | ADDED | state["options"], steps_per_epoch), state["iteration"])[0]
    now = remaining(lay_out(options, steps_per_epoch), state["iteration"])[0]
    if now[:2] != saved[:2]:
        raise UserError(
            f"{path} is at iteration {state['iteration']}, in the phase {saved.name}, which began after {saved.start}: the "
            "lengths of the phases before it cannot change any more, nor can it become shorter than it is. Give the lengths "
            "that the run began with, --restart to start over, or another --out"
        )


def warm_up_and_cosine(warm_up: int, steps: int) -> Callable[[int], float]:
    """The factor on a learning rate by iteration, from 0: a rise to 1, and a cosine's fall to 0.

    A fresh Adam needs the rise: its first steps have the learning rate's size, however small the gradient.
    """
    return lambda iteration: min(1, (iteration + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * min(1, iteration / steps)))

"""The options that both trainers share, and how a resumed run gets its own options back."""

import argparse
import math
from pathlib import Path
from typing import Any

from utils import Parser, UserError, check_framing, plural

WARM_UP = 60  # iterations; a fresh Adam's first steps have the learning rate's size, however small the gradient
REFERENCE_DECAY = {"h2l": (1, 0.5), "sr": (2, 0.2)}  # of the learning rates: after so many epochs, by this factor

# A resumed run keeps its options. These may be changed by giving them again,
CHANGEABLE = {"epochs", "save_every"}
# and these are never kept. --data and --h2l may name another place that holds the same
PER_START = {"data", "out", "cache", "h2l", "initial_weights", "max_steps", "device", "restart", "tensorboard"}


def training_parser(
    description: str, name: str, batch_size: int, epochs: int, betas: list[float], ema_decay: float,
    beginnings: dict[str, str],
) -> Parser:  # fmt: skip
    """The options that both trainers share, with the stage's own defaults.

    name: "h2l" or "sr". beginnings: what --initial-weights may name instead of a file, the default first -> what it means.
    A trainer adds its own to the parser it gets; they appear among those of the method.
    """
    parser = Parser(description)
    option = parser.option
    parser.section("data")
    option("data", "Datasets", "folder of HR_train.csv, HR_test.csv, LR_train.csv and LR_test.csv", metavar="DIR")
    option("cache", "", "folder of the prepared faces; empty: .cache in the data folder", metavar="DIR")
    option("resize", 100, "px that the shorter side of an HR image is resized to", "reference")
    option("crop", 64, "px of the resized image's centre that become the 64x64 HR face", "reference")
    parser.section("length")
    option("epochs", epochs, "length of the run", "ours: the reference never stops")
    option("steps-per-epoch", 0, "iterations in an epoch; 0: one pass over HR_train", "reference")
    option("max-steps", 0, "stop and save after N iterations in total; 0: after --epochs")
    parser.section("method")
    option("batch-size", batch_size, "the global batch size, all processes together", "ours; reference 20 and 13")
    option("width", 64, "channels of the networks' first layers, a multiple of 4; small ones make quick tests", "paper")
    option("betas", betas, "Adam's decays of the gradient's mean and of its square", nargs=2, type=float, metavar="X")
    every, decay = REFERENCE_DECAY[name]
    option("lr-decay", 0.0, f"factor on all learning rates every {plural(every, 'epoch')}; 0: they rise for "
           f"{WARM_UP} iterations and fall by one cosine over the run", f"ours; reference {decay}")  # fmt: skip
    option("ema-decay", ema_decay, "decay of the EMA of the weights, which is what is written; 0: none", "ours; reference 0")
    option("critic-updates", 5, "critic updates for each generator update", "reference")
    option("seed", 0, "seed of the initial weights, the noise and the order of the faces")
    parser.section("machine")
    option("device", "auto", "auto: the GPU if there is one", metavar="{auto,cuda,cpu}")
    option("precision", "auto", "auto: bf16 where the hardware has it, else fp32", choices=("auto", "fp32", "bf16"))
    parser.section("files")
    option("out", "Trained_Models", "folder of everything that is written", metavar="DIR")
    named = ", ".join(f"{name} ({meaning})" for name, meaning in beginnings.items())
    option("initial-weights", next(iter(beginnings)), f"weights to begin with: {named}, or a file of the same stage")
    option("save-every", 1000, "iterations between saved states and sample sheets; the log has 20 rows between two")
    parser.switch("restart", "start over; the files of the run so far are kept in a dated folder")
    parser.switch("tensorboard", "also log to TensorBoard (pip install tensorboard)")
    parser.section("method")
    return parser


def parse_options(parser: Parser, argv: list[str] | None = None) -> tuple[argparse.Namespace, set[str]]:
    """Parse and check a trainer's options; returns them and the names of those that the user gave."""
    options, given = parser.parse(argv)

    def require(name: str, good: bool, what: str) -> None:
        if not good:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: must be {what}")

    for name, value in vars(options).items():
        if isinstance(value, float):
            require(name, math.isfinite(value) and value >= 0, "a number of at least 0")
        elif isinstance(value, list):
            require(name, all(math.isfinite(number) and number >= 0 for number in value), "numbers of at least 0")
        elif name in ("epochs", "save_every", "critic_updates", "ot_start_epoch"):
            require(name, value >= 1, "at least 1")
        elif isinstance(value, int) and not isinstance(value, bool):
            require(name, value >= 0, "at least 0")
    require("ema_decay", options.ema_decay < 1, "less than 1")
    require("betas", max(options.betas) < 1, "less than 1")
    require("batch_size", options.batch_size >= 2, "at least 2")
    require("width", options.width >= 4 and options.width % 4 == 0, "a positive multiple of 4")
    check_framing(parser, options)
    return options, given


def _flag(name: str, value: Any) -> str:
    """An option as a user writes it."""
    flag, value = f"--{name.replace('_', '-')}", " ".join(map(str, value)) if isinstance(value, list) else value
    return f"{flag} {value}" if not isinstance(value, bool) else flag if value else f"no {flag}"


def adopt_options(options: argparse.Namespace, given: set[str], state: dict, path: Path) -> list[str]:
    """Give a resumed run the options it began with, in place; returns a line for each that differs
    from the default.

    given: the names of the options on the command line. state, path: the saved state and its file.
    Raises UserError if the user gave an option that cannot change another value.
    """
    values, said, conflicts = vars(options), [], []
    given = given - {"precision"} if options.precision == "auto" else given
    for name, saved in state["options"].items():
        if name in PER_START or name not in values or values[name] == saved or (name in CHANGEABLE and name in given):
            continue
        if name in given:
            conflicts.append(f"{_flag(name, values[name])} (the run: {_flag(name, saved)})")
        else:
            said.append(f"resuming with {_flag(name, saved)}, as the run began")
            values[name] = saved
    if conflicts:
        raise UserError(
            f"{path} is of a run with other options: {', '.join(conflicts)}. Give the same options to resume it, "
            "--restart to start over (its files are kept), or another --out"
        )
    return said

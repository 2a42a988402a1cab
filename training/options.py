"""The options that both trainers share, and how a resumed run gets its own options back."""

import argparse
import math
from pathlib import Path
from typing import Any

from utils import Parser, UserError, check_framing

# A resumed run keeps its options. These may be changed by giving them again,
CHANGEABLE = {
    "epochs", "align_steps", "joint_steps", "decoder_steps", "workers", "save_every", "sample_every", "log_every"
}  # fmt: skip
# and these are never kept. --data and --h2l may name another place that holds the same
PER_START = {"data", "out", "cache", "h2l", "initial_weights", "max_steps", "device", "restart", "tensorboard"}
# Options that states of older versions lack, and what those versions did
ADDED = {"ema_decay": 0.0, "freeze_batchnorm": False, "no_alignment": False, "phases": "interleaved"}


def training_parser(description: str, batch_size: int, epochs: int, decay: float, decay_epochs: int) -> Parser:
    """The options that both trainers share, with the stage's own batch size and schedule.

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
    option("batch-size", batch_size, "the global batch size, all processes together", "reference")
    option("width", 64, "channels of the networks' first layers, a multiple of 4; small ones make quick tests", "paper")
    option("lr-decay", decay, "factor on all learning rates", "reference")
    option("lr-decay-epochs", decay_epochs, "epochs after which it is applied again", "reference")
    option("ema-decay", 0.0, "decay of the EMA of the weights that is written as the trained weights; 0: none, and in the "
           "phases of train.py 0.99 or 0.998", "ours")  # fmt: skip
    option("critic-updates", 5, "critic updates for each generator update", "reference")
    option("gradient-penalty-weight", 10.0, "weight of the gradient penalty", "Gulrajani et al. 2017 and reference")
    option("seed", 0, "seed of the initial weights, the noise and the order of the faces")
    parser.section("machine")
    option("device", "auto", "auto: the GPU if there is one")
    option("precision", "auto", "auto: bf16 where the hardware has it, else fp32", choices=("auto", "fp32", "bf16"))
    option("workers", 0, "processes that load batches; 0 is nearly always enough, since faces are prepared beforehand")
    parser.section("files")
    option("out", "Trained_Models", "folder of everything that is written", metavar="DIR")
    option("initial-weights", "", "start with the weights of this file of the same stage; empty: random weights")
    option("save-every", 1000, "iterations between saved states")
    option("sample-every", 1000, "iterations between sample sheets")
    option("log-every", 50, "iterations between rows of the log")
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
        elif name in ("epochs", "save_every", "sample_every", "log_every", "critic_updates", "lr_decay_epochs"):
            require(name, value >= 1, "at least 1")
        elif isinstance(value, int) and not isinstance(value, bool):
            require(name, value >= 0, "at least 0")
    require("ema_decay", options.ema_decay < 1, "less than 1")
    require("batch_size", options.batch_size >= 2, "at least 2")
    require("width", options.width >= 4 and options.width % 4 == 0, "a positive multiple of 4")
    check_framing(parser, options)
    return options, given


def _flag(name: str, value: Any) -> str:
    """An option as a user writes it."""
    flag = f"--{name.replace('_', '-')}"
    return f"{flag} {value}" if not isinstance(value, bool) else flag if value else f"no {flag}"


def _translate(saved: dict[str, Any], iteration: int, path: Path) -> dict[str, Any]:
    """A state's options under the names of today, where options have been renamed or removed.

    Raises UserError, with the option's name, for a value that no option of today stands for.
    """
    saved = dict(saved)
    if saved["precision"] == "auto":  # it was not kept what that had been
        del saved["precision"]
    if "average_decay" in saved:
        saved["ema_decay"] = saved.pop("average_decay")
    momentum, steps = saved.pop("critic_momentum", 0.5), saved.pop("warm_start_steps", 0)
    epoch, weight = saved.pop("hold_batchnorm_epoch", 0), saved.pop("ot_weight", 1.0)
    saved.setdefault("freeze_batchnorm", epoch == 1)
    saved.setdefault("no_alignment", weight == 0)
    remedy = "finish it with the version that began it, start over with --restart, or name another --out"
    if "pixel_weight" in saved and "colour_weight" not in saved:
        raise UserError(f"{path} is of a run whose critic learns by SGD, as it no longer does: {remedy}")
    removed = {
        "--critic-momentum": (momentum, momentum == 0.5),
        "--warm-start-steps": (steps, steps <= iteration),
        "--hold-batchnorm-epoch": (epoch, epoch in (0, 1)),
        "--ot-weight": (weight, weight in (0, 1)),
    }
    for flag, (value, good) in removed.items():
        if not good:
            raise UserError(f"{path} is of a run with {flag} {value}, an option that no longer exists: {remedy}")
    return saved


def adopt_options(options: argparse.Namespace, given: set[str], state: dict, path: Path) -> list[str]:
    """Give a resumed run the options it began with, in place; returns a line for each that differs
    from the default.

    given: the names of the options on the command line. state, path: the saved state and its file.
    Raises UserError if the user gave an option that cannot change another value.
    """
    values, said, conflicts = vars(options), [], []
    given = given - {"precision"} if options.precision == "auto" else given
    for name, saved in (ADDED | _translate(state["options"], state["iteration"], path)).items():
        if name in PER_START or name not in values or values[name] == saved or (name in CHANGEABLE and name in given):
            continue
        if name in given:
            conflicts.append(f"{_flag(name, values[name])} (the run has {'none' if saved is False else saved})")
        else:
            said.append(f"resuming with {_flag(name, saved)}, as the run began")
            values[name] = saved
    if conflicts:
        raise UserError(
            f"{path} is of a run with other options: {', '.join(conflicts)}. Give the same options to resume it, "
            "--restart to start over (its files are kept), or another --out"
        )
    return said

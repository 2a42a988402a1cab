"""What is not the method: options, devices, checkpoints, logs and pictures, shared by all scripts."""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

from losses.perceptual import VGG_CONVOLUTIONS
from models import Decoder, FeatureExtractor

if TYPE_CHECKING:
    from Datasets.faces import PreparedFaces

CHECKPOINT_VERSION = 1
SAMPLE_FACES = 64  # how many faces of a test list the PSNR in the log is measured on
SHEET_COLUMNS = 8  # how many faces a sample sheet shows
SATURATED_UPDATES = 100  # so many generator updates in a row with mostly saturated outputs stop a run
LOCK_PATIENCE = 8  # s; the loader processes of a killed run hold its folder for up to 5 s more
SHIPPED = Path(__file__).resolve().parent / "weights"  # trained by this project
NO_WEIGHTS = "train with train_h2l.py and train.py (or try everything with `make demo`), or name another file"
LOGS = {"h2l": "train_h2l.csv", "sr": "train.csv"}
REFERENCE_EPOCH = {"h2l": 9143, "sr": 14066}  # iterations, with the authors' 182,866 HR faces
SAMPLE_SEED = 1234  # of the noise in sample sheets: the same z at every step and in every run

# Options that may change when a run continues: these are the run's own where they are left out,
CHANGEABLE = {"epochs", "workers", "save_every", "sample_every", "log_every"}
# and these are taken afresh each time. --data and --h2l may name another place, if what is there is the same
AFRESH = {"data", "out", "cache", "h2l", "initial_weights", "max_steps", "device", "restart", "tensorboard"}
# Options that states of older runs do not have, and what those runs did
NEWER = {"average_decay": 0.0, "hold_batchnorm_epoch": 0}


class UserError(Exception):
    """A problem that the user can solve; the message says what is wrong and the remedy."""


def run_script(main: Callable[[], None]) -> None:
    """Call a script's main; print the problems that users can solve without a traceback and exit with status 1."""
    try:
        main()
        if distributed.is_initialized():
            distributed.barrier()  # leave together: gloo may wait for ever for a process that is already gone
            distributed.destroy_process_group()
    except (UserError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:  # a full disk, a folder that vanished or became read-only
        sys.exit(f"error: {error}. What was written before is whole; mend this and run the same command again")


def _try_lock(stream: IO) -> bool:
    """Lock an open file for this process without waiting; False if another has it."""
    try:
        if os.name == "nt":
            import msvcrt

            stream.seek(1 << 20)  # far behind the text, which others must be able to read
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def exclusive(folder: str, name: str) -> Iterator[None]:
    """Hold the output folder for one run of a stage; a second run, on this machine, is refused.

    The system releases the lock when its process ends in whatever way, so that no lock is ever stale. Temporary files that
    a killed run left behind are removed.
    """
    if int(os.environ.get("RANK", 0)) > 0:  # the first process holds it for all
        yield
        return
    path = Path(folder) / f".{name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = open(path, "a+")
    except OSError as error:
        raise UserError(f"cannot write to the folder {folder} ({error}): name another with --out") from error
    with stream:
        deadline = time.monotonic() + LOCK_PATIENCE
        while not _try_lock(stream):
            if time.monotonic() > deadline:
                stream.seek(0)
                owner = stream.read().strip() or "another run"
                raise UserError(f"{folder} is in use by {owner}: wait for it, stop it, or name another --out")
            time.sleep(0.5)
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {platform.node()}\n")
        stream.flush()
        for pattern in (f"{name}*.tmp", f"samples_{name}/*.tmp", f"{LOGS[name]}.*.tmp"):
            for leftover in path.parent.glob(pattern):
                leftover.unlink()
        yield


@contextlib.contextmanager
def explain_out_of_memory(
    batch_size: int, remedy: str = "lower --batch-size, or train with a smaller --width or with --precision bf16"
) -> Iterator[None]:
    """Turn PyTorch's out-of-memory errors, of a GPU or of the CPU, into one that names the batch size and the remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        cpu = isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "not enough memory" in str(error)
        if not cpu and not isinstance(error, torch.OutOfMemoryError):
            raise
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"out of memory with --batch-size {batch_size} ({first_line}): {remedy}") from error


# --- options -----------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An argument parser whose help shows every default and, for the method's settings, where the default comes from."""

    def option(self, name: str, default: Any, text: str, source: str | None = None, **settings: Any) -> None:
        """Add --name; `source` says where the default comes from: the paper, the reference code or this project."""
        origin = f", {source}" if source else ""
        if "choices" not in settings and "action" not in settings:
            settings.setdefault("type", type(default))
            settings.setdefault("metavar", {int: "N", float: "X"}.get(settings["type"], "PATH"))
        text = f"{text} (default: {default if default not in ('', []) else 'empty'}{origin})"
        self.add_argument(f"--{name}", default=default, help=text.replace("%", "%%"), **settings)


def training_parser(description: str, batch_size: int, epochs: int, decay: float, decay_epochs: int) -> Parser:
    """The options that both trainers share, with the stage's own batch size and schedule."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.option
    option("data", "Datasets", "folder of HR_train.csv, HR_test.csv, LR_train.csv and LR_test.csv", metavar="DIR")
    option("out", "Trained_Models", "folder of everything that is written", metavar="DIR")
    option("cache", "", "folder of the prepared faces; empty: .cache in the data folder", metavar="DIR")
    option("epochs", epochs, "length of the run", "ours: the reference never stops")
    option("steps-per-epoch", 0, "iterations in an epoch; 0: one pass over HR_train", "reference")
    option("max-steps", 0, "stop and save after so many iterations in total; 0: after --epochs")
    option("batch-size", batch_size, "the global batch size, all processes together", "reference")
    option("initial-weights", "", "begin with the weights of this file of the same stage; empty: with random ones")
    option("width", 64, "channels of the networks' first layers, a multiple of 4; small ones make quick tests", "paper")
    option("resize", 100, "px that the shorter side of an HR image is resized to", "reference")
    option("crop", 64, "px of the resized image's centre that become the 64x64 HR face", "reference")
    option("seed", 0, "seed of the first weights, the noise and the order of the faces")
    option("device", "auto", "auto: the GPU if there is one", choices=("auto", "cuda", "cpu"))
    option("precision", "auto", "auto: bf16 where the hardware has it, else fp32", choices=("auto", "fp32", "bf16"))
    option("workers", 0, "processes that load batches; faces are prepared beforehand, so that 0 is seldom too few")
    option("save-every", 1000, "iterations between saved states")
    option("sample-every", 1000, "iterations between sample sheets")
    option("log-every", 50, "iterations between rows of the log")
    parser.add_argument("--restart", action="store_true", help="begin anew; the files of the run so far are moved aside")
    parser.add_argument("--tensorboard", action="store_true", help="also log to TensorBoard (pip install tensorboard)")
    option("lr-decay", decay, "factor on all learning rates", "reference")
    option("lr-decay-epochs", decay_epochs, "epochs between such falls", "reference")
    option("average-decay", 0.0, "decay of moving averages to write as the trained weights; 0: the last ones", "ours: none")
    option("critic-updates", 5, "critic updates for each generator update", "reference")
    option("gradient-penalty-weight", 10.0, "weight of the gradient penalty", "Gulrajani et al. 2017 and reference")
    return parser


def parse_options(parser: Parser, argv: list[str] | None = None) -> tuple[argparse.Namespace, set[str]]:
    """Parse and check a trainer's options; returns them and the names of those that the user gave."""
    options = parser.parse_args(argv)
    defaults = {action.dest: action.default for action in parser._actions}
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    given = set(vars(parser.parse_args(argv)))
    parser.set_defaults(**defaults)

    def require(name: str, good: bool, what: str) -> None:
        if not good:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: must be {what}")

    for name, value in vars(options).items():
        if isinstance(value, float):
            require(name, np.isfinite(value) and value >= 0, "a number of at least 0")
        elif name in ("epochs", "save_every", "sample_every", "log_every", "critic_updates", "lr_decay_epochs"):
            require(name, value >= 1, "at least 1")
        elif isinstance(value, int) and not isinstance(value, bool):
            require(name, value >= 0, "at least 0")
    require("average_decay", options.average_decay < 1, "under 1")
    require("batch_size", options.batch_size >= 2, "at least 2")
    require("width", options.width >= 4 and options.width % 4 == 0, "a positive multiple of 4")
    check_framing(parser, options)
    return options, given


def check_framing(parser: Parser, options: argparse.Namespace) -> None:
    """End with an error of the parser if --resize and --crop cannot make an HR face."""
    if options.crop < 64:
        parser.error(f"--crop {options.crop}: must be at least 64, the side of an HR face")
    if options.resize < options.crop:
        parser.error(f"--resize {options.resize}: must be at least --crop")


def remark_framing(path: Path, content: dict, options: argparse.Namespace) -> None:
    """Print it if a weights file was trained on faces that were framed otherwise than the options say."""
    settings = content.get("settings", {})
    names = [name for name in ("resize", "crop") if name in settings]
    trained, here = (" ".join(f"--{name} {values[name]}" for name in names) for values in (settings, vars(options)))
    if trained != here:
        print(f"warning: {path} was trained with {trained}, this is {here}: its faces were framed otherwise")


# --- devices -----------------------------------------------------------------------------------------------------


def choose_device(choice: str) -> torch.device:
    """auto, cuda or cpu -> the device; under torchrun each process has the GPU of its local rank."""
    if choice == "cpu" or (choice == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA GPU; use --device cpu or install PyTorch's CUDA build")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def choose_precision(choice: str, device: torch.device) -> torch.dtype:
    """auto, fp32 or bf16 -> the dtype of convolutions and linear layers; auto: bf16 where the hardware multiplies it."""
    if choice == "auto":
        if device.type == "cuda":
            choice = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
        else:
            cpuinfo = Path("/proc/cpuinfo")
            flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
            choice = "bf16" if {"avx512_bf16", "amx_bf16", "bf16"} & set(flags) else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[choice]


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[nn.Module]:
    """The network itself, out of DistributedDataParallel, whose parameters get no gradients within the block."""
    network = unwrap(network)
    network.requires_grad_(False)
    try:
        yield network
    finally:
        network.requires_grad_(True)


@contextlib.contextmanager
def evaluating(*networks: nn.Module) -> Iterator[list[nn.Module]]:
    """The networks in eval mode and without gradients: BatchNorm uses and keeps its running statistics."""
    networks = [unwrap(network) for network in networks]
    modes = [network.training for network in networks]
    try:
        with torch.no_grad():
            yield [network.eval() for network in networks]
    finally:
        for network, mode in zip(networks, modes):
            network.train(mode)


@contextlib.contextmanager
def measuring_batchnorm(*networks: nn.Module) -> Iterator[list[nn.Module]]:
    """Replace BatchNorm's running statistics by the plain mean over the batches that pass within the block."""
    networks = [unwrap(network).train() for network in networks]
    layers = [layer for network in networks for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # PyTorch's cumulative mean
    try:
        with torch.no_grad():
            yield networks
    finally:
        for layer, momentum in zip(layers, momenta):
            layer.momentum = momentum


def fold_batchnorm(network: nn.Module) -> nn.Module:
    """Fold every BatchNorm into the convolution before it, in place: the same function in eval mode, in fewer steps."""
    for layers in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for index in range(len(layers) - 1):
            if isinstance(layers[index], nn.Conv2d) and isinstance(layers[index + 1], nn.BatchNorm2d):
                layers[index] = fuse_conv_bn_eval(layers[index], layers[index + 1])
                layers[index + 1] = nn.Identity()
    return network


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel or AveragedModel, or the network."""
    return network.module if isinstance(network, (DistributedDataParallel, AveragedModel)) else network


# --- checkpoints -------------------------------------------------------------------------------------------------


def save_checkpoint(path: Path, kind: str, content: dict) -> None:
    """Write a checkpoint to a temporary name, flush it to the disk and rename it: a reader never sees half a file.

    kind: what it holds: "h2l", "sr" (weights) or "h2l_state", "sr_state" (everything a run needs to continue).
    """
    content = {"kind": kind, "version": CHECKPOINT_VERSION, **content}
    write_whole(path, lambda temporary: torch.save(content, temporary))


def write_whole(path: Path, write: Callable[[Path], Any], flush: bool = True) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk and rename it to `path`: never half a file.

    flush: wait for the disk, so that the file also survives a power cut; pictures can do without.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        if flush:
            with open(temporary, "rb+") as stream:
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(f"cannot write {path} ({error}); what was there before is untouched") from error
    finally:
        temporary.unlink(missing_ok=True)


def load_tensors(path: Path, remedy: str) -> Any:
    """torch.load with weights_only=True, which cannot run code; a UserError for a file that is missing, half or hostile."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: {remedy}") from error
    except Exception as error:  # PyTorch's unpickler raises nearly every built-in type on damaged files
        reason = error.strerror if isinstance(error, OSError) else type(error).__name__  # not PyTorch's unsafe advice
        raise UserError(f"{path} is not a whole, safe file of tensors ({reason}): {remedy}") from error


def load_checkpoint(path: Path, kind: str, remedy: str) -> dict:
    """Read a checkpoint of this project.

    Raises UserError, with the remedy, for a file that is missing, half-written, of another program, kind or version.
    """
    content = load_tensors(path, remedy)
    if not isinstance(content, dict) or "kind" not in content:
        raise UserError(f"{path} is not a checkpoint of this project: {remedy}")
    if content["kind"] != kind:
        raise UserError(f"{path} holds '{content['kind']}', not '{kind}': {remedy}")
    if content.get("version") != CHECKPOINT_VERSION:
        raise UserError(
            f"{path} has format version {content.get('version')}, this program reads {CHECKPOINT_VERSION}: {remedy}"
        )
    return content


def load_weights(network: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load weights into a network; a UserError names the tensor that is missing, unknown, of another shape or not finite."""
    expected = network.state_dict()
    name = type(network).__name__
    for key in [*expected, *weights]:
        if key not in weights or key not in expected:
            raise UserError(f"{path} does not fit {name}: tensor {key} is {'unknown' if key in weights else 'missing'}")
        if weights[key].shape != expected[key].shape:
            shapes = f"{tuple(weights[key].shape)}, expected {tuple(expected[key].shape)}"
            raise UserError(f"{path} does not fit {name}: tensor {key} has shape {shapes} (another width?)")
        if not torch.isfinite(weights[key]).all():
            raise UserError(f"{path}: tensor {key} of {name} has values that are not finite; the file cannot be used")
    network.load_state_dict(weights)


def load_networks(path: Path, kind: str, constructors: dict[str, Callable[[int], nn.Module]], remedy: str) -> dict:
    """Build the networks of an inference file at its own width and load them, in eval mode.

    constructors: name in the file -> class. Returns name -> network, and under "content" the whole file.
    """
    content = load_checkpoint(path, kind, remedy)
    networks: dict[str, Any] = {"content": content}
    for name, constructor in constructors.items():
        if name not in content.get("weights", {}):
            raise UserError(f"{path} has no {name}: {remedy}")
        networks[name] = constructor(content["width"])
        load_weights(networks[name], content["weights"][name], path)
        networks[name].eval()
    return networks


def find_weights(given: str, name: str) -> Path:
    """The weights file to use: the one that the user named, else his own, Trained_Models/NAME.pth, else the shipped one."""
    own, shipped = Path("Trained_Models", f"{name}.pth"), SHIPPED / f"{name}.pth"
    return Path(given) if given else own if own.exists() or not shipped.exists() else shipped


def describe(path: Path, content: dict) -> str:
    """One line on a weights file: which it is and, of a shipped one, what it was trained on and its licence terms."""
    about = content.get("about")
    texts = [f"{name}: {text}" for name, text in about.items()] if isinstance(about, dict) else []
    return "; ".join([f"weights: {path}, width {content['width']}", *texts])


def load_super_resolution(
    path: Path, device: torch.device, dtype: torch.dtype = torch.float32, framing: argparse.Namespace | None = None
) -> tuple[FeatureExtractor, Decoder]:
    """E and S of an sr.pth, ready to super-resolve: BatchNorm folded, on the device, in the dtype. Prints which file it is.

    framing: options whose --resize and --crop the file's own are compared with, as remark_framing does.
    """
    loaded = load_networks(path, "sr", {"extractor": FeatureExtractor, "decoder": Decoder}, NO_WEIGHTS)
    print(describe(path, loaded["content"]), flush=True)
    if framing:
        remark_framing(path, loaded["content"], framing)
    extractor, decoder = (
        fold_batchnorm(loaded[name]).to(device, dtype, memory_format=torch.channels_last) for name in ("extractor", "decoder")
    )
    return extractor, decoder


def self_ensemble(upscale: Callable[[Tensor], Tensor], faces: Tensor) -> tuple[Tensor, Tensor]:
    """The SR of faces, and its mean with that of their mirror images, mirrored back (Timofte et al., CVPR 2016).

    upscale: [N, 3, H, W] -> [N, 3, 4H, 4W], before rounding; the mean is in fp32. Grain, which differs between the two,
    loses half its power; what both agree on stays.
    """
    images = upscale(faces)
    return images, (images.float() + upscale(faces.flip(-1)).float().flip(-1)) / 2


def load_perceptual_weights(choice: str) -> dict[str, Tensor] | None:
    """--vgg-weights: the state dict of VGG19's five convolutions up to conv3_1; None for random weights."""
    names = [f"{index}.{kind}" for _, _, index in VGG_CONVOLUTIONS for kind in ("weight", "bias")]
    if choice == "random":
        print("perceptual network: random weights; good for smoke runs only")
        return None
    if choice == "imagenet":
        import torchvision  # here: it takes longer to import than all else that test.py needs

        try:
            weights = torchvision.models.VGG19_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"--vgg-weights imagenet: the download of torchvision's VGG19 failed ({error}). Without a network, use"
                " --vgg-weights PATH (a state dict of torchvision's VGG19) or --vgg-weights random (smoke runs only)"
            ) from error
    else:
        remedy = "--vgg-weights takes imagenet, random, or a state dict of torchvision's vgg19() or vgg19().features"
        weights = load_tensors(Path(choice), remedy)
        if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
            raise UserError(f"--vgg-weights: {choice} is not a state dict: {remedy}")
    weights = {name.removeprefix("features."): tensor for name, tensor in weights.items()}
    missing = [name for name in names if name not in weights]
    if missing:
        raise UserError(f"--vgg-weights: {choice} has no tensor {missing[0]}: it takes a VGG19 up to conv3_1")
    for n_in, n_out, index in VGG_CONVOLUTIONS:
        if weights[f"{index}.weight"].shape != (n_out, n_in, 3, 3) or weights[f"{index}.bias"].shape != (n_out,):
            raise UserError(f"--vgg-weights: {choice}: tensor {index}.weight or {index}.bias has not the shape of VGG19's")
    return {name: weights[name].clone() for name in names}


def digest(tensors: dict[str, Tensor]) -> str:
    """A short fingerprint of named tensors."""
    fingerprint = hashlib.sha256()
    for name in sorted(tensors):
        fingerprint.update(name.encode() + tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return fingerprint.hexdigest()[:16]


# --- a training run ----------------------------------------------------------------------------------------------


class Run:
    """One training run of either stage: where it computes, what it has saved, what it logs, and how it continues.

    The trainers make their networks and optimizers through it, call `restore`, and go through `batches`, closing every
    iteration with `finish`. Everything is written by the first process alone.
    """

    def __init__(self, name: str, options: argparse.Namespace, given: set[str], columns: list[str]) -> None:
        """name: "h2l" or "sr", the first part of the files' names. columns: the log's terms and measurements."""
        self.name = name
        self.log_name = LOGS[name]
        self.options = options
        self.out = Path(options.out)
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.main = self.rank == 0
        self.stop_signal = 0
        self.device = choose_device(options.device)
        if self.world > 1:
            distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        self.state = self._find_state(given)
        if options.batch_size % self.world:
            raise UserError(
                f"--batch-size {options.batch_size} cannot be divided among {self.world} processes: "
                f"choose a multiple of {self.world}"
            )
        self.dtype = choose_precision(options.precision, self.device)
        self.columns = ["iteration", "epoch", *columns, "learning_rate", "images_per_second"]
        torch.manual_seed(options.seed)
        self.noise = torch.Generator().manual_seed(options.seed)
        self.networks: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.schedulers: dict[str, torch.optim.lr_scheduler.LRScheduler] = {}
        self.inference: list[str] = []
        self.averages: dict[str, AveragedModel] = {}
        self.fingerprints: dict[str, str] = {}
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.iteration = self.steps_per_epoch = self.total = self.saturated_updates = 0
        self.tensorboard = None

    def say(self, text: str) -> None:
        """Print a line, above the progress bar, once for all processes."""
        if self.main:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def _find_state(self, given: set[str]) -> dict | None:
        """The saved state to continue from, if there is one; checks the options against it and completes them from it."""
        path, weights = self.out / f"{self.name}_state.pth", self.out / f"{self.name}.pth"
        if self.options.restart:
            return None
        if not path.exists():
            if weights.exists():
                raise UserError(
                    f"{weights} is there without {path.name}: the run cannot continue and would overwrite it. "
                    "Give --restart to begin anew (it is kept aside), or another --out"
                )
            return None
        state = load_checkpoint(path, f"{self.name}_state", "restore it, or begin anew with --restart")
        options = vars(self.options)
        conflicts = []
        for key, saved in (NEWER | state["options"]).items():
            if key in AFRESH or key not in options or options[key] == saved or (key in CHANGEABLE and key in given):
                continue
            flag = f"--{key.replace('_', '-')}"
            if key in given:
                conflicts.append(f"{flag} {options[key]} (the run has {saved})")
            else:
                self.say(f"continuing with the run's own {flag} {saved}")
                options[key] = saved
        if conflicts:
            raise UserError(
                f"{path} is of a run with other options: {', '.join(conflicts)}. Give the same options to continue it, "
                "--restart to begin anew (its files are kept aside), or another --out"
            )
        return state

    def _move_aside(self) -> None:
        """--restart: keep the files of the run so far in a dated folder."""
        patterns = (f"{self.name}.pth", f"{self.name}_*", f"samples_{self.name}", self.log_name)
        files = [file for pattern in patterns for file in sorted(self.out.glob(pattern))]
        if files:
            kept = self.out / f"before_restart_{self.name}_{time.strftime('%Y%m%d-%H%M%S')}"
            kept.mkdir()
            for file in files:
                shutil.move(str(file), str(kept / file.name))
            self.say(f"--restart: the files of the run so far are kept in {kept}")

    # --- what a trainer builds -----------------------------------------------------------------------------------

    def faces(self, list_name: str) -> "PreparedFaces":
        """The prepared faces of a list, such as "HR_train"; the first process prepares them, the others wait for it."""
        from Datasets.faces import prepare_faces

        data = Path(self.options.data)
        arguments = (
            data / f"{list_name}.csv", list_name[:2], Path(self.options.cache or data / ".cache"),
            self.options.resize, self.options.crop,
        )  # fmt: skip
        faces = prepare_faces(*arguments) if self.main else None
        if self.world > 1:
            distributed.barrier()
            faces = faces or prepare_faces(*arguments)
        if list_name.endswith("train") and len(faces) < self.options.batch_size:
            raise UserError(
                f"{arguments[0]} has {len(faces)} usable faces, fewer than --batch-size {self.options.batch_size}: "
                "add faces or lower --batch-size"
            )
        stride = max(1, len(faces) // 1000)
        self.fingerprints[list_name] = digest({f"{len(faces)}": faces[::stride][0]})
        return faces

    def network(self, name: str, network: nn.Module, inference: bool = False, channels_last: bool = True) -> nn.Module:
        """Move a network to the device; keep it in the state and, if asked, in the inference file."""
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        network = network.to(self.device, memory_format=memory_format).train()
        self.networks[name] = network
        if inference:
            self.inference.append(name)
        return network

    def trained(self, *names: str) -> list[nn.Module]:
        """The networks as the inference file has them: their moving averages with --average-decay, else as they are."""
        return [unwrap(self.averages.get(name, self.networks[name])) for name in names]

    def optimizer(self, name: str, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Keep an optimizer, its learning rate falling by --lr-decay every --lr-decay-epochs, in the state."""
        self.optimizers[name] = optimizer
        return optimizer

    def distribute(self, name: str) -> nn.Module:
        """The network to train, wrapped for several processes; BatchNorm's statistics stay each process's own."""
        network = self.networks[name]
        if self.world == 1:
            return network
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False)

    def restore(self, train: "PreparedFaces") -> None:
        """Lay out the run's length and, if there is a state, load it: networks, optimizers, schedules, random states."""
        options = self.options
        if options.tensorboard and self.main:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UserError("--tensorboard needs its package: pip install tensorboard") from error
        if options.restart and self.main:  # only now, when the options, the data and the other weights have proved good
            self._move_aside()
        if options.tensorboard and self.main:
            self.tensorboard = SummaryWriter(self.out / f"{self.name}_tensorboard")
        self.steps_per_epoch = options.steps_per_epoch or max(1, len(train) // options.batch_size)
        self.total = options.epochs * self.steps_per_epoch
        if options.max_steps:
            self.total = min(self.total, options.max_steps)
        for name, optimizer in self.optimizers.items():
            self.schedulers[name] = torch.optim.lr_scheduler.StepLR(optimizer, options.lr_decay_epochs, options.lr_decay)
        log = self.out / self.log_name
        if self.state is not None:
            path = self.out / f"{self.name}_state.pth"
            for name, fingerprint in self.fingerprints.items():
                if self.state["fingerprints"].get(name) != fingerprint:
                    raise UserError(
                        f"{name} is not what the run in {path} began with: give it the same data and weights, "
                        "--restart to begin anew, or another --out"
                    )
            for name, network in self.networks.items():
                load_weights(network, self.state["networks"][name], path)
            self._start_averages()
            for name, average in self.averages.items():
                average.load_state_dict(self.state["averages"][name])
            for name in self.optimizers:
                self.optimizers[name].load_state_dict(self.state["optimizers"][name])
                self.schedulers[name].load_state_dict(self.state["schedulers"][name])
            self.noise.set_state(self.state["noise"])
            self.sums, self.counts = self.state["sums"], self.state["counts"]
            self.saturated_updates = self.state["saturated_updates"]
            self.iteration = self.state["iteration"]
            self.say(f"continuing from {path}, iteration {self.iteration}")
            if self.main and log.exists() and log.stat().st_size:  # rows after the saved state will be written again
                rows = pd.read_csv(log)
                whole = (rows["iteration"] <= self.iteration) & (rows["iteration"].diff().fillna(1) > 0)
                rows = rows[whole].reindex(columns=self.columns)  # a killed run may have left half a row
                write_whole(log, lambda temporary: rows.to_csv(temporary, index=False))
            self.state = None
        else:
            if self.main:
                log.unlink(missing_ok=True)
            if options.initial_weights:
                path = Path(options.initial_weights)
                remedy = f"--initial-weights takes a {self.name}.pth"
                content = load_checkpoint(path, self.name, remedy)
                for name in self.inference:
                    load_weights(self.networks[name], content.get("weights", {}).get(name, {}), path)
                self.say(f"beginning with the weights of {path}")
            self._start_averages()
        if self.main:
            text = json.dumps(vars(options), indent=2)
            write_whole(self.out / f"{self.name}_options.json", lambda temporary: temporary.write_text(text + "\n"))
        self.say(
            f"{platform.node()}: {self.world} process(es) on {self.device.type}, {str(self.dtype)[6:]}, PyTorch "
            f"{torch.__version__}\n{json.dumps(vars(options))}\n{self.total} iterations of {options.batch_size} images, "
            f"{self.steps_per_epoch} an epoch"
        )
        reference = REFERENCE_EPOCH[self.name]
        if not (options.steps_per_epoch or self.iteration) and self.steps_per_epoch < reference / 4:
            self.say(
                f"note: the learning rates fall and the run ends by epochs, and one pass over {len(train)} faces is short. The "
                f"reference's epoch had {reference} iterations: --steps-per-epoch {reference}, or what you have time for"
            )

    def _start_averages(self) -> None:
        """--average-decay: averages of the networks in the inference file, which begin as copies of them."""
        decay = self.options.average_decay
        for name in self.inference if decay else ():
            self.averages[name] = AveragedModel(self.networks[name], multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

    # --- what an iteration needs ---------------------------------------------------------------------------------

    def autocast(self) -> torch.autocast:
        """Convolutions and linear layers in the run's precision."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def normal(self, channels: int) -> Tensor:
        """z ~ N(0, I): this process's part [N, channels] of the draw for the global batch, whatever their number."""
        return self._part(torch.randn(self.options.batch_size, channels, generator=self.noise))

    def uniform(self) -> Tensor:
        """Uniform in [0, 1): this process's part [N] of the draw for the global batch."""
        return self._part(torch.rand(self.options.batch_size, generator=self.noise))

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

    def batches(self, hr: "PreparedFaces", lr: "PreparedFaces | None" = None) -> Iterator[tuple[int, list[Tensor]]]:
        """Yield the iteration, from 1, and its faces on the device in [-1, 1]: y, x_c and, if `lr` is given, x_r.

        Shows the progress bar, saves at the end, on SIGINT and on SIGTERM, and stops when the run is as long as it shall be.
        """
        from Datasets.faces import BatchIndices, FaceBatches

        if self.iteration >= self.total:
            self.say(f"the run is complete after {self.iteration} iterations; --epochs or --max-steps make it longer")
            return
        options = self.options
        indices = BatchIndices(
            len(hr), len(lr or hr), options.batch_size, options.seed, self.iteration, self.total, self.rank, self.world
        )
        cuda = self.device.type == "cuda"
        loader = DataLoader(FaceBatches(hr, lr), batch_size=None, sampler=indices, num_workers=options.workers, pin_memory=cuda)
        handlers = self._catch_signals()
        self.bar = tqdm(total=self.total, initial=self.iteration, desc=self.name, unit="it", disable=not self.main)
        self.clock = (self.iteration, time.perf_counter())
        try:
            with self.bar:
                for faces in loader:
                    yield self.iteration + 1, [to_unit_range(face.to(self.device, non_blocking=cuda)) for face in faces]
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        self.say(f"done: {self.total} iterations; weights in {self.out / self.name}.pth")

    def _catch_signals(self) -> dict[int, Any]:
        """SIGINT and SIGTERM let the iteration end, save and exit; a second SIGINT exits at once. Returns the old handlers."""

        def stop(number: int, _frame: Any) -> None:
            if self.stop_signal and number == signal.SIGINT:
                os._exit(128 + number)
            self.stop_signal = number

        return {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def finish(self, terms: dict[str, Tensor], sample: Callable[[Path], dict[str, float]]) -> None:
        """Close an iteration: check its terms, move the schedules, log, sample and save when it is time.

        terms: name -> scalar, for the log; "generator_loss" is there where the generator side was updated. sample: writes a
        sheet to the given path and returns measurements for the log.
        Raises FloatingPointError, before anything is saved, if a term is not finite.
        """
        self.iteration += 1
        options = self.options
        for name, value in zip(terms, torch.stack([term.detach().float() for term in terms.values()]).tolist()):
            if not np.isfinite(value):
                state = self.out / f"{self.name}_state.pth"
                raise FloatingPointError(
                    f"{name} is {value} at iteration {self.iteration}. The last good state is "
                    + (f"in {state}" if state.exists() else "not saved yet")
                    + "; lower the learning rates or use --precision fp32"
                )
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
            if name == "saturated":
                self.saturated_updates = self.saturated_updates + 1 if value > 0.5 else 0
        if self.saturated_updates >= SATURATED_UPDATES:
            raise FloatingPointError(
                f"saturated: over half of the generator's output values were beyond [-1, 1] in each of the last "
                f"{SATURATED_UPDATES} updates, at iteration {self.iteration}; the pictures are lost. Lower the learning rates"
            )
        if "generator_loss" in terms:
            for name, average in self.averages.items():
                average.update_parameters(self.networks[name])
        stop = torch.tensor(self.stop_signal)
        if self.world > 1:
            stop = stop.to(self.device)
            distributed.all_reduce(stop, distributed.ReduceOp.MAX)
        self.stop_signal = int(stop)
        last = self.iteration == self.total
        row: dict[str, float] = {}
        sampled = self.iteration % options.sample_every == 0 or last
        if sampled and self.main:
            folder = self.out / f"samples_{self.name}"
            folder.mkdir(exist_ok=True)
            row = sample(folder / f"{self.iteration:07d}.png")
        if self.iteration % options.log_every == 0 or sampled:
            self._log(row)
        if sampled and self.main:
            plot_curves(self.out / self.log_name, self.out / f"{self.name}_curves.png")
        self.bar.update()
        if self.iteration % self.steps_per_epoch == 0:
            with warnings.catch_warnings():  # the alignment's optimizer rightly has not stepped in the first epoch
                warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
                for scheduler in self.schedulers.values():
                    scheduler.step()
        if self.iteration % options.save_every == 0 or last or self.stop_signal:
            self.save()
        if self.stop_signal:
            self.bar.close()
            self.say(f"stopped by signal {self.stop_signal} and saved at iteration {self.iteration}")
            sys.exit(128 + self.stop_signal)

    def _log(self, measurements: dict[str, float]) -> None:
        """One row: the terms' means since the last row, and the measurements, if this is a sample step."""
        since, began = self.clock
        self.clock = (self.iteration, time.perf_counter())
        row: dict[str, float] = {
            "iteration": self.iteration,
            "epoch": self.epoch(self.iteration),
            **{name: self.sums[name] / self.counts[name] for name in self.sums},
            **measurements,
            "learning_rate": next(iter(self.optimizers.values())).param_groups[0]["lr"],
            "images_per_second": (self.iteration - since) * self.options.batch_size / (self.clock[1] - began),
        }
        self.sums, self.counts = {}, {}
        if not self.main:
            return
        log = self.out / self.log_name
        table = pd.DataFrame([row]).reindex(columns=self.columns)
        table.to_csv(log, mode="a", header=not log.exists() or not log.stat().st_size, index=False, float_format="%.6g")
        shown = {name: f"{row[name]:.3g}" for name in self.columns[2:-2] if name in row}
        self.bar.set_postfix(shown | {"img/s": f"{row['images_per_second']:.1f}"})
        if self.tensorboard:
            for name in self.columns[1:]:
                if name in row:
                    self.tensorboard.add_scalar(name, row[name], self.iteration)
            self.tensorboard.flush()

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
            "sums": self.sums,
            "counts": self.counts,
            "saturated_updates": self.saturated_updates,
        }
        save_checkpoint(self.out / f"{self.name}_state.pth", f"{self.name}_state", state)
        self.save_weights()

    def save_weights(self) -> None:
        """Write the inference file alone."""
        weights = {
            name: {key: tensor.cpu().contiguous() for key, tensor in network.state_dict().items()}
            for name, network in zip(self.inference, self.trained(*self.inference))
        }
        settings = {**vars(self.options), "iteration": self.iteration}
        content = {"width": self.options.width, "settings": settings, "weights": weights}
        save_checkpoint(self.out / f"{self.name}.pth", self.name, content)


# --- pictures ----------------------------------------------------------------------------------------------------


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 0..255 -> fp32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_bytes(images: Tensor) -> Tensor:
    """Floating point in [-1, 1], clamped -> uint8 0..255, rounded."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def saturated(images: Tensor) -> Tensor:
    """The share of each image's values outside [-1, 1], which clamping would lose: [N, 3, H, W] -> [N]."""
    return (~(images.detach().abs() <= 1)).float().flatten(1).mean(dim=1)  # NaN is lost, too


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Each image's peak signal-to-noise ratio, RGB, rounded to 8 bits: [N, 3, H, W] in [-1, 1] -> [N], dB, at most 78."""
    error = (to_bytes(images).float() - to_bytes(targets).float()).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(255**2 / error.clamp(min=1e-3))


def enlarge(images: Tensor) -> Tensor:
    """LR faces at 64 px, each pixel a square, to stand beside HR ones: [N, 3, 16, 16] -> [N, 3, 64, 64]."""
    return nn.functional.interpolate(images.float(), size=(64, 64), mode="nearest")


def save_sheet(path: Path, rows: dict[str, Tensor], columns: int = SHEET_COLUMNS) -> None:
    """Write a sheet of pictures: title -> [N, 3, H, W] in [-1, 1], `columns` of them a row; LR faces are enlarged."""
    import torchvision  # as above

    grids = []
    for images in rows.values():
        images = images.detach().cpu()
        if images.shape[-1] < 64:
            images = enlarge(images)
        grids.append(torchvision.utils.make_grid(to_bytes(images), nrow=min(columns, len(images)), padding=2, pad_value=255))
    title_height = 14
    sheet = Image.new("RGB", (max(grid.shape[2] for grid in grids), sum(g.shape[1] + title_height for g in grids)), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for title, grid in zip(rows, grids):
        draw.text((3, top + 1), title, "black")
        sheet.paste(Image.fromarray(grid.permute(1, 2, 0).numpy()), (0, top + title_height))
        top += title_height + grid.shape[1]
    write_whole(path, lambda temporary: sheet.save(temporary, "PNG"), flush=False)


def plot_curves(log: Path, path: Path) -> None:
    """Draw every column of a log over the iterations, if matplotlib is installed (requirements-dev.txt has it)."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    table = pd.read_csv(log)
    names = [name for name in table.columns[2:] if table[name].notna().any()]
    figure, axes = pyplot.subplots(-(-len(names) // 3), 3, figsize=(14, 2.6 * -(-len(names) // 3)), squeeze=False)
    for axis, name in zip(axes.flat, names):
        points = table[["iteration", name]].dropna()
        axis.plot(points["iteration"], points[name], marker="." if len(points) < 30 else None)
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    figure.tight_layout()
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png", dpi=80), flush=False)
    pyplot.close(figure)

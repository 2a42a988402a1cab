"""What every script shares and is not the method: devices, files, weights, super-resolution, pictures; and console.py's."""

import contextlib
import hashlib
import io
import os
import re
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlparse

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from console import (  # noqa: F401, all of a script's tools by one name
    Parser,
    UserError,
    check_framing,
    explain_out_of_memory,
    leave_group,
    plural,
    progress,
    run_script,
    warn_framing,
)
from losses.perceptual import VGG_CONVOLUTIONS
from models import HR_SIZE, Decoder, DegradationGenerator, FeatureExtractor

CHECKPOINT_VERSION = 1
SAMPLE_FACES = 64  # how many faces of a test list the PSNR in the log is measured on
SHEET_COLUMNS = 8  # how many faces a sample sheet shows
SAMPLE_SEED = 1234  # of the noise in sample sheets: the same z at every step and in every run
SHIPPED = Path(__file__).resolve().parent / "weights"  # trained by this project
NO_WEIGHTS = "train with train_h2l.py and train.py (or try everything with `make demo`), or name another file"
LUMINANCE = (0.299, 0.587, 0.114)  # of R, G and B, as in JPEG (ITU-R BT.601)
GREY = 2.5 / 127.5  # channels that differ by up to 2 of 255 are equal but for a rounding, of JPEG or of a colour profile


# --- devices -------------------------------------------------------------------------------------


def choose_device(choice: str) -> torch.device:
    """auto, cuda or cpu -> the device; under torchrun each process has the GPU of its local rank.

    auto takes the CPU, and says why, where a GPU does not compute. fp32 is fp32 from then on: by default cuDNN
    rounds the factors of its convolutions to the 10 bits of TF32. Raises UserError for another choice, and for
    a GPU that is asked for and is not there or does not compute.
    """
    if choice not in ("auto", "cuda", "cpu"):
        reason = "mps has no float64, which the Sinkhorn distance needs" if choice == "mps" else "not auto, cuda or cpu"
        raise UserError(f"--device {choice}: {reason}; use --device cpu")
    torch.backends.cudnn.allow_tf32 = False
    if choice == "cpu" or (choice == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA GPU; use --device cpu or install PyTorch's CUDA build")
    rank, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    # Some launchers, such as Slurm, show each process its own GPU alone
    index = 0 if count == 1 and os.environ.get("CUDA_VISIBLE_DEVICES") else rank
    if index >= count:
        raise UserError(f"process {rank} of this machine has no GPU ({count} in all): start at most {count} processes here")
    device = torch.device("cuda", index)
    try:  # PyTorch also lists GPUs that its build has no kernels for
        torch.ones(2, device=device).sum().item()
    except RuntimeError as error:
        reason = f"the GPU {torch.cuda.get_device_name(device)} does not compute ({str(error).splitlines()[0]})"
        if choice == "cuda":
            raise UserError(f"--device cuda: {reason}; use --device cpu, or another build of PyTorch") from error
        print(f"note: {reason}: computing on the CPU", flush=True)
        return torch.device("cpu")
    torch.cuda.set_device(device)
    return device


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16; elsewhere PyTorch emulates it, slowly."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


def choose_precision(choice: str, device: torch.device) -> torch.dtype:
    """auto, fp32 or bf16 -> the dtype of convolutions and linear layers; auto: bf16 where the hardware has it."""
    if choice == "auto":
        choice = "bf16" if has_bf16(device) else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[choice]


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Convolutions and linear layers in that dtype, bf16 or fp32, within the block."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def thread_count() -> int:
    """How many threads decode pictures: one a processor of this process, but at most 8, for each holds a picture."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, available)


def ahead(pool: Executor, function: Callable[[Any], Any], items: Iterable, count: int = 4096) -> Iterator:
    """What the function makes of each item, in order, computed by the pool at most `count` items ahead of its use."""
    waiting: deque[Future] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


# --- networks ------------------------------------------------------------------------------------


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[nn.Module]:
    """The network, whose parameters get no gradients within the block."""
    network.requires_grad_(False)
    try:
        yield network
    finally:
        network.requires_grad_(True)


def fold_batchnorm(network: nn.Module) -> nn.Module:
    """Fold every BatchNorm into the convolution before it, in place: in eval mode the same function, in fewer steps."""
    for layers in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for index in range(len(layers) - 1):
            if isinstance(layers[index], nn.Conv2d) and isinstance(layers[index + 1], nn.BatchNorm2d):
                layers[index] = fuse_conv_bn_eval(layers[index], layers[index + 1])
                layers[index + 1] = nn.Identity()
    return network


def digest(tensors: dict[str, Tensor]) -> str:
    """A short fingerprint of named tensors."""
    fingerprint = hashlib.sha256()
    for name in sorted(tensors):
        fingerprint.update(name.encode() + tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return fingerprint.hexdigest()[:16]


# --- files ---------------------------------------------------------------------------------------


def relative_names(files: list[str], folders: list[str]) -> list[str]:
    """Absolute paths, relative to the deepest folder that holds all the folders, with "/" between folders.

    On several drives of Windows there is none: names then begin with the drive, as in C/faces/1.png.
    """
    try:
        base = os.path.commonpath(folders)
    except ValueError:
        return ["/".join(re.findall(r"[^\\/:]+", file)) for file in files]
    return [os.path.relpath(file, base).replace(os.sep, "/") for file in files]


def output_names(names: list[str], reserved: Collection[str] = ()) -> list[str]:
    """The PNG name of each input: its extension replaced or, where that name is taken, kept.

    names: different relative paths, "/" between folders. Two names that differ in case alone count as equal, as on
    Windows and macOS. The same inputs get the same names in every run, in whatever order they come.
    """
    stems = {name: str(PurePath(name).with_suffix(".png")) for name in names}
    wanted = Counter(stem.lower() for stem in stems.values())
    # A file cannot have the name of a folder
    taken = {name.lower() for name in reserved} | {str(up).lower() for name in names for up in PurePath(name).parents}
    result = {}
    # A name that no other input wants is never given away: those come first
    for name in sorted(names, key=lambda name: (wanted[stems[name].lower()] > 1, name)):
        output, number = stems[name], 1
        if wanted[output.lower()] > 1 or output.lower() in taken:
            output = f"{name}.png"
        while output.lower() in taken:
            number += 1
            output = f"{name}.{number}.png"
        taken.add(output.lower())
        result[name] = output
    return [result[name] for name in names]


def make_folder(folder: Path, option: str) -> None:
    """Make a folder, with its parents, and make sure that it can be written to.

    Raises UserError, with the option that names it, if either fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to the folder {folder} ({error}): name another with {option}") from error


def write_atomic(path: Path, write: Callable[[Path], Any], flush: bool = True) -> None:
    """Write a file atomically: `write` fills a temporary file beside `path`, which is flushed and renamed to `path`.

    flush: wait for the disk, so that the file also survives a power cut; pictures can do without.
    Raises UserError for an error of the disk; errors of any other kind pass.
    """
    # A long name would be too long with more at its end
    name = path.name if len(os.fsencode(path.name)) < 200 else hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    temporary = path.with_name(f"{name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        if flush:
            with open(temporary, "rb+") as stream:
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}); what was there before is unchanged") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


# --- checkpoints ---------------------------------------------------------------------------------


def to_cpu(content: Any) -> Any:
    """A state with its tensors on the CPU: through dictionaries, lists and tuples."""
    if isinstance(content, Tensor):
        return content.cpu()
    if isinstance(content, dict):
        return {key: to_cpu(value) for key, value in content.items()}
    return type(content)(map(to_cpu, content)) if isinstance(content, (list, tuple)) else content


def save_checkpoint(path: Path, kind: str, content: dict) -> None:
    """Write a checkpoint atomically. Raises UserError if the disk does not take it.

    kind: "h2l", "sr" (weights), or "h2l_state", "sr_state" (everything that a run needs to resume).
    """
    buffer = io.BytesIO()  # into a file, torch.save hides the disk's error behind a RuntimeError of its own
    torch.save({"kind": kind, "version": CHECKPOINT_VERSION, **to_cpu(content)}, buffer)
    write_atomic(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def load_tensors(path: Path, remedy: str) -> Any:
    """torch.load with weights_only=True, which cannot run code.

    Raises UserError, with the remedy, for a file that is missing, truncated or malicious.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: {remedy}") from error
    except Exception as error:  # PyTorch's unpickler raises nearly every built-in type on damaged files
        reason = error.strerror if isinstance(error, OSError) else type(error).__name__  # not PyTorch's unsafe advice
        raise UserError(f"{path} is truncated, or not a safe file of tensors ({reason}): {remedy}") from error


def load_checkpoint(path: Path, kind: str, remedy: str) -> dict:
    """Read a checkpoint of this project.

    Raises UserError, with the remedy, for a file that is missing, truncated, or of another program, kind or version.
    """
    content = load_tensors(path, remedy)
    if not isinstance(content, dict) or "kind" not in content:
        raise UserError(f"{path} is not a checkpoint of this project: {remedy}")
    if content["kind"] != kind:
        raise UserError(f"{path} holds '{content['kind']}', not '{kind}': {remedy}")
    if content.get("version") != CHECKPOINT_VERSION:
        versions = f"format version {content.get('version')}, this program reads {CHECKPOINT_VERSION}"
        raise UserError(f"{path} has {versions}: {remedy}")
    return content


def load_weights(network: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load weights into a network.

    Raises UserError with the tensor that is missing, unknown, of another shape or not finite.
    """
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

    constructors: name in the file -> class. Returns name -> network and, under "content", the whole file.
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


def load_degradation(path: Path, remedy: str) -> tuple[DegradationGenerator, dict]:
    """The degradation generator of an h2l.pth, in eval mode and frozen, and the content of the file."""
    loaded = load_networks(path, "h2l", {"generator": DegradationGenerator}, remedy)
    return loaded["generator"].requires_grad_(False), loaded["content"]


def find_weights(given: str, name: str) -> Path:
    """The weights file to use: the one that the user named, else Trained_Models/NAME.pth, else the shipped one."""
    own, shipped = Path("Trained_Models", f"{name}.pth"), SHIPPED / f"{name}.pth"
    return Path(given) if given else own if own.exists() or not shipped.exists() else shipped


def describe(path: Path, content: dict) -> str:
    """One line on a weights file: which it is and, if it says so, what it was trained on and its licence."""
    about = content.get("about")
    texts = [f"{name}: {text}" for name, text in about.items()] if isinstance(about, dict) else []
    return "; ".join([f"weights: {path}, width {content['width']}", *texts])


@contextlib.contextmanager
def downloading(url: str, option: str, name: str, remedy: str) -> Iterator[None]:
    """Load a file through torch's download cache within the block; its errors become UserErrors.

    A cached file that is another one than its name's hash says is named, and to be deleted: nothing else replaces it.
    """
    cached = Path(torch.hub.get_dir(), "checkpoints", PurePath(urlparse(url).path).name)
    wanted = re.search(r"-([0-9a-f]{8,})\.", cached.name)
    # torch checks the hash of what it downloads alone
    if cached.exists() and wanted and not hashlib.sha256(cached.read_bytes()).hexdigest().startswith(wanted[1]):
        raise UserError(
            f"{option}: {cached}, in PyTorch's download cache, is damaged (another file than its name says): delete it, and it "
            f"is downloaded again; or, {remedy}"
        )
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        raise UserError(f"{option}: the download of {name} failed ({error}): {remedy}") from error


def load_perceptual_weights(choice: str, say: Callable[[str], None] = print) -> dict[str, Tensor] | None:
    """--vgg-weights: the state dict of VGG19's five convolutions up to conv3_1; None for random weights.

    say: prints a line. Raises UserError for a file or a download that cannot be used.
    """
    names = [f"{index}.{kind}" for _, _, index in VGG_CONVOLUTIONS for kind in ("weight", "bias")]
    if choice == "random":
        say("perceptual network: random weights; good for smoke runs only")
        return None
    if choice == "imagenet":
        import torchvision  # here: it takes longer to import than all else that test.py needs

        source = torchvision.models.VGG19_Weights.IMAGENET1K_V1
        remedy = (
            "without a network, use --vgg-weights PATH (a state dict of torchvision's VGG19) or "
            "--vgg-weights random (smoke runs only)"
        )
        with downloading(source.url, "--vgg-weights imagenet", "torchvision's VGG19", remedy):
            weights = source.get_state_dict(progress=True, check_hash=True)
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
            raise UserError(f"--vgg-weights: {choice}: tensor {index}.weight or {index}.bias is not of VGG19's shape")
    return {name: weights[name].clone() for name in names}


# --- super-resolution ----------------------------------------------------------------------------


def keep_grey(faces: Tensor, images: Tensor) -> Tensor:
    """The SR images; of a face whose three channels are equal, their luminance: what is grey in is grey out.

    faces: [N, 3, 16, 16], images: [N, 3, 64, 64], both floating point in about [-1, 1].
    """
    colour = (faces.amax(dim=1) - faces.amin(dim=1)).flatten(1).amax(dim=1)
    luminance = (images * images.new_tensor(LUMINANCE).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    return torch.where((colour < GREY).view(-1, 1, 1, 1), luminance, images)


class SuperResolver:
    """S(E(x)) of an sr.pth: the one way in which every script super-resolves: what is measured is what is delivered.

    The weights are cast to the precision, BatchNorm is folded into the convolutions, and maps lie channels last.
    """

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        """Load E and S in eval mode. Raises UserError, with the remedy, for a file that cannot be used."""
        loaded = load_networks(path, "sr", {"extractor": FeatureExtractor, "decoder": Decoder}, NO_WEIGHTS)
        self.path, self.device, self.dtype = path, device, dtype
        self.content: dict = loaded["content"]
        self.extractor, self.decoder = (
            fold_batchnorm(loaded[name]).to(device, dtype, memory_format=torch.channels_last).requires_grad_(False)
            for name in ("extractor", "decoder")
        )

    @torch.inference_mode()
    def features(self, faces: Tensor) -> Tensor:
        """E(x) of uint8 faces on any device, in the precision.

        [N, 3, 16, 16] -> [N, width, 4, 4]
        """
        x = to_unit_range(faces.to(self.device))
        return self.extractor(x.to(self.dtype, memory_format=torch.channels_last))

    @torch.inference_mode()
    def __call__(self, faces: Tensor) -> Tensor:
        """S(E(x)) of uint8 faces: fp32, about [-1, 1], not clamped; grey where the face is grey.

        [N, 3, 16, 16] -> [N, 3, 64, 64]
        """
        return keep_grey(to_unit_range(faces.to(self.device)), self.decoder(self.features(faces)).float())

    @torch.inference_mode()
    def ensemble(self, faces: Tensor) -> Tensor:
        """The mean of the SR of faces and of that of their mirror images, mirrored back (Timofte et al., CVPR 2016).

        Grain, which differs between the two, loses half its power; what both agree on stays.

        [N, 3, 16, 16] -> [N, 3, 64, 64]
        """
        return (self(faces) + self(faces.flip(-1)).flip(-1)) / 2

    def pictures(self, faces: Tensor, ensemble: bool = False) -> Tensor:
        """What is delivered of uint8 faces, as uint8; ensemble: by `ensemble`.

        [N, 3, 16, 16] -> [N, 3, 64, 64]
        """
        return to_bytes(self.ensemble(faces) if ensemble else self(faces))


# --- pictures ------------------------------------------------------------------------------------


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 0..255 -> fp32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_bytes(images: Tensor) -> Tensor:
    """Floating point in [-1, 1], clamped -> uint8 0..255, rounded."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def saturated(images: Tensor) -> Tensor:
    """The share of each image's values outside [-1, 1], which clamping would lose.

    [N, 3, H, W] -> [N]
    """
    return (~(images.detach().abs() <= 1)).float().flatten(1).mean(dim=1)  # NaN is lost, too


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Each image's peak signal-to-noise ratio in dB, at most 78: RGB, rounded to 8 bits.

    [N, 3, H, W] in [-1, 1] -> [N]
    """
    error = (to_bytes(images).float() - to_bytes(targets).float()).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(255**2 / error.clamp(min=1e-3))


def save_sheet(path: Path, rows: dict[str, Tensor], columns: int = SHEET_COLUMNS) -> None:
    """Write a sheet of pictures, `columns` of them a row; LR faces are enlarged, each pixel a square.

    rows: title -> [N, 3, H, W] in [-1, 1]. Raises UserError if the disk does not take it.
    """
    import torchvision  # as above

    grids = []
    for images in rows.values():
        images = images.detach().cpu().float()
        if images.shape[-1] < HR_SIZE:
            images = nn.functional.interpolate(images, size=(HR_SIZE, HR_SIZE), mode="nearest")
        grids.append(torchvision.utils.make_grid(to_bytes(images), nrow=min(columns, len(images)), padding=2, pad_value=255))
    title_height = 14
    sheet = Image.new("RGB", (max(grid.shape[2] for grid in grids), sum(g.shape[1] + title_height for g in grids)), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for title, grid in zip(rows, grids):
        draw.text((3, top + 1), title, "black")
        sheet.paste(Image.fromarray(grid.permute(1, 2, 0).numpy()), (0, top + title_height))
        top += title_height + grid.shape[1]
    write_atomic(path, lambda temporary: sheet.save(temporary, "PNG"), flush=False)

"""One image: from any file that Pillow reads to an HR face, its clean LR face, or a real LR face."""

import contextlib
import functools
import hashlib
import importlib
import io
import os
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError

from models import HR_SIZE, LR_SIZE
from utils import UserError, plural

# Pillow only warns about pictures of over 89 million pixels; decoding one would take up to a gigabyte
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
PngImagePlugin.MAX_TEXT_CHUNK = 64 << 20  # colour profiles of printers have several MB

DRAFT_PIXELS = 4_000_000  # JPEG files of more pixels are decoded at a reduced size
DRAFT_MARGIN = 4  # a reduced size is at least so many times the one that is asked for
HUGE_PIXELS = 16_000_000  # of pictures with more pixels, as decoded, two at a time are in memory
_huge = threading.Semaphore(2)
LARGE = 2 * LR_SIZE  # px of shorter side; a larger LR picture loses much of its detail
DARKEST, FLATTEST = 25, 18  # mean and standard deviation of the grey values, 0..255, that a real LR face must have
BLACK, BLANK = 16, 2  # the largest grey value, and standard deviation, of a picture that shows nothing
GREY = 2.0  # mean difference of neighbouring colour channels, 0..255, under which a face is grey; LFW's others have 2.6

HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # the container's brands
SYSTEM_NAMES = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}


class ImageError(Exception):
    """A file that cannot be decoded to an image; the message is the reason, details in brackets."""


class DamagedImageError(ImageError):
    """A file that begins like an image but does not decode: truncated, corrupt or too large."""


# --- decoding ----------------------------------------------------------------------------------------------------


def load_image(path: str | os.PathLike, shorter_side: int | None = None, keep_alpha: bool = False) -> Image.Image:
    """Decode any file that Pillow reads to 8-bit sRGB: its first frame, upright, without transparency.

    The format is told by the content, not by the name. Colours are converted from the profile that the file has. Values of
    other than 8 bits are scaled by the range that they are in. Parts that are transparent become black; where all of a
    picture is, in part or wholly, its colours are taken. `notes` says what was done.

    shorter_side: px that the caller will reduce the shorter side to. A JPEG file of over 4 megapixels is then decoded at
    1/2, 1/4 or 1/8 of its size, and what has over 16 megapixels is reduced by a whole number, but never to under 4 times
    that many px. Smaller images are returned as they are.
    keep_alpha: return RGBA, with the colours under the transparency, for a picture that has some and is not invisible.
    Raises ImageError with the reason for what is not an image, and DamagedImageError for what does not decode.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise ImageError("is not a regular file")
        with open(path, "rb") as stream:
            try:
                return _decode(stream, shorter_side, keep_alpha)
            except UnidentifiedImageError:
                stream.seek(0)
                _load_heic_plugin(stream.read(64))
                stream.seek(0)
                return _decode(stream, shorter_side, keep_alpha)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("is not an image in a format that Pillow reads") from error
    except Exception as error:  # Pillow's decoders raise nearly every built-in type on damaged files
        if isinstance(error, OSError) and error.errno is not None:  # of the system, not of a decoder
            raise ImageError(f"cannot be read ({error.strerror})") from error
        raise DamagedImageError(f"does not decode ({type(error).__name__}: {error})") from error


def _load_heic_plugin(head: bytes) -> None:
    """Let Pillow read HEIC if a file begins like that; ImageError if the package for it is not installed."""
    if head[4:8] != b"ftyp" or not any(brand in head for brand in HEIC):  # MP4 videos have the same container
        return
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError as error:
        raise ImageError("is a picture in the format HEIC (to read it: pip install pillow-heif)") from error


def _decode(stream: IO[bytes], shorter_side: int | None, keep_alpha: bool) -> Image.Image:
    """Decode an open file as load_image describes it; raises whatever Pillow raises."""
    with Image.open(stream) as image:
        if shorter_side and image.format in ("JPEG", "MPO") and image.width * image.height > DRAFT_PIXELS:
            image.draft(None, (DRAFT_MARGIN * shorter_side, DRAFT_MARGIN * shorter_side))
        huge = image.width * image.height > HUGE_PIXELS
        with _huge if huge else contextlib.nullcontext():
            image.load()
            with contextlib.suppress(Exception):  # EXIF that cannot be read tells no orientation
                ImageOps.exif_transpose(image, in_place=True)
            image = _to_srgb(image, keep_alpha)
            if huge and shorter_side:
                image = image.reduce(max(1, min(image.size) // (DRAFT_MARGIN * shorter_side)))
            return image


def _to_srgb(image: Image.Image, keep_alpha: bool) -> Image.Image:
    """A decoded image of any mode -> 8-bit sRGB, with the notes alone as its info."""
    said, profile = [], image.info.get("icc_profile")
    if image.mode.startswith(("I", "F")):
        image, said = _to_8_bits(image)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    image = _apply_profile(image, profile) if profile else image.convert("RGB")
    image.info = {}
    if alpha and alpha.getextrema() != (255, 255):
        least, most = alpha.getextrema()
        if keep_alpha and most:
            image.putalpha(alpha)
            said.append("with transparency")
        elif least or not most:
            said.append("transparent all over, of which the colours were taken")
        else:
            image = Image.composite(image, Image.new("RGB", image.size), alpha)
            said.append("with transparent parts, which became black")
    image.info["notes"] = tuple(said)
    return image


def _apply_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """An 8-bit image -> sRGB by its colour profile; a profile that is damaged or of another kind of image does not count."""
    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[space]
        if (mode == "CMYK") != (image.mode == "CMYK"):
            return image.convert("RGB")
        transform, source = _transform(profile, mode), image.convert(mode)
        if transform is None:
            return image.convert("RGB")
        pixels = transform.apply(source)
        if mode == "L" or mode == "RGB" and is_grey(source, 1e-9):  # what is grey stays grey, to the last bit
            return pixels.getchannel("G").convert("RGB")
        return pixels
    except (ImageCms.PyCMSError, OSError, KeyError, ImportError):  # ImportError: a Pillow that was built without LittleCMS
        return image.convert("RGB")


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile's colours to sRGB's; None if that changes none by more than rounding: the profile is sRGB's."""
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), mode, "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )  # fmt: skip
    if mode == "CMYK":
        return transform
    probe = Image.fromarray((51 * np.indices((6, 6, 6)).reshape(3, 12, 18).transpose(1, 2, 0)).astype(np.uint8)).convert(mode)
    difference = np.asarray(transform.apply(probe), int) - np.asarray(probe.convert("RGB"), int)
    return transform if np.abs(difference).max() > 2 else None


def _to_8_bits(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """A grey image of integers or floating point -> 8 bits, and a note where its range was guessed."""
    values = np.asarray(image, dtype=np.float64)
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    said = []
    if image.format == "PPM":  # Pillow applied the range that the file declares
        black, white = 0.0, 65535.0
    elif low >= 0 and (image.mode != "F" or high > 288 and not (finite % 1).any()):
        # Cameras of 10 to 14 bits leave the upper ones empty; multiples of 257 are 8 bits, spread
        bits = next(bits for bits in (8, 10, 12, 14, 16, 24, 32, 1024) if high < 2.0**bits)
        bits = 16 if bits < 16 and high > 255 and not (finite % 257).any() else bits
        black, white = 0.0, 2.0**bits - 1
        said = [f"of {bits} bits in a format of more"] if 8 < bits < 16 else []
    elif high <= 1.25 and low >= -1.25:
        black, white = (-1.0 if low < -0.25 else 0.0), 1.0
    elif low >= -32 and high <= 288:  # a filter may have overshot
        black, white = 0.0, 255.0
    else:
        black, white = low, high
        said = ["of a range of its own, of which the least value became black and the greatest white"]
    values = np.nan_to_num((values - black) * (255 / max(white - black, 1e-9)), nan=0.0)
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8)), said


# --- what there is to say ----------------------------------------------------------------------------------------


def notes(image: Image.Image) -> tuple[str, ...]:
    """What `load_image` did to an image that its user should know, and whether it shows anything; see `Notes`."""
    grey = np.asarray(prepare_lr(image).convert("L"), dtype=float)
    blank = grey.max() < BLACK or grey.std() < BLANK
    return image.info.get("notes", ()) + (("black or flat",) if blank else ())


class Notes:
    """Notes on many images, each to be said once, with the number of images and an example."""

    def __init__(self) -> None:
        self.files: dict[str, list[str]] = {}

    def add(self, file: str | os.PathLike, said: Iterable[str]) -> None:
        """Keep the notes of an image; a note goes on after "3 images ...", and after a colon says more."""
        for note in said:
            self.files.setdefault(note, []).append(os.fspath(file))

    def lines(self) -> list[str]:
        """The warnings, the most frequent first."""
        ordered = sorted(self.files.items(), key=lambda item: -len(item[1]))
        texts = [(plural(len(files), "image"), *note.partition(": "), files[0]) for note, files in ordered]
        return [f"warning: {count} {what}, such as {file}{colon}{more}" for count, what, colon, more, file in texts]


def is_dark_or_flat(face: Image.Image) -> bool:
    """Whether an LR face shows too little to be one."""
    grey = np.asarray(face.convert("L"), dtype=float)
    return bool(grey.mean() < DARKEST or grey.std() < FLATTEST)


def is_grey(image: Image.Image, limit: float = GREY) -> bool:
    """Whether a picture has no colours; JPEG leaves a trace of them in a grey one."""
    return bool(np.abs(np.diff(np.asarray(image.convert("RGB"), dtype=np.int16), axis=2)).mean() < limit)


def digest(image: Image.Image) -> str:
    """A fingerprint of an image's pixels, by which copies are known."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:16]


# --- faces -------------------------------------------------------------------------------------------------------


def centre_square(image: Image.Image) -> Image.Image:
    """The largest square around the image's centre."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def prepare_hr(image: Image.Image, resize: int = 100, crop: int = 64) -> Image.Image:
    """HR face: centre square, bicubic to `resize` px, the central `crop` px, and that at 64 px."""
    image = centre_square(image).resize((resize, resize), Image.Resampling.BICUBIC)
    margin = (resize - crop) // 2
    image = image.crop((margin, margin, margin + crop, margin + crop))
    return image if crop == HR_SIZE else image.resize((HR_SIZE, HR_SIZE), Image.Resampling.BICUBIC)


def prepare_lr(image: Image.Image) -> Image.Image:
    """LR face: centre square, bicubic to 16 px; a 16x16 image stays as it is."""
    return centre_square(image).resize((LR_SIZE, LR_SIZE), Image.Resampling.BICUBIC)


def prepare_pair(image: Image.Image, resize: int = 100, crop: int = 64) -> tuple[Image.Image, Image.Image]:
    """The HR face y (64 px) of an image and its clean LR face x_c (16 px), bicubic from y."""
    y = prepare_hr(image, resize, crop)
    return y, prepare_lr(y)


def too_small(image: Image.Image) -> str | None:
    """Why an image cannot become an HR face: its shorter side is under 64 px; None if it can."""
    if min(image.size) >= HR_SIZE:
        return None
    return f"is too small ({image.width}x{image.height} px; HR faces need a shorter side of at least {HR_SIZE} px)"


def too_large(image: Image.Image) -> tuple[str, ...]:
    """The note on an LR image that is no small face."""
    if min(image.size) <= LARGE:
        return ()
    return (f"much larger than {LR_SIZE} px: reduced, they are clean, and teach that real LR faces are; take small ones",)


# --- folders -----------------------------------------------------------------------------------------------------


def is_system_file(name: str) -> bool:
    """Whether a file or folder is hidden or was made by an operating system, by its name alone.

    Such are ._name.png and __MACOSX (in every zip file made on a Mac), .DS_Store, Thumbs.db and .git.
    """
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def print_left_out(path: Path, reason: str) -> None:
    """One line on standard error about a file or folder that is left out."""
    print(f"left out: {path} {reason}", file=sys.stderr)


def walk_files(
    folder: str | os.PathLike,
    without: str | os.PathLike | Iterable[str] = (),
    leave_out: Callable[[Path, str], None] = print_left_out,
) -> list[Path]:
    """All files below a folder, sorted; links are followed, but not into a folder that holds them.

    without: folders that are not searched, or one, such as that of the results.
    leave_out: is called with every file or folder that is hidden, made by the operating system, or cannot be read, and why.
    Raises UserError if `folder` itself cannot be read.
    """

    def fail(error: OSError) -> None:
        if os.path.abspath(error.filename) == os.path.abspath(folder):
            raise UserError(f"the folder {error.filename} cannot be read ({error.strerror})") from error
        leave_out(Path(error.filename), f"cannot be read ({error.strerror})")

    apart = {os.path.realpath(path) for path in ([without] if isinstance(without, (str, os.PathLike)) else without)}
    real: dict[Path, str] = {}
    files = []
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        place, real[Path(parent)] = Path(parent), os.path.realpath(parent)
        loop = any(real.get(above) == real[place] for above in place.parents)
        if loop:
            leave_out(place, "is a link to a folder that holds it")
        if loop or real[place] in apart:
            folders.clear()
            continue
        for name in filter(is_system_file, [*folders, *names]):
            leave_out(Path(parent, name), "is hidden or made by the operating system")
        folders[:] = [name for name in folders if not is_system_file(name)]
        files += [Path(parent, name) for name in names if not is_system_file(name)]
    return sorted(files)

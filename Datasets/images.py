"""One image: from any file that Pillow reads to an HR face, its clean LR face, or a real LR face."""

import contextlib
import io
import os
import stat
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from Datasets import formats
from models import HR_SIZE, LR_SIZE
from utils import UserError

# Pillow only warns about pictures of over 89 million pixels; decoding one would take up to a
# gigabyte
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)

DRAFT_PIXELS = 4_000_000  # JPEG files of more pixels are decoded at a reduced size
DRAFT_MARGIN = 4  # a reduced size is at least so many times the one that is asked for
HUGE_PIXELS = 16_000_000  # of pictures with more pixels, as decoded, two at a time are in memory
_huge = threading.Semaphore(2)
EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(Exception):
    """A file that cannot be decoded to an image; the message is the reason, details in brackets."""


class DamagedImageError(ImageError):
    """A file that begins like an image but does not decode: truncated, corrupt or too large."""


def load_image(path: str | os.PathLike, shorter_side: int | None = None) -> Image.Image:
    """Decode any file that Pillow reads to 8-bit RGB: its first frame, upright, alpha on black.

    The format is told by the content, not by the name. 16-bit greys are scaled to 8 bits;
    floating-point images are taken to be in [0, 1] if no value exceeds 1, else in [0, 255].
    Metadata that is damaged is left out: the pixels count.

    shorter_side: px that the caller will reduce the shorter side to. A JPEG file of over 4
    megapixels is then decoded at 1/2, 1/4 or 1/8 of its size, and what has over 16 megapixels is
    reduced by a whole number, but never to under 4 times that many px. Smaller images are returned
    as they are.
    Raises ImageError with the reason for what is not an image, and DamagedImageError for what does
    not decode.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise ImageError("is not a regular file")
        with open(path, "rb") as stream:
            return _decode_despite_metadata(stream, shorter_side)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("is not an image in a format that Pillow reads") from error
    except Exception as error:  # Pillow's decoders raise nearly every built-in type on damaged files
        if isinstance(error, OSError) and error.errno is not None:  # of the system, not of a decoder
            raise ImageError(f"cannot be read ({error.strerror})") from error
        raise DamagedImageError(f"does not decode ({type(error).__name__}: {error})") from error


def _decode_despite_metadata(stream: IO[bytes], shorter_side: int | None) -> Image.Image:
    """_decode; with a plug-in if the format needs one, without the metadata if that is what fails."""
    try:
        return _decode(stream, shorter_side)
    except (Image.DecompressionBombWarning, MemoryError):
        raise
    except Exception as error:
        stream.seek(0)
        name = formats.plugin_format(stream.read(64)) if isinstance(error, UnidentifiedImageError) else None
        stream.seek(0)
        if name:
            if not formats.load_plugin(name):
                package = formats.PLUGINS[name][0]
                raise ImageError(f"is a picture in the format {name} (to read it: pip install {package})") from error
            try:
                return _decode(stream, shorter_side)
            except UnidentifiedImageError:
                raise DamagedImageError(f"does not decode (it begins like a picture in the format {name})") from error
        stripped = formats.without_metadata(stream.read())
        if stripped:
            with contextlib.suppress(Exception):  # the first error says what is wrong with the file as it is
                return _decode(io.BytesIO(stripped), shorter_side)
        raise


def _decode(stream: IO[bytes], shorter_side: int | None) -> Image.Image:
    """Decode an open file as load_image describes it; raises whatever Pillow raises."""
    with Image.open(stream) as image:
        if shorter_side and image.format in ("JPEG", "MPO") and image.width * image.height > DRAFT_PIXELS:
            image.draft(None, (DRAFT_MARGIN * shorter_side, DRAFT_MARGIN * shorter_side))
        huge = image.width * image.height > HUGE_PIXELS
        with _huge if huge else contextlib.nullcontext():
            image.load()
            with contextlib.suppress(Exception):  # EXIF that cannot be read tells no orientation
                orientation = image.getexif().get(EXIF_ORIENTATION)
                if orientation in UPRIGHT:
                    image = image.transpose(UPRIGHT[orientation])
            image = _to_rgb(image)
            if huge and shorter_side:
                image = image.reduce(max(1, min(image.size) // (DRAFT_MARGIN * shorter_side)))
            return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """A decoded image of any mode -> 8-bit RGB."""
    if image.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        if image.mode == "F":
            values = values * (255 if values.max() <= 1 else 1)
        elif image.mode.startswith("I;16") or values.max() > 255:
            values = values / 257
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert("RGB")


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


# --- folders -----------------------------------------------------------------------------------------------------


def print_left_out(path: Path, reason: str) -> None:
    """One line on standard error about a file or folder that is left out."""
    print(f"left out: {path} {reason}", file=sys.stderr)


def walk_files(
    folder: str | os.PathLike,
    without: str | os.PathLike | None = None,
    leave_out: Callable[[Path, str], None] = print_left_out,
) -> list[Path]:
    """All files below a folder, sorted; links are followed, but no folder is entered twice.

    without: a folder that is not searched, such as the one that results go to.
    leave_out: is called with every file or folder that is hidden, made by the operating system, or
    cannot be read, and the reason.
    Raises UserError if `folder` itself cannot be read.
    """

    def fail(error: OSError) -> None:
        if os.path.abspath(error.filename) == os.path.abspath(folder):
            raise UserError(f"the folder {error.filename} cannot be read ({error.strerror})") from error
        leave_out(Path(error.filename), f"cannot be read ({error.strerror})")

    seen = {os.path.realpath(without)} if without else set()
    files = []
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        if os.path.realpath(parent) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        for name in filter(formats.is_system_file, [*folders, *names]):
            leave_out(Path(parent, name), "is hidden or made by the operating system")
        folders[:] = [name for name in folders if not formats.is_system_file(name)]
        files += [Path(parent, name) for name in names if not formats.is_system_file(name)]
    return sorted(files)

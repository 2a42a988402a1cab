"""One image: from any file that Pillow reads to an HR face, its clean LR face, or a real LR face."""

import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from models import HR_SIZE, LR_SIZE
from utils import UserError

# Pillow only warns about pictures of over 89 million pixels; decoding one would take up to a gigabyte
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


class ImageError(Exception):
    """A file that cannot be decoded to an image; the message gives the reason."""


class DamagedImageError(ImageError):
    """A file that begins like an image but does not decode: truncated, corrupt or too large."""


def load_image(path: str | os.PathLike) -> Image.Image:
    """Decode any file that Pillow reads to 8-bit RGB: the first frame, upright by EXIF, alpha composited on black.

    16-bit greys are scaled to 8 bits; floating-point images are taken to be in [0, 1] if no value exceeds 1, else in
    [0, 255]. Raises ImageError with the reason for what is not an image and DamagedImageError for what does not decode.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise ImageError("is not a regular file")
        with Image.open(path) as image:
            image.load()
            image = ImageOps.exif_transpose(image)
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
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("is not an image in a format that Pillow reads") from error
    except Exception as error:  # Pillow's decoders raise nearly every built-in type on damaged files
        raise DamagedImageError(f"does not decode ({type(error).__name__}: {error})") from error


def centre_square(image: Image.Image) -> Image.Image:
    """The largest square around the image's centre."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def prepare_hr(image: Image.Image, resize: int = 100, crop: int = 64) -> Image.Image:
    """HR face: centre square, bicubic to `resize` px, the central `crop` px, bicubic to 64 px unless it is that already."""
    image = centre_square(image).resize((resize, resize), Image.Resampling.BICUBIC)
    margin = (resize - crop) // 2
    image = image.crop((margin, margin, margin + crop, margin + crop))
    return image if crop == HR_SIZE else image.resize((HR_SIZE, HR_SIZE), Image.Resampling.BICUBIC)


def prepare_lr(image: Image.Image) -> Image.Image:
    """LR face: centre square, bicubic to 16 px; a 16x16 image stays as it is. Of an HR crop: its clean LR face x_c."""
    return centre_square(image).resize((LR_SIZE, LR_SIZE), Image.Resampling.BICUBIC)


def walk_files(folder: str | os.PathLike, without: str | os.PathLike | None = None) -> list[Path]:
    """All files below a folder, sorted; links to folders are followed, but no folder is entered twice.

    without: a folder that is left out, such as the one that results go to.
    """

    def fail(error: OSError) -> None:
        raise UserError(f"the folder {error.filename} cannot be read ({error.strerror})") from error

    seen = {os.path.realpath(without)} if without else set()
    files = []
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        if os.path.realpath(parent) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        files += [Path(parent, name) for name in names]
    return sorted(files)

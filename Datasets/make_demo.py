"""Draw a small face set: procedural HR faces, degraded LR ones of other faces, and four lists.

    python Datasets/make_demo.py --out demo/data
    python Datasets/make_demo.py --out demo/data --hr 800 --lr 600 --seed 1

For trying and testing the scripts without any photographs. Everything is drawn by this file and
depends on the seed alone.
"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from any folder
from Datasets.lists import write_list  # noqa: E402
from utils import Parser, UserError, run_script  # noqa: E402

SIZE = 100  # px, as the 64 px crop of `--resize 100 --crop 64` expects it
SCALE = 4  # drawn so many times larger, then reduced: smooth edges
SKIN = np.array([(250, 224, 200), (236, 188, 150), (205, 150, 110), (160, 105, 70), (96, 62, 45)], float)
HAIR = np.array([(28, 22, 20), (70, 45, 28), (120, 80, 40), (200, 165, 95), (150, 145, 140), (130, 55, 30)], float)
IRIS = np.array([(60, 40, 25), (95, 70, 40), (70, 110, 140), (80, 120, 80)], float)


def tone(rng: np.random.Generator, colours: np.ndarray) -> np.ndarray:
    """A random mix of two neighbours of a palette."""
    index, part = rng.integers(len(colours) - 1), rng.random()
    return colours[index] * (1 - part) + colours[index + 1] * part


def colour(value: np.ndarray, factor: float = 1.0) -> tuple[int, ...]:
    """A colour, brighter by a factor, as Pillow takes it."""
    return tuple(int(v) for v in np.clip(value * factor, 0, 255))


def area(x: float, y: float, rx: float, ry: float) -> tuple[float, ...]:
    """The box of an ellipse around (x, y), which are px of the HR face from the image's centre."""
    return ((50 + x - rx) * SCALE, (50 + y - ry) * SCALE, (50 + x + rx) * SCALE, (50 + y + ry) * SCALE)


def draw_face(rng: np.random.Generator) -> Image.Image:
    """One face, RGB 100x100 px, the head in the middle; every trait is drawn from the generator."""
    skin, hair, iris = tone(rng, SKIN), tone(rng, HAIR), IRIS[rng.integers(len(IRIS))]
    wall, shirt = rng.uniform(30, 230, 3), rng.uniform(20, 230, 3)
    side = SIZE * SCALE
    ramp = np.linspace(rng.uniform(0.6, 1), rng.uniform(0.7, 1.2), side)  # the wall is brighter on one side
    ramp = np.broadcast_to(ramp[:, None] if rng.random() < 0.5 else ramp[None, :], (side, side))[:, :, None]
    image = Image.fromarray(np.clip(wall * ramp, 0, 255).astype(np.uint8))
    head = rng.uniform(20, 25), rng.uniform(28, 32)  # half axes
    turn = rng.uniform(-4, 4)  # how far the features lie off the head's middle
    draw_head(image, rng, skin, hair, shirt, head)
    image = add_light(image, rng)
    draw_features(ImageDraw.Draw(image), rng, skin, hair, iris, turn)
    image = image.rotate(rng.uniform(-9, 9), Image.Resampling.BICUBIC, fillcolor=colour(wall, 0.8))
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def draw_head(
    image: Image.Image, rng: np.random.Generator, skin: np.ndarray, hair: np.ndarray, shirt: np.ndarray,
    head: tuple[float, float],
) -> None:  # fmt: skip
    """Shirt, neck, ears, head and hair, which may be long or missing."""
    draw, (width, height) = ImageDraw.Draw(image), head
    long_hair, bald, fringe = rng.random() < 0.45, rng.random() < 0.12, rng.uniform(0.35, 0.62)
    if long_hair:
        draw.ellipse(area(0, 4, width + rng.uniform(4, 8), height + 6), colour(hair, 0.8))
    draw.ellipse(area(0, height + 26, 38, 24), colour(shirt))
    draw.rectangle(area(0, height * 0.8 + 4, 9, height * 0.2 + 4), colour(skin, 0.72))
    for ear in (-1, 1):
        draw.ellipse(area(ear * width, 1, 4, 7), colour(skin, 0.8))
    if not bald:
        draw.ellipse(area(0, -6, width + 3, height - 1), colour(hair))
    draw.ellipse(area(0, 2, width, height), colour(skin))
    if bald:
        return
    # The hair's front edge: hair over the forehead, and the face again below it
    mask, cut = Image.new("L", image.size), Image.new("L", image.size, 255)
    ImageDraw.Draw(mask).ellipse(area(0, 2, width, height), 255)
    middle, breadth = rng.uniform(-7, 7), width * rng.uniform(0.9, 1.1)
    ImageDraw.Draw(cut).ellipse(area(middle, 9, breadth, height * (1.45 - fringe)), 0)
    upper = np.minimum(np.asarray(mask), np.asarray(cut))
    upper[int((50 - height * 0.15) * SCALE) :] = 0
    image.paste(colour(hair, 0.95), (0, 0), Image.fromarray(upper))


def add_light(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Light from one side, over everything so far, and a little blur."""
    side = SIZE * SCALE
    rows, columns = np.mgrid[0:side, 0:side] / side - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0.15, 0.6) * (columns * np.cos(angle) + 0.5 * rows * np.sin(angle))
    light = light - 0.5 * np.clip((columns**2 / 0.3 + rows**2 / 0.4), 0, 1)
    image = Image.fromarray(np.clip(np.asarray(image) * (light * 1.12)[:, :, None], 0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(SCALE * 0.8))


def draw_features(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, skin: np.ndarray, hair: np.ndarray, iris: np.ndarray, turn: float
) -> None:  # fmt: skip
    """Eyes and brows, nose, mouth, and now and then a beard or glasses."""
    eye_y, eye_x, eye_r = rng.uniform(-5, -1), rng.uniform(8.5, 10.5), rng.uniform(3.6, 4.6)
    openness, gaze = rng.uniform(0.45, 0.7), rng.uniform(-1, 1)
    brow_y, brow_weight = eye_y - rng.uniform(6, 8), rng.uniform(0.8, 1.7)
    for eye in (-1, 1):
        x = eye * eye_x + turn
        draw.ellipse(area(x, eye_y, eye_r + 1.6, eye_r * openness + 1.8), colour(skin, 0.68))
        draw.ellipse(area(x, eye_y, eye_r, eye_r * openness), (235, 232, 228))
        draw.ellipse(area(x + gaze, eye_y, eye_r * 0.5, eye_r * 0.55), colour(iris))
        draw.ellipse(area(x + gaze, eye_y, eye_r * 0.25, eye_r * 0.27), (12, 10, 10))
        draw.ellipse(area(x + gaze + 0.6, eye_y - 0.7, 0.5, 0.5), (255, 255, 255))
        draw.ellipse(area(x, brow_y + rng.uniform(-0.5, 0.5), eye_r + 1.5, brow_weight), colour(hair * 0.7))
    nose_y, nose_r = eye_y + rng.uniform(11, 13), rng.uniform(3, 4.6)
    draw.ellipse(area(0.8 + turn, nose_y - 4, 1.3, 6.5), colour(skin, 1.04))
    draw.ellipse(area(turn, nose_y + 1, nose_r, 1.9), colour(skin, 0.62))
    draw.ellipse(area(turn, nose_y - 0.2, nose_r * 0.75, 2), colour(skin, 0.98))
    mouth_y, mouth_r = nose_y + rng.uniform(7, 9), rng.uniform(6, 9.5)
    if rng.random() < 0.2:  # beard
        draw.ellipse(area(turn, mouth_y + 3, mouth_r + 5, 8), colour(hair, 0.85))
    lips = colour(0.55 * skin + 0.45 * np.array((170, 50, 60)), 0.85)
    draw.ellipse(area(turn, mouth_y, mouth_r, rng.uniform(1.6, 3)), lips)
    if rng.random() < 0.5:  # a smile that shows teeth
        draw.ellipse(area(turn, mouth_y, mouth_r * 0.8, rng.uniform(1, 1.7)), (236, 230, 222))
    else:
        draw.ellipse(area(turn, mouth_y, mouth_r * 0.9, 0.5), colour(skin, 0.35))
    if rng.random() < 0.18:  # glasses
        for eye in (-1, 1):
            rim = area(turn + eye * eye_x, eye_y, eye_r + 2.6, 0.85 * (eye_r + 2.6))
            draw.ellipse(rim, outline=(25, 22, 22), width=SCALE)
        draw.line(area(turn, eye_y, 3, 0), (25, 22, 22), SCALE)


def degrade(face: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A "real" LR face: crop, blur, reduction to 13 to 26 px, colour cast, noise and JPEG."""
    margin = 18 + rng.uniform(-2, 2)
    face = face.crop((margin, margin, SIZE - margin, SIZE - margin)).resize((64, 64), Image.Resampling.BICUBIC)
    face = face.filter(ImageFilter.GaussianBlur(rng.uniform(0.8, 2.6)))
    side = int(rng.integers(13, 27))
    pixels = np.asarray(face.resize((side, side), Image.Resampling.BILINEAR), dtype=float)
    contrast, brightness, cast = rng.uniform(0.6, 1), rng.uniform(-25, 15), rng.normal(0, 6, 3)
    pixels = (pixels - 128) * contrast + 128 + brightness + cast
    pixels = pixels + rng.normal(0, rng.uniform(2, 9), pixels.shape)
    stream = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=int(rng.integers(30, 80)))
    return Image.open(stream).convert("RGB")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.option("out", "demo/data", "folder of the faces and lists", metavar="DIR")
    parser.option("hr", 600, "HR faces to train with; a tenth more to test")
    parser.option("lr", 600, "LR faces to train with; a tenth more to test")
    parser.option("seed", 0, "seed of all traits")
    options = parser.parse_args(argv)
    for name in ("hr", "lr"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: must be at least 1")
    if options.seed < 0:
        parser.error(f"--seed {options.seed}: must be at least 0")

    out = Path(options.out)
    for number, (kind, count) in enumerate((("HR", options.hr), ("LR", options.lr))):
        for part, size in (("train", count), ("test", max(8, count // 10))):
            folder = out / f"{kind}_{part}"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                for index in range(size):
                    # Each face has a seed of its own: HR and LR, training and test share none
                    rng = np.random.default_rng([options.seed, number, part == "test", index])
                    face = draw_face(rng)
                    face = degrade(face, rng) if kind == "LR" else face
                    face.save(folder / f"{index:05d}.png")
                files = [str((folder / f"{index:05d}.png").resolve()) for index in range(size)]
                write_list(files, out / f"{kind}_{part}.csv")
            except OSError as error:
                raise UserError(f"cannot write to {folder} ({error}): name another folder with --out") from error


if __name__ == "__main__":
    run_script(main)

"""Makes the pictures of README.md with the shipped weights: docs/shipped.png and docs/photograph.jpg.

Usage:
    python docs/make_picture.py

Each photograph in docs/faces is reduced to 16x16 px and degraded by blur, noise and JPEG, always in the same way. test.py then
super-resolves it. docs/photograph/people.png goes through test.py --photos, its faces being known (boxes.csv).
docs/faces/README.md names the photographs' sources and licences.
"""

import io
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import test  # noqa: E402, the project's test.py

SIZE = 88  # px of a face in the picture
GAP = 4  # px between faces
LABELS = 104  # px, the width of the column of labels
BLUR = 0.4  # px of the LR face, standard deviation
NOISE = 4.0  # of 255, standard deviation
QUALITY = 85  # JPEG
SEED = 0
ROWS = ("photograph", "LR, 16x16 px", "bicubic", "ours")


def degrade(photograph: Image.Image, random: np.random.Generator) -> Image.Image:
    """The photograph reduced to 16x16 px by a box filter, then blurred, noised and compressed: an RGB picture."""
    face = photograph.resize((16, 16), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(BLUR))
    noisy = np.asarray(face, dtype=np.float64) + random.normal(0, NOISE, (16, 16, 3))
    stream = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8)).save(stream, "JPEG", quality=QUALITY)
    return Image.open(stream).convert("RGB")


def run_test(inputs: Path, outputs: Path, *options: str) -> None:
    """Run test.py --self-ensemble with the shipped weights, on the CPU in fp32."""
    weights = DOCS.parent / "weights" / "sr.pth"
    paths = ["--input", str(inputs), "--output", str(outputs), "--weights", str(weights)]
    test.main([*paths, "--device", "cpu", "--precision", "fp32", "--self-ensemble", *options])


def super_resolve(faces: list[Image.Image]) -> list[Image.Image]:
    """The SR of 16x16 px faces, 64x64 px each."""
    with TemporaryDirectory() as folder:
        inputs, outputs = Path(folder, "LR"), Path(folder, "SR")
        inputs.mkdir()
        for index, face in enumerate(faces):
            face.save(inputs / f"{index:03}.png")
        run_test(inputs, outputs)
        return [Image.open(outputs / f"{index:03}.png").convert("RGB") for index in range(len(faces))]


def photograph() -> Image.Image:
    """The photograph enlarged by bicubic interpolation, and below it with its faces super-resolved."""
    source = DOCS / "photograph" / "people.png"
    with TemporaryDirectory() as folder:
        run_test(source, Path(folder), "--photos", "--boxes", str(DOCS / "photograph" / "boxes.csv"))
        plain, ours = (Image.open(Path(folder, name)).convert("RGB") for name in ("people.bicubic.png", "people.png"))
    picture = Image.new("RGB", (plain.width, 2 * plain.height + GAP), "white")
    picture.paste(plain, (0, 0))
    picture.paste(ours, (0, plain.height + GAP))
    return picture


def sheet(rows: list[list[Image.Image]]) -> Image.Image:
    """One row of pictures for each name in ROWS, labelled on the left. LR pixels are shown as squares."""
    step = SIZE + GAP
    picture = Image.new("RGB", (LABELS + len(rows[0]) * step - GAP, len(rows) * step - GAP), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=15)
    for row, (name, faces) in enumerate(zip(ROWS, rows, strict=True)):
        draw.text((0, row * step + SIZE // 2), name, fill="black", font=font, anchor="lm")
        for column, face in enumerate(faces):
            filter_ = Image.Resampling.NEAREST if face.width == 16 else Image.Resampling.BICUBIC
            picture.paste(face.resize((SIZE, SIZE), filter_), (LABELS + column * step, row * step))
    return picture


def main() -> None:
    """Writes docs/shipped.png and docs/photograph.jpg."""
    photographs = [Image.open(path).convert("RGB") for path in sorted((DOCS / "faces").glob("*.png"))]
    random = np.random.default_rng(SEED)
    lr_faces = [degrade(photograph, random) for photograph in photographs]
    bicubic = [face.resize((64, 64), Image.Resampling.BICUBIC) for face in lr_faces]
    sheet([photographs, lr_faces, bicubic, super_resolve(lr_faces)]).save(DOCS / "shipped.png", optimize=True)
    photograph().save(DOCS / "photograph.jpg", quality=85)


if __name__ == "__main__":
    main()

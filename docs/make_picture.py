"""Make the README's figures with the shipped weights: docs/shipped.png and docs/photograph.jpg.

python docs/make_picture.py

Each photograph in docs/faces is reduced to 16x16 px and degraded by blur, noise and JPEG, always in the same way; test.py then
super-resolves it. docs/photograph/people.png goes through photos.py, its faces being known (boxes.csv).
docs/faces/README.md names the photographs' sources and licences.
"""

import io
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import photos  # noqa: E402
import test  # noqa: E402, the project's test.py

SIZE, GAP, LABELS = 88, 4, 104  # px: a face in the figure, between faces, the column of labels
BLUR, NOISE, QUALITY = 0.4, 4.0, 85  # standard deviations in px of the LR face and of 255; JPEG
ROWS = ("photograph", "LR, 16x16 px", "bicubic", "ours")


def degrade(photograph: Image.Image, random: np.random.Generator) -> Image.Image:
    """The photograph reduced to 16x16 px by a box filter, then blurred, noised and compressed: an RGB picture."""
    face = photograph.resize((16, 16), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(BLUR))
    noisy = np.asarray(face, dtype=np.float64) + random.normal(0, NOISE, (16, 16, 3))
    stream = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8)).save(stream, "JPEG", quality=QUALITY)
    return Image.open(stream).convert("RGB")


def run(script: ModuleType, inputs: Path, outputs: Path, *options: str) -> dict[str, Image.Image]:
    """What test.py or photos.py makes of pictures with the shipped weights, in fp32 on the CPU: name -> picture."""
    paths = ["--input", str(inputs), "--output", str(outputs), "--weights", str(DOCS.parent / "weights/sr.pth")]
    script.main([*paths, "--device", "cpu", "--precision", "fp32", "--self-ensemble", *options])
    return {path.name: Image.open(path).convert("RGB") for path in sorted(outputs.iterdir())}


def sheet(rows: list[list[Image.Image]]) -> Image.Image:
    """One row of pictures for each name in ROWS, labelled on the left. LR pixels are shown as squares."""
    step = SIZE + GAP
    picture = Image.new("RGB", (LABELS + len(rows[0]) * step - GAP, len(rows) * step - GAP), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=15)
    for row, (name, faces) in enumerate(zip(ROWS, rows, strict=True)):
        draw.text((0, row * step + SIZE // 2), name, fill="black", font=font, anchor="lm")
        for column, face in enumerate(faces):
            kind = Image.Resampling.NEAREST if face.width == 16 else Image.Resampling.BICUBIC
            picture.paste(face.resize((SIZE, SIZE), kind), (LABELS + column * step, row * step))
    return picture


def main() -> None:
    faces = [Image.open(path).convert("RGB") for path in sorted((DOCS / "faces").glob("*.png"))]
    random = np.random.default_rng(0)
    lr_faces = [degrade(face, random) for face in faces]
    bicubic = [face.resize((64, 64), Image.Resampling.BICUBIC) for face in lr_faces]
    with TemporaryDirectory() as folder:
        for index, face in enumerate(lr_faces):
            face.save(Path(folder, f"{index:03}.png"))
        ours = list(run(test, Path(folder), Path(folder, "out")).values())
        sheet([faces, lr_faces, bicubic, ours]).save(DOCS / "shipped.png", optimize=True)
    with TemporaryDirectory() as folder:
        known = str(DOCS / "photograph/boxes.csv")
        enlarged = run(photos, DOCS / "photograph/people.png", Path(folder), "--boxes", known)
    plain, ours = enlarged["people.bicubic.png"], enlarged["people.png"]
    picture = Image.new("RGB", (plain.width, 2 * plain.height + GAP), "white")
    picture.paste(plain, (0, 0))
    picture.paste(ours, (0, plain.height + GAP))
    picture.save(DOCS / "photograph.jpg", quality=85)


if __name__ == "__main__":
    main()

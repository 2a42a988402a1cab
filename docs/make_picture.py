"""Make the README's figures with the shipped weights: docs/shipped.png and docs/photograph.jpg.

python docs/make_picture.py

docs/faces has faces as they are in photographs, where they are 22 px tall; test.py makes 16x16 px and SR of them. What other
programs make of the same 16x16 px is in docs/others: bash recipes/others.sh docs/faces docs/others x4plus_padded waifu2x
docs/photograph/people.png goes through photos.py, its faces being known (boxes.csv).
docs/faces/README.md names the photographs' sources and licences.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from PIL import Image, ImageDraw, ImageFont

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import photos  # noqa: E402
import test  # noqa: E402, the project's test.py
from Datasets.images import prepare_lr  # noqa: E402

SIZE, GAP, LABELS = 88, 4, 104  # px: a face in the figure, between faces, the column of labels
OTHERS = {"x4plus_padded": "Real-ESRGAN", "waifu2x": "waifu2x"}  # folder in docs/others -> label


def run(script: ModuleType, inputs: Path, outputs: Path, *options: str) -> dict[str, Image.Image]:
    """What test.py or photos.py makes of pictures with the shipped weights, in fp32 on the CPU: name -> picture."""
    paths = ["--input", str(inputs), "--output", str(outputs), "--weights", str(DOCS.parent / "weights/sr.pth")]
    script.main([*paths, "--device", "cpu", "--precision", "fp32", "--self-ensemble", *options])
    return {path.name: Image.open(path).convert("RGB") for path in sorted(outputs.iterdir())}


def sheet(rows: dict[str, list[Image.Image]]) -> Image.Image:
    """Rows of pictures, labelled on the left. LR pixels are shown as squares."""
    step = SIZE + GAP
    columns = len(next(iter(rows.values())))
    picture = Image.new("RGB", (LABELS + columns * step - GAP, len(rows) * step - GAP), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=15)
    for row, (name, faces) in enumerate(rows.items()):
        draw.text((0, row * step + SIZE // 2), name, fill="black", font=font, anchor="lm")
        for column, face in enumerate(faces):
            kind = Image.Resampling.NEAREST if face.width == 16 else Image.Resampling.BICUBIC
            picture.paste(face.resize((SIZE, SIZE), kind), (LABELS + column * step, row * step))
    return picture


def main() -> None:
    paths = sorted((DOCS / "faces").glob("*.png"))
    faces = [Image.open(path).convert("RGB") for path in paths]
    lr_faces = [prepare_lr(face) for face in faces]  # as test.py does
    rows = {"photograph": faces, "LR, 16x16 px": lr_faces}
    rows["bicubic"] = [face.resize((64, 64), Image.Resampling.BICUBIC) for face in lr_faces]
    for other, label in OTHERS.items():
        rows[label] = [Image.open(DOCS / "others" / other / path.name) for path in paths]
    with TemporaryDirectory() as folder:
        rows["ours"] = list(run(test, DOCS / "faces", Path(folder)).values())
    sheet(rows).save(DOCS / "shipped.png", optimize=True)
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

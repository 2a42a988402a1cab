"""3,000 mutated images through test.py and the loader: no crash, no partial output, every skip
with a reason.

    python tests/soak/hostile.py [--images 3000] [--seed 0]

Truncated, bit-flipped, overwritten, with a wrong extension, empty, decompression bombs, 60,000 x 1
px, animated, CMYK, 16-bit, palettes with transparency. Also checks a list of 1,000,000 rows. Exit
status 0 if all of it holds.
"""

import argparse
import io
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import ROOT, command, save_untrained
from PIL import Image

from Datasets.faces import prepare_faces
from Datasets.images import walk_files
from utils import UserError

MEMORY_LIMIT = 3_000_000  # kB of memory that test.py may use at most


def encode(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def seeds(rng: np.random.Generator) -> list[tuple[str, bytes]]:
    """Whole images of many kinds: extension and bytes."""
    face = Image.fromarray(rng.integers(0, 256, (80, 72, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (80, 72), dtype=np.uint16))
    frames = [Image.fromarray(rng.integers(0, 256, (70, 70), dtype=np.uint8)) for _ in range(3)]
    palette = face.convert("P")
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        ("png", encode(face, "PNG")), ("jpg", encode(face, "JPEG", exif=exif)), ("bmp", encode(face, "BMP")),
        ("webp", encode(face, "WEBP")), ("tif", encode(face.convert("CMYK"), "TIFF")), ("ppm", encode(face, "PPM")),
        ("jpg", encode(face.convert("CMYK"), "JPEG")), ("png", encode(deep, "PNG")), ("tga", encode(face, "TGA")),
        ("gif", encode(frames[0], "GIF", save_all=True, append_images=frames[1:])), ("ico", encode(face, "ICO")),
        ("png", encode(palette, "PNG", transparency=3)), ("png", encode(face.convert("LA"), "PNG")),
        ("png", encode(Image.new("1", (60000, 1)), "PNG")), ("tif", encode(deep, "TIFF")),
        ("png", encode(Image.new("1", (9000, 9000)), "PNG")),  # 81 million pixels of nothing: the largest that is taken
        ("png", encode(Image.new("1", (12000, 12000)), "PNG")),  # a decompression bomb
    ]  # fmt: skip


def mutate(extension: str, content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """One of the ways in which files from the web are broken."""
    data = bytearray(content)
    way = rng.integers(6)
    if way == 0:
        data = data[: rng.integers(len(data))]
    elif way == 1:
        for position in rng.integers(len(data), size=rng.integers(1, 20)):
            data[position] ^= 1 << rng.integers(8)
    elif way == 2:
        start = rng.integers(len(data))
        data[start : start + 64] = rng.bytes(64)
    elif way == 3:
        extension = str(rng.choice(["png", "jpg", "gif", "txt", "bmp", "pdf"]))
    elif way == 4:
        data = bytearray() if rng.random() < 0.5 else bytearray(rng.bytes(200))
    return extension, bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000, help="how many files (default: 3000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations (default: 0)")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in"), Path(folder, "out")
        source.mkdir()
        kinds = seeds(rng)
        for number in range(args.images):
            # The two giants are costly to decode: one file in 50 is one of them
            index = rng.integers(len(kinds) - 2) if rng.random() > 0.02 else rng.integers(len(kinds) - 2, len(kinds))
            extension, content = mutate(*kinds[index], rng)
            (source / f"{number:05d}.{extension}").write_bytes(content)

        save_untrained(Path(folder, "sr.pth"))
        began = time.monotonic()
        test = command(Path(folder, "sr.pth"), source, target)
        result = subprocess.run(test, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr[-3000:]
        peak = int(result.stdout.split()[-1])
        outputs = walk_files(target)
        skips = [line for line in result.stderr.splitlines() if line.startswith("skipped: ")]
        assert len(outputs) + len(skips) == args.images, (len(outputs), len(skips))
        assert all(len(line.split(" ", 2)[2]) > 10 for line in skips)
        for file in outputs:
            with Image.open(file) as image:
                image.load()
                assert image.size == (64, 64) and image.mode == "RGB"
        assert peak < MEMORY_LIMIT, f"test.py took {peak} kB"
        seconds = time.monotonic() - began
        print(
            f"hostile: {args.images} mutated images through test.py: {len(outputs)} results, all whole, {len(skips)} skips, "
            f"each with a reason; peak memory {peak / 1e6:.2f} GB; {seconds:.0f} s"
        )

        # The loader refuses the list and names the same files; make_csv.py makes a list without
        # them
        path, cache = Path(folder, "LR_train.csv"), Path(folder, "cache")
        path.write_text("\n".join(["path", *(f"in/{file.name}" for file in walk_files(source))]))
        try:
            prepare_faces(path, "LR", cache)
            raise AssertionError("a list of damaged files was taken")
        except UserError as error:
            assert str(cache / "LR_train_left_out.csv") in str(error), error
        refused = {Path(file).name for file in pd.read_csv(cache / "LR_train_left_out.csv")["path"]}
        assert refused == {Path(line.split(" ")[1]).name for line in skips}
        path.write_text("\n".join(f"in/{file.name}" for file in walk_files(source) if file.name not in refused))
        faces = prepare_faces(path, "LR", cache)
        assert len(faces) == len(outputs), (len(faces), len(outputs))
        print(f"hostile: the loader refuses the same files, names all of them, and prepares the other {len(faces)}")

        lr = Path(folder, "many")
        lr.mkdir()
        picture = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
        for number in range(10_000):
            picture.save(lr / f"{number}.png", compress_level=0)
        Path(folder, "LR_test.csv").write_text("\n".join(f"many/{number % 10_000}.png" for number in range(1_000_000)))
        began, busy = time.monotonic(), time.process_time()
        faces = prepare_faces(Path(folder, "LR_test.csv"), "LR", Path(folder, "cache"))
        seconds, busy = time.monotonic() - began, time.process_time() - busy
        assert len(faces) == 1_000_000 and torch.equal(faces[[5]][0], faces[[990_005]][0])
        print(
            f"hostile: a list of 1,000,000 rows of 10,000 files read, checked and prepared in {seconds:.1f} s, "
            f"{busy:.1f} CPU seconds"
        )
        assert busy < 10, "a list of a million rows took 10 CPU seconds or more"


if __name__ == "__main__":
    main()

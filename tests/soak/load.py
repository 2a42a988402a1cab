"""20,000 images through test.py: constant memory, stopped half way, continued with --skip-existing, no result half.

    python tests/soak/load.py [--images 20000]

Exit status 0 if all of it holds.
"""

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from common import ROOT, command, save_untrained
from PIL import Image

from Datasets.images import walk_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000, help="how many images (default: 20000)")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in"), Path(folder, "out")
        for number in range(args.images):
            part = source / f"{number // 1000:03d}"
            part.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(part / f"{number:05d}.png")
        sr = Path(folder, "sr.pth")
        save_untrained(sr)
        few = subprocess.run(
            command(sr, source / "000", Path(folder, "few")), cwd=ROOT, capture_output=True, text=True, check=True
        )
        began = time.monotonic()
        run = subprocess.Popen(command(sr, source, target), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while run.poll() is None and (not target.exists() or len(list(target.glob("*/*.png"))) < args.images // 2):
            time.sleep(0.2)
        run.kill()
        run.wait()
        stopped = sum(file.suffix == ".png" for file in walk_files(target))
        assert stopped < args.images, "it was through before it could be stopped"
        many = subprocess.run(
            command(sr, source, target, "--skip-existing"), cwd=ROOT, capture_output=True, text=True, check=True
        )
        seconds = time.monotonic() - began
        assert f"{stopped} results already there" in many.stdout, many.stdout
        results = [file for file in walk_files(target) if file.suffix == ".png"]
        assert len(results) == args.images
        for file in results:
            with Image.open(file) as image:
                image.load()
                assert image.size == (64, 64)
        peaks = [int(result.stdout.split()[-1]) for result in (few, many)]
        assert peaks[1] < peaks[0] + 150_000, f"memory grew from {peaks[0]} to {peaks[1]} kB"
        print(
            f"load: {args.images} images, killed after {stopped} and continued with --skip-existing: all whole; peak memory "
            f"{peaks[0] / 1e6:.2f} GB for 1,000 images, {peaks[1] / 1e6:.2f} GB for the rest; {seconds:.0f} s"
        )


if __name__ == "__main__":
    main()

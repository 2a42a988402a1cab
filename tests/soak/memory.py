"""64 photographs of 24 megapixels on a host that seems to have 64 CPUs: the peak memory of test.py
and of the loader.

    python tests/soak/memory.py [--images 64]

JPEG files, as cameras write them, and then PNG files, which cannot be decoded at a reduced size.
Exit status 0 if all of it holds.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import ROOT, command, save_untrained
from PIL import Image

LIMITS = {"jpg": 1_500_000, "png": 2_500_000}  # kB; a picture is 72 MB, and 64 threads would hold over 10 GB
HOST = "import os; os.cpu_count = lambda: 64; os.sched_getaffinity = lambda process: set(range(64));"
LOADER = (
    "import resource, sys; from pathlib import Path; from Datasets.faces import prepare_faces;"
    "print(len(prepare_faces(Path(sys.argv[1]), 'HR', Path(sys.argv[2]))));"
    "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)


def run(arguments: list) -> list[str]:
    """The output of `python -c code ...` on the simulated host, as words."""
    arguments[2] = HOST + arguments[2]
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="how many JPEG files; a quarter as many PNG files (default: 64)")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    photograph = small.resize((6000, 4000), Image.Resampling.BICUBIC)
    for kind, limit in LIMITS.items():
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "in")
            source.mkdir()
            photograph.save(source / f"0.{kind}", **({"compress_level": 1} if kind == "png" else {}))
            count = args.images if kind == "jpg" else max(8, args.images // 4)
            for number in range(1, count):  # their bytes differ after the picture's end
                content = (source / f"0.{kind}").read_bytes()
                (source / f"{number}.{kind}").write_bytes(content + number.to_bytes(2, "big"))
            save_untrained(Path(folder, "sr.pth"))
            began = time.monotonic()
            inference = run(command(Path(folder, "sr.pth"), source, Path(folder, "out")))
            assert len(list(Path(folder, "out").glob("*.png"))) == count
            Path(folder, "HR_train.csv").write_text("\n".join(f"in/{number}.{kind}" for number in range(count)))
            loader = run([sys.executable, "-c", LOADER, Path(folder, "HR_train.csv"), Path(folder, "cache")])
            assert int(loader[-3]) == count
            peaks = {"test.py": int(inference[-1]), "the loader": int(loader[-1])}
            for name, peak in peaks.items():
                assert peak < limit, f"{name} took {peak} kB for {kind} files"
            shown = ", ".join(f"{name} {peak / 1e6:.2f} GB" for name, peak in peaks.items())
            seconds = time.monotonic() - began
            print(f"memory: {count} photographs of 24 megapixels, {kind}, 64 CPUs: peak {shown}; {seconds:.0f} s")


if __name__ == "__main__":
    main()

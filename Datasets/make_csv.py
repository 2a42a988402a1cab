"""Write the four lists that training reads, from folders of images.

    python Datasets/make_csv.py --hr photos/faces --lr photos/small_faces
    python Datasets/make_csv.py --hr a b --lr c --hr-test d --lr-test e --out Datasets

HR and LR folders are searched with their sub-folders and need not show the same people. Without --hr-test and --lr-test a
random part of the images becomes the test lists.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from any folder
from Datasets.images import walk_files  # noqa: E402


def find_images(folders: list[str]) -> list[str]:
    """All files below the folders whose extension Pillow can read, as absolute paths, sorted."""
    extensions = {extension for extension, name in Image.registered_extensions().items() if name in Image.OPEN}
    found = set()
    for folder in folders:
        if not os.path.isdir(folder):
            raise SystemExit(f"error: {folder} is not a folder")
        images = [os.path.abspath(file) for file in walk_files(folder) if file.suffix.lower() in extensions]
        if not images:
            raise SystemExit(f"error: {folder} has no images (formats: whatever Pillow reads)")
        for image in images:
            try:
                image.encode("utf-8")
            except UnicodeEncodeError as error:
                raise SystemExit(f"error: the name {os.fsencode(image)!r} is not UTF-8; rename the file") from error
        found.update(images)
    return sorted(found)


def split(images: list[str], test_fraction: float, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """A random share of the images for the test list, at least one, the rest for training; both sorted."""
    if len(images) < 2:
        raise SystemExit("error: one image cannot be split into a training and a test list; add images")
    count = min(max(1, round(test_fraction * len(images))), len(images) - 1)
    test = set(rng.choice(len(images), count, replace=False).tolist())
    return [image for i, image in enumerate(images) if i not in test], [images[i] for i in sorted(test)]


def write_list(images: list[str], path: Path) -> None:
    """One path a line under a header; paths below the list's folder are relative to it, so that it can be moved."""
    folder = os.path.abspath(path.parent)
    rows = [os.path.relpath(image, folder) if image.startswith(folder + os.sep) else image for image in images]
    pd.DataFrame({"path": rows}).to_csv(path, index=False, encoding="utf-8")
    print(f"{path}: {len(rows)} images")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--hr", nargs="+", required=True, metavar="DIR", help="folders of high-resolution faces (64 px or more)"
    )
    parser.add_argument("--lr", nargs="+", required=True, metavar="DIR", help="folders of real low-resolution faces")
    parser.add_argument("--hr-test", nargs="+", metavar="DIR", help="test folders; without it a part of --hr is set aside")
    parser.add_argument("--lr-test", nargs="+", metavar="DIR", help="test folders; without it a part of --lr is set aside")
    parser.add_argument("--test-fraction", type=float, default=0.1, help="the part that is set aside (default: 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("Datasets"), help="where the lists go (default: Datasets)")
    args = parser.parse_args(argv)
    if not 0 < args.test_fraction < 1:
        parser.error("--test-fraction must be between 0 and 1")

    lists: dict[str, list[str]] = {}
    for kind, folders, test_folders in (("HR", args.hr, args.hr_test), ("LR", args.lr, args.lr_test)):
        train = find_images(folders)
        if test_folders:
            test = find_images(test_folders)
            shared = set(train) & set(test)
            if shared:
                raise SystemExit(f"error: {len(shared)} {kind} images are in both sets, such as {min(shared)}")
        else:
            train, test = split(train, args.test_fraction, np.random.default_rng([args.seed, kind == "LR"]))
        lists |= {f"{kind}_train": train, f"{kind}_test": test}
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for name, images in lists.items():
            write_list(images, args.out / f"{name}.csv")
    except OSError as error:
        raise SystemExit(f"error: cannot write to the folder {args.out} ({error})") from error


if __name__ == "__main__":
    sys.exit(main())

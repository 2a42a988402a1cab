"""Write the four lists that training reads, from folders of images.

    python Datasets/make_csv.py --hr photos/faces --lr photos/small_faces
    python Datasets/make_csv.py --hr a b --lr c --hr-test d --lr-test e --out Datasets

HR and LR folders are searched with their sub-folders and need not show the same people. Without
--hr-test and --lr-test a random part of the images becomes the test lists. Every picture is
decoded: what training would refuse, and copies of a picture under another name, are left out, and
left_out.csv beside the lists names them with the reason.
"""

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from any folder
from Datasets.images import ImageError, Notes, digest, load_image, notes, too_large, too_small, walk_files  # noqa: E402
from Datasets.lists import write_list  # noqa: E402
from models import HR_SIZE, LR_SIZE  # noqa: E402
from utils import Parser, UserError, ahead, plural, progress, run_script, thread_count  # noqa: E402


def build_parser() -> Parser:
    parser = Parser(__doc__)
    folders = {"nargs": "+", "type": os.path.expanduser, "metavar": "DIR"}
    parser.add_argument("--hr", required=True, help="folders of high-resolution faces (64 px or more)", **folders)
    parser.add_argument("--lr", required=True, help="folders of real low-resolution faces", **folders)
    parser.add_argument("--hr-test", help="test folders; without them a part of --hr is set aside", **folders)
    parser.add_argument("--lr-test", help="test folders; without them a part of --lr is set aside", **folders)
    parser.option("test-fraction", 0.1, "the part that is set aside")
    parser.option("seed", 0, "seed of the split")
    parser.option("out", "Datasets", "folder of the lists", metavar="DIR")
    return parser


# --- what is in the folders --------------------------------------------------------------------------------------


def find_files(options: argparse.Namespace) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The files of each option, as absolute sorted paths, and what is left out: path -> reason.

    Where one folder lies within another that is given, its files belong to it alone. Raises
    UserError for a folder that is none, cannot be read, or has no files.
    """
    given = {name: getattr(options, name) or [] for name in ("hr", "lr", "hr_test", "lr_test")}
    every = {os.path.realpath(folder) for folders in given.values() for folder in folders}
    files: dict[str, list[str]] = {}
    left_out: dict[str, str] = {}
    for name, folders in given.items():
        found: set[str] = set()
        for folder in folders:
            if not os.path.isdir(folder):
                raise UserError(f"--{name.replace('_', '-')} {folder} is not a folder")
            outer = os.path.realpath(folder)
            inner = {other for other in every if other != outer and Path(other).is_relative_to(outer)}
            for path in inner:
                print(f"{path} is given by itself: its files are not taken for those of {folder}")
            below = walk_files(folder, inner, lambda path, reason: left_out.update({os.path.abspath(path): reason}))
            found.update(map(os.path.abspath, below))
        files[name] = sorted(found)
    return files, left_out


def check_file(file: str, kind: str) -> tuple[str, tuple[str, ...]] | str:
    """(digest of the pixels, notes) of a file for the lists of kind "hr" or "lr", or why training would refuse it."""
    try:
        os.fsencode(file).decode("utf-8")
    except UnicodeDecodeError:
        return "has a name that is not UTF-8 (rename the file)"
    if "\r" in file or "\n" in file:
        return "has a line break in its name, which no list can hold (rename the file)"
    try:
        image = load_image(file, HR_SIZE if kind == "hr" else LR_SIZE)
    except ImageError as error:
        return str(error)
    if kind == "hr" and (reason := too_small(image)):
        return reason
    return digest(image), notes(image) + (too_large(image) if kind == "lr" else ())


def check_files(name: str, files: list[str], pool: ThreadPoolExecutor) -> tuple[dict[str, str], dict[str, str], Notes]:
    """Decode all files of an option: those that training takes, with their digests; the others with the reason; the notes."""
    good, bad, said = {}, {}, Notes()
    with progress(desc=f"checking --{name.replace('_', '-')}", total=len(files), unit="image", leave=False) as bar:
        for file, result in zip(files, ahead(pool, lambda file: check_file(file, name[:2]), files)):
            bar.update()
            if isinstance(result, str):
                bad[file] = result
            else:
                good[file] = result[0]
                said.add(file, result[1])
    return good, bad, said


def leave_out_copies(good: dict[str, dict[str, str]]) -> dict[str, str]:
    """Take copies, by their pixels, out of the files of each option; returns them with the reason.

    Of a picture that is in a test folder, too, the one there stays.
    """
    copies = {}
    for kind in ("hr", "lr"):
        seen: dict[str, str] = {}
        for name in (f"{kind}_test", kind):
            for file, key in list(good[name].items()):
                if seen.setdefault(key, file) != file:
                    copies[file] = f"is a copy of another picture ({seen[key]})"
                    del good[name][file]
    return copies


def report(left_out: dict[str, str], out: Path) -> None:
    """Write left_out.csv, with all that was left out, and print how many files it is, by reason."""
    table = out / "left_out.csv"
    if not left_out:
        table.unlink(missing_ok=True)
        return
    rows = [(os.fsencode(path).decode("utf-8", "backslashreplace"), reason) for path, reason in sorted(left_out.items())]
    pd.DataFrame(rows, columns=["path", "reason"]).to_csv(table, index=False, encoding="utf-8")
    print(f"left out: {plural(len(rows), 'file')}, all named in {table}")
    groups: dict[str, list[str]] = {}
    for path, reason in rows:
        groups.setdefault(reason if "pip install" in reason else reason.split(" (")[0], []).append(path)
    for reason, paths in groups.items():
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        print(f"  {paths[0]}{more}: {reason}")


# --- the lists ---------------------------------------------------------------------------------------------------


def split(images: list[str], test_fraction: float, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """A random share of the images for testing, at least one, the rest for training; sorted."""
    if len(images) < 2:
        raise UserError(f"1 image, {images[0]}, cannot be split into a training and a test list: add images")
    count = min(max(1, round(test_fraction * len(images))), len(images) - 1)
    test = set(rng.choice(len(images), count, replace=False).tolist())
    return [image for i, image in enumerate(images) if i not in test], [images[i] for i in sorted(test)]


def make_lists(good: dict[str, dict[str, str]], options: argparse.Namespace) -> dict[str, list[str]]:
    """The four lists, by name, out of the files of each option with their digests."""
    lists = {}
    for kind in ("hr", "lr"):
        train, test = list(good[kind]), list(good[f"{kind}_test"])
        if not getattr(options, f"{kind}_test"):
            train, test = split(train, options.test_fraction, np.random.default_rng([options.seed, kind == "lr"]))
        lists |= {f"{kind.upper()}_train": train, f"{kind.upper()}_test": test}
    hr, lr = ({key: file for name in (kind, f"{kind}_test") for file, key in good[name].items()} for kind in ("hr", "lr"))
    if shared := [hr[key] for key in hr.keys() & lr.keys()]:
        print(f"warning: {plural(len(shared), 'image')} in HR and LR lists alike, such as {min(shared)}")
    return lists


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    options = parser.parse_args(argv)
    if not 0 < options.test_fraction < 1:
        parser.error(f"--test-fraction {options.test_fraction}: must be between 0 and 1")
    out = Path(options.out)
    files, left_out = find_files(options)
    for kind in ("hr", "lr"):
        if shared := set(files[kind]) & set(files[f"{kind}_test"]):
            raise UserError(f"{plural(len(shared), f'{kind.upper()} image')} in both sets, such as {min(shared)}")
    good = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(thread_count()) as pool:
            for name in files:
                good[name], bad, said = check_files(name, files[name], pool)
                left_out |= bad
                for line in said.lines():
                    print(f"--{name.replace('_', '-')}: {line}")
        left_out |= leave_out_copies(good)
        report(left_out, out)
        for name, images in good.items():
            if getattr(options, name) and not images:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag} {' '.join(getattr(options, name))} has no usable images (see {out / 'left_out.csv'})")
        for name, images in make_lists(good, options).items():
            write_list(images, out / f"{name}.csv")
    except OSError as error:
        raise UserError(f"cannot write to the folder {out} ({error}): name another with --out") from error


if __name__ == "__main__":
    run_script(main)

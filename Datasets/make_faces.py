"""Cut HR and LR faces out of public sets or your own photographs, and write the four lists.

    python Datasets/make_faces.py --lfw lfw-deepfunneled --wider WIDER --out faces    # the README's faces
    python Datasets/make_faces.py --photos my_photographs --out faces                  # needs a face detector
    python Datasets/make_faces.py --photos my_photographs --boxes boxes.csv --out faces
    python train_h2l.py --data faces

Nothing is downloaded. An interrupted run resumes when the same command is given again.
"""

import argparse
import hashlib
import json
import os
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
from Datasets.boxes import SCALE, Box, face_square, is_inside, read_boxes  # noqa: E402
from Datasets.detectors import PACKAGES, Detect, detect_faces, find_detector  # noqa: E402
from Datasets.images import ImageError, load_image, prepare_hr, prepare_lr, walk_files  # noqa: E402
from Datasets.lists import write_list  # noqa: E402
from Datasets.public_sets import SETS, Source, read_set  # noqa: E402
from models import HR_SIZE  # noqa: E402

DARKEST, FLATTEST = 25, 18  # mean and standard deviation of the grey values, 0..255, that a real LR face must have
GREY = 2.0  # mean difference of neighbouring colour channels, 0..255, under which an HR face is grey; LFW's others have 2.6
SHEET_FACES = 64
RECORDS = "make_faces.jsonl"  # one line a picture: what came of it; lets a run resume
COLUMNS = ["path", "kind", "split", "photograph", "x", "y", "w", "h", "score", "side"]
SETTINGS = ("min", "max", "scale", "resize", "crop")  # options that decide how a face comes out


def build_parser() -> utils.Parser:
    parser = utils.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, known in SETS.items():
        kind = "LR" if name == "wider" else "HR"
        parser.option(name, "", f"folder of {known.title.rstrip(',')}: {kind} faces", metavar="DIR")
    parser.option("photos", "", "folder of photographs, or one: HR and LR faces, by their size", metavar="PATH")
    parser.option("boxes", "", "the photographs' faces: a .csv with path,x,y,w,h, or Wider Face's layout", metavar="FILE")
    parser.option("detector", "auto", "what finds faces without --boxes", choices=("auto", *PACKAGES))
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
    beyond = max(-left, -top, left + whole - image.width, top + whole - image.height, 0)
    if beyond:
        pixels = np.pad(np.asarray(image), ((beyond, beyond), (beyond, beyond), (0, 0)), mode="symmetric")
        image, left, top = Image.fromarray(pixels), left + beyond, top + beyond
    return image.crop((left, top, left + whole, top + whole)).resize((resize, resize), Image.Resampling.BICUBIC)


def is_dark_or_flat(face: Image.Image) -> bool:
    """Whether an LR face shows too little to be one."""
    grey = np.asarray(face.convert("L"), dtype=float)
    return bool(grey.mean() < DARKEST or grey.std() < FLATTEST)


def is_grey(image: Image.Image) -> bool:
    """Whether a picture has no colours; JPEG leaves a trace of them in a grey one."""
    return bool(np.abs(np.diff(np.asarray(image, dtype=np.int16), axis=2)).mean() < GREY)


def cut_box(image: Image.Image, box: Box, options: argparse.Namespace) -> tuple[str, Image.Image] | str:
    """("HR" or "LR", the face) of a box in a photograph, or the reason why it gives none."""
    if box.reason:
        return box.reason
    square = face_square(box, options.scale)
    left, top, side = square
    if box.size < options.min:
        return f"under {options.min} px high"
    if box.size > options.max and side < HR_SIZE:
        return f"over {options.max} px high, and too small for an HR face"
    if not is_inside(square, image.size):
        return "too near the photograph's edge"
    if box.size > options.max:
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
        if not isinstance(cut, str) and cut[0] == "HR" and source.name.startswith("wider/"):
            cut = f"over {options.max} px high: HR faces come from other sets"
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
    x, y, side = source.square(image.size)
    if side < HR_SIZE:
        return {"faces": [], "left_out": {"too small for an HR face": 1}}
    if is_grey(image):
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
    if options.boxes:
        folder = Path(options.photos) if options.photos else Path(options.boxes).parent
        for name, boxes in read_boxes(Path(options.boxes)).items():
            sources.append(Source(folder / name, f"photos/{_safe(name)}", name, "photograph", boxes=boxes))
    elif options.photos:
        photos = Path(options.photos)
        if not photos.exists():
            raise utils.UserError(f"--photos {photos} does not exist: name a folder of photographs")
        for path in [photos] if photos.is_file() else walk_files(photos, without=options.out):
            name = path.name if photos.is_file() else path.relative_to(photos).as_posix()
            sources.append(Source(path, f"photos/{name}", name, "photograph"))
    if not sources:
        raise utils.UserError("nothing to cut faces from: give --photos, --boxes, or a set such as --lfw (see --help)")
    return sources


def _safe(name: str) -> str:
    """A path out of a file of boxes as one that stays within the output folder."""
    return "/".join(part for part in Path(name).as_posix().split("/") if part not in ("", "..", "."))


class Records:
    """What came of each picture so far, on disk, so that an interrupted run resumes.

    Raises UserError if the output folder holds faces that were cut with other settings.
    """

    def __init__(self, path: Path, settings: dict) -> None:
        self.done: dict[str, dict] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:  # an interrupted run may have left its last line truncated: that picture is cut again
                continue
            if "settings" in record and record["settings"] != settings:
                changed = [f"--{key} {value}" for key, value in record["settings"].items() if settings[key] != value]
                raise utils.UserError(
                    f"{path.parent} holds faces that were cut with {' '.join(changed)}: give the same options, another"
                    " --out, or delete the folder"
                )
            if "name" in record:
                self.done[record["name"]] = record
        self.stream = open(path, "a", encoding="utf-8")
        if not self.done:
            self.add({"settings": settings})

    def add(self, record: dict) -> None:
        """Write a record; on a line of its own even after a truncated one."""
        self.stream.write(f"\n{json.dumps(record)}")
        self.stream.flush()

    def find(self, source: Source, stamp: list[int], out: Path) -> dict | None:
        """The record of a picture that has not changed since, and whose faces are still there."""
        record = self.done.get(source.name)
        boxes = [list(box) for box in source.boxes] if source.boxes is not None else None
        if record and record["stamp"] == stamp and record["boxes"] == boxes:
            return record if all((out / face["path"]).exists() for face in record["faces"]) else None
        return None


def make_faces(sources: list[Source], records: Records, detect: Detect | None, options: argparse.Namespace) -> list[dict]:
    """Cut the faces of all pictures, or take them from the records; returns a record a picture."""
    results, seen, shares = [], set(), Counter()
    for source in tqdm(sources, "cutting faces", unit="picture", leave=False, mininterval=0.5):
        try:
            status = os.stat(source.path)
        except OSError as error:
            result = {"name": source.name, "faces": [], "left_out": {f"cannot be read ({error.strerror})": 1}}
            tqdm.write(f"skipped: {source.path} cannot be read ({error.strerror})", file=sys.stderr)
            results.append(result)
            continue
        stamp = [status.st_size, status.st_mtime_ns]
        result = records.find(source, stamp, Path(options.out))
        if result is None:
            result = {"name": source.name, "stamp": stamp, "boxes": source.boxes, "path": os.path.abspath(source.path)}
            result |= cut_source(source, seen, shares, detect, options)
            result |= {"group": source.group, "split": source.split}
            records.add(result)
        if result["faces"] and source.kind == "HR":
            seen.add(result["digest"])
            shares.update([source.share[0]] if source.share else [])
        results.append(result)
    return results


def cut_source(
    source: Source, seen: set[str], shares: Counter, detect: Detect | None, options: argparse.Namespace
) -> dict:
    """The faces of one picture and, by reason, how many were left out; names a file that is no whole image."""
    if source.share and shares[source.share[0]] >= source.share[1]:
        return {"faces": [], "left_out": {f"more than {source.share[1]} of one person or group": 1}}
    try:
        image = load_image(source.path)
    except ImageError as error:
        tqdm.write(f"skipped: {source.path} {error}", file=sys.stderr)
        return {"faces": [], "left_out": {str(error).partition(" (")[0]: 1}}
    if source.kind == "photograph":
        return cut_photograph(source, image, detect, options)
    digest = hashlib.sha256(image.tobytes()).hexdigest()[:16]
    if digest in seen:
        return {"faces": [], "left_out": {"duplicate": 1}}
    return {"digest": digest, **cut_picture(source, image, options)}


# --- what is written beside the faces ----------------------------------------------------------------------------


def draw_test_groups(groups: list[str], fraction: float, rng: np.random.Generator) -> set[str]:
    """A random share of the people or photographs: at least one, and not all."""
    names = sorted(set(groups))
    count = min(max(1, round(fraction * len(names))), len(names) - 1)
    return {names[index] for index in rng.choice(len(names), count, replace=False)}


def make_table(results: list[dict], kind: str, fraction: float, seed: int) -> pd.DataFrame:
    """The faces of a kind with their split: the set's own, or drawn by person or photograph."""
    rows = [
        face | {"photograph": result["path"], "group": result["group"], "split": result["split"]}
        for result in results
        for face in result["faces"]
        if face["kind"] == kind
    ]
    table = pd.DataFrame(rows, columns=list(dict.fromkeys([*COLUMNS, "group", *(key for row in rows[:1] for key in row)])))
    drawn = table["split"] == ""
    if table["split"].nunique() == 1 and not drawn.all():
        print(f"these {kind} faces are all of the {table['split'].iloc[0]} part of their set: the split is drawn at random")
        drawn[:] = True
    if drawn.any() and len(table) > 1:
        groups = table["group"]
        if groups.nunique() == 1:
            print(f"the {kind} faces are all of one photograph or person: faces of it are in both lists", file=sys.stderr)
            groups = table["path"]
        test = draw_test_groups(list(groups[drawn]), fraction, np.random.default_rng([seed, kind == "LR"]))
        table.loc[drawn, "split"] = groups[drawn].isin(test).map({True: "test", False: "train"})
    return table


def write_outputs(tables: dict[str, pd.DataFrame], options: argparse.Namespace) -> None:
    """faces.csv, the lists, UTKFace's labels of the test faces, and the sheet."""
    out = Path(options.out)
    whole = pd.concat([table[COLUMNS] for table in tables.values() if len(table)])
    utils.write_atomic(out / "faces.csv", lambda temporary: whole.to_csv(temporary, index=False), flush=False)
    sheet = {}
    for kind, table in tables.items():
        for split in ("train", "test"):
            paths = [os.path.abspath(out / path) for path in table["path"][table["split"] == split]]
            if paths:
                write_list(paths, out / f"{kind}_{split}.csv")
        prepared = [
            prepare_hr(face, options.resize, options.crop) if kind == "HR" else prepare_lr(face)
            for face in (load_image(out / path) for path in table["path"][:SHEET_FACES])
        ]
        if prepared:
            faces = torch.from_numpy(np.stack([np.asarray(face) for face in prepared])).permute(0, 3, 1, 2)
            sheet[f"{kind}, as the network sees them"] = utils.to_unit_range(faces)
    if "race" in tables["HR"]:
        labelled = tables["HR"][(tables["HR"]["split"] == "test") & tables["HR"]["race"].notna()]
        labelled[["path", "age", "gender", "race"]].to_csv(out / "utk_test.csv", index=False)
    utils.save_sheet(out / "sheet.png", sheet, columns=16)
    print(f"{out / 'sheet.png'}: the first {SHEET_FACES} faces of each kind; {out / 'faces.csv'}: where each comes from")


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
    detector, detect = "", None
    if any(source.boxes is None and source.kind == "photograph" for source in sources):
        detector, detect = find_detector(options.detector)
        print(f"faces are found by {detector}", flush=True)
    settings = {key: getattr(options, key) for key in SETTINGS} | {"detector": detector}
    results = make_faces(sources, Records(Path(options.out, RECORDS), settings), detect, options)

    left_out: Counter = Counter()
    for result in results:
        left_out.update(result["left_out"])
    for reason, count in left_out.most_common():
        print(f"left out: {count} {reason}")
    tables = {kind: make_table(results, kind, options.test_fraction, options.seed) for kind in ("HR", "LR")}
    if not any(len(table) for table in tables.values()):
        raise utils.UserError(f"no face came out of {len(sources)} pictures; the reasons are counted above")
    write_outputs(tables, options)
    for kind, table in tables.items():
        print(f"{len(table)} {kind} faces of {table['photograph'].nunique()} pictures")
        if not len(table):
            print(f"training needs {kind} faces, too: {'--lfw, --celeba or --ffhq' if kind == 'HR' else '--wider or --photos'}")


if __name__ == "__main__":
    utils.run_script(main)

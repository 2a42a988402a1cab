"""Public sets of faces on the user's disk: where each is found, its terms, and its framing.

Nothing is downloaded. torchvision's CelebA and WIDERFace loaders are not used: they want
every archive of a set, where its pictures and one text file are enough here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from Datasets.boxes import Box, read_boxes
from utils import UserError

PER_PERSON = 30  # LFW: some people have hundreds of pictures
PER_GROUP = 3600  # UTKFace: of each of its five groups, so that the largest does not outweigh the others
FFHQ_TEST = 60000  # FFHQ's own split: its last 10,000 pictures are for validation

Square = Callable[[float, float], tuple[float, float, float]]  # (width, height) -> (centre x, centre y, side)

# What becomes the central 64 of 100 px. LFW's own framing comes first; the others are cut so that the eyes lie where LFW's
# do: in its central 200 of 250 px, reduced to 100 px, 22.6 px apart and 44 px from the top (CenterFace, 181 faces)
LFW_SIZE, LFW_SQUARE = (250, 250), (125.0, 125.0, 128.0)
# The eyes are at y = 111 px, 38.5 px apart (list_landmarks_align_celeba.txt)
CELEBA_SIZE, CELEBA_SQUARE = (178, 218), (89.0, 111 + 0.06 * 178, 0.64 * 178)


def ffhq_square(width: float, height: float) -> tuple[float, float, float]:
    """FFHQ's alignment: eyes a quarter of the side apart, 0.472 of it from the top; LFW's are 0.226 apart and at 0.44."""
    side = width * 0.25 / 0.226
    return width / 2, 0.472 * height + 0.06 * side, 0.64 * side


def utkface_square(width: float, height: float) -> tuple[float, float, float]:
    """The whole picture; it is still 1.2 times tighter than LFW by the distance of the eyes."""
    return width / 2, height / 2, float(min(width, height))


@dataclass
class Source:
    """A picture of a set, where its faces are, and what may be in one of the lists only.

    name: the faces' name in the output, unique. group: a person or a photograph; pictures of a group go to one list.
    kind: "HR" for a picture of one centred face, "photograph" for any number of faces. size: that the picture must have.
    boxes: a photograph's faces; None: to be detected. split: "train", "test" or "" (drawn at random). share: (name, most
    pictures of this name), where a person or a group is limited.
    """

    path: Path
    name: str
    group: str
    kind: str
    size: tuple[int, int] | None = None
    square: Square | None = None
    boxes: list[Box] | None = None
    split: str = ""
    share: tuple[str, int] | None = None
    labels: dict[str, str] = field(default_factory=dict)


class PublicSet(NamedTuple):
    """A set's title; where it is, with its terms and the files that are needed; and how to read it."""

    title: str
    where: str
    read: Callable[[Path], Iterator[Source]]


def missing(name: str, folder: Path, what: str) -> UserError:
    """The error for a folder that lacks what a set needs."""
    return UserError(f"{folder} {what}. {SETS[name].title} is at {SETS[name].where}")


def read_set(name: str, folder: Path) -> list[Source]:
    """All pictures of a public set in a fixed order; raises UserError where its files are not there."""
    if not folder.is_dir():
        raise missing(name, folder, "is not a folder")
    sources = list(SETS[name].read(folder))
    if not sources:
        raise missing(name, folder, "has no pictures of the set")
    return sources


def _find(known: str, folder: Path, *patterns: str) -> Path:
    """The first file or folder below `folder` that fits one of the patterns; archives are often unpacked a level deeper."""
    for pattern in patterns:
        for found in sorted(folder.rglob(pattern)):
            return found
    raise missing(known, folder, f"has no {patterns[0]}")


def _wider(folder: Path) -> Iterator[Source]:
    """Photographs with their boxes: of the validation part, or else of the training part."""
    annotation = _find("wider", folder, "wider_face_val_bbx_gt.txt", "wider_face_train_bbx_gt.txt")
    part = "WIDER_val" if "_val_" in annotation.name else "WIDER_train"
    images = _find("wider", folder, f"{part}/images")
    for name, boxes in read_boxes(annotation).items():
        yield Source(images / name, f"wider/{name}", name, "photograph", boxes=boxes)


def _lfw(folder: Path) -> Iterator[Source]:
    """deep-funneled pictures, PERSON/PERSON_0001.jpg; split by person, at most 30 pictures of each."""
    for path in sorted(folder.rglob("*.jpg")):
        person = path.parent.name
        if path.stem.rpartition("_")[0] == person and path.stem.rpartition("_")[2].isdigit():
            name, share = f"lfw/{person}/{path.name}", (person, PER_PERSON)
            yield Source(path, name, person, "HR", LFW_SIZE, lambda width, height: LFW_SQUARE, share=share)


def _celeba(folder: Path) -> Iterator[Source]:
    """Aligned and cropped pictures with the set's own split; its validation part is left out."""
    images = _find("celeba", folder, "img_align_celeba/*.jpg", "img_align_celeba/img_align_celeba/*.jpg").parent
    partition = _find("celeba", folder, "list_eval_partition.txt", "list_eval_partition.csv")
    separator = "," if partition.suffix == ".csv" else r"\s+"
    try:
        table = pd.read_csv(partition, sep=separator, names=["name", "part"], dtype=str)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise missing("celeba", partition, f"cannot be read ({error})") from error
    for row, (name, part) in enumerate(zip(table["name"], table["part"]), start=1):
        if part not in ("0", "1", "2"):
            if row == 1:  # the header
                continue
            raise UserError(f"{partition}, line {row}: expected a picture and 0, 1 or 2: use the set's own file")
        if part != "1":
            split, square = "train" if part == "0" else "test", lambda width, height: CELEBA_SQUARE
            yield Source(images / name, f"celeba/{name}", name, "HR", CELEBA_SIZE, square, split=split)


def _utkface(folder: Path) -> Iterator[Source]:
    """Aligned and cropped pictures, AGE_GENDER_RACE_DATE.jpg.chip.jpg, with their labels."""
    for path in sorted(folder.rglob("*.jpg.chip.jpg")):
        labels = path.name.split("_")
        if len(labels) == 4 and all(label.isdigit() for label in labels[:3]):  # a few of the set lack a label
            named, share = dict(zip(("age", "gender", "race"), labels)), (f"race {labels[2]}", PER_GROUP)
            yield Source(path, f"utkface/{path.name}", path.name, "HR", None, utkface_square, share=share, labels=named)


def _ffhq(folder: Path) -> Iterator[Source]:
    """images1024x1024 or thumbnails128x128, five digits a picture; the set's own split."""
    for path in sorted(folder.rglob("*.png")):
        if len(path.stem) == 5 and path.stem.isdigit():
            split = "test" if int(path.stem) >= FFHQ_TEST else "train"
            yield Source(path, f"ffhq/{path.name}", path.name, "HR", None, ffhq_square, split=split)


SETS = {
    "wider": PublicSet(
        "Wider Face", "http://shuoyang1213.me/WIDERFACE/ (terms: CC BY-NC-ND 4.0); needed are WIDER_val/images and "
        "wider_face_split/wider_face_val_bbx_gt.txt (or those of WIDER_train)", _wider,
    ),
    "lfw": PublicSet(
        "Labeled Faces in the Wild, deep-funneled,", "http://vis-www.cs.umass.edu/lfw/ (terms: research only); needed are the "
        "folders of people in lfw-deepfunneled, with PERSON/PERSON_0001.jpg of 250x250 px", _lfw,
    ),
    "celeba": PublicSet(
        "CelebA", "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (terms: non-commercial research only); needed are "
        "img_align_celeba and list_eval_partition.txt", _celeba,
    ),
    "utkface": PublicSet(
        "UTKFace", "https://susanqq.github.io/UTKFace/ (terms: non-commercial research only); needed are the aligned and "
        "cropped faces, AGE_GENDER_RACE_DATE.jpg.chip.jpg", _utkface,
    ),
    "ffhq": PublicSet(
        "FFHQ", "https://github.com/NVlabs/ffhq-dataset (terms: CC BY-NC-SA 4.0); needed are images1024x1024 or "
        "thumbnails128x128, with 00000.png and so on", _ffhq,
    ),
}  # fmt: skip

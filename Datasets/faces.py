"""Prepared faces: from the four lists to batches of HR, clean LR and real LR faces.

Every listed file is decoded once, before training starts, into an array of 8-bit crops on disk (in
`--cache`), so that a bad file shows at once, by name and row, and training reads nothing but
memory-mapped arrays.
"""

import contextlib
import errno
import functools
import glob
import hashlib
import itertools
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from Datasets import images
from Datasets.images import DamagedImageError, ImageError
from Datasets.lists import read_list
from models import HR_SIZE, LR_SIZE
from utils import UserError, ahead, plural, progress, thread_count

BAD_FILES_LIMIT = 0.01  # the share of a list's files that may fail to decode
CACHE_VERSION = 3
SHOWN_ROWS = 10  # of the rows with a problem, in a message; a table has them all
ZEROS = 1 << 20  # bytes that are written at a time to reserve a file's space
BLOCK = 4096  # rows that are copied at a time
ATTEMPTS = 3  # to read faces that were just prepared
ABANDONED = 24 * 3600  # seconds after which a temporary file is taken for that of a killed process

# --- one row -----------------------------------------------------------------------------------------------------

# A prepared row holds pictures of these sides, one after the other, each as uint8 [side, side, 3]
ROW_SIDES = {"HR": (HR_SIZE, LR_SIZE), "LR": (LR_SIZE,)}  # y and x_c; x_r


def row_bytes(kind: str) -> int:
    """The length of a prepared row of "HR" or "LR" faces."""
    return sum(3 * side * side for side in ROW_SIDES[kind])


def pack_row(pictures: tuple[Image.Image, ...]) -> bytes:
    """The pictures of one face, RGB -> its prepared row."""
    return b"".join(picture.tobytes() for picture in pictures)


def unpack_rows(rows: Tensor, kind: str) -> tuple[Tensor, ...]:
    """Prepared rows, uint8 [N, bytes] -> the pictures of N faces, uint8.

    HR: (y [N, 3, 64, 64], x_c [N, 3, 16, 16]); LR: (x_r [N, 3, 16, 16],).

    Each is dense in memory (channels last), so that it can be pinned and sent to a GPU at once.
    """
    parts = rows.split([3 * side * side for side in ROW_SIDES[kind]], dim=1)
    return tuple(
        part.contiguous().reshape(-1, side, side, 3).permute(0, 3, 1, 2) for side, part in zip(ROW_SIDES[kind], parts)
    )


# --- prepared faces ----------------------------------------------------------------------------------------------


class PreparedFaces:
    """One list's faces as 8-bit rows in a file: HR faces y with their clean LR faces x_c, or x_r.

    The file may be removed while this object lives: its rows stay readable here.
    """

    def __init__(self, path: Path, kind: str) -> None:
        """kind: "HR" or "LR". Raises FileNotFoundError for a file that is missing or truncated."""
        self.path = Path(path)
        self.kind = kind
        try:
            self._rows = np.memmap(self.path, np.uint8, "r").reshape(-1, row_bytes(kind))
        except (ValueError, NotADirectoryError) as error:  # ValueError: empty, or no whole number of rows
            raise FileNotFoundError(f"{self.path}: no prepared {kind} faces") from error

    def __len__(self) -> int:
        return len(self._rows)

    def size(self) -> int:
        """Bytes of all rows together."""
        return self._rows.nbytes

    def __getitem__(self, indices) -> tuple[Tensor, ...]:
        """HR: (y uint8 [N, 3, 64, 64], x_c uint8 [N, 3, 16, 16]); LR: (x_r uint8 [N, 3, 16, 16],)."""
        return unpack_rows(torch.from_numpy(np.array(self._rows[indices])), self.kind)


class ResidentFaces:
    """Prepared faces in the memory of a device, usually a GPU: batches need no copy from the host."""

    def __init__(self, faces: PreparedFaces, device: torch.device) -> None:
        self.kind = faces.kind
        self._rows = torch.empty(len(faces), row_bytes(self.kind), dtype=torch.uint8, device=device)
        for start in range(0, len(faces), BLOCK):
            rows = np.array(faces._rows[start : start + BLOCK])
            self._rows[start : start + len(rows)] = torch.from_numpy(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, indices: np.ndarray) -> tuple[Tensor, ...]:
        """As PreparedFaces, with the tensors on the device. indices: int64 [N], on the host."""
        return unpack_rows(self._rows[torch.from_numpy(indices).to(self._rows.device)], self.kind)


def load_faces(
    data: str | os.PathLike, kind: str, part: str, cache: str | os.PathLike = "", resize: int = 100, crop: int = 64
) -> PreparedFaces:
    """The prepared faces of a data folder's list, such as ("HR", "train"); as `prepare_faces`.

    cache: the folder of the prepared faces; empty: .cache in the data folder.
    """
    return prepare_faces(Path(data, f"{kind}_{part}.csv"), kind, Path(cache or Path(data, ".cache")), resize, crop)


def prepare_faces(path: Path, kind: str, cache: Path, resize: int = 100, crop: int = 64) -> PreparedFaces:
    """Check a list and decode its files into `cache`, or take the faces that are there already.

    path: the list. kind: "HR" or "LR". resize, crop: of HR faces, in px, as prepare_hr takes them.
    Raises UserError, naming file, row and remedy, for a list that cannot be used: a file that is
    missing, unreadable, not an image, or (HR) under 64 px, and more than 1 % of files that fail to
    decode. Fewer are reported and left out, as are files such as ._name.png, which macOS writes.
    """
    path, cache = Path(path), Path(cache)
    rows = read_list(path)
    files = rows.drop_duplicates()
    decode = functools.partial(_decode, kind=kind, resize=resize, crop=crop)
    with ThreadPoolExecutor(thread_count()) as pool:
        states = list(ahead(pool, _stat, files))
        missing = {row: f"cannot be read ({state})" for row, state in zip(files.index, states) if isinstance(state, str)}
        if missing:
            _refuse(path, missing, files, cache)
        name, key = _cache_names(path, rows, states, kind, resize, crop)
        target = cache / f"{name}-{key}.faces"
        for _ in range(ATTEMPTS):
            try:
                return PreparedFaces(target, kind)
            except FileNotFoundError:  # not prepared yet, or removed since then by another program
                for line in _write_faces(pool, path, rows, target, decode):
                    print(line, flush=True)
                _remove_old(cache, name, target)
    raise UserError(f"the prepared faces {target} vanish as soon as they are written: name another folder with --cache")


def _cache_names(
    path: Path, rows: pd.Series, states: list[tuple[int, int]], kind: str, resize: int, crop: int
) -> tuple[str, str]:
    """The prepared file's name, of the list's place and the framing, and its content's key.

    Each framing has a file of its own. Real LR faces do not depend on it. Several data folders can
    share a cache.
    """
    place = hashlib.sha256(os.path.abspath(path).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    framing = [resize, crop] if kind == "HR" else []
    key = hashlib.sha256(json.dumps([CACHE_VERSION, kind, framing, ROW_SIDES[kind]]).encode())
    key.update("\n".join(rows).encode("utf-8", "surrogateescape"))
    key.update(json.dumps(states).encode())
    return "-".join([path.stem, place, *map(str, framing)]), key.hexdigest()[:24]


def _remove_old(cache: Path, name: str, target: Path) -> None:
    """Remove the faces of earlier states of a list, and temporary files of processes that were killed."""
    old = [file for file in cache.glob(f"{glob.escape(name)}-*.faces") if file != target]
    for file in [*old, *cache.glob("*.faces.*.tmp")]:
        with contextlib.suppress(OSError):  # another program was faster, or (on Windows) reads the file
            if file.suffix == ".faces" or time.time() - file.stat().st_mtime > ABANDONED:
                file.unlink()


def _write_faces(pool: ThreadPoolExecutor, path: Path, rows: pd.Series, target: Path, decode: Callable) -> list[str]:
    """Decode the files of a list into a new prepared file; returns what there is to say."""
    files, cache, kind = rows.drop_duplicates(), target.parent, decode.keywords["kind"]
    size = len(rows) * row_bytes(kind)
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(cache).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with open(temporary, "wb+") as stream:
            for start in range(0, size, ZEROS):  # a write through a map to a full disk would end the process
                stream.write(bytes(min(ZEROS, size - start)))
            stream.flush()
            faces = np.memmap(stream, np.uint8, "r+", shape=(len(rows), row_bytes(kind)))
            bad, said = _decode_files(pool, path.name, rows, faces, decode)
            lines = _judge(path, bad, files, cache)
            kept = np.flatnonzero(~rows.isin(files[list(bad)]))
            for start in range(0, len(kept) if bad else 0, BLOCK):
                chosen = kept[start : start + BLOCK]
                faces[start : start + len(chosen)] = faces[chosen]  # a copy first; rows only move forward
            faces.flush()
            del faces
            stream.truncate(len(kept) * row_bytes(kind))
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except OSError as error:
        folder = next(folder for folder in [cache, *cache.absolute().parents] if folder.exists())
        raise UserError(
            f"cannot write prepared faces to {cache} ({error.strerror or error}): those of {path.name} take {size:,} bytes, "
            f"{shutil.disk_usage(folder).free:,} are free. Free some space, or name another folder with --cache"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return lines + said.lines()


def _decode(file: str, kind: str, resize: int, crop: int) -> tuple[bytes | str | ImageError, tuple[str, ...]]:
    """The prepared row of a file, or why not; and the notes on its image."""
    try:
        image = images.load_image(file, resize if kind == "HR" else LR_SIZE)
    except ImageError as error:
        return error, ()
    if kind == "LR":
        return pack_row((images.prepare_lr(image),)), images.notes(image) + images.too_large(image)
    if reason := images.too_small(image):
        return reason, ()
    small = f"under --resize {resize} px: enlarged targets are blurred; for tightly cropped faces use --resize {HR_SIZE}"
    return pack_row(images.prepare_pair(image, resize, crop)), images.notes(image) + (small,) * (min(image.size) < resize)


def _decode_files(
    pool: ThreadPoolExecutor, title: str, rows: pd.Series, faces: np.ndarray, decode: Callable
) -> tuple[dict[int, str | ImageError], images.Notes]:
    """Decode each file once into all its rows; returns the rows that are bad, with the reasons, and the notes."""
    files = rows.drop_duplicates()
    numbers = pd.factorize(rows)[0]
    places = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])
    bad, said = {}, images.Notes()
    with progress(desc=f"preparing {title}", total=len(files), unit="image", leave=False) as bar:
        for row, file, place, (face, notes) in zip(files.index, files, places, ahead(pool, decode, files)):
            bar.update()
            said.add(file, notes)
            if isinstance(face, bytes):
                faces[place] = np.frombuffer(face, np.uint8)
            else:
                bad[row] = face
    return bad, said


def _judge(path: Path, bad: dict[int, str | ImageError], files: pd.Series, cache: Path) -> list[str]:
    """What to say of the files that are left out; UserError if they may not be, or are too many."""
    system = {row for row in bad if images.is_system_file(PurePath(files[row]).name) or "__MACOSX" in files[row]}
    damaged = {row for row, why in bad.items() if isinstance(why, DamagedImageError)} - system
    if len(bad) == len(files):
        _refuse(path, bad, files, cache)
    if len(damaged) + len(system) < len(bad) or len(damaged) > BAD_FILES_LIMIT * len(files):
        _refuse(path, {row: why for row, why in bad.items() if row not in system}, files, cache)
    return _bad_rows(path, {row: f"{why}; it is left out" for row, why in bad.items()}, files, cache)


def _stat(file: str) -> tuple[int, int] | str:
    """(size in bytes, time in ns) of a file that can be opened, else the reason as text."""
    try:
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):
            return "not a regular file"
        with open(file, "rb"):
            return status.st_size, status.st_mtime_ns
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)


def _refuse(path: Path, reasons: dict[int, str | ImageError], files: pd.Series, cache: Path) -> None:
    """Raise a UserError that names the first bad rows of a list and a table of all of them."""
    total = f"{len(reasons)} of {plural(len(files), 'file')} cannot be used"
    remedy = "fix the files, or remove their rows from the list (Datasets/make_csv.py makes lists without such files)"
    raise UserError("\n".join([*_bad_rows(path, reasons, files, cache), f"{total}: {remedy}"]))


def _bad_rows(path: Path, reasons: dict[int, str | ImageError], files: pd.Series, cache: Path) -> list[str]:
    """A line on each of the first bad rows of a list, and one that names a table with all of them, if they are many."""
    lines = [f"{path}, row {row}: {files[row]} {why}" for row, why in list(reasons.items())[:SHOWN_ROWS]]
    if len(reasons) <= SHOWN_ROWS:
        return lines
    table = cache / f"{path.stem}_left_out.csv"
    where = str(table)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        rows = [(row, files[row].encode("utf-8", "backslashreplace").decode(), str(why)) for row, why in reasons.items()]
        pd.DataFrame(rows, columns=["row", "path", "reason"]).to_csv(table, index=False)
    except OSError as error:
        where = f"{table}, which could not be written ({error.strerror})"
    return [*lines, f"... and {len(reasons) - SHOWN_ROWS} more, all in {where}"]


# --- batches -----------------------------------------------------------------------------------------------------


def batch_indices(
    hr_length: int, lr_length: int, batch_size: int, seed: int, start: int, stop: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The HR and LR indices [N] of every batch of a run, a function of the seed and the iteration alone.

    HR and LR faces go through one random permutation after another, independently: every face is
    drawn once before any is drawn again, and an HR face meets another LR partner each time. A run
    that continues starts at its own iteration; of several processes each takes its part of the
    same global batch.
    """
    part = slice(rank * batch_size // world, (rank + 1) * batch_size // world)

    def stream(kind: int, length: int) -> Iterator[np.ndarray]:
        passes, position = divmod(start * batch_size, length)
        pending = np.empty(0, dtype=np.int64)
        while True:
            while len(pending) < batch_size:
                order = np.random.default_rng([seed, kind, passes]).permutation(length)
                pending = np.concatenate([pending, order[position:]])
                passes, position = passes + 1, 0
            batch, pending = pending[:batch_size], pending[batch_size:]
            yield batch[part]

    return itertools.islice(zip(stream(0, hr_length), stream(1, lr_length)), max(0, stop - start))

"""Prepared faces: from the four lists to batches of HR, clean LR and real LR faces.

Every listed file is decoded once, before training starts, into an array of 8-bit crops on disk (in `--cache`), so that a
bad file shows at once, by name and row, and training reads nothing but memory-mapped arrays.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from Datasets.images import DamagedImageError, ImageError, load_image, prepare_hr, prepare_lr
from Datasets.lists import read_list
from models import HR_SIZE, LR_SIZE
from utils import UserError

BAD_FILES_LIMIT = 0.01  # the share of a list's files that may fail to decode
CACHE_VERSION = 1


# --- prepared faces ----------------------------------------------------------------------------------------------


class PreparedFaces:
    """The faces of one list as 8-bit arrays on disk: HR crops with their clean LR faces, or real LR faces.

    Opened when first used, so that it can be handed to a worker process without its contents.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.kind = kind
        self.length = len(np.load(path, mmap_mode="r"))
        self._faces: np.ndarray | None = None

    def __len__(self) -> int:
        return self.length

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_faces": None}

    def __getitem__(self, indices) -> tuple[Tensor, ...]:
        """HR: (y uint8 [N, 3, 64, 64], x_c uint8 [N, 3, 16, 16]); LR: (x_r uint8 [N, 3, 16, 16],)."""
        if self._faces is None:
            self._faces = np.load(self.path, mmap_mode="r")
        faces = torch.from_numpy(np.array(self._faces[indices]))
        split = HR_SIZE * HR_SIZE * 3 if self.kind == "HR" else 0
        parts = [faces[:, split:].reshape(-1, LR_SIZE, LR_SIZE, 3)]
        if split:
            parts.insert(0, faces[:, :split].reshape(-1, HR_SIZE, HR_SIZE, 3))
        return tuple(part.permute(0, 3, 1, 2) for part in parts)


def prepare_faces(path: Path, kind: str, cache: Path, resize: int = 100, crop: int = 64) -> PreparedFaces:
    """Check a list and decode its files into `cache`, or take the arrays that are there if nothing changed.

    path: the list. kind: "HR" or "LR". The cache's key holds the rows, the files' sizes and times and the framing.
    Raises UserError, naming file, row and remedy, for a list that cannot be used: a file that is missing, unreadable, not
    an image, or (HR) under 64 px, and more than 1 % of files that fail to decode. Fewer are reported and left out.
    """
    rows = read_list(path)
    files = rows.drop_duplicates()
    with ThreadPoolExecutor() as pool:
        stats = pd.Series(list(pool.map(_stat, files)), index=files.index)
        missing = stats[stats.map(lambda found: isinstance(found, str))]
        if len(missing):
            _raise_rows(path, missing.map(lambda why: f"cannot be read ({why})"), files)

        key = hashlib.sha256(json.dumps([CACHE_VERSION, kind, resize, crop, HR_SIZE, LR_SIZE]).encode())
        key.update("\n".join(rows).encode("utf-8", "surrogateescape"))
        key.update(json.dumps(list(stats)).encode())
        # Named after the list's place, too: several data folders can share a cache
        name = f"{Path(path).stem}-{hashlib.sha256(os.path.abspath(path).encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"
        target = Path(cache) / f"{name}-{key.hexdigest()[:24]}.npy"
        if target.exists():
            return PreparedFaces(target, kind)

        enlarged: list[str] = []

        def decode(file: str):
            try:
                image = load_image(file)
            except ImageError as error:
                return error  # damaged ones are counted first, and stop the run if they are many
            if kind == "LR":
                return np.asarray(prepare_lr(image)).reshape(-1)
            if min(image.size) < HR_SIZE:
                return f"is {image.width}x{image.height} px; HR faces need a shorter side of at least {HR_SIZE} px"
            if min(image.size) < resize:
                enlarged.append(file)
            hr = prepare_hr(image, resize, crop)
            return np.concatenate([np.asarray(hr).reshape(-1), np.asarray(prepare_lr(hr)).reshape(-1)])

        size = (HR_SIZE**2 * (kind == "HR") + LR_SIZE**2) * 3
        temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            faces = np.lib.format.open_memmap(temporary, "w+", np.uint8, (len(files), size))
        except OSError as error:
            raise UserError(f"cannot write prepared faces to {cache} ({error}): name a folder with --cache") from error
        try:
            bad = {}
            bar = tqdm(pool.map(decode, files), f"preparing {Path(path).name}", len(files), unit="image", leave=False)
            for number, (row, face) in enumerate(zip(files.index, bar)):
                if isinstance(face, np.ndarray):
                    faces[number] = face
                else:
                    bad[row] = face
            fatal = {row: why for row, why in bad.items() if not isinstance(why, DamagedImageError)}
            if fatal:
                _raise_rows(path, pd.Series(fatal), files)
            if len(bad) > BAD_FILES_LIMIT * len(files):
                _raise_rows(path, pd.Series(bad), files)
            for row, why in bad.items():
                print(f"{path}, row {row}: {files[row]} {why}; other faces are drawn in its place", flush=True)
            if enlarged:
                print(
                    f"{path}: {len(enlarged)} of {len(files)} images, such as {min(enlarged)}, are smaller than --resize "
                    f"{resize} px and were enlarged: the targets are blurred. Tightly cropped faces want --resize {HR_SIZE}",
                    flush=True,
                )
            # Rows that repeat a file count as often as they are listed; damaged ones are left out
            position = pd.Series(range(len(files)), index=files.values).drop(files[list(bad)].values)
            order = rows.map(position).dropna().astype(np.int64).to_numpy()
            if bad or len(rows) > len(files):
                listed = np.lib.format.open_memmap(f"{temporary}2", "w+", np.uint8, (len(order), size))
                for start in range(0, len(order), 4096):
                    listed[start : start + 4096] = faces[order[start : start + 4096]]
                listed.flush()
                del listed
                os.replace(f"{temporary}2", temporary)
            else:
                faces.flush()
            del faces
            os.replace(temporary, target)
        finally:
            for leftover in (temporary, Path(f"{temporary}2")):
                leftover.unlink(missing_ok=True)
    for old in target.parent.glob(f"{name}-*.npy"):
        if old != target:
            old.unlink()
    return PreparedFaces(target, kind)


def _stat(file: str) -> tuple[int, int] | str:
    """(size in bytes, time in ns) of a file that can be opened, else the reason as text."""
    try:
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):
            return "not a regular file"
        with open(file, "rb"):
            return status.st_size, status.st_mtime_ns
    except FileNotFoundError:
        return "no such file"
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)


def _raise_rows(path: Path, reasons: pd.Series, files: pd.Series) -> None:
    """Raise a UserError that names the first bad rows of a list and how many there are."""
    lines = [f"{path}, row {row}: {files[row]} {why}" for row, why in reasons.iloc[:10].items()]
    if len(reasons) > 10:
        lines.append(f"... and {len(reasons) - 10} more")
    total = f"{len(reasons)} of the {len(files)} files cannot be used"
    raise UserError("\n".join([*lines, f"{total}: mend the files, or remove their rows from the list"]))


# --- batches -----------------------------------------------------------------------------------------------------


class FaceBatches(Dataset):
    """HR faces with their clean LR faces and, if `lr` is given, unpaired real LR faces; indexed by whole batches."""

    def __init__(self, hr: PreparedFaces, lr: PreparedFaces | None = None) -> None:
        self.hr = hr
        self.lr = lr

    def __getitem__(self, indices: tuple[np.ndarray, np.ndarray]) -> tuple[Tensor, ...]:
        """(HR indices [N], LR indices [N]) -> uint8 y [N, 3, 64, 64], x_c [N, 3, 16, 16] (and x_r [N, 3, 16, 16])."""
        hr_indices, lr_indices = indices
        return self.hr[hr_indices] + (self.lr[lr_indices] if self.lr else ())


class BatchIndices(Sampler):
    """The indices of every batch of a run, a function of the seed and the iteration alone.

    HR and LR faces go through one random permutation after another, independently: every face is drawn once before any is
    drawn again, and an HR face meets another LR partner each time. A run that continues starts at its own iteration;
    of several processes each takes its part of the same global batch.
    """

    def __init__(
        self, hr_length: int, lr_length: int, batch_size: int, seed: int, start: int, stop: int, rank: int = 0, world: int = 1
    ) -> None:
        self.lengths = (hr_length, lr_length)
        self.batch_size, self.seed, self.start, self.stop = batch_size, seed, start, stop
        self.part = slice(rank * batch_size // world, (rank + 1) * batch_size // world)

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        streams = [self._stream(kind, length) for kind, length in enumerate(self.lengths)]
        for _ in range(self.start, self.stop):
            hr_indices, lr_indices = (next(stream) for stream in streams)
            yield hr_indices, lr_indices

    def _stream(self, kind: int, length: int) -> Iterator[np.ndarray]:
        """This process's part of each global batch of one list, from the start iteration on."""
        passes, position = divmod(self.start * self.batch_size, length)
        pending = np.empty(0, dtype=np.int64)
        while True:
            while len(pending) < self.batch_size:
                order = np.random.default_rng([self.seed, kind, passes]).permutation(length)
                pending = np.concatenate([pending, order[position:]])
                passes, position = passes + 1, 0
            batch, pending = pending[: self.batch_size], pending[self.batch_size :]
            yield batch[self.part]

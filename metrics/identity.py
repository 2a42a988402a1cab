"""Does SR still look like the person? Distances of dlib's face descriptors: they judge networks, they identify nobody."""

import importlib.util
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.spatial.distance import cdist
from torch import Tensor

import utils
from metrics.inputs import to_images

FACES = 250  # that SR of the clean input is compared with
DEGRADED_FACES = 200  # and SR of each kind of input
KINDS = ["clean", "blur", "noise", "jpeg", "mixed"]
CHIP = 150  # px, the side of the pictures that dlib's network takes
BATCH = 32  # chips
NETWORK = "dlib_face_recognition_resnet_model_v1.dat"
INSTALL = "pip install dlib-bin face-recognition-models"


def load_network() -> Any:
    """dlib's face recognition network. Raises UserError if one of its two packages is missing or its file is damaged."""
    try:
        import dlib
    except ImportError as error:
        raise utils.UserError(f"--identity needs dlib ({error}): {INSTALL}") from error
    # Not imported: it would want pkg_resources, which new Pythons lack
    package = importlib.util.find_spec("face_recognition_models")
    folders = (package.submodule_search_locations or []) if package else []
    files = [file for folder in folders if (file := Path(folder, "models", NETWORK)).exists()]
    if not files:
        raise utils.UserError(f"--identity needs face_recognition_models, with its {NETWORK}: {INSTALL}")
    try:
        return dlib.face_recognition_model_v1(str(files[0]))
    except RuntimeError as error:
        raise utils.UserError(f"--identity: {files[0]} cannot be used ({error}): {INSTALL} --force-reinstall") from error


class Judge:
    """Compares SR with HR faces."""

    def __init__(self, y: Tensor, chosen: np.ndarray) -> None:
        """y: HR faces, uint8 [N, 3, 64, 64]; chosen: which of them are looked at."""
        self.network, self.chosen = load_network(), chosen
        self.hr = self.descriptors(y[chosen], "HR_test")

    def descriptors(self, faces: Tensor, title: str) -> np.ndarray:
        """uint8 [N, 3, 64, 64] -> [N, 128]; the faces are enlarged to 150 px as they are, without a search for landmarks."""
        chips = [np.asarray(image.resize((CHIP, CHIP), Image.Resampling.BICUBIC)) for image in to_images(faces)]
        found: list[np.ndarray] = []
        for start in utils.progress(range(0, len(chips), BATCH), desc=f"identity, {title}", unit="batch", leave=False):
            found += map(np.array, self.network.compute_face_descriptor(chips[start : start + BATCH]))
        return np.stack(found)

    def __call__(self, make: Callable[[str, np.ndarray], Tensor], can: Collection[str], title: str) -> dict[str, float]:
        """Name, as in IDENTITY_DEFINITIONS -> value; a measure whose kinds are not all there is left out.

        make: (kind of input, which faces) -> SR, uint8 [N, 3, 64, 64]. can: the kinds that it can make.
        """
        row, recognised = {}, {}
        for kind in [kind for kind in KINDS if kind in can]:
            chosen = self.chosen if kind == "clean" else self.chosen[:DEGRADED_FACES]
            parts = np.split(chosen, range(BATCH, len(chosen), BATCH))
            found = self.descriptors(torch.cat([make(kind, part).cpu() for part in parts]), f"{title}, {kind}")
            recognised[kind] = compare(found[:DEGRADED_FACES], self.hr[:DEGRADED_FACES])["recognised"]
            row |= compare(found, self.hr) if kind == "clean" else {f"recognised_{kind}": recognised[kind]}
        if len(recognised) == len(KINDS):
            row["recognised_degraded"] = np.mean([*recognised.values()])
        return row


def compare(sr: np.ndarray, hr: np.ndarray) -> dict[str, float]:
    """Descriptors [N, d] of the same faces in the same order, N at least 2 -> the measures of IDENTITY_DEFINITIONS."""
    distances = cdist(sr, hr)
    own = distances.diagonal()[:, None]
    others = distances[~np.eye(len(sr), dtype=bool)].reshape(len(sr), -1)
    return {
        "identity_own": own.mean(),
        "identity_others": others.mean(),
        "identity_nearer": (own < others).mean(),
        "recognised": (own < others).all(axis=1).mean(),
    }

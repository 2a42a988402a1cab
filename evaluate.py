"""Measure the method's claims: realism on real faces, fidelity, robustness, and the degradation itself.

python evaluate.py                                                        # the user's own weights, or the shipped ones
python evaluate.py --weights a/sr.pth b/sr.pth --features mobilenet_v2.pth --limit 200

Needs torchmetrics and, for --features inception, torch-fidelity: pip install torchmetrics torch-fidelity
Prints a table, and writes --out (JSON: the same numbers, what each one is, and the protocol) and a sheet of pictures beside it.
"""

import argparse
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

import utils
from Datasets.faces import prepare_faces
from Datasets.images import prepare_lr
from losses import PerceptualLoss, feature_points, sinkhorn_distance
from losses.perceptual import IMAGENET_DEVIATION, IMAGENET_MEAN
from models import HR_SIZE, LR_SIZE, DegradationGenerator
from utils import to_bytes, to_unit_range

INSTALL = "pip install torchmetrics torch-fidelity"
FEW_IMAGES = 2048  # Frechet distances of fewer images are biased upwards, more so the fewer they are
DRAWS = 4  # of z, for each face
BLUR = 3.0  # px of the HR face, standard deviation
NOISE = 15.0  # of 255, standard deviation, on the LR face
JPEG_QUALITY = 30
EXPLODED = (0.2, 1.2)  # an image with more than this share of values beyond this, before clamping, has exploded

DEGRADATIONS = [*(f"z {draw}" for draw in range(1, DRAWS + 1)), "blur", "noise", "jpeg", "bilinear"]
INPUTS = ["clean", "mixed", *DEGRADATIONS]
DRAWN, FIXED = DEGRADATIONS[:DRAWS], DEGRADATIONS[DRAWS:]  # the degradation generator's, and those that no network makes
FIDELITY = {"clean": ["clean"], "degraded": DRAWN, "mixed": ["mixed"]}  # column -> kinds of inputs

DEFINITIONS = {
    "real_fd": "Frechet distance between SR of the faces of LR_test and the crops of HR_test; lower is better",
    "psnr_clean": "PSNR of SR of the clean LR face x_c against y; dB, RGB, 8 bits, the mean of the images' dB",
    "psnr_degraded": f"the same for x_d = G(x_c, z), {DRAWS} draws of z an image",
    "psnr_mixed": "the same for alpha x_c + (1 - alpha) x_d, the first draw of z",
    "ssim_clean": "SSIM of SR of x_c against y; RGB, 8 bits, torchmetrics' default window",
    "ssim_degraded": f"the same for x_d, {DRAWS} draws of z an image",
    "ssim_mixed": "the same for the mix",
    "perceptual_clean": "the training loss' perceptual distance of SR of x_c to y; its scale is that of the perceptual network",
    "perceptual_degraded": f"the same for x_d, {DRAWS} draws of z an image",
    "perceptual_mixed": "the same for the mix",
    "psnr_eight": "PSNR against y, the mean over the eight degradations of each face",
    **{f"psnr_{kind}": f"the same for {kind} alone" for kind in FIXED},
    "consistency": "mean PSNR between the SR of each two of the eight degradations of a face; dB. Read it beside psnr_eight",
    "consistency_z": f"the same between the {DRAWS} draws of z alone",
    **{f"consistency_{kind}": f"the same between {kind} and each of the seven others" for kind in FIXED},
    "feature_gap": "Sinkhorn distance between E(x_c) and E of the eight degradations, divided by that between E(x_c) of "
    "different faces; lower is better",
    "saturated_real": "share of values outside [-1, 1] before clamping, SR of LR_test",
    "saturated_test": "the same, SR of all inputs made from HR_test",
    "exploded_real": f"share of images with more than {EXPLODED[0]:.0%} of values beyond {EXPLODED[1]}, SR of LR_test",
    "exploded_test": "the same, SR of all inputs made from HR_test",
}  # fmt: skip
DEGRADATION_DEFINITIONS = {
    "psnr": f"PSNR of x_d against x_c, 16x16 px, {DRAWS} draws of z an image: does it still show the face?",
    "fd": "Frechet distance to the real faces of LR_test, all enlarged by bicubic interpolation: does it look like them? "
    "x_d: one draw of z an image. Floor: {floor} faces of LR_train",
}

Upscale = Callable[[Tensor], Tensor]  # uint8 [N, 3, 16, 16] -> [N, 3, 64, 64] in about [-1, 1], before clamping


def build_parser() -> utils.Parser:
    parser = utils.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.option
    option("data", "Datasets", "folder of HR_train.csv, HR_test.csv, LR_train.csv and LR_test.csv", metavar="DIR")
    option("cache", "", "folder of the prepared faces; empty: .cache in the data folder", metavar="DIR")
    option("weights", [], "one or more sr.pth; none: Trained_Models/sr.pth, or else weights/sr.pth", nargs="+", type=str)
    option("h2l", "", "degradation generator; empty: Trained_Models/h2l.pth, or else weights/h2l.pth")
    option("out", "Results/metrics.json", "the JSON; the sheet is written beside it")
    option("features", "inception", "inception (FID), or a state dict of torchvision's MobileNetV2 (FD-MobileNetV2)")
    option("vgg-weights", "imagenet", "perceptual network: imagenet, random, or a state dict, as for train.py")
    parser.add_argument("--self-ensemble", action="store_true", help="a second row for each file: test.py --self-ensemble")
    option("limit", 0, "measure on so many faces of each test list, chosen by seed; 0: all")
    option("alpha", 0.3, "part of the clean face in the mixed inputs, the same for all rows", "paper")
    option("resize", 100, "px that the shorter side of an HR image is resized to")
    option("crop", 64, "px of the resized image's centre that become the 64x64 HR face")
    option("seed", 0, "seed of the degradations, of the floor's faces and of the faces on the sheet")
    option("batch-size", 64, "faces in a batch; the results do not depend on it")
    option("device", "auto", "auto: the GPU if there is one")
    option("precision", "fp32", "of all networks; bf16 is for a quick look", choices=("fp32", "bf16"))
    return parser


# --- feature networks of the Frechet distance --------------------------------------------------------------------


class MobileNetFeatures(nn.Module):
    """MobileNetV2's pooled features: uint8 [N, 3, H, W], resized to 224 px (bilinear) -> [N, 1280]."""

    num_features = 1280

    def __init__(self, path: Path) -> None:
        super().__init__()
        network = torchvision.models.mobilenet_v2()
        remedy = "--features takes inception or a state dict of torchvision's mobilenet_v2()"
        weights = utils.load_tensors(path, remedy)
        if not isinstance(weights, dict):
            raise utils.UserError(f"{path} is not a state dict: {remedy}")
        utils.load_weights(network, weights, path)
        self.layers = network.features.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        images = functional.interpolate(images.float() / 255, size=(224, 224), mode="bilinear", align_corners=False)
        images = transforms.normalize(images, IMAGENET_MEAN, IMAGENET_DEVIATION)
        return self.layers(images.contiguous(memory_format=torch.channels_last)).float().mean(dim=(2, 3))


class Frechet:
    """Frechet distances to fixed references, by torchmetrics, in float64, with one feature network for all."""

    def __init__(self, features: str, device: torch.device, autocast: Callable[[], torch.autocast]) -> None:
        """features: "inception" or the path of MobileNetV2's state dict. Raises UserError with the remedy."""
        try:
            from torchmetrics.image.fid import FrechetInceptionDistance
        except ImportError as error:
            raise utils.UserError(f"evaluate.py needs {error.name}: {INSTALL}") from error
        self.name = "FID" if features == "inception" else "FD-MobileNetV2"
        self.device, self.autocast = device, autocast
        try:
            network = 2048 if features == "inception" else MobileNetFeatures(Path(features))
            self.new = lambda: FrechetInceptionDistance(network, reset_real_features=False).to(device)
            network = self.new().inception
        except ModuleNotFoundError as error:
            raise utils.UserError(f"--features inception needs torch-fidelity: {INSTALL}") from error
        except OSError as error:
            raise utils.UserError(
                f"--features inception: the download of the FID network failed ({error}). Without a network, give"
                " --features PATH, a state dict of torchvision's MobileNetV2"
            ) from error

    def reference(self, images: Iterator[Tensor], title: str):
        """A metric that measures distances to these images: batches of uint8 [N, 3, H, W]."""
        metric = self.new()
        self._update(metric, images, title, real=True)
        return metric

    def distance(self, metric, images: Iterator[Tensor], title: str) -> float:
        """The distance of these images, batches of uint8 [N, 3, H, W], to the metric's reference."""
        metric.reset()
        self._update(metric, images, title, real=False)
        return metric.compute().item()

    def _update(self, metric, images: Iterator[Tensor], title: str, real: bool) -> None:
        with torch.inference_mode(), self.autocast():
            for batch in tqdm(images, desc=f"{self.name} features, {title}", unit="batch", leave=False):
                metric.update(batch.to(self.device), real=real)


# --- inputs ------------------------------------------------------------------------------------------------------


def bicubic(faces: Tensor) -> Tensor:
    """The baseline: Pillow's bicubic filter x4, uint8 [N, 3, 16, 16] -> [N, 3, 64, 64] in about [-1, 1]."""
    # antialias selects Pillow's filter (a = -0.5); it has no other effect on an enlargement
    return functional.interpolate(to_unit_range(faces), size=(HR_SIZE, HR_SIZE), mode="bicubic", antialias=True)


def to_images(faces: Tensor) -> Iterator[Image.Image]:
    """uint8 [N, 3, H, W] -> Pillow's images."""
    return map(Image.fromarray, faces.permute(0, 2, 3, 1).numpy())


def from_images(images: Iterable[Image.Image]) -> Tensor:
    """Pillow's images of one size -> uint8 [N, 3, H, W]."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def compress(image: Image.Image) -> Image.Image:
    """What JPEG keeps of an image."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=JPEG_QUALITY)
    return Image.open(stream)


def make_inputs(y: Tensor, clean: Tensor, indices: np.ndarray, seed: int, alpha: float, degrade: Upscale) -> dict[str, Tensor]:
    """Every kind of input of INPUTS from HR faces y, uint8 [N, 3, 64, 64], and x_c, uint8 [N, 3, 16, 16].

    indices: the faces' places in their list: an image's draws depend on the seed and on these alone. degrade: G, from x_c in
    [-1, 1] and z to x_d. Every input is rounded to 8 bits, as files are.
    """
    draws = [np.random.default_rng([seed, index]) for index in indices]
    size = (DRAWS, DegradationGenerator.noise_channels)
    z = torch.from_numpy(np.stack([rng.standard_normal(size, np.float32) for rng in draws]))
    noise = torch.from_numpy(np.stack([rng.standard_normal((3, LR_SIZE, LR_SIZE), np.float32) for rng in draws]))
    x_c = to_unit_range(clean)
    x_d = [degrade(x_c, z[:, draw]).clamp(-1, 1) for draw in range(DRAWS)]
    blurred = transforms.gaussian_blur(y, kernel_size=6 * int(BLUR) + 1, sigma=BLUR)
    return {
        "clean": clean,
        "mixed": to_bytes(alpha * x_c + (1 - alpha) * x_d[0]),
        **{f"z {draw + 1}": to_bytes(faces) for draw, faces in enumerate(x_d)},
        "blur": from_images(prepare_lr(image) for image in to_images(blurred)),
        "noise": (clean + NOISE * noise).round().clamp(0, 255).to(torch.uint8),
        "jpeg": from_images(compress(image) for image in to_images(clean)),
        "bilinear": from_images(image.resize((LR_SIZE, LR_SIZE), Image.Resampling.BILINEAR) for image in to_images(y)),
    }


# --- measurements ------------------------------------------------------------------------------------------------


def exploded(images: Tensor) -> Tensor:
    """Which images are lost: more than 20 % of their values beyond 1.2 before clamping; [N, 3, H, W] -> bool [N]."""
    share, limit = EXPLODED
    return (~(images.abs() <= limit)).float().flatten(1).mean(dim=1) > share  # NaN is lost, too


def consistency(outputs: list[Tensor]) -> Tensor:
    """Mean PSNR between each two of several versions of the same faces: k times [N, 3, H, W] in [-1, 1] -> [N], dB."""
    return torch.stack([utils.psnr(a, b) for a, b in itertools.combinations(outputs, 2)]).mean(dim=0)


def measure_faces(
    raw: dict[str, Tensor], extract: Upscale | None, y: Tensor, inputs: dict[str, Tensor], others: Tensor,
    perceptual: PerceptualLoss,
) -> pd.DataFrame:  # fmt: skip
    """Everything that is measured face by face on HR_test, one row a face; columns as in DEFINITIONS.

    raw: the SR of each of the inputs, before clamping. extract: uint8 LR -> E, or None. others: x_c of a different face for
    each face. feature_gap comes as its two distances, "gap_degraded" and "gap_others".
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    table: dict[str, Tensor] = {}
    target = to_unit_range(y)
    psnr = {kind: utils.psnr(images, target) for kind, images in raw.items()}
    target_features = perceptual.features(target)
    for column, kinds in FIDELITY.items():
        table[f"psnr_{column}"] = torch.stack([psnr[kind] for kind in kinds]).mean(dim=0)
        ssim, distances = [], []
        for kind in kinds:
            images = to_bytes(raw[kind])
            ssim.append(structural_similarity_index_measure(images.float(), y.float(), data_range=255.0, reduction="none"))
            difference = perceptual.features(to_unit_range(images)).float() - target_features.float()
            distances.append(difference.abs().flatten(1).mean(dim=1))
        table[f"ssim_{column}"] = torch.stack(ssim).mean(dim=0)
        table[f"perceptual_{column}"] = torch.stack(distances).mean(dim=0)
    table["psnr_eight"] = torch.stack([psnr[kind] for kind in DEGRADATIONS]).mean(dim=0)
    table |= {f"psnr_{kind}": psnr[kind] for kind in FIXED}
    table["consistency"] = consistency([raw[kind] for kind in DEGRADATIONS])
    table["consistency_z"] = consistency([raw[kind] for kind in DRAWN])
    for kind in FIXED:
        pairs = [utils.psnr(raw[kind], raw[other]) for other in DEGRADATIONS if other != kind]
        table[f"consistency_{kind}"] = torch.stack(pairs).mean(dim=0)
    if extract is not None:
        clean = feature_points(extract(inputs["clean"]))
        gaps = [sinkhorn_distance(clean, feature_points(extract(inputs[kind]))) for kind in DEGRADATIONS]
        table["gap_degraded"] = torch.stack(gaps).mean(dim=0)
        table["gap_others"] = sinkhorn_distance(clean, feature_points(extract(others)))
    table["saturated_test"] = torch.stack([utils.saturated(images) for images in raw.values()]).mean(dim=0)
    table["exploded_test"] = torch.stack([exploded(images).float() for images in raw.values()]).mean(dim=0)
    return pd.DataFrame({name: values.double().cpu().numpy() for name, values in table.items()})


def choose(length: int, count: int, seed: int) -> np.ndarray:
    """`count` of `length` indices, sorted, chosen by seed; all if count is 0 or too large."""
    return np.sort(np.random.default_rng(seed).permutation(length)[: count or length])


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    options = parser.parse_args(argv)
    for name in ("limit", "seed"):
        if getattr(options, name) < 0:
            parser.error(f"--{name} {getattr(options, name)}: must be at least 0")
    if options.batch_size < 1:
        parser.error(f"--batch-size {options.batch_size}: must be at least 1")
    if not 0 <= options.alpha <= 1:
        parser.error(f"--alpha {options.alpha}: must be in [0, 1]")
    if options.limit == 1:
        parser.error("--limit 1: a distance between distributions needs at least 2 faces")
    if Path(options.out).is_dir() or Path(options.out).suffix.lower() == ".png":
        parser.error(f"--out {options.out}: must be the name of a JSON file; the sheet gets the same name with .png")
    utils.check_framing(parser, options)
    with utils.explain_out_of_memory(options.batch_size, "lower --batch-size, or use --device cpu"):
        evaluate(options)


def evaluate(options: argparse.Namespace) -> None:
    """Measure every row, print the table, write the JSON and the sheet."""
    device = utils.choose_device(options.device)
    dtype = utils.choose_precision(options.precision, device)
    out = Path(options.out)
    size = options.batch_size

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    # Everything that can be missing is looked for before anything is measured
    h2l = utils.find_weights(options.h2l, "h2l")
    loaded = utils.load_networks(h2l, "h2l", {"generator": DegradationGenerator}, utils.NO_WEIGHTS)
    generator = loaded["generator"].to(device, memory_format=torch.channels_last)
    print(utils.describe(h2l, loaded["content"]))
    utils.remark_framing(h2l, loaded["content"], options)
    networks: dict[str, utils.SuperResolver] = {}
    for path in [utils.find_weights(given, "sr") for given in options.weights or [""]]:
        networks[str(path)] = resolver = utils.SuperResolver(path, device, dtype)
        print(resolver.description)
        utils.remark_framing(path, resolver.content, options)
    perceptual = PerceptualLoss(utils.load_perceptual_weights(options.vgg_weights)).to(device)
    frechet = Frechet(options.features, device, autocast)
    cache = Path(options.cache or Path(options.data, ".cache"))
    hr_train, hr_test, lr_train, lr_test = (
        prepare_faces(Path(options.data, f"{name}.csv"), name[:2], cache, options.resize, options.crop)
        for name in ("HR_train", "HR_test", "LR_train", "LR_test")
    )
    if min(map(len, (hr_train, hr_test, lr_train, lr_test))) < 2:
        raise utils.UserError(f"{options.data}: each of the four lists needs at least 2 faces")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise utils.UserError(f"cannot make the folder {out.parent} ({error}): name another --out") from error

    indices = choose(len(hr_test), options.limit, options.seed)
    (real,) = lr_test[choose(len(lr_test), options.limit, options.seed)]
    y, clean = hr_test[indices]
    floor = choose(len(hr_train), len(real), options.seed)
    smallest = min(len(y), len(real), len(floor))
    few = f"; under {FEW_IMAGES}: compare it only with distances of as many" if smallest < FEW_IMAGES else ""
    print(f"{frechet.name}: SR of {len(real)} real faces against {len(y)} HR faces{few}")

    def batches(faces: Tensor, function: Upscale) -> Iterator[Tensor]:
        """uint8 faces -> batches of 8-bit pictures of what the function makes of them."""
        for batch in faces.split(size):
            with torch.inference_mode(), autocast():
                picture = function(batch.to(device))
            yield to_bytes(picture)

    def degrade(x_c: Tensor, z: Tensor) -> Tensor:
        with torch.inference_mode(), autocast():
            return generator(x_c.to(device), z.to(device)).float().cpu()

    parts: list[dict[str, Tensor]] = []
    for begin in tqdm(range(0, len(y), size), desc="inputs", unit="batch", leave=False):
        part = slice(begin, begin + size)
        parts.append(make_inputs(y[part], clean[part], indices[part], options.seed, options.alpha, degrade))
    inputs = {kind: torch.cat([part[kind] for part in parts]) for kind in INPUTS}
    order = torch.from_numpy(np.random.default_rng(options.seed).permutation(len(y)))
    others = torch.empty_like(clean)
    others[order] = clean[order.roll(1)]  # a derangement: every face meets another one, seldom of the same person

    # (4) the degradation
    lr_reference = frechet.reference(batches(real, bicubic), "LR_test")
    psnr = torch.stack([utils.psnr(to_unit_range(inputs[kind]), to_unit_range(clean)) for kind in DRAWN])
    lr_floor = lr_train[choose(len(lr_train), len(y), options.seed)][0]
    degradation = {
        "floor": {"fd": frechet.distance(lr_reference, batches(lr_floor, bicubic), "LR_train")},
        "x_c": {"fd": frechet.distance(lr_reference, batches(clean, bicubic), "x_c")},
        "x_d": {"psnr": psnr.mean().item(), "fd": frechet.distance(lr_reference, batches(inputs["z 1"], bicubic), "x_d")},
    }

    definitions = {
        **DEFINITIONS,
        "rows": f"floor: {len(floor)} crops of HR_train in place of SR; bicubic: x4 by Pillow's filter; else a weights file; "
        "self-ensemble: the mean of its SR of a face and of the face's mirror image, mirrored back",
        "eight degradations": f"{DRAWS} draws of z; Gaussian blur, {BLUR:g} px of the HR face; Gaussian noise, {NOISE:g} of "
        f"255, and JPEG, quality {JPEG_QUALITY}, on the LR face; bilinear in place of bicubic reduction",
        "perceptual network": {"imagenet": "torchvision's VGG19, ImageNet"}.get(options.vgg_weights, options.vgg_weights),
        **{f"degradation, {name}": text.format(floor=len(lr_floor)) for name, text in DEGRADATION_DEFINITIONS.items()},
    }
    protocol = {
        **{name: getattr(options, name) for name in ("data", "alpha", "seed", "limit", "precision", "resize", "crop")},
        **{"h2l": str(h2l), "hr_test": len(y), "lr_test": len(real)},
        **{"frechet": frechet.name, "perceptual": options.vgg_weights},
        **{"device": device.type, "torch": torch.__version__, "torchvision": torchvision.__version__},
    }

    # (1) realism; (2) fidelity and (3) robustness, face by face
    hr_reference = frechet.reference(batches(y, to_unit_range), "HR_test")
    rows: dict[str, dict[str, float]] = {
        "floor": {"real_fd": frechet.distance(hr_reference, batches(hr_train[floor][0], to_unit_range), "HR_train")}
    }

    def measure(names: list[str], upscale: Callable[[Tensor], tuple[Tensor, ...]], extract: Upscale | None) -> None:
        """A row for each of the SR that upscale makes of the same faces; the feature gap is the first one's."""
        pictures, lost, beyond, tables = ([[] for _ in names] for _ in range(4))
        for batch in tqdm(real.split(size), desc=f"{names[0]}, LR_test", unit="batch", leave=False):
            with torch.inference_mode(), autocast():
                versions = [images.float() for images in upscale(batch.to(device))]
            for number, images in enumerate(versions):
                pictures[number].append(to_bytes(images).cpu())
                lost[number].append(exploded(images).float())
                beyond[number].append(utils.saturated(images))
        for begin in tqdm(range(0, len(y), size), desc=f"{names[0]}, HR_test", unit="batch", leave=False):
            part = slice(begin, begin + size)
            kinds = {kind: faces[part].to(device) for kind, faces in inputs.items()}
            there = y[part].to(device), kinds, others[part].to(device)
            with torch.inference_mode(), autocast():
                versions = {kind: upscale(faces) for kind, faces in kinds.items()}
                for number, table in enumerate(tables):
                    raw = {kind: images[number].float() for kind, images in versions.items()}
                    table.append(measure_faces(raw, None if number else extract, *there, perceptual))
        for number, name in enumerate(names):
            row = {"real_fd": frechet.distance(hr_reference, iter(pictures[number]), f"{name} of LR_test")}
            row |= {"exploded_real": torch.cat(lost[number]).mean().item()}
            row |= {"saturated_real": torch.cat(beyond[number]).mean().item()}
            means = pd.concat(tables[number]).mean(skipna=False)
            if "gap_degraded" in means:
                row["feature_gap"] = means.pop("gap_degraded") / means.pop("gap_others")
            row |= means.to_dict()
            rows[name] = {metric: float(row[metric]) for metric in DEFINITIONS if metric in row}
        report = {"definitions": definitions, "protocol": protocol, "rows": rows, "degradation": degradation}
        utils.write_whole(out, lambda temporary: temporary.write_text(json.dumps(report, indent=2) + "\n"))
        print(f"measured: {names[0]}; {out} has the numbers so far", flush=True)

    measure(["bicubic"], lambda faces: (bicubic(faces),), None)
    upscalers: dict[str, Upscale] = {"bicubic": bicubic}
    for name, resolver in networks.items():
        upscalers[name] = resolver
        if options.self_ensemble:
            mean = f"{name}, self-ensemble"
            upscalers[mean] = lambda faces, resolver=resolver: resolver.both(faces)[1]
            measure([name, mean], resolver.both, resolver.features)
        else:
            measure([name], lambda faces, resolver=resolver: (resolver(faces),), resolver.features)

    print_tables(rows, degradation, frechet.name, definitions)
    sheet = out.with_name(f"{out.stem}.png")
    save_sheet(sheet, y, inputs, real, upscalers, autocast, device, options.seed)
    print(f"written: {out}, {sheet}")


def print_tables(rows: dict, degradation: dict, name: str, definitions: dict) -> None:
    """The numbers, one column a row of the JSON, with as many digits as they are worth; then what each one is."""

    def text(metric: str, value: float) -> str:
        digits = 1 if metric.endswith("fd") else 2 if metric.startswith(("psnr", "consistency")) else 4
        return "-" if np.isnan(value) else f"{value:.{digits}f}"

    table = pd.DataFrame(rows).reindex(list(DEFINITIONS))
    shown = pd.DataFrame({column: [text(metric, table.at[metric, column]) for metric in table.index] for column in table})
    shown.index = [metric if metric != "real_fd" else f"real_fd ({name})" for metric in table.index]
    print(f"\n{shown.to_string()}\n")
    shown = pd.DataFrame(
        {row: [text(metric, values.get(metric, np.nan)) for metric in ("psnr", "fd")] for row, values in degradation.items()},
        index=["psnr", f"fd ({name})"],
    )
    print(f"degradation\n{shown.to_string()}\n")
    print("\n".join(f"{metric}: {definition}" for metric, definition in definitions.items()), end="\n\n")


def save_sheet(
    path: Path, y: Tensor, inputs: dict[str, Tensor], real: Tensor, upscalers: dict[str, Upscale],
    autocast: Callable[[], torch.autocast], device: torch.device, seed: int,
) -> None:  # fmt: skip
    """Real faces, test faces and one face degraded eight ways, each with what every row makes of it; chosen by seed."""

    def results(title: str, faces: Tensor) -> dict[str, Tensor]:
        with torch.inference_mode(), autocast():
            return {f"{name} of {title}": upscale(faces.to(device)).float() for name, upscale in upscalers.items()}

    columns = utils.SHEET_COLUMNS
    chosen = real[choose(len(real), columns, seed)]
    pictures = {"real LR faces": to_unit_range(chosen)} | results("the real LR faces", chosen)
    faces = choose(len(y), columns, seed)
    pictures["HR faces"] = to_unit_range(y[faces])
    for kind in ("clean", "z 1"):
        pictures[kind] = to_unit_range(inputs[kind][faces])
        pictures |= results(kind, inputs[kind][faces])
    eight = torch.stack([inputs[kind][faces[0]] for kind in DEGRADATIONS])
    pictures[f"one face: {', '.join(DEGRADATIONS)}"] = to_unit_range(eight)
    utils.save_sheet(path, pictures | results("its eight degradations", eight), columns)


if __name__ == "__main__":
    utils.run_script(main)

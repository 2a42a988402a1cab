"""Measure the method's claims: realism on real faces, fidelity, robustness, and the degradation itself.

python evaluate.py                                                        # the user's own weights, or the shipped ones
python evaluate.py --weights a/sr.pth b/sr.pth --features mobilenet_v2.pth --limit 200
python evaluate.py --write-inputs inputs                                  # for another program, which writes results/
python evaluate.py --results results                                      # a row for what it wrote

Needs torchmetrics and, for --features inception, torch-fidelity: pip install torchmetrics torch-fidelity
Prints a table, and writes --out (JSON: the same numbers, what each one is, and the protocol) and a sheet of pictures beside it.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # where PYTHONSAFEPATH is set, Python leaves it out

import numpy as np
import pandas as pd
import torch
import torchvision
from torch import Tensor

import utils
from Datasets.faces import PreparedFaces, prepare_faces
from losses import PerceptualLoss
from metrics.definitions import DEFINITIONS, DEGRADATION_DEFINITIONS, GROUP_DEFINITIONS, RING_NAMES, describe_kinds
from metrics.faces import consistency, exploded, measure_faces, psnr_apart_from_colour, spectrum
from metrics.folders import list_names, read_groups, read_results, write_inputs
from metrics.frechet import Frechet
from metrics.inputs import DEGRADATIONS, DRAWN, FIXED, INPUTS, bicubic, make_hand_crafted, make_inputs
from models import DegradationGenerator
from utils import SuperResolver, to_bytes, to_unit_range

FEW_IMAGES = 2048  # Frechet distances of fewer images are biased upwards, more so the fewer they are
LISTS = ("HR_train", "HR_test", "LR_train", "LR_test")
GROUP_KINDS = ["clean", *FIXED]
GROUPS = "groups/"  # before a kind of input: of the faces of --groups

Index = slice | np.ndarray
# (kind of input, which faces) -> one or two versions of their SR [N, 3, 64, 64], before clamping
Make = Callable[[str, Index], tuple[Tensor, ...]]


def build_parser() -> utils.Parser:
    parser = utils.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.option
    parser.section("what is measured")
    option("weights", [], "one or more sr.pth; none: Trained_Models/sr.pth, or else weights/sr.pth, unless --results is given",
           nargs="+", metavar="PATH", type=os.path.expanduser)  # fmt: skip
    parser.switch("self-ensemble", "a second row for each weights file: test.py --self-ensemble")
    option("results", [], "folders of SR pictures that any program made of what --write-inputs writes, a row each",
           nargs="+", metavar="DIR", type=os.path.expanduser)  # fmt: skip
    option("write-inputs", "", "write every input as PNG to this folder, and end", metavar="DIR")
    parser.section("data")
    option("data", "Datasets", "folder of HR_train.csv, HR_test.csv, LR_train.csv and LR_test.csv", metavar="DIR")
    option("cache", "", "folder of the prepared faces; empty: .cache in the data folder", metavar="DIR")
    option("groups", "", "CSV of further test faces with the columns path, age, gender, race: fidelity by each of these labels")
    option("h2l", "", "degradation generator; empty: Trained_Models/h2l.pth, or else weights/h2l.pth")
    option("alpha", 0.3, "part of the clean face in the mixed inputs, the same for all rows", "paper")
    option("resize", 100, "px that the shorter side of an HR image is resized to")
    option("crop", 64, "px of the resized image's centre that become the 64x64 HR face")
    parser.section("how")
    option("features", "inception", "inception (FID), or a state dict of torchvision's MobileNetV2 (FD-MobileNetV2)")
    option("vgg-weights", "imagenet", "perceptual network: imagenet, random, or a state dict, as for train.py")
    option("limit", 0, "measure on at most this many faces of each list, chosen by seed; 0: all")
    option("seed", 0, "seed of the degradations, of the floor's faces and of the faces on the sheet")
    option("batch-size", 64, "faces in a batch; the results do not depend on it")
    option("device", "auto", "auto: the GPU if there is one")
    option("precision", "fp32", "of the super-resolution networks, as in test.py; what measures is always fp32; bf16 is for a "
           "quick look", choices=("fp32", "bf16"))  # fmt: skip
    option("out", "Results/metrics.json", "the JSON; the sheet is written beside it")
    return parser


def check(parser: utils.Parser, options: argparse.Namespace) -> None:
    """End with an error of the parser if an option has a value that cannot work."""
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


def choose(length: int, count: int, seed: int) -> np.ndarray:
    """`count` of `length` indices, sorted, chosen by seed; all if count is 0 or too large."""
    return np.sort(np.random.default_rng(seed).permutation(length)[: count or length])


# --- faces -------------------------------------------------------------------------------------------------------


@dataclass
class TestFaces:
    """The faces that everything is measured on, 8 bits; LR faces are [N, 3, 16, 16], HR faces [N, 3, 64, 64].

    inputs: by kind of input, "real" for LR_test and with "groups/" before it for the faces of --groups.
    names: of the files of each kind, as --write-inputs and --results have them, where one of these is given.
    others: x_c of a different face for each face. floor_hr, floor_lr: faces of the training lists.
    hand_crafted: HR_test degraded at random, several times. labels: those of --groups, a column each.
    """

    y: Tensor
    inputs: dict[str, Tensor]
    names: dict[str, list[str]]
    others: Tensor
    floor_hr: Tensor
    floor_lr: Tensor
    hand_crafted: list[Tensor]
    groups_y: Tensor | None = None
    labels: pd.DataFrame = field(default_factory=pd.DataFrame)


def prepare_lists(options: argparse.Namespace) -> dict[str, PreparedFaces]:
    """The four lists. Raises UserError if one of them has under two faces."""
    cache = Path(options.cache or Path(options.data, ".cache"))
    lists = {
        name: prepare_faces(Path(options.data, f"{name}.csv"), name[:2], cache, options.resize, options.crop) for name in LISTS
    }
    if min(map(len, lists.values())) < 2:
        raise utils.UserError(f"{options.data}: each of the four lists needs at least 2 faces")
    return lists


def batched_inputs(
    y: Tensor, clean: Tensor, indices: np.ndarray, options: argparse.Namespace, generator: DegradationGenerator,
    device: torch.device,
) -> dict[str, Tensor]:  # fmt: skip
    """make_inputs in batches, with G on the device."""

    def degrade(x_c: Tensor, z: Tensor) -> Tensor:
        with torch.inference_mode():
            return generator(x_c.to(device), z.to(device)).cpu()

    parts: list[dict[str, Tensor]] = []
    for part in parts_of(len(y), options.batch_size, "inputs"):
        parts.append(make_inputs(y[part], clean[part], indices[part], options.seed, options.alpha, degrade))
    return {kind: torch.cat([part[kind] for part in parts]) for kind in INPUTS}


def load_faces(options: argparse.Namespace, generator: DegradationGenerator, device: torch.device) -> TestFaces:
    """Choose the faces by --limit and --seed and make every input of them."""
    lists = prepare_lists(options)
    seed = options.seed
    chosen = {name: choose(len(lists[name]), options.limit, seed) for name in ("HR_test", "LR_test")}
    y, clean = lists["HR_test"][chosen["HR_test"]]
    (real,) = lists["LR_test"][chosen["LR_test"]]
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(y)))
    others = torch.empty_like(clean)
    others[order] = clean[order.roll(1)]  # a derangement: every face meets another one, seldom of the same person
    faces = TestFaces(
        y=y,
        inputs={"real": real} | batched_inputs(y, clean, chosen["HR_test"], options, generator, device),
        names={},
        others=others,
        floor_hr=lists["HR_train"][choose(len(lists["HR_train"]), len(real), seed)][0],
        floor_lr=lists["LR_train"][choose(len(lists["LR_train"]), len(y), seed)][0],
        hand_crafted=make_hand_crafted(y, chosen["HR_test"], seed),
    )
    if options.write_inputs or options.results:
        for kind in faces.inputs:
            name = "LR_test" if kind == "real" else "HR_test"
            names = list_names(Path(options.data, f"{name}.csv"), len(lists[name]))
            faces.names[kind] = [names[index] for index in chosen[name]]
    if options.groups:
        add_groups(faces, options, generator, device)
    return faces


def add_groups(
    faces: TestFaces, options: argparse.Namespace, generator: DegradationGenerator, device: torch.device
) -> None:  # fmt: skip
    """Add the labelled faces of --groups and their inputs."""
    y, clean, labels, names = read_groups(Path(options.groups))
    chosen = choose(len(y), options.limit, options.seed)
    faces.groups_y, faces.labels = y[chosen], labels.iloc[chosen].reset_index(drop=True)
    inputs = batched_inputs(y[chosen], clean[chosen], chosen, options, generator, device)
    for kind in GROUP_KINDS:
        faces.inputs[GROUPS + kind] = inputs[kind]
        faces.names[GROUPS + kind] = [names[index] for index in chosen]


def parts_of(length: int, size: int, title: str) -> Iterator[slice]:
    """Slices of at most `size` faces, with a progress bar."""
    for begin in utils.progress(range(0, length, size), desc=title, unit="batch", leave=False):
        yield slice(begin, min(begin + size, length))


# --- measuring ---------------------------------------------------------------------------------------------------


class Evaluation:
    """The rows so far, and what is needed to measure another one."""

    def __init__(self, options: argparse.Namespace, faces: TestFaces, frechet: Frechet, perceptual: PerceptualLoss) -> None:
        self.options, self.faces, self.frechet, self.perceptual = options, faces, frechet, perceptual
        self.device = frechet.device
        self.out = Path(options.out)
        self.report: dict[str, dict] = {"definitions": {}, "protocol": {}, "rows": {}, "degradation": {}}
        y = [self.batches(faces.y, to_unit_range)]
        self.references = {"real_fd": frechet.reference(*y, title="HR_test")}
        if faces.groups_y is not None:
            both = [self.batches(images, to_unit_range) for images in (faces.y, faces.groups_y)]
            self.references["real_fd_both"] = frechet.reference(*both, title="HR_test and --groups")
            self.report["groups"] = {}

    def batches(self, faces: Tensor, function: Callable[[Tensor], Tensor] = bicubic) -> Iterator[Tensor]:
        """uint8 faces -> batches of 8-bit pictures of what the function makes of them."""
        for batch in faces.split(self.options.batch_size):
            yield to_bytes(function(batch.to(self.device)))

    def distances(self, pictures: Iterator[Tensor], title: str) -> dict[str, float]:
        """Frechet distances to every reference: name, as in DEFINITIONS -> distance."""
        found = self.frechet.distances(list(self.references.values()), pictures, title)
        return dict(zip(self.references, found))

    def degradation(self) -> None:
        """Part 4: how near degraded faces come to real LR faces, and whether they still show the face."""
        faces, clean = self.faces, self.faces.inputs["clean"]
        sets = {"floor": [faces.floor_lr], "x_c": [clean], "x_d": [faces.inputs[kind] for kind in DRAWN]}
        reference = self.frechet.reference(self.batches(faces.inputs["real"]), title="LR_test")
        rows = self.report["degradation"]
        rows["real"] = dict(zip(RING_NAMES, spectrum(faces.inputs["real"])))
        for name, draws in {**sets, "hand_crafted": faces.hand_crafted}.items():
            row: dict[str, float] = {}
            if name in ("x_d", "hand_crafted"):
                target = to_unit_range(clean)
                for measure, psnr in {"psnr": utils.psnr, "psnr_colour": psnr_apart_from_colour}.items():
                    row[measure] = torch.stack([psnr(to_unit_range(x), target) for x in draws]).mean().item()
            (row["fd"],) = self.frechet.distances([reference], self.batches(draws[0]), name)
            rows[name] = row | dict(zip(RING_NAMES, spectrum(torch.cat(draws))))

    def measure(
        self, names: list[str], make: Make, kinds: list[str], extract: Callable[[Tensor], Tensor] | None = None,
        before_rounding: bool = True,
    ) -> None:  # fmt: skip
        """A row for each version of the SR that make gives; the feature gap is the first one's.

        kinds: those that make can make. extract: uint8 LR -> E. before_rounding: whether what make
        gives was not clamped and rounded to 8 bits, so that it shows what exploded.
        """
        rows: list[dict[str, float]] = [{} for _ in names]
        if "real" in kinds:
            self.measure_real(names, rows, make)
        self.measure_test(names, rows, make, [kind for kind in INPUTS if kind in kinds], extract)
        for name, row in zip(names, rows):
            unknown = () if before_rounding else ("saturated_real", "saturated_test", "exploded_real", "exploded_test")
            self.report["rows"][name] = {
                metric: float(row[metric]) for metric in DEFINITIONS if metric in row and metric not in unknown
            }
        if self.faces.groups_y is not None and all(GROUPS + kind in kinds for kind in GROUP_KINDS):
            self.measure_groups(names, make)
        self.save()
        print(f"measured: {names[0]}; {self.out} has the numbers so far", flush=True)

    def measure_real(self, names: list[str], rows: list[dict[str, float]], make: Make) -> None:
        """Part 1: SR of the real faces of LR_test."""
        pictures, lost, beyond = ([[] for _ in names] for _ in range(3))
        for part in parts_of(len(self.faces.inputs["real"]), self.options.batch_size, f"{names[0]}, LR_test"):
            for number, images in enumerate(make("real", part)):
                pictures[number].append(to_bytes(images).cpu())
                lost[number].append(exploded(images).float())
                beyond[number].append(utils.saturated(images))
        for number, (name, row) in enumerate(zip(names, rows)):
            row |= self.distances(iter(pictures[number]), f"{name} of LR_test")
            row["exploded_real"] = torch.cat(lost[number]).mean().item()
            row["saturated_real"] = torch.cat(beyond[number]).mean().item()

    def measure_test(
        self, names: list[str], rows: list[dict[str, float]], make: Make, kinds: list[str],
        extract: Callable[[Tensor], Tensor] | None,
    ) -> None:  # fmt: skip
        """Parts 2 and 3: fidelity and robustness, face by face."""
        faces = self.faces
        if not kinds:
            return
        tables: list[list[pd.DataFrame]] = [[] for _ in names]
        for part in parts_of(len(faces.y), self.options.batch_size, f"{names[0]}, HR_test"):
            inputs = {kind: faces.inputs[kind][part] for kind in kinds}
            versions = {kind: make(kind, part) for kind in kinds}
            y, others = faces.y[part].to(self.device), faces.others[part]
            for number, table in enumerate(tables):
                raw = {kind: images[number] for kind, images in versions.items()}
                with torch.inference_mode():
                    table.append(measure_faces(raw, None if number else extract, y, inputs, others, self.perceptual))
        for row, table in zip(rows, tables):
            means = pd.concat(table).mean(skipna=False)
            if "gap_degraded" in means:
                row["feature_gap"] = means.pop("gap_degraded") / means.pop("gap_others")
            row |= means.to_dict()

    def measure_groups(self, names: list[str], make: Make) -> None:
        """Fidelity and consistency by the labels of --groups."""
        faces = self.faces
        tables: list[list[pd.DataFrame]] = [[] for _ in names]
        for part in parts_of(len(faces.groups_y), self.options.batch_size, f"{names[0]}, --groups"):
            target = to_unit_range(faces.groups_y[part].to(self.device))
            versions = {kind: make(GROUPS + kind, part) for kind in GROUP_KINDS}
            for number, table in enumerate(tables):
                raw = {kind: images[number] for kind, images in versions.items()}
                psnr = {kind: utils.psnr(images, target) for kind, images in raw.items()}
                columns = {
                    "psnr_clean": psnr["clean"],
                    "psnr_four": torch.stack([psnr[kind] for kind in FIXED]).mean(dim=0),
                    "consistency": consistency(list(raw.values())),
                }
                table.append(pd.DataFrame({name: values.double().cpu().numpy() for name, values in columns.items()}))
        for name, table in zip(names, tables):
            measured = pd.concat(table, ignore_index=True)
            groups = {"all": measured}
            for label in faces.labels:
                for value, part in measured.groupby(faces.labels[label], observed=True):
                    groups[f"{label} {value}"] = part
            self.report["groups"][name] = {
                group: {"faces": len(part)} | {column: float(mean) for column, mean in part.mean().items()}
                for group, part in groups.items()
            }

    def save(self) -> None:
        """Write the JSON: after every row, so that a stop keeps the rows so far."""
        text = json.dumps(self.report, indent=2) + "\n"
        utils.write_atomic(self.out, lambda temporary: temporary.write_text(text))


def network_maker(resolver: SuperResolver, inputs: dict[str, Tensor], ensemble: bool) -> Make:
    """The SR of a network and, with ensemble, its self-ensemble."""

    def make(kind: str, index: Index) -> tuple[Tensor, ...]:
        return resolver.both(inputs[kind][index]) if ensemble else (resolver(inputs[kind][index]),)

    return make


def folder_maker(pictures: dict[str, Tensor], device: torch.device) -> Make:
    """The pictures of a folder, kind -> uint8 [N, 3, 64, 64]."""
    return lambda kind, index: (to_unit_range(pictures[kind][index].to(device)),)


# --- the script --------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    options = parser.parse_args(argv)
    check(parser, options)
    with utils.explain_out_of_memory(options.batch_size, "lower --batch-size, or use --device cpu"):
        evaluate(options)


def evaluate(options: argparse.Namespace) -> None:
    """Measure every row, print the tables, write the JSON and the sheet."""
    device = utils.choose_device(options.device)
    # Everything that can be missing is looked for before anything is measured
    h2l = utils.find_weights(options.h2l, "h2l")
    generator, content = utils.load_degradation(h2l, utils.NO_WEIGHTS)
    generator.to(device, memory_format=torch.channels_last)
    print(utils.describe(h2l, content))
    utils.warn_framing(h2l, content, options)
    if options.write_inputs:
        faces = load_faces(options, generator, device)
        write_inputs(Path(options.write_inputs), {kind: (faces.names[kind], images) for kind, images in faces.inputs.items()})
        print(f"written: {', '.join(faces.inputs)}, each a folder in {options.write_inputs}")
        return
    resolvers = load_resolvers(options, device)
    perceptual = PerceptualLoss(utils.load_perceptual_weights(options.vgg_weights)).to(device)
    frechet = Frechet(options.features, device)
    faces = load_faces(options, generator, device)
    results = {folder: read_results(Path(folder), faces.names) for folder in options.results}
    try:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise utils.UserError(f"cannot make the folder {Path(options.out).parent} ({error}): name another --out") from error
    smallest = min(len(faces.y), len(faces.inputs["real"]), len(faces.floor_hr))
    few = f"; under {FEW_IMAGES}: compare it only with distances of as many" if smallest < FEW_IMAGES else ""
    print(f"{frechet.name}: SR of {len(faces.inputs['real'])} real faces against {len(faces.y)} HR faces{few}")

    evaluation = Evaluation(options, faces, frechet, perceptual)
    describe_report(evaluation, h2l)
    evaluation.degradation()
    floor = evaluation.batches(faces.floor_hr, to_unit_range)
    evaluation.report["rows"]["floor"] = evaluation.distances(floor, "HR_train")
    makers: dict[str, tuple[list[str], Make]] = {}

    def baseline(kind: str, index: Index) -> tuple[Tensor, ...]:
        return (bicubic(faces.inputs[kind][index].to(device)),)

    makers["bicubic"] = list(faces.inputs), baseline
    evaluation.measure(["bicubic"], baseline, list(faces.inputs))
    for name, resolver in resolvers.items():
        make = network_maker(resolver, faces.inputs, options.self_ensemble)
        rows = [name, f"{name}, self-ensemble"] if options.self_ensemble else [name]
        makers[name] = list(faces.inputs), make
        evaluation.measure(rows, make, list(faces.inputs), resolver.features)
    for folder, pictures in results.items():
        makers[folder] = list(pictures), folder_maker(pictures, device)
        evaluation.measure([folder], makers[folder][1], list(pictures), before_rounding=False)

    print_tables(evaluation.report, frechet.name)
    sheet = evaluation.out.with_name(f"{evaluation.out.stem}.png")
    save_sheet(sheet, faces, makers, options.seed)
    print(f"written: {evaluation.out}, {sheet}")


def load_resolvers(options: argparse.Namespace, device: torch.device) -> dict[str, SuperResolver]:
    """The networks of --weights, by the names of their files; the default file where nothing else is to be measured."""
    dtype = utils.choose_precision(options.precision, device)
    resolvers = {}
    for given in options.weights or ([] if options.results else [""]):
        path = utils.find_weights(given, "sr")
        resolvers[str(path)] = resolver = SuperResolver(path, device, dtype)
        print(resolver.description)
        utils.warn_framing(path, resolver.content, options)
    return resolvers


def describe_report(evaluation: Evaluation, h2l: Path) -> None:
    """Put into the report what its numbers are and how they were made."""
    options, faces = evaluation.options, evaluation.faces
    measured = {name: text for name, text in DEFINITIONS.items() if options.groups or name != "real_fd_both"}
    evaluation.report["definitions"] |= {
        **measured,
        "rows": f"floor: {len(faces.floor_hr)} crops of HR_train in place of SR; bicubic: x4 by Pillow's filter; else a "
        "weights file, or a folder of --results; self-ensemble: the mean of its SR of a face and of the face's mirror "
        "image, mirrored back",
        **describe_kinds(),
        "perceptual network": {"imagenet": "torchvision's VGG19, ImageNet"}.get(options.vgg_weights, options.vgg_weights),
        **{f"degradation, {name}": text for name, text in DEGRADATION_DEFINITIONS.items()},
        **({f"groups, {name}": text for name, text in GROUP_DEFINITIONS.items()} if options.groups else {}),
    }
    names = ("data", "groups", "alpha", "seed", "limit", "precision", "resize", "crop")
    evaluation.report["protocol"] |= {
        **{name: getattr(options, name) for name in names},
        **{"h2l": str(h2l), "hr_test": len(faces.y), "lr_test": len(faces.inputs["real"])},
        **{"frechet": evaluation.frechet.name, "perceptual": options.vgg_weights},
        **{"device": evaluation.device.type, "torch": torch.__version__, "torchvision": torchvision.__version__},
    }


def print_tables(report: dict, name: str) -> None:
    """The numbers, one column a row of the JSON, with as many digits as they are worth; then what each one is."""

    def text(metric: str, value: float) -> str:
        if metric == "faces":
            return f"{value:.0f}"
        digits = 1 if "fd" in metric else 2 if metric.startswith(("psnr", "consistency")) else 4
        return "-" if np.isnan(value) else f"{value:.{digits}f}"

    def show(rows: dict[str, dict[str, float]], metrics: list[str]) -> str:
        columns = {row: [text(metric, values.get(metric, np.nan)) for metric in metrics] for row, values in rows.items()}
        index = [f"{metric} ({name})" if "fd" in metric else metric for metric in metrics]
        return pd.DataFrame(columns, index=index).to_string()

    definitions = report["definitions"]
    print(f"\n{show(report['rows'], [metric for metric in DEFINITIONS if metric in definitions])}\n")
    print(f"degradation\n{show(report['degradation'], [key for key in DEGRADATION_DEFINITIONS if key != 'rows'])}\n")
    for row, groups in report.get("groups", {}).items():
        print(f"groups, {row}\n{show(groups, list(GROUP_DEFINITIONS))}\n")
    print("\n".join(f"{metric}: {definition}" for metric, definition in definitions.items()), end="\n\n")


def save_sheet(path: Path, faces: TestFaces, makers: dict[str, tuple[list[str], Make]], seed: int) -> None:
    """Real faces, test faces and one face degraded eight ways, each with what every row makes of it; chosen by seed.

    makers: name -> the kinds that it can make, and the SR; its last version is shown.
    """
    columns = utils.SHEET_COLUMNS

    def results(title: str, kinds: list[str], index: np.ndarray) -> dict[str, Tensor]:
        return {
            f"{name} of {title}": torch.cat([make(kind, index)[-1].cpu() for kind in kinds])
            for name, (can, make) in makers.items()
            if set(kinds) <= set(can)
        }

    chosen = choose(len(faces.inputs["real"]), columns, seed)
    pictures = {"real LR faces": to_unit_range(faces.inputs["real"][chosen])}
    pictures |= results("the real LR faces", ["real"], chosen)
    chosen = choose(len(faces.y), columns, seed)
    pictures["HR faces"] = to_unit_range(faces.y[chosen])
    for kind in ("clean", "z 1"):
        pictures[kind] = to_unit_range(faces.inputs[kind][chosen])
        pictures |= results(kind, [kind], chosen)
    eight = torch.cat([faces.inputs[kind][chosen[:1]] for kind in DEGRADATIONS])
    pictures[f"one face: {', '.join(DEGRADATIONS)}"] = to_unit_range(eight)
    utils.save_sheet(path, pictures | results("its eight degradations", DEGRADATIONS, chosen[:1]), columns)


if __name__ == "__main__":
    utils.run_script(main)

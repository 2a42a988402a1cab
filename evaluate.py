"""Measure the method's claims: realism on real faces, fidelity, robustness, and the degradation itself.

python evaluate.py                                                        # the user's own weights, or the shipped ones
python evaluate.py --weights a/sr.pth b/sr.pth --features mobilenet_v2.pth --limit 200
python evaluate.py --write-inputs inputs                                  # for another program, which writes results/
python evaluate.py --results results                                      # a row for what it wrote

Needs torchmetrics and, for --features inception, torch-fidelity: pip install torchmetrics torch-fidelity
Prints tables, and writes --out (JSON: the same numbers, what each one is, and the protocol) and a sheet of pictures beside it;
both replace those of before at the end. Until then the rows so far are in a file whose name ends in .partial.json.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable
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
from metrics import definitions
from metrics.faces import exploded, measure_faces, psnr_apart_from_colour, spectrum, to_table
from metrics.folders import list_names, read_results, write_inputs
from metrics.frechet import Frechet
from metrics.groups import read_groups
from metrics.identity import FACES, Judge, load_network
from metrics.inputs import DEGRADATIONS, DRAWN, FIXED, INPUTS, bicubic, lanczos, make_hand_crafted, make_inputs
from utils import SuperResolver, to_bytes, to_unit_range

FEW_IMAGES = 2048  # Frechet distances of fewer images are biased upwards, more so the fewer they are
LISTS = ("HR_train", "HR_test", "LR_train", "LR_test")
STRENGTHS = (0.5, 1.0, 1.5, 2.0)  # of the hand-crafted degradation
GROUP_KINDS = ["clean", *FIXED]
GROUPS = "groups/"  # before a kind of input: of the faces of --groups
BEFORE_ROUNDING = ("saturated_real", "saturated_test", "exploded_real", "exploded_test")  # 8-bit pictures do not show it

Index = slice | np.ndarray


@dataclass
class Method:
    """What makes SR: a row of the table.

    make: (kind of input, which faces) -> their SR [N, 3, 64, 64], before clamping. kinds: that it can make.
    extract: uint8 LR -> E. rounded: whether the SR is of 8 bits already.
    """

    make: Callable[[str, Index], Tensor]
    kinds: list[str]
    extract: Callable[[Tensor], Tensor] | None = None
    rounded: bool = False


def build_parser() -> utils.Parser:
    parser = utils.Parser(__doc__)
    option = parser.option
    parser.section("what is measured")
    option("weights", [], "one or more sr.pth; none: Trained_Models/sr.pth, or else weights/sr.pth, unless --results is given",
           nargs="+", metavar="PATH", type=os.path.expanduser)  # fmt: skip
    parser.switch("self-ensemble", "a second row for each weights file: test.py --self-ensemble")
    option("results", [], "folders of SR pictures that any program made of what --write-inputs writes, a row each",
           nargs="+", metavar="DIR", type=os.path.expanduser)  # fmt: skip
    parser.switch("identity", "whether SR still looks like the person, by dlib: pip install dlib-bin face-recognition-models")
    option("write-inputs", "", "write every input as PNG to this new folder, and end", metavar="DIR")
    parser.section("data")
    option("data", "Datasets", "folder of HR_train.csv, HR_test.csv, LR_train.csv and LR_test.csv", metavar="DIR")
    option("cache", "", "folder of the prepared faces; empty: .cache in the data folder", metavar="DIR")
    option("reference", "", "list of HR faces that the SR of real faces is compared with (FD); empty: HR_test.csv")
    option("groups", "", "table of further test faces, with the column path and columns of labels: fidelity by each of these")
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
    option("device", "auto", "auto: the GPU if there is one", metavar="{auto,cuda,cpu}")
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
    for name in ("weights", "results"):
        given = [os.path.normpath(path) for path in getattr(options, name)]
        if len({*given}) < len(given):
            parser.error(f"--{name}: {max(given, key=given.count)} is named twice")
    utils.check_framing(parser, options)


def choose(length: int, count: int, seed: int) -> np.ndarray:
    """`count` of `length` indices, sorted, chosen by seed; all if count is 0 or too large."""
    return np.sort(np.random.default_rng(seed).permutation(length)[: count or length])


# --- faces -------------------------------------------------------------------------------------------------------


@dataclass
class TestFaces:
    """The faces that everything is measured on, 8 bits; LR faces are [N, 3, 16, 16], HR faces [N, 3, 64, 64].

    y: of HR_test; indices: their places in it. inputs: by kind of input, "real" for LR_test and with "groups/" before it for
    the faces of --groups. names: of the files of each kind, as --write-inputs and --results have them, where one of these is
    given. others: x_c of a different face for each face. floor_hr, floor_lr: faces of the training lists. reference: HR faces
    that the SR of real faces is compared with. groups_y, labels: of --groups, a column a label.
    """

    y: Tensor
    indices: np.ndarray
    inputs: dict[str, Tensor]
    others: Tensor
    floor_hr: Tensor
    floor_lr: Tensor
    reference: Tensor
    names: dict[str, list[str]] = field(default_factory=dict)
    groups_y: Tensor | None = None
    labels: pd.DataFrame = field(default_factory=pd.DataFrame)

    def named_inputs(self) -> dict[str, tuple[list[str], Tensor]]:
        """Kind -> (names, faces), for other programs."""
        return {kind: (self.names[kind], faces) for kind, faces in self.inputs.items()}


def prepare_lists(options: argparse.Namespace) -> dict[str, PreparedFaces]:
    """The four lists and --reference. Raises UserError if one of them has under two faces."""
    paths = {name: Path(options.data, f"{name}.csv") for name in LISTS}
    paths["reference"] = Path(options.reference or paths["HR_test"])
    lists = {}
    for name, path in paths.items():
        kind = "LR" if name.startswith("LR") else "HR"
        lists[name] = prepare_faces(path, kind, Path(options.cache), options.resize, options.crop)
        if len(lists[name]) < 2:
            raise utils.UserError(f"{path} has one face: each list needs at least 2 faces")
    return lists


def load_faces(options: argparse.Namespace, degrade: Callable[[Tensor, Tensor], Tensor]) -> TestFaces:
    """Choose the faces by --limit and --seed and make every input of them; degrade: G, as in make_inputs."""
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
        indices=chosen["HR_test"],
        inputs={"real": real} | make_inputs(y, clean, chosen["HR_test"], seed, options.alpha, degrade),
        others=others,
        floor_hr=lists["HR_train"][choose(len(lists["HR_train"]), len(real), seed)][0],
        floor_lr=lists["LR_train"][choose(len(lists["LR_train"]), len(y), seed)][0],
        reference=lists["reference"][choose(len(lists["reference"]), options.limit, seed)][0],
    )
    if options.write_inputs or options.results:
        names = {name: list_names(Path(options.data, f"{name}.csv"), len(lists[name])) for name in chosen}
        for kind in faces.inputs:
            name = "LR_test" if kind == "real" else "HR_test"
            faces.names[kind] = [names[name][index] for index in chosen[name]]
    if options.groups:
        y, clean, labels, names = read_groups(Path(options.groups), Path(options.cache))
        chosen = choose(len(y), options.limit, seed)
        faces.groups_y, faces.labels = y[chosen], labels.iloc[chosen].reset_index(drop=True)
        # Only what no network makes is measured: G is spared
        inputs = make_inputs(y[chosen], clean[chosen], chosen, seed, options.alpha, lambda x_c, _z: x_c)
        for kind in GROUP_KINDS:
            faces.inputs[GROUPS + kind] = inputs[kind]
            faces.names[GROUPS + kind] = [names[index] for index in chosen]
    return faces


# --- measuring ---------------------------------------------------------------------------------------------------


class Evaluation:
    """The rows so far, and what is needed to measure another one."""

    def __init__(self, options: argparse.Namespace, faces: TestFaces, frechet: Frechet, perceptual: PerceptualLoss) -> None:
        self.options, self.faces, self.frechet, self.perceptual = options, faces, frechet, perceptual
        self.device = frechet.device
        self.out = Path(options.out)
        self.sheet, self.partial = (self.out.with_name(self.out.stem + end) for end in (".png", ".partial.json"))
        self.metrics = [*definitions.DEFINITIONS, *(definitions.IDENTITY_DEFINITIONS if options.identity else [])]
        self.judge = Judge(faces.y, choose(len(faces.y), FACES, options.seed)) if options.identity else None
        self.report: dict[str, dict] = {"definitions": {}, "protocol": {}, "rows": {}, "degradation": {}}
        self.save()  # what cannot be written shows now
        self.reference = self.features(faces.reference, "HR faces", to_unit_range)
        self.real = self.features(faces.inputs["real"], "LR_test")
        floor = self.features(faces.floor_hr, "HR_train", to_unit_range)
        self.report["rows"]["floor"] = {"real_fd": frechet.distance(self.reference, floor)}

    def features(self, faces: Tensor, title: str, function: Callable[[Tensor], Tensor] = bicubic) -> Tensor:
        """uint8 faces -> the features [N, d] of what the function makes of them, rounded to 8 bits."""
        batches = faces.split(self.options.batch_size)
        return self.frechet.features((to_bytes(function(batch.to(self.device))) for batch in batches), title)

    def degradation(self) -> None:
        """Part 4: how near degraded faces come to real LR faces, and whether they still show the face."""
        faces, clean = self.faces, self.faces.inputs["clean"]
        sets = {"floor": [faces.floor_lr], "x_c": [clean], "x_d": [faces.inputs[kind] for kind in DRAWN]}
        for strength in STRENGTHS:
            sets[f"hand_crafted_{strength:g}"] = make_hand_crafted(faces.y, faces.indices, self.options.seed, strength)
        rows = self.report["degradation"]
        rows["real"] = dict(zip(definitions.RING_NAMES, spectrum(faces.inputs["real"])))
        for name, draws in sets.items():
            rows[name] = {}
            if len(draws) > 1:
                target = to_unit_range(clean)
                for measure, psnr in {"psnr": utils.psnr, "psnr_colour": psnr_apart_from_colour}.items():
                    rows[name][measure] = torch.stack([psnr(to_unit_range(x), target) for x in draws]).mean().item()
            rows[name]["fd"] = self.frechet.distance(self.real, self.features(draws[0], name))
            rows[name] |= dict(zip(definitions.RING_NAMES, spectrum(torch.cat(draws))))

    def measure(self, name: str, method: Method) -> None:
        """The row of a method: everything of which it can make the inputs."""
        faces, row = self.faces, {}
        if "real" in method.kinds:
            row |= self.measure_real(name, method)
        kinds = [kind for kind in INPUTS if kind in method.kinds]

        def measure(part: slice, raw: dict[str, Tensor]) -> pd.DataFrame:
            inputs, y = {kind: faces.inputs[kind][part] for kind in kinds}, faces.y[part].to(self.device)
            return measure_faces(raw, method.extract, y, inputs, faces.others[part], self.perceptual)

        if kinds:
            row |= self.table(method, kinds, len(faces.y), f"{name}, HR_test", measure).mean(skipna=False).to_dict()
        if "gap_degraded" in row:
            row["feature_gap"] = row["gap_degraded"] / row["gap_others"]
        if self.judge:
            row |= self.judge(lambda kind, index: to_bytes(method.make(kind, index)), method.kinds, name)
        known = [metric for metric in self.metrics if metric in row and not (method.rounded and metric in BEFORE_ROUNDING)]
        self.report["rows"][name] = {metric: float(row[metric]) for metric in known}
        if faces.groups_y is not None and {GROUPS + kind for kind in GROUP_KINDS} <= {*method.kinds}:
            self.report.setdefault("groups", {})[name] = self.measure_groups(name, method)
        self.save()
        print(f"measured: {name}; {self.partial} has the numbers so far", flush=True)

    def table(
        self, method: Method, kinds: list[str], length: int, title: str,
        measure: Callable[[slice, dict[str, Tensor]], pd.DataFrame],
    ) -> pd.DataFrame:  # fmt: skip
        """What is measured of a method's SR of these kinds, a row a face; measure: (which faces, kind -> SR) -> their rows."""
        tables = []
        for start in utils.progress(range(0, length, self.options.batch_size), desc=title, unit="batch", leave=False):
            part = slice(start, start + self.options.batch_size)
            raw = {kind: method.make(kind, part) for kind in kinds}
            with torch.inference_mode():
                tables.append(measure(part, raw))
        return pd.concat(tables, ignore_index=True)

    def measure_real(self, name: str, method: Method) -> dict[str, float]:
        """SR of the real faces of LR_test."""
        pictures: list[Tensor] = []

        def measure(_part: slice, raw: dict[str, Tensor]) -> pd.DataFrame:
            images = raw["real"]
            pictures.append(to_bytes(images).cpu())
            return to_table({"exploded_real": exploded(images).float(), "saturated_real": utils.saturated(images)})

        table = self.table(method, ["real"], len(self.faces.inputs["real"]), f"{name}, LR_test", measure)
        # What bicubic makes of these faces is known already
        features = self.real if name == "bicubic" else self.frechet.features(pictures, f"{name} of LR_test")
        return table.mean().to_dict() | {"real_fd": self.frechet.distance(self.reference, features)}

    def measure_groups(self, name: str, method: Method) -> dict[str, dict[str, float]]:
        """GROUP_METRICS by the labels of --groups: group -> how many faces, and the means over them."""
        y, labels = self.faces.groups_y, self.faces.labels

        def measure(part: slice, raw: dict[str, Tensor]) -> pd.DataFrame:
            plain = dict(zip(GROUP_KINDS, raw.values()))
            return measure_faces(plain, None, y[part].to(self.device), {}, y[part], self.perceptual)[definitions.GROUP_METRICS]

        table = self.table(method, [GROUPS + kind for kind in GROUP_KINDS], len(y), f"{name}, --groups", measure)
        groups = {"all": table}
        for label in labels:
            groups |= {f"{label} {value}": part for value, part in table.groupby(labels[label], observed=True)}
        return {group: {"faces": len(part)} | part.mean().to_dict() for group, part in groups.items()}

    def save(self) -> None:
        """Write the rows so far: after every row, so that a stop keeps them."""
        text = json.dumps(self.report, indent=2) + "\n"
        utils.write_atomic(self.partial, lambda temporary: temporary.write_text(text))

    def finish(self, methods: dict[str, Method]) -> None:
        """Replace the JSON and the sheet of before by those of this run."""
        sheet = self.partial.with_suffix(".png")
        save_sheet(sheet, self.faces, methods, self.options.seed)
        self.report["sheet"] = {"file": self.sheet.name, "sha256": hashlib.sha256(sheet.read_bytes()).hexdigest()}
        self.save()
        os.replace(sheet, self.sheet)
        os.replace(self.partial, self.out)


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
    options.cache = options.cache or str(Path(options.data, ".cache"))
    # Everything that can be missing is looked for before anything is measured
    h2l = utils.find_weights(options.h2l, "h2l")
    generator, content = utils.load_degradation(h2l, utils.NO_WEIGHTS)
    generator.to(device, memory_format=torch.channels_last)
    print(utils.describe(h2l, content))
    utils.warn_framing(h2l, content, options)

    @torch.inference_mode()
    def degrade(x_c: Tensor, z: Tensor) -> Tensor:
        parts = zip(x_c.split(options.batch_size), z.split(options.batch_size))
        return torch.cat([generator(x.to(device), noise.to(device)).cpu() for x, noise in parts])

    names = ("data", "groups", "alpha", "seed", "limit", "resize", "crop")
    made_by = {name: getattr(options, name) for name in names}
    made_by["h2l"] = f"{h2l} ({utils.digest(content['weights']['generator'])})"
    if options.write_inputs:
        inputs = load_faces(options, degrade).named_inputs()
        write_inputs(Path(options.write_inputs), inputs, made_by)
        print(f"written: {', '.join(inputs)}, each a folder in {options.write_inputs}")
        return
    resolvers = load_resolvers(options, device)
    perceptual = PerceptualLoss(utils.load_perceptual_weights(options.vgg_weights)).to(device)
    frechet = Frechet(options.features, device)
    if options.identity:
        load_network()
    faces = load_faces(options, degrade)
    results = {folder: read_results(Path(folder), faces.named_inputs(), made_by) for folder in options.results}
    utils.make_folder(Path(options.out).parent, "--out")
    smallest = min(len(faces.reference), len(faces.inputs["real"]), len(faces.floor_hr))
    few = f"; under {FEW_IMAGES}: compare it only with distances of as many" if smallest < FEW_IMAGES else ""
    print(f"{frechet.name}: SR of {len(faces.inputs['real'])} real faces against {len(faces.reference)} HR faces{few}")

    evaluation = Evaluation(options, faces, frechet, perceptual)
    describe_report(evaluation, made_by)
    evaluation.degradation()
    methods = list_methods(faces, resolvers, results, options.self_ensemble, device)
    for name, method in methods.items():
        evaluation.measure(name, method)
    evaluation.finish(methods)
    print_tables(evaluation.report, frechet.name)
    print(f"written: {evaluation.out}, {evaluation.sheet}")


def load_resolvers(options: argparse.Namespace, device: torch.device) -> dict[str, SuperResolver]:
    """The networks of --weights, by the names of their files; the default file where nothing else is to be measured."""
    dtype = utils.choose_precision(options.precision, device)
    resolvers = {}
    for given in options.weights or ([] if options.results else [""]):
        path = utils.find_weights(given, "sr")
        resolvers[str(path)] = resolver = SuperResolver(path, device, dtype)
        print(utils.describe(resolver.path, resolver.content))
        utils.warn_framing(path, resolver.content, options)
    return resolvers


def list_methods(
    faces: TestFaces, resolvers: dict[str, SuperResolver], results: dict[str, dict[str, Tensor]], ensemble: bool,
    device: torch.device,
) -> dict[str, Method]:  # fmt: skip
    """The baselines, the networks by their files, and what other programs made by its folders; every name once.

    ensemble: whether each network's self-ensemble gets a row, too.
    """
    inputs, kinds = faces.inputs, list(faces.inputs)
    methods = {
        "bicubic": Method(lambda kind, index: bicubic(inputs[kind][index].to(device)), kinds),
        "lanczos": Method(lambda kind, index: lanczos(inputs[kind][index]).to(device), kinds, rounded=True),
    }

    def add(name: str, what: str, method: Method) -> None:
        methods[f"{name} ({what})" if name in ("floor", *methods) else name] = method

    for name, resolver in resolvers.items():
        add(name, "file", Method(lambda kind, index, sr=resolver: sr(inputs[kind][index]), kinds, resolver.features))
        if ensemble:
            make = Method(lambda kind, index, sr=resolver: sr.ensemble(inputs[kind][index]), kinds)
            add(f"{name}, self-ensemble", "file", make)
    for name, own in results.items():
        make = Method(lambda kind, index, own=own: to_unit_range(own[kind][index].to(device)), list(own), rounded=True)
        add(name, "folder", make)
    return methods


def describe_report(evaluation: Evaluation, made_by: dict) -> None:
    """Put into the report what its numbers are and how they were made."""
    options, faces = evaluation.options, evaluation.faces
    reference = options.reference or "HR_test"
    evaluation.report["definitions"] |= {
        **{name: text.replace("{reference}", reference) for name, text in definitions.DEFINITIONS.items()},
        **(definitions.IDENTITY_DEFINITIONS if options.identity else {}),
        "rows": f"floor: {len(faces.floor_hr)} crops of HR_train in place of SR; bicubic, lanczos: x4 by Pillow's filters; "
        "else a weights file, or a folder of --results; self-ensemble: the mean of its SR of a face and of the face's mirror "
        "image, mirrored back",
        **definitions.KIND_DEFINITIONS,
        "perceptual network": {"imagenet": "torchvision's VGG19, ImageNet"}.get(options.vgg_weights, options.vgg_weights),
        **{f"degradation, {name}": text for name, text in definitions.DEGRADATION_DEFINITIONS.items()},
    }
    evaluation.report["protocol"] |= {
        **made_by,
        **{"reference": reference, "precision": options.precision},
        **({"identity_faces": len(evaluation.judge.chosen)} if evaluation.judge else {}),
        **{"hr_test": len(faces.y), "lr_test": len(faces.inputs["real"]), "reference_faces": len(faces.reference)},
        **{"frechet": evaluation.frechet.name, "perceptual": options.vgg_weights},
        **{"device": evaluation.device.type, "torch": torch.__version__, "torchvision": torchvision.__version__},
    }


def print_tables(report: dict, name: str) -> None:
    """The numbers, one column a row of the JSON, with as many digits as they are worth; then what each one is."""

    def text(metric: str, value: float) -> str:
        digits = 1 if "fd" in metric else 2 if metric.startswith(("psnr", "consistency")) else 4
        return "-" if np.isnan(value) else f"{value:.{digits}f}"

    def title(metric: str) -> str:
        return f"{metric} ({name})" if "fd" in metric else definitions.HEADINGS.get(metric, metric)

    def show(rows: dict[str, dict[str, float]]) -> str:
        found = {metric for row in rows.values() for metric in row}
        metrics = [metric for metric in definitions.ORDER if metric in found]
        columns = {row: [text(metric, values.get(metric, np.nan)) for metric in metrics] for row, values in rows.items()}
        return pd.DataFrame(columns, index=list(map(title, metrics))).to_string()

    print(f"\n{show(report['rows'])}\n\ndegradation\n{show(report['degradation'])}\n")
    groups = report.get("groups", {})
    for metric in definitions.GROUP_METRICS if groups else ():
        columns = {row: {group: text(metric, mean[metric]) for group, mean in means.items()} for row, means in groups.items()}
        faces = {group: mean["faces"] for group, mean in groups["bicubic"].items()}
        print(f"groups, {title(metric)}\n{pd.DataFrame({'faces': faces} | columns).to_string()}\n")
    print("\n".join(f"{metric}: {definition}" for metric, definition in report["definitions"].items()), end="\n\n")


def save_sheet(path: Path, faces: TestFaces, methods: dict[str, Method], seed: int) -> None:
    """Real faces, test faces and one face degraded eight ways, each with what every method makes of it; chosen by seed."""
    real, test = (choose(len(images), utils.SHEET_COLUMNS, seed) for images in (faces.inputs["real"], faces.y))
    rows = {"real": (["real"], real), "clean": (["clean"], test), "z 1": (["z 1"], test)}
    rows[f"one face: {', '.join(DEGRADATIONS)}"] = (DEGRADATIONS, test[:1])
    pictures = {}
    for title, (kinds, index) in rows.items():
        pictures[title] = to_unit_range(torch.cat([faces.inputs[kind][index] for kind in kinds]))
        for name, method in methods.items():
            if {*kinds} <= {*method.kinds}:
                pictures[f"{name} of {title}"] = torch.cat([method.make(kind, index).cpu() for kind in kinds])
    utils.save_sheet(path, {"HR faces": to_unit_range(faces.y[test]), **pictures})


if __name__ == "__main__":
    utils.run_script(main)

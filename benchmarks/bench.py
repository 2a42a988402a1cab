"""Time this project against the reference's way of doing the same, side by side in one process, in turn.

    python benchmarks/bench.py                                      # everything; about half an hour on 2 CPU cores
    python benchmarks/bench.py stage2 sinkhorn --out results.md
    python benchmarks/bench.py --device cuda --out results.md       # a GPU: one call does it all

Every time is the median of --rounds rounds, both sides in turn (A B A B ...). Peak memory is that of a process of its own.
The sinkhorn part compares with what is installed of POT and geomloss: pip install POT geomloss; the onnx part needs
pip install onnx onnxscript onnxruntime.
"""

import argparse
import contextlib
import functools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torch.utils.flop_counter import flop_registry

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # run as a script, from any folder

import reference  # noqa: E402

import export  # noqa: E402
import test as inference  # noqa: E402
import train  # noqa: E402
import train_h2l  # noqa: E402
import utils  # noqa: E402
from Datasets.faces import BatchIndices, FaceBatches, PreparedFaces, row_bytes  # noqa: E402
from Datasets.images import walk_files  # noqa: E402
from losses import PerceptualLoss, critic_loss, gradient_penalty, sinkhorn  # noqa: E402
from models import Decoder, DegradationGenerator, FeatureExtractor, HRCritic, LRCritic, critics  # noqa: E402
from training.options import parse_options  # noqa: E402
from training.run import Run  # noqa: E402

CYCLE = range(6, 11)  # four critic-only iterations and a full one
BATCH = {"stage1": 20, "stage2": 13}
SHAPES = [(13, 16, 64), (256, 16, 64), (16, 256, 64)]  # problems, points of each side, dimensions
LOADER_FACES = 10_000
TEST_IMAGES, ONE_BY_ONE = 2000, 100
ERROR = 1e-2  # L1 error of the marginals that every Sinkhorn solver is asked for
CAP = reference.SINKHORN_ITERATIONS  # iterations that the others may take to reach it


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(function: Callable[[], object]) -> float:
    """Wall time of a call, to the end of the device's work."""
    synchronize()
    began = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - began


def in_turn(rounds: int, *functions: Callable[[], object]) -> list[float]:
    """The median time of each function over the rounds, each round calling all of them; one round before to warm up."""
    times: list[list[float]] = [[] for _ in functions]
    for number in range(rounds + 1):
        for function, taken in zip(functions, times):
            taken.append(seconds(function))
            if not number:
                taken.clear()
    return [statistics.median(taken) for taken in times]


def peak_memory() -> float:
    """This process's peak so far, in GB: the GPU's if there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's memory, from before exec
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def child(options: argparse.Namespace, *task: object) -> dict | None:
    """Run a task of CHILDREN in a process of its own; None if it failed, for want of memory mostly."""
    settings = ["--device", options.device, "--precision", options.precision, "--width", str(options.width)]
    command = [sys.executable, __file__, *settings, "--child"]
    result = subprocess.run([*command, json.dumps(task)], capture_output=True, text=True)
    return json.loads(result.stdout.splitlines()[-1]) if result.returncode == 0 else None


# --- training ----------------------------------------------------------------------------------------------------


def make_stage(part: str, options: argparse.Namespace, batch: int) -> train.SuperResolution | train_h2l.Degradation:
    """This project's stage at full width with its default settings and fresh weights, as the trainer makes it."""
    name, module = ("h2l", train_h2l) if part == "stage1" else ("sr", train)
    arguments = ["--device", options.device, "--precision", options.precision, "--batch-size", str(batch), "--out", ".",
                 "--width", str(options.width)]  # fmt: skip
    run = Run(name, *parse_options(module.build_parser(), arguments), module.COLUMNS)
    run.steps_per_epoch = 1  # past the first epoch: with the alignment
    if part == "stage1":
        return train_h2l.Degradation(run)
    return train.SuperResolution(run, DegradationGenerator(options.width), PerceptualLoss())


def make_faces(batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Random y, x_c and x_r in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, 3, 64, 64), (batch, 3, 16, 16), (batch, 3, 16, 16))
    return tuple((torch.rand(shape, generator=generator) * 2 - 1).to(device) for shape in shapes)


def ours_cycle(part: str, options: argparse.Namespace, batch: int) -> Callable[[], None]:
    """Four critic-only iterations and a full one, this project's way."""
    stage = make_stage(part, options, batch)
    y, x_c, x_r = make_faces(batch, stage.run.device)
    faces = (x_c, x_r) if part == "stage1" else (y, x_c)

    def cycle() -> None:
        for iteration in CYCLE:
            terms = stage.iterate(iteration, *faces)
            torch.stack([term.detach().float() for term in terms.values()]).tolist()  # as Run.finish does

    return cycle


def reference_cycle(part: str, options: argparse.Namespace, batch: int) -> Callable[[], None]:
    """The same, the reference's way; its picture grids go to a temporary folder."""
    stage = make_stage(part, options, batch)
    y, x_c, x_r = make_faces(batch, stage.run.device)
    folder = tempfile.TemporaryDirectory()
    other = (reference.Degradation if part == "stage1" else reference.SuperResolution)(stage, Path(folder.name))
    faces = (x_c, x_r) if part == "stage1" else (y, x_c, x_r)
    del stage

    def cycle(_folder: tempfile.TemporaryDirectory = folder) -> None:  # held as long as the cycle is
        for iteration in CYCLE:
            other.iterate(iteration, *faces)

    return cycle


CYCLES = {"ours": ours_cycle, "reference": reference_cycle}


class FlopCounter(TorchDispatchMode):
    """Adds up the FLOPs of convolutions and matrix products; PyTorch's own counter does not stand gradients of gradients."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        if count:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def convolution_peak(device: torch.device, dtype: torch.dtype, rounds: int) -> float:
    """FLOP/s of a large convolution: 3x3, 256 channels, 32x32 px, 32 images, channels_last."""
    layer = torch.nn.Conv2d(256, 256, 3, padding=1).to(device, dtype, memory_format=torch.channels_last)
    x = torch.randn(32, 256, 32, 32, device=device).to(dtype, memory_format=torch.channels_last)
    with torch.no_grad():
        (taken,) = in_turn(rounds, lambda: [layer(x) for _ in range(10)])
    return 10 * 2 * 32 * 32 * 32 * 256 * 256 * 9 / taken


def bench_stage(part: str, options: argparse.Namespace, _folder: Path) -> list[str]:
    batch = BATCH[part]
    device = utils.choose_device(options.device)
    dtype = utils.choose_precision(options.precision, device)
    both = {side: make(part, options, batch) for side, make in CYCLES.items()}
    with FlopCounter() as counter:
        both["ours"]()
    ours, slow = (taken / len(CYCLE) for taken in in_turn(options.rounds, *both.values()))
    peak = convolution_peak(device, dtype, options.rounds)
    operations = counter.total / len(CYCLE)
    rate = operations / ours
    memory = [child(options, "stage", part, side, batch) for side in both]
    gigabytes = [f"{found['memory']:.2f}" if found else "-" for found in memory]
    return [
        f"## {part}, batch {batch}",
        "| | s/iteration | ratio | GFLOP/iteration | GFLOP/s | of a large convolution's | peak memory, GB |",
        "|---|---|---|---|---|---|---|",
        f"| reference procedure, fp32 | {slow:.3f} | 1 | | | | {gigabytes[1]} |",
        f"| this project, {str(dtype)[6:]} | {ours:.3f} | {slow / ours:.2f} | {operations / 1e9:.0f} | "
        f"{rate / 1e9:.0f} | {rate / peak:.0%} of {peak / 1e9:.0f} | {gigabytes[0]} |",
    ]


def child_stage(options: argparse.Namespace, part: str, side: str, batch: int) -> dict:
    """Peak memory and seconds an iteration of one side alone."""
    cycle = CYCLES[side](part, options, batch)
    cycle()
    return {"seconds": seconds(cycle) / len(CYCLE), "memory": peak_memory()}


def bench_scaling(options: argparse.Namespace, _folder: Path) -> list[str]:
    sizes = [13, 26, 52, 104, *([208, 416, 1024] if utils.choose_device(options.device).type == "cuda" else [])]
    lines = ["## scaling of stage 2", "| batch | images/s | peak memory, GB |", "|---|---|---|"]
    for size in sizes:
        found = child(options, "stage", "stage2", "ours", size)
        lines.append(
            f"| {size} | {size / found['seconds']:.1f} | {found['memory']:.2f} |" if found else f"| {size} | failed | |"
        )
    return lines


def bench_compile(options: argparse.Namespace, _folder: Path) -> list[str]:
    """What torch.compile would make of E and S, the only networks that are differentiated once; the trainer does without it."""
    stage = make_stage("stage2", options, BATCH["stage2"])
    _, x_c, _ = make_faces(BATCH["stage2"], stage.run.device)
    eager = stage.extractor, stage.decoder
    compiled = tuple(torch.compile(network) for network in eager)

    def both_ways(extractor: torch.nn.Module, decoder: torch.nn.Module) -> None:
        with stage.run.autocast():
            sr = decoder(extractor(x_c))
        sr.float().sum().backward()

    lines = ["## torch.compile: E and S, forward and backward, batch 13", "| | s | s to compile |", "|---|---|---|"]
    try:
        first = seconds(lambda: both_ways(*compiled))
    except RuntimeError as error:  # no C++ compiler, for one
        return [*lines, f"| torch.compile | failed: {str(error).splitlines()[0]} | |"]
    slow, fast = in_turn(options.rounds, lambda: both_ways(*eager), lambda: both_ways(*compiled))
    return [*lines, f"| as they are | {slow:.3f} | |", f"| torch.compile | {fast:.3f} | {first - fast:.0f} |"]


def critic_update(critic: torch.nn.Module, batch: int, run: Run, side: int) -> Callable[[], None]:
    """One update's gradients: WGAN-GP's loss on random faces of `side` px, in the run's precision."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 3, side, side)
    real, fake = (torch.rand(shape, generator=generator).to(run.device) for _ in range(2))
    mix = torch.rand(batch, generator=generator).to(run.device)

    def update() -> None:
        critic.zero_grad(set_to_none=True)
        with run.autocast():
            fake_scores, real_scores = critic(torch.cat([fake, real])).chunk(2)
            penalty = gradient_penalty(critic, real, fake, mix)
        (critic_loss(fake_scores, real_scores) + 10 * penalty).backward()

    return update


def profile(update: Callable[[], None], device: torch.device) -> list[str]:
    """The operations, or a GPU's kernels, that take most of a call's time."""
    kinds = torch.profiler.ProfilerActivity
    cuda = device.type == "cuda"
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA] if cuda else [kinds.CPU]) as found:
        seconds(update)
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    rows = sorted(found.key_averages(), key=lambda row: -getattr(row, key))[:6]
    return [f"| {row.key[:90]} | {row.count} | {getattr(row, key) / 1000:.2f} |" for row in rows]


def bench_critic(options: argparse.Namespace, _folder: Path) -> list[str]:
    """The critics' updates with PyTorch's own second derivative of a convolution and with this project's, in both layouts."""
    lines = ["## one critic update, forward and backward with the gradient penalty", "| critic | layout | ms, PyTorch's second "
             "derivative | ms, this project's | ratio |", "|---|---|---|---|---|"]  # fmt: skip
    profiles: list[str] = []
    for part, kind, side in (("stage1", LRCritic, 16), ("stage2", HRCritic, 64)):
        run = make_stage(part, options, BATCH[part]).run
        for layout in (torch.contiguous_format, torch.channels_last):
            updates = []
            for own in (True, False):
                critic = kind(options.width).to(run.device, memory_format=layout)
                for layer in critic.modules() if own else ():
                    if isinstance(layer, critics.Convolution) and not (
                        isinstance(layer, critics.SmallMapConvolution) and run.device.type == "cpu"
                    ):
                        layer.forward = functools.partial(torch.nn.Conv2d.forward, layer)
                updates.append(critic_update(critic, BATCH[part], run, side))
            pytorchs, ours = in_turn(options.rounds, *updates)
            lines.append(f"| {kind.__name__} | {'NCHW' if layout == torch.contiguous_format else 'channels_last'} | "
                         f"{1000 * pytorchs:.1f} | {1000 * ours:.1f} | {pytorchs / ours:.2f} |")  # fmt: skip
        for title, update in zip(("PyTorch's second derivative", "this project's"), updates):
            profiles += ["", f"{kind.__name__}, channels_last, {title}: what takes longest", "",
                         "| operation | calls | ms |", "|---|---|---|", *profile(update, run.device)]  # fmt: skip
    return [*lines, *profiles]


# --- data and test.py --------------------------------------------------------------------------------------------


def bench_data(options: argparse.Namespace, folder: Path) -> list[str]:
    batch = BATCH["stage2"]
    path = folder / "bench.faces"
    np.random.default_rng(0).integers(0, 256, (LOADER_FACES, row_bytes("HR")), dtype=np.uint8).tofile(path)
    faces = PreparedFaces(path, "HR")
    device = utils.choose_device(options.device)
    count = len(faces) // batch

    def load(workers: int) -> None:
        indices = BatchIndices(len(faces), len(faces), batch, 0, 0, count)
        loader = DataLoader(FaceBatches(faces), batch_size=None, sampler=indices, num_workers=workers)
        for pictures in loader:
            [utils.to_unit_range(picture.to(device)) for picture in pictures]

    workers = (0, 2, 8)
    step = ours_cycle("stage2", options, batch)
    *loads, taken = in_turn(options.rounds, *(lambda n=n: load(n) for n in workers), step)
    consumed = batch * len(CYCLE) / taken
    lines = ["## data", "| workers | images/s | times what stage 2 consumes |", "|---|---|---|"]
    for number, taken in zip(workers, loads):
        lines.append(f"| {number} | {count * batch / taken:.0f} | {count * batch / taken / consumed:.0f} |")
    return [*lines, "", f"Stage 2 consumes {consumed:.1f} images/s; workers' start is included, {LOADER_FACES} faces a round."]


def bench_test(options: argparse.Namespace, folder: Path) -> list[str]:
    target, slow_target = folder / "results", folder / "one_by_one"
    rng = np.random.default_rng(0)
    sources = [folder / f"faces_{number}" for number in range(options.rounds)]  # the images are shared among the rounds
    for path in (target, slow_target, *sources):
        path.mkdir()
    for number in range(TEST_IMAGES):
        side = rng.integers(12, 30)
        face = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        face.save(sources[number % len(sources)] / f"{number}.png")
    device = utils.choose_device(options.device)
    torch.manual_seed(0)
    extractor, decoder = FeatureExtractor(), Decoder()
    weights = {"extractor": extractor.state_dict(), "decoder": decoder.state_dict()}
    utils.save_checkpoint(folder / "sr.pth", "sr", {"width": 64, "settings": {}, "weights": weights})
    extractor, decoder = extractor.eval().to(device), decoder.eval().to(device)
    files = walk_files(sources[0])
    where = ["--weights", str(folder / "sr.pth"), "--output", str(target), "--device", options.device]
    counts: dict[str, int] = {}

    def fast(precision: str) -> None:
        counts[precision] = counts.get(precision, -1) + 1  # the first call warms up
        source = sources[counts[precision] % len(sources)]
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            inference.main([*where, "--input", str(source), "--precision", precision])

    def one_by_one() -> None:
        reference.super_resolve_one_by_one(extractor, decoder, files[:ONE_BY_ONE], slow_target)

    precisions = ["fp32", *(["bf16"] if utils.choose_precision("auto", device) == torch.bfloat16 else [])]
    *taken, slow = in_turn(options.rounds, *(lambda p=p: fast(p) for p in precisions), one_by_one)
    base, images = min(ONE_BY_ONE, len(files)) / slow, TEST_IMAGES / len(sources)
    lines = ["## test.py, decode to PNG", "| | images/s | ratio |", "|---|---|---|", f"| one by one, fp32 | {base:.1f} | 1 |"]
    for precision, duration in zip(precisions, taken):
        lines.append(f"| test.py --precision {precision} | {images / duration:.1f} | {images / duration / base:.2f} |")
    start = statistics.median([start_up("import torch", []) for _ in range(options.rounds)])
    one = [
        "--input",
        str(files[0]),
        "--output",
        str(target / "one"),
        "--weights",
        str(folder / "sr.pth"),
        "--device",
        options.device,
    ]
    whole = statistics.median([start_up(None, one) for _ in range(options.rounds)])
    return [
        *lines,
        "",
        f"{TEST_IMAGES} images of 12 to 29 px, {images:.0f} a round, loading the weights included; one by one {ONE_BY_ONE} a "
        f"round. `test.py` on one image takes {whole:.2f} s, `import torch` {start:.2f} s: {whole - start:.2f} s beyond it.",
    ]


def bench_onnx(options: argparse.Namespace, folder: Path) -> list[str]:
    """The shipped network on 8-bit batches of 64, in PyTorch as test.py runs it and in onnxruntime, on the CPU."""
    import onnxruntime

    source, target = utils.SHIPPED / "sr.pth", folder / "face_sr.onnx"
    export.export_onnx(source, target, eight_bit=True)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(target, settings, providers=["CPUExecutionProvider"])
    faces = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8)
    device = torch.device("cpu")
    precisions = [torch.float32, *([torch.bfloat16] if utils.choose_precision("auto", device) == torch.bfloat16 else [])]
    functions = [functools.partial(utils.SuperResolver(source, device, precision).pictures, faces) for precision in precisions]
    *taken, onnx = in_turn(options.rounds, *functions, lambda: session.run(None, {"faces": faces.numpy()}))
    lines = ["## ONNX, batches of 64", "| | images/s | ratio |", "|---|---|---|"]
    for name, duration in zip([*(f"PyTorch, {str(precision)[6:]}" for precision in precisions), "onnxruntime"], [*taken, onnx]):
        lines.append(f"| {name} | {len(faces) / duration:.1f} | {taken[0] / duration:.2f} |")
    return lines


def start_up(code: str | None, arguments: list[str]) -> float:
    """Seconds that a new Python takes for a line of code, or for test.py with these arguments."""
    command = ["-c", code] if code else [str(ROOT / "test.py"), *arguments]
    return seconds(lambda: subprocess.run([sys.executable, *command], check=True, capture_output=True, cwd=ROOT))


# --- Sinkhorn ----------------------------------------------------------------------------------------------------


def marginal_error(plan: Tensor) -> float:
    """The largest L1 error of a problem's rows and columns together."""
    rows, columns = plan.sum(dim=2) - 1 / plan.shape[1], plan.sum(dim=1) - 1 / plan.shape[2]
    return (rows.abs().sum(dim=1) + columns.abs().sum(dim=1)).max().item()


Solved = tuple[Tensor, Callable[[], float]]  # a solver's distances [B] and, computed when asked for, its marginal error


def solve_ours(x: Tensor, y: Tensor, eps: float, _effort: int) -> Solved:
    cost = sinkhorn.squared_distances(x.detach(), y)
    return sinkhorn.sinkhorn_distance(x, y, eps, ERROR), lambda: marginal_error(sinkhorn.solve(cost, eps, ERROR).plan)


def solve_unrolled(x: Tensor, y: Tensor, eps: float, effort: int) -> Solved:
    value, plan = reference.unrolled_sinkhorn(x, y, eps, effort)
    return value, lambda: marginal_error(plan.detach())


def solve_pot(x: Tensor, y: Tensor, eps: float, effort: int) -> Solved:
    from ot.batch import solve_sample_batch

    result = solve_sample_batch(x, y, reg=eps, max_iter=effort, tol=0, method="log_sinkhorn", grad="envelope")
    return result.value, lambda: marginal_error(result.plan.detach())


def solve_geomloss(x: Tensor, y: Tensor, eps: float, effort: int) -> Solved:
    """geomloss goes from the points' diameter to the blur, `scaling` by `scaling`: here in as many steps as `effort` says."""
    from geomloss import SamplesLoss

    blur = (eps / 2) ** 0.5  # of half the squared distance, its cost
    scaling = (blur / 30) ** (1 / effort)
    loss = {"loss": "sinkhorn", "p": 2, "blur": blur, "scaling": scaling, "debias": False, "backend": "tensorized"}

    def error() -> float:
        with torch.no_grad():
            f, g = SamplesLoss(**loss, potentials=True)(x, y)
            exponent = (f[:, :, None] + g[:, None] - sinkhorn.squared_distances(x, y) / 2) / (eps / 2)
            return marginal_error(torch.exp(exponent) / (x.shape[1] * y.shape[1]))

    return SamplesLoss(**loss)(x, y), error


SOLVERS = {"this project": solve_ours, "unrolled, log domain": solve_unrolled, "POT": solve_pot, "geomloss": solve_geomloss}


def points(shape: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    return x.requires_grad_(), y


def child_sinkhorn(options: argparse.Namespace, solver: str, shape: list[int], eps: float, effort: int) -> dict:
    """Peak memory of one forward and backward pass beyond what the process had before, in GB."""
    x, y = points(tuple(shape), utils.choose_device(options.device))
    SOLVERS[solver](*points((2, 4, 64), x.device), eps, 3)[0].sum().backward()  # imports and buffers
    before = peak_memory()
    SOLVERS[solver](x, y, eps, effort)[0].sum().backward()
    return {"memory": max(0.0, peak_memory() - before)}


def bench_sinkhorn(options: argparse.Namespace, _folder: Path) -> list[str]:
    device = utils.choose_device(options.device)
    lines = [
        "## Sinkhorn, forward and backward, fp32",
        "| shape | eps | solver | ms | iterations | L1 error of the marginals | memory beyond the start, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for shape in SHAPES:
        x, y = points(shape, device)
        scale = sinkhorn.squared_distances(x.detach(), y).mean().item()
        for eps in (0.05 * scale, 1e-3):
            efforts: dict[str, int] = {}
            errors: dict[str, float] = {}
            for name, solver in SOLVERS.items():
                effort = 10
                try:
                    error = solver(x, y, eps, effort)[1]()
                    while error > ERROR and effort < CAP and solver is not solve_ours:
                        effort = min(CAP, 2 * effort)
                        error = solver(x, y, eps, effort)[1]()
                except ImportError as missing:
                    lines.append(f"| {list(shape)} | {eps:.3g} | {name} | not installed: pip install {missing.name} | | | |")
                    continue
                efforts[name], errors[name] = effort, error
            efforts["this project"] = sinkhorn.solve(sinkhorn.squared_distances(x.detach(), y), eps, ERROR).iterations

            def both_ways(name: str, x: Tensor = x, y: Tensor = y, eps: float = eps, efforts: dict = efforts) -> None:
                x.grad = None
                SOLVERS[name](x, y, eps, efforts[name])[0].sum().backward()

            times = in_turn(options.rounds, *(lambda n=name, f=both_ways: f(n) for name in efforts))
            for name, taken in zip(efforts, times):
                found = child(options, "sinkhorn", name, shape, eps, efforts[name])
                memory = f"{1000 * found['memory']:.0f}" if found else "failed"
                error = f"{errors[name]:.1e}" + ("" if errors[name] <= 1.01 * ERROR else " (not reached)")
                lines.append(
                    f"| {list(shape)} | {eps:.3g} | {name} | {1000 * taken:.1f} | {efforts[name]} | {error} | {memory} |"
                )
    return [*lines, "", f"Asked of each: an error of {ERROR:g}; the others' iterations are doubled up to it, or to {CAP}."]


# --- the command -------------------------------------------------------------------------------------------------

BENCHES: dict[str, Callable[[argparse.Namespace, Path], list[str]]] = {
    "stage1": functools.partial(bench_stage, "stage1"),
    "stage2": functools.partial(bench_stage, "stage2"),
    "critic": bench_critic,
    "test": bench_test,
    "onnx": bench_onnx,
    "data": bench_data,
    "sinkhorn": bench_sinkhorn,
    "scaling": bench_scaling,
    "compile": bench_compile,
}
CHILDREN = {"stage": child_stage, "sinkhorn": child_sinkhorn}


def main() -> None:
    parser = utils.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(BENCHES)} (default: all)")
    parser.option("rounds", 7, "rounds of each measurement")
    parser.option("device", "auto", "auto: the GPU if there is one")
    parser.option("precision", "auto", "auto: bf16 where the hardware has it, else fp32", choices=("auto", "fp32", "bf16"))
    parser.option("width", 64, "channels of the networks' first layers; less to try whether a part runs")
    parser.option("out", "", "also write the tables to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, *arguments = json.loads(options.child)
        print(json.dumps(CHILDREN[name](options, *arguments)))
        return
    unknown = set(options.parts) - set(BENCHES)
    if unknown or options.rounds < 1:
        parser.error(f"no such part: {', '.join(sorted(unknown))}" if unknown else "--rounds must be at least 1")
    device = utils.choose_device(options.device)
    model = torch.cuda.get_device_name() if device.type == "cuda" else processor()
    dtype = str(utils.choose_precision(options.precision, device))[6:]
    text = [
        f"{device.type}: {model}, {torch.get_num_threads()} threads; {dtype}, TF32 off; PyTorch {torch.__version__}, "
        f"Python {platform.python_version()}; medians of {options.rounds} rounds, both sides in turn",
        "",
    ]
    print("\n".join(text))
    for part in [part for part in BENCHES if part in (options.parts or BENCHES)]:
        with tempfile.TemporaryDirectory() as folder:
            lines = BENCHES[part](options, Path(folder))
        print("\n".join([*lines, ""]), flush=True)
        text += [*lines, ""]
        if options.out:
            Path(options.out).write_text("\n".join(text))


def processor() -> str:
    """The CPU's name."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if cpuinfo.exists()
        else []
    )
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    utils.run_script(main)

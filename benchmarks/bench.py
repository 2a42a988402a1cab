"""Time what this project does: iterations of both stages, super-resolution, and the Sinkhorn distance.

    python benchmarks/bench.py                                      # everything; about five minutes on 2 CPU cores
    python benchmarks/bench.py stage2 sinkhorn --out results.md
    python benchmarks/bench.py --device cuda --out results.md       # a GPU

Every time is the median of --rounds rounds after one to warm up.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from any folder

import train  # noqa: E402
import train_h2l  # noqa: E402
import utils  # noqa: E402
from losses import PerceptualLoss, sinkhorn_distance  # noqa: E402
from models import DegradationGenerator  # noqa: E402
from training.options import parse_options  # noqa: E402
from training.run import Run  # noqa: E402

CYCLE = range(6, 11)  # iterations; in stage 1, four of the critic alone and a full one
BATCHES = [8, 16, 32, 64]
FACES = 64  # that are super-resolved at a time
SHAPES = [(16, 16, 64), (64, 16, 64), (256, 16, 64)]  # problems, points of each side, dimensions


def seconds(function: Callable[[], object], rounds: int) -> float:
    """The median wall time of a call, to the end of the device's work."""
    taken = []
    for _ in range(rounds + 1):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def make_cycle(part: str, options: argparse.Namespace, batch: int) -> Callable[[], None]:
    """CYCLE of a stage with its default settings, fresh weights and random faces; stage 2 with its alignment."""
    name, module = ("h2l", train_h2l) if part == "stage1" else ("sr", train)
    arguments = ["--device", options.device, "--precision", options.precision, "--batch-size", str(batch), "--out", ".",
                 "--width", str(options.width)]  # fmt: skip
    run = Run(name, *parse_options(module.build_parser(), arguments), module.COLUMNS)
    run.steps_per_epoch = 1  # past the first epochs: with the alignment
    y, x_c, x_r = (torch.rand(batch, 3, side, side, device=run.device) * 2 - 1 for side in (64, 16, 16))
    if part == "stage1":
        stage, faces = train_h2l.Degradation(run), (x_c, x_r)
    else:
        stage, faces = train.SuperResolution(run, DegradationGenerator(options.width), PerceptualLoss()), (y, x_c)

    def cycle() -> None:
        for iteration in CYCLE:
            terms = stage.iterate(iteration, *faces)
            run.state.update_averages()
            torch.stack([term.detach().float() for term in terms.values()]).tolist()  # as Run.finish does

    return cycle


class FlopCounter(TorchDispatchMode):
    """Adds up the FLOPs of convolutions and matrix products; PyTorch's own counter does not stand gradients of gradients."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if count := flop_registry.get(function._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def bench_stage(part: str, options: argparse.Namespace) -> list[str]:
    """Seconds and GFLOP of an iteration."""
    module = train_h2l if part == "stage1" else train
    batch = module.build_parser().defaults["batch_size"]
    cycle = make_cycle(part, options, batch)
    with FlopCounter() as counter:
        cycle()
    taken, operations = seconds(cycle, options.rounds) / len(CYCLE), counter.total / len(CYCLE) / 1e9
    return [f"## {part}, batch {batch}", "", "| s/iteration | images/s | GFLOP/iteration | GFLOP/s |", "|---|---|---|---|",
            f"| {taken:.3f} | {batch / taken:.1f} | {operations:.0f} | {operations / taken:.0f} |"]  # fmt: skip


def bench_scaling(options: argparse.Namespace) -> list[str]:
    """Images per second of stage 2 by its batch size."""
    rates = [len(CYCLE) * batch / seconds(make_cycle("stage2", options, batch), options.rounds) for batch in BATCHES]
    return ["## stage 2 by batch size", "", "| batch | images/s |", "|---|---|",
            *(f"| {batch} | {rate:.1f} |" for batch, rate in zip(BATCHES, rates))]  # fmt: skip


def bench_test(options: argparse.Namespace) -> list[str]:
    """Faces per second of the shipped network, without reading or writing files."""
    device = utils.choose_device(options.device)
    faces = torch.randint(0, 256, (FACES, 3, 16, 16), dtype=torch.uint8)
    lines = [f"## super-resolution, batches of {FACES}", "", "| precision | images/s |", "|---|---|"]
    for name in ["fp32", *(["bf16"] if utils.has_bf16(device) else [])]:
        resolver = utils.SuperResolver(utils.SHIPPED / "sr.pth", device, utils.choose_precision(name, device))
        lines.append(f"| {name} | {len(faces) / seconds(lambda r=resolver: r.pictures(faces), options.rounds):.1f} |")
    return lines


def bench_sinkhorn(options: argparse.Namespace) -> list[str]:
    """Forward and backward of the Sinkhorn distance at eps 1e-3, of random points."""
    device = utils.choose_device(options.device)
    lines = ["## Sinkhorn, forward and backward, fp32, eps 1e-3", "", "| problems, points, dimensions | ms |", "|---|---|"]
    for shape in SHAPES:
        x, y = torch.randn(shape, device=device).requires_grad_(), torch.randn(shape, device=device)
        taken = seconds(lambda x=x, y=y: sinkhorn_distance(x, y).sum().backward(), options.rounds)
        lines.append(f"| {', '.join(map(str, shape))} | {1000 * taken:.1f} |")
    return lines


BENCHES: dict[str, Callable[[argparse.Namespace], list[str]]] = {
    "stage1": lambda options: bench_stage("stage1", options),
    "stage2": lambda options: bench_stage("stage2", options),
    "scaling": bench_scaling,
    "test": bench_test,
    "sinkhorn": bench_sinkhorn,
}


def main(argv: list[str] | None = None) -> None:
    parser = utils.Parser(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(BENCHES)} (default: all)")
    parser.option("rounds", 5, "rounds of each measurement")
    parser.option("device", "auto", "auto: the GPU if there is one", choices=("auto", "cuda", "cpu"))
    parser.option("precision", "auto", "auto: bf16 where the hardware has it, else fp32", choices=("auto", "fp32", "bf16"))
    parser.option("width", 64, "channels of the networks' first layers; less to try whether a part runs")
    parser.option("out", "", "also write the tables to this file")
    options = parser.parse_args(argv)
    unknown = set(options.parts) - set(BENCHES)
    if unknown or options.rounds < 1:
        parser.error(f"no such part: {', '.join(sorted(unknown))}" if unknown else "--rounds must be at least 1")
    device = utils.choose_device(options.device)
    dtype = str(utils.choose_precision(options.precision, device))[6:]
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.processor() or 'CPU'}, {os.cpu_count()} cores"
    text = [f"{device.type}: {name}, {torch.get_num_threads()} threads; {dtype}; PyTorch {torch.__version__}, Python "
            f"{platform.python_version()}; medians of {options.rounds} rounds", ""]  # fmt: skip
    for part in [part for part in BENCHES if part in (options.parts or BENCHES)]:
        text += [*BENCHES[part](options), ""]
        if options.out:
            Path(options.out).write_text("\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    utils.run_script(main)

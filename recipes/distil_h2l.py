"""One degradation generator out of several, and of more or less of what they change: how weights/h2l.pth came to be.

    python recipes/distil_h2l.py --data WIDE --teachers a/h2l.pth b/h2l.pth --amounts 1 0.33 --out runs/h2l.pth

A new G, which starts as the first teacher, learns by MSE to make x_c + sum_i amount_i * (G_i(x_c, z) - x_c). Amounts whose sum
is above 1 exaggerate what a cautious G does; docs/make_frontier.py measures which are worth it.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.nn import functional

import utils
from Datasets.faces import prepare_faces
from models import DegradationGenerator
from training.phases import warm_up_and_cosine

BETAS = (0.9, 0.99)  # of Adam
WARM_UP = 40  # iterations
SAY_EVERY = 100  # iterations


def build_parser() -> utils.Parser:
    parser = utils.Parser(description=__doc__)
    option = parser.option
    option("data", "Datasets", "folder of HR_train.csv", metavar="DIR")
    option("cache", "", "folder of the prepared faces; empty: .cache in the data folder", metavar="DIR")
    option("resize", 100, "as in train_h2l.py")
    option("crop", 64, "as in train_h2l.py")
    option("teachers", [], "h2l.pth files, all of one width", nargs="+", metavar="PATH", required=True)
    option("amounts", [], "of what each teacher changes", nargs="+", metavar="X", type=float, required=True)
    option("steps", 500, "iterations")
    option("batch-size", 32, "faces in an iteration")
    option("generator-lr", 2e-4, "learning rate of Adam; it rises for 40 iterations and falls by a cosine")
    option("seed", 0, "seed of the faces and of z")
    option("device", "auto", "auto: the GPU if there is one")
    option("precision", "auto", "auto: bf16 where the hardware has it, else fp32", choices=("auto", "fp32", "bf16"))
    option("out", "h2l.pth", "the file to write")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    options = parser.parse_args(argv)
    utils.check_framing(parser, options)
    if (count := len(options.amounts)) != len(options.teachers):
        parser.error(f"--amounts: {count} for {utils.plural(len(options.teachers), 'teacher')}; give one to each")
    for name in ("steps", "batch_size"):
        if (value := getattr(options, name)) < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: must be at least 1")
    with utils.explain_out_of_memory(options.batch_size):
        distil(options)


def distil(options: argparse.Namespace) -> None:
    """Train the new G, and write it to --out."""
    device = utils.choose_device(options.device)
    dtype = utils.choose_precision(options.precision, device)
    loaded = [utils.load_degradation(Path(path), "train_h2l.py writes such files") for path in options.teachers]
    width = utils.common_width([content for _, content in loaded], "--teachers", "teachers")
    utils.make_folder(Path(options.out).parent, "--out")
    place = {"device": device, "memory_format": torch.channels_last}
    teachers = [teacher.to(**place) for teacher, _ in loaded]
    student = DegradationGenerator(width).to(**place)
    student.load_state_dict(teachers[0].state_dict())
    optimizer = torch.optim.Adam(student.parameters(), options.generator_lr, BETAS, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up_and_cosine(WARM_UP, options.steps))
    cache = Path(options.cache or Path(options.data, ".cache"))
    faces = prepare_faces(Path(options.data, "HR_train.csv"), "HR", cache, options.resize, options.crop)
    random = torch.Generator().manual_seed(options.seed)
    for iteration in range(1, options.steps + 1):
        indices = torch.randint(len(faces), (options.batch_size,), generator=random)
        x_c = utils.to_unit_range(faces[indices.numpy()][1]).to(device)
        z = torch.randn(options.batch_size, student.noise_channels, generator=random).to(device)
        with utils.autocast(device, dtype):
            changes = [amount * (teacher(x_c, z) - x_c) for amount, teacher in zip(options.amounts, teachers)]
            loss = functional.mse_loss(student(x_c, z).to(x_c.dtype), x_c + sum(changes))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if not loss.isfinite():
            raise utils.UserError(f"the loss is {loss.item()} at iteration {iteration}: lower --generator-lr")
        if iteration % SAY_EVERY == 0 or iteration == options.steps:
            print(f"iteration {iteration} of {options.steps}: mean squared error {loss.item():.2e}", flush=True)
    content = {"width": width, "settings": vars(options), "weights": {"generator": student.state_dict()}}
    utils.save_checkpoint(Path(options.out), "h2l", content)
    print(f"written: {options.out}")


if __name__ == "__main__":
    utils.run_script(main)

"""Stage 1: train the degradation generator G, which makes clean LR faces look like real LR faces.

    python train_h2l.py --data Datasets --out Trained_Models
    python train_h2l.py --width 16 --steps-per-epoch 100                     # a quick look on a CPU
    torchrun --nproc_per_node=4 train_h2l.py --batch-size 80                 # four GPUs

x_d = G(x_c, z): a WGAN-GP critic D_l compares x_d with unpaired real LR faces x_r, and a pixel
loss keeps x_d close to x_c, with a weight of its own for the mean colour. A run resumes from its own
state in --out. G's weights are written to h2l.pth, for train.py.
"""

import argparse
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # where PYTHONSAFEPATH is set, Python leaves it out

import torch
from torch.nn import functional

import utils
from losses import adversarial_loss, critic_terms
from models import DegradationGenerator, LRCritic
from training.folder import exclusive
from training.options import parse_options, training_parser
from training.run import Run

COLUMNS = [
    "critic_loss", "wasserstein", "gradient_penalty", "generator_loss", "pixel_loss", "colour_loss", "adversarial_loss",
    "saturated", "psnr_degraded",
]  # fmt: skip
CRITIC_BETAS = (0.5, 0.9)  # of Adam on D_l


def build_parser() -> utils.Parser:
    parser = training_parser(__doc__, "h2l", batch_size=20, epochs=4, betas=[0.5, 0.999], ema_decay=0.99,
                             beginnings={"random": "PyTorch's"})  # fmt: skip
    option = parser.option
    option("generator-lr", 3e-4, "learning rate of Adam on G", "ours; reference 1e-4")
    option("critic-lr", 6e-4, "learning rate of Adam on D_l", "ours; reference 4e-4, of SGD")
    # With the reference's weights x_d loses the face: see docs/DIFFERENCES.md
    option("pixel-weight", 4.0, "weight of MSE(x_d, x_c), each face's mean colour left out", "ours; reference 0.8")
    option("colour-weight", 15.0, "weight of the rest of it, the squared difference of the mean colours", "ours; reference 0.8")
    option("adversarial-weight", 1.0, "weight of -D_l(x_d)", "reference")
    return parser


def main(argv: list[str] | None = None) -> None:
    options, given = parse_options(build_parser(), argv)
    with exclusive(options.out, "h2l"), utils.explain_out_of_memory(options.batch_size):
        train(options, given)


class Degradation:
    """Stage 1: the networks and optimizers of a run, and what one iteration does with them."""

    def __init__(self, run: Run) -> None:
        """The networks to train are made here, from the run's seed."""
        options = run.options
        self.run, self.options = run, options
        self.G = run.network("generator", DegradationGenerator(options.width), inference=True)
        self.D = run.network("critic", LRCritic(options.width))
        if options.initial_weights != "random":
            run.load_initial_weights()
        adam = functools.partial(torch.optim.Adam, fused=True)
        self.adam_G = run.optimizer("generator", adam(self.G.parameters(), options.generator_lr, options.betas))
        self.adam_D = run.optimizer("critic", adam(self.D.parameters(), options.critic_lr, CRITIC_BETAS))

    def iterate(self, iteration: int, x_c: torch.Tensor, x_r: torch.Tensor) -> dict[str, torch.Tensor]:
        """One iteration, from 1, with clean and real LR faces x_c and x_r -> its terms.

        x_c, x_r: [N, 3, 16, 16] in [-1, 1].
        """
        generate = iteration % self.options.critic_updates == 0
        z = self.run.normal(DegradationGenerator.noise_channels).to(x_c)
        with torch.set_grad_enabled(generate):  # a graph only where G learns from it
            x_d = self.G(x_c, z)
        terms = self.update_critic(x_d.detach(), x_r)
        if generate:
            terms |= self.update_generator(x_d, x_c)
        return terms

    def update_critic(self, x_d: torch.Tensor, x_r: torch.Tensor) -> dict[str, torch.Tensor]:
        """D_l learns to tell x_d from x_r: WGAN-GP."""
        terms = critic_terms(self.D, x_d, x_r, self.run.uniform().to(x_r))
        self.run.step(self.adam_D, terms["critic_loss"])
        return terms

    def update_generator(self, x_d: torch.Tensor, x_c: torch.Tensor) -> dict[str, torch.Tensor]:
        """G learns to make x_d look real to the frozen D_l, and to keep it close to x_c.

        MSE(x_d, x_c) is the sum of pixel and colour: real LR faces are darker and tinted, and what
        that costs would otherwise hide what blur and noise cost.
        """
        options = self.options
        with utils.frozen(self.D.module):
            adversarial = adversarial_loss(self.D(x_d))
        colour = functional.mse_loss(x_d.mean(dim=(2, 3)), x_c.mean(dim=(2, 3)))
        pixel = functional.mse_loss(x_d, x_c) - colour
        total = options.pixel_weight * pixel + options.colour_weight * colour + options.adversarial_weight * adversarial
        self.run.step(self.adam_G, total)
        terms = {"generator_loss": total, "pixel_loss": pixel, "colour_loss": colour, "adversarial_loss": adversarial}
        return terms | {"saturated": utils.saturated(x_d).mean()}

    def sample(self, path: Path) -> dict[str, float]:
        """Write a sheet of clean, degraded and real LR faces; the PSNR of degraded against clean."""
        run = self.run
        _, clean = run.faces("HR_test")[: utils.SAMPLE_FACES]
        (real,) = run.faces("LR_test")[: utils.SHEET_COLUMNS]
        clean, real = (utils.to_unit_range(faces).to(run.device) for faces in (clean, real))
        noise = torch.Generator().manual_seed(utils.SAMPLE_SEED)
        draws = [torch.randn(len(clean), DegradationGenerator.noise_channels, generator=noise).to(clean) for _ in range(4)]
        with run.evaluating() as (G,):
            degraded = [G(clean, z) for z in draws]
        rows = {f"degraded, z {number}": x_d for number, x_d in enumerate(degraded, 1)}
        rows = {"clean (HR_test)": clean, **rows, "real LR (LR_test)": real}
        utils.save_sheet(path, {title: faces[: utils.SHEET_COLUMNS] for title, faces in rows.items()})
        return {"psnr_degraded": utils.psnr(torch.cat(degraded), clean.repeat(4, 1, 1, 1)).mean().item()}


def train(options: argparse.Namespace, given: set[str]) -> None:
    """Stage 1 from the first batch to the last; `given`: the options that the user named."""
    run = Run("h2l", options, given, COLUMNS)
    hr_train, lr_train, *_ = (run.faces(name) for name in ("HR_train", "LR_train", "HR_test", "LR_test"))
    stage = Degradation(run)
    for iteration, (_, x_c, x_r) in run.batches(hr_train, lr_train):
        run.finish(stage.iterate(iteration, x_c, x_r), stage.sample)


if __name__ == "__main__":
    utils.run_script(main)

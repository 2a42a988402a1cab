"""Stage 2: train the feature extractor E and the SR decoder S on clean and degraded LR faces.

    python train.py --data Datasets --out Trained_Models                        # after train_h2l.py
    python train.py --initial-weights sr.pth --generator-lr 0 --out aligned     # align a trained network, E alone
    python train.py --vgg-weights random --width 16 --h2l demo/h2l.pth          # a smoke run
    torchrun --nproc_per_node=4 train.py --batch-size 64                        # four GPUs

x_d = G(x_c, z) comes from the frozen generator of stage 1; x_m = alpha * x_c + (1 - alpha) * x_d.
S(E(x)) learns the HR face y, x being x_m or x_s, which is y degraded without a network. Sinkhorn
distances pull E(x_c) and E(x_d) towards E(x_m): the smooth features of the paper's title. A run
resumes from its own state in --out. The weights of E and S are written to sr.pth, for test.py.
"""

import argparse
import copy
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # where PYTHONSAFEPATH is set, Python leaves it out

import torch
from torch.nn import functional

import utils
from Datasets import degradations
from losses import PerceptualLoss, adversarial_loss, alignment_loss, critic_terms, scaled_alignment_loss
from models import LR_SIZE, Decoder, DegradationGenerator, FeatureExtractor, HRCritic
from models.super_resolution import INTERPOLATION_WIDTH, begin_as_interpolation
from training.augment import AUGMENTATIONS, UNIFORMS, augment
from training.folder import exclusive
from training.options import parse_options, training_parser
from training.run import Run

COLUMNS = [
    "critic_loss", "wasserstein", "gradient_penalty", "generator_loss", "perceptual_loss", "l1_loss", "adversarial_loss",
    "alignment_loss", "saturated", "psnr_clean", "psnr_degraded", "psnr_mixed", "psnr_synthetic",
]  # fmt: skip
BEGINNINGS = {"interpolation": f"E and S begin as bicubic interpolation; random under --width {INTERPOLATION_WIDTH}",
              "random": "the reference's"}  # fmt: skip
CRITIC_LR = 4e-4  # of Adam on D_h; reference
CLEAN_SHARE = 0.2  # of the faces stay clean (alpha 1) where alpha is random
EXPOSURE = 0.3  # factor on the exposure of x_s (Datasets/degradations.py): at 1, clean faces suffer
VERSION_WEIGHTS = 1.0, 0.5  # of E(x_m) and E(x_s) in the alignment, beside alpha of E(x_c) and 1 - alpha of E(x_d)
SAMPLE_ALPHA = 0.3  # of the mix in sample sheets, where --alpha is random; the paper's


def alpha_value(text: str) -> float | str:
    """--alpha: random, or a number in [0, 1]."""
    if text == "random":
        return text
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be random, or a number in [0, 1]")
    return float(text)


def build_parser() -> utils.Parser:
    parser = training_parser(__doc__, "sr", batch_size=16, epochs=3, betas=[0.9, 0.99], ema_decay=0.998,
                             beginnings=BEGINNINGS)  # fmt: skip
    option = parser.option
    option("alpha", "random", "part of the clean face in the mix, in [0, 1], or random: drawn for each face, 1 for a fifth",
           "ours; paper 0.3", type=alpha_value, metavar="X")  # fmt: skip
    option("synthetic-share", 0.5, "part of the inputs that are x_s, degraded without a network", "ours; paper none")
    option("augment", "framing", "mirror: half of the faces; framing: also turn and enlarge half of all", "ours; paper none",
           choices=AUGMENTATIONS)  # fmt: skip
    option("generator-lr", 1e-3, "learning rate of Adam on E and S; 0: only E learns, by the alignment",
           "ours; reference 1e-4")  # fmt: skip
    option("l1-weight", [30.0, 5.0], "weight of L1 beside the perceptual loss; two numbers: from the run's start to its end",
           "ours; reference 0.5", nargs="+", type=float, metavar="X")  # fmt: skip
    option("adversarial-weight", 0.0, "weight of -D_h(S(E(x))); 0: no critic", "ours; reference 0.05")
    option("alignment-lr", 1e-4, "learning rate of the second Adam on E; 0: no alignment", "ours; reference 1e-6")
    option("ot-start-epoch", 3, "first epoch, from 1, with the alignment", "ours; reference 2")
    option("alignment-target", "ema", "online: E(x_c) and E(x_d) towards the E(x) that E and S have just learnt from; ema: "
           "these, E(x_m) and E(x_s) towards the EMA's E(x_m), in units of the distance between faces",
           "ours; reference online", choices=("online", "ema"))  # fmt: skip
    parser.section("files")
    option("h2l", "", "weights of stage 1; empty: h2l.pth in --out")
    option("vgg-weights", "imagenet", "imagenet (torchvision's VGG19, downloaded once), random, or a state dict", "paper")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    options, given = parse_options(parser, argv)
    if options.synthetic_share > 1:
        parser.error(f"--synthetic-share {options.synthetic_share}: must be in [0, 1]")
    if options.l1_weight[2:] or (options.l1_weight[1:] and 0 in options.l1_weight):
        parser.error(f"--l1-weight {' '.join(map(str, options.l1_weight))}: give one number, or two above 0")
    trained = options.initial_weights not in BEGINNINGS
    if not options.generator_lr and not (trained and options.alignment_lr and not options.adversarial_weight):
        parser.error("--generator-lr 0 aligns a trained network, without a critic: name it with --initial-weights")
    with exclusive(options.out, "sr"), utils.explain_out_of_memory(options.batch_size):
        train(options, given)


class SuperResolution:
    """Stage 2: the networks and optimizers of a run, and what one iteration does with them."""

    def __init__(self, run: Run, G: DegradationGenerator, perceptual: PerceptualLoss) -> None:
        """G: the frozen generator of stage 1. The networks to train are made here."""
        options = run.options
        self.run, self.options = run, options
        self.G, self.perceptual = run.state.freeze(G), run.state.freeze(perceptual)
        E, S = FeatureExtractor(options.width), Decoder(options.width)
        if options.initial_weights == "interpolation" and options.width >= INTERPOLATION_WIDTH:
            begin_as_interpolation(E, S)
        self.E = run.network("extractor", E, inference=True)
        self.S = run.network("decoder", S, inference=True)
        if options.initial_weights not in BEGINNINGS:
            run.load_initial_weights()
        adam = functools.partial(torch.optim.Adam, betas=options.betas, fused=True)
        if options.generator_lr:
            parameters = [*self.E.parameters(), *self.S.parameters()]
            self.adam_ES = run.optimizer("generator", adam(parameters, options.generator_lr))
        if options.alignment_lr:
            self.adam_E = run.optimizer("alignment", adam(self.E.parameters(), options.alignment_lr))
        if options.adversarial_weight:
            self.D = run.network("critic", HRCritic(options.width))
            self.adam_D = run.optimizer("critic", adam(self.D.parameters(), CRITIC_LR))
        self.target = None
        if not options.generator_lr:  # S is fixed: E is aligned to a copy of itself, and BatchNorm's statistics stay
            self.target = run.network("target", copy.deepcopy(self.E.module))
            for network in (self.target, self.E, self.S):
                network.module.eval()

    def iterate(self, iteration: int, y: torch.Tensor, x_c: torch.Tensor) -> dict[str, torch.Tensor]:
        """One iteration, from 1, with HR faces y and clean LR faces x_c, their bicubic x1/4 -> its terms.

        y [N, 3, 64, 64], x_c [N, 3, 16, 16], in [-1, 1].
        """
        run, options = self.run, self.options
        generate = not options.adversarial_weight or iteration % options.critic_updates == 0
        if options.augment != "none":
            y, x_c = augment(y, x_c, run.uniform(UNIFORMS), options.augment)

        # 1. Inputs: mixes of clean and degraded faces, and x_s
        x_d = self.degrade(x_c, run.normal(DegradationGenerator.noise_channels).to(x_c))
        if options.alpha == "random":
            alpha = (run.uniform(1, 1, 1) / (1 - CLEAN_SHARE)).clamp(max=1).to(y)
        else:
            alpha = y.new_full((len(y), 1, 1, 1), options.alpha)
        x = x_m = alpha * x_c + (1 - alpha) * x_d
        x_s = None
        if options.synthetic_share:
            x_s = self.degrade_synthetically(y)
            x = torch.where(run.uniform(1, 1, 1).to(y) < options.synthetic_share, x_s, x_m)

        # 2. D_h, E and S learn
        terms = {}
        with torch.set_grad_enabled(generate and options.generator_lr > 0):  # a graph only where E and S learn from it
            features = self.E(x)
            sr = self.S(features) if options.generator_lr else None
        if options.adversarial_weight:
            terms |= self.update_critic(sr.detach(), y)
        if generate and sr is not None:
            terms |= self.update_generator(iteration, sr, y)

        # 3. E learns smooth features
        if generate and options.alignment_lr and (sr is None or run.epoch(iteration) >= options.ot_start_epoch):
            terms |= self.update_alignment(alpha.flatten(), features.detach(), x_c, x_d, x_m, x_s)
        return terms

    def degrade(self, x_c: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """x_c [N, 3, 16, 16] and z [N, 16] -> x_d = G(x_c, z), clamped to [-1, 1]."""
        with torch.no_grad():
            return self.G(x_c, z).clamp(-1, 1)

    def degrade_synthetically(self, y: torch.Tensor) -> torch.Tensor:
        """y [N, 3, 64, 64] -> x_s [N, 3, 16, 16], which no network makes: blurred, exposed, noised and compressed."""
        noise = self.run.uniform(degradations.UNIFORMS), self.run.normal(3, LR_SIZE, LR_SIZE)
        return degradations.degrade(y, *noise, exposure=EXPOSURE).to(y.dtype)

    def update_critic(self, sr: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        """D_h learns to tell S(E(x)) from y: WGAN-GP."""
        terms = critic_terms(self.D, sr, y, self.run.uniform().to(y))
        self.run.step(self.adam_D, terms["critic_loss"])
        return terms

    def update_generator(self, iteration: int, sr: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        """E and S learn to make S(E(x)) like y: perceptual loss, L1, and the frozen D_h."""
        weights = self.options.l1_weight
        l1_weight = weights[0] * (weights[-1] / weights[0]) ** self.run.progress(iteration) if weights[0] else 0.0
        terms = {"perceptual_loss": self.perceptual(sr, y), "l1_loss": functional.l1_loss(sr, y)}
        loss = terms["perceptual_loss"] + l1_weight * terms["l1_loss"]
        if self.options.adversarial_weight:
            with utils.frozen(self.D.module):
                terms["adversarial_loss"] = adversarial_loss(self.D(sr))
            loss = loss + self.options.adversarial_weight * terms["adversarial_loss"]
        self.run.step(self.adam_ES, loss)
        return terms | {"generator_loss": loss, "saturated": utils.saturated(sr).mean()}

    def update_alignment(
        self, alpha: torch.Tensor, features: torch.Tensor, x_c: torch.Tensor, x_d: torch.Tensor, x_m: torch.Tensor,
        x_s: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:  # fmt: skip
        """E alone learns to bring E(x_c) and E(x_d) to a target, by Sinkhorn distances.

        features: E(x) of this iteration, the target "online". x_s: aligned, too, where there are such faces.
        """
        if self.options.alignment_target == "online":
            loss = alignment_loss(self.E(x_c), self.E(x_d), features, alpha)
        else:
            versions = [x_c, x_d, x_m] if x_s is None else [x_c, x_d, x_m, x_s]
            weights = [alpha, 1 - alpha, *VERSION_WEIGHTS][: len(versions)]
            with self.run.evaluating() as (average, _):
                target = (self.target or average)(x_m)
            loss = scaled_alignment_loss(self.E(torch.cat(versions)), target, weights)
        self.run.step(self.adam_E, loss)
        return {"alignment_loss": loss}

    def sample(self, path: Path) -> dict[str, float]:
        """Write a sheet of inputs, their SR and real LR faces; the PSNR of SR by kind of input."""
        run = self.run
        y, clean = run.faces("HR_test")[: utils.SAMPLE_FACES]
        (real,) = run.faces("LR_test")[: utils.SHEET_COLUMNS]
        y, clean, real = (utils.to_unit_range(faces).to(run.device) for faces in (y, clean, real))
        noise = torch.Generator().manual_seed(utils.SAMPLE_SEED)
        degraded = self.degrade(clean, torch.randn(len(clean), DegradationGenerator.noise_channels, generator=noise).to(clean))
        alpha = SAMPLE_ALPHA if self.options.alpha == "random" else self.options.alpha
        inputs = {"clean": clean, "degraded": degraded, "mixed": alpha * clean + (1 - alpha) * degraded}
        inputs |= {"synthetic": degradations.degrade_at_random(y, noise, exposure=EXPOSURE), "real LR": real}
        with run.evaluating() as (E, S):
            outputs = {kind: S(E(faces)) for kind, faces in inputs.items()}
        *kinds, _ = inputs
        rows = {**{kind: inputs[kind] for kind in kinds}, **{f"SR of {kind}": outputs[kind] for kind in kinds}}
        rows |= {"y": y, "real LR": real, "SR of real LR": outputs["real LR"]}
        utils.save_sheet(path, {title: faces[: utils.SHEET_COLUMNS] for title, faces in rows.items()})
        return {f"psnr_{kind}": utils.psnr(outputs[kind], y).mean().item() for kind in kinds}


def load_generator(run: Run) -> DegradationGenerator:
    """The generator of stage 1; a run resumes only with the same one."""
    path = Path(run.options.h2l or run.out / "h2l.pth")
    generator, content = utils.load_degradation(path, "run train_h2l.py first, or name --h2l")
    if run.main:
        utils.warn_framing(path, content, run.options)
    run.fingerprints["h2l"] = utils.digest(generator.state_dict())
    return generator


def train(options: argparse.Namespace, given: set[str]) -> None:
    """Stage 2 from the first batch to the last; `given`: the options that the user named."""
    run = Run("sr", options, given, COLUMNS)
    if options.batch_size < 2 * run.world:
        raise utils.UserError(
            f"--batch-size {options.batch_size} leaves 1 face to each of {run.world} processes, and BatchNorm needs 2: "
            f"give --batch-size {2 * run.world} or more"
        )
    generator = load_generator(run)
    faces, *_ = (run.faces(name) for name in ("HR_train", "HR_test", "LR_test"))
    with run.group.first():
        vgg = utils.load_perceptual_weights(options.vgg_weights, run.say) if options.generator_lr else None
    stage = SuperResolution(run, generator, PerceptualLoss(vgg))
    for iteration, (y, x_c) in run.batches(faces):
        run.finish(stage.iterate(iteration, y, x_c), stage.sample)


if __name__ == "__main__":
    utils.run_script(main)

"""Stage 2: train the feature extractor E and the SR decoder S on mixed clean and degraded faces.

    python train.py --data Datasets --out Trained_Models                     # after train_h2l.py
    python train.py --vgg-weights random --width 16 --h2l demo/h2l.pth       # a smoke run
    torchrun --nproc_per_node=4 train.py --batch-size 52                     # four GPUs

x_m = alpha * x_c + (1 - alpha) * x_d with x_d from the frozen generator of stage 1; S(E(x_m)) is
trained against y. From the second epoch on, Sinkhorn distances pull E(x_c) and E(x_d) towards
E(x_m): the smooth features of the paper's title. A run resumes from its own state in --out. The
weights of E and S are written to sr.pth, for test.py.
"""

import argparse
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # where PYTHONSAFEPATH is set, Python leaves it out

import torch
from torch.nn import functional
from torch.optim.swa_utils import update_bn

import utils
from losses import PerceptualLoss, adversarial_loss, alignment_loss, critic_loss, gradient_penalty, sinkhorn_distance
from models import Decoder, DegradationGenerator, FeatureExtractor, HRCritic
from training.options import parse_options, training_parser
from training.run import Run
from training.state import exclusive

COLUMNS = [
    "critic_loss", "wasserstein", "gradient_penalty", "generator_loss", "perceptual_loss", "l1_loss", "adversarial_loss",
    "alignment_loss", "saturated", "psnr_clean", "psnr_degraded", "psnr_mixed",
]  # fmt: skip
STATISTICS_BATCH = 52  # faces


def build_parser() -> utils.Parser:
    parser = training_parser(__doc__, batch_size=13, epochs=4, decay=0.2, decay_epochs=2)
    option = parser.option
    option("alpha", 0.3, "part of the clean face in the mix, in [0, 1]", "paper")
    option("generator-lr", 1e-4, "learning rate of Adam on E and S", "reference")
    option("critic-lr", 4e-4, "learning rate of Adam on D_h", "reference")
    option("alignment-lr", 1e-6, "learning rate of the second Adam on E, for the alignment", "reference")
    option("beta1", 0.0, "Adam's decay of the gradient's mean, all three", "reference")
    option("beta2", 0.5, "Adam's decay of the gradient's square, all three", "reference")
    option("perceptual-weight", 1.0, "weight of the perceptual loss", "reference")
    option("l1-weight", 0.5, "weight of L1(S(E(x_m)), y)", "reference")
    option("adversarial-weight", 0.05, "weight of -D_h(S(E(x_m))); 0: no critic, so that each iteration updates E and S",
           "reference")  # fmt: skip
    parser.switch("no-alignment", "leave the alignment loss out")
    option("ot-start-epoch", 2, "first epoch, from 1, with the alignment", "reference")
    option("sinkhorn-eps", 1e-3, "entropic regularisation, in squared units of the features", "reference")
    parser.switch("freeze-batchnorm", "measure BatchNorm's statistics before the first iteration, and freeze them (ours)")
    option("batchnorm-batches", 40, "batches of 52 whose statistics BatchNorm uses in sr.pth; 0: its running ones", "ours")
    parser.section("files")
    option("h2l", "", "weights of stage 1; empty: h2l.pth in --out")
    option("vgg-weights", "imagenet", "imagenet (torchvision's VGG19, downloaded once), random, or a state dict", "paper")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    options, given = parse_options(parser, argv)
    if options.alpha > 1:
        parser.error(f"--alpha {options.alpha}: must be in [0, 1]")
    if options.sinkhorn_eps <= 0:
        parser.error("--sinkhorn-eps must be positive")
    with exclusive(options.out, "sr"), utils.explain_out_of_memory(options.batch_size):
        train(options, given)


class SuperResolution:
    """Stage 2: the networks and optimizers of a run, and what one iteration does with them."""

    def __init__(self, run: Run, degrade: DegradationGenerator, perceptual_loss: PerceptualLoss) -> None:
        """degrade: the frozen generator of stage 1. The networks to train are made here."""
        options = run.options
        self.run, self.options = run, options
        self.degrade = degrade.requires_grad_(False).eval().to(run.device, memory_format=torch.channels_last)
        self.perceptual_loss = perceptual_loss.to(run.device, memory_format=torch.channels_last)
        extractor = run.network("extractor", FeatureExtractor(options.width), inference=True)
        decoder = run.network("decoder", Decoder(options.width), inference=True)
        # On the CPU the critic's gradients are faster in NCHW
        critic = run.network("critic", HRCritic(options.width), channels_last=run.device.type == "cuda")

        def adam(name: str, networks: list[torch.nn.Module], rate: float) -> torch.optim.Optimizer:
            parameters = [parameter for network in networks for parameter in network.parameters()]
            return run.optimizer(name, torch.optim.Adam(parameters, rate, (options.beta1, options.beta2), fused=True))

        self.generator_optimizer = adam("generator", [extractor, decoder], options.generator_lr)
        self.critic_optimizer = adam("critic", [critic], options.critic_lr)
        self.alignment_optimizer = adam("alignment", [extractor], options.alignment_lr)
        self.extractor, self.decoder, self.critic = extractor, decoder, critic

    def distribute(self) -> None:
        """Share the networks among the run's processes."""
        self.extractor, self.decoder, self.critic = map(self.run.distribute, ("extractor", "decoder", "critic"))

    def iterate(self, iteration: int, y: torch.Tensor, x_c: torch.Tensor) -> dict[str, torch.Tensor]:
        """One iteration, from 1: HR faces y [N, 3, 64, 64] and clean LR faces x_c -> its terms."""
        run, options = self.run, self.options
        criticise = options.adversarial_weight > 0
        update_generator = not criticise or iteration % options.critic_updates == 0
        align = not options.no_alignment and run.epoch(iteration) >= options.ot_start_epoch

        x_d, x_m = self.degrade_and_mix(x_c, run.normal(self.degrade.noise_channels).to(x_c))
        with run.autocast(), torch.set_grad_enabled(update_generator):  # a graph only where E and S learn from it
            features = self.extractor(x_m)
            sr = self.decoder(features).to(y.dtype)
        terms = {}
        if criticise:
            terms |= self.update_critic(sr, y)
        if update_generator:
            terms |= self.update_generator(sr, y)
        if update_generator and align:
            terms |= self.update_alignment(x_c, x_d, features)
        return terms

    def degrade_and_mix(self, clean: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x_c [N, 3, 16, 16] and z [N, 16] -> x_d, clamped to [-1, 1], and the mix x_m."""
        with torch.no_grad(), self.run.autocast():
            degraded = self.degrade(clean, z).to(clean.dtype).clamp(-1, 1)
        return degraded, self.options.alpha * clean + (1 - self.options.alpha) * degraded

    def update_critic(self, sr: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        """D_h learns to tell S(E(x_m)) from y: WGAN-GP."""
        with self.run.autocast():
            # GroupNorm looks at one sample at a time, so that fake and real faces can share a batch
            fake_scores, real_scores = self.critic(torch.cat([sr.detach(), y])).chunk(2)
            penalty = gradient_penalty(self.critic, y, sr, self.run.uniform().to(y))
        loss = critic_loss(fake_scores, real_scores)
        total = loss + self.options.gradient_penalty_weight * penalty
        self.run.step(self.critic_optimizer, total)
        return {"critic_loss": total, "wasserstein": -loss, "gradient_penalty": penalty}

    def update_generator(self, sr: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        """E and S learn to make S(E(x_m)) like y: perceptual loss, L1, and the frozen D_h."""
        options, terms = self.options, {}
        with utils.frozen(self.critic) as critic:
            with self.run.autocast():
                terms["perceptual_loss"], terms["l1_loss"] = self.perceptual_loss(sr, y), functional.l1_loss(sr, y)
                total = options.perceptual_weight * terms["perceptual_loss"] + options.l1_weight * terms["l1_loss"]
                if options.adversarial_weight > 0:
                    terms["adversarial_loss"] = adversarial_loss(critic(sr))
                    total = total + options.adversarial_weight * terms["adversarial_loss"]
            self.run.step(self.generator_optimizer, total)
        return terms | {"generator_loss": total, "saturated": utils.saturated(sr).mean()}

    def update_alignment(self, x_c: torch.Tensor, x_d: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """E alone learns to bring E(x_c) and E(x_d) to the target E(x_m), by Sinkhorn distances."""
        options = self.options
        with self.run.autocast():
            clean_features, degraded_features = self.extractor(x_c), self.extractor(x_d)
        distance = functools.partial(sinkhorn_distance, eps=options.sinkhorn_eps)
        loss = alignment_loss(clean_features, degraded_features, target, options.alpha, distance)
        self.run.step(self.alignment_optimizer, loss)
        return {"alignment_loss": loss}

    def measure_batchnorm(self, extractor: torch.nn.Module, decoder: torch.nn.Module) -> None:
        """Replace BatchNorm's statistics by their mean over batches of mixed training faces.

        The running ones are of few faces and of maps down to 1x1, and can make the outputs of
        eval mode explode.
        """
        run, options = self.run, self.options
        faces, noise = run.faces("HR_train"), torch.Generator().manual_seed(options.seed)
        indices = torch.randperm(len(faces), generator=noise)[: options.batchnorm_batches * STATISTICS_BATCH]
        run.say(f"measuring BatchNorm's statistics on {len(indices)} mixed faces")

        def mixed() -> Iterator[torch.Tensor]:
            for part in indices.tensor_split(max(1, len(indices) // STATISTICS_BATCH)):
                x_c = utils.to_unit_range(faces[part.numpy()][1]).to(run.device)
                z = torch.randn(len(x_c), self.degrade.noise_channels, generator=noise).to(run.device)
                yield self.degrade_and_mix(x_c, z)[1]

        with run.autocast():
            update_bn(mixed(), torch.nn.Sequential(extractor, decoder))

    def freeze_batchnorm(self) -> None:
        """Train E and S as they are tested: with statistics measured once, on many faces."""
        extractor, decoder = self.run.networks["extractor"], self.run.networks["decoder"]
        if self.run.iteration == 0 and self.options.batchnorm_batches:
            self.measure_batchnorm(extractor, decoder)
        extractor.eval()
        decoder.eval()

    def sample(self, path: Path) -> dict[str, float]:
        """Write a sheet of inputs, their SR and real LR faces; the PSNR of SR by kind of input."""
        run = self.run
        target, clean = run.faces("HR_test")[: utils.SAMPLE_FACES]
        (real,) = run.faces("LR_test")[: utils.SHEET_COLUMNS]
        target, clean, real = (utils.to_unit_range(faces).to(run.device) for faces in (target, clean, real))
        noise = torch.Generator().manual_seed(utils.SAMPLE_SEED)
        z = torch.randn(len(clean), self.degrade.noise_channels, generator=noise).to(run.device)
        degraded, mixed = self.degrade_and_mix(clean, z)
        inputs = {"clean": clean, "degraded": degraded, "mixed": mixed, "real LR": real}
        with utils.evaluating(*run.trained("extractor", "decoder")) as (extractor, decoder), run.autocast():
            outputs = {name: decoder(extractor(faces)) for name, faces in inputs.items()}
        rows = {**inputs, **{f"SR of {name}": faces for name, faces in outputs.items()}, "target": target}
        order = ["clean", "degraded", "mixed", "SR of clean", "SR of degraded", "SR of mixed", "target"]
        utils.save_sheet(path, {name: rows[name][: utils.SHEET_COLUMNS] for name in [*order, "real LR", "SR of real LR"]})
        return {f"psnr_{name}": utils.psnr(outputs[name], target).mean().item() for name in ("clean", "degraded", "mixed")}


def load_generator(run: Run) -> DegradationGenerator:
    """The generator of stage 1, which belongs to what a run must keep."""
    path = Path(run.options.h2l or run.out / "h2l.pth")
    generator, content = utils.load_degradation(path, "run train_h2l.py first, or name --h2l")
    if content["width"] != run.options.width:
        raise utils.UserError(
            f"{path} has width {content['width']}, this run {run.options.width}: give the same --width to both stages"
        )
    if run.main:
        utils.remark_framing(path, content, run.options)
    run.fingerprints["h2l"] = utils.digest(generator.state_dict())
    return generator


def train(options: argparse.Namespace, given: set[str]) -> None:
    """Stage 2 from the first batch to the last; `given`: the options that the user named."""
    run = Run("sr", options, given, COLUMNS)
    if options.batch_size < 2 * run.world and not options.freeze_batchnorm:
        raise utils.UserError(
            f"--batch-size {options.batch_size} leaves 1 face to each of {run.world} processes, and BatchNorm needs 2: "
            f"give --batch-size {2 * run.world} or more"
        )
    generator = load_generator(run)
    hr_train, _, _ = run.faces("HR_train"), run.faces("HR_test"), run.faces("LR_test")
    with run.group.first():
        vgg = utils.load_perceptual_weights(options.vgg_weights, run.say)
    stage = SuperResolution(run, generator, PerceptualLoss(vgg))
    run.begin()
    stage.distribute()
    if options.freeze_batchnorm:
        stage.freeze_batchnorm()

    for iteration, (y, x_c) in run.batches(hr_train):
        run.finish(stage.iterate(iteration, y, x_c), stage.sample)

    if options.batchnorm_batches and not options.freeze_batchnorm and run.main:
        stage.measure_batchnorm(*run.trained("extractor", "decoder"))
        run.save_weights()
    run.done()


if __name__ == "__main__":
    utils.run_script(main)

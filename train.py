"""Stage 2: train the feature extractor E and the SR decoder S on clean and degraded LR faces.

    python train.py --data Datasets --out Trained_Models                     # after train_h2l.py
    python train.py --initial-weights sr.pth --phases align                  # align a trained network, in minutes
    python train.py --vgg-weights random --width 16 --h2l demo/h2l.pth       # a smoke run
    torchrun --nproc_per_node=4 train.py --batch-size 52                     # four GPUs

x_d comes from the frozen generator of stage 1; x_m = alpha * x_c + (1 - alpha) * x_d. The phases:

    interleaved  the reference's: S(E(x_m)) is trained against y, with a critic; from the second
                 epoch on, Sinkhorn distances also pull E(x_c) and E(x_d) towards E(x_m): the
                 smooth features of the paper's title
    align        carries this through: E alone, towards the E(x_m) that S knows
    joint        E and S against y, on faces from x_c to x_d and on x_s, degraded without a
                 network; E also goes on aligning
    decoder      S alone, on what E now gives, for sharper faces

A run resumes from its own state in --out. The weights of E and S are written to sr.pth, for test.py.
"""

import argparse
import copy
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # where PYTHONSAFEPATH is set, Python leaves it out

import torch
from torch.nn import functional
from torch.optim.swa_utils import update_bn

import utils
from Datasets import degradations
from losses import (
    PerceptualLoss,
    adversarial_loss,
    alignment_loss,
    critic_loss,
    gradient_penalty,
    paired_distance,
    scaled_alignment_loss,
    sinkhorn_distance,
)
from models import LR_SIZE, Decoder, DegradationGenerator, FeatureExtractor, HRCritic
from training import augment
from training.options import parse_options, training_parser
from training.phases import INTERLEAVED, PHASES, Phase, phase_names, warm_up_and_cosine
from training.run import Run
from training.state import exclusive

COLUMNS = [
    "critic_loss", "wasserstein", "gradient_penalty", "generator_loss", "perceptual_loss", "l1_loss", "adversarial_loss",
    "alignment_loss", "saturated", "psnr_clean", "psnr_degraded", "psnr_mixed",
    "psnr_synthetic",
]  # fmt: skip
STATISTICS_BATCH = 52  # faces
ALIGN_RATE = 5e-4  # of Adam on E in the phase align
ALIGN_BETAS, JOINT_BETAS = (0.9, 0.99), (0.9, 0.999)  # of Adam for the alignment, and for S(E(x)) against y, in the phases
ALIGN_WARM_UP, JOINT_WARM_UP = 40, 100  # iterations
LAG = 1.0  # dB of PSNR that sr.pth may be behind the weights whose EMA it is, before a warning


def build_parser() -> utils.Parser:
    parser = training_parser(__doc__, batch_size=13, epochs=4, decay=0.2, decay_epochs=2)
    option = parser.option
    option("alpha", 0.3, "part of the clean face in the mix, in [0, 1]", "paper")
    option("generator-lr", 1e-4, "learning rate of Adam on E and S, in all phases", "reference")
    option("critic-lr", 4e-4, "learning rate of Adam on D_h", "reference")
    option("alignment-lr", 1e-6, "learning rate of the second Adam on E, for the interleaved alignment", "reference")
    option("joint-alignment-lr", 8e-5, "the same, in the phase joint; at 2e-4 faces blur", "ours")
    option("beta1", 0.0, "Adam's decay of the gradient's mean, all three", "reference")
    option("beta2", 0.5, "Adam's decay of the gradient's square, all three", "reference")
    option("perceptual-weight", 1.0, "weight of the perceptual loss", "reference")
    option("l1-weight", 0.5, "weight of L1(S(E(x_m)), y), interleaved", "reference")
    option("joint-l1-weight", 30.0, "the same, in the phase joint", "ours")
    option("decoder-l1-weight", 5.0, "the same, in the phase decoder; less gives sharper faces", "ours")
    option("adversarial-weight", 0.05, "weight of -D_h(S(E(x_m))); 0: no critic, so that each iteration updates E and S",
           "reference")  # fmt: skip
    option("synthetic-share", 0.35, "part of the inputs that are x_s, in joint and decoder", "ours")
    option("synthetic-weight", 0.5, "weight of the distance of E(x_s) in the alignment, in align and joint", "ours")
    option("synthetic-strength", 1.0, "how far x_s may be degraded (degradations.py)", "ours")
    parser.switch("fixed-alpha", "mix by --alpha in joint and decoder, too, where each face draws its own from [0, 1] (ours)")
    option("augment", "none", "mirror: half of the faces; framing: also zoom half by up to 7 % and shift them by up to 2 px",
           "paper; the others ours", choices=augment.AUGMENTATIONS)  # fmt: skip
    parser.switch("no-alignment", "leave the alignment loss out, and with it the phase align")
    parser.switch("squared-distances", "align by squared distances at the same position, in place of Sinkhorn distances")
    option("ot-start-epoch", 2, "first epoch, from 1, with the alignment", "reference")
    option("sinkhorn-eps", 1e-3, "entropic regularisation, in squared units of the features", "reference")
    parser.switch("freeze-batchnorm", "measure BatchNorm's statistics before the first iteration, and freeze them (ours)")
    option("batchnorm-batches", 40, "batches of 52 whose statistics BatchNorm uses in sr.pth; 0: its running ones", "ours")
    parser.section("length")
    option("phases", ",".join(PHASES), "which phases the run has, in this order", "interleaved: reference, else ours",
           metavar="LIST", type=str)  # fmt: skip
    option("align-steps", 900, "iterations of the phase align, each of twice the batch", "ours")
    option("joint-steps", 2700, "iterations of the phase joint", "ours")
    option("decoder-steps", 400, "iterations of the phase decoder", "ours")
    parser.section("files")
    option("h2l", "", "weights of stage 1; empty: h2l.pth in --out")
    option("vgg-weights", "imagenet", "imagenet (torchvision's VGG19, downloaded once), random, or a state dict", "paper")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    options, given = parse_options(parser, argv)
    if options.alpha > 1:
        parser.error(f"--alpha {options.alpha}: must be in [0, 1]")
    if options.synthetic_share > 1:
        parser.error(f"--synthetic-share {options.synthetic_share}: must be in [0, 1]")
    try:
        phase_names(vars(options))
    except ValueError as error:
        parser.error(f"--phases {options.phases}: {error}")
    if options.sinkhorn_eps <= 0:
        parser.error("--sinkhorn-eps must be positive")
    with exclusive(options.out, "sr"), utils.explain_out_of_memory(options.batch_size):
        train(options, given)


class SuperResolution:
    """Stage 2: the networks and optimizers of a run, and what one iteration does with them."""

    def __init__(
        self, run: Run, degrade: DegradationGenerator, perceptual_loss: PerceptualLoss, phase: Phase = INTERLEAVED
    ) -> None:
        """degrade: the frozen generator of stage 1. The networks to train are made here."""
        self.run, self.options = run, run.options
        self.degrade = degrade.requires_grad_(False).eval().to(run.device, memory_format=torch.channels_last)
        self.perceptual_loss = perceptual_loss.to(run.device, memory_format=torch.channels_last)
        self.extractor = run.network("extractor", FeatureExtractor(self.options.width), inference=True)
        self.decoder = run.network("decoder", Decoder(self.options.width), inference=True)
        self.distance = functools.partial(sinkhorn_distance, eps=self.options.sinkhorn_eps)
        if self.options.squared_distances:
            self.distance = paired_distance
        run.load_initial_weights()
        self.enter(phase)

    def enter(self, phase: Phase) -> None:
        """Make the optimizers of a phase and the networks that it has beside E and S."""
        run, options, self.phase = self.run, self.options, phase.name
        run.enter(phase)
        extractor, decoder = run.networks["extractor"], run.networks["decoder"]

        def adam(name: str, networks: list[torch.nn.Module], rate: float, betas: tuple[float, float], warm_up: int = 0):
            parameters = [parameter for network in networks for parameter in network.parameters()]
            factor = warm_up_and_cosine(warm_up, phase.end - phase.start) if warm_up else None
            return run.optimizer(name, torch.optim.Adam(parameters, rate, betas, fused=True), factor)

        if self.phase == "interleaved":
            # On the CPU the critic's gradients are faster in NCHW
            self.critic = run.network("critic", HRCritic(options.width), channels_last=run.device.type == "cuda")
            betas = (options.beta1, options.beta2)
            self.generator_optimizer = adam("generator", [extractor, decoder], options.generator_lr, betas)
            self.critic_optimizer = adam("critic", [self.critic], options.critic_lr, betas)
            self.alignment_optimizer = adam("alignment", [extractor], options.alignment_lr, betas)
            return
        extractor.eval()  # BatchNorm's statistics are frozen from here on
        decoder.eval()
        if self.phase == "align":
            self.target = run.network("target", copy.deepcopy(extractor)).eval().requires_grad_(False)
            self.alignment_optimizer = adam("alignment", [extractor], ALIGN_RATE, ALIGN_BETAS, ALIGN_WARM_UP)
        else:
            trained = [extractor, decoder] if self.phase == "joint" else [decoder]
            self.generator_optimizer = adam("generator", trained, options.generator_lr, JOINT_BETAS, JOINT_WARM_UP)
        if self.phase == "joint" and not options.no_alignment:
            (self.target,) = run.trained("extractor")  # its EMA
            self.alignment_optimizer = adam("alignment", [extractor], options.joint_alignment_lr, ALIGN_BETAS, JOINT_WARM_UP)

    def distribute(self) -> None:
        """Share the networks among the run's processes."""
        for name in ("extractor", "decoder", *(["critic"] if self.phase == "interleaved" else [])):
            setattr(self, name, self.run.distribute(name))

    def iterate(self, iteration: int, y: torch.Tensor, x_c: torch.Tensor) -> dict[str, torch.Tensor]:
        """One iteration, from 1: HR faces y [N, 3, 64, 64] and clean LR faces x_c -> its terms."""
        run, options = self.run, self.options
        if options.augment != "none":
            y, x_c = augment.augment(y, x_c, run.uniform(augment.UNIFORMS), options.augment)
        x_d = self.degrade_clean(x_c, run.normal(self.degrade.noise_channels).to(x_c))
        if self.phase == "interleaved":
            return self.interleave(iteration, y, x_c, x_d)
        noise = run.uniform(degradations.UNIFORMS), run.normal(3, LR_SIZE, LR_SIZE)
        x_s = degradations.degrade(y, *noise, options.synthetic_strength)
        terms = {}
        if self.phase != "align":
            terms |= self.update_on_all(y, x_c, x_d, x_s)
        if self.phase == "align" or (self.phase == "joint" and not options.no_alignment):
            terms |= self.carry_alignment(x_c, x_d, x_s)
        return terms

    def interleave(self, iteration: int, y: torch.Tensor, x_c: torch.Tensor, x_d: torch.Tensor) -> dict[str, torch.Tensor]:
        """The reference's: a critic update; every --critic-updates, one of E and S, and one of E."""
        run, options = self.run, self.options
        criticise = options.adversarial_weight > 0
        update_generator = not criticise or iteration % options.critic_updates == 0
        align = not options.no_alignment and run.epoch(iteration) >= options.ot_start_epoch

        with run.autocast(), torch.set_grad_enabled(update_generator):  # a graph only where E and S learn from it
            features = self.extractor(self.mix(x_c, x_d))
            sr = self.decoder(features).to(y.dtype)
        terms = {}
        if criticise:
            terms |= self.update_critic(sr, y)
        if update_generator:
            terms |= self.update_generator(sr, y)
        if update_generator and align:
            terms |= self.update_alignment(x_c, x_d, features)
        return terms

    def degrade_clean(self, clean: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """x_c [N, 3, 16, 16] and z [N, 16] -> x_d = G(x_c, z), clamped to [-1, 1]."""
        with torch.no_grad(), self.run.autocast():
            return self.degrade(clean, z).to(clean.dtype).clamp(-1, 1)

    def mix(self, clean: torch.Tensor, degraded: torch.Tensor) -> torch.Tensor:
        """x_c and x_d [N, 3, 16, 16] -> x_m = alpha * x_c + (1 - alpha) * x_d."""
        return self.options.alpha * clean + (1 - self.options.alpha) * degraded

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
        options = self.options
        with utils.frozen(self.critic) as critic:
            with self.run.autocast():
                terms = self.compare(sr, y, options.l1_weight)
                if options.adversarial_weight > 0:
                    terms["adversarial_loss"] = adversarial_loss(critic(sr))
                    terms["generator_loss"] = terms["generator_loss"] + options.adversarial_weight * terms["adversarial_loss"]
            self.run.step(self.generator_optimizer, terms["generator_loss"])
        return terms | {"saturated": utils.saturated(sr).mean()}

    def compare(self, sr: torch.Tensor, y: torch.Tensor, l1_weight: float) -> dict[str, torch.Tensor]:
        """The perceptual loss and L1 of SR against y, and their weighted sum."""
        perceptual, l1 = self.perceptual_loss(sr, y), functional.l1_loss(sr, y)
        total = self.options.perceptual_weight * perceptual + l1_weight * l1
        return {"perceptual_loss": perceptual, "l1_loss": l1, "generator_loss": total}

    def update_alignment(self, x_c: torch.Tensor, x_d: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """E alone learns to bring E(x_c) and E(x_d) to the target E(x_m), by Sinkhorn distances."""
        options = self.options
        with self.run.autocast():
            clean_features, degraded_features = self.extractor(x_c), self.extractor(x_d)
        loss = alignment_loss(clean_features, degraded_features, target, options.alpha, self.distance)
        self.run.step(self.alignment_optimizer, loss)
        return {"alignment_loss": loss}

    def update_on_all(
        self, y: torch.Tensor, x_c: torch.Tensor, x_d: torch.Tensor, x_s: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """S, and in joint E, learn from faces between x_c and x_d, each at its alpha, and from x_s."""
        run, options = self.run, self.options
        alpha, draw = run.uniform(2).view(-1, 2, 1, 1, 1).unbind(dim=1)
        x = self.mix(x_c, x_d) if options.fixed_alpha else alpha * x_c + (1 - alpha) * x_d
        x = torch.where(draw < options.synthetic_share, x_s, x)
        joint = self.phase == "joint"
        with run.autocast():
            with torch.set_grad_enabled(joint):
                features = self.extractor(x)
            sr = self.decoder(features).to(y.dtype)
            terms = self.compare(sr, y, options.joint_l1_weight if joint else options.decoder_l1_weight)
        run.step(self.generator_optimizer, terms["generator_loss"])
        return terms | {"saturated": utils.saturated(sr).mean()}

    def carry_alignment(self, x_c: torch.Tensor, x_d: torch.Tensor, x_s: torch.Tensor) -> dict[str, torch.Tensor]:
        """E alone learns to bring all versions of a face to T(x_m); T: E as S knows it.

        alpha W(E(x_c)) + (1 - alpha) W(E(x_d)) + W(E(x_m)) + w_s W(E(x_s)), of distances to T(x_m).
        The third holds E where S understands it. T is frozen in align, and the EMA of E in joint.
        """
        options, x_m = self.options, self.mix(x_c, x_d)
        weights = [options.alpha, 1 - options.alpha, 1.0, options.synthetic_weight]
        with self.run.autocast():
            with utils.evaluating(self.target) as (target_network,):
                target = target_network(x_m)
            features = self.extractor(torch.cat([x_c, x_d, x_m, x_s]))
        loss = scaled_alignment_loss(features, target, weights, self.distance)
        self.run.step(self.alignment_optimizer, loss)
        return {"alignment_loss": loss}

    def leave(self) -> None:
        """The end of a phase, or of the run within it: sr.pth gets the statistics of many faces."""
        measured = self.options.batchnorm_batches and not self.options.freeze_batchnorm
        if self.phase == "interleaved" and measured and self.run.main:
            self.measure_batchnorm(*self.run.trained("extractor", "decoder"))
            self.run.save_weights()

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
                yield self.mix(x_c, self.degrade_clean(x_c, z))

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
        degraded = self.degrade_clean(clean, z)
        inputs = {"clean": clean, "degraded": degraded, "mixed": self.mix(clean, degraded), "real LR": real}
        inputs["synthetic"] = degradations.degrade_at_random(target, noise, self.options.synthetic_strength)
        with utils.evaluating(*run.trained("extractor", "decoder")) as (extractor, decoder), run.autocast():
            outputs = {name: decoder(extractor(faces)) for name, faces in inputs.items()}
        psnr = {kind: utils.psnr(outputs[kind], target).mean().item() for kind in ("clean", "degraded", "mixed", "synthetic")}
        self.compare_with_average(inputs["mixed"], target, psnr["mixed"])
        rows = {**inputs, **{f"SR of {name}": faces for name, faces in outputs.items()}, "target": target}
        order = [*psnr, *(f"SR of {kind}" for kind in psnr), "target"]
        utils.save_sheet(path, {name: rows[name][: utils.SHEET_COLUMNS] for name in [*order, "real LR", "SR of real LR"]})
        return {f"psnr_{kind}": value for kind, value in psnr.items()}

    def compare_with_average(self, x_m: torch.Tensor, target: torch.Tensor, psnr: float) -> None:
        """Warn where sr.pth, whose PSNR on x_m is given, is far behind the weights whose EMA it is.

        The mean of weights far apart is no network any more; the losses, being of the weights themselves, do not show it.
        """
        run = self.run
        if not run.averages:
            return
        with utils.evaluating(run.networks["extractor"], run.networks["decoder"]) as (extractor, decoder), run.autocast():
            behind = utils.psnr(decoder(extractor(x_m)), target).mean().item() - psnr
        if behind > LAG:
            run.say(
                f"warning: sr.pth, the EMA of the weights, is {behind:.1f} dB behind the weights themselves, which move faster "
                "than it follows. If that grows, start over with a lower --generator-lr, or with a lower --ema-decay"
            )


def load_generator(run: Run) -> DegradationGenerator:
    """The generator of stage 1, which belongs to what a run must keep."""
    path = Path(run.options.h2l or run.out / "h2l.pth")
    generator, content = utils.load_degradation(path, "run train_h2l.py first, or name --h2l")
    if content["width"] != run.options.width:
        raise utils.UserError(
            f"{path} has width {content['width']}, this run {run.options.width}: give the same --width to both stages"
        )
    if run.main:
        utils.warn_framing(path, content, run.options)
    run.fingerprints["h2l"] = utils.digest(generator.state_dict())
    return generator


def train(options: argparse.Namespace, given: set[str]) -> None:
    """Stage 2 from the first batch to the last; `given`: the options that the user named."""
    run = Run("sr", options, given, COLUMNS)
    needs_two = "BatchNorm" if not options.freeze_batchnorm else "the alignment" if options.phases != "interleaved" else ""
    if options.batch_size < 2 * run.world and needs_two:
        raise utils.UserError(
            f"--batch-size {options.batch_size} leaves 1 face to each of {run.world} processes, and {needs_two} needs 2: "
            f"give --batch-size {2 * run.world} or more"
        )
    generator = load_generator(run)
    hr_train, _, _ = run.faces("HR_train"), run.faces("HR_test"), run.faces("LR_test")
    phases = run.lay_out()
    needs_vgg = any(phase.name != "align" for phase in phases)
    with run.group.first():
        vgg = utils.load_perceptual_weights(options.vgg_weights, run.say) if needs_vgg else None
    stage = SuperResolution(run, generator, PerceptualLoss(vgg), phases[0])
    run.begin()
    stage.distribute()
    if options.freeze_batchnorm and phases[0].name == "interleaved":
        stage.freeze_batchnorm()

    for phase in phases:
        if phase is not phases[0]:
            stage.enter(phase)
        for iteration, (y, x_c) in run.batches(hr_train):
            run.finish(stage.iterate(iteration, y, x_c), stage.sample)
        stage.leave()
        if run.iteration >= run.total:
            break
    run.done()


if __name__ == "__main__":
    utils.run_script(main)

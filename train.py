"""Stage 2: train the feature extractor E and the SR decoder S on a mix of clean and degraded LR faces.

    python train.py --data Datasets --out Trained_Models                     # after train_h2l.py
    python train.py --vgg-weights random --width 16 --h2l demo/h2l.pth       # a smoke run
    torchrun --nproc_per_node=4 train.py --batch-size 52                     # four GPUs

x_m = alpha * x_c + (1 - alpha) * x_d with x_d from the frozen generator of stage 1; S(E(x_m)) is trained against y. From
the second epoch on, Sinkhorn distances pull E(x_c) and E(x_d) towards E(x_m): the smooth features of the paper's title.
A run continues from its own state in --out. The weights of E and S are written to sr.pth, for test.py.
"""

import argparse
import functools
from pathlib import Path

import torch
from torch.nn import functional

import utils
from Datasets.faces import PreparedFaces
from losses import PerceptualLoss, adversarial_loss, alignment_loss, critic_loss, gradient_penalty, sinkhorn_distance
from models import NOISE_CHANNELS, Decoder, DegradationGenerator, FeatureExtractor, HRCritic

COLUMNS = [
    "critic_loss", "wasserstein", "gradient_penalty", "generator_loss", "perceptual_loss", "l1_loss", "adversarial_loss",
    "alignment_loss", "saturated", "psnr_clean", "psnr_degraded", "psnr_mixed",
]  # fmt: skip
STATISTICS_BATCH = 52  # faces


def build_parser() -> utils.Parser:
    parser = utils.training_parser(__doc__, batch_size=13, epochs=4, decay=0.2, decay_epochs=2)
    option = parser.option
    option("h2l", "", "weights of stage 1; empty: h2l.pth in --out")
    option("alpha", 0.3, "part of the clean face in the mix, in [0, 1]", "paper")
    option("generator-lr", 1e-4, "learning rate of Adam on E and S", "reference")
    option("critic-lr", 4e-4, "learning rate of Adam on D_h", "reference")
    option("alignment-lr", 1e-6, "learning rate of the second Adam on E, for the alignment", "reference")
    option("beta1", 0.0, "Adam's decay of the gradient's mean, all three", "reference")
    option("beta2", 0.5, "Adam's decay of the gradient's square, all three", "reference")
    option("perceptual-weight", 1.0, "weight of the perceptual loss", "reference")
    option("l1-weight", 0.5, "weight of L1(S(E(x_m)), y)", "reference")
    option("adversarial-weight", 0.05, "weight of -D_h(S(E(x_m))); 0 leaves the critic out", "reference")
    option("ot-weight", 1.0, "weight of the alignment loss; 0 leaves it out", "paper")
    option("ot-start-epoch", 2, "first epoch, from 1, with the alignment", "reference")
    option("sinkhorn-eps", 1e-3, "entropic regularisation, in squared units of the features", "reference")
    option("warm-start-steps", 0, "first iterations that train E and S on perceptual and L1 loss alone, each one", "ours: none")
    option("hold-batchnorm-epoch", 0, "first epoch, from 1, in which BatchNorm's statistics are held; 0: none", "ours: none")
    option("batchnorm-batches", 40, "batches of 52 whose statistics BatchNorm uses in sr.pth; 0: its running ones", "ours")
    option("vgg-weights", "imagenet", "imagenet (torchvision's VGG19, downloaded once), random, or a state dict", "paper")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    options, given = utils.parse_options(parser, argv)
    if options.alpha > 1:
        parser.error(f"--alpha {options.alpha}: must be in [0, 1]")
    if options.sinkhorn_eps <= 0:
        parser.error("--sinkhorn-eps must be positive")
    with utils.exclusive(options.out, "sr"), utils.explain_out_of_memory(options.batch_size):
        train(options, given)


class SuperResolution:
    """Stage 2: the networks and optimizers of a run, and what one iteration does with them."""

    def __init__(self, run: utils.Run, degrade: DegradationGenerator, perceptual_loss: PerceptualLoss) -> None:
        """degrade: the frozen generator of stage 1. The networks to train are made here, from the run's seed."""
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

    def degrade_and_mix(self, clean: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x_c [N, 3, 16, 16] and z [N, 16] -> x_d, clamped to [-1, 1], and x_m."""
        with torch.no_grad(), self.run.autocast():
            degraded = self.degrade(clean, z).to(clean.dtype).clamp(-1, 1)
        return degraded, self.options.alpha * clean + (1 - self.options.alpha) * degraded

    def iterate(self, iteration: int, y: torch.Tensor, x_c: torch.Tensor) -> dict[str, torch.Tensor]:
        """One iteration, from 1: HR faces y [N, 3, 64, 64] and their clean LR faces x_c -> its loss terms."""
        run, options = self.run, self.options
        warm_start = iteration <= options.warm_start_steps
        criticise = options.adversarial_weight > 0 and not warm_start
        update_generator = not criticise or iteration % options.critic_updates == 0
        align = run.epoch(iteration) >= options.ot_start_epoch and options.ot_weight > 0 and not warm_start
        terms = {}

        # (1) degrade, mix and super-resolve: a graph only where E and S learn from it
        x_d, x_m = self.degrade_and_mix(x_c, run.normal(NOISE_CHANNELS).to(x_c))
        with run.autocast(), torch.set_grad_enabled(update_generator):
            features = self.extractor(x_m)
            sr = self.decoder(features).to(y.dtype)

        # (2) critic; GroupNorm looks at one sample at a time, so that fake and real faces can share a batch
        if criticise:
            with run.autocast():
                fake_scores, real_scores = self.critic(torch.cat([sr.detach(), y])).chunk(2)
                penalty = gradient_penalty(self.critic, y, sr, run.uniform().to(y))
            loss = critic_loss(fake_scores, real_scores)
            total = loss + options.gradient_penalty_weight * penalty
            run.step(self.critic_optimizer, total)
            terms |= {"critic_loss": total, "wasserstein": -loss, "gradient_penalty": penalty}

        if update_generator:
            # (3) feature extractor and decoder
            with utils.frozen(self.critic) as critic:
                with run.autocast():
                    perceptual = self.perceptual_loss(sr, y)
                    l1 = functional.l1_loss(sr, y)
                    total = options.perceptual_weight * perceptual + options.l1_weight * l1
                    if criticise:
                        adversarial = adversarial_loss(critic(sr))
                        total = total + options.adversarial_weight * adversarial
                        terms |= {"adversarial_loss": adversarial}
                run.step(self.generator_optimizer, total)
            terms |= {"generator_loss": total, "perceptual_loss": perceptual, "l1_loss": l1}
            terms |= {"saturated": utils.saturated(sr).mean()}

            # (4) alignment: E alone, towards the features of the mix
            if align:
                with run.autocast():
                    clean_features, degraded_features = self.extractor(x_c), self.extractor(x_d)
                distance = functools.partial(sinkhorn_distance, eps=options.sinkhorn_eps)
                alignment = alignment_loss(clean_features, degraded_features, features, options.alpha, distance)
                run.step(self.alignment_optimizer, options.ot_weight * alignment)
                terms |= {"alignment_loss": alignment}
        return terms

    def measure_batchnorm(self, hr_train: PreparedFaces, extractor: torch.nn.Module, decoder: torch.nn.Module) -> None:
        """BatchNorm's statistics of E and S anew: their mean over batches of mixed training faces, chosen by seed."""
        run, options = self.run, self.options
        noise = torch.Generator().manual_seed(options.seed)
        indices = torch.randperm(len(hr_train), generator=noise)[: options.batchnorm_batches * STATISTICS_BATCH]
        run.say(f"measuring BatchNorm's statistics on {len(indices)} mixed faces")
        with utils.measuring_batchnorm(extractor, decoder) as (extractor, decoder), run.autocast():
            for part in indices.tensor_split(max(1, len(indices) // STATISTICS_BATCH)):
                x_c = utils.to_unit_range(hr_train[part.numpy()][1]).to(run.device)
                z = torch.randn(len(x_c), NOISE_CHANNELS, generator=noise).to(run.device)
                decoder(extractor(self.degrade_and_mix(x_c, z)[1]))


def train(options: argparse.Namespace, given: set[str]) -> None:
    """Stage 2 from the first batch to the last; `given`: the options that the user named."""
    run = utils.Run("sr", options, given, COLUMNS)

    h2l = Path(options.h2l or run.out / "h2l.pth")
    loaded = utils.load_networks(h2l, "h2l", {"generator": DegradationGenerator}, "run train_h2l.py first, or name --h2l")
    if loaded["content"]["width"] != options.width:
        raise utils.UserError(
            f"{h2l} has width {loaded['content']['width']}, this run {options.width}: give the same --width to both stages"
        )
    if run.main:
        utils.remark_framing(h2l, loaded["content"], options)
    run.fingerprints["h2l"] = utils.digest(loaded["generator"].state_dict())
    hr_train, hr_test, lr_test = run.faces("HR_train"), run.faces("HR_test"), run.faces("LR_test")
    perceptual_loss = PerceptualLoss(utils.load_perceptual_weights(options.vgg_weights))
    stage = SuperResolution(run, loaded["generator"], perceptual_loss)
    run.restore(hr_train)
    stage.distribute()

    def sample(path: Path) -> dict[str, float]:
        """A sheet of inputs, their SR and real LR faces, in eval mode; the PSNR of SR for each kind of input."""
        target, clean = hr_test[: utils.SAMPLE_FACES]
        (real,) = lr_test[: utils.SHEET_COLUMNS]
        target, clean, real = (utils.to_unit_range(faces).to(run.device) for faces in (target, clean, real))
        noise = torch.Generator().manual_seed(utils.SAMPLE_SEED)
        degraded, mixed = stage.degrade_and_mix(clean, torch.randn(len(clean), NOISE_CHANNELS, generator=noise).to(run.device))
        inputs = {"clean": clean, "degraded": degraded, "mixed": mixed, "real LR": real}
        with utils.evaluating(*run.trained("extractor", "decoder")) as (extractor, decoder), run.autocast():
            outputs = {name: decoder(extractor(faces)) for name, faces in inputs.items()}
        rows = {**inputs, **{f"SR of {name}": faces for name, faces in outputs.items()}, "target": target}
        order = ["clean", "degraded", "mixed", "SR of clean", "SR of degraded", "SR of mixed", "target"]
        utils.save_sheet(path, {name: rows[name][: utils.SHEET_COLUMNS] for name in [*order, "real LR", "SR of real LR"]})
        return {f"psnr_{name}": utils.psnr(outputs[name], target).mean().item() for name in ("clean", "degraded", "mixed")}

    if options.warm_start_steps > run.iteration:
        run.say(f"warm start: no critic and no alignment up to iteration {options.warm_start_steps}")
    # While training, BatchNorm's statistics are of few images and of maps down to 1x1, and in eval mode can make outputs
    # explode: sr.pth gets statistics of many faces, and where they are held, the networks train as they are tested
    first_held = (options.hold_batchnorm_epoch - 1) * run.steps_per_epoch + 1 if options.hold_batchnorm_epoch else run.total + 1
    for iteration, (y, x_c) in run.batches(hr_train):
        if iteration >= first_held and stage.extractor.training:  # where the epoch begins, or where a run continues in it
            if iteration == first_held and options.batchnorm_batches:
                stage.measure_batchnorm(hr_train, stage.extractor, stage.decoder)
            stage.extractor.eval()
            stage.decoder.eval()
        run.finish(stage.iterate(iteration, y, x_c), sample)

    if options.batchnorm_batches and run.main and run.iteration < first_held:
        stage.measure_batchnorm(hr_train, *run.trained("extractor", "decoder"))
        run.save_weights()


if __name__ == "__main__":
    utils.run_script(main)

"""Stage 2: train the feature extractor E and the SR decoder S on a mix of clean and degraded LR faces.

    python train.py --data Datasets --out Trained_Models                     # after train_h2l.py
    python train.py --vgg-weights random --width 16 --h2l demo/h2l.pth       # a smoke run
    torchrun --nproc_per_node=4 train.py --batch-size 52                     # four GPUs

x_m = alpha * x_c + (1 - alpha) * x_d with x_d from the frozen generator of stage 1; S(E(x_m)) is trained against y. From
the second epoch on, Sinkhorn distances pull E(x_c) and E(x_d) towards E(x_m): the smooth features of the paper's title.
A run continues from its own state in --out. The weights of E and S are written to sr.pth, for test.py.
"""

import argparse
from pathlib import Path

import torch
from torch.nn import functional

import utils
from losses import PerceptualLoss, adversarial_loss, alignment_loss, critic_loss, gradient_penalty
from models import NOISE_CHANNELS, Decoder, DegradationGenerator, FeatureExtractor, HRCritic

COLUMNS = [
    "critic_loss", "wasserstein", "gradient_penalty", "generator_loss", "perceptual_loss", "l1_loss", "adversarial_loss",
    "alignment_loss", "saturated", "psnr_clean", "psnr_degraded", "psnr_mixed",
]  # fmt: skip


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
    option("adversarial-weight", 0.05, "weight of -D_h(S(E(x_m)))", "reference")
    option("ot-weight", 1.0, "weight of the alignment loss; 0 leaves it out", "paper")
    option("ot-start-epoch", 2, "first epoch, from 1, with the alignment", "reference")
    option("sinkhorn-eps", 1e-3, "entropic regularisation, in squared units of the features", "reference")
    option("warm-start-steps", 0, "first iterations that train E and S on perceptual and L1 loss alone, each one", "ours: none")
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


def train(options: argparse.Namespace, given: set[str]) -> None:
    """Stage 2 from the first batch to the last; `given`: the options that the user named."""
    run = utils.Run("sr", options, given, COLUMNS)

    h2l = Path(options.h2l or run.out / "h2l.pth")
    loaded = utils.load_networks(h2l, "h2l", {"generator": DegradationGenerator}, "run train_h2l.py first, or name --h2l")
    if loaded["content"]["width"] != options.width:
        raise utils.UserError(
            f"{h2l} has width {loaded['content']['width']}, this run {options.width}: give the same --width to both stages"
        )
    run.fingerprints["h2l"] = utils.digest(loaded["generator"].state_dict())
    degrade = loaded["generator"].requires_grad_(False).to(run.device, memory_format=torch.channels_last)
    hr_train, hr_test, lr_test = run.faces("HR_train"), run.faces("HR_test"), run.faces("LR_test")
    perceptual_loss = PerceptualLoss(utils.load_perceptual_weights(options.vgg_weights))
    perceptual_loss = perceptual_loss.to(run.device, memory_format=torch.channels_last)

    run.network("extractor", FeatureExtractor(options.width), inference=True)
    run.network("decoder", Decoder(options.width), inference=True)
    run.network("critic", HRCritic(options.width))
    parameters = {name: list(network.parameters()) for name, network in run.networks.items()}
    betas = (options.beta1, options.beta2)
    generator_optimizer = run.optimizer(
        "generator", torch.optim.Adam(parameters["extractor"] + parameters["decoder"], options.generator_lr, betas, fused=True)
    )
    critic_optimizer = run.optimizer("critic", torch.optim.Adam(parameters["critic"], options.critic_lr, betas, fused=True))
    alignment_optimizer = run.optimizer(
        "alignment", torch.optim.Adam(parameters["extractor"], options.alignment_lr, betas, fused=True)
    )
    run.restore(hr_train)
    extractor, decoder, critic = (run.distribute(name) for name in ("extractor", "decoder", "critic"))

    def degrade_and_mix(clean: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x_c and z -> x_d, clamped to [-1, 1], and x_m."""
        with torch.no_grad(), run.autocast():
            degraded = degrade(clean, z).float().clamp(-1, 1)
        return degraded, options.alpha * clean + (1 - options.alpha) * degraded

    def sample(path: Path) -> dict[str, float]:
        """A sheet of inputs, their SR and real LR faces, in eval mode; the PSNR of SR for each kind of input."""
        target, clean = hr_test[: utils.SAMPLE_FACES]
        (real,) = lr_test[: utils.SHEET_COLUMNS]
        target, clean, real = (utils.to_unit_range(faces).to(run.device) for faces in (target, clean, real))
        noise = torch.Generator().manual_seed(utils.SAMPLE_SEED)
        degraded, mixed = degrade_and_mix(clean, torch.randn(len(clean), NOISE_CHANNELS, generator=noise).to(run.device))
        inputs = {"clean": clean, "degraded": degraded, "mixed": mixed, "real LR": real}
        with utils.evaluating(extractor, decoder) as networks, run.autocast():
            outputs = {name: networks[1](networks[0](faces)) for name, faces in inputs.items()}
        rows = {**inputs, **{f"SR of {name}": faces for name, faces in outputs.items()}, "target": target}
        order = ["clean", "degraded", "mixed", "SR of clean", "SR of degraded", "SR of mixed", "target"]
        utils.save_sheet(path, {name: rows[name][: utils.SHEET_COLUMNS] for name in [*order, "real LR", "SR of real LR"]})
        return {f"psnr_{name}": utils.psnr(outputs[name], target) for name in ("clean", "degraded", "mixed")}

    if options.warm_start_steps > run.iteration:
        run.say(f"warm start: no critic and no alignment up to iteration {options.warm_start_steps}")
    for iteration, (y, x_c) in run.batches(hr_train):
        warm_start = iteration <= options.warm_start_steps
        update_generator = warm_start or iteration % options.critic_updates == 0
        align = run.epoch(iteration) >= options.ot_start_epoch and options.ot_weight > 0 and not warm_start
        terms = {}

        # (1) degrade, mix and super-resolve: a graph only where E and S learn from it
        x_d, x_m = degrade_and_mix(x_c, run.normal(NOISE_CHANNELS))
        with run.autocast(), torch.set_grad_enabled(update_generator):
            features = extractor(x_m)
            sr = decoder(features).float()

        # (2) critic; GroupNorm looks at one sample at a time, so that fake and real faces can share a batch
        if not warm_start:
            with run.autocast():
                fake_scores, real_scores = critic(torch.cat([sr.detach(), y])).chunk(2)
                penalty = gradient_penalty(critic, y, sr, run.uniform())
            loss = critic_loss(fake_scores, real_scores)
            total = loss + options.gradient_penalty_weight * penalty
            run.step(critic_optimizer, total)
            terms |= {"critic_loss": total, "wasserstein": -loss, "gradient_penalty": penalty}

        if update_generator:
            # (3) feature extractor and decoder
            with utils.frozen(critic) as frozen_critic:
                with run.autocast():
                    perceptual = perceptual_loss(sr, y)
                    l1 = functional.l1_loss(sr, y)
                    total = options.perceptual_weight * perceptual + options.l1_weight * l1
                    if not warm_start:
                        adversarial = adversarial_loss(frozen_critic(sr))
                        total = total + options.adversarial_weight * adversarial
                        terms |= {"adversarial_loss": adversarial}
                run.step(generator_optimizer, total)
            terms |= {"generator_loss": total, "perceptual_loss": perceptual, "l1_loss": l1}
            terms |= {"saturated": utils.saturated(sr)}

            # (4) alignment: E alone, towards the features of the mix
            if align:
                with run.autocast():
                    clean_features, degraded_features = extractor(x_c), extractor(x_d)
                alignment = alignment_loss(clean_features, degraded_features, features, options.alpha, options.sinkhorn_eps)
                run.step(alignment_optimizer, options.ot_weight * alignment)
                terms |= {"alignment_loss": alignment}

        run.finish(terms, sample)


if __name__ == "__main__":
    utils.run_script(main)

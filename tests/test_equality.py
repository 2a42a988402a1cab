"""The trainers' fast iterations against plain ones, written out here: unmerged, unfused, fp32 or float64, NCHW, graphs always.

Adam with beta1 = 0 acts like a sign, so that parameters after several fp32 steps cannot agree closely: float64 shows that the
updates are the same, fp32 that the gradients are, bf16 that its terms stay near.
"""

import copy

import pytest
import torch
from torch.nn import functional

import train
import train_h2l
from losses import PerceptualLoss, sinkhorn_distance
from models import DegradationGenerator
from training.options import parse_options
from training.run import Run

WIDTH, BATCH = 8, 4


def make_run(name, module, tmp_path, dtype, *options):
    """A run of the script, outside any data, whose random draws come in the dtype."""
    arguments = ["--out", str(tmp_path), "--device", "cpu", "--width", str(WIDTH), "--batch-size", str(BATCH), *options]
    run = Run(name, *parse_options(module.build_parser(), arguments), module.COLUMNS)
    run.steps_per_epoch = 5  # the alignment begins at iteration 6
    run.dtype = torch.bfloat16 if dtype == "bf16" else torch.float32
    torch.manual_seed(0)
    return run


def faces(iteration, size, dtype):
    """Smooth patches of differing brightness: BatchNorm would amplify the rounding errors of faces that are all alike."""
    generator = torch.Generator().manual_seed(iteration)
    coarse = torch.rand(BATCH, 3, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1
    level = torch.rand(BATCH, 3, 1, 1, generator=generator, dtype=torch.float64) * 2 - 1
    return (0.5 * functional.interpolate(coarse, size=(size, size), mode="bicubic") + 0.5 * level).clamp(-1, 1).to(dtype)


def penalty(critic, real, fake, mix):
    x = (mix.view(-1, 1, 1, 1) * real + (1 - mix.view(-1, 1, 1, 1)) * fake).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return ((gradient.square().sum(dim=(1, 2, 3)).sqrt() - 1) ** 2).mean()


def update(optimizer, loss):
    optimizer.zero_grad()
    loss.backward(retain_graph=True)
    optimizer.step()


class PlainSuperResolution:
    """Stage 2 as SPEC.md says it, one thing after another."""

    def __init__(self, stage):
        run, options = stage.run, stage.options
        self.options, self.run = options, run
        networks = (stage.degrade, stage.extractor, stage.decoder, stage.critic, stage.perceptual_loss)
        self.degrade, self.extractor, self.decoder, self.critic, self.perceptual = (
            copy.deepcopy(network).to(memory_format=torch.contiguous_format) for network in networks
        )
        betas = (options.beta1, options.beta2)
        self.networks = {"extractor": self.extractor, "decoder": self.decoder, "critic": self.critic}
        generator_side = [*self.extractor.parameters(), *self.decoder.parameters()]
        plain = {"fused": False, "foreach": False}
        self.generator_optimizer = torch.optim.Adam(generator_side, options.generator_lr, betas, **plain)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), options.critic_lr, betas, **plain)
        self.alignment_optimizer = torch.optim.Adam(self.extractor.parameters(), options.alignment_lr, betas, **plain)

    def iterate(self, iteration, y, x_c, z, mix):
        options = self.options
        x_d = self.degrade(x_c, z).detach().clamp(-1, 1)
        x_m = options.alpha * x_c + (1 - options.alpha) * x_d
        features = self.extractor(x_m)
        sr = self.decoder(features)
        gp = penalty(self.critic, y, sr, mix)
        wasserstein = self.critic(y).mean() - self.critic(sr.detach()).mean()
        update(self.critic_optimizer, -wasserstein + options.gradient_penalty_weight * gp)
        terms = {"wasserstein": wasserstein, "gradient_penalty": gp}
        if iteration % options.critic_updates == 0:
            perceptual = (self.perceptual.features(sr) - self.perceptual.features(y)).abs().mean()
            l1 = (sr - y).abs().mean()
            adversarial = -self.critic(sr).mean()
            total = options.perceptual_weight * perceptual + options.l1_weight * l1 + options.adversarial_weight * adversarial
            target = features.detach().flatten(2).mT
            update(self.generator_optimizer, total)
            terms |= {"perceptual_loss": perceptual, "l1_loss": l1, "adversarial_loss": adversarial}
            if self.run.epoch(iteration) >= options.ot_start_epoch:
                distances = [
                    sinkhorn_distance(self.extractor(x).flatten(2).mT, target, options.sinkhorn_eps).mean() for x in (x_c, x_d)
                ]
                alignment = options.alpha * distances[0] + (1 - options.alpha) * distances[1]
                update(self.alignment_optimizer, alignment)
                terms["alignment_loss"] = alignment
        return terms


class PlainDegradation:
    """Stage 1 likewise."""

    def __init__(self, stage):
        options = stage.options
        self.options = options
        self.generator, self.critic = (
            copy.deepcopy(network).to(memory_format=torch.contiguous_format) for network in (stage.generator, stage.critic)
        )
        self.networks = {"generator": self.generator, "critic": self.critic}
        plain = {"fused": False, "foreach": False}
        betas = (options.beta1, options.beta2)
        self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), options.generator_lr, betas, **plain)
        self.critic_optimizer = torch.optim.SGD(self.critic.parameters(), options.critic_lr, 0.5, **plain)

    def iterate(self, iteration, x_c, x_r, z, mix):
        options = self.options
        x_d = self.generator(x_c, z)
        gp = penalty(self.critic, x_r, x_d, mix)
        wasserstein = self.critic(x_r).mean() - self.critic(x_d.detach()).mean()
        update(self.critic_optimizer, -wasserstein + options.gradient_penalty_weight * gp)
        terms = {"wasserstein": wasserstein, "gradient_penalty": gp}
        if iteration % options.critic_updates == 0:
            pixel, adversarial = ((x_d - x_c) ** 2).mean(), -self.critic(x_d).mean()
            update(self.generator_optimizer, options.pixel_weight * pixel + options.adversarial_weight * adversarial)
            terms |= {"pixel_loss": pixel, "adversarial_loss": adversarial}
        return terms


def make_stages(number, tmp_path, dtype, *options):
    """The fast stage and the plain one, with the same weights; everything in float64 if the dtype is that."""
    if number == 1:
        stage = train_h2l.Degradation(make_run("h2l", train_h2l, tmp_path, dtype, *options))
        others = []
    else:
        run = make_run("sr", train, tmp_path, dtype, *options)
        stage = train.SuperResolution(run, DegradationGenerator(WIDTH), PerceptualLoss())
        others = [stage.degrade, stage.perceptual_loss]
    if dtype == torch.float64:
        for network in [*stage.run.networks.values(), *others]:
            network.double()
    return stage, (PlainDegradation if number == 1 else PlainSuperResolution)(stage)


def iterate_both(number, stage, plain, iteration, dtype):
    """One iteration of each on the same faces and the same draws; returns both ones' terms."""
    run = stage.run
    dtype = torch.float32 if dtype == "bf16" else dtype
    y = faces(iteration, 64, dtype)
    x_c = functional.interpolate(y, scale_factor=0.25, mode="area")
    second = x_c if number == 2 else faces(1000 + iteration, 16, dtype)
    before = run.noise.get_state()
    first = (y, x_c) if number == 2 else (x_c, second)
    fast_terms = stage.iterate(iteration, *first)
    run.noise.set_state(before)
    z, mix = run.normal(16).to(dtype), run.uniform().to(dtype)
    return fast_terms, plain.iterate(iteration, *first, z, mix)


@pytest.mark.parametrize("number", [1, 2])
def test_ten_iterations_in_float64_are_the_same(number, tmp_path):
    stage, plain = make_stages(number, tmp_path, torch.float64)
    began = copy.deepcopy({name: network.state_dict() for name, network in plain.networks.items()})
    for iteration in range(1, 11):
        fast_terms, terms = iterate_both(number, stage, plain, iteration, torch.float64)
        for name, value in terms.items():
            assert fast_terms[name].item() == pytest.approx(value.item(), rel=1e-7, abs=1e-9), (iteration, name)
    for name, network in plain.networks.items():
        fast = stage.run.networks[name].state_dict()
        for key, tensor in network.state_dict().items():
            assert (fast[key].double() - tensor.double()).abs().max() < 1e-8, (name, key)
        moved = [(began[name][key].double() - tensor.double()).abs().max() for key, tensor in network.state_dict().items()]
        assert max(moved) > 1e-5, name  # and it is not because nothing happens


def gradients_of(number, tmp_path, dtype):
    """Each optimizer's gradients in a full iteration from the first weights, of the fast stage and of the plain one."""
    rates = ["--critic-lr", "0", "--generator-lr", "0", *(["--alignment-lr", "0"] if number == 2 else [])]
    collected = ({}, {})
    stages = make_stages(number, tmp_path, dtype, *rates)  # nothing moves: all gradients are those of one state
    for stage, gradients in zip(stages, collected):
        for name in [name for name in vars(stage) if name.endswith("_optimizer")]:

            def collect(optimizer, _arguments, _settings, name=name, gradients=gradients):
                gradients[name] = [parameter.grad.double().clone() for parameter in optimizer.param_groups[0]["params"]]

            getattr(stage, name).register_step_pre_hook(collect)
    iterate_both(number, *stages, 10, dtype)
    return collected


def worst(gradients, truth):
    """The largest relative error of a tensor, in its norm, and the error of all tensors together, relative to theirs.

    A bias before BatchNorm has no gradient but rounding errors: tensors of next to no gradient count as one.
    """
    errors = torch.stack([(a - b).norm() for a, b in zip(gradients, truth)])
    norms = torch.stack([tensor.norm() for tensor in truth])
    return (errors / norms.clamp(min=1e-3 * norms.max())).max().item(), (errors.norm() / norms.norm()).item()


@pytest.mark.parametrize("number", [1, 2])
def test_one_fp32_iteration_has_the_same_gradients(number, tmp_path):
    """Within 1e-4: G and the critics tensor by tensor, E under the alignment as a whole. Through E and S' BatchNorms, on maps
    down to 1x1, and the kinks of PReLU and L1, rounding errors grow: plain fp32 itself is 1e-3 from float64 as a whole and
    1e-2 in single tensors. There the fast iteration must not be much further from float64 than the plain one.
    """
    truth = gradients_of(number, tmp_path, torch.float64)[1]
    fast, plain = gradients_of(number, tmp_path, torch.float32)
    assert fast.keys() == plain.keys() == truth.keys() and len(truth) == (2 if number == 1 else 3)
    for name in truth:
        if number == 2 and name == "generator_optimizer":
            error, plain_error = worst(fast[name], truth[name])[1], worst(plain[name], truth[name])[1]
            assert error < 4 * plain_error + 1e-4, (error, plain_error)
        else:
            assert worst(fast[name], plain[name])[name == "alignment_optimizer"] < 1e-4, name


def test_bf16_terms_stay_near_fp32(tmp_path, capsys):
    stage, plain = make_stages(2, tmp_path, "bf16")
    fast_terms, terms = iterate_both(2, stage, plain, 10, "bf16")
    for name in ("perceptual_loss", "l1_loss"):
        assert fast_terms[name].item() == pytest.approx(terms[name].item(), rel=0.02), name
    with capsys.disabled():
        values = ", ".join(f"{name} {fast_terms[name]:.4f} / {terms[name]:.4f}" for name in ("adversarial_loss", "wasserstein"))
        print(f" bf16 / fp32: {values} ", end="")

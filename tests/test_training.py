"""Both trainers: that they do what the method says, what they write, and that bad input ends in an
error before training.

The iterations are compared with plain ones, written out here: unmerged, unfused, fp32 or float64,
NCHW, graphs always. Adam with beta1 = 0 acts like a sign, so that parameters after several fp32
steps cannot agree closely: float64 shows that the updates are the same, fp32 that the gradients
are, bf16 that its terms stay near.
"""

import copy
import json
import os
import pickle
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from helpers import (
    REFERENCE,
    copy_lists,
    h2l_options,
    main,
    one_sr_step,
    one_step,
    sr_options,
)
from PIL import Image
from torch.nn import functional

import train
import train_h2l
import training.log
import utils
from losses import PerceptualLoss, sinkhorn_distance
from models import DegradationGenerator
from training.augment import augment
from training.log import Log
from training.options import parse_options
from training.run import Run
from training.state import warmed_up_ema

WIDTH, BATCH = 8, 4  # of the comparison
OURS = ["--adversarial-weight", "0.05", "--critic-updates", "5", "--augment", "mirror", "--ot-start-epoch", "2"]


def make_run(name, module, tmp_path, dtype, *options):
    """A run of the script, outside any data, as if its first batch were due."""
    arguments = ["--out", str(tmp_path), "--device", "cpu", "--width", str(WIDTH), "--batch-size", str(BATCH), "--precision"]
    arguments += ["bf16" if dtype == "bf16" else "fp32", "--initial-weights", "random", *map(str, options)]
    run = Run(name, *parse_options(module.build_parser(), arguments), module.COLUMNS)
    run.steps_per_epoch = 5  # the alignment begins at iteration 6
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


def plain_copy(network):
    return copy.deepcopy(network.module).to(memory_format=torch.contiguous_format)


def plain_adam(networks, rate, betas):
    return torch.optim.Adam([p for n in networks for p in n.parameters()], rate, betas, fused=False, foreach=False)


def critic_update(optimizer, critic, fake, real, mix):
    gp, wasserstein = penalty(critic, real, fake, mix), critic(real).mean() - critic(fake.detach()).mean()
    update(optimizer, -wasserstein + 10 * gp)
    return {"wasserstein": wasserstein, "gradient_penalty": gp}


class PlainSuperResolution:
    """Stage 2, one thing after another."""

    def __init__(self, stage):
        self.stage, options = stage, stage.options
        self.G, self.E, self.S, self.D, self.V = map(plain_copy, (stage.G, stage.E, stage.S, stage.D, stage.perceptual))
        self.average = copy.deepcopy(self.E).eval()
        self.networks = {"extractor": self.E, "decoder": self.S, "critic": self.D}
        self.adam_ES = plain_adam([self.E, self.S], options.generator_lr, options.betas)
        self.adam_D = plain_adam([self.D], 4e-4, options.betas)
        self.adam_E = plain_adam([self.E], options.alignment_lr, options.betas)

    def inputs(self, y, x_c):
        """The faces of an iteration, with the run's draws in its order."""
        run, options = self.stage.run, self.stage.options
        if options.augment == "mirror":
            flip = (run.uniform(6)[:, 0] < 0.5).view(-1, 1, 1, 1)
            y, x_c = torch.where(flip, y.flip(3), y), torch.where(flip, x_c.flip(3), x_c)
        x_d = self.G(x_c, run.normal(16).to(x_c)).detach().clamp(-1, 1)
        alpha = (run.uniform() / 0.8).clamp(max=1).to(y) if options.alpha == "random" else y.new_full((len(y),), options.alpha)
        a = alpha.view(-1, 1, 1, 1)
        x = x_m = a * x_c + (1 - a) * x_d
        x_s = None
        if options.synthetic_share:
            x_s = train.degradations.degrade(y, run.uniform(11), run.normal(3, 16, 16), exposure=0.3).to(y)
            x = torch.where(run.uniform().view(-1, 1, 1, 1) < options.synthetic_share, x_s, x_m)
        return y, x_c, x_d, x_m, x_s, x, alpha

    def iterate(self, iteration, y, x_c):
        run, options = self.stage.run, self.stage.options
        y, x_c, x_d, x_m, x_s, x, alpha = self.inputs(y, x_c)
        features = self.E(x)
        sr = self.S(features)
        terms = critic_update(self.adam_D, self.D, sr, y, run.uniform().to(y))
        if iteration % options.critic_updates == 0:
            perceptual = (self.V.features(sr) - self.V.features(y)).abs().mean()
            l1, adversarial = (sr - y).abs().mean(), -self.D(sr).mean()
            begin, end = options.l1_weight[0], options.l1_weight[-1]
            weight = begin * (end / begin) ** ((iteration - 1) / (options.epochs * run.steps_per_epoch))
            update(self.adam_ES, perceptual + weight * l1 + options.adversarial_weight * adversarial)
            terms |= {"perceptual_loss": perceptual, "l1_loss": l1, "adversarial_loss": adversarial}
            if run.epoch(iteration) >= options.ot_start_epoch:
                terms["alignment_loss"] = self.align(x_c, x_d, x_m, x_s, alpha, features)
        return terms

    def align(self, x_c, x_d, x_m, x_s, alpha, features):
        if self.stage.options.alignment_target == "online":
            target = features.detach().flatten(2).mT
            distances = [sinkhorn_distance(self.E(x).flatten(2).mT, target) for x in (x_c, x_d)]
            loss = (alpha * distances[0] + (1 - alpha) * distances[1]).mean()
        else:
            target = self.average(x_m).detach().flatten(2).mT
            parts = self.E(torch.cat([x_c, x_d, x_m, x_s])).flatten(2).mT.chunk(4)
            c, d, m, s = (sinkhorn_distance(part, target) for part in parts)
            pairs = [(target[i] - target[j]).square().sum(dim=1).mean() for i in range(BATCH) for j in range(i)]
            loss = (alpha * c + (1 - alpha) * d + m + 0.5 * s).mean() / torch.stack(pairs).mean()
        update(self.adam_E, loss)
        return loss


class PlainDegradation:
    """Stage 1 likewise."""

    def __init__(self, stage):
        self.stage, options = stage, stage.options
        self.G, self.D = map(plain_copy, (stage.G, stage.D))
        self.networks = {"generator": self.G, "critic": self.D}
        self.adam_G = plain_adam([self.G], options.generator_lr, options.betas)
        self.adam_D = plain_adam([self.D], options.critic_lr, (0.5, 0.9))

    def iterate(self, iteration, x_c, x_r):
        run, options = self.stage.run, self.stage.options
        x_d = self.G(x_c, run.normal(16).to(x_c))
        terms = critic_update(self.adam_D, self.D, x_d, x_r, run.uniform().to(x_c))
        if iteration % options.critic_updates == 0:
            adversarial = -self.D(x_d).mean()
            colour = ((x_d.mean(dim=(2, 3)) - x_c.mean(dim=(2, 3))) ** 2).mean()
            pixel = ((x_d - x_c) ** 2).mean() - colour  # the mean square is variance and squared mean
            total = options.pixel_weight * pixel + options.colour_weight * colour + options.adversarial_weight * adversarial
            update(self.adam_G, total)
            terms |= {"pixel_loss": pixel, "colour_loss": colour, "adversarial_loss": adversarial}
        return terms


def make_stages(number, tmp_path, dtype, *options):
    """The stage and the plain one, with the same weights; everything in float64 if the dtype is that."""
    if number == 1:
        stage = train_h2l.Degradation(make_run("h2l", train_h2l, tmp_path, dtype, *options))
        others = []
    else:
        run = make_run("sr", train, tmp_path, dtype, *options)
        stage = train.SuperResolution(run, DegradationGenerator(WIDTH), PerceptualLoss())
        others = [stage.G.module, stage.perceptual.module]
    if dtype == torch.float64:
        for network in [*stage.run.state.networks.values(), *stage.run.state.averages.values(), *others]:
            network.double()
    return stage, (PlainDegradation if number == 1 else PlainSuperResolution)(stage)


def iterate_both(number, stage, plain, iteration, dtype):
    """One iteration of each on the same faces and the same draws; returns both ones' terms."""
    noise, dtype = stage.run.state.noise, torch.float32 if dtype == "bf16" else dtype
    y = faces(iteration, 64, dtype)
    x_c = functional.interpolate(y, scale_factor=0.25, mode="area")
    batch = (y, x_c) if number == 2 else (x_c, faces(1000 + iteration, 16, dtype))
    before = noise.get_state()
    terms = stage.iterate(iteration, *batch)
    noise.set_state(before)
    return terms, plain.iterate(iteration, *batch)


STAGES = pytest.mark.parametrize("number, options", [(1, []), (2, REFERENCE), (2, OURS)], ids=["stage 1", "reference", "ours"])


@STAGES
def test_ten_iterations_in_float64_are_the_same(number, options, tmp_path):
    stage, plain = make_stages(number, tmp_path, torch.float64, *options)
    began = copy.deepcopy({name: network.state_dict() for name, network in plain.networks.items()})
    for iteration in range(1, 11):
        terms, others = iterate_both(number, stage, plain, iteration, torch.float64)
        for name, value in others.items():
            assert terms[name].item() == pytest.approx(value.item(), rel=1e-7, abs=1e-9), (iteration, name)
    assert number == 1 or "alignment_loss" in others
    for name, network in plain.networks.items():
        weights = stage.run.state.networks[name].state_dict()
        for key, tensor in network.state_dict().items():
            assert (weights[key].double() - tensor.double()).abs().max() < 1e-7, (name, key)
        moved = [(began[name][key].double() - tensor.double()).abs().max() for key, tensor in network.state_dict().items()]
        assert max(moved) > 1e-5, name  # and it is not because nothing happens


def gradients_of(number, tmp_path, dtype, options):
    """Each optimizer's gradients in a full iteration from the first weights, of the stage and of the plain one."""
    collected = ({}, {})
    stages = make_stages(number, tmp_path, dtype, *options)
    for stage, gradients in zip(stages, collected):
        for name in [name for name in vars(stage) if name.startswith("adam_")]:

            def collect(optimizer, _arguments, _settings, name=name, gradients=gradients):
                gradients[name] = [parameter.grad.double().clone() for parameter in optimizer.param_groups[0]["params"]]
                optimizer.param_groups[0]["lr"] = 0.0  # nothing moves: all gradients are those of one state

            getattr(stage, name).register_step_pre_hook(collect)
    iterate_both(number, *stages, 10, dtype)
    return collected


def worst(gradients, truth):
    """The largest relative error of a tensor, in its norm, and the error of all tensors together,
    relative to theirs.

    A bias before BatchNorm has no gradient but rounding errors: tensors of next to no gradient
    count as one.
    """
    errors = torch.stack([(a - b).norm() for a, b in zip(gradients, truth)])
    norms = torch.stack([tensor.norm() for tensor in truth])
    return (errors / norms.clamp(min=1e-3 * norms.max())).max().item(), (errors.norm() / norms.norm()).item()


@STAGES
def test_one_fp32_iteration_has_the_same_gradients(number, options, tmp_path):
    """Stage 1 within 1e-4, tensor by tensor. Through E and S' BatchNorms, on maps down to 1x1, and
    the kinks of PReLU and L1, rounding errors grow, and D_h sees what comes out: plain fp32 itself is
    1e-3 from float64 as a whole and 1e-2 in single tensors. There the iteration must not be much
    further from float64 than the plain one.
    """
    truth = gradients_of(number, tmp_path, torch.float64, options)[1]
    ours, plain = gradients_of(number, tmp_path, torch.float32, options)
    assert ours.keys() == plain.keys() == truth.keys() and len(truth) == (2 if number == 1 else 3)
    for name in truth:
        if number == 2:
            error, plain_error = worst(ours[name], truth[name])[1], worst(plain[name], truth[name])[1]
            assert error < 4 * plain_error + 5e-4, (name, error, plain_error)
        else:
            assert worst(ours[name], plain[name])[0] < 1e-4, name


def test_bf16_terms_stay_near_fp32(tmp_path):
    stage, plain = make_stages(2, tmp_path, "bf16", *REFERENCE)
    terms, others = iterate_both(2, stage, plain, 10, "bf16")
    for name, bound in (("perceptual_loss", 0.02), ("l1_loss", 0.02), ("adversarial_loss", 0.2)):
        assert terms[name].item() == pytest.approx(others[name].item(), rel=bound), name


def test_every_file_is_written(sr):
    out = sr.parent
    for name, log, samples in (("h2l", "train_h2l.csv", "samples_h2l"), ("sr", "train.csv", "samples_sr")):
        weights = torch.load(out / f"{name}.pth", weights_only=True)
        assert weights["kind"] == name and weights["width"] == 4 and weights["settings"]["batch_size"] == 4
        state = torch.load(out / f"{name}_state.pth", weights_only=True)
        assert state["iteration"] == 2
        assert json.loads((out / f"{name}_options.json").read_text())["width"] == 4
        table = pd.read_csv(out / log)
        assert list(table["iteration"]) == [1, 2]
        assert table[["critic_loss", "gradient_penalty", "wasserstein", "images_per_second"]].notna().all(axis=None)
        assert table["psnr_degraded"].notna().tolist() == [False, True]
        with Image.open(out / samples / "0000002.png") as sheet:
            assert sheet.width > 500 and sheet.height > 400
        with Image.open(out / f"{name}_curves.png") as curves:
            assert curves.width > 500
    assert sorted(torch.load(out / "h2l.pth", weights_only=True)["weights"]) == ["generator"]
    assert sorted(torch.load(out / "sr.pth", weights_only=True)["weights"]) == ["decoder", "extractor"]
    assert not list(out.glob("*.tmp"))


BOTH = {"extractor", "decoder"}


@pytest.mark.parametrize(
    "options, critic, generator, alignment",
    [
        ([], [*range(1, 11)], [5, 10], [10]),
        (["--alignment-lr", 0], [*range(1, 11)], [5, 10], []),
        (["--adversarial-weight", 0, "--ot-start-epoch", 1], [], [*range(1, 11)], [*range(1, 11)]),
    ],
)
def test_stage_2_updates(options, critic, generator, alignment, demo_data, h2l, tmp_path):
    """E and S every fifth iteration, or without a critic each; the alignment from its epoch on."""
    main(train, *sr_options(demo_data, tmp_path, h2l, "--steps-per-epoch", 5, "--epochs", 2, *options))
    table = pd.read_csv(tmp_path / "train.csv").set_index("iteration")
    for name, expected in (("critic_loss", critic), ("generator_loss", generator), ("alignment_loss", alignment)):
        assert table.index[table[name].notna()].tolist() == expected


def statistics(weights):
    return {f"{n}.{k}": t for n in BOTH for k, t in weights[n].items() if "running" in k}


def test_a_trained_network_is_aligned_by_e_alone(demo_data, h2l, lively, tmp_path):
    """S and all BatchNorm statistics stay, the versions of a face come nearer, no perceptual network is
    needed; resumed in between.
    """
    generator = DegradationGenerator(8)
    content = {"width": 8, "settings": {}, "weights": {"generator": generator.state_dict()}}
    utils.save_checkpoint(tmp_path / "h2l.pth", "h2l", content)
    options = h2l_options(demo_data, tmp_path / "out", "--h2l", tmp_path / "h2l.pth", "--width", 8, "--generator-lr", 0)
    options += ["--initial-weights", str(lively), "--alignment-lr", "1e-3", "--ema-decay", "0.9"]
    options += ["--steps-per-epoch", "60", "--epochs", "1", "--vgg-weights", "nowhere.pth", "--augment", "none"]
    options += ["--alpha", "0.3", "--synthetic-share", "0"]  # random ones would hide in noise what is learnt
    main(train, *options, "--max-steps", 30)
    main(train, *options)
    before, after = (torch.load(path, weights_only=True)["weights"] for path in (lively, tmp_path / "out" / "sr.pth"))
    assert utils.digest(before["decoder"]) == utils.digest(after["decoder"])
    assert utils.digest(before["extractor"]) != utils.digest(after["extractor"])
    assert all(torch.equal(tensor, statistics(after)[name]) for name, tensor in statistics(before).items())
    table = pd.read_csv(tmp_path / "out" / "train.csv")
    assert table[["critic_loss", "generator_loss"]].isna().all(axis=None)
    losses = table["alignment_loss"]
    assert losses[-10:].mean() < 0.8 * losses[:3].mean()


@pytest.mark.parametrize("alpha, share, expected", [(1, 0, "x_c"), (0, 0, "x_d"), (0.3, 1, "x_s"), ("random", 0, "between")])
def test_what_e_and_s_learn_from(alpha, share, expected, tmp_path):
    options = ["--augment", "none", "--alignment-lr", 0, "--alpha", alpha, "--synthetic-share", share]
    stage, plain = make_stages(2, tmp_path, torch.float32, *OURS, *options)
    seen = []
    stage.E.module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    plain.iterate = lambda iteration, y, x_c: plain.inputs(y, x_c)
    _, (_, x_c, x_d, _, x_s, _, alphas) = iterate_both(2, stage, plain, 1, torch.float32)
    between = alphas.view(-1, 1, 1, 1) * x_c + (1 - alphas.view(-1, 1, 1, 1)) * x_d
    assert torch.allclose(seen[0], {"x_c": x_c, "x_d": x_d, "x_s": x_s, "between": between}[expected], atol=1e-6)
    assert expected != "between" or len(alphas.unique()) == BATCH


@pytest.mark.parametrize("options, factors", [
    (["--lr-decay", 0.5], [1, 1, 0.5, 0.5, 0.25, 0.25]),
    ([], [(i + 1) / 60 * 0.5 * (1 + np.cos(np.pi * i / 6)) for i in range(6)]),
])  # fmt: skip
def test_learning_rates(options, factors, demo_data, tmp_path):
    main(train_h2l, *h2l_options(demo_data, tmp_path, "--steps-per-epoch", 2, "--epochs", 3, "--generator-lr", 1e-4, *options))
    table = pd.read_csv(tmp_path / "train_h2l.csv")
    assert table["learning_rate"].tolist() == pytest.approx([1e-4 * factor for factor in factors], rel=1e-4)
    assert table["epoch"].tolist() == [1, 1, 2, 2, 3, 3]


def test_the_ema_forgets_the_first_weights_soon_and_carries_batchnorm(demo_data, h2l, tmp_path):
    average, update = [torch.zeros(1)], warmed_up_ema(0.9**0.25)
    for count in range(1, 4):
        update(average, [torch.ones(1)], torch.tensor(count))
    assert average[0].item() == pytest.approx(1 - 2 / 11 * 3 / 12 * 4 / 13)
    main(train, *sr_options(demo_data, tmp_path, h2l, "--max-steps", 3, "--adversarial-weight", 0, "--ema-decay", 0.5))
    state = torch.load(tmp_path / "sr_state.pth", weights_only=True)
    written = torch.load(tmp_path / "sr.pth", weights_only=True)["weights"]["decoder"]
    key = next(key for key in written if key.endswith("running_mean"))
    assert torch.equal(written[key], state["averages"]["decoder"][f"module.{key}"])
    assert not torch.equal(written[key], state["networks"]["decoder"][key])


def test_both_stages_learn_eight_faces_by_heart(demo_data, tmp_path):
    """Stage 1's critic finds what tells x_d from x_r; stage 2's SR comes near to y."""
    data = copy_lists(demo_data, tmp_path / "data")
    for name in ("HR_train", "LR_train"):
        lines = (data / f"{name}.csv").read_text().splitlines()
        (data / f"{name}.csv").write_text("\n".join(lines[:9]))
    tiny = ["--width", 8, "--batch-size", 8, "--epochs", 1, "--save-every", 20]
    options = ["--steps-per-epoch", 200, "--critic-updates", 2, "--generator-lr", 5e-3, "--adversarial-weight", 0.1]
    main(train_h2l, *h2l_options(data, tmp_path, *tiny, *options))
    h2l = pd.read_csv(tmp_path / "train_h2l.csv")
    assert h2l["pixel_loss"].dropna()[-5:].mean() < 0.8 * h2l["pixel_loss"].dropna()[:3].mean()
    options = ["--vgg-weights", "random", "--generator-lr", 3e-3, "--steps-per-epoch", 150, "--augment", "none", "--alpha", 1,
               "--synthetic-share", 0, "--l1-weight", 30, "--ema-decay", 0.9, "--initial-weights", "random"]  # fmt: skip
    main(train, *h2l_options(data, tmp_path, *tiny, *options))
    sr = pd.read_csv(tmp_path / "train.csv")
    assert sr["l1_loss"][-5:].mean() < 0.25 * sr["l1_loss"][:3].mean()


def test_augmentation_keeps_x_c_the_reduction_of_y():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(64, 3, 8, 8, generator=generator) * 2 - 1
    y = utils.to_unit_range(utils.to_bytes(functional.interpolate(coarse, size=(64, 64), mode="bicubic")))

    def reduce(faces):
        return functional.interpolate(faces, size=(16, 16), mode="bicubic", antialias=True)

    x_c = utils.to_unit_range(utils.to_bytes(reduce(y)))
    uniform = torch.rand(64, 6, generator=generator)
    for kind in ("mirror", "framing"):
        new_y, new_x = augment(y, x_c, uniform, kind)
        assert (reduce(new_y).clamp(-1, 1) - new_x).abs().max() < 1.1 / 127.5  # two roundings
        unchanged = (new_y == y).flatten(1).all(dim=1)
        mirrored = (new_y == y.flip(-1)).flatten(1).all(dim=1)
        assert torch.equal(mirrored | unchanged, uniform[:, 1] >= 0.5 if kind == "framing" else torch.ones(64, dtype=bool))
        assert (mirrored <= (uniform[:, 0] < 0.5)).all()


def test_a_short_epoch_is_warned_of(demo_data, tmp_path, capsys):
    """A few faces make a run of a few iterations: said, where the rates fall by epochs of unchosen length."""
    main(train_h2l, *h2l_options(demo_data, tmp_path / "a", "--max-steps", 1, "--lr-decay", 0.5))
    assert "one pass over 24 faces is short" in (said := capsys.readouterr().out) and "--steps-per-epoch 9143" in said
    main(train_h2l, *h2l_options(demo_data, tmp_path / "b", "--max-steps", 1, "--lr-decay", 0.5, "--steps-per-epoch", 6))
    assert "is short" not in capsys.readouterr().out


def test_sampling_leaves_no_trace(demo_data, h2l, tmp_path):
    """Sample sheets are made in eval mode: neither BatchNorm's statistics nor any random state notice them."""
    for name, every in (("seldom", 100), ("often", 1)):
        main(train, *sr_options(demo_data, tmp_path / name, h2l, "--max-steps", 4, "--save-every", every))
    assert len(list((tmp_path / "often" / "samples_sr").iterdir())) == 4
    a, b = (torch.load(tmp_path / n / "sr_state.pth", weights_only=True)["networks"] for n in ("seldom", "often"))
    assert all(utils.digest(a[name]) == utils.digest(b[name]) for name in a)


def test_a_run_is_driven_in_one_order(tmp_path, demo_data):
    def run(name):
        (tmp_path / name).mkdir()
        return Run("h2l", *parse_options(train_h2l.build_parser(), one_step(demo_data, tmp_path / name)), train_h2l.COLUMNS)

    late = run("late")
    for _ in late.batches(late.faces("HR_train")):
        with pytest.raises(RuntimeError, match="before the first batch"):
            late.network("critic", DegradationGenerator(4))
        break
    with pytest.raises(RuntimeError, match="once"):
        next(late.batches(late.faces("HR_train")))
    unfinished = run("unfinished")
    with pytest.raises(RuntimeError, match="finish"):
        list(unfinished.batches(unfinished.faces("HR_train")))


def test_a_term_without_a_column_is_an_error(demo_data, tmp_path, monkeypatch):
    monkeypatch.setattr(train_h2l, "COLUMNS", [name for name in train_h2l.COLUMNS if name != "wasserstein"])
    with pytest.raises(ValueError, match="wasserstein"):
        main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 1))


def test_another_faces_framing_is_warned_of(demo_data, h2l, sr, tmp_path, capsys):
    main(train, *one_sr_step(demo_data, tmp_path, h2l, "--initial-weights", sr, "--resize", 64))
    said = capsys.readouterr().out
    assert said.count("its faces were framed otherwise") == 2 and str(sr) in said and str(h2l) in said


def test_initial_weights_begin_the_run_and_its_ema(demo_data, h2l, sr, tmp_path):
    options = ["--initial-weights", sr, "--generator-lr", 1e-12, "--ema-decay", 0.9, "--adversarial-weight", 0]
    main(train, *one_sr_step(demo_data, tmp_path, h2l, *options))
    before, after = (torch.load(path, weights_only=True)["weights"]["extractor"] for path in (sr, tmp_path / "sr.pth"))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before if before[name].ndim > 1)
    with pytest.raises(utils.UserError, match="--initial-weights"):
        main(train, *one_sr_step(demo_data, tmp_path / "x", h2l, "--initial-weights", h2l))


# --- errors before training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["HR_train", "LR_train", "HR_test", "LR_test"])
def test_a_list_that_cannot_be_used_ends_before_training(name, demo_data, tmp_path):
    data = copy_lists(demo_data, tmp_path / "data")
    (data / f"{name}.csv").write_text("path\nnowhere.png\n")
    with pytest.raises(utils.UserError, match=f"{name}.csv, row 2: .*nowhere.png"):
        train_h2l.main(one_step(data, tmp_path))
    assert not (tmp_path / "h2l_state.pth").exists()


def test_fewer_faces_than_a_batch(demo_data, tmp_path):
    with pytest.raises(utils.UserError, match="HR_train.csv has 24 usable faces.*--batch-size 25"):
        train_h2l.main(one_step(demo_data, tmp_path, "--batch-size", 25))


def test_stage_2_without_stage_1(demo_data, tmp_path):
    with pytest.raises(utils.UserError, match="h2l.pth is missing: run train_h2l.py first"):
        train.main(one_step(demo_data, tmp_path, "--vgg-weights", "random"))


def test_weights_of_another_width_or_version(demo_data, h2l, tmp_path):
    train.main(one_sr_step(demo_data, tmp_path / "wide", h2l, "--width", 8))  # G has a width of its own
    content = torch.load(h2l, weights_only=True)
    torch.save({**content, "width": 8}, tmp_path / "wrong.pth")
    with pytest.raises(utils.UserError, match=r"head.0.weight has shape \(4, 19, 1, 1\), expected \(8, 19, 1, 1\)"):
        train.main(one_sr_step(demo_data, tmp_path, tmp_path / "wrong.pth", "--width", 8))
    torch.save({**content, "version": 99}, tmp_path / "new.pth")
    with pytest.raises(utils.UserError, match="version 99"):
        train.main(one_sr_step(demo_data, tmp_path, tmp_path / "new.pth"))


class Payload:
    def __reduce__(self):
        return print, ("this ran",)


DAMAGE = {"half": "truncated", "text": "truncated", "empty": "truncated", "code": "truncated",
          "foreign": "not a checkpoint", "sr": "holds 'sr'", "missing": "is missing", "extra": "surplus is unknown",
          "nan": "tail.bias"}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_or_hostile_weights(damage, demo_data, h2l, sr, tmp_path, capsys):
    path, content = tmp_path / "bad.pth", torch.load(h2l, weights_only=True)
    weights = content["weights"]["generator"]
    if damage == "sr":
        path = sr
    elif damage in ("half", "text", "empty"):
        path.write_bytes({"half": h2l.read_bytes()[:9999], "text": b"these are not weights", "empty": b""}[damage])
    elif damage == "code":
        path.write_bytes(pickle.dumps(Payload()))
    elif damage == "foreign":
        torch.save({"state_dict": {}}, path)
    else:
        if damage == "missing":
            del weights[next(iter(weights))]
        elif damage == "extra":
            weights["surplus"] = torch.zeros(1)
        else:
            weights["tail.bias"][1] = float("nan")
        torch.save(content, path)
    with pytest.raises(utils.UserError, match=DAMAGE[damage]):
        train.main(one_sr_step(demo_data, tmp_path, path))
    assert "this ran" not in capsys.readouterr().out


TERMS = {"h2l": ["critic_terms", "adversarial_loss", "mse_loss"],
         "sr": ["critic_terms", "adversarial_loss", "alignment_loss", "l1_loss", "perceptual"]}  # fmt: skip


@pytest.mark.parametrize("stage, term", [(stage, term) for stage, terms in TERMS.items() for term in terms])
def test_a_nan_in_any_loss_stops_the_run_in_that_iteration(stage, term, demo_data, h2l, tmp_path, monkeypatch):
    module = train_h2l if stage == "h2l" else train
    more = ["--critic-updates", 1, "--save-every", 1]
    options = one_step(demo_data, tmp_path, *more) if stage == "h2l" else one_sr_step(
        demo_data, tmp_path, h2l, *more, "--ot-start-epoch", 1)  # fmt: skip
    module.main(options)
    before = (tmp_path / f"{stage}_state.pth").read_bytes()

    def spoil(result):
        return {name: spoil(value) for name, value in result.items()} if isinstance(result, dict) else result * float("nan")

    owner, name = (PerceptualLoss, "forward") if term == "perceptual" else (
        (functional if term in ("mse_loss", "l1_loss") else module), term)  # fmt: skip
    function = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *arguments, **more: spoil(function(*arguments, **more)))
    with pytest.raises(FloatingPointError, match=r"is nan at iteration 2\.") as error:
        module.main([*options, "--max-steps", "3"])
    assert str(tmp_path / f"{stage}_state.pth") in str(error.value)
    assert (tmp_path / f"{stage}_state.pth").read_bytes() == before


@pytest.mark.parametrize("stage, name", [("h2l", "generator"), ("h2l", "critic"), ("sr", "extractor"), ("sr", "decoder"),
                                         ("sr", "critic")])  # fmt: skip
def test_a_nan_in_any_network_stops_the_run(stage, name, demo_data, h2l, tmp_path, monkeypatch):
    module, step = train_h2l if stage == "h2l" else train, Run.step
    options = h2l_options(demo_data, tmp_path) if stage == "h2l" else sr_options(demo_data, tmp_path, h2l)
    options += ["--max-steps", "3"]

    def spoiled_step(run, optimizer, loss):  # after the first iteration's last update
        step(run, optimizer, loss)
        if name in run.state.networks and run.state.iteration == 0:
            weight = next(run.state.networks[name].parameters()).data
            weight[(0,) * weight.ndim] = float("nan")

    monkeypatch.setattr(Run, "step", spoiled_step)
    with pytest.raises(FloatingPointError, match="is nan at iteration 2"):
        module.main(options)
    assert not (tmp_path / f"{stage}_state.pth").exists()


def test_saturation_has_to_last(monkeypatch, demo_data, tmp_path):
    """99 saturated updates in a row are borne, 100 are not; the count survives an interruption."""
    monkeypatch.setattr(train_h2l.utils, "saturated", lambda images: torch.tensor(0.9))
    options = one_step(demo_data, tmp_path, "--critic-updates", 1, "--epochs", 1000, "--save-every", 1000)
    train_h2l.main([*options, "--max-steps", "60"])
    train_h2l.main([*options, "--max-steps", "99"])
    with pytest.raises(FloatingPointError, match="saturated: over half .* at iteration 100"):
        train_h2l.main([*options, "--max-steps", "101"])


def test_vgg_download_failure_names_the_alternatives(tmp_path, monkeypatch):
    def fail(*arguments, **settings):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torchvision.models.VGG19_Weights, "get_state_dict", fail)
    with pytest.raises(utils.UserError, match="no network.*--vgg-weights PATH.*--vgg-weights random"):
        utils.load_perceptual_weights("imagenet")


def test_vgg_weights_from_a_path(tmp_path):
    layers = {f"{i}.{kind}": torch.rand(*shape) for n, m, i in utils.VGG_CONVOLUTIONS
              for kind, shape in (("weight", (m, n, 3, 3)), ("bias", (m,)))}  # fmt: skip
    files = {
        "features": layers,
        "whole": {f"features.{name}": tensor for name, tensor in layers.items()},
        "shape": {**layers, "7.weight": layers["5.weight"]},
        "lacking": {name: tensor for name, tensor in layers.items() if name != "5.bias"},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / f"{name}.pth")
    a, b = (utils.load_perceptual_weights(str(tmp_path / f"{name}.pth")) for name in ("features", "whole"))
    assert len(a) == 10 and utils.digest(a) == utils.digest(b)
    (tmp_path / "text.pth").write_text("no weights")
    errors = {"shape": "7.weight", "lacking": "5.bias", "nowhere": "is missing", "text": "truncated"}
    for name, error in errors.items():
        with pytest.raises(utils.UserError, match=error):
            utils.load_perceptual_weights(str(tmp_path / f"{name}.pth"))


@pytest.mark.parametrize(
    "module, options, reason",
    [
        (train_h2l, ["--width", "6"], "--width 6: must be a positive multiple of 4"),
        (train_h2l, ["--batch-size", "1"], "--batch-size 1: must be at least 2"),
        (train_h2l, ["--epochs", "0"], "--epochs 0: must be at least 1"),
        (train_h2l, ["--crop", "32"], "--crop 32: must be at least 64"),
        (train_h2l, ["--resize", "80", "--crop", "90"], "--resize 80: must be at least --crop"),
        (train_h2l, ["--generator-lr", "nan"], "--generator-lr nan: must be a number"),
        (train_h2l, ["--betas", "0.5", "1"], "must be less than 1"),
        (train_h2l, ["--save-every", "0"], "--save-every 0: must be at least 1"),
        (train, ["--alpha", "1.5"], "1.5: must be random, or a number in [0, 1]"),
        (train, ["--synthetic-share", "2"], "--synthetic-share 2.0: must be in [0, 1]"),
        (train, ["--l1-weight", "3", "0"], "give one number, or two above 0"),
        (train, ["--generator-lr", "0"], "--initial-weights"),
        (train, ["--generator-lr", "0", "--initial-weights", "sr.pth", "--alignment-lr", "0"], "aligns a trained network"),
    ],
)
def test_bad_options(module, options, reason, capsys):
    with pytest.raises(SystemExit) as error:
        module.main(options)
    assert error.value.code == 2
    assert reason in capsys.readouterr().err


def test_the_options_are_few():
    assert len(train.build_parser().defaults) <= 32


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu(demo_data, tmp_path):
    with pytest.raises(utils.UserError, match="no CUDA GPU"):
        train_h2l.main(one_step(demo_data, tmp_path, "--device", "cuda"))


def test_an_output_folder_that_cannot_be_made(demo_data, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(utils.UserError, match="name another with --out"):
        train_h2l.main(one_step(demo_data, tmp_path / "file" / "out"))


# --- what only shows the run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["the sample sheet", "drawing", "showing the row", "TensorBoard"])
def test_what_a_run_can_do_without(part, demo_data, tmp_path, monkeypatch, capsys):
    """A failure of what only shows the run is said once, and ends nothing."""

    def fail(*arguments, **settings):
        raise ValueError("whatever it may be")

    from torch.utils.tensorboard import SummaryWriter

    owner, name = {
        "the sample sheet": (utils, "save_sheet"),
        "drawing": (Log, "plot"),
        "showing the row": (Log, "_show_progress"),
        "TensorBoard": (SummaryWriter, "add_scalar"),
    }[part]
    monkeypatch.setattr(owner, name, fail)
    main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 3, "--save-every", 1, "--tensorboard"))
    said = capsys.readouterr().out
    assert said.count("whatever it may be") == 1 and f"warning: {part}" in said
    assert "done: 3 iterations of 24 (--max-steps)" in said
    assert len(pd.read_csv(tmp_path / "train_h2l.csv")) == 3


@pytest.mark.parametrize("trouble", ["broken", "folder"])
def test_tensorboard_that_does_not_work_is_said(trouble, demo_data, tmp_path, monkeypatch, capsys):
    if trouble == "broken":
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # its import raises
    else:
        (tmp_path / "h2l_tensorboard").write_text("in the way")
    main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 1, "--tensorboard"))
    said = capsys.readouterr().out
    assert "warning: TensorBoard failed" in said and "done: 1 iteration" in said


def test_tensorboard_missing_or_resumed(demo_data, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = h2l_options(demo_data, tmp_path, "--tensorboard", "--save-every", 3)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):  # killed after iteration 5, saved at 3
        finish = Run.finish
        patch.setattr(Run, "finish", lambda run, *a: sys.exit(9) if run.state.iteration == 5 else finish(run, *a))
        main(train_h2l, *options, "--max-steps", 6)
    main(train_h2l, *options, "--max-steps", 6)
    events = EventAccumulator(str(tmp_path / "h2l_tensorboard")).Reload()
    assert [scalar.step for scalar in events.Scalars("critic_loss")] == [1, 2, 3, 4, 5, 6]
    monkeypatch.setattr(training.log.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(utils.UserError, match="pip install tensorboard"):
        main(train_h2l, *h2l_options(demo_data, tmp_path / "b", "--max-steps", 1, "--tensorboard"))


def test_without_matplotlib_there_are_no_curves(demo_data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 1))
    assert not (tmp_path / "h2l_curves.png").exists() and (tmp_path / "h2l.pth").exists()


def test_curves_are_drawn_when_started_from_a_notebook(demo_data, tmp_path, monkeypatch):
    """Its MPLBACKEND may name a package that only the notebook has."""
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 1))
    assert (tmp_path / "h2l_curves.png").exists()


def test_where_there_is_no_terminal_there_are_plain_lines(demo_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training.log, "LINE_EVERY", 0)
    main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 4, "--save-every", 40))
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if line.startswith("iteration")]
    assert [line.split(",")[0] for line in lines] == ["iteration 2 of 4", "iteration 4 of 4"]
    assert "critic_loss" in lines[0] and "images/s" in lines[0] and "left" in lines[0]
    assert not said.err and "\r" not in said.out


@pytest.mark.parametrize("module", [train, train_h2l])
def test_the_home_folder_in_every_path(module, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    names = ["data", "cache", "out", "initial-weights", *(["h2l", "vgg-weights"] if module is train else [])]
    options, _ = parse_options(module.build_parser(), [f"--{name}=~/{name}" for name in names])
    for name in names:
        assert getattr(options, name.replace("-", "_")) == os.path.join(str(tmp_path), name)

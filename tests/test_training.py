"""Both trainers: that they do what the method says, what they write, and that bad input ends in an
error before training.

The fast iterations are compared with plain ones, written out here: unmerged, unfused, fp32 or
float64, NCHW, graphs always. Adam with beta1 = 0 acts like a sign, so that parameters after
several fp32 steps cannot agree closely: float64 shows that the updates are the same, fp32 that the
gradients are, bf16 that its terms stay near.
"""

import copy
import json
import os
import pickle
import re
import subprocess
import sys

import pandas as pd
import pytest
import torch
import torchvision
from helpers import (
    ROOT,
    Recorder,
    assert_equal_states,
    copy_lists,
    h2l_options,
    main,
    one_sr_step,
    one_step,
    run_script,
    sr_options,
)
from PIL import Image
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

import train
import train_h2l
import training.log
import utils
from losses import PerceptualLoss, sinkhorn_distance
from models import DegradationGenerator, FeatureExtractor
from training.log import Log
from training.options import parse_options
from training.run import Run

WIDTH, BATCH = 8, 4  # of the comparison


def make_run(name, module, tmp_path, dtype, *options):
    """A run of the script, outside any data, whose random draws come in the dtype."""
    arguments = ["--out", str(tmp_path), "--device", "cpu", "--width", str(WIDTH), "--batch-size", str(BATCH), *options]
    run = Run(name, *parse_options(module.build_parser(), arguments), module.COLUMNS)
    run.steps_per_epoch = 5  # the alignment begins at iteration 6
    run.dtype = torch.bfloat16 if dtype == "bf16" else torch.float32
    torch.manual_seed(0)
    return run


def faces(iteration, size, dtype):
    """Smooth patches of differing brightness: BatchNorm would amplify the rounding errors of faces
    that are all alike.
    """
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
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), options.critic_lr, (0.5, 0.9), **plain)

    def iterate(self, iteration, x_c, x_r, z, mix):
        options = self.options
        x_d = self.generator(x_c, z)
        gp = penalty(self.critic, x_r, x_d, mix)
        wasserstein = self.critic(x_r).mean() - self.critic(x_d.detach()).mean()
        update(self.critic_optimizer, -wasserstein + options.gradient_penalty_weight * gp)
        terms = {"wasserstein": wasserstein, "gradient_penalty": gp}
        if iteration % options.critic_updates == 0:
            adversarial = -self.critic(x_d).mean()
            colour = ((x_d.mean(dim=(2, 3)) - x_c.mean(dim=(2, 3))) ** 2).mean()
            pixel = ((x_d - x_c) ** 2).mean() - colour  # the mean square is variance and squared mean
            total = options.pixel_weight * pixel + options.colour_weight * colour + options.adversarial_weight * adversarial
            update(self.generator_optimizer, total)
            terms |= {"pixel_loss": pixel, "colour_loss": colour, "adversarial_loss": adversarial}
        return terms


def make_stages(number, tmp_path, dtype, *options):
    """The fast stage and the plain one, with the same weights; everything in float64 if the dtype
    is that.
    """
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
    """Each optimizer's gradients in a full iteration from the first weights, of the fast stage and
    of the plain one.
    """
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
    """The largest relative error of a tensor, in its norm, and the error of all tensors together,
    relative to theirs.

    A bias before BatchNorm has no gradient but rounding errors: tensors of next to no gradient
    count as one.
    """
    errors = torch.stack([(a - b).norm() for a, b in zip(gradients, truth)])
    norms = torch.stack([tensor.norm() for tensor in truth])
    return (errors / norms.clamp(min=1e-3 * norms.max())).max().item(), (errors.norm() / norms.norm()).item()


@pytest.mark.parametrize("number", [1, 2])
def test_one_fp32_iteration_has_the_same_gradients(number, tmp_path):
    """Within 1e-4: G and the critics tensor by tensor, E under the alignment as a whole. Through E
    and S' BatchNorms, on maps down to 1x1, and the kinks of PReLU and L1, rounding errors grow:
    plain fp32 itself is 1e-3 from float64 as a whole and 1e-2 in single tensors. There the fast
    iteration must not be much further from float64 than the plain one.
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


def test_seeds_make_runs_the_same_or_different(demo_data, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        main(train_h2l, *h2l_options(demo_data, tmp_path / name, "--max-steps", 2, "--seed", seed))
    weights = [torch.load(tmp_path / n / "h2l_state.pth", weights_only=True)["networks"]["critic"] for n in "abc"]
    assert utils.digest(weights[0]) == utils.digest(weights[1]) != utils.digest(weights[2])


def test_stage_1_updates(demo_data, tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 11))
    assert recorder.of("critic") == [(i, {"critic"}) for i in range(1, 12)]
    assert recorder.of("generator") == [(i, {"generator"}) for i in (5, 10)]


def test_stage_2_updates(demo_data, h2l, tmp_path, monkeypatch):
    """Five critic updates a generator update; the alignment from epoch 2 on, moving E and never S;
    G frozen.
    """
    recorder = Recorder(monkeypatch)
    frozen = []
    load_networks = utils.load_networks
    monkeypatch.setattr(utils, "load_networks", lambda *a: frozen.append(load_networks(*a)) or frozen[0])
    main(train, *sr_options(demo_data, tmp_path, h2l, "--steps-per-epoch", 10, "--epochs", 2))
    assert recorder.of("critic") == [(i, {"critic"}) for i in range(1, 21)]
    assert recorder.of("generator") == [(i, {"extractor", "decoder"}) for i in (5, 10, 15, 20)]
    assert recorder.of("alignment") == [(15, {"extractor"}), (20, {"extractor"})]
    weights = torch.load(h2l, weights_only=True)["weights"]["generator"]
    after = frozen[0]["generator"].state_dict()
    assert all(torch.equal(weights[name], after[name]) for name in weights)
    assert not frozen[0]["generator"].training


def test_no_alignment_leaves_it_out(demo_data, h2l, tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    main(train, *sr_options(demo_data, tmp_path, h2l, "--steps-per-epoch", 5, "--epochs", 2, "--no-alignment"))
    assert [i for i, _ in recorder.of("generator")] == [5, 10]
    assert recorder.of("alignment") == []


def test_adversarial_weight_0_leaves_the_critic_out(demo_data, h2l, tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    main(train, *sr_options(demo_data, tmp_path, h2l, "--steps-per-epoch", 2, "--epochs", 2, "--adversarial-weight", 0))
    assert [i for i, _ in recorder.of("generator")] == [1, 2, 3, 4]
    assert [i for i, _ in recorder.of("critic")] == []
    assert [i for i, _ in recorder.of("alignment")] == [3, 4]


def test_frozen_batchnorm_is_measured_once_and_never_moves(demo_data, h2l, tmp_path, monkeypatch):
    """Measured before the first iteration; then E and S train in the mode and with the statistics
    they are tested in.
    """
    modes = []
    iterate = train.SuperResolution.iterate

    def recorded(stage, iteration, *faces):
        modes.append((iteration, stage.extractor.training, stage.decoder.training))
        return iterate(stage, iteration, *faces)

    def statistics(file):
        content = torch.load(file, weights_only=True)
        networks = content.get("weights") or content["networks"]
        names = ("extractor", "decoder")
        return {f"{n}.{key}": t for n in names for key, t in networks[n].items() if "running" in key or "batches" in key}

    monkeypatch.setattr(train.SuperResolution, "iterate", recorded)
    freeze = ["--steps-per-epoch", 2, "--freeze-batchnorm", "--batchnorm-batches", 2, "--critic-updates", 2, "--epochs", 2]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    main(train, *sr_options(demo_data, whole, h2l, *freeze))
    assert modes == [(i, False, False) for i in range(1, 5)]
    main(train, *sr_options(demo_data, parts, h2l, *freeze, "--max-steps", 2))
    before = statistics(parts / "sr_state.pth")
    main(train, *sr_options(demo_data, parts, h2l, *freeze))
    assert_equal_states(whole / "sr_state.pth", parts / "sr_state.pth")
    after, written = statistics(parts / "sr_state.pth"), statistics(parts / "sr.pth")
    assert any(tensor.abs().max() > 0 for name, tensor in before.items() if "mean" in name)
    assert all(torch.equal(before[name], after[name]) and torch.equal(after[name], written[name]) for name in after)


def test_learning_rates_fall_by_epochs(demo_data, tmp_path):
    main(train_h2l, *h2l_options(demo_data, tmp_path, "--steps-per-epoch", 2, "--epochs", 3, "--generator-lr", 1e-4))
    table = pd.read_csv(tmp_path / "train_h2l.csv")
    assert table["learning_rate"].tolist() == pytest.approx([1e-4, 1e-4, 5e-5, 5e-5, 2.5e-5, 2.5e-5])
    assert table["epoch"].tolist() == [1, 1, 2, 2, 3, 3]


def test_a_short_epoch_is_warned_of(demo_data, tmp_path, capsys):
    """A few faces make a run of a few iterations: said, unless the user has chosen the epoch's
    length.
    """
    main(train_h2l, *h2l_options(demo_data, tmp_path / "a", "--max-steps", 1))
    assert "one pass over 24 faces is short" in (said := capsys.readouterr().out) and "--steps-per-epoch 9143" in said
    main(train_h2l, *h2l_options(demo_data, tmp_path / "b", "--max-steps", 1, "--steps-per-epoch", 6))
    assert "is short" not in capsys.readouterr().out


def test_sampling_leaves_no_trace(demo_data, h2l, tmp_path):
    """Sample sheets are made in eval mode: neither BatchNorm's statistics nor any random state
    notice them.
    """
    main(train, *sr_options(demo_data, tmp_path / "seldom", h2l, "--max-steps", 4, "--sample-every", 100))
    main(train, *sr_options(demo_data, tmp_path / "often", h2l, "--max-steps", 4, "--sample-every", 1))
    assert len(list((tmp_path / "often" / "samples_sr").iterdir())) == 4
    a, b = (torch.load(tmp_path / n / "sr_state.pth", weights_only=True)["networks"] for n in ("seldom", "often"))
    assert all(utils.digest(a[name]) == utils.digest(b[name]) for name in a)


def test_bf16_trains_both_stages(demo_data, h2l, tmp_path):
    options = ["--precision", "bf16", "--max-steps", 5]
    main(train_h2l, *h2l_options(demo_data, tmp_path, *options))
    main(train, *sr_options(demo_data, tmp_path, h2l, *options, "--ot-start-epoch", 1))
    table = pd.read_csv(tmp_path / "train.csv")
    assert table["alignment_loss"].notna().sum() == 1
    state = torch.load(tmp_path / "sr_state.pth", weights_only=True)
    assert all(tensor.dtype != torch.bfloat16 for network in state["networks"].values() for tensor in network.values())


def test_a_term_without_a_column_is_an_error(demo_data, tmp_path, monkeypatch):
    monkeypatch.setattr(train_h2l, "COLUMNS", [name for name in train_h2l.COLUMNS if name != "wasserstein"])
    with pytest.raises(ValueError, match="wasserstein has no column in the log"):
        main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 1))


def test_tensorboard_logs_or_names_the_package(demo_data, tmp_path, monkeypatch):
    main(train_h2l, *h2l_options(demo_data, tmp_path / "a", "--max-steps", 1, "--tensorboard"))
    assert list((tmp_path / "a" / "h2l_tensorboard").iterdir())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(utils.UserError, match="pip install tensorboard"):
        main(train_h2l, *h2l_options(demo_data, tmp_path / "b", "--max-steps", 1, "--tensorboard"))


def test_without_matplotlib_there_are_no_curves(demo_data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 1))
    assert not (tmp_path / "h2l_curves.png").exists()


@pytest.mark.parametrize("script", ["train_h2l.py", "train.py", "test.py", "Datasets/make_csv.py", "Datasets/make_demo.py"])
def test_help_shows_every_default(script):
    result = run_script(script, "--help")
    assert result.returncode == 0
    assert "default" in result.stdout
    if script.startswith("train"):
        assert "reference" in result.stdout and "paper" in result.stdout
        groups = re.findall(r"^(\w+):$", result.stdout, re.MULTILINE)
        assert groups[-5:] == ["data", "length", "method", "machine", "files"]


def test_importing_a_script_does_nothing():
    code = "import train, train_h2l, test, utils; print(open)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stdout.startswith("<built-in")


def test_a_run_can_begin_with_the_weights_of_another(demo_data, h2l, sr, tmp_path, capsys):
    """E and S are the file's, the critic is new; what it continues from later is its own state."""
    options = sr_options(demo_data, tmp_path, h2l, "--initial-weights", sr, "--generator-lr", 0, "--batchnorm-batches", 0)
    main(train, *options, "--max-steps", 1)
    assert f"starting with the weights of {sr}" in capsys.readouterr().out
    given, state = torch.load(sr, weights_only=True), torch.load(tmp_path / "sr_state.pth", weights_only=True)
    for name, weights in given["weights"].items():
        for key, tensor in weights.items():
            if "running" not in key and "num_batches" not in key:
                assert torch.equal(tensor, state["networks"][name][key]), (name, key)
    main(train, *options, "--max-steps", 2)
    printed = capsys.readouterr().out
    assert "resuming from" in printed and "starting with" not in printed
    with pytest.raises(utils.UserError, match="holds 'h2l', not 'sr': --initial-weights takes a sr.pth"):
        main(train, *sr_options(demo_data, tmp_path / "b", h2l, "--initial-weights", h2l))


def test_moving_averages_are_what_is_written(demo_data, h2l, tmp_path, monkeypatch):
    """The average over the generator's updates in closed form, also over a stop; the trained
    networks go their own way.
    """
    seen = []
    update = AveragedModel.update_parameters

    def recorded(average, network):
        if isinstance(network, FeatureExtractor):
            seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        update(average, network)

    monkeypatch.setattr(AveragedModel, "update_parameters", recorded)
    options = sr_options(demo_data, tmp_path, h2l, "--ema-decay", 0.75, "--critic-updates", 2, "--batchnorm-batches", 0)
    main(train, *options, "--max-steps", 5)
    main(train, *options, "--max-steps", 8)
    assert len(seen) == 4  # 2 before the stop, at iterations 2 and 4, and 2 after it
    written = torch.load(tmp_path / "sr.pth", weights_only=True)["weights"]["extractor"]
    state = torch.load(tmp_path / "sr_state.pth", weights_only=True)["networks"]["extractor"]
    for name, tensor in written.items():
        if tensor.is_floating_point():
            expected = seen[0][name]
            for later in seen[1:]:
                expected = 0.75 * expected + 0.25 * later[name]
            assert torch.allclose(tensor, expected, atol=1e-6), name
        assert torch.equal(state[name], seen[-1][name]), name
    assert any(not torch.equal(tensor, state[name]) for name, tensor in written.items())
    with pytest.raises(SystemExit):
        main(train, *sr_options(demo_data, tmp_path / "b", h2l, "--ema-decay", 1))


@pytest.mark.parametrize("name", ["HR_train", "LR_train", "HR_test", "LR_test"])
def test_a_missing_list(name, demo_data, tmp_path):
    data = copy_lists(demo_data, tmp_path / "data")
    (data / f"{name}.csv").unlink()
    result = run_script("train_h2l.py", *one_step(data, tmp_path / "out"))
    assert result.returncode == 1
    assert f"{name}.csv is missing" in result.stderr and "make_csv.py" in result.stderr
    assert "Traceback" not in result.stderr and "it/s" not in result.stderr


def test_a_missing_file_in_a_list(demo_data, tmp_path):
    data = copy_lists(demo_data, tmp_path / "data")
    with open(data / "LR_train.csv", "a") as stream:
        stream.write("\nnowhere/face.png\n")
    result = run_script("train_h2l.py", *one_step(data, tmp_path / "out"))
    assert result.returncode == 1
    assert f"LR_train.csv, row 26: {data}/nowhere/face.png cannot be read (no such file)" in result.stderr
    assert "remove their rows" in result.stderr
    assert not (tmp_path / "out" / "h2l.pth").exists()


def test_fewer_faces_than_a_batch(demo_data, tmp_path):
    with pytest.raises(utils.UserError, match="24 usable faces, fewer than --batch-size 25"):
        train_h2l.main(one_step(demo_data, tmp_path, "--batch-size", 25))


def test_stage_2_without_stage_1(demo_data, tmp_path):
    result = run_script("train.py", *one_step(demo_data, tmp_path, "--vgg-weights", "random"))
    assert result.returncode == 1
    assert "h2l.pth is missing: run train_h2l.py first" in result.stderr


def test_weights_of_another_network(demo_data, sr, tmp_path):
    with pytest.raises(utils.UserError, match="holds 'sr', not 'h2l': run train_h2l.py first"):
        train.main(one_sr_step(demo_data, tmp_path, sr))
    result = run_script("test.py", "--weights", sr.parent / "h2l.pth", "--output", tmp_path)
    assert result.returncode == 1 and "holds 'h2l', not 'sr'" in result.stderr


def test_weights_of_another_width(demo_data, h2l, tmp_path):
    with pytest.raises(utils.UserError, match="has width 4, this run 8: give the same --width to both stages"):
        train.main(one_sr_step(demo_data, tmp_path, h2l, "--width", 8))
    content = torch.load(h2l, weights_only=True)
    torch.save({**content, "width": 8}, tmp_path / "wrong.pth")
    with pytest.raises(utils.UserError, match=r"tensor head.0.weight has shape \(4, 19, 1, 1\), expected \(8, 19, 1, 1\)"):
        train.main(one_sr_step(demo_data, tmp_path, tmp_path / "wrong.pth", "--width", 8))


def test_weights_of_another_version(demo_data, h2l, tmp_path):
    torch.save({**torch.load(h2l, weights_only=True), "version": 99}, tmp_path / "new.pth")
    with pytest.raises(utils.UserError, match="format version 99, this program reads 1"):
        train.main(one_sr_step(demo_data, tmp_path, tmp_path / "new.pth"))


class Payload:
    def __reduce__(self):
        return print, ("this ran",)


@pytest.mark.parametrize("damage", ["half", "text", "empty", "foreign", "code", "tensor missing", "tensor extra", "nan"])
def test_damaged_or_hostile_weights(damage, demo_data, h2l, tmp_path, capsys):
    path = tmp_path / "bad.pth"
    content = torch.load(h2l, weights_only=True)
    weights = content["weights"]["generator"]
    reason = "is truncated, or not a safe file"
    if damage == "half":
        path.write_bytes(h2l.read_bytes()[: h2l.stat().st_size // 2])
    elif damage == "text":
        path.write_text("these are not weights")
    elif damage == "empty":
        path.touch()
    elif damage == "code":
        path.write_bytes(pickle.dumps(Payload()))
    elif damage == "foreign":
        torch.save({"state_dict": {}}, path)
        reason = "not a checkpoint of this project"
    else:
        if damage == "tensor missing":
            reason = f"tensor {(name := next(iter(weights)))} is missing"
            del weights[name]
        elif damage == "tensor extra":
            weights["surplus"] = torch.zeros(1)
            reason = "tensor surplus is unknown"
        else:
            weights["tail.bias"][1] = float("nan")
            reason = "tensor tail.bias of DegradationGenerator has values that are not finite"
        torch.save(content, path)
    with pytest.raises(utils.UserError, match=reason):
        train.main(one_sr_step(demo_data, tmp_path, path))
    assert "this ran" not in capsys.readouterr().out


STAGE_1_TERMS = ["critic_loss", "gradient_penalty", "adversarial_loss", "mse_loss"]


STAGE_2_TERMS = ["critic_loss", "gradient_penalty", "adversarial_loss", "alignment_loss", "l1_loss", "perceptual"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage, term", [*(("h2l", t) for t in STAGE_1_TERMS), *(("sr", t) for t in STAGE_2_TERMS)])
def test_a_nan_in_any_loss_stops_the_run_in_that_iteration(stage, term, precision, demo_data, h2l, tmp_path, monkeypatch):
    module = train_h2l if stage == "h2l" else train
    more = ["--precision", precision, "--critic-updates", 1, "--save-every", 1]
    options = (one_step if stage == "h2l" else one_sr_step)(
        demo_data, tmp_path, *([h2l] if stage == "sr" else []), *more, *(["--ot-start-epoch", 1] if stage == "sr" else [])
    )
    module.main(options)
    before = (tmp_path / f"{stage}_state.pth").read_bytes()
    if term == "perceptual":
        monkeypatch.setattr(train.PerceptualLoss, "forward", lambda self, x, target: x.mean() * float("nan"))
    else:
        owner = torch.nn.functional if term in ("mse_loss", "l1_loss") else module
        function = getattr(owner, term)
        monkeypatch.setattr(owner, term, lambda *arguments, **more: function(*arguments, **more) * float("nan"))
    with pytest.raises(FloatingPointError, match=r"(loss|penalty|wasserstein) is nan at iteration 2\.") as error:
        module.main([*options, "--max-steps", "3"])
    assert str(tmp_path / f"{stage}_state.pth") in str(error.value)
    assert (tmp_path / f"{stage}_state.pth").read_bytes() == before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage, name", [("h2l", "generator"), ("h2l", "critic"), ("sr", "extractor"), ("sr", "decoder"),
                                         ("sr", "critic"), ("sr", "h2l"), ("h2l", "noise")])  # fmt: skip
def test_a_nan_in_any_network_or_input_stops_the_run(stage, name, precision, demo_data, h2l, tmp_path, monkeypatch):
    module = train_h2l if stage == "h2l" else train
    more = ["--precision", precision, "--max-steps", 3]
    options = (one_step if stage == "h2l" else one_sr_step)(demo_data, tmp_path, *([h2l] if stage == "sr" else []), *more)
    step, normal, load_networks = Run.step, Run.normal, utils.load_networks

    def spoiled_step(run, optimizer, loss):  # after the first iteration's last update
        step(run, optimizer, loss)
        if name in run.networks and run.iteration == 0:
            weight = next(run.networks[name].parameters()).data
            weight[(0,) * weight.ndim] = float("nan")

    def spoiled_networks(*arguments):
        loaded = load_networks(*arguments)
        loaded["generator"].tail.bias.data[0] = float("nan")
        return loaded

    monkeypatch.setattr(Run, "step", spoiled_step)
    if name == "noise":
        monkeypatch.setattr(Run, "normal", lambda run, n: normal(run, n) * (float("nan") if run.iteration else 1))
    if name == "h2l":
        monkeypatch.setattr(utils, "load_networks", spoiled_networks)
    with pytest.raises(FloatingPointError, match=f"is nan at iteration {1 if name == 'h2l' else 2}"):
        module.main(options)
    assert not (tmp_path / f"{stage}_state.pth").exists()


@pytest.mark.parametrize("stage", ["h2l", "sr"])
def test_an_absurd_learning_rate_ends_in_an_error(stage, demo_data, h2l, tmp_path):
    more = ["--generator-lr", "1e3", "--epochs", 1000, "--max-steps", 150, "--critic-updates", 1, "--log-every", 50]
    if stage == "h2l":
        options = one_step(demo_data, tmp_path, *more)
    else:
        options = one_sr_step(demo_data, tmp_path, h2l, *more, "--adversarial-weight", 0, "--no-alignment")
    with pytest.raises(FloatingPointError, match="is nan|is inf|is -inf|saturated: over half"):
        (train_h2l if stage == "h2l" else train).main(options)


def test_saturation_has_to_last(monkeypatch, demo_data, tmp_path):
    """99 saturated updates in a row are borne, 100 are not; the count survives an interruption."""
    monkeypatch.setattr(train_h2l.utils, "saturated", lambda images: torch.tensor(0.9))
    intervals = ["--save-every", 1000, "--log-every", 1000, "--sample-every", 1000]
    options = one_step(demo_data, tmp_path, "--critic-updates", 1, "--epochs", 1000, *intervals)
    train_h2l.main([*options, "--max-steps", "60"])
    train_h2l.main([*options, "--max-steps", "99"])
    with pytest.raises(FloatingPointError, match="saturated: over half .* at iteration 100"):
        train_h2l.main([*options, "--max-steps", "101"])


def test_vgg_download_failure_names_the_alternatives(demo_data, h2l, tmp_path):
    proxy = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    options = one_step(demo_data, tmp_path, "--h2l", h2l)
    result = run_script("train.py", *options, environment={**proxy, "no_proxy": "", "TORCH_HOME": str(tmp_path / "hub")})
    assert result.returncode == 1
    assert "--vgg-weights PATH" in result.stderr and "--vgg-weights random" in result.stderr
    assert "Traceback" not in result.stderr


def test_vgg_weights_from_a_path(demo_data, h2l, tmp_path):
    layers = {f"{i}.{kind}": t for i, c in torchvision.models.vgg19().features.named_children()
              for kind, t in c.state_dict().items()}  # fmt: skip
    torch.save(layers, tmp_path / "features.pth")
    torch.save({f"features.{name}": tensor for name, tensor in layers.items()}, tmp_path / "whole.pth")
    a, b = (utils.load_perceptual_weights(str(tmp_path / f"{name}.pth")) for name in ("features", "whole"))
    assert len(a) == 10 and utils.digest(a) == utils.digest(b)
    train.main(one_step(demo_data, tmp_path, "--h2l", h2l, "--vgg-weights", tmp_path / "features.pth"))
    torch.save({**layers, "7.weight": layers["5.weight"]}, tmp_path / "shape.pth")
    with pytest.raises(utils.UserError, match="7.weight .* is not of VGG19's shape"):
        utils.load_perceptual_weights(str(tmp_path / "shape.pth"))
    del layers["5.bias"]
    torch.save(layers, tmp_path / "lacking.pth")
    with pytest.raises(utils.UserError, match="no tensor 5.bias"):
        utils.load_perceptual_weights(str(tmp_path / "lacking.pth"))
    with pytest.raises(utils.UserError, match="nowhere.pth is missing"):
        utils.load_perceptual_weights(str(tmp_path / "nowhere.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(utils.UserError, match="truncated, or not a safe file"):
        utils.load_perceptual_weights(str(tmp_path / "text.pth"))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), None])
def test_out_of_memory_names_the_batch_size(error):
    with pytest.raises(utils.UserError, match="out of memory with --batch-size 13 .*lower --batch-size"):
        with utils.explain_out_of_memory(13, "lower --batch-size"):
            if error:
                raise error
            torch.empty(1 << 58, dtype=torch.uint8)  # the CPU allocator's own error
    with pytest.raises(RuntimeError, match="something else"):
        with utils.explain_out_of_memory(13, ""):
            raise RuntimeError("something else")


def test_out_of_memory_while_training(demo_data, tmp_path, monkeypatch):
    def fail(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(train_h2l, "critic_loss", fail)
    with pytest.raises(utils.UserError, match="--batch-size 4 .*Tried to allocate 2 GiB.*lower --batch-size.*--width"):
        train_h2l.main(one_step(demo_data, tmp_path))


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--width", "6"], "--width 6: must be a positive multiple of 4"),
        (["--batch-size", "1"], "--batch-size 1: must be at least 2"),
        (["--epochs", "0"], "--epochs 0: must be at least 1"),
        (["--crop", "32"], "--crop 32: must be at least 64"),
        (["--resize", "80", "--crop", "90"], "--resize 80: must be at least --crop"),
        (["--generator-lr", "nan"], "--generator-lr nan: must be a number"),
        (["--gradient-penalty-weight", "-1"], "must be a number of at least 0"),
        (["--save-every", "0"], "--save-every 0: must be at least 1"),
    ],
)
def test_bad_options(options, reason, capsys):
    with pytest.raises(SystemExit) as error:
        train_h2l.main(options)
    assert error.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu(demo_data, tmp_path):
    with pytest.raises(utils.UserError, match="finds no CUDA GPU"):
        train_h2l.main(one_step(demo_data, tmp_path, "--device", "cuda"))


def test_an_output_folder_that_cannot_be_made(demo_data, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(utils.UserError, match="name another with --out"):
        train_h2l.main(one_step(demo_data, tmp_path / "file" / "out"))


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
    main(train_h2l, *h2l_options(demo_data, tmp_path, "--max-steps", 3, "--sample-every", 1, "--tensorboard"))
    said = capsys.readouterr().out
    assert said.count("whatever it may be") == 1 and f"warning: {part}" in said
    assert "done: 3 iterations" in said
    assert len(pd.read_csv(tmp_path / "train_h2l.csv")) == 3


def test_curves_are_drawn_when_started_from_a_notebook(demo_data, tmp_path):
    """Its MPLBACKEND may name a package that only the notebook has."""
    backend = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    result = run_script("train_h2l.py", *h2l_options(demo_data, tmp_path, "--max-steps", 1), environment=backend)
    assert result.returncode == 0 and "failed" not in result.stdout, result.stderr
    assert (tmp_path / "h2l_curves.png").exists()


def test_where_there_is_no_terminal_there_are_plain_lines(demo_data, tmp_path, monkeypatch, capsys):
    main(train_h2l, *h2l_options(demo_data, tmp_path / "a", "--max-steps", 4))  # in less than half a minute
    seldom = capsys.readouterr()
    monkeypatch.setattr(training.log, "LINE_EVERY", 0)
    main(train_h2l, *h2l_options(demo_data, tmp_path / "b", "--max-steps", 4, "--log-every", 2))
    often = capsys.readouterr()
    lines = [line for line in often.out.splitlines() if line.startswith("iteration")]
    assert [line.split(",")[0] for line in lines] == ["iteration 2 of 4", "iteration 4 of 4"]
    assert "critic_loss" in lines[0] and "images/s" in lines[0] and "left" in lines[0]
    assert "\niteration" not in seldom.out
    assert not seldom.err and not often.err and "\r" not in seldom.out + often.out


@pytest.mark.parametrize("module", [train, train_h2l])
def test_the_home_folder_in_every_path(module, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    names = ["data", "cache", "out", "initial-weights", *(["h2l", "vgg-weights"] if module is train else [])]
    options, _ = parse_options(module.build_parser(), [f"--{name}=~/{name}" for name in names])
    for name in names:
        assert getattr(options, name.replace("-", "_")) == os.path.join(str(tmp_path), name)

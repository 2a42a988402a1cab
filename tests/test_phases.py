"""The phases of train.py: what each of them updates and freezes, and that a run through them can stop anywhere."""

import pandas as pd
import pytest
import torch
from helpers import Recorder, assert_equal_states, main, sr_options
from PIL import Image

import train
import utils
from losses import paired_distance, scaled_alignment_loss
from training import augment
from training.phases import Phase, check_lengths, lay_out, remaining, warm_up_and_cosine
from training.run import Run

ALL = ["--phases", "interleaved,align,joint,decoder", "--steps-per-epoch", 2, "--epochs", 1, "--critic-updates", 2,
       "--align-steps", 3, "--joint-steps", 3, "--decoder-steps", 2, "--batchnorm-batches", 1,
       "--sample-every", 100]  # fmt: skip
LATER = ["--phases", "align,joint,decoder", "--align-steps", 2, "--joint-steps", 2, "--decoder-steps", 2]


def statistics(weights):
    return {f"{n}.{k}": t for n in ("extractor", "decoder") for k, t in weights[n].items() if "running" in k}


def test_what_each_phase_updates(demo_data, h2l, tmp_path, monkeypatch):
    """align: E; joint: E and S, then E; decoder: S. the target in align stays."""
    recorder = Recorder(monkeypatch)
    batches, targets = [], []
    iterate = train.SuperResolution.iterate

    def recorded(stage, iteration, y, x_c):
        batches.append(len(y))
        if stage.phase == "align":
            targets.append(utils.digest(stage.target.state_dict()))
        return iterate(stage, iteration, y, x_c)

    monkeypatch.setattr(train.SuperResolution, "iterate", recorded)
    main(train, *sr_options(demo_data, tmp_path, h2l, *ALL))
    assert recorder.of("critic") == [(1, {"critic"}), (2, {"critic"})]
    both = {"extractor", "decoder"}
    expected = [(2, both), *((i, both) for i in (6, 7, 8)), (9, {"decoder"}), (10, {"decoder"})]
    assert recorder.of("generator") == expected
    assert recorder.of("alignment") == [(i, {"extractor"}) for i in range(3, 9)]
    assert batches == [4, 4, 8, 8, 8, 4, 4, 4, 4, 4]
    assert len(set(targets)) == 1
    state = torch.load(tmp_path / "sr_state.pth", weights_only=True)
    assert set(state["networks"]) == both and set(state["optimizers"]) == {"generator"}
    table = pd.read_csv(tmp_path / "train.csv")
    assert table["alignment_loss"].notna().tolist() == [False] * 2 + [True] * 6 + [False] * 2
    assert table["psnr_synthetic"].notna().tolist() == [i in (2, 5, 8, 10) for i in range(1, 11)]


def test_stops_within_and_between_phases_leave_no_trace(demo_data, h2l, tmp_path):
    """A run that stopped within phases, and at their ends, ends in the same state, bit for bit."""
    more = ["--ema-decay", 0.5, "--augment", "framing"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    main(train, *sr_options(demo_data, whole, h2l, *ALL, *more))
    for stop in (2, 4, 5, 7, 0):
        main(train, *sr_options(demo_data, parts, h2l, *ALL, *more, "--max-steps", stop))
    assert_equal_states(whole / "sr_state.pth", parts / "sr_state.pth")
    a, b = (torch.load(folder / "sr.pth", weights_only=True)["weights"] for folder in (whole, parts))
    assert all(torch.equal(a[name][key], b[name][key]) for name in a for key in a[name])


def test_each_phase_goes_on_from_what_the_last_one_wrote(demo_data, h2l, tmp_path, monkeypatch):
    """The EMA, with the statistics that were measured, not the last weights."""
    entered, written = {}, {}
    enter, leave = train.SuperResolution.enter, train.SuperResolution.leave

    def remember(weights):
        return {name: {key: tensor.clone() for key, tensor in weights[name].items()} for name in ("extractor", "decoder")}

    def record_entry(stage, phase):
        enter(stage, phase)
        entered[phase.name] = remember({name: network.state_dict() for name, network in stage.run.networks.items()})

    def record_leave(stage):
        leave(stage)
        written[stage.phase] = torch.load(tmp_path / "sr.pth", weights_only=True)["weights"]

    monkeypatch.setattr(train.SuperResolution, "enter", record_entry)
    monkeypatch.setattr(train.SuperResolution, "leave", record_leave)
    main(train, *sr_options(demo_data, tmp_path, h2l, *ALL, "--ema-decay", 0.5))
    for before, after in (("interleaved", "align"), ("align", "joint"), ("joint", "decoder")):
        for name in ("extractor", "decoder"):
            for key, tensor in written[before][name].items():
                assert torch.equal(tensor, entered[after][name][key]), (after, name, key)
    first, last = statistics(entered["align"]), statistics(written["decoder"])
    assert all(torch.equal(first[key], last[key]) for key in first)


def test_an_average_that_is_far_behind_its_weights_is_said(demo_data, h2l, tmp_path, monkeypatch, capsys):
    options = sr_options(demo_data, tmp_path, h2l, *ALL)
    main(train, *options)
    assert "dB behind" not in capsys.readouterr().out
    sample = train.SuperResolution.sample

    def spoil(stage, path):
        for average in stage.run.averages.values():
            for parameter in average.parameters():
                parameter.data.fill_(1)
        return sample(stage, path)

    monkeypatch.setattr(train.SuperResolution, "sample", spoil)
    main(train, *options, "--restart", "--phases", "interleaved,align")
    said = [line for line in capsys.readouterr().out.splitlines() if "dB behind the weights themselves" in line]
    assert len(said) == 1 and "lower --ema-decay" in said[0]  # interleaved, without an EMA, has nothing to compare


def test_phases_of_a_trained_network(demo_data, h2l, sr, tmp_path, capsys):
    """align alone changes E alone, and needs no perceptual network; without weights it is refused."""
    options = sr_options(demo_data, tmp_path, h2l, "--phases", "align", "--align-steps", 2, "--vgg-weights", "nowhere.pth")
    with pytest.raises(utils.UserError, match="align starts with trained networks: name --initial-weights"):
        main(train, *options)
    main(train, *options, "--initial-weights", sr)
    before, after = (torch.load(path, weights_only=True)["weights"] for path in (sr, tmp_path / "sr.pth"))
    assert utils.digest(before["decoder"]) == utils.digest(after["decoder"])
    assert utils.digest(before["extractor"]) != utils.digest(after["extractor"])
    assert all(torch.equal(tensor, statistics(after)[name]) for name, tensor in statistics(before).items())
    assert "align: iterations 1 to 2, of 8 images each" in capsys.readouterr().out


def test_align_brings_the_versions_of_a_face_together(demo_data, h2l, lively, tmp_path):
    """The alignment loss falls by more than a fifth in 60 iterations."""
    options = ["--phases", "align", "--align-steps", 60, "--initial-weights", lively, "--width", 8]
    h2l_8 = tmp_path / "h2l.pth"
    generator = train.DegradationGenerator(8)
    content = {"width": 8, "settings": {}, "weights": {"generator": generator.state_dict()}}
    utils.save_checkpoint(h2l_8, "h2l", content)
    main(train, *sr_options(demo_data, tmp_path / "out", h2l_8, *options))
    losses = pd.read_csv(tmp_path / "out" / "train.csv")["alignment_loss"]
    assert losses[-10:].mean() < 0.8 * losses[:3].mean()


def test_no_alignment_leaves_out_the_phase_and_the_second_step(demo_data, h2l, sr, tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    main(train, *sr_options(demo_data, tmp_path, h2l, *LATER, "--initial-weights", sr, "--no-alignment"))
    assert recorder.of("alignment") == []
    assert [i for i, _ in recorder.of("generator")] == [1, 2, 3, 4]


def test_the_inputs_of_joint_and_decoder(demo_data, h2l, sr, tmp_path, monkeypatch):
    """S(E(x)) learns from x_c at --alpha 1 and x_d at 0 if it is fixed, from x_s at a share of 1, else from between."""
    seen = []
    networks = {}

    def recorded(stage, y, x_c, x_d, x_s):
        networks["extractor"] = stage.run.networks["extractor"]
        handle = networks["extractor"].register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0], x_c, x_d, x_s)))
        terms = update(stage, y, x_c, x_d, x_s)
        handle.remove()
        return terms

    update = train.SuperResolution.update_on_all
    monkeypatch.setattr(train.SuperResolution, "update_on_all", recorded)
    fixed = ["--fixed-alpha", "--synthetic-share", 0]
    runs = {1: [*fixed, "--alpha", 1], 2: [*fixed, "--alpha", 0], 3: ["--synthetic-share", 1], 0: ["--synthetic-share", 0]}
    for place, options in runs.items():
        seen.clear()
        more = ["--phases", "joint", "--joint-steps", 2, "--initial-weights", sr, *options]
        main(train, *sr_options(demo_data, tmp_path / str(place), h2l, *more))
        x, x_c, x_d, x_s = seen[0]
        if place:
            assert torch.equal(x, (x, x_c, x_d, x_s)[place])
        else:
            alpha = ((x - x_d) / (x_c - x_d)).flatten(1).median(dim=1).values
            torch.testing.assert_close(x, alpha.view(-1, 1, 1, 1) * x_c + (1 - alpha.view(-1, 1, 1, 1)) * x_d)
            assert alpha.std() > 0.05 and alpha.min() >= 0 and alpha.max() <= 1


def test_lengths_may_change_until_a_later_phase_has_begun(demo_data, h2l, tmp_path):
    main(train, *sr_options(demo_data, tmp_path, h2l, *ALL, "--max-steps", 4))
    with pytest.raises(utils.UserError, match="is at iteration 4, in the phase align, which began after 2: the lengths"):
        main(train, *sr_options(demo_data, tmp_path, h2l, *ALL, "--epochs", 2))
    with pytest.raises(utils.UserError, match="is at iteration 4, in the phase align"):
        main(train, *sr_options(demo_data, tmp_path, h2l, *ALL, "--align-steps", 1))
    with pytest.raises(utils.UserError, match="--phases interleaved"):
        main(train, *sr_options(demo_data, tmp_path, h2l, *ALL, "--phases", "interleaved"))
    main(train, *sr_options(demo_data, tmp_path, h2l, *ALL, "--align-steps", 4, "--decoder-steps", 1))
    assert torch.load(tmp_path / "sr.pth", weights_only=True)["settings"]["iteration"] == 2 + 4 + 3 + 1


def test_a_state_of_before_the_phases_resumes_as_the_interleaved_one(demo_data, h2l, tmp_path, capsys):
    options = sr_options(demo_data, tmp_path, h2l, "--steps-per-epoch", 2, "--epochs", 2)
    main(train, *options, "--phases", "interleaved", "--max-steps", 2)
    state = torch.load(tmp_path / "sr_state.pth", weights_only=True)
    for name in ("phases", "align_steps", "joint_steps", "decoder_steps", "augment", "synthetic_share"):
        del state["options"][name]
    torch.save(state, tmp_path / "sr_state.pth")
    whole = tmp_path / "whole"
    main(train, *sr_options(demo_data, whole, h2l, "--steps-per-epoch", 2, "--epochs", 2, "--phases", "interleaved"))
    main(train, *[option for option in options if option not in ("--phases", "interleaved")])
    assert "resuming with --phases interleaved, as the run began" in capsys.readouterr().out
    assert_equal_states(whole / "sr_state.pth", tmp_path / "sr_state.pth")


@pytest.mark.parametrize("phases", ["", "joint,align", "align,align", "alignment"])
def test_phases_that_there_are_not(phases, capsys):
    with pytest.raises(SystemExit):
        main(train, "--phases", phases)
    assert "must be one or more of interleaved,align,joint,decoder, in this order" in capsys.readouterr().err


def test_the_layout():
    options = {"phases": "interleaved,align,joint,decoder", "epochs": 2, "align_steps": 4, "joint_steps": 0,
               "decoder_steps": 3, "no_alignment": False}  # fmt: skip
    interleaved, align, decoder = Phase("interleaved", 0, 10), Phase("align", 10, 14), Phase("decoder", 14, 17)
    phases = lay_out(options, 5)
    assert phases == [interleaved, align, decoder]
    assert [remaining(phases, i)[0] for i in (0, 10, 11, 14, 15, 17, 18)] == [
        interleaved, interleaved, align, align, decoder, decoder, decoder
    ]  # fmt: skip
    assert lay_out(options | {"no_alignment": True}, 5) == [interleaved, Phase("decoder", 10, 13)]
    with pytest.raises(utils.UserError, match="no iterations"):
        lay_out(options | {"phases": "align", "no_alignment": True}, 5)
    check_lengths({"iteration": 10, "options": options}, options | {"epochs": 3}, 5, None)
    with pytest.raises(utils.UserError):
        check_lengths({"iteration": 11, "options": options}, options | {"epochs": 3}, 5, None)


def test_the_learning_rates(demo_data, h2l, sr, tmp_path):
    factor = warm_up_and_cosine(4, 100)
    assert [factor(i) for i in (0, 1)] == pytest.approx([0.25, 0.5], abs=1e-3)
    assert [factor(i) for i in (50, 100, 101)] == pytest.approx([0.5, 0, 0])
    more = ["--phases", "decoder", "--decoder-steps", 4, "--initial-weights", sr]
    main(train, *sr_options(demo_data, tmp_path, h2l, *more))
    expected = [1e-4 * warm_up_and_cosine(100, 4)(i) for i in range(4)]
    assert pd.read_csv(tmp_path / "train.csv")["learning_rate"].tolist() == pytest.approx(expected, rel=1e-4)


def test_the_scaled_alignment_loss():
    """Two faces 4 apart, and versions that are moved by 1 and by 2: a distance of 1 and 4 in units of 16."""
    target = torch.zeros(2, 1, 2, 2)
    target[1] = 4
    versions = torch.cat([target + 1, target - 2]).requires_grad_()
    loss = scaled_alignment_loss(versions, target, [0.3, 2.0], paired_distance)
    assert loss.item() == pytest.approx((0.3 * 1 + 2 * 4) / 16)
    loss.backward()
    assert versions.grad[:2].gt(0).all() and versions.grad[2:].lt(0).all()
    with pytest.raises(ValueError, match="2 faces"):
        scaled_alignment_loss(versions[:2], target[:1], [1.0, 1.0])


def test_squared_distances_take_the_place_of_sinkhorn(demo_data, h2l, sr, tmp_path, monkeypatch):
    def fail(*arguments, **settings):
        raise AssertionError("Sinkhorn")

    monkeypatch.setattr(train, "sinkhorn_distance", fail)
    main(train, *sr_options(demo_data, tmp_path, h2l, *LATER, "--initial-weights", sr, "--squared-distances"))


def test_augmented_faces_keep_their_exact_reduction():
    """x_c is Pillow's bicubic reduction of the very y that was made, but for rounding; mirroring is exact."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(16, 3, 8, 8, generator=generator) * 2 - 1
    y = utils.to_bytes(torch.nn.functional.interpolate(coarse, size=64, mode="bicubic"))

    def reduced(faces):
        pictures = [Image.fromarray(face.permute(1, 2, 0).numpy()) for face in faces]
        small = [torch.frombuffer(bytearray(p.resize((16, 16), Image.Resampling.BICUBIC).tobytes()), dtype=torch.uint8)
                 for p in pictures]  # fmt: skip
        return torch.stack(small).view(-1, 16, 16, 3).permute(0, 3, 1, 2)

    faces, clean = utils.to_unit_range(y), utils.to_unit_range(reduced(y))
    uniform = torch.rand(16, augment.UNIFORMS, generator=generator)
    mirrored, mirrored_clean = augment.augment(faces, clean, uniform, "mirror")
    flips = uniform[:, 0] < 0.5
    assert 0 < flips.sum() < 16
    assert torch.equal(mirrored[flips], faces[flips].flip(-1)) and torch.equal(mirrored[~flips], faces[~flips])
    assert torch.equal(mirrored_clean[flips], clean[flips].flip(-1))
    framed, framed_clean = augment.augment(faces, clean, uniform, "framing")
    windows = uniform[:, 1] < 0.5
    assert torch.equal(framed[~windows], mirrored[~windows])
    assert (framed[windows] - mirrored[windows]).abs().flatten(1).amax(dim=1).gt(0.01).all()
    error = utils.to_bytes(framed_clean).int() - reduced(utils.to_bytes(framed)).int()
    assert error.abs().max() <= 2 and error.abs().float().mean() < 0.1  # Pillow rounds between its two passes
    corner = uniform.clone()
    corner[:, 1], corner[:, 2], corner[:, 3:] = 0, 0, 0  # the smallest window at the upper left: 60 px enlarged to 64
    window = augment.augment(faces, clean, corner, "framing")[0]
    expected = torch.nn.functional.interpolate(mirrored_of(faces, flips)[:, :, :60, :60], size=64, mode="bicubic").clamp(-1, 1)
    torch.testing.assert_close(window[:, :, 4:-4, 4:-4], expected[:, :, 4:-4, 4:-4], atol=1.01 / 127.5, rtol=0)


def mirrored_of(faces, flips):
    return torch.where(flips.view(-1, 1, 1, 1), faces.flip(-1), faces)


def test_a_bad_share(capsys):
    with pytest.raises(SystemExit):
        main(train, "--synthetic-share", 1.5)
    assert "--synthetic-share 1.5: must be in [0, 1]" in capsys.readouterr().err


def test_run_draws_for_the_phases_batch(tmp_path, demo_data):
    options = train.build_parser().parse_args(["--out", str(tmp_path), "--batch-size", "4", "--device", "cpu"])
    run = Run("sr", options, set(), train.COLUMNS)
    run.enter(Phase("align", 0, 1))
    assert run.normal(3, 2).shape == (8, 3, 2) and run.uniform().shape == (8,)

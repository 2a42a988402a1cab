"""recipes/distil_h2l.py and docs/make_trade_off.py: a G out of several, and the figure of x_s."""

import copy
import json

import pytest
import torch
from helpers import main, run_script, write_weights
from PIL import Image

import utils
from docs import make_trade_off
from models import DegradationGenerator
from recipes import distil_h2l


def test_the_new_generator_changes_what_the_teachers_change_by_their_amounts(demo_data, h2l, tmp_path):
    first, _ = utils.load_degradation(h2l, "")
    shifted = copy.deepcopy(first)
    shifted.state_dict()["tail.bias"].add_(0.3)
    second, out = write_weights(tmp_path / "b.pth", "h2l", {"generator": shifted}, 4), tmp_path / "new" / "h2l.pth"
    options = ("--steps", 150, "--batch-size", 8, "--generator-lr", 1e-2, "--precision", "fp32", "--device", "cpu")
    result = run_script(
        "recipes/distil_h2l.py", "--data", demo_data, "--teachers", h2l, second, "--amounts", 0.25, 0.75, "--out", out, *options
    )
    assert result.returncode == 0, result.stderr
    new, content = utils.load_degradation(out, "")
    assert content["settings"]["amounts"] == [0.25, 0.75] and content["settings"]["resize"] == 100
    x_c, z = torch.rand(16, 3, 16, 16) * 2 - 1, torch.randn(16, new.noise_channels)
    with torch.inference_mode():
        change = new(x_c, z) - first(x_c, z)
    assert change.mean().item() == pytest.approx(0.75 * 0.3, abs=0.03)
    assert change.std().item() < 0.05


def test_teachers_that_do_not_fit_and_lengths_of_nothing_are_refused(demo_data, h2l, tmp_path, capsys):
    wider = write_weights(tmp_path / "wider.pth", "h2l", {"generator": DegradationGenerator(8)}, 8)
    with pytest.raises(utils.UserError, match="widths 4, 8: give teachers of one width"):
        main(distil_h2l, "--data", demo_data, "--teachers", h2l, wider, "--amounts", 1, 1)
    with pytest.raises(SystemExit):
        main(distil_h2l, "--data", demo_data, "--teachers", h2l, "--amounts", 1, 1)
    assert "--amounts: 2 for 1 teacher; give one to each" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(distil_h2l, "--data", demo_data, "--teachers", h2l, "--amounts", 1, "--steps", 0)
    assert "--steps 0: must be at least 1" in capsys.readouterr().err


def test_the_figure_of_x_s_has_the_rows_of_x_s(tmp_path):
    row = {"psnr_clean": 24.0, "psnr_four": 22.0, "consistency": 25.0}
    path, picture = tmp_path / "metrics.json", tmp_path / "trade_off.png"
    names = ["bicubic", *(f"runs/ablations/{name}/sr.pth" for name in ("full", "x_s_0_1", "x_s_1_0.5", "x_s_1_1.5"))]
    second_seed = {"runs/ablations/x_s_1_1.5_1/sr.pth": row | {"consistency": 0.0}}
    path.write_text(json.dumps({"rows": dict.fromkeys(names, row) | second_seed}))
    assert make_trade_off.read_rows(path) == {"0": {"1": row}, "1": {"0.5": row, "1.5": row}}
    main(make_trade_off, "--metrics", path, "--out", picture)
    with Image.open(picture) as image:
        assert image.width > 700
    path.write_text(json.dumps({"rows": {"bicubic": row}}))
    with pytest.raises(utils.UserError, match="has no row named x_s_WEIGHT_STRENGTH"):
        main(make_trade_off, "--metrics", path)

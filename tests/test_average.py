"""recipes/average.py: the mean of several sr.pth."""

import pytest
import torch
from helpers import main, run_script, write_weights

import utils
from models import Decoder, FeatureExtractor
from recipes import average


def test_the_mean_is_weighted_and_can_be_used(tmp_path):
    networks = [(FeatureExtractor(4), Decoder(4)) for _ in range(2)]
    networks[1][0].load_state_dict({key: tensor + 1 for key, tensor in networks[0][0].state_dict().items()})
    networks[1][1].load_state_dict({key: tensor + 2 for key, tensor in networks[0][1].state_dict().items()})
    framings = {"a.pth": {"resize": 64, "crop": 64}, "b.pth": {}}
    paths = [
        write_weights(tmp_path / name, "sr", {"extractor": extractor, "decoder": decoder}, 4, settings)
        for (name, settings), (extractor, decoder) in zip(framings.items(), networks)
    ]
    out = tmp_path / "new" / "sr.pth"
    result = run_script("recipes/average.py", "--weights", *paths, "--amounts", 3, 1, "--out", out)
    assert result.returncode == 0, result.stderr
    content = utils.load_checkpoint(out, "sr", "")
    weights, settings = content["weights"], content["settings"]
    assert (settings["resize"], settings["crop"], settings["amounts"]) == (64, 64, [3, 1])
    for name, network, shift in (("extractor", networks[0][0], 0.25), ("decoder", networks[0][1], 0.5)):
        for key, tensor in network.state_dict().items():
            expected = tensor + shift if tensor.is_floating_point() else tensor
            torch.testing.assert_close(weights[name][key], expected)
    assert utils.SuperResolver(out, torch.device("cpu"))(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).shape == (1, 3, 64, 64)


def test_what_has_no_mean_is_refused(tmp_path, capsys):
    a, wider = (
        write_weights(tmp_path / f"{width}.pth", "sr", {"extractor": FeatureExtractor(width), "decoder": Decoder(width)}, width)
        for width in (4, 8)
    )
    with pytest.raises(utils.UserError, match="widths 4, 8: give files of one width"):
        main(average, "--weights", a, wider, "--amounts", 1, 1)
    for amounts, text in (((1,), "--amounts: 1 for 2 files of --weights; give one to each"), ((0, 0), "not all 0"),
                          ((2, -1), "must be at least 0"), ((1, "inf"), "finite")):  # fmt: skip
        with pytest.raises(SystemExit):
            main(average, "--weights", a, a, "--amounts", *amounts)
        assert text in capsys.readouterr().err

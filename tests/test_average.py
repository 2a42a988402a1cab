"""recipes/average.py: the mean of several sr.pth."""

import pytest
import torch
from helpers import main, run_script

import utils
from models import Decoder, FeatureExtractor
from recipes import average


def write(path, extractor, decoder, width=4):
    weights = {"extractor": extractor.state_dict(), "decoder": decoder.state_dict()}
    utils.save_checkpoint(path, "sr", {"width": width, "settings": {}, "weights": weights})
    return path


def test_the_mean_is_weighted_and_can_be_used(tmp_path):
    networks = [(FeatureExtractor(4), Decoder(4)) for _ in range(2)]
    networks[1][0].load_state_dict({key: tensor + 1 for key, tensor in networks[0][0].state_dict().items()})
    networks[1][1].load_state_dict({key: tensor + 2 for key, tensor in networks[0][1].state_dict().items()})
    paths = [write(tmp_path / name, *pair) for name, pair in zip(("a.pth", "b.pth"), networks)]
    out = tmp_path / "new" / "sr.pth"
    result = run_script("recipes/average.py", "--weights", *paths, "--amounts", 3, 1, "--out", out)
    assert result.returncode == 0, result.stderr
    weights = utils.load_checkpoint(out, "sr", "")["weights"]
    for name, network, shift in (("extractor", networks[0][0], 0.25), ("decoder", networks[0][1], 0.5)):
        for key, tensor in network.state_dict().items():
            expected = tensor + shift if tensor.is_floating_point() else tensor
            torch.testing.assert_close(weights[name][key], expected)
    assert utils.SuperResolver(out, torch.device("cpu"))(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).shape == (1, 3, 64, 64)


def test_what_has_no_mean_is_refused(tmp_path, capsys):
    a = write(tmp_path / "a.pth", FeatureExtractor(4), Decoder(4))
    wider = write(tmp_path / "wider.pth", FeatureExtractor(8), Decoder(8), width=8)
    with pytest.raises(utils.UserError, match="widths 4, 8: give files of one width"):
        main(average, "--weights", a, wider, "--amounts", 1, 1)
    for amounts, text in (((1,), "--amounts: 1 for 2 files of --weights; give one to each"), ((0, 0), "not all 0"),
                          ((2, -1), "must be at least 0")):  # fmt: skip
        with pytest.raises(SystemExit):
            main(average, "--weights", a, a, "--amounts", *amounts)
        assert text in capsys.readouterr().err

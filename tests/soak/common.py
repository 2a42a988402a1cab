"""What the soak scripts share: the path to the modules, untrained weights, and test.py printing its peak memory."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import utils  # noqa: E402
from models import Decoder, FeatureExtractor  # noqa: E402

CODE = (
    "import resource, sys, test, utils;"
    "utils.run_script(lambda: test.main(sys.argv[1:]));"
    "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)


def save_untrained(path: Path) -> None:
    """Write an sr.pth of narrow, untrained networks."""
    networks = {"extractor": FeatureExtractor(8), "decoder": Decoder(8)}
    weights = {name: network.state_dict() for name, network in networks.items()}
    utils.save_checkpoint(path, "sr", {"width": 8, "settings": {}, "weights": weights})


def command(weights: Path, source: Path, target: Path, *more: str) -> list:
    """test.py on the CPU, which ends its output with its peak memory in kB."""
    options = ["--input", source, "--output", target, "--weights", weights, "--device", "cpu", *more]
    return [sys.executable, "-c", CODE, *options]

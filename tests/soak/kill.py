"""Kill a training run 50 times at random moments and continue it each time; compare it with one that was never killed.

    python tests/soak/kill.py [--kills 50] [--seed 0]

Half of the kills wait for a checkpoint that is just being written. After each kill the state must be whole, and at most
--save-every iterations may be lost; the end must be the same, bit for bit (fp32, CPU). Exit status 0 if all of that holds.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
SAVE_EVERY = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how often to kill (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: 0)")
    args = parser.parse_args()
    random.seed(args.seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        subprocess.run(
            [sys.executable, "Datasets/make_demo.py", "--out", data, "--hr", "24", "--lr", "24"], cwd=ROOT, check=True
        )

        def command(out: Path, steps: int) -> list[str]:
            options = f"--data {data} --out {out} --width 8 --batch-size 4 --precision fp32 --device cpu"
            more = f"--save-every {SAVE_EVERY} --epochs 1000000 --lr-decay 1 --max-steps {steps}"
            return [sys.executable, "train_h2l.py", *options.split(), *more.split()]

        out = Path(folder, "killed")
        state, log = out / "h2l_state.pth", out / "train_h2l.csv"
        saved = during_writes = worst_loss = 0
        for kill in range(args.kills):
            run = subprocess.Popen(command(out, 10**6), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            rows = log.stat().st_size if log.exists() else 0
            deadline = time.monotonic() + 60
            while (log.stat().st_size if log.exists() else 0) == rows and time.monotonic() < deadline:
                assert run.poll() is None, f"kill {kill}: the run ended by itself with status {run.returncode}"
                time.sleep(0.01)  # until it trains again
            time.sleep(random.uniform(0, 1.5))
            if kill % 2:
                while not list(out.glob("h2l*.tmp")) and time.monotonic() < deadline:
                    pass
                during_writes += 1
            run.kill()
            run.wait()
            iteration = 0
            if state.exists():
                iteration = torch.load(state, weights_only=True)["iteration"]
            reached = int(pd.read_csv(log)["iteration"].max())
            assert iteration >= saved, f"kill {kill}: the state went back from {saved} to {iteration}"
            assert reached - iteration <= SAVE_EVERY, f"kill {kill}: iteration {reached} reached, {iteration} saved"
            worst_loss, saved = max(worst_loss, reached - iteration), iteration
        end = saved + 5
        for name in ("killed", "whole"):
            subprocess.run(
                command(Path(folder, name), end), cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        killed, whole = (torch.load(Path(folder, n, "h2l_state.pth"), weights_only=True) for n in ("killed", "whole"))
        for name, weights in whole["networks"].items():
            for key, tensor in weights.items():
                assert torch.equal(tensor, killed["networks"][name][key]), f"{name} {key} differs from the run never killed"
        assert not list(Path(folder, "killed").glob("*.tmp"))
    print(
        f"kill: {args.kills} SIGKILLs, {during_writes} of them while a checkpoint was written: always continued, at most "
        f"{worst_loss} iterations lost (--save-every {SAVE_EVERY}), bit-identical after {end} iterations; "
        f"{time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()

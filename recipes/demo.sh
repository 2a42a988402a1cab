#!/usr/bin/env bash
# Draws faces, trains both stages on them for minutes, and super-resolves LR/. All files are in demo/, which is made afresh.
#
# Usage: bash recipes/demo.sh          (PYTHON=.venv/bin/python bash recipes/demo.sh: another Python)
# Takes about 4 minutes on 2 CPU cores. Expect, at the end of the logs (PSNR on the first 64 test faces, in dB, to 0.5):
#   demo/train_h2l.csv   x_d against x_c                           20.3
#   demo/train.csv       SR of clean, degraded and mixed faces     19.8, 18.6, 19.4
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}

rm -rf demo
"$PYTHON" Datasets/make_demo.py --out demo/data

# Minutes on 2 cores instead of hours on a GPU: narrow networks and higher learning rates.
COMMON=(--data demo/data --out demo --width 16 --save-every 400)

# Stage 1: with a weaker critic and fewer updates of it.
"$PYTHON" train_h2l.py "${COMMON[@]}" --adversarial-weight 0.1 --pixel-weight 8 --critic-updates 2 --generator-lr 1e-3 \
    --epochs 1 --steps-per-epoch 400 --lr-decay 0.5

# Stage 2: without the alignment, which needs far more updates to be of use.
"$PYTHON" train.py "${COMMON[@]}" --alignment-lr 0 --vgg-weights random --batch-size 8 --l1-weight 4 --generator-lr 2e-3 \
    --augment none --ema-decay 0.99 --epochs 4 --steps-per-epoch 200

"$PYTHON" test.py --weights demo/sr.pth --output demo/Results --compare

echo
echo "The demo is done: drawn faces, a quarter of the paper's width, and a short schedule without the critic in stage 2."
echo "Open demo/Results/compare.png: each face of LR/ as it is, enlarged by bicubic interpolation, and super-resolved."

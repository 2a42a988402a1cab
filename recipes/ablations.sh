#!/usr/bin/env bash
# The ablations of docs/RESULTS.md: what each part of the method does, from one common start and with one budget.
#
# Usage: bash recipes/ablations.sh WIDE VGG MOBILENET START [ROW...]
#   WIDE, VGG, MOBILENET   as in recipes/shipped.sh
#   START                  the common start, an sr.pth (that of the shipped weights: git show 01c924a:weights/sr.pth > start.pth)
#   ROW                    which rows; all if left out. Each resumes if it is interrupted.
# A row takes 35 minutes on one core of an AMD EPYC, without a GPU; its measurement 13 to 26. These rows have not been measured yet.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
WIDE=$1 VGG=$2 MOBILENET=$3 START=$4
shift 4
ROWS=("$@")
[ ${#ROWS[@]} -gt 0 ] || ROWS=(full unaligned full_seed1 unaligned_seed1 interleaved degraded clean squared no_x_s)

COMMON=(--data "$WIDE" --resize 64 --crop 64 --vgg-weights "$VGG" --h2l weights/h2l.pth
    --initial-weights "$START" --augment mirror)
PHASES=(--phases align,joint,decoder --align-steps 450 --joint-steps 900 --decoder-steps 200)

train() { "$PYTHON" train.py "${COMMON[@]}" --out "runs/ablations/$ROW" "$@"; }

for ROW in "${ROWS[@]}"; do
    case $ROW in
        full) train "${PHASES[@]}" ;;
        full_seed1) train "${PHASES[@]}" --seed 1 ;;
        # The time of the alignment goes to joint
        unaligned) train "${PHASES[@]}" --no-alignment --joint-steps 1130 ;;
        unaligned_seed1) train "${PHASES[@]}" --no-alignment --joint-steps 1130 --seed 1 ;;
        # The reference's alignment alone: one critic update an iteration, as five cannot be afforded
        interleaved)
            train --phases interleaved --epochs 1 --steps-per-epoch 400 --critic-updates 1 --ot-start-epoch 1 \
                --alignment-lr 1e-5 --critic-lr 1e-4 --beta1 0.5 --beta2 0.9 --l1-weight 30 --freeze-batchnorm ;;
        # Bulat et al. 2018, without their GAN
        degraded) train "${PHASES[@]}" --no-alignment --joint-steps 1130 --fixed-alpha --alpha 0 --synthetic-share 0 ;;
        clean) train "${PHASES[@]}" --no-alignment --joint-steps 1130 --fixed-alpha --alpha 1 --synthetic-share 0 ;;
        squared) train "${PHASES[@]}" --squared-distances ;;
        no_x_s) train "${PHASES[@]}" --synthetic-share 0 --synthetic-weight 0 ;;
        *) echo "no row $ROW" >&2; exit 2 ;;
    esac
done

FILES=("${ROWS[@]/#/runs/ablations/}")
FILES=("${FILES[@]/%//sr.pth}")
"$PYTHON" -m pip install --quiet torchmetrics torch-fidelity
"$PYTHON" evaluate.py --data "$WIDE" --resize 64 --crop 64 --weights "${FILES[@]}" --h2l weights/h2l.pth \
    --features "$MOBILENET" --vgg-weights "$VGG" --out runs/ablations/metrics.json

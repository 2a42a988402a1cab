#!/usr/bin/env bash
# The ablations of docs/RESULTS.md: what each part of the method does, from one common start and with one budget of time.
#
# Usage: bash recipes/ablations.sh FACES WIDE VGG MOBILENET [ROW...]
#   FACES, WIDE, VGG, MOBILENET   as in recipes/shipped.sh
#   ROW                           which rows; all if left out. Each resumes if it is interrupted.
# The common start and G are the weights of commit 01c924a, which only had the interleaved phase. A row takes 9 minutes on one
# core of an AMD EPYC without bf16, those of the frontier 3; its measurement 2.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
FACES=$1 WIDE=$2 VGG=$3 MOBILENET=$4
shift 4
ROWS=("$@")
[ ${#ROWS[@]} -gt 0 ] || ROWS=(full unaligned full_seed1 unaligned_seed1 aligned no_x_s degraded clean squared interleaved
    x_s_0_1 x_s_1_1_1 shipped_g_1_0.5 shipped_g_1_1 shipped_g_1_1.5)

mkdir -p runs/ablations
START=runs/ablations/sr_before.pth H2L=runs/ablations/h2l_before.pth
git show 01c924a:weights/sr.pth >$START
git show 01c924a:weights/h2l.pth >$H2L

COMMON=(--data "$WIDE" --resize 64 --crop 64 --vgg-weights "$VGG" --h2l "$H2L" --initial-weights "$START" --augment mirror
    --batch-size 8)
FULL=(--phases align,joint --align-steps 200 --joint-steps 120)
# The time of the alignment goes to more iterations of joint
ALONE=(--phases joint --no-alignment --joint-steps 172)

train() { "$PYTHON" train.py "${COMMON[@]}" --out "runs/ablations/$ROW" "$@"; }

for ROW in "${ROWS[@]}"; do
    case $ROW in
        full) train "${FULL[@]}" ;;
        full_seed1) train "${FULL[@]}" --seed 1 ;;
        unaligned) train "${ALONE[@]}" ;;
        unaligned_seed1) train "${ALONE[@]}" --seed 1 ;;
        # All of the time for the alignment
        aligned) train --phases align --align-steps 660 ;;
        # Bulat et al. 2018, without their GAN
        degraded) train "${ALONE[@]}" --fixed-alpha --alpha 0 --synthetic-share 0 ;;
        clean) train "${ALONE[@]}" --fixed-alpha --alpha 1 --synthetic-share 0 ;;
        squared) train "${FULL[@]}" --squared-distances ;;
        no_x_s) train "${FULL[@]}" --synthetic-share 0 --synthetic-weight 0 ;;
        # The reference's alignment alone: one critic update an iteration, as five cannot be afforded
        interleaved)
            train --phases interleaved --epochs 1 --steps-per-epoch 100 --max-steps 77 --critic-updates 1 --ot-start-epoch 1 \
                --alignment-lr 1e-5 --critic-lr 1e-4 --beta1 0.5 --beta2 0.9 --l1-weight 30 --freeze-batchnorm ;;
        # The frontier of x_s, by its weight and strength, and the seed if it is not 0: E alone learns
        x_s_* | shipped_g_*)
            IFS=_ read -r _ _ WEIGHT STRENGTH SEED <<<"$ROW"
            GENERATOR=$H2L
            [[ $ROW == x_s_* ]] || GENERATOR=weights/h2l.pth
            train --phases align --align-steps 240 --synthetic-weight "$WEIGHT" --synthetic-strength "$STRENGTH" \
                --seed "${SEED:-0}" --h2l "$GENERATOR" ;;
        *) echo "no row $ROW" >&2; exit 2 ;;
    esac
done

FILES=("${ROWS[@]/#/runs/ablations/}")
FILES=("${FILES[@]/%//sr.pth}")
"$PYTHON" -m pip install --quiet torchmetrics torch-fidelity
"$PYTHON" evaluate.py --data "$FACES" --weights "$START" "${FILES[@]}" --h2l "$H2L" --features "$MOBILENET" \
    --vgg-weights "$VGG" --limit 120 --out runs/ablations/metrics.json

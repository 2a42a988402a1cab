#!/usr/bin/env bash
# The ablations of docs/RESULTS.md: what each part of the method does, from one common start and with one budget of time.
#
# Usage: bash recipes/ablations.sh FACES WIDE VGG MOBILENET [ROW...]
#   FACES, WIDE, VGG, MOBILENET   as in recipes/shipped.sh
#   ROW                           which rows; all if left out. Each resumes if it is interrupted.
# The common start is the sr.pth of commit 01c924a, which only had the interleaved phase; G is weights/h2l.pth. A row takes 4
# minutes on one core with AMX (bf16), those of x_s 1; its measurement 1. Without bf16, three times as long.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
FACES=$1 WIDE=$2 VGG=$3 MOBILENET=$4
shift 4
ROWS=("$@")
[ ${#ROWS[@]} -gt 0 ] || ROWS=(full unaligned full_seed1 unaligned_seed1 x_s_0_1 x_s_0.5_1 x_s_1_0.5 x_s_1_1 x_s_1_1.5 x_s_2_1
    no_x_s degraded clean squared aligned interleaved)

mkdir -p runs/ablations
START=runs/ablations/start.pth
git show 01c924a:weights/sr.pth >$START

COMMON=(--data "$WIDE" --resize 64 --crop 64 --vgg-weights "$VGG" --h2l weights/h2l.pth --augment mirror --batch-size 8)
train() { "$PYTHON" train.py "${COMMON[@]}" --initial-weights $START --out "runs/ablations/$ROW" "$@"; }
# The alignment at the beginning, beside E and S, and once more at the end, as in recipes/shipped.sh
full() {
    train --out "runs/ablations/$ROW/first" --phases align,joint --align-steps 200 --joint-steps 250 "$@"
    train --initial-weights "runs/ablations/$ROW/first/sr.pth" --phases align --align-steps 160 "$@"
}
# The time of the alignment goes to more iterations of joint
unaligned() { train --phases joint --no-alignment --joint-steps 470 "$@"; }

for ROW in "${ROWS[@]}"; do
    case $ROW in
        full) full ;;
        full_seed1) full --seed 1 ;;
        unaligned) unaligned ;;
        unaligned_seed1) unaligned --seed 1 ;;
        # All of the time for the alignment
        aligned) train --phases align --align-steps 1000 ;;
        # Bulat et al. 2018, without their GAN
        degraded) unaligned --fixed-alpha --alpha 0 --synthetic-share 0 ;;
        clean) unaligned --fixed-alpha --alpha 1 --synthetic-share 0 ;;
        squared) full --squared-distances ;;
        no_x_s) full --synthetic-share 0 --synthetic-weight 0 ;;
        # The reference's alignment alone: one critic update an iteration, as five cannot be afforded
        interleaved)
            train --phases interleaved --epochs 1 --steps-per-epoch 300 --max-steps 200 --critic-updates 1 --ot-start-epoch 1 \
                --alignment-lr 1e-5 --critic-lr 1e-4 --beta1 0.5 --beta2 0.9 --l1-weight 30 --freeze-batchnorm ;;
        # x_s, by its weight and strength, and the seed if it is not 0: E alone learns
        x_s_*)
            IFS=_ read -r _ _ WEIGHT STRENGTH SEED <<<"$ROW"
            train --phases align --align-steps 240 --synthetic-weight "$WEIGHT" --synthetic-strength "$STRENGTH" \
                --seed "${SEED:-0}" ;;
        *) echo "no row $ROW" >&2; exit 2 ;;
    esac
done

FILES=("${ROWS[@]/#/runs/ablations/}")
FILES=("${FILES[@]/%//sr.pth}")
"$PYTHON" -m pip install --quiet torchmetrics torch-fidelity
"$PYTHON" evaluate.py --data "$FACES" --weights "$START" "${FILES[@]}" --h2l weights/h2l.pth --features "$MOBILENET" \
    --vgg-weights "$VGG" --limit 120 --out runs/ablations/metrics.json

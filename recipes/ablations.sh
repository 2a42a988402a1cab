#!/usr/bin/env bash
# The ablations: what each part of stage 2 does, every row from nothing in equal time, with the shipped G.
#
# Usage: bash recipes/ablations.sh DATA TEST [ROW...]
#   DATA   as in recipes/weights.sh; VGG, too. FEATURES: inception, or a state dict of MobileNetV2. GROUPS_OF: as --groups
#   TEST   folder of the four lists with the faces to measure on, of which LIMIT (150) are taken
#   ROW    which rows; all if left out. SEEDS: "0 1" if unset
# A row takes 9 minutes on one core with bf16, its measurement 4; a row goes on after an interruption.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
DATA=$1 TEST=$2 OUT=${OUT:-runs/ablations}
shift 2
ROWS=("$@")
((${#ROWS[@]})) || ROWS=(without equal_faces late throughout reference reference_fast degraded clean no_x_s mirror random upper_bound)
SEEDS=${SEEDS:-0 1}
FRAMING=(--resize 64 --crop 64)
COMMON=(--data "$DATA" "${FRAMING[@]}" --vgg-weights "${VGG:-imagenet}" --h2l weights/h2l.pth --epochs 4)
PAPER=(--alpha 0.3 --synthetic-share 0 --alignment-target online --ot-start-epoch 3)

train() { # ROW SEED LENGTH OPTIONS...: LENGTH is an epoch's iterations, so that every row takes the same time
    "$PYTHON" train.py "${COMMON[@]}" --seed "$2" --steps-per-epoch "$3" --out "$OUT/$1_$2" "${@:4}"
}
FILES=()
for SEED in $SEEDS; do
    for ROW in "${ROWS[@]}"; do
        case $ROW in
            without) train "$ROW" "$SEED" 80 --alignment-lr 0 ;;
            equal_faces) train "$ROW" "$SEED" 72 --alignment-lr 0 ;;
            late) train "$ROW" "$SEED" 72 --ot-start-epoch 3 ;;
            throughout) train "$ROW" "$SEED" 64 --ot-start-epoch 1 --alignment-lr 3e-4 ;;
            # The reference's: towards the E(x_m) of the iteration, from the middle on; at its rate, and at one that moves E
            reference) train "$ROW" "$SEED" 72 "${PAPER[@]}" --alignment-lr 1e-6 ;;
            reference_fast) train "$ROW" "$SEED" 72 "${PAPER[@]}" --alignment-lr 1e-4 ;;
            # Bulat et al. 2018, without their GAN
            degraded) train "$ROW" "$SEED" 80 --alpha 0 --synthetic-share 0 --alignment-lr 0 ;;
            clean) train "$ROW" "$SEED" 80 --alpha 1 --synthetic-share 0 --alignment-lr 0 ;;
            no_x_s) train "$ROW" "$SEED" 72 --synthetic-share 0 --ot-start-epoch 3 ;;
            # Neither turned nor enlarged
            mirror) train "$ROW" "$SEED" 72 --augment mirror --ot-start-epoch 3 ;;
            random) train "$ROW" "$SEED" 72 --ot-start-epoch 3 --initial-weights random ;;
            # How much PSNR goes through 4x4x64 features
            upper_bound) train "$ROW" "$SEED" 80 --alpha 1 --synthetic-share 0 --alignment-lr 0 --l1-weight 1000 ;;
            *) echo "no row $ROW" >&2; exit 2 ;;
        esac
        FILES+=("$OUT/${ROW}_$SEED/sr.pth")
    done
done
"$PYTHON" evaluate.py --data "$TEST" "${FRAMING[@]}" --limit "${LIMIT:-150}" --h2l weights/h2l.pth --weights "${FILES[@]}" \
    ${GROUPS_OF:+--groups "$GROUPS_OF"} --identity --vgg-weights "${VGG:-imagenet}" --features "${FEATURES:-inception}" --out "$OUT/metrics.json"

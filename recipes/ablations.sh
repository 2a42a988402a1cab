#!/usr/bin/env bash
# The ablations: what each part of the method does, every row from random weights, at half the width, in equal time, on the
# shipped G.
#
# Usage: bash recipes/ablations.sh DATA [ROW...]
#   DATA   as in recipes/weights.sh; VGG, too. FEATURES: inception, or a state dict of MobileNetV2
#   ROW    which rows; all if left out: two seeds of each. A row takes 15 minutes on one core with bf16, and resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
DATA=$1 OUT=${OUT:-runs/ablations}
shift
ROWS=("$@")
((${#ROWS[@]})) || ROWS=(without late throughout reference reference_fast degraded clean no_x_s)
SEEDS=${SEEDS:-0 1}
COMMON=(--data "$DATA" --resize 64 --crop 64 --width 32 --vgg-weights "${VGG:-imagenet}" --epochs 4)

train() { # ROW SEED LENGTH OPTIONS...: LENGTH is an epoch's iterations, a quarter of what one core does in 15 minutes
    "$PYTHON" train.py "${COMMON[@]}" --h2l weights/h2l.pth --seed "$2" --steps-per-epoch "$3" --out "$OUT/$1_$2" "${@:4}"
}
FILES=()
for SEED in $SEEDS; do
    for ROW in "${ROWS[@]}"; do
        case $ROW in
            without) train "$ROW" "$SEED" 400 --alignment-lr 0 ;;
            without_equal_faces) train "$ROW" "$SEED" 380 --alignment-lr 0 ;;
            late) train "$ROW" "$SEED" 380 --ot-start-epoch 3 ;;
            throughout) train "$ROW" "$SEED" 340 --ot-start-epoch 1 --alignment-lr 3e-4 ;;
            # The reference's: towards the E(x_m) of the moment, from the middle on; at its rate, and at one that moves E
            reference) train "$ROW" "$SEED" 380 --alpha 0.3 --synthetic-share 0 --alignment-target moment --ot-start-epoch 3 \
                --alignment-lr 1e-6 ;;
            reference_fast) train "$ROW" "$SEED" 380 --alpha 0.3 --synthetic-share 0 --alignment-target moment \
                --ot-start-epoch 3 --alignment-lr 1e-4 ;;
            # Bulat et al. 2018, without their GAN
            degraded) train "$ROW" "$SEED" 400 --alpha 0 --synthetic-share 0 --alignment-lr 0 ;;
            clean) train "$ROW" "$SEED" 400 --alpha 1 --synthetic-share 0 --alignment-lr 0 ;;
            no_x_s) train "$ROW" "$SEED" 380 --synthetic-share 0 --ot-start-epoch 3 ;;
            *) echo "no row $ROW" >&2; exit 2 ;;
        esac
        FILES+=("$OUT/${ROW}_$SEED/sr.pth")
    done
done
"$PYTHON" evaluate.py --data "$DATA" --resize 64 --crop 64 --h2l weights/h2l.pth --weights "${FILES[@]}" --identity \
    --vgg-weights "${VGG:-imagenet}" --features "${FEATURES:-inception}" --out "$OUT/metrics.json"

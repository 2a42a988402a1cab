#!/usr/bin/env bash
# Makes weights/h2l.pth and weights/sr.pth from nothing: stage 1, then stage 2.
#
# Usage: bash recipes/weights.sh DATA [OUT]       (OUT: runs/weights; PYTHON, VGG as below)
#   DATA   folder of HR_train.csv, HR_test.csv, LR_train.csv and LR_test.csv, HR faces framed for --resize 64. Stage 1 takes the
#          lists of DATA/photographs where there are some: its HR faces should be out of the same kind of photographs as the real
#          LR faces, in the same framing, or G learns the difference between two populations.
#   VGG    imagenet (the default; a download), or a state dict of VGG19 up to conv3_1
# One public set gives both: python Datasets/make_faces.py --wider WIDER --resize 64 --out DATA
# Run the same command again to go on after an interruption. docs/RESULTS.md says which faces the shipped weights have seen.
#
# Minutes with bf16 (AMD EPYC, avx512_bf16), and what the logs say at the end:
#   stage 1   17 on one core            psnr_degraded 19 to 20
#   stage 2   113 on two cores          psnr_clean 25.2, psnr_degraded 21.5 on photographs' faces
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
DATA=$1 OUT=${2:-runs/weights}
STAGE1=$DATA
[[ ! -e $DATA/photographs/HR_train.csv ]] || STAGE1=$DATA/photographs

"$PYTHON" train_h2l.py --data "$STAGE1" --resize 64 --crop 64 --out "$OUT" --epochs 4 --steps-per-epoch 600 --lr-decay 0.5 \
    --critic-updates 3 --save-every 200
"$PYTHON" train.py --data "$DATA" --resize 64 --crop 64 --out "$OUT" --epochs 3 --steps-per-epoch 2000 --save-every 200 \
    --vgg-weights "${VGG:-imagenet}"

TERMS=(--trained-on "${TRAINED_ON:-faces of $DATA}" --licence "${LICENCE:-as the faces}")
"$PYTHON" export.py "$OUT/h2l.pth" "$OUT/h2l_half.pth" "${TERMS[@]}"
"$PYTHON" export.py "$OUT/sr.pth" "$OUT/sr_half.pth" "${TERMS[@]}"
echo "written: $OUT/h2l_half.pth and $OUT/sr_half.pth, which weights/ has as h2l.pth and sr.pth"

#!/usr/bin/env bash
# Trains the shipped weights, and measures them: the README's table.
#
# Usage: bash recipes/shipped.sh FACES WIDE VGG MOBILENET
#   FACES      folder of the four lists, with the faces of docs/RESULTS.md:
#              python Datasets/make_faces.py --lfw lfw-deepfunneled --wider WIDER --out FACES
#   WIDE       the same with UTKFace's faces among the HR faces, framed for --resize 64:
#              python Datasets/make_faces.py --lfw ... --utkface ... --wider ... --resize 64 --out WIDE
#              and LFW's rows of HR_train.csv written twice
#   VGG        the perceptual network's state dict, or imagenet
#   MOBILENET  torchvision's mobilenet_v2-b0353104.pth
# Each step resumes if it is interrupted. Minutes are on one core of an AMD EPYC, without a GPU.
#
# Both stages go on from older weights. What made those is recipes/shipped.sh of commit 6cc1f26, in 5 hours; this version's
# train_h2l.py has another critic and cannot.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
FACES=$1 WIDE=$2 VGG=$3 MOBILENET=$4

mkdir -p runs
git show 01c924a:weights/h2l.pth >runs/h2l_before.pth
git show 01c924a:weights/sr.pth >runs/sr_before.pth

# Stage 1, 85 minutes. Expect 17.4 dB between x_d and x_c.
DEGRADATION=(--data "$WIDE" --resize 64 --crop 64 --batch-size 16 --ema-decay 0.99)
"$PYTHON" train_h2l.py "${DEGRADATION[@]}" --out runs/h2l1 --initial-weights runs/h2l_before.pth --critic-updates 2 \
    --generator-lr 2e-4 --pixel-weight 8 --colour-weight 6 --steps-per-epoch 1100 --max-steps 380
"$PYTHON" train_h2l.py "${DEGRADATION[@]}" --out runs/h2l --initial-weights runs/h2l1/h2l.pth --critic-updates 3 \
    --epochs 3 --steps-per-epoch 1500 --max-steps 3302

# The alignment carried through, with faces of more people: E alone, 6 minutes; E and S, 50;
# S alone, 12; E alone once more, 2. (The weights themselves were trained by a prototype of these phases, whose last one had a
# learning rate of 1e-4 in place of 5e-4, and whose random numbers differ.)
COMMON=(--data "$WIDE" --resize 64 --crop 64 --vgg-weights "$VGG" --h2l runs/h2l_before.pth --augment mirror)
"$PYTHON" train.py "${COMMON[@]}" --out runs/align --initial-weights runs/sr_before.pth --phases align --synthetic-weight 1
JOINT=("${COMMON[@]}" --phases joint --synthetic-weight 0.5)
"$PYTHON" train.py "${JOINT[@]}" --out runs/joint1 --initial-weights runs/align/sr.pth --joint-steps 2600 --max-steps 500 \
    --joint-alignment-lr 5e-5
"$PYTHON" train.py "${JOINT[@]}" --out runs/joint2 --initial-weights runs/joint1/sr.pth --joint-steps 1250 --seed 1 \
    --joint-alignment-lr 8e-5
"$PYTHON" train.py "${COMMON[@]}" --out runs/decoder --initial-weights runs/joint2/sr.pth --phases decoder --decoder-steps 400 \
    --decoder-l1-weight 4 --seed 2
"$PYTHON" train.py "${COMMON[@]}" --out runs/final --initial-weights runs/decoder/sr.pth --phases align --align-steps 240 --seed 3 \
    --synthetic-weight 1 --ema-decay 0.997

# weights/, in half precision
TRAINED_ON="Labeled Faces in the Wild and UTKFace; the real LR faces are Wider Face's"
TERMS=(--trained-on "$TRAINED_ON" --licence "research only, as the face sets are")
"$PYTHON" export.py runs/h2l/h2l.pth weights/h2l.pth "${TERMS[@]}"
"$PYTHON" export.py runs/final/sr.pth weights/sr.pth "${TERMS[@]}"

# The tables, 40 minutes, on the G that stage 2 was trained with. Expect the rows of README.md:
# "bicubic", "shipped" and "shipped, --self-ensemble".
"$PYTHON" -m pip install --quiet torchmetrics torch-fidelity
"$PYTHON" evaluate.py --data "$FACES" --weights weights/sr.pth --self-ensemble --h2l runs/h2l_before.pth --features "$MOBILENET" \
    --vgg-weights "$VGG"

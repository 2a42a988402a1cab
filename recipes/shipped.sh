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
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
FACES=$1 WIDE=$2 VGG=$3 MOBILENET=$4

# Stage 1, 35 minutes. Expect 22.2 dB between x_d and x_c.
"$PYTHON" train_h2l.py --data "$FACES" --out runs/h2l --epochs 4 --steps-per-epoch 2000

# Stage 2 as the reference has it: the interleaved phase.
COMMON=(--data "$FACES" --vgg-weights "$VGG" --h2l runs/h2l/h2l.pth --phases interleaved)

# Without critic and alignment, 35 minutes. Expect 22.2 dB on clean faces.
"$PYTHON" train.py "${COMMON[@]}" --out runs/warm --adversarial-weight 0 --no-alignment --epochs 3 --steps-per-epoch 800 \
    --lr-decay 0.5 --lr-decay-epochs 1 --generator-lr 3e-4 --beta1 0.9 --beta2 0.99 --l1-weight 2

# With both, 40 minutes. Expect 21.7 dB on clean faces.
"$PYTHON" train.py "${COMMON[@]}" --out runs/full --initial-weights runs/warm/sr.pth --batch-size 8 --critic-updates 1 \
    --epochs 4 --steps-per-epoch 250 --ot-start-epoch 1 --lr-decay 0.2 --lr-decay-epochs 3 --generator-lr 1e-4 \
    --alignment-lr 5e-5 --beta1 0.5 --beta2 0.9 --l1-weight 2

# With the alignment alone, BatchNorm frozen, 150 minutes. Expect 23.0 dB on clean faces.
ALIGNED=("${COMMON[@]}" --adversarial-weight 0 --ot-start-epoch 1 --alignment-lr 1e-5 --freeze-batchnorm --batchnorm-batches 0
    --beta1 0.9 --beta2 0.99 --lr-decay 0.3 --epochs 3)
"$PYTHON" train.py "${ALIGNED[@]}" --out runs/last1 --initial-weights runs/full/sr.pth --l1-weight 10 --steps-per-epoch 400 \
    --max-steps 674 --lr-decay-epochs 2 --ema-decay 0.98
"$PYTHON" train.py "${ALIGNED[@]}" --out runs/last2 --initial-weights runs/last1/sr.pth --l1-weight 30 --steps-per-epoch 250 \
    --max-steps 250 --lr-decay-epochs 2 --ema-decay 0.98
"$PYTHON" train.py "${ALIGNED[@]}" --out runs/last3 --initial-weights runs/last2/sr.pth --l1-weight 30 --batch-size 6 \
    --steps-per-epoch 1892 --lr-decay-epochs 1 --ema-decay 0.998

# The alignment carried through, with faces of more people: E alone, 6 minutes; E and S, 50;
# S alone, 12; E alone once more, 2. (The weights themselves were trained by a prototype of these phases, whose last one had a
# learning rate of 1e-4 in place of 5e-4, and whose random numbers differ.)
COMMON=(--data "$WIDE" --resize 64 --crop 64 --vgg-weights "$VGG" --h2l runs/h2l/h2l.pth --augment mirror)
"$PYTHON" train.py "${COMMON[@]}" --out runs/align --initial-weights runs/last3/sr.pth --phases align --synthetic-weight 1
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
TRAINED_ON="Labeled Faces in the Wild and UTKFace, degraded by h2l.pth, whose LR faces are Wider Face's"
TERMS=(--trained-on "$TRAINED_ON" --licence "research only, as the face sets are")
"$PYTHON" export.py runs/h2l/h2l.pth weights/h2l.pth "${TERMS[@]}"
"$PYTHON" export.py runs/final/sr.pth weights/sr.pth "${TERMS[@]}"

# The tables, 40 minutes. Expect the rows "bicubic", "shipped" and "shipped, --self-ensemble" of README.md.
"$PYTHON" -m pip install --quiet torchmetrics torch-fidelity
"$PYTHON" evaluate.py --data "$FACES" --weights weights/sr.pth --self-ensemble --h2l weights/h2l.pth --features "$MOBILENET" \
    --vgg-weights "$VGG"

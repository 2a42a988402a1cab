#!/usr/bin/env bash
# All that a GPU is wanted for, in one command: the GPU tests, the timings, both stages at the reference's length, the alignment
# of what came out, and the evaluation.
#
# Usage: bash recipes/gpu.sh --faces faces.tar.gz [--out runs/gpu] [--minutes 9]
#
# It needs the repository, its requirements-dev.txt, and one archive of faces (tar cz of a folder of the four lists and their images, relative paths). With --minutes it
# stops in time with everything saved, and ends with status 3: run the same command again, and it goes on where it was.
# Status 0: all is done. Expect about 2 to 4 hours on an H100 (an estimate: it has not run on a GPU yet).
#
# Variables: PYTHON (python), DEVICE (cuda), VGG (imagenet, or a state dict of VGG19), FEATURES (inception, or a state dict of
# MobileNetV2); a machine without a network needs files for the last two. TINY=1 rehearses everything in a minute or two.
#
# Results: OUT/bench_*.md, OUT/full/*.csv and sr.pth, OUT/align/sr.pth, OUT/metrics.json and the sheet beside it.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
export DEVICE=${DEVICE:-cuda}

FACES= OUT=runs/gpu MINUTES=100000
while (($#)); do
    case $1 in
        --faces) FACES=$2 ;;
        --out) OUT=$2 ;;
        --minutes) MINUTES=$2 ;;
        *) echo "gpu.sh: unknown option $1 (see the top of this file)" >&2; exit 2 ;;
    esac
    shift 2
done
END=$(awk "BEGIN {print int(60 * $MINUTES)}")
mkdir -p "$OUT/done"

# The reference's lengths
NETWORKS=()
STAGE1=(--epochs 4 --steps-per-epoch 9143)
STAGE2=(--epochs 4 --steps-per-epoch 14066 --vgg-weights "${VGG:-imagenet}")
ALIGN=(--generator-lr 0 --epochs 1 --steps-per-epoch 900 --batch-size 26 --alignment-lr 5e-4)
MEASURE=(--vgg-weights "${VGG:-imagenet}" --features "${FEATURES:-inception}" --self-ensemble)
BENCHES=(stage1 stage2 scaling test sinkhorn)
BENCH=(--device "$DEVICE" --rounds 7)
TESTS=(tests/test_gpu.py)
if [[ ${TINY:-} ]]; then
    NETWORKS=(--width 4 --batch-size 4)
    STAGE1=(--epochs 1 --steps-per-epoch 2)
    STAGE2=(--epochs 2 --steps-per-epoch 1 --critic-updates 1 --ot-start-epoch 2 --vgg-weights random)
    ALIGN=(--generator-lr 0 --epochs 1 --steps-per-epoch 2)
    MEASURE=(--vgg-weights random --features "$FEATURES" --limit 4)
    BENCHES=(stage1)
    BENCH=(--device "$DEVICE" --rounds 1 --width 4)
    TESTS+=(-k sinkhorn_on_the_device)
fi
DATA=(--data "$OUT/faces" --resize 64 --crop 64 --device "$DEVICE")
SAVING=20 # s of a slice that are kept for saving

# step NAME COMMAND...: run it, unless it is done; end with status 3 when the slice is over
step() {
    local name=$1 left=$((END - SECONDS - SAVING)) status=0
    shift
    [[ ! -e $OUT/done/$name ]] || return 0
    if ((left > 0)); then
        echo "== $name: $*"
        timeout --signal=TERM --kill-after=$SAVING "$left" "$@" || status=$?
    fi
    if ((left <= 0 || status == 124 || status == 137 || status == 143)); then
        echo "== $name: this slice is over; run the same command again to go on"
        exit 3
    fi
    ((status == 0)) || { echo "== $name failed with status $status" >&2; exit $status; }
    touch "$OUT/done/$name"
}

mkdir -p "$OUT/faces"
step faces tar xf "$FACES" -C "$OUT/faces"
step tests "$PYTHON" -m pytest "${TESTS[@]}"
for part in "${BENCHES[@]}"; do
    step "bench_$part" "$PYTHON" benchmarks/bench.py "$part" "${BENCH[@]}" --out "$OUT/bench_$part.md"
done
step stage1 "$PYTHON" train_h2l.py "${DATA[@]}" "${NETWORKS[@]}" "${STAGE1[@]}" --out "$OUT/full"
step stage2 "$PYTHON" train.py "${DATA[@]}" "${NETWORKS[@]}" "${STAGE2[@]}" --out "$OUT/full"
step align "$PYTHON" train.py "${DATA[@]}" "${NETWORKS[@]}" "${ALIGN[@]}" --h2l "$OUT/full/h2l.pth" \
    --initial-weights "$OUT/full/sr.pth" --out "$OUT/align"
step evaluate "$PYTHON" evaluate.py "${DATA[@]}" "${MEASURE[@]}" --weights "$OUT"/{full,align}/sr.pth --h2l "$OUT/full/h2l.pth" \
    --out "$OUT/metrics.json"

echo "== all is done: see $OUT"

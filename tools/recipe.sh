#!/usr/bin/env bash
# The whole chain on a few clips: videos -> crops -> weights -> evaluation -> submission. A rehearsal of the real
# training, which has more of everything: clips, frames, pixels, epochs, and crops in a batch.
#
# make submission && tools/recipe.sh VIDEOS OUT [INIT]
#
# VIDEOS holds clips of several originals and metadata.json; INIT is a safetensors file to start from. VAL_SHARE=0.3 of
# the originals, chosen by their names, are kept for validation; EPOCHS=2.
set -euo pipefail
videos=$1 out=$2 init=${3:-}
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
mkdir -p "$out"

"$python" "$root/tools/make_crops.py" "$videos" --out "$out/crops" --frames 8 --val-share "${VAL_SHARE:-0.3}"
"$python" "$root/tools/train.py" --crops "$out/crops/crops.csv" --run "$out/run" --out "$out/weights" \
  --input-size 128 --epochs "${EPOCHS:-2}" --batch-size 16 ${init:+--init "$init"}
"$python" "$root/tools/evaluate.py" --crops "$out/crops/crops.csv" --weights "$out/weights" \
  --json "$out/crops.json" --pictures "$out/pictures"
"$python" "$root/kernel.py" "$videos" --weights "$out/weights" --frames 8 --out "$out/submission.csv"

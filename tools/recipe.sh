#!/usr/bin/env bash
# The whole chain on a few clips: videos -> crops -> weights -> evaluation -> submission.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

usage() {
  cat << USAGE
Rehearse the whole chain on a few clips: videos -> crops -> weights -> evaluation -> submission.

usage: tools/recipe.sh VIDEOS OUT [INIT]

  VIDEOS  folder of clips of several originals, with metadata.json
  OUT     folder for everything that is made: crops, run, weights, pictures, submission.csv
  INIT    safetensors file to start from, or "scratch" for random weights (default: the first of weights/)

Starting from the shipped weights, six clips take some minutes on two cores and give scores that tell fakes from reals.
From scratch, or from ImageNet weights, some thousand crops are needed; with fewer, every clip gets 50 %.

Environment variables: VAL_SHARE, share of the originals that validation keeps (default 0.3); EPOCHS (default 2); RATE,
the peak learning rate (default 0.0001, for trained weights; 0.001 suits others); PYTHON (default .venv/bin/python).
USAGE
}

fail() {
  echo "recipe: $1" >&2
  exit 1
}

for argument in "$@"; do
  if [[ $argument == -h || $argument == --help ]]; then
    usage
    exit 0
  fi
done
if (($# < 2 || $# > 3)); then
  usage >&2
  exit 2
fi
videos=$1 out=$2
if [[ ! -f $videos/metadata.json ]]; then
  fail "$videos/metadata.json does not exist; name a folder of clips with one: {\"a.mp4\": {\"label\": \"REAL\"}, ...}"
fi
if (($# == 3)); then init=$3; else init=$(find "$root/weights" -maxdepth 1 -name '*.safetensors' | sort | head -n 1); fi
if [[ $init != scratch && ! -f $init ]]; then
  fail "the weights ${init:-in weights/} do not exist; name a safetensors file, or \"scratch\""
fi
start=()
if [[ $init != scratch ]]; then start=(--init "$init"); fi
python=${PYTHON:-$root/.venv/bin/python}
mkdir -p "$out"

"$python" "$root/tools/make_crops.py" "$videos" --out "$out/crops" --frames 8 --val-share "${VAL_SHARE:-0.3}"
"$python" "$root/tools/train.py" --crops "$out/crops/crops.csv" --run "$out/run" --out "$out/weights" \
  --epochs "${EPOCHS:-2}" --batch-size 16 --learning-rate "${RATE:-1e-4}" ${start[@]+"${start[@]}"}
"$python" "$root/tools/evaluate.py" --crops "$out/crops/crops.csv" --weights "$out/weights" \
  --json "$out/crops.json" --pictures "$out/pictures"
"$python" "$root/kernel.py" "$videos" --weights "$out/weights" --frames 8 --out "$out/submission.csv"
echo "Done: scores of the clips are in $out/submission.csv, charts of the validation crops in $out/pictures."

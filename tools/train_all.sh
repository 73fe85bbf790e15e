#!/usr/bin/env bash
# Everything that needs a GPU, in one command: the speed of training, a long run of each model, their evaluation alone
# and together, and the value of each part of the recipe. An interrupted step continues where it stopped.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

usage() {
  cat << 'USAGE'
Measure the speed of training, train several models, evaluate them alone and together, and compare parts of the recipe.

usage: tools/train_all.sh CROPS.CSV INIT OUT

  CROPS.CSV  crop table of tools/make_crops.py
  INIT       weights to start from: "imagenet", which are fetched over the network, or a safetensors file of
             EfficientNet-Lite0, from which B0 can start, too. Models that were trained on other crops are a poor start
             (docs/experiments.md)
  OUT        folder for everything that is made; OUT/weights is laid out as the kernel expects it: the first model,
             which is fast, and the others in further/

Environment variables for the long runs: MODELS="efficientnet-lite0 efficientnet-b0 efficientnet-lite0:0.5", where a number
is the share of self-blended fakes (half of them makes a model for other data sets); SEED=1, which the second model
increases by one, and so on; EPOCHS=50; SIZE=224; MORE for other flags of tools/train.py. For the comparison of parts,
with the first model: PART_EPOCHS=8, PART_SIZE=128, and PARTS="no colour;no noise" to run only some. LIMIT and BATCH make
everything small for a rehearsal; PYTHON is .venv/bin/python by default. On CUDA models are compiled, which needs a C
compiler.
USAGE
}

for argument in "$@"; do
  if [[ $argument == -h || $argument == --help ]]; then
    usage
    exit 0
  fi
done
if (($# != 3)); then
  usage >&2
  exit 2
fi
crops=$1 init=$2 out=$3
python=${PYTHON:-$root/.venv/bin/python}
gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
train=("$python" "$root/tools/train.py")
if ((gpus > 1)); then train=("$python" -m torch.distributed.run --nproc-per-node "$gpus" -- "$root/tools/train.py"); fi
IFS=";" read -ra parts <<< "${PARTS:-}"
read -ra models <<< "${MODELS:-efficientnet-lite0 efficientnet-b0 efficientnet-lite0:0.5}"
fast=()
if ((gpus > 0)); then fast=(--device cuda --compile --batch-size 256 --learning-rate 2e-3 --ema-decay 0.995); fi
mkdir -p "$out/weights/further"
start=(--imagenet)
if [[ $init != imagenet ]]; then
  if [[ ! $init -ef $out/init.safetensors ]]; then cp "$init" "$out/init.safetensors"; fi
  start=(--init "$out/init.safetensors")
fi
rm -f "$out"/weights/*.safetensors "$out"/weights/further/*.safetensors  # of an earlier run: two files of one model would form an ensemble

if ((gpus > 0)); then "$python" "$root/tools/bench/time_training.py" --device cuda --architecture efficientnet-b0 --compile | tee "$out/speed.txt"; fi
for number in "${!models[@]}"; do
  seed=$((${SEED:-1} + number))
  IFS=":" read -r model blend <<< "${models[number]}"
  run=$out/$model-$seed
  "${train[@]}" --crops "$crops" "${start[@]}" --architecture "$model" --run "$run" \
    --seed "$seed" --epochs "${EPOCHS:-50}" --input-size "${SIZE:-224}" ${fast[@]+"${fast[@]}"} \
    ${blend:+--self-blend "$blend"} ${LIMIT:+--limit "$LIMIT"} ${BATCH:+--batch-size "$BATCH"} ${MORE:-}
  folder=$out/weights
  if ((number > 0)); then folder+=/further; fi
  cp "$run"/*.safetensors "$folder/"
  "$python" "$root/tools/evaluate.py" --crops "$crops" --weights "$run" --json "$run.json"
done
"$python" "$root/tools/evaluate.py" --crops "$crops" --weights "$out/weights" --json "$out/all.json" --pictures "$out/pictures"
"$python" "$root/tools/research/compare_recipes.py" --crops "$crops" "${start[@]}" --run "$out/parts" \
  --json "$out/parts.json" --architecture "${models[0]%%:*}" --epochs "${PART_EPOCHS:-8}" --input-size "${PART_SIZE:-128}" \
  ${fast[@]+"${fast[@]}"} ${PARTS:+--only "${parts[@]}"} ${LIMIT:+--limit "$LIMIT"} ${BATCH:+--batch-size "$BATCH"} \
  | tee "$out/parts.md"

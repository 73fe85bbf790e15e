#!/usr/bin/env bash
# What is left for a GPU, in one command: how fast it trains, what each part of the recipe brings, and two long runs of
# other seeds, evaluated alone and together. Every step goes on where it was stopped.
#
# tools/train_all.sh CROPS.CSV INIT OUT     INIT is a safetensors file of the same net to start from, in weights/ for one
#
# EPOCHS=40 SIZE=224 of the long runs; PART_EPOCHS=8 PART_SIZE=128 of those with and without each part; NET of all of
# them, for one tools/train.py knows; MORE adds flags of tools/train.py to the long runs. PARTS, LIMIT and BATCH make all
# of it small, for a rehearsal.
set -euo pipefail
crops=$1 init=$2 out=$3
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
train=("$python" "$root/tools/train.py")
if ((gpus > 1)); then train=("$python" -m torch.distributed.run --nproc-per-node "$gpus" -- "$root/tools/train.py"); fi
net=${NET:-efficientnet-lite0}
mkdir -p "$out/weights"

if ((gpus > 0)); then "$python" "$root/tools/time_training.py" --architecture efficientnet-b0 | tee "$out/speed.txt"; fi
"$python" "$root/tools/compare_recipes.py" --crops "$crops" --init "$init" --run "$out/parts" --json "$out/parts.json" \
  --architecture "$net" \
  --epochs "${PART_EPOCHS:-8}" --input-size "${PART_SIZE:-128}" ${PARTS:+--only "$PARTS"} ${LIMIT:+--limit "$LIMIT"} \
  ${BATCH:+--batch-size "$BATCH"} | tee "$out/parts.md"
for seed in 1 2; do
  "${train[@]}" --crops "$crops" --init "$init" --architecture "$net" --run "$out/seed-$seed" --seed "$seed" \
    --epochs "${EPOCHS:-40}" --input-size "${SIZE:-224}" ${LIMIT:+--limit "$LIMIT"} ${BATCH:+--batch-size "$BATCH"} ${MORE:-}
  cp "$out/seed-$seed"/*.safetensors "$out/weights/"
  "$python" "$root/tools/evaluate.py" --crops "$crops" --weights "$out/seed-$seed" --json "$out/seed-$seed.json"
done
"$python" "$root/tools/evaluate.py" --crops "$crops" --weights "$out/weights" --json "$out/both.json" --pictures "$out/pictures"

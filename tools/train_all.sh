#!/usr/bin/env bash
# What a GPU is for, in one command: how fast it trains, a long run of each net, evaluated alone and together, and what
# each part of the recipe brings. Every step goes on where it was stopped.
#
# tools/train_all.sh CROPS.CSV INIT OUT     INIT is what to start from: "imagenet", whose weights are fetched over the
#                                           network, or a safetensors file: of EfficientNet-Lite0, which B0 can start from
#                                           as well. Nets that have learned other crops hold back what they learn of these
#                                           (docs/experiments.md)
#
# OUT/weights is as the kernel takes it: the first net, which is fast, and the others in further/. On CUDA nets are
# compiled, which takes a C compiler.
#
# Of the long runs: NETS="efficientnet-lite0 efficientnet-b0 efficientnet-lite0:0.5", a number being the share of
# self-blended fakes, of which half make a net for other data sets; SEED=1, 2 for the second net and so on; EPOCHS=50;
# SIZE=224; MORE for other flags of tools/train.py. Of the runs with and without each part, by the first net:
# PART_EPOCHS=8, PART_SIZE=128. PARTS ("no colour;no noise") takes some of them.
# LIMIT and BATCH make all of it small, for a rehearsal.
set -euo pipefail
crops=$1 init=$2 out=$3
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
train=("$python" "$root/tools/train.py")
if ((gpus > 1)); then train=("$python" -m torch.distributed.run --nproc-per-node "$gpus" -- "$root/tools/train.py"); fi
IFS=";" read -ra parts <<< "${PARTS:-}"
read -ra nets <<< "${NETS:-efficientnet-lite0 efficientnet-b0 efficientnet-lite0:0.5}"
fast=()
if ((gpus > 0)); then fast=(--device cuda --compile --batch-size 256 --learning-rate 2e-3 --ema-decay 0.995); fi
mkdir -p "$out/weights/further"
start=(--imagenet)
if [[ $init != imagenet ]]; then
  if [[ ! $init -ef $out/init.safetensors ]]; then cp "$init" "$out/init.safetensors"; fi
  start=(--init "$out/init.safetensors")
fi
rm -f "$out"/weights/*.safetensors "$out"/weights/further/*.safetensors  # of an earlier start: two of one net would both answer

if ((gpus > 0)); then "$python" "$root/tools/bench/time_training.py" --device cuda --architecture efficientnet-b0 --compile | tee "$out/speed.txt"; fi
for number in "${!nets[@]}"; do
  seed=$((${SEED:-1} + number))
  IFS=":" read -r net blend <<< "${nets[number]}"
  run=$out/$net-$seed
  "${train[@]}" --crops "$crops" "${start[@]}" --architecture "$net" --run "$run" \
    --seed "$seed" --epochs "${EPOCHS:-50}" --input-size "${SIZE:-224}" ${fast[@]+"${fast[@]}"} \
    ${blend:+--self-blend "$blend"} ${LIMIT:+--limit "$LIMIT"} ${BATCH:+--batch-size "$BATCH"} ${MORE:-}
  folder=$out/weights
  if ((number > 0)); then folder+=/further; fi
  cp "$run"/*.safetensors "$folder/"
  "$python" "$root/tools/evaluate.py" --crops "$crops" --weights "$run" --json "$run.json"
done
"$python" "$root/tools/evaluate.py" --crops "$crops" --weights "$out/weights" --json "$out/all.json" --pictures "$out/pictures"
"$python" "$root/tools/research/compare_recipes.py" --crops "$crops" "${start[@]}" --run "$out/parts" \
  --json "$out/parts.json" --architecture "${nets[0]%%:*}" --epochs "${PART_EPOCHS:-8}" --input-size "${PART_SIZE:-128}" \
  ${fast[@]+"${fast[@]}"} ${PARTS:+--only "${parts[@]}"} ${LIMIT:+--limit "$LIMIT"} ${BATCH:+--batch-size "$BATCH"} \
  | tee "$out/parts.md"

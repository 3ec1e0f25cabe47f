#!/usr/bin/env bash
# Train every task of a benchmark in order, evaluating after each on all tasks seen so far.
#   bash scripts/train_all.sh [benchmark] [method] [key=value …]      default: ucit hide
# Uses every GPU of this machine (NPROC=n for fewer; NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT for several machines).
# MODEL=llava-1.5-7b chooses the model. Stops at the first failure; run it again to go on.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
benchmark="${1:-ucit}" method="${2:-hide}"
shift $(($# < 2 ? $# : 2))
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
nproc="${NPROC:-$((gpus > 0 ? gpus : 1))}" nnodes="${NNODES:-1}"
words=(run "benchmark=$benchmark" "method=$method" "model=${MODEL:-llava-1.5-7b}" "$@")
if [ "$((nproc * nnodes))" -gt 1 ]; then
  exec torchrun --nnodes "$nnodes" --nproc-per-node "$nproc" --node-rank "${NODE_RANK:-0}" \
    --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}" -m hide_llava.cli "${words[@]}"
fi
exec hide-llava "${words[@]}"

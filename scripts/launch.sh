# Sourced by train_all.sh and Eval_all.sh:  launch VERB [benchmark] [method] [key=value …]
# One process, or torchrun when there is more than one:
#   NPROC=n          processes on this machine (default: its GPUs)
#   NNODES, MASTER_ADDR, MASTER_PORT, NODE_RANK     several machines, the same command on each
#   RDZV=host:port   instead of MASTER_ADDR and NODE_RANK: torchrun's c10d rendezvous
#   MODEL=…          default llava-1.5-7b
# Under srun with one task per GPU nothing is launched: SLURM has started the processes (scripts/slurm/train_all.sbatch).
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
launch() {
  local verb="$1" benchmark="${2:-ucit}" method="${3:-hide}"
  shift $(($# < 3 ? $# : 3))
  local words=("$verb" "benchmark=$benchmark" "method=$method" "model=${MODEL:-llava-1.5-7b}" "$@")
  if [ -n "${SLURM_PROCID:-}" ] && [ "${SLURM_STEP_NUM_TASKS:-1}" -gt 1 ]; then
    export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_STEP_NUM_TASKS"
    exec hide-llava "${words[@]}"
  fi
  local gpus nproc nnodes="${NNODES:-1}"
  gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
  nproc="${NPROC:-$((gpus > 0 ? gpus : 1))}"
  if [ "$((nproc * nnodes))" -eq 1 ]; then exec hide-llava "${words[@]}"; fi
  local where=(--node-rank "${NODE_RANK:-0}" --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}")
  if [ -n "${RDZV:-}" ]; then where=(--rdzv-backend c10d --rdzv-endpoint "$RDZV" --rdzv-id "${RDZV_ID:-hide-llava}"); fi
  exec torchrun --nnodes "$nnodes" --nproc-per-node "$nproc" "${where[@]}" -m hide_llava.cli "${words[@]}"
}

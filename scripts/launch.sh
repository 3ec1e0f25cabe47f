# Sourced by train_all.sh and Eval_all.sh:  launch SCRIPT VERB [benchmark] [method] [key=value …]
# One process, or torchrun when there is more than one:
#   NPROC=n          processes on this machine (default: the GPUs that CUDA_VISIBLE_DEVICES leaves in sight)
#   NNODES, MASTER_ADDR, MASTER_PORT, NODE_RANK     several machines, the same command on each
#   RDZV=host:port   instead of MASTER_ADDR and NODE_RANK: torchrun's c10d rendezvous
#   MODEL=…          default llava-1.5-7b
# Under srun with one task per GPU nothing is launched: SLURM has started the processes (scripts/slurm/train_all.sbatch).
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$1"; }
launch() {
  local script="$1" verb="$2" names=() words=() word
  shift 2
  for word in "$@"; do
    case "$word" in
      -h | --help) usage "$script"; exit 0 ;;
      -*) echo "error: '$word' is no option; write key=value." >&2; usage "$script" >&2; exit 2 ;;
      *=*) words+=("$word") ;;
      *) names+=("$word") ;;
    esac
  done
  if [ "${#names[@]}" -gt 2 ]; then
    echo "error: '${names[2]}' is neither benchmark nor method; write key=value." >&2; usage "$script" >&2; exit 2
  fi
  local defaults=("benchmark=${names[0]:-ucit}" "method=${names[1]:-hide}" "model=${MODEL:-llava-1.5-7b}") given=" ${words[*]-}"
  for word in "${defaults[@]}"; do
    case "$given" in *" ${word%%=*}="*) ;; *) words=("$word" ${words[@]+"${words[@]}"}) ;; esac
  done
  words=("$verb" "${words[@]}")
  source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
  if [ -n "${SLURM_PROCID:-}" ] && [ "${SLURM_STEP_NUM_TASKS:-1}" -gt 1 ]; then
    export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_STEP_NUM_TASKS"
    exec hide-llava "${words[@]}"
  fi
  local gpus nproc="${NPROC:-}" nnodes="${NNODES:-1}"
  for count in "NPROC=${nproc:-1}" "NNODES=$nnodes"; do
    [[ "${count#*=}" =~ ^[1-9][0-9]*$ ]] || { echo "error: $count: how many is a whole number, 1 or more." >&2; exit 2; }
  done
  if [ -z "$nproc" ]; then
    gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
    nproc=$((gpus > 0 ? gpus : 1))
  fi
  if [ "$((nproc * nnodes))" -eq 1 ]; then exec hide-llava "${words[@]}"; fi
  local where=(--node-rank "${NODE_RANK:-0}" --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}")
  if [ -n "${RDZV:-}" ]; then where=(--rdzv-backend c10d --rdzv-endpoint "$RDZV" --rdzv-id "${RDZV_ID:-hide-llava}"); fi
  exec python -m hide_llava.launch --nnodes "$nnodes" --nproc-per-node "$nproc" "${where[@]}" -m hide_llava.cli "${words[@]}"
}

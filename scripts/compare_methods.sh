#!/usr/bin/env bash
# Every method on mini-ucit with the same rank per task (4), linears (all of the decoder), steps (60 of 16 records per task)
# and projector (frozen), several seeds, and one table with scores, forgetting and costs: docs/COMPARISON.md.
#   bash scripts/compare_methods.sh [key=value …]        about five hours on one core; run it again to go on
#   SEEDS="0 1 2"   METHODS="lora hide-mini"   OUT=runs/compare-methods   JOBS=1 (runs at a time, one core each)
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
OUT="${OUT:-runs/compare-methods}"
LORA="method.rank=4 method.alpha=8 method.dropout=0 method.targets=all method.projector=frozen"
MOE="method.rank=24 method.alpha=48 method.experts=6 method.dropout=0 method.targets=all method.projector=frozen" # 6 × 4
settings() { # preset → its overrides; what is not said here is the preset's own, the published value
  case "$1" in
    zero_shot) ;;
    lora | individual | lwf | olora | sefe | llavac | disco | keeplora | eblora | wise-ft | merge*) echo "$LORA" ;;
    multitask) echo "$LORA train.max_steps=360" ;;
    hide-mini | mrlora-mini) echo "method.targets=all" ;;
    replay) echo "$LORA method.buffer=60" ;;
    dgg) echo "$LORA method.buffer=60 method.unit=records" ;;
    ewc) echo "$LORA method.fisher_examples=120" ;;
    moelora | smolora) echo "$MOE" ;;
    clmoe | same | passmoe) echo "$MOE method.samples=64" ;;
    branchlora) echo "$LORA method.branches=6 method.samples=64" ;;
    l2p | dualprompt | modalprompt) echo "method.lr=0.1" ;; # at 0.005 their loss hardly falls in 60 steps
    *) echo "no settings for $1" >&2; return 2 ;;
  esac
}
run() { # seed preset [key=value …]
  local seed="$1" preset="$2" folder="$OUT/$2-seed$1" words
  shift 2
  words=$(settings "$preset")
  mkdir -p "$OUT"
  # shellcheck disable=SC2086 # one word per setting
  hide-llava run benchmark=mini-ucit model=mini train=mini train.max_steps=60 eval.batch_size=50 \
    method="$preset" seed="$seed" output="$folder" $words "$@" > "$folder.log" 2>&1 || { echo "failed: $folder.log" >&2; return 1; }
  echo "$folder: $(grep '^Last' "$folder.log" | tail -1)"
}
export -f run settings
export OUT LORA MOE OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
METHODS="${METHODS:-zero_shot lora multitask individual replay ewc lwf l2p dualprompt olora moelora clmoe smolora same branchlora disco modalprompt sefe mrlora-mini llavac merge hide-mini keeplora eblora passmoe dgg wise-ft}"
for seed in ${SEEDS:-0 1 2}; do
  for preset in $METHODS; do printf '%s %s\n' "$seed" "$preset"; done
done | xargs -P "${JOBS:-1}" -L 1 bash -c 'run "${@: -2}" "${@:1:$#-2}"' _ "$@"
hide-llava compare "$OUT"/*-seed*/ --output "$OUT"

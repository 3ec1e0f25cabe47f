#!/usr/bin/env bash
# Every method with the same rank per task (4), linears (all of the decoder), steps (60 of 16 records per task) and projector
# (frozen), several seeds, and one table with scores, forgetting and costs: docs/COMPARISON.md.
#   bash scripts/compare_methods.sh [key=value …]            about eight hours of one core; run it again to go on
#   bash scripts/compare_methods.sh --search [key=value …]   before it, if wanted: the learning rate of every method, chosen by TRIALS=3
#       runs each on the validation split, with TRIALS=6 the strengths as well (hide_llava/search.py); six hours, or twelve.
#       $OUT/search.md shows every trial, and the plain command, begun after it with the same OUT, takes what was chosen
#   SEARCH=runs/compare-methods/search   what another search chose, of another benchmark for instance, instead of $OUT/search
#   SEEDS="0 1 2"   METHODS="lora hide-mini"   BENCHMARK=mini-ucit   OUT=runs/compare-methods   JOBS=1 (at a time, one core each)
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
BENCHMARK="${BENCHMARK:-mini-ucit}"
name="$(basename "$BENCHMARK" .yaml)"
OUT="${OUT:-runs/compare-methods$([ "$name" = mini-ucit ] || echo "-$name")}"
COUNTED="${TASKS:-}" # by who called
TASKS="${TASKS:-$(hide-llava ls benchmarks | awk -v name="$name" '$1 == name { print $2 }')}"
[ -n "$TASKS" ] || { echo "error: $BENCHMARK is none of \`hide-llava ls benchmarks\`; say how many tasks it has: TASKS=…" >&2; exit 2; }
case " $* " in *" tasks="*) [ -n "$COUNTED" ] || {
  echo "error: mixtures, buffers and joint training are sized by the number of tasks; with tasks=[…] say it too: TASKS=2" >&2
  exit 2
} ;; esac
settings() { # preset → its overrides; what is not said here is the preset's own, the published value
  local lora="method.rank=4 method.alpha=8 method.dropout=0 method.targets=all method.projector=frozen"
  local rank=$((4 * TASKS)) # of a mixture that all tasks share: theirs together
  local mixture="method.rank=$rank method.alpha=$((2 * rank)) method.dropout=0 method.targets=all method.projector=frozen"
  local buffer=$((10 * TASKS))
  case "$1" in
    zero_shot) ;;
    lora | individual | lwf | olora | sefe | llavac | disco | keeplora | eblora | octopus | wise-ft | many | merge*) echo "$lora" ;;
    multitask) echo "$lora train.max_steps=$((60 * TASKS))" ;;
    hide-mini | mrlora-mini) echo "method.targets=all" ;;
    replay) echo "$lora method.buffer=$buffer" ;;
    dgg) echo "$lora method.buffer=$buffer method.unit=records" ;;
    ewc) echo "$lora method.fisher_examples=120" ;;
    moelora) echo "$mixture method.experts=$TASKS" ;;
    smolora) echo "$mixture method.experts=$((TASKS % 2 ? 2 * TASKS : TASKS))" ;; # half of them for each gate
    clmoe | same | passmoe) echo "$mixture method.experts=$TASKS method.samples=64" ;;
    branchlora) echo "$lora method.branches=$TASKS method.samples=64" ;;
    l2p | dualprompt | modalprompt) echo "method.lr=0.1" ;; # at 0.005 their loss hardly falls in 60 steps
    *) echo "no settings for $1" >&2; return 2 ;;
  esac
}
configuration() { # preset → the words that every run of it has, of a search too
  local words
  words=$(settings "$1") || return
  echo "benchmark=$BENCHMARK model=mini train=mini train.max_steps=60 eval.batch_size=50 method=$1 $words"
}
chosen() { # preset [words of its run] → the words that a search of it chose
  local file="$SEARCH/$1.json"
  if [ ! -f "$file" ] && [ "$SEARCH" != "$OUT/search" ]; then
    echo "error: there is no $file; SEARCH=… names a folder in which every method was searched." >&2
    return 2
  elif [ ! -f "$file" ]; then
    [ ! -d "$SEARCH" ] || echo "$1: its usual values; there is no $file" >&2
    return 0
  fi
  shift
  [ "$SEARCH" = "$OUT/search" ] || set --  # a search of something else has other words
  python -c 'import json, sys
file, *words = sys.argv[1:]
found = json.load(open(file))
theirs = [word for word in found["words"] if word not in ("eval.split=val", "seed=0")]
other = [word for word in theirs if word not in words] or [word for word in words if word not in theirs]
if words and other:
    sys.exit(f"error: {file} is of a search with other words ({other[0]} is in one of both); take another OUT, or remove the folder it lies in.")
if found["chosen"] is None:
    sys.exit(f"error: {file}: the search is not finished; begin it again, and it goes on.")
for key, value in found["chosen"].items():
    print(f"{key}={json.dumps(value)}")' "$file" "$@"
}
run() { # seed preset [key=value …]
  local seed="$1" preset="$2" folder="$OUT/$2-seed$1" words searched
  shift 2
  words=$(configuration "$preset") || return
  # shellcheck disable=SC2086 # one word per setting, here and below
  searched=$(chosen "$preset" $words "$@" 2> /dev/null) || return # said before anything began
  mkdir -p "$OUT"
  [ -z "$searched" ] || echo "$folder:" $searched "($SEARCH/$preset.json)"
  # shellcheck disable=SC2086
  hide-llava run $words $searched seed="$seed" output="$folder" "$@" > "$folder.log" 2>&1 \
    || { echo "failed: $folder.log" >&2; return 1; }
  echo "$folder: $(grep '^Last' "$folder.log" | tail -1)"
}
search() { # preset [key=value …]
  local preset="$1" words log="$OUT/search/$1.log"
  shift
  words=$(configuration "$preset") || return
  mkdir -p "$OUT/search"
  # shellcheck disable=SC2086 # one word per setting
  python scripts/search_strengths.py "$OUT/search" --trials "$TRIALS" $words "$@" > "$log" 2>&1 \
    || { echo "failed: $log" >&2; return 1; }
  tail -1 "$log"
}
export -f run search settings configuration chosen
export BENCHMARK OUT TASKS SEARCH="${SEARCH:-$OUT/search}" TRIALS="${TRIALS:-3}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
METHODS="${METHODS:-zero_shot lora multitask individual replay ewc lwf l2p dualprompt olora moelora clmoe smolora same branchlora disco modalprompt sefe mrlora-mini llavac merge hide-mini keeplora eblora passmoe dgg octopus wise-ft many}"
failed=0
if [ "${1:-}" = --search ]; then
  shift
  printf '%s\n' $METHODS | xargs -P "${JOBS:-1}" -L 1 bash -c 'search "${@: -1}" "${@:1:$#-1}"' _ "$@" || failed=1
  python scripts/search_strengths.py "$OUT/search" --table
  exit "$failed"
fi
for preset in $METHODS; do # a search that does not fit stops here
  # shellcheck disable=SC2086
  words=$(configuration "$preset" 2> /dev/null) && { chosen "$preset" $words "$@" > /dev/null || exit 2; }
done
for seed in ${SEEDS:-0 1 2}; do
  for preset in $METHODS; do printf '%s %s\n' "$seed" "$preset"; done
done | xargs -P "${JOBS:-1}" -L 1 bash -c 'run "${@: -2}" "${@:1:$#-2}"' _ "$@" || failed=1
hide-llava compare "$OUT"/*-seed*/ --output "$OUT"
exit "$failed"

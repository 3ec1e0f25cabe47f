#!/usr/bin/env bash
# Set up (once) and run tests:
#   bash scripts/test.sh                   the default lane, a few minutes
#   bash scripts/test.sh --all             everything, as the gate does: also slow, distributed and fault tests
#   bash scripts/test.sh [pytest arguments]
export HIDE_EXTRAS="${HIDE_EXTRAS:-caption,report,train,dev}"
lane=()
if [[ $# -eq 0 ]]; then
    lane=(-m "not (slow or distributed or faults or nightly)")
elif [[ "$1" == --all ]]; then
    shift
fi
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
[[ -n "${HIDE_CONTRACT:-}" ]] || ruff check .  # a method of your own may be written in your own style
OMP_NUM_THREADS=1 python -m pytest -n "${HIDE_TEST_WORKERS:-2}" --dist loadgroup "${lane[@]}" "$@"

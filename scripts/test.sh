#!/usr/bin/env bash
# Set up (once) and run the tests:  bash scripts/test.sh [pytest arguments]
export HIDE_EXTRAS="${HIDE_EXTRAS:-caption,report,train,dev}"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
ruff check .
OMP_NUM_THREADS=1 python -m pytest -n "${HIDE_TEST_WORKERS:-2}" --dist loadgroup "$@"

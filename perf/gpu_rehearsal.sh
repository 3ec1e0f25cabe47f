#!/usr/bin/env bash
# The real command line on a LLaVA-1.5-7B of random weights, from doctor to a killed and resumed run, in one table:
#   bash perf/gpu_rehearsal.sh            # one GPU, at most 8 minutes, 20 GB of disk; downloads nothing
#   bash perf/gpu_rehearsal.sh --small    # the same at toy size on a CPU; its times mean nothing
# Needs the package's dependencies. PYTHON chooses the interpreter, --folder where model, data and runs go.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHONPATH="$root:$root/perf${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" "$root/perf/gpu_rehearsal.py" "$@"

#!/usr/bin/env bash
# Speed and memory on one GPU, in one table: bash perf/gpu.sh   (--small: the same at toy size on a CPU)
# Needs torch, transformers, peft and pydantic only; nothing is downloaded. PYTHON chooses the interpreter.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" "$root/perf/gpu.py" "$@"

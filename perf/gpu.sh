#!/usr/bin/env bash
# Speed and memory on one GPU, in one table: bash perf/gpu.sh   (--small: the same at toy size on a CPU)
# bash perf/gpu.sh --model qwen2.5-vl-3b is the rehearsal (perf/gpu_rehearsal.sh) on a model of that shape.
# Needs torch, transformers, peft and pydantic only; nothing is downloaded. PYTHON chooses the interpreter.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
script=gpu.py
[[ " $* " == *" --model"* ]] && script=gpu_rehearsal.py
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" "$root/perf/$script" "$@"

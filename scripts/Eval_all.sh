#!/usr/bin/env bash
# Evaluate every trained stage of a run on every task it has seen; what is scored is skipped.
#   bash scripts/Eval_all.sh [benchmark] [method] [key=value …]      default: ucit hide
# GPUs and machines: see launch.sh. Stops at the first failure; run it again to go on.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch eval "$@"

#!/usr/bin/env bash
# Train every task of a benchmark in order, evaluating after each on all tasks seen so far.
#   bash scripts/train_all.sh [benchmark] [method] [key=value …]      default: ucit hide
# GPUs and machines: see launch.sh. Stops at the first failure; run it again to go on.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch run "$@"

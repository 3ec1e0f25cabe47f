#!/usr/bin/env bash
# Train every task of a benchmark in order, evaluating after each on all tasks seen so far, and report: `hide-llava run`.
#   bash scripts/train_all.sh [benchmark] [method] [key=value …]      default: ucit hide
#   bash scripts/train_all.sh mini-ucit hide-mini model=mini
# On every GPU of this machine (CUDA_VISIBLE_DEVICES and NPROC=n choose); machines: see launch.sh. Stops at the first
# failure; run it again to go on. It scores all answers too: nothing is left for Eval_all.sh to do.

source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch "${BASH_SOURCE[0]}" run "$@"

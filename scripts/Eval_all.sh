#!/usr/bin/env bash
# Evaluate every trained stage of a run on every task it has seen: `hide-llava eval`.
#   bash scripts/Eval_all.sh [benchmark] [method] [key=value …]      default: ucit hide
# What is scored is skipped, and train_all.sh has scored all of it: this is for runs that were only trained (hide-llava
# train), stopped, or copied here. GPUs and machines: see launch.sh. Stops at the first failure; run it again to go on.

source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch "${BASH_SOURCE[0]}" eval "$@"

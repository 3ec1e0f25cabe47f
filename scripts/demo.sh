#!/usr/bin/env bash
# Set up (once), then train and evaluate six small tasks with HiDe and with sequential LoRA on a CPU:
#   bash scripts/demo.sh                  about 8 minutes on two cores; report in runs/demo/
#   bash scripts/demo.sh --rebuild-base   first train the small base model anew (about two hours)
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [ "${1:-}" = "--rebuild-base" ]; then
  shift
  python scripts/build_base.py
fi
hide-llava demo "$@"

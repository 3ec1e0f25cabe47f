"""Rebuild the small LLaVA base and its CLIP text tower from a seed.

    python scripts/build_base.py

Takes about two hours on two CPU cores that have bf16 instructions, and longer on others. Stopped, the same command goes on.
The finished folder replaces --out only at the end.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import torch
from mini_base.base_training import BaseTrainer


def main() -> None:
    """Parse the command line, train, report, and move the result into place."""
    parser = argparse.ArgumentParser(description="Rebuild the small LLaVA base from a seed.")
    parser.add_argument("--out", type=Path, default=Path("hide_llava/assets/mini"), help="folder to (re)place")
    parser.add_argument("--steps", type=int, default=3000, help="language steps; sight gets a third, words a sixth as many more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of the CPU (default %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scratch = args.out.parent / f".{args.out.name}-seed{args.seed}-steps{args.steps}"  # what a stopped call left
    scratch.mkdir(parents=True, exist_ok=True)
    trainer = BaseTrainer(scratch, args.seed, log=lambda line: print(line, flush=True))
    trainer.sight(max(1, args.steps // 3))
    trainer.words_first(max(1, args.steps // 6))
    trainer.language(args.steps)
    accuracy = trainer.accuracy()
    for family, value in accuracy.items():
        print(f"{family:14s} {100 * value:5.1f} %")
    seconds = round(trainer.seconds())
    trainer.save({"seed": args.seed, "steps": args.steps, "seconds": seconds, "accuracy": accuracy})
    shutil.rmtree(args.out, ignore_errors=True)
    scratch.rename(args.out)
    print(f"{args.out}: {seconds} s, held-out exact match {100 * accuracy['all']:.1f} %")


if __name__ == "__main__":
    main()

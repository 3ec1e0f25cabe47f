"""Rebuild the small LLaVA base and its CLIP text tower from a seed.

    python scripts/build_base.py --out hide_llava/assets/mini --threads 2

Takes about half an hour on one CPU core. The finished folder replaces --out only at the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import torch
from mini_base.base_training import BaseTrainer


def main() -> None:
    """Parse the command line, train, report, and move the result into place."""
    parser = argparse.ArgumentParser(description="Rebuild the small LLaVA base from a seed.")
    parser.add_argument("--out", type=Path, default=Path("hide_llava/assets/mini"), help="folder to (re)place")
    parser.add_argument("--steps", type=int, default=3000, help="language steps; sight gets a third as many more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--continue-from", type=Path, default=None, help="an earlier base folder to train further")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    started = time.time()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".base-", dir=args.out.parent))
    try:
        trainer = BaseTrainer(scratch, args.seed, log=lambda line: print(line, flush=True))
        before = {}
        if args.continue_from:
            trainer.continue_from(args.continue_from)
            before = json.loads((args.continue_from / "base.json").read_text())
        trainer.sight(max(1, args.steps // (8 if before else 3)))
        trainer.language(args.steps)
        accuracy = trainer.accuracy()
        for family, value in accuracy.items():
            print(f"{family:14s} {100 * value:5.1f} %")
        seconds = round(time.time() - started)
        steps = args.steps + before.get("steps", 0)
        seconds += before.get("seconds", 0)
        trainer.save({"seed": args.seed, "steps": steps, "seconds": seconds, "accuracy": accuracy})
        scratch.chmod(0o755)
        shutil.rmtree(args.out, ignore_errors=True)
        scratch.rename(args.out)
        print(f"{args.out}: {seconds} s, held-out exact match {100 * accuracy['all']:.1f} %")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()

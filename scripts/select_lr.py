"""Choose a learning rate per method on the validation split: same candidates, same budget for every method.

    python scripts/select_lr.py --methods lora-mini hide-mini --rates 1e-3 2e-3 5e-3 1e-2 [key=value …]

Runs (or resumes) every (method, rate) on mini-ucit with eval.split=val, seed 0, under runs/select/, and prints Last on
the validation split. The rate with the highest Last goes into the method's YAML by hand. The test split is never read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hide_llava.config import compose
from hide_llava.pipeline import run, say
from hide_llava.quiet import quiet
from hide_llava.results.aggregates import avg, last
from hide_llava.results.run_reader import read_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--rates", nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/select"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args, rest = parser.parse_known_args()
    quiet()
    rows = []
    for method in args.methods:
        for rate in args.rates:
            folder = args.out / f"{method}-{rate}{''.join('-' + o.replace('/', '_') for o in [*args.overrides, *rest])}"
            words = ["benchmark=mini-ucit", "model=mini", "train=mini", f"method={method}"]
            words += [f"train.learning_rate={rate}"]
            say(f"=== {method} at {rate}")
            run(compose([*words, "eval.split=val", "seed=0", f"output={folder}", *args.overrides, *rest]), report=False)
            matrix = read_run(folder).matrix
            rows.append((method, rate, last(matrix), avg(matrix)))
            say(f"{method} at {rate}: Last {rows[-1][2]}, Avg {rows[-1][3]}")
    print(f"\n{'method':<20} {'rate':>8} {'Last':>8} {'Avg':>8}   (validation split)")
    for method, rate, last_value, avg_value in rows:
        print(f"{method:<20} {rate:>8} {last_value:>8.2f} {'' if avg_value is None else f'{avg_value:8.2f}'}")


if __name__ == "__main__":
    main()

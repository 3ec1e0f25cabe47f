"""Why does HiDe keep or lose a task? Ablations of one trained run that differ at inference only.

    python scripts/explain_fusion.py runs/demo/hide-delta_sum

For the last stage on every task: the fusion as configured, factor-sum, no fusion at all (every layer expanded) and the
task id given (each expert alone). Nothing is trained. How large the weight changes are: `hide-llava analyze weights RUN`.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

from hide_llava.demo import reuse_stages
from hide_llava.pipeline import Pipeline
from hide_llava.quiet import quiet
from hide_llava.results.matrix import last_row
from hide_llava.results.run_reader import read_run
from hide_llava.training.run import Run
from hide_llava.training.run_folder import RunFolder
from hide_llava.training.session import Session


def variants(depth: int) -> dict[str, dict]:
    every = list(range(depth))
    return {
        "as trained": {},
        "factor-sum fusion": {"fusion": "factor_sum"},
        "fusion weight 1 (the paper)": {"fusion_weight": 1.0},
        "fusion weight 1/3": {"fusion_weight": 1 / 3},
        "fusion weight 1/T": {"fusion_weight": None},
        "no fusion: every layer expanded": {"expanded_layers": every},
        "every layer expanded, top1 routing": {"expanded_layers": every, "routing": "top1"},
        "each expert alone (task id given)": {"expanded_layers": every, "routing": "oracle"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    args = parser.parse_args()
    quiet()
    config = RunFolder(args.run).config
    for label, change in variants(Session(Run(config, args.run)).core.num_layers).items():
        changed = copy.deepcopy(config)
        changed.method = {**config.method, **change}
        changed.output = str(
            args.run / "ablation" / label.replace(" ", "-").replace(":", "").replace(",", "").replace("/", "-")
        )
        run = Run(changed)
        reuse_stages(args.run, run)
        Pipeline(run).evaluate(run.stages[-1])
        row = last_row(read_run(Path(changed.output)).matrix)
        print(f"{label:<36} " + " ".join(f"{v:7.2f}" for v in row) + f"   Last {sum(row) / len(row):.2f}")


if __name__ == "__main__":
    main()

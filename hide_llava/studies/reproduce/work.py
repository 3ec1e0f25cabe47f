"""Which ablations are made of which runs, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hide_llava.distributed import is_main
from hide_llava.errors import UserError
from hide_llava.pipeline import Stages
from hide_llava.results.drawing import require_matplotlib
from hide_llava.results.report import write_report
from hide_llava.results.run_reader import read_run
from hide_llava.studies.registry import results_folder
from hide_llava.studies.reproduce.ablations import ABLATIONS, EVERY, NUMBERS
from hide_llava.studies.reproduce.beside import leakage, orders
from hide_llava.studies.reproduce.similarity import similarity
from hide_llava.studies.reproduce.variants import answer, facts_of
from hide_llava.studies.reproduce.write import write_ablation, write_beside, write_similarity


def reproduce_hide(runs: list[Path], only: list[str], stages: Stages, samples: int, again: bool) -> Iterator[str]:
    """Make those ablations (none named: all) of the first run of HiDe among `runs`; yields what is to be told.

    stages, again: of `grid.evaluate`; samples: of `similarity`.

    Raises:
        UserError: no finished run of HiDe, matplotlib is missing, or an ablation that was named needs other runs.
    """
    require_matplotlib()
    names = list(dict.fromkeys(NUMBERS.get(name, name) for name in only)) or list(EVERY)
    methods = [read_run(run).manifest.get("method") for run in runs]
    if "hide" not in methods:
        raise UserError(f"{', '.join(map(str, runs))}: none is a run of method hide, whose figures these are.")
    folder = runs[methods.index("hide")].resolve()
    facts_of(folder)
    others = [run for run in runs if run.resolve() != folder]
    place = results_folder(folder, "reproduce")
    variants = [name for name in names if name in ABLATIONS]
    rows = answer(folder, variants, stages, again) if variants else {}
    if not is_main():
        return
    for name in names:
        if name in ABLATIONS:
            yield write_ablation(name, rows[name], place / name)
        elif name == "cka" and len(read_run(folder).manifest["stages"]) > 1:
            yield write_similarity(similarity(folder, samples), place / name)
        elif name != "cka":
            table = orders(folder, others) if name == "orders" else leakage(folder, others)
            if isinstance(table, str) and only:
                raise UserError(table)
            yield table if isinstance(table, str) else write_beside(name, table, place / name)
    yield f"written: {place}\nreport: {write_report(folder)}"

"""What runs already hold that may explain a rank: how far the weights moved, and how often the right expert answered."""

from __future__ import annotations

from statistics import fmean

from hide_llava.errors import UserError
from hide_llava.results.run_reader import StoredRun
from hide_llava.storage import read_json
from hide_llava.studies.registry import results_folder
from hide_llava.studies.router.answers import routed_answers
from hide_llava.studies.router.measures import agreement
from hide_llava.studies.weights.across_layers import LinearChange, WeightReport


def weight_change(run: StoredRun) -> float | None:
    """Percent: the median of ‖Δ‖ / ‖W‖ over the linears, mean over the stages; None where `analyze weights` was not run.

    Raises:
        UserError: what that study wrote cannot be read.
    """
    file = results_folder(run.path, "weights") / "weights.json"
    if not file.is_file():
        return None
    data = read_json(file)
    try:
        data = {name: value for name, value in data.items() if name != "files"}
        report = WeightReport(**{**data, "linears": [LinearChange(**one) for one in data["linears"]]})
        found = [report.typical(update) for update in range(len(report.updates))]
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{file}: is not what `hide-llava analyze weights` writes ({error}); run that study again.") from None
    return None if None in found or not found else 100 * fmean(found)


def routed_right(run: StoredRun) -> float | None:
    """Percent of the answers after the last stage whose own expert had the most weight; None where no expert has an owner.

    Raises:
        UserError: a file of answers is damaged.
    """
    answers = routed_answers(run, len(run.matrix.stages) - 1)
    share = agreement([row for rows in answers.values() for row in rows]).routed
    return None if share is None else 100 * share

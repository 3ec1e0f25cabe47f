"""The agreement of orders as tables, CSV and figures."""

from __future__ import annotations

import re

from hide_llava.results.aggregates import by_name
from hide_llava.results.comparison_text import interval_text, stat_text
from hide_llava.results.grouping import Stat
from hide_llava.results.tables import number
from hide_llava.studies.agreement.correlation import DISTINCT, FEWEST, SAMPLED, Coefficient
from hide_llava.studies.agreement.figures import scatter
from hide_llava.studies.agreement.protocols import Protocol
from hide_llava.studies.agreement.study import Agreed, AgreementStudy, Explained
from hide_llava.studies.findings import Findings

HEADER = ("Published in", "Quantity", "Methods", "ρ", "95 %", "p", "τ-b", "95 %", "p", "Resamples dropped")
NOTE = (
    "ρ: Spearman's, τ-b: Kendall's; 1 the same order, 0 none, −1 the reverse. More is better in all quantities: forgetting is "
    f"turned round. p: two-sided permutation test, over all orders of up to eight methods, over {SAMPLED:,} drawn ones of more; "
    "of four methods it is never below 2/24. Each row is tested by itself: p is not corrected for their number, and rows that "
    "share methods are not independent. 95 %: percentile bootstrap over methods, and over the seeds of each; resamples with "
    f"fewer than {DISTINCT} distinct methods, or tied scores alone, are dropped and counted. Of a handful of methods an interval "
    "says little more than that they are few. Our methods: beside each published rank stands, in brackets, ours among the same "
    "methods."
)


def findings(found: AgreementStudy) -> Findings:
    """All of a study as it is written and printed. Of tables with too few methods the sources are in the JSON alone."""
    enough = [one for one in found.agreed if not one.too_few]
    compared = [one for one in found.protocols if any(agreed.protocol is one for agreed in enough)]
    tables = [(f"Our order on {found.ours.benchmark} and published ones", HEADER, list(map(_row, enough)))] if enough else []
    other = [one for one in found.elsewhere if not one.too_few]
    if other:
        title = f"Our order on {found.ours.benchmark} and in other settings"
        tables.append((title, ("Setting", *HEADER[1:]), list(map(_row, other))))
    if few := _too_few([*found.agreed, *found.elsewhere]):
        tables.append((f"Fewer than {FEWEST} methods in common", ("Published in", "Methods", "Quantities"), few))
    if found.tables:
        rows = [[one.first, one.second, str(one.n), number(one.rho), number(one.tau)] for one in found.tables]
        tables.append(("Published orders among themselves, by Last", ("Published in", "and in", "Methods", "ρ", "τ-b"), rows))
    tables.append(("Our methods", *_methods(found)))
    if compared:
        tables.append(("Where the published numbers are from", *_protocols(compared)))
    return Findings(
        f"Orders of methods: {found.ours.benchmark} and published tables", _lines(found, enough, other), tables, _figures(found),
        _csv(found), found.as_json(), NOTE,
    )  # fmt: skip


def _lines(found: AgreementStudy, enough: list[Agreed], other: list[Agreed]) -> list[str]:
    lines = [_line(one) for one in [*enough, *other] if one.quantity == "last"]
    if not enough:
        lines.insert(0, f"No published table has {FEWEST} methods in common with these runs.")
    if found.seeds:
        rhos = [one.rho for one in found.seeds]
        lines.append(f"Our own order by Last, one seed against another, {max(one.n for one in found.seeds)} methods: "
                     f"ρ = {number(min(rhos))} to {number(max(rhos))}.")  # fmt: skip
    if found.ours.unmatched:
        lines.append(f"In no published table here: {', '.join(found.ours.unmatched)}.")
    return [*lines, *found.ours.notes, *found.ours.labels, *found.notes]


def _line(one: Agreed) -> str:
    about = f"{one.protocol.title}{_with(one)}, {len(one.methods)} methods by {by_name(one.quantity).title}"
    if one.found is None:
        return f"{about}: all scores of one side are tied, so there is no order."
    return f"{about}: ρ = {_coefficient(one.found.rho)}; τ-b = {_coefficient(one.found.tau)}."


def _coefficient(value: Coefficient) -> str:
    return f"{number(value.value)} {interval_text(value.interval)}, p {_p(value.p, '= ')}".replace("  ", " ")


def _p(value: float, equal: str = "") -> str:
    return "< 0.001" if value < 0.0005 else f"{equal}{value:.3f}"


def _with(one: Agreed) -> str:
    return " with bounds" if one.bounds else ""


def _row(one: Agreed) -> list[str]:
    head = [one.protocol.title + _with(one), by_name(one.quantity).title, str(len(one.methods))]
    if one.found is None:
        return [*head, "all tied", *[""] * 6]
    both = [text for c in (one.found.rho, one.found.tau) for text in (number(c.value), interval_text(c.interval), _p(c.p))]
    return [*head, *both, f"{one.found.dropped} of {one.found.dropped + one.found.resamples}"]


def _too_few(agreed: list[Agreed]) -> list[list[str]]:
    """Quantities that have the same methods share a row."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in agreed:
        if one.too_few and not one.bounds:
            found.setdefault((one.protocol.title, ", ".join(one.methods)), []).append(by_name(one.quantity).title)
    return [[title, methods, ", ".join(quantities)] for (title, methods), quantities in found.items()]


def _methods(found: AgreementStudy) -> tuple[list[str], list[list[str]]]:
    """Columns that no method fills are left out."""
    titles = [p.title for p in found.protocols if any(p.title in one.ranks for one in found.methods)]
    ordered = sorted(found.methods, key=lambda one: (one.rank is None, one.rank or 0.0, one.name))
    columns: dict[str, list[str]] = {"Our rank": [_rank(one.rank) for one in ordered]}
    columns |= {title: [_ranks(one, title) for one in ordered] for title in titles}
    measured = {"Last": "last", "MFT (when learned)": "learned", "Forgetting": "forgetting",
                "Weights changed by, %": "weights", "Routed right, %": "routed"}  # fmt: skip
    columns |= {title: [stat_text(getattr(one, name)) for one in ordered] for title, name in measured.items()}
    shown = {title: cells for title, cells in columns.items() if any(cells)}
    return ["Method preset", *shown], [[one.name, *(cells[k] for cells in shown.values())] for k, one in enumerate(ordered)]


def _rank(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _ranks(one: Explained, title: str) -> str:
    theirs, ours = one.ranks.get(title, (None, None))
    return "" if theirs is None else f"{theirs:g} ({ours:g})"


def _protocols(protocols: list[Protocol]) -> tuple[list[str], list[list[str]]]:
    rows = [[
        one.title, one.name, one.model, ", ".join(f"{name} ({method})" for method, name in one.printed.items()),
        ", ".join(one.others), "; ".join(one.tables), "; ".join(one.evidence), "; ".join(one.sources),
        "; ".join(filter(None, [one.because, *one.notes])),
    ] for one in protocols]  # fmt: skip
    return ["Published in", "Protocol", "Model", "Methods (here)", "Others", "Tables", "Evidence", "Sources", "Note"], rows


def _figures(found: AgreementStudy) -> dict:
    """One for each protocol by Last; where bounds were asked for, with them."""
    every = [*found.agreed, *found.elsewhere]
    last = {one.protocol.title: one for one in every if one.quantity == "last" and not one.too_few}
    return {f"last-{re.sub('[^a-z0-9]+', '-', title.lower()).strip('-')}": (f"Last: {title} and {found.ours.benchmark}",
            lambda theme, one=one: scatter(found, one, theme)) for title, one in last.items()}  # fmt: skip


def _csv(found: AgreementStudy) -> dict[str, tuple]:
    agreement, every = [], [*found.agreed, *found.elsewhere]
    for one in every:
        c = one.found
        parts = [] if c is None else [v for x in (c.rho, c.tau) for v in (x.value, *_limits(x), x.p)]
        agreement.append([one.protocol.title, one.protocol.benchmark, one.protocol.model, one.quantity, one.bounds,
                          len(one.methods), " ".join(one.methods), *(parts or [None] * 8),
                          *([c.orders, c.exact, c.resamples, c.dropped] if c else [None] * 4)])  # fmt: skip
    values = [[one.protocol.title, one.quantity, method, one.protocol.values[method][one.quantity], one.standing[method].name,
               *_parts(one.standing[method].stat(one.quantity))]
              for one in every if not one.bounds for method in one.methods]  # fmt: skip
    header, rows = _methods(found)
    return {
        "agreement": (["protocol", "benchmark", "model", "quantity", "bounds", "n", "methods", "rho", "rho_low", "rho_high",
                       "rho_p", "tau_b", "tau_b_low", "tau_b_high", "tau_b_p", "orders", "exact", "resamples", "dropped"],
                      agreement),
        "values": (["protocol", "quantity", "method", "published", "preset", "ours", "sd", "runs"], values),
        "methods": (header, rows),
    }  # fmt: skip


def _limits(value: Coefficient) -> tuple[float | None, float | None]:
    return (value.interval.low, value.interval.high) if value.interval else (None, None)


def _parts(value: Stat) -> tuple[float, float | None, int]:
    return value.mean, value.sd, value.count

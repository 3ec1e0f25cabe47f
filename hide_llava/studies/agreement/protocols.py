"""Orders of methods to compare ours with: what one protocol printed of each method that this library has."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from hide_llava.results.published import Entry, Published, plain

QUANTITIES = ("last", "avg", "maa", "mft", "bwt", "forgetting")
BOUNDS = frozenset({"zero_shot", "multitask", "individual"})  # no learner of a sequence: they lie below or above all of those
# A factor that is the same for all methods changes no order, so a BWT may be compared whatever it was divided by. An Avg
# without a definition may not: the mean over rows and that over columns put methods in different orders.
ORDER_ONLY = {"BWT (normaliser not stated)": "bwt"}


@dataclass
class Protocol:
    """One table, or several that are printed side by side, of one benchmark and model.

    title: its short name. values: method of this library → quantity → percent. bounds: those that learn no sequence. printed:
    method → its name in the table, empty of runs of one's own. others: names of methods that this library lacks. joined: the
    protocols that it puts together, and because: the reason; of one table both are empty.
    """

    name: str
    benchmark: str
    model: str
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    bounds: list[str] = field(default_factory=lambda: sorted(BOUNDS))
    printed: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    evidence: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    joined: list[str] = field(default_factory=list)
    because: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        self.title = f"{re.split('[:,;]', self.name)[0]}, {self.benchmark}"  # whose protocol, without its details

    def of(self, quantity: str, bounds: bool = False) -> dict[str, float]:
        """{method: percent} of those that have the quantity, in the table's order."""
        return {method: values[quantity] for method, values in self.values.items()
                if quantity in values and (bounds or method not in self.bounds)}  # fmt: skip


def protocols(published: Published) -> list[Protocol]:
    """Every protocol with a number of a method that this library has, those that are joined last.

    Ablations, and figures that nobody could read in their source, are left out. Where one protocol prints a number of a
    method twice, the first of the file counts, and `notes` tell.
    """
    usable = [entry for entry in published.entries if entry.kind == "result" and entry.verified]
    found: dict[tuple[str, str, str], Protocol] = {}
    for entry in usable:
        key = (entry.protocol, entry.benchmark, entry.model)
        _add(found.setdefault(key, Protocol(*key)), entry, published)
    for joined in published.joined:
        whole = Protocol(joined.name, joined.benchmark, joined.model, joined=list(joined.protocols), because=joined.because)
        for protocol in joined.protocols:
            for entry in usable:
                if (entry.protocol, entry.benchmark, entry.model) == (protocol, joined.benchmark, joined.model):
                    _add(whole, entry, published)
        found[joined.name, joined.benchmark, joined.model] = whole
    kept = [protocol for protocol in found.values() if protocol.values]
    titles = Counter(protocol.title for protocol in kept)
    for protocol in kept:
        if titles[protocol.title] > 1:
            protocol.title += f", {protocol.model}"
    return kept


def _add(protocol: Protocol, entry: Entry, published: Published) -> None:
    numbers = {key: value for key, value in entry.values.items() if key in QUANTITIES}
    numbers |= {ORDER_ONLY[name]: value for name, value in entry.other.items() if name in ORDER_ONLY}
    method = published.methods.get(plain(entry.method))
    for kept, new in ((protocol.tables, f"{entry.paper}, {entry.table}"), (protocol.evidence, entry.evidence),
                      *((protocol.sources, source) for source in entry.source)):  # fmt: skip
        if numbers and new not in kept:
            kept.append(new)
    if not numbers:
        return
    if method is None:
        if entry.method not in protocol.others:
            protocol.others.append(entry.method)
        return
    if entry.note and entry.note not in protocol.notes:
        protocol.notes.append(entry.note)
    protocol.printed.setdefault(method, entry.method)
    kept = protocol.values.setdefault(method, {})
    for quantity, value in numbers.items():
        if abs(kept.setdefault(quantity, value) - value) > 0.005:  # half of the last digit that papers print
            protocol.notes.append(f"{entry.method} has {quantity} {kept[quantity]:g} and {value:g}; the first counts")

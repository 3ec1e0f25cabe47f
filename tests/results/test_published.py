"""The published figures: complete, consistent with the formulas, and refused when damaged."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from hide_llava.config import compose
from hide_llava.errors import UserError
from hide_llava.results.aggregates import aggregates
from hide_llava.results.matrix import mean
from hide_llava.results.published import FILE, load, of_benchmark, plain, spread, task_spread

ROUNDING = 0.0101  # two printed decimals, some papers cut instead of rounding


def test_per_task_values_average_to_the_printed_numbers() -> None:
    checked = 0
    for entry in load()[0]:
        for key, values in (("last", entry.last_per_task), ("avg", entry.avg_per_task)):
            if mean(values) is not None and key not in entry.computed and key in entry.values:
                assert entry.values[key] == pytest.approx(mean(values), abs=ROUNDING), (entry.label, entry.method)
                checked += 1
    assert checked >= 28


def test_matrices_give_the_printed_aggregates() -> None:
    checked = 0
    for entry in load()[0]:
        if entry.matrix is None or not entry.matrix.sequential:
            continue
        for key, value in aggregates(entry.matrix).items():
            if value is not None:
                assert entry.values[key] == pytest.approx(value, abs=ROUNDING), (entry.method, key)
                checked += key not in entry.computed
    assert checked == 6  # Hyper-LLaVA prints MAA, MFT and BWT of two matrices


def test_mcitlibs_bwt_is_the_one_over_t_minus_one() -> None:
    """MFN − MFT times 6/5 for six tasks."""
    rows = [e for e in load()[0] if "bwt" in e.values and "mft" in e.values and e.matrix is None]
    assert len(rows) == 2
    for entry in rows:
        expected = (entry.values["last"] - entry.values["mft"]) * 6 / 5
        assert entry.values["bwt"] == pytest.approx(expected, abs=0.02)


def test_spreads_keep_what_papers_disagree_on() -> None:
    groups = of_benchmark("ucit")
    hide = groups["hide", "LLaVA-1.5-7B"]
    last = spread([entry.values.get("last") for entry in hide])
    assert (round(last.low, 2), round(last.high, 2), last.count) == (62.29, 67.69, 3)
    assert {e.protocol for e in hide} >= {"HiDe paper", "RECAP paper", "third-party rerun"}
    tune = spread([e.values.get("last") for e in groups["lora", "LLaVA-1.5-7B"]])
    assert (tune.low, tune.high) == (48.12, 61.24)
    assert task_spread(hide, {"imagenet-r"}).high == 84.03 and task_spread(hide, {"no-such"}) is None
    assert all(model in ("LLaVA-1.5-7B", "InternVL-Chat-7B") for _, model in groups)
    assert ("Merge all layers 1-32", "LLaVA-1.5-7B") not in groups  # an ablation is no method
    assert len([k for k in groups if k[0] == "hide"]) == 1 and of_benchmark("mini-ucit") == {}


def test_definitions_are_not_mixed() -> None:
    """Row means never stand under `avg`, and a BWT whose normaliser nobody states under no name that has one."""
    entries = load()[0]
    assert all(
        "avg" not in e.values for e in entries if e.protocol.startswith(("BranchLoRA", "LLaVA-DyMoE", "SMoLoRA"))
    )
    unstated = [e for e in entries if any("not stated" in name for name in e.other)]
    assert len(unstated) > 25 and not any("bwt" in e.values for e in unstated if "MCITlib" not in e.protocol)
    assert plain("CLEVR-Math") == "clevrmath"
    one = next(e for e in entries if not e.verified)
    assert "not verified" in one.label and dataclasses.replace(one, verified=True).label in one.label


def test_every_row_says_where_it_comes_from() -> None:
    for entry in load()[0]:
        assert entry.paper and entry.table and entry.protocol and entry.evidence and entry.source and entry.model
        assert isinstance(entry.verified, bool)
        assert entry.values or entry.other or entry.matrix or any(v is not None for v in entry.last_per_task)


def test_names_and_presets_are_those_of_this_library() -> None:
    """Each preset that stands for a method is one of that method, and each printed name stands in a table."""
    published = load()
    ours = set(published.methods.values())
    assert ours == set(published.presets.values()) and {"hide-mini", "reglora"} < set(published.presets)
    for preset, method in published.presets.items():
        assert compose(["benchmark=mini-ucit", "model=mini", f"method={preset}"]).method["name"] == method
    in_tables = {plain(entry.method) for entry in published.entries}
    assert all(name in in_tables for name, method in published.methods.items() if name != plain(method))
    assert not {"ewc-online", "lora-attention", "merge-ties"} & set(published.presets)  # variants of their own


def test_joined_protocols_do_not_contradict_each_other() -> None:
    """Of one method they print one number, or they are no common comparison."""
    published = load()
    for joined in published.joined:
        seen: dict[tuple[str, str], float] = {}
        for entry in published.entries:
            at = (entry.benchmark, entry.model, entry.kind)
            if at == (joined.benchmark, joined.model, "result") and entry.protocol in joined.protocols:
                for key, value in entry.values.items():
                    assert seen.setdefault((plain(entry.method), key), value) == pytest.approx(value, abs=ROUNDING)
        assert len(seen) > 5 and joined.because


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t["tables"][0].pop("source"), "source"),
        (lambda t: t["tables"][0].update(colour="red"), "colour"),
        (lambda t: t["tables"][0]["rows"][0].update(score=1.0), "score"),
        (lambda t: t["tables"][0]["rows"][0].update(last="64.19"), "not a number"),
        (lambda t: t["tables"][0]["rows"][0].update(last_per_task=[1.0]), "1 values for 6 tasks"),
        (lambda t: t["tables"][0]["source"].append("nobody"), "unknown source nobody"),
        (lambda t: t.pop("sources"), "expected the keys"),
        (lambda t: t["same_preset"].update(nobody=["nobody-mini"]), "nobody is no method of same_method"),
        (lambda t: t["joined"][0].pop("because"), "joined: each needs the keys because"),
        (lambda t: t["joined"][0]["protocols"].append("Nobody's paper"), "has the protocol 'Nobody's paper'"),
    ],
)
def test_a_damaged_file_is_refused(change, message: str, tmp_path: Path) -> None:
    tree = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    change(tree)
    (tmp_path / "published.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load(tmp_path / "published.yaml")
    (tmp_path / "broken.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "broken.yaml")

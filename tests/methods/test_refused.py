"""A wrong hyper-parameter is refused when the configuration is read, with field, value and allowed range: every method."""

import dataclasses
import re

import pytest

import hide_llava.methods.all  # noqa: F401
from hide_llava.errors import UserError
from hide_llava.methods.base import REGISTRY, method_config
from hide_llava.values import rules
from tests.methods.refused import assert_refused

METHODS = sorted(name for name in REGISTRY if not name.startswith("test_"))
FREE = {"expanded_layers", "inquiries", "descriptions", "forward_past"}  # checked against the model or a file; a bool
BY_HAND = (  # see below
    "must be even", "needs a value for each", "must be a whole number", "must be a decoder layer", "must not be 0 together",
)  # fmt: skip


def wrong_values(words: str, default: object, kind: type) -> list[object]:
    """Values of type `kind` just outside what a rule allows."""
    if words.startswith("expected one of "):
        return ["no-such-option"]
    numbers = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", words.replace("inf", ""))]
    if words.startswith("must be at least "):
        return [kind(numbers[0] - 1)]
    if words.startswith("must be at most "):
        return [kind(numbers[0] + 1)]
    if words.startswith("must be below "):
        return [kind(numbers[0])]
    if words.startswith("must be a multiple of "):
        return [kind(default + 1)]
    assert words.startswith("must be in "), f"no wrong value is known for the rule '{words}'"
    below = 0 if words.startswith("must be in (0") else numbers[0] - 1
    return [kind(below), *([kind(numbers[-1] + 1)] if "inf" not in words else [])]


@pytest.mark.parametrize("method", METHODS)
def test_every_rule_of_every_field_is_enforced(method: str) -> None:
    kind = REGISTRY[method].Config
    defaults, known = kind(), rules(kind)
    fields = {f.name: int if f.type.startswith("int") else float for f in dataclasses.fields(kind)}
    assert fields.keys() - {name for name, _ in known} <= FREE, "a field that takes any value"
    for name, words in known:
        default = getattr(defaults, name)
        if isinstance(default, dict) or words.startswith(BY_HAND):
            continue
        for value in wrong_values(words, default, fields[name]):
            assert_refused(method, name, value, "" if name in ("rank", "top_k") else words)
    for name in {"rank", "top_k"} & fields.keys():
        assert_refused(method, name, -1, "must be")


@pytest.mark.parametrize(
    "method, field, value, says, others",
    [
        ("moelora", "rank", 12, "must be a multiple of experts=8", {}),
        ("clmoe", "top_k", 9, "must be at most experts=8", {}),
        ("clmoe", "top_k", 3, "must be at most experts=2", {"experts": 2}),
        ("branchlora", "top_k", 5, "must be at most branches=4", {"branches": 4}),
        ("branchlora", "freeze", 4, "must be below branches=4", {"branches": 4}),
        ("hide", "image_weight", 0.0, "must not be 0 together with text_weight", {"text_weight": 0.0}),
        ("clmoe", "task_gate", "oracle", "reference=script answers without a task gate", {"reference": "script"}),
        ("smolora", "experts", 3, "must be even", {"rank": 3}),
        ("smolora", "rank", 12, "must be a multiple of experts=8", {}),
        ("l2p", "top_k", 11, "must be in [1, size=10]", {}),
        ("replay", "buffer", 0.0, "must be in (0, inf)", {}),
        ("replay", "buffer", 2.5, "must be a whole number of records", {}),
        ("replay", "buffer", float("inf"), "must be in (0, inf)", {}),
        ("lora", "alpha", float("inf"), "must be", {}),
        ("olora", "strength", float("inf"), "must be at least 0 and finite", {}),
        ("llavac", "layer", 0, "must be a decoder layer from 1 on", {}),
        ("same", "reference", "authors", "expected one of none, prism", {}),
        ("clmoe", "reference", "prism", "expected one of none, script", {}),
        ("sefe", "reference", "mcitlib", "expected one of none, authors", {}),
        ("modalprompt", "reference", "paper", "expected one of none, mcitlib", {}),
        ("hide", "slots", 0, "must be at least 1", {}),
        ("hide", "temperature", 0.0, "must be in (0, inf)", {}),
    ],
)
def test_rules_between_fields(method: str, field: str, value: object, says: str, others: dict) -> None:
    assert_refused(method, field, value, says, **others)


def test_a_wrong_momentum_is_named_by_its_role() -> None:
    wrong = {"shared": (1.5, "momentum.shared=1.5: must be in [0, 1]"),
             "oldest": (0.5, "'oldest': 0.5}: needs a value for each of shared, old, new, neither")}  # fmt: skip
    for role, (value, says) in wrong.items():
        with pytest.raises(UserError, match=re.escape(says)):
            method_config({"name": "clmoe", "momentum": {role: value}})

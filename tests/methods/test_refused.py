"""A wrong hyper-parameter is refused when the configuration is read, with field, value and allowed range: every method."""

import re

import pytest
from pydantic.fields import FieldInfo

import hide_llava.methods.all  # noqa: F401
from hide_llava.errors import UserError
from hide_llava.methods.base import REGISTRY
from hide_llava.methods.registry import method_config
from hide_llava.settings import bounds, expected, kinds
from tests.methods.refused import assert_refused

METHODS = sorted(name for name in REGISTRY if not name.startswith("test_"))
FREE = {"expanded_layers", "inquiries", "descriptions", "forward_past"}  # checked against the model or a file; a bool
BY_HAND = {"layer", "momentum", "task_shrinkage", "task_subset"}  # below, or in the method's tests: it is no range of a number


def wrong_values(field: FieldInfo) -> dict[object, str]:
    """Values of the field's type just outside what it allows, and what is said of each."""
    number = float if float in kinds(field.annotation) else int
    limits = {k: getattr(limit, k) for limit in field.metadata for k in ("ge", "gt", "le", "lt") if hasattr(limit, k)}
    just_outside = {"ge": -1, "gt": 0, "le": 1, "lt": 0}
    wrong = {number(value + just_outside[k]): f"must be {bounds(field)}" for k, value in limits.items()}
    if number is float and wrong:
        wrong |= {float("inf"): "must be a finite number", float("nan"): "must be a finite number"}
    chosen = not wrong and not {int, float} & set(kinds(field.annotation))
    return wrong | ({"no-such-option": f"expected {expected(field.annotation)}"} if chosen else {})


@pytest.mark.parametrize("method", METHODS)
def test_every_range_of_every_field_is_enforced(method: str) -> None:
    fields = REGISTRY[method].Config.model_fields
    for name, field in fields.items():
        if name in FREE | BY_HAND:
            continue
        wrong = wrong_values(field)
        assert wrong, f"{name} takes any value"
        for value, says in wrong.items():
            assert_refused(method, name, value, says)


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
        ("l2p", "top_k", 11, "must be at most size=10", {}),
        ("replay", "buffer", 0.0, "must be greater than 0", {}),
        ("replay", "buffer", 2.5, "must be a whole number of records", {}),
        ("replay", "buffer", float("inf"), "must be a finite number", {}),
        ("replay", "buffer", 101, "must be at most 100, with unit=percent", {"unit": "percent"}),
        ("lora", "alpha", float("inf"), "must be a finite number", {}),
        ("olora", "strength", float("inf"), "must be a finite number", {}),
        ("llavac", "layer", 0, "must be a decoder layer from 1 on", {}),
        ("same", "reference", "authors", "expected one of none, prism", {}),
        ("clmoe", "reference", "prism", "expected one of none, script", {}),
        ("sefe", "reference", "mcitlib", "expected one of none, authors", {}),
        ("modalprompt", "reference", "paper", "expected one of none, mcitlib", {}),
        ("hide", "slots", 0, "must be at least 1", {}),
        ("hide", "temperature", 0.0, "must be greater than 0", {}),
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

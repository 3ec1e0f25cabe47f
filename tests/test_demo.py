"""What the demo says at its end; that it runs is tested by its commands in README."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hide_llava
from hide_llava.config import compose
from hide_llava.demo import METHODS, findings
from hide_llava.errors import UserError
from hide_llava.results.matrix import AccuracyMatrix

TASKS = ["x", "y"]
ASSETS = Path(hide_llava.__file__).parent / "assets" / "mini"


def ended(score: float) -> AccuracyMatrix:
    return AccuracyMatrix.from_rows([[score], [score, score]], TASKS)


def test_three_sentences_with_the_measured_numbers() -> None:
    lora = AccuracyMatrix.from_rows([[80.0], [30.0, 90.0]], TASKS)
    runs = {"zero_shot": AccuracyMatrix.from_rows([[10.0, 20.0]], TASKS), "lora": lora, "hide": ended(70.0),
            "hide-expand_all": ended(75.0)}  # fmt: skip
    first, second, third = findings(runs)
    assert "scores 15.0 of 100 before it is taught, and 85.0 on each task" in first
    assert "has 60.0 at the end: 50.0 points" in second and "most of x (80 before, 30 after)" in second
    assert "ends at 70.0, 10.0 points above one LoRA" in third and third.endswith("ends at 75.0, so fusing costs 5.0 points.")
    *_, third = findings(runs | {"hide": ended(50.0), "hide-expand_all": ended(48.0)})
    assert "10.0 points below one LoRA" in third and "fusing costs nothing (it gains 2.0)" in third
    for routed in (50.0, 50.04, 49.97):
        assert findings(runs | {"hide": ended(50.0), "hide-expand_all": ended(routed)})[2].endswith("so fusing costs nothing.")


def test_an_unfinished_run_has_no_findings() -> None:
    runs = dict.fromkeys(METHODS, ended(50.0)) | {"lora": AccuracyMatrix.from_rows([[80.0], [None, None]], TASKS)}
    with pytest.raises(UserError, match="not evaluated to their end"):
        findings(runs)


def test_hide_is_the_papers_and_the_second_one_routes_in_every_layer() -> None:
    """The list of layers is that of the shipped model."""
    words = ["benchmark=mini-ucit", "model=mini", "train=mini"]
    (paper, routed) = (compose([*words, *METHODS[name]]).method for name in ("hide", "hide-expand_all"))
    assert (paper["fusion"], paper["fusion_weight"], paper["routing"]) == ("delta_sum", 1.0, "softmax_learned")
    assert (paper["temperature"], paper["expanded_layers"]) == (0.1, [-1])
    text = json.loads((ASSETS / "llava" / "config.json").read_text())["text_config"]
    assert routed["expanded_layers"] == list(range(text["num_hidden_layers"]))

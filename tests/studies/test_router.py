"""What is counted of routed answers, on answers written by hand, and what a task's wording gives away."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.colors import to_rgb

from hide_llava.errors import UserError
from hide_llava.results.drawing import LIGHT
from hide_llava.results.run_reader import read_run
from hide_llava.studies.router.answers import Routed, routed_answers, routed_stage
from hide_llava.studies.router.figures import anchors
from hide_llava.studies.router.fingerprint import Example, fingerprint, measure, template_of
from hide_llava.studies.router.measures import agreement, calibration, confusion
from hide_llava.studies.router.oracle import oracle_of
from tests.cli.call import refused
from tests.results.synthetic import TASKS, sequential_run, write


def answer(top: str, weight: float, right: bool | None, answered: bool | None, other: str = "b") -> Routed:
    return Routed("0", "", "", {top: weight, other if top != other else "a": 1 - weight}, top, right, answered)


def test_shares_of_right_answers() -> None:
    rows = [answer("a", 0.9, True, True), answer("a", 0.8, True, False), answer("b", 0.7, False, True),
            answer("b", 0.6, False, False), answer("b", 0.6, False, None), answer("a", 0.9, None, True)]  # fmt: skip
    found = agreement(rows)
    assert found.questions == 6 and found.routed_wrong == 3
    assert found.routed == pytest.approx(2 / 5) and found.answered == pytest.approx(3 / 5)
    assert found.if_right == found.if_wrong == 0.5 and found.strict == pytest.approx(1 / 4)
    nothing = agreement([answer("a", 0.9, None, None)])
    assert (nothing.routed, nothing.if_right, nothing.strict) == (None, None, None)


def test_confusion_counts_top_experts_and_means_weights() -> None:
    found = confusion({"one": [answer("a", 0.75, True, True), answer("b", 1.0, False, True)]}, order=["b", "absent"])
    assert (found.experts, found.counts) == (["b", "a"], [[1, 1]])
    assert found.weights[0] == pytest.approx([(0.25 + 1.0) / 2, 0.75 / 2])


def test_calibration_is_the_mean_distance_in_bins() -> None:
    """Ten answers of weight 0.95 of which eight are right, ten of 0.55 of which five are: (0.15 + 0.05) / 2."""
    rows = [answer("a", 0.95, k < 8, None) for k in range(10)] + [answer("a", 0.55, k < 5, None) for k in range(10)]
    found = calibration(rows)
    assert found.error == pytest.approx(0.1) and not found.hard and found.mean_weight == pytest.approx(0.75)
    assert [count for _, _, count in found.bins] == [10, 10]
    hard = calibration([answer("a", 1.0, True, None), answer("b", 1.0, False, None)])
    assert hard.hard and hard.error == pytest.approx(0.5)
    assert calibration([answer("a", 1.0, None, None)]) is None


def test_an_expert_is_right_for_the_task_that_it_belongs_to(tmp_path: Path) -> None:
    run = sequential_run(tmp_path)
    answers = routed_answers(read_run(run), 5)
    assert list(answers) == [task for task, _, _ in TASKS] and all(row.right for rows in answers.values() for row in rows)
    assert routed_stage(read_run(run), None) == (5, answers) and routed_stage(read_run(run), 2)[0] == 1
    refused("analyze", "router", run, "--stage", 7, says=("--stage 7", "stages 1 to 6"))
    for file in run.glob("eval/*/*/predictions.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        write(file, "".join(json.dumps({**row, "routing": {}}) + "\n" for row in rows))
    with pytest.raises(UserError, match="does not route"):
        routed_stage(read_run(run), None)


def test_colours_of_anchors_begin_at_the_pair_that_is_least_alike() -> None:
    """Cosines of anchors are all near 1: on a scale from 0 every cell would have the darkest colour."""
    cosines = [[1.0, 0.98, 0.97], [0.98, 1.0, 0.99], [0.97, 0.99, 1.0]]
    patches = anchors(SimpleNamespace(anchors={"text": (["a", "b", "c"], cosines)}), "text", LIGHT).axes[0].patches
    drawn = [patch.get_facecolor()[:3] for patch in patches]
    assert drawn[2] == pytest.approx(to_rgb(LIGHT.ramp[0])) and drawn[0] == pytest.approx(to_rgb(LIGHT.ramp[-1]))
    alone = anchors(SimpleNamespace(anchors={"text": (["a"], [[1.0]])}), "text", LIGHT)
    assert len(alone.axes[0].patches) == 1


def test_the_oracle_is_the_variant_of_routing_alone(tmp_path: Path) -> None:
    run, other = sequential_run(tmp_path), sequential_run(tmp_path / "other", shift=-2.0)
    assert oracle_of(read_run(run), 5) is None
    for name, changes in (("router=oracle", {"router": "oracle"}), ("a=1", {"router": "oracle", "slots": 9})):
        folder = run / "variants" / name
        folder.parent.mkdir(exist_ok=True)
        folder.symlink_to(other) if name == "a=1" else other.rename(folder)
        other = folder if name == "router=oracle" else other
        write(folder / "variant.json", {"of": "../..", "changes": changes})
        if name == "router=oracle":
            found = oracle_of(read_run(run), 5)
            write(folder / "variant.json", {"of": "../..", "changes": {"routing": "oracle"}})  # as HiDe also says it
            assert oracle_of(read_run(run), 5).rows == found.rows
    assert found.variant == "router=oracle" and [round(row.gap, 6) for row in found.rows] == [10, 8, 6, 4, 2, 0]
    assert found.rows[0].interval is None  # the verdicts of the made-up cells do not average to their scores
    assert oracle_of(read_run(run), 5) is None  # the same folder with one more option changed is no oracle of this run


def examples(rng: random.Random, words: list[str], template: str, size: tuple[int, int] | None, count: int = 40) -> list[Example]:
    return [Example(" ".join(rng.choices(words, k=5)) + f"\n{template}", size) for _ in range(count)]


def test_what_a_template_gives_away() -> None:
    """Same words, same sizes, another template: the text tells all, the rest is chance."""
    rng, words = random.Random(0), [f"w{k}" for k in range(12)]
    lines = {"one": "Answer in a word.", "two": "Give a letter."}
    made = [{task: examples(rng, words, line, (640, 480), n) for task, line in lines.items()} for n in (80, 400)]
    found = measure(*made)
    assert found.accuracy["text"] == {"one": 1.0, "two": 1.0} and found.chance == 0.5
    assert found.mean("content") == pytest.approx(0.5, abs=0.06)
    assert found.accuracy["size"] == {"one": 0.5, "two": 0.5}  # a tie is half right, whichever comes first
    assert found.template == {"one": ["Answer in a word."], "two": ["Give a letter."]}


def test_what_words_and_sizes_give_away() -> None:
    rng, template = random.Random(0), "Answer in a word."
    one, two = ["cat", "dog", "bird", "fish", "cow"], ["three", "seven", "nine", "two", "ten"]
    made = [{"one": examples(rng, one, template, (640, 480)), "two": examples(rng, two, template, None)} for _ in range(2)]
    found = measure(*made)
    assert found.mean("content") == 1 and found.mean("size") == 1 and found.train == {"one": 40, "two": 40}


def test_lines_of_half_the_prompts_are_its_template() -> None:
    assert template_of(["a\nX", "b\nX", "c", "d \n Y"]) == ["X"]
    with pytest.raises(UserError, match="single task"):
        fingerprint([], 10)

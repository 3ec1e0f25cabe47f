"""`eval.backend=vllm`, end to end against a stub that answers with the run's own exports; vLLM itself is not run here."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.call import call, refused
from tests.interop.vllm_stub import VERSION, Engine, Reply, served, stages

FIRST, SECOND = "01-task0", "02-task1"


def exports(run: Path, to: str, root: Path) -> dict[str, Engine]:
    """The run after each of its two stages, exported and served."""
    for stage in ("1", "2"):
        called = call("export", run, "--stage", stage, "--to", to, "--output", root / stage)
        assert called.code == 0, called.err
    return {stage: Engine(root / stage) for stage in ("1", "2")}


@pytest.fixture(scope="module")
def lora(runs: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    return exports(runs["lora-llava"], "hf", tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def hard(runs: dict, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Engine]]:
    """A run of HiDe and its exports with hard routing, answered by our own path too."""
    run = Path(shutil.copytree(runs["hide-llava"], tmp_path_factory.mktemp("hard") / "run"))
    assert call("eval", run, "method.routing=top1").code == 0
    variant = run / "variants" / "routing=top1"
    return run, exports(variant, "vllm", run.parent / "exports")


@pytest.fixture
def again(runs: dict, tmp_path: Path) -> Path:
    """The run of lora, not yet evaluated."""
    run = Path(shutil.copytree(runs["lora-llava"], tmp_path / "run"))
    shutil.rmtree(run / "eval")
    return run


@pytest.fixture
def url(lora: dict[str, Engine]) -> Iterator[str]:
    for engine in lora.values():
        engine.requests.clear()
    with served(stages(lora)) as address:
        yield f"eval.vllm_url={address}/{{stage}}/v1"


def rows(run: Path, stage: str, task: str) -> list[dict]:
    return [json.loads(line) for line in (run / "eval" / stage / task / "predictions.jsonl").read_text().splitlines()]


def score(run: Path, stage: str, task: str) -> dict:
    return json.loads((run / "eval" / stage / task / "score.json").read_text())


def assert_same(one: Path, other: Path) -> None:
    """All answers, their routing and the scores, but not what they were made with."""
    for stage, task in ((FIRST, "task0"), (SECOND, "task0"), (SECOND, "task1")):
        assert rows(one, stage, task) == rows(other, stage, task)
        mine, theirs = score(one, stage, task), score(other, stage, task)
        assert mine["score"] == theirs["score"] and mine["verdicts"] == theirs["verdicts"]


def test_a_folded_method(runs: dict, again: Path, url: str, lora: dict[str, Engine]) -> None:
    called = call("eval", again, "eval.backend=vllm", url)
    assert called.code == 0, called.err
    assert_same(again, runs["lora-llava"])
    found = score(again, SECOND, "task1")
    assert found["backend"] == "vllm" and found["vllm"]["version"] == VERSION
    assert f"answered by vLLM {VERSION}" in found["labels"]
    probe = json.loads((again / "eval" / SECOND / "vllm_probe.json").read_text())
    assert probe["questions"] == probe["agreeing"] == 12 and not probe["differing"]  # all there are
    asked = len(lora["2"].requests)
    assert asked == 24 and call("eval", again, "eval.backend=vllm", url).code == 0
    assert len(lora["2"].requests) == asked  # nothing is asked twice
    refused("eval", again, says=("backend: 'vllm' there, 'own' now", "--again"))
    refused("eval", runs["lora-llava"], "eval.backend=vllm", url, says=("backend: 'own' there, 'vllm' now",))


def test_a_cell_of_before_the_backend_was_known(runs: dict, tmp_path: Path, url: str) -> None:
    """Its scores stay valid for our own path, and are none of vLLM's."""
    run = Path(shutil.copytree(runs["lora-llava"], tmp_path / "run"))
    for name in ("settings.json", "score.json"):
        for file in run.glob(f"eval/*/*/{name}"):
            file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "backend"}))
    before = score(run, SECOND, "task1")
    assert call("eval", run).code == 0 and score(run, SECOND, "task1") == before
    refused("eval", run, "eval.backend=vllm", url, says=("backend: 'own' there, 'vllm' now",))


def test_a_hard_routed_method_names_an_adapter_for_each_question(hard: tuple[Path, dict[str, Engine]]) -> None:
    run, engines = hard
    variant = run / "variants" / "routing=top1"
    own = Path(shutil.copytree(run, run.parent / "own")) / "variants" / "routing=top1"
    shutil.rmtree(variant / "eval")
    with served(stages(engines)) as address:
        called = call("eval", run, "method.routing=top1", "eval.backend=vllm", f"eval.vllm_url={address}/{{stage}}/v1")
    assert called.code == 0, called.err
    assert_same(variant, own)
    chosen = {row["question_id"]: max(row["routing"], key=row["routing"].get) for row in rows(variant, SECOND, "task0")}
    asked = [request["model"] for request in engines["2"].requests]
    assert set(asked) <= {"expert-01", "expert-02"} and set(chosen.values()) <= set(asked)


def test_soft_routing_is_refused(runs: dict, hard: tuple[Path, dict[str, Engine]], tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs["hide-llava"], tmp_path / "run"))
    shutil.rmtree(run / "eval" / SECOND)
    shutil.rmtree(run / "eval" / FIRST)
    with served(stages(hard[1])) as address:
        refused("eval", run, "eval.backend=vllm", f"eval.vllm_url={address}/{{stage}}/v1",
                says=("adds several experts", "one adapter with weight 1", "method.routing=top1"))  # fmt: skip
    assert not (run / "eval" / SECOND).exists()  # of one expert alone nothing is weighed: the first stage was answered
    assert score(run, FIRST, "task0")["backend"] == "vllm"


def test_another_answer_is_not_scored(again: Path, lora: dict[str, Engine]) -> None:
    def other(path: str, request: dict | None) -> Reply:
        status, found = lora["1"](path, request)
        if request is not None and len(lora["1"].requests) % 2:
            found["choices"][0]["message"]["content"] += " indeed"
        return status, found

    lora["1"].requests.clear()
    with served(stages({"1": other})) as address:
        refused("eval", again, "eval.backend=vllm", f"eval.vllm_url={address}/1/v1",
                says=("3 of 6 answers", "nothing is scored", "vllm_probe.json"))  # fmt: skip
    probe = json.loads((again / "eval" / FIRST / "vllm_probe.json").read_text())
    assert probe["agreeing"] == 3 and probe["differing"][0]["vllm"].endswith("indeed")
    assert not list(again.glob("eval/*/*/predictions.jsonl"))


def test_the_export_of_another_stage(again: Path, lora: dict[str, Engine]) -> None:
    with served(stages({"1": lora["1"]})) as address:
        refused("eval", again, "eval.backend=vllm", f"eval.vllm_url={address}/1/v1",
                says=("the export of stage 1", "stage 2 of this run", "serve that one, and run again"))  # fmt: skip
    assert score(again, FIRST, "task0")["backend"] == "vllm"  # what could be answered was


def test_a_server_that_stops_is_gone_on_with(again: Path, runs: dict, lora: dict[str, Engine], url: str) -> None:
    def stopping(after: int) -> Callable[[str, dict | None], Reply]:
        def reply(path: str, request: dict | None) -> Reply:
            if request is not None and len(lora["1"].requests) >= after:
                return 500, {"error": {"message": "EngineCore encountered an issue.", "code": 500}}
            return lora["1"](path, request)

        return reply

    with served(stages({"1": stopping(10)})) as address:  # the probe of 6, and the first batch of 4
        refused("eval", again, "eval.backend=vllm", f"eval.vllm_url={address}/{{stage}}/v1",
                says=("refused with 500", "EngineCore encountered an issue."))  # fmt: skip
    (part,) = again.glob(f"eval/{FIRST}/task0/part-*.jsonl")
    assert len(part.read_text().splitlines()) == 4
    asked = len(lora["1"].requests)
    assert call("eval", again, "eval.backend=vllm", url).code == 0
    assert len(lora["1"].requests) == asked + 6 + 2
    assert_same(again, runs["lora-llava"])


def test_an_adapter_that_is_not_served(hard: tuple[Path, dict[str, Engine]], tmp_path: Path) -> None:
    run = Path(shutil.copytree(hard[0], tmp_path / "run"))
    shutil.rmtree(run / "variants" / "routing=top1" / "eval", ignore_errors=True)

    def bare(path: str, request: dict | None) -> Reply:
        status, found = hard[1]["1"](path, request)
        return status, {**found, "data": found["data"][:1]} if path == "/v1/models" else found

    with served(stages({"1": bare})) as address:
        refused("eval", run, "method.routing=top1", "eval.backend=vllm", f"eval.vllm_url={address}/{{stage}}/v1",
                says=("not the adapter expert-01", "--lora-modules"))  # fmt: skip

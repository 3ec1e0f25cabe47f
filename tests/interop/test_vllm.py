"""`eval.backend=vllm`, end to end against a stub that answers with the run's own exports; vLLM itself is not run here."""

import itertools
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hide_llava.adapters.route import Route
from hide_llava.errors import UserError
from hide_llava.evaluation.vllm import Served
from hide_llava.evaluation.vllm_client import Client
from tests.cli.call import call, refused
from tests.interop.vllm_stub import VERSION, Engine, Reply, served, stages

FIRST, SECOND = "01-task0", "02-task1"
PAGE = Path(__file__).parent.parent.parent / "docs" / "OTHER_HARNESSES.md"


def printed(verb: str, method: str) -> list[list[str]]:
    """The words of the page's command lines of that verb, about the run of that method."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text().split("## vLLM\n")[1], re.DOTALL | re.MULTILINE)
    lines = [shlex.split(line.split("  #")[0]) for block in blocks for line in block.splitlines()]
    return [words[1:] for words in lines if words[:3] == ["hide-llava", verb, f"runs/{method}"]]


def as_printed(folder: Path, lines: list[list[str]]) -> None:
    before = Path.cwd()
    os.chdir(folder)
    try:
        for line in lines:
            called = call(*line)
            assert called.code == 0, f"{line}: {called.err}"
    finally:
        os.chdir(before)


def engines(runs: dict, method: str, folder: Path) -> dict[str, Engine]:
    """A run after each of its two stages, exported as the page says, and answering."""
    (folder / "runs").mkdir()
    (folder / "runs" / method).symlink_to(runs[f"{method}-llava"])
    as_printed(folder, printed("export", method))
    return {stage: Engine(folder / "exports" / f"{method}-{stage}") for stage in ("1", "2")}


@pytest.fixture(scope="module")
def lora(runs: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    return engines(runs, "lora", tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def hide(runs: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    return engines(runs, "hide", tmp_path_factory.mktemp("hide"))


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Ports 8001 and 8002 of the page are stages of the server at an address."""

    def at(address: str) -> None:
        monkeypatch.setattr("hide_llava.evaluation.vllm.Client",
                            lambda url: Client(re.sub(r"^http://127.0.0.1:800(\d)/v1$", rf"{address}/\1/v1", url)))  # fmt: skip

    return at


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


def test_a_folded_method(runs: dict, again: Path, url: str, lora: dict[str, Engine], ports: Callable) -> None:
    (again.parent / "runs").mkdir()
    (again.parent / "runs" / "lora").symlink_to(again)
    ports(url.split("=")[1].removesuffix("/{stage}/v1"))
    as_printed(again.parent, printed("eval", "lora"))
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


def test_a_hard_routed_method_names_an_adapter_for_each_question(
    runs: dict, hide: dict[str, Engine], tmp_path: Path, ports: Callable
) -> None:
    for name in ("runs/hide", "own"):
        shutil.copytree(runs["hide-llava"], tmp_path / name)
    assert call("eval", tmp_path / "own", "method.routing=top1").code == 0
    with served(stages(hide)) as address:
        ports(address)
        as_printed(tmp_path, printed("eval", "hide"))
    variant, own = tmp_path / "runs/hide/variants/routing=top1", tmp_path / "own/variants/routing=top1"
    assert_same(variant, own)
    chosen = {max(row["routing"], key=row["routing"].get) for task in ("task0", "task1") for row in rows(variant, SECOND, task)}
    assert {request["model"] for request in hide["2"].requests} == chosen <= {"expert-01", "expert-02"}


def test_soft_routing_is_refused(runs: dict, hide: dict[str, Engine], tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs["hide-llava"], tmp_path / "run"))
    shutil.rmtree(run / "eval")
    with served(stages(hide)) as address:
        refused("eval", run, "eval.backend=vllm", f"eval.vllm_url={address}/{{stage}}/v1",
                says=("adds several experts", "one adapter with weight 1", "method.routing=top1"))  # fmt: skip
    assert not (run / "eval" / SECOND).exists()  # of one expert alone nothing is weighed: the first stage was answered
    assert score(run, FIRST, "task0")["backend"] == "vllm"


def test_another_answer_is_not_scored(again: Path, lora: dict[str, Engine]) -> None:
    asked = itertools.count()  # of its own: requests come side by side

    def other(path: str, request: dict | None) -> Reply:
        status, found = lora["1"](path, request)
        if request is not None and next(asked) % 2:
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


def test_an_adapter_that_is_not_served(runs: dict, hide: dict[str, Engine], tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs["hide-llava"], tmp_path / "run"))

    def bare(path: str, request: dict | None) -> Reply:
        status, found = hide["1"](path, request)
        return status, {**found, "data": found["data"][:1]} if path == "/v1/models" else found

    with served(stages({"1": bare})) as address:
        refused("eval", run, "method.routing=top1", "eval.backend=vllm", f"eval.vllm_url={address}/{{stage}}/v1",
                says=("not the adapter expert-01", "--lora-modules"))  # fmt: skip


# --------------------------------------------------------------------------------------- which served model answers a row


def at(oracle: bool = False, adapters: tuple[str, ...] = ("expert-01", "expert-02"), method: str = "hide") -> Served:
    """A server that was never asked: only `names` is looked at."""
    made = Served.__new__(Served)
    run = SimpleNamespace(preset=method, oracle=oracle, method=SimpleNamespace(name=method))
    made.session = SimpleNamespace(run=run, core=SimpleNamespace(standing=["kept"]))
    made.base, made.adapters, made.client = "base", list(adapters), SimpleNamespace(url="URL")
    return made


ONE_HOT = {"expert-01": torch.tensor([1.0, 0.0]), "expert-02": torch.tensor([0.0, 1.0])}
GATE = torch.eye(2)


@pytest.mark.parametrize(("server", "route", "names"), [
    (at(), Route(["routed"], {"routed": GATE}, weights=ONE_HOT), ["expert-01", "expert-02"]),
    (at(), Route([], weights={"expert-01": torch.tensor([0.4, 0.5])}), ["base", "base"]),  # reported, but all is folded
    (at(adapters=("lora",), method="lora"), Route(["kept"]), ["lora", "lora"]),
    (at(adapters=(), method="lora"), Route(), ["base", "base"]),
    (at(oracle=True), Route([], weights=ONE_HOT), ["expert-01", "expert-02"]),  # the task's expert is folded here
    (at(oracle=True, adapters=()), Route([], weights=ONE_HOT), ["base", "base"]),
])  # fmt: skip
def test_who_is_asked(server: Served, route: Route, names: list[str]) -> None:
    assert server.names(route, 2) == names


def gate(*_: Any) -> torch.Tensor:
    return GATE


@pytest.mark.parametrize(("route", "says"), [
    (Route(["routed"], {"routed": GATE}, weights={k: torch.tensor([0.5, 0.5]) for k in ONE_HOT}), "adds several experts"),
    (Route(["routed"], {"routed": gate}, weights=ONE_HOT), "for each token or input"),
    (Route(["moelora"], {"moelora": GATE}), "for each token or input"),
    (Route(prompts=torch.zeros(2, 1, 4)), "inserts prompts"),
    (Route(projectors=ONE_HOT, weights=ONE_HOT), "mixes projectors"),
    (Route(["routed"], {"routed": GATE}, weights={"expert-03": torch.ones(2)}), "not the adapter expert-03"),
])  # fmt: skip
def test_what_no_request_says(route: Route, says: str) -> None:
    with pytest.raises(UserError, match=says):
        at().names(route, 2)

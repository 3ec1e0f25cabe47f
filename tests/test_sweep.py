"""Several runs from one command: what they are called, what a failing one leaves, what is printed at the end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hide_llava import pipeline
from hide_llava.config import compose
from hide_llava.errors import UserError
from hide_llava.sweep import expand, is_sweep, summary_folder, sweep
from hide_llava.training.sequence import Interrupted
from tests.cli.call import call
from tests.tiny import arguments

WORDS = ["benchmark=mini-ucit", "method=lora-mini", "model=mini", "train=mini", "tasks=[imagenet-r,iconqa]"]
ORDERS = "task_order=[imagenet-r,iconqa;iconqa,imagenet-r]"


def test_every_seed_with_every_order() -> None:
    configs = expand([*WORDS, "seeds=0,2", ORDERS])
    assert [(c.seed, c.task_order) for c in configs] == [
        (0, ["imagenet-r", "iconqa"]), (0, ["iconqa", "imagenet-r"]),
        (2, ["imagenet-r", "iconqa"]), (2, ["iconqa", "imagenet-r"]),
    ]  # fmt: skip
    assert [t.id for t in configs[1].benchmark.tasks] == ["iconqa", "imagenet-r"]
    alone = compose([*WORDS, "seed=2", "task_order=[iconqa,imagenet-r]"])
    assert configs[3].run_folder() == alone.run_folder()  # the run it would be alone, so either resumes the other
    inside = expand([*WORDS, "seeds=0,2", ORDERS, "output=somewhere"])
    assert [c.run_folder() for c in inside] == [Path("somewhere") / c.run_folder().name for c in configs]
    nested = expand([*WORDS, "seeds=[0,2]", "task_order=[[imagenet-r,iconqa],[iconqa,imagenet-r]]"])
    assert [c.run_folder() for c in nested] == [c.run_folder() for c in configs]


def test_every_combination_of_values() -> None:
    """Several values of a key are several runs under the names that they would have alone; a list stays one value."""
    words = [*WORDS, "method.rank=2,4", "train.learning_rate=1e-3, 2e-3", "model.path=a,b"]
    configs = expand(words)
    found = [(c.method["rank"], c.train.learning_rate, c.model.path) for c in configs]
    assert found == [(r, lr, "a,b") for r in (2, 4) for lr in (1e-3, 2e-3)]
    alone = compose([*WORDS, "method.rank=4", "train.learning_rate=0.002", "model.path=a,b"])
    assert configs[3].run_folder() == alone.run_folder() and len({c.run_folder() for c in configs}) == 4
    assert [c.seed for c in expand([*WORDS, "train.epochs=1,2", "seeds=0,1"])] == [0, 1, 0, 1]
    assert [c.method["name"] for c in expand([*WORDS[:1], "method=lora,ewc"])] == ["lora", "ewc"]
    assert summary_folder(words, configs[0]).name == "mini-ucit-lora-mini-mini-sweep-rank-learning_rate"
    for word, says in (("method.rank=2,x", "wrong|rank"), ("tasks=iconqa,vizwiz", r"written \[iconqa,vizwiz\]"),
                       ("method.rank=2,4", "several values, one run for each")):  # fmt: skip
        with pytest.raises(UserError, match=says):
            compose([*WORDS, word])


def test_what_is_a_sweep() -> None:
    assert is_sweep([*WORDS, "train.epochs=1,2"]) and not is_sweep([*WORDS, "train.epochs=[1,2]"])
    assert not is_sweep([*WORDS, "train.epochs=1,many"]) and is_sweep([*WORDS, "method.targets=all,ffn"])
    assert not is_sweep([*WORDS, "model.path=a,b"]) and not is_sweep(["runs/a", "method.rank=2,4"])
    assert is_sweep(["seeds=1"]) and is_sweep([ORDERS]) and is_sweep(["task_order=[[a,b],[b,a]]"])
    assert not is_sweep(["seed=1", "task_order=[a,b]"]) and not is_sweep(["runs/x"]) and not is_sweep([])


@pytest.mark.parametrize(
    "words, message",
    [
        (["seeds=0,x"], "seeds are whole numbers"),
        (["seeds="], "seeds are whole numbers"),
        (["seeds=0,0"], "twice"),
        (["seeds=0", "seed=1"], "keep one"),
        (["seeds=0", "seeds=1"], "once each"),
        (["seeds=0", "task_order=[imagenet-r,iconqa;imagenet-r,iconqa]"], "twice"),
        (["seeds=0", "task_order=[imagenet-r;iconqa]"], "leaves out"),
        (["train.epochs=2,2.0"], "twice"),
        (["eval.max_new_tokens=8,16"], "of the answers and not of the run, .* with each value"),
        (["seeds=0", "train.epoch=2"], "Did you mean 'train.epochs'"),
    ],
)
def test_wrong_sweeps_are_refused_before_anything_runs(words: list[str], message: str, monkeypatch) -> None:
    monkeypatch.setattr(pipeline, "run", lambda *_: pytest.fail("a run began"))
    with pytest.raises(UserError, match=message):
        sweep([*WORDS, *words])
    called = call("run", *WORDS, *words)
    assert called.code == 2 and called.err.startswith("error: ")


def test_answers_of_a_sweep_are_given_again(monkeypatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr(pipeline, "run", lambda *_, **more: asked.append(more["again"]) or (_ for _ in ()).throw(UserError("x")))
    for again in ((), ("--again",)):
        assert call("eval", *WORDS, "seeds=0,1", f"output={tmp_path}", *again).code == 1
    assert asked == [False, False, True, True]


def test_a_failing_run_stops_no_other(world: Path, tmp_path: Path, monkeypatch) -> None:
    """Three seeds: the second is refused, a crash hits the third; the first is finished, compared and printed."""
    words = [w for w in arguments(world, "zero_shot", tmp_path / "out") if not w.startswith("seed=")]
    really, begun = pipeline.run, []

    def run(config, *rest, **more):
        begun.append(config.seed)
        if config.seed == 1:
            raise UserError("a file is missing.")
        if config.seed == 2:
            raise RuntimeError("out of memory")
        return really(config, *rest, **more)

    monkeypatch.setattr(pipeline, "run", run)
    called = call("run", *words, "seeds=0,1,2")
    assert called.code == 1 and begun == [0, 1, 2], called.err
    end = called.err.strip().splitlines()[-2:]
    assert "seed1" in end[0] and "a file is missing." in end[0] and "RuntimeError: out of memory" in end[1]
    assert "# tiny" in called.out and f"report: {tmp_path / 'out' / 'comparison.html'}" in called.out
    monkeypatch.setattr(pipeline, "run", really)
    called = call("run", *words, "seeds=0,1,2")  # resumed: only what failed is done
    assert called.code == 0 and "mean ± sd over 3 runs (seeds 0, 1, 2; 1 task order)" in called.out, called.err
    folders = sorted(p.parent.name for p in (tmp_path / "out").glob("*/manifest.json"))
    assert len(folders) == 3 and [f.partition("seed")[2][:2] for f in folders] == ["0-", "1-", "2-"]
    shutil.rmtree(tmp_path / "out" / folders[1] / "eval")
    cells = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*/eval/*/*/predictions.jsonl")}
    called = call("eval", *words, "seeds=0,1,2")
    assert called.code == 0 and all(p.stat().st_mtime_ns == at for p, at in cells.items())
    assert len(list((tmp_path / "out").glob("*/eval/*/*/score.json"))) == 9


def test_orders_train_in_their_order(world: Path, tmp_path: Path) -> None:
    words = arguments(
        world, "lora", tmp_path / "out", "train.max_steps=1", "task_order=[task0,task1,task2;task2,task0,task1]"
    )
    called = call("run", *words)
    assert called.code == 0, called.err
    found = {
        tuple(stage["train_tasks"][0] for stage in json.loads(path.read_text())["stages"])
        for path in (tmp_path / "out").glob("*/manifest.json")
    }
    assert found == {("task0", "task1", "task2"), ("task2", "task0", "task1")}
    assert "mean ± sd over 2 runs" in called.out and "2 task orders" in called.out


def test_a_signal_stops_the_sweep(monkeypatch, tmp_path: Path) -> None:
    def run(*_, **__):
        raise Interrupted("stopped at step 3")

    monkeypatch.setattr(pipeline, "run", run)
    with pytest.raises(Interrupted):
        sweep([*WORDS, "seeds=0,1", f"output={tmp_path}"])


def test_several_processes_do_not_go_on_after_an_error(monkeypatch, tmp_path: Path) -> None:
    """One of them would start the next run while the others wait in this one."""

    def run(*_, **__):
        raise UserError("rank 0 found a damaged file.")

    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(pipeline, "say", lambda text: None)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    with pytest.raises(UserError, match="damaged"):
        sweep([*WORDS, "seeds=0,1", f"output={tmp_path}"])

"""Which tasks a run has, in which order, and how one benchmark extends another."""

from pathlib import Path

import pytest

from hide_llava.benchmarks.selection import draw
from hide_llava.config import compose, to_yaml
from hide_llava.errors import UserError
from tests.test_config import refusal, ucit

SIX = ["imagenet-r", "arxivqa", "vizwiz", "iconqa", "clevr-math", "flickr30k"]


def ids(*words: str) -> list[str]:
    return [task.id for task in ucit(*words).benchmark.tasks]


def test_order_and_part_of_the_tasks() -> None:
    """A part keeps the benchmark's order, an order says its own; both take aliases."""
    assert ids() == SIX
    assert ids("tasks=[iconqa,CLEVR,imagenet-r]") == ["imagenet-r", "iconqa", "clevr-math"]
    assert ids(f"task_order=[{','.join(SIX[::-1])}]") == SIX[::-1]
    assert ids("tasks=[iconqa,vizwiz]", "task_order=[iconqa,VizWiz-cap]") == ["iconqa", "vizwiz"]


@pytest.mark.parametrize(
    "word, says",
    [
        ("tasks=[iconqa,vizwis]", ("tasks", "no task 'vizwis'", "Did you mean 'vizwiz'?")),
        ("tasks=[iconqa,IconQA]", ("tasks names the task 'iconqa' twice",)),
        ("tasks=[]", ("tasks names no task", "imagenet-r")),
        ("task_order=[iconqa,vizwiz]", ("task_order leaves out imagenet-r, arxivqa, clevr-math, flickr30k",)),
        (f"task_order=[{','.join(SIX)},gqa]", ("task_order", "no task 'gqa'")),
        ("limit=0", ("limit=0", "greater than 0")),
    ],
)
def test_wrong_choice_of_tasks(word: str, says: tuple[str, ...]) -> None:
    message = refusal(word)
    assert all(fragment in message for fragment in says), message


def test_another_selection_has_another_folder() -> None:
    """Partial and full runs, and runs of different orders, never meet in one folder."""
    words = [(), ("tasks=[iconqa]",), ("tasks=[vizwiz]",), (f"task_order=[{','.join(SIX[::-1])}]",), ("limit=8",), ("limit=9",),
             ("tasks=[iconqa]", "limit=8")]  # fmt: skip
    folders = [ucit(*w).run_folder() for w in words]
    assert len(set(folders)) == len(words) and folders[0] == Path("runs/ucit-hide-llava-1.5-7b-seed42")
    assert all(folder.name.startswith(folders[0].name) for folder in folders)
    assert ucit("tasks=[IconQA]").run_folder() == ucit("tasks=[iconqa]").run_folder()


def test_what_a_limit_keeps() -> None:
    """The first of a shuffle by the seed, in file order: not the first of the file, and a larger limit keeps it all."""
    kept = draw(8, 42, 100)
    assert len(kept) == 8 and kept == sorted(set(kept)) and kept != list(range(8)) and max(kept) < 100
    assert set(kept) < set(draw(16, 42, 100)) and kept == draw(8, 42, 100) != draw(8, 1, 100)
    assert draw(8, 42, 8) == draw(None, 42, 8) == list(range(8)) and draw(8, 42, 3) == [0, 1, 2]


def test_untrained_tasks_come_last(write) -> None:
    task = "title: X, test: t.json, metric: exact_upper"
    tasks = (
        f"[{{id: u, {task}, instruction_of: a}}, {{id: b, train: b.json, {task}}}, {{id: a, train: a.json, {task}}}]"
    )
    words = ["model=mini", "method=lora"]

    def bench(more: str = "", tasks: str = tasks) -> list[str]:
        return [f"benchmark={write('b.yaml', f'benchmark: {{name: b, tasks: {tasks}{more}}}')}", *words]

    assert [t.id for t in compose(bench()).benchmark.tasks] == ["b", "a", "u"]
    assert [t.id for t in compose([*bench(), "task_order=[a,b]"]).benchmark.tasks] == ["a", "b", "u"]
    left = compose([*bench(), "tasks=[u,b]"]).benchmark.tasks
    assert [t.id for t in left] == ["b", "u"] and left[1].instruction_of is None
    wrong = {
        bench(tasks=tasks.replace("instruction_of: a", "instruction_of: c"))[0]: "instruction_of=c",
    }
    for first, says in wrong.items():
        with pytest.raises(UserError, match=says):
            compose([first, *words])
    with pytest.raises(UserError, match="general task 'g' has a training file"):
        compose(bench(f", general: [{{id: g, train: g.json, {task}}}]"))
    with pytest.raises(UserError, match="task ids repeat"):
        compose(bench(f", general: [{{id: a, {task}}}]"))


def test_a_benchmark_that_extends_another(write) -> None:
    """Its keys win, tasks are merged by id, new ones are appended; the stored configuration stands alone."""
    new = "{id: new, title: New, test: n.json, metric: exact_upper}"
    path = write(
        "mine.yaml", f"benchmark: {{extends: ucit, name: mine, tasks: [{{id: iconqa, epochs: 3}}, {new}]}}\nseed: 5"
    )
    config = compose([f"benchmark={path}", "model=llava-1.5-7b", "method=hide"])
    plain = ucit().benchmark
    assert [t.id for t in config.benchmark.tasks] == [*SIX, "new"] and config.seed == 5
    assert (config.benchmark.name, config.benchmark.instructions) == ("mine", plain.instructions)
    changed = [new for new, old in zip(config.benchmark.tasks, plain.tasks) if new != old]
    assert [(t.id, t.epochs, t.train) for t in changed] == [("iconqa", 3.0, "IconQA/train.json")]
    assert "extends" not in to_yaml(config)
    again = write("again.yaml", "benchmark: {extends: mine.yaml, name: again}")
    assert compose([f"benchmark={again}", "model=mini", "method=hide"]).benchmark.tasks == config.benchmark.tasks
    for text, says in {"extends: ucti, name: x": "Did you mean 'ucit'", "extends: self.yaml, name: x": "in a circle",
                       "extends: ucit, name: x, titel: y": "'benchmark.titel'",
                       "extends: ucit, name: x, tasks: 3": "expected a list of mappings"}.items():  # fmt: skip
        with pytest.raises(UserError, match=says):
            compose([f"benchmark={write('self.yaml', f'benchmark: {{{text}}}')}", "model=mini", "method=hide"])


@pytest.mark.parametrize("name", ["a/b", "..", "''", "../x"])
def test_a_task_id_names_a_folder(name: str, write) -> None:
    path = write("b.yaml", f"benchmark: {{name: b, tasks: [{{id: {name}, title: A, test: t.json, metric: exact_upper}}]}}")
    with pytest.raises(UserError, match="cannot name a folder"):
        compose([f"benchmark={path}", "model=mini", "method=lora"])


def test_the_legacy_section_is_checked(write) -> None:
    task = "id: a, title: A, test: t.json, metric: exact_upper"
    for text, says in {"legacy: {resaon: x}": "'benchmark.tasks[0].legacy.resaon'", "legacy: yes": "expected a mapping",
                       "legacy: {workers: 2}": "reason"}.items():  # fmt: skip
        path = write("b.yaml", f"benchmark: {{name: b, tasks: [{{{task}, {text}}}]}}")
        with pytest.raises(UserError) as caught:
            compose([f"benchmark={path}", "model=mini", "method=lora"])
        assert says in str(caught.value)

"""Replay's buffer: uniform, seeded, balanced over tasks, and what the task then trains on."""

import math

import pytest
from datasets import Dataset

from hide_llava.data.records import features
from hide_llava.methods.base import Context, Task
from hide_llava.methods.replay import Replay
from tests.methods.refused import assert_refused


def table(task: int, count: int) -> Dataset:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    return Dataset.from_list(
        [{"id": f'"{task}-{i}"', "image": [], "conversations": turns} for i in range(count)], features=features()
    )


TABLES = [table(t, count) for t, count in enumerate((40, 30, 20, 50))]


def trained_on(task: int, **options: object) -> tuple[list[str], Replay]:
    method = Replay(Replay.Config(**options), None, [Task(i, str(i), 4) for i in range(4)])
    method.setup()
    return method.train_data(method.tasks[task], TABLES[task], Context(records=TABLES.__getitem__))["id"], method


@pytest.mark.parametrize("capacity", [1, 7, 10])
@pytest.mark.parametrize("task", [1, 2, 3])
def test_the_buffer_is_full_and_balanced(capacity: int, task: int) -> None:
    ids, method = trained_on(task, buffer=capacity)
    sizes = [len(method.buffer[i]) for i in range(task)]
    assert sum(sizes) == capacity and max(sizes) - min(sizes) <= 1
    assert len(ids) == len(set(ids)) == len(TABLES[task]) + capacity
    assert list(ids[: len(TABLES[task])]) == list(TABLES[task]["id"])


def test_percent_is_of_each_task_and_rounds_up() -> None:
    _, method = trained_on(3, buffer=12.5, unit="percent")
    assert [len(method.buffer[i]) for i in range(3)] == [5, 4, math.ceil(2.5)]
    ids, _ = trained_on(2, buffer=100, unit="percent")
    assert sorted(ids) == sorted(i for t in TABLES[:3] for i in t["id"])


def test_a_larger_share_than_the_task_takes_all_of_it() -> None:
    assert len(trained_on(3, buffer=10**6)[0]) == 140


def test_later_buffers_are_part_of_earlier_ones() -> None:
    before, after = trained_on(1, buffer=12)[1].buffer[0], trained_on(3, buffer=12)[1].buffer[0]
    assert len(before) == 12 and len(after) == 4 and set(after) < set(before)


def test_the_draw_is_uniform_over_the_task() -> None:
    """Over 100 seeds each of 40 records is kept 25 times on average; five standard deviations are 22."""
    kept = [place for seed in range(100) for place in trained_on(1, buffer=10, buffer_seed=1000 * seed)[1].buffer[0]]
    assert all(3 < kept.count(place) < 47 for place in range(40))


def test_the_seed_decides_and_the_state_says() -> None:
    one, same, other = (trained_on(2, buffer=8, buffer_seed=s)[1] for s in (0, 0, 5))
    assert one.state() == same.state() != other.state()
    other.load_state(one.state())
    assert other.buffer == one.buffer


def test_settings_that_are_refused() -> None:
    assert_refused("replay", "buffer", 0.0, "greater than 0")
    assert_refused("replay", "buffer", 101, "at most 100", unit="percent")
    assert_refused("replay", "buffer", 2.5, "whole number")
    assert_refused("replay", "unit", "rows", "records, percent")
    assert_refused("replay", "rank", -1, "at least 1")

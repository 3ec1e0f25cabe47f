"""Parts of the data that are trained one after another: whose step is whose, and which samples an epoch has."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from hide_llava.data.parts import PartsSampler, ends_of
from hide_llava.data.sampler import GlobalBatches, ModalityLengthSampler
from hide_llava.training.trainer import RunCallback, restarting


@pytest.mark.parametrize(
    ("sizes", "steps", "ends"),
    [
        ([24000, 9600], 525, [375, 525]),
        ([8, 8], 5, [2, 5]),
        ([100, 1], 10, [9, 10]),  # the smaller part has a step of its own
        ([1, 100], 10, [1, 10]),
        ([8, 8], 1, [1, 1]),  # one step in all: it is the first part's
        ([8, 0], 4, [4, 4]),
        ([0, 8], 4, [0, 4]),
        ([5, 5, 5], 3, [1, 2, 3]),
    ],
)
def test_steps_of_parts(sizes: list[int], steps: int, ends: list[int]) -> None:
    assert ends_of(sizes, steps) == ends


def sampler(sizes: list[int], steps: int, batch: int, seed: int = 0) -> PartsSampler:
    orders = [ModalityLengthSampler([1] * size, batch, 1, seed) for size in sizes]
    return PartsSampler(orders, sizes, ends_of(sizes, steps), batch)


def test_one_part_after_another_over_two_epochs() -> None:
    """12 and 4 samples twice in batches of 4: six batches of the first part, each sample twice; then two of the second."""
    parts = sampler([12, 4], 8, 4)
    batches = []
    for epoch in range(2):
        deal = GlobalBatches(parts, 4, 1)
        deal.set_epoch(epoch)
        batches += list(deal)
    assert [len(b) for b in batches] == [4] * 8
    for turn in (batches[:3], batches[3:6]):
        assert sorted(i for b in turn for i in b) == list(range(12))
    assert batches[:3] != batches[3:6]  # drawn anew
    assert all(sorted(b) == [12, 13, 14, 15] for b in batches[6:])


def test_an_epoch_that_is_resumed_has_its_own_samples() -> None:
    parts = sampler([7, 6], 8, 4)
    parts.set_epoch(0)
    first = list(parts)
    parts.set_epoch(1)
    second = list(parts)
    fresh = sampler([7, 6], 8, 4)
    fresh.set_epoch(1)
    assert list(fresh) == second and len(first) == len(second) == 13
    assert all(i < 7 for i in first) and all(i >= 7 for i in second)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant_with_warmup"])
def test_a_schedule_begins_anew_with_each_part(schedule: str, tmp_path: object) -> None:
    """The rates are those of two runs of upstream's schedule, one after the other; stored and loaded, it goes on."""
    from transformers import get_scheduler

    args = TrainingArguments(output_dir=str(tmp_path), lr_scheduler_type=schedule, use_cpu=True, report_to=[])

    def rates(scheduler: object, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    def optimizer() -> torch.optim.Optimizer:
        return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)

    expected = []
    for steps, warmup in ((6, 2), (4, 1)):
        alone = optimizer()
        expected += rates(get_scheduler(schedule, alone, warmup, steps), alone, steps)
    whole = optimizer()
    made = restarting(args, whole, [(6, 2), (4, 1)])
    assert rates(made, whole, 7) == pytest.approx(expected[:7])
    other = optimizer()
    again = restarting(args, other, [(6, 2), (4, 1)])
    again.load_state_dict(made.state_dict())
    other.load_state_dict(whole.state_dict())
    assert rates(again, other, 3) == pytest.approx(expected[7:])


def test_a_part_begins_behind_the_last_step_of_the_one_before_with_a_new_optimizer(tmp_path: Path) -> None:
    """Steps as the Trainer makes them: momentum 0.9 of a constant gradient of 1 moves by 1, 1.9, 2.71, and again by 1, 1.9."""
    weight, begun = torch.zeros(1, requires_grad=True), []
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9)
    method = SimpleNamespace(after_step=lambda step: None, begin_part=lambda part: begun.append((part, state.global_step)))
    callback = RunCallback(method, tmp_path / "log.jsonl", "ddp", "01-task", [3, 5])
    state, moved = TrainerState(), []
    for step in range(5):
        before, state.global_step = weight.item(), step
        weight.grad = torch.ones(1)
        optimizer.step()
        callback.on_optimizer_step(None, state, TrainerControl(), optimizer=optimizer)
        moved.append(before - weight.item())
    assert moved == pytest.approx([1, 1.9, 2.71, 1, 1.9]) and begun == [(1, 2)]

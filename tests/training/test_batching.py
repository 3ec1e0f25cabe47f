"""From the stated global batch to per-device × accumulation × processes; steps as transformers' Trainer counts them."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from hide_llava.config import TrainConfig
from hide_llava.errors import UserError
from hide_llava.training.batching import LARGEST_MICRO_BATCH, BatchPlan, plan_batches


@pytest.mark.parametrize(
    "total, stated, world, expected",
    [
        (96, None, 4, (12, 2)),  # the published UCIT batch on four devices: 24 each, in halves
        (96, 24, 4, (24, 1)),  # … as it was run
        (96, None, 1, (16, 6)),
        (64, 4, 8, (4, 2)),  # MCITlib
        (64, None, 2, (16, 2)),
        (1, None, 1, (1, 1)),
        (17, None, 1, (1, 17)),  # a prime above 16 has no other divisor
        (34, None, 1, (2, 17)),
        (6, 3, 2, (3, 1)),
    ],
)
def test_table(total: int, stated: int | None, world: int, expected: tuple[int, int]) -> None:
    plan = plan_batches(TrainConfig(global_batch_size=total, per_device_batch_size=stated), world)
    assert (plan.per_device, plan.accumulation) == expected and plan.world == world
    assert plan.global_batch == total


@given(st.integers(1, 512), st.integers(1, 16))
def test_derived_plans_keep_the_global_batch(total: int, world: int) -> None:
    """A plan exists exactly when the batch can be split; it takes the largest micro-batch of at most 16."""
    train = TrainConfig(global_batch_size=total)
    if total % world:
        with pytest.raises(UserError, match=f"multiple of {world}"):
            plan_batches(train, world)
        return
    plan = plan_batches(train, world)
    assert plan.global_batch == total and 1 <= plan.per_device <= LARGEST_MICRO_BATCH
    share = total // world
    assert not any(share % d == 0 for d in range(plan.per_device + 1, min(share, LARGEST_MICRO_BATCH) + 1))


@given(st.integers(1, 128), st.integers(1, 64), st.integers(1, 8))
def test_stated_micro_batches(total: int, stated: int, world: int) -> None:
    train = TrainConfig(global_batch_size=total, per_device_batch_size=stated)
    if total % (world * stated):
        with pytest.raises(UserError, match=r"train\.global_batch_size"):
            plan_batches(train, world)
    else:
        plan = plan_batches(train, world)
        assert plan.per_device == stated and plan.global_batch == total


def test_refusals_say_what_is_possible() -> None:
    with pytest.raises(UserError, match=r"12 each.*per_device_batch_size=5.*possible: 1, 2, 3, 4, 6, 12\."):
        plan_batches(TrainConfig(global_batch_size=24, per_device_batch_size=5), 2)
    with pytest.raises(UserError, match="per_device_batch_size=0"):
        plan_batches(TrainConfig(global_batch_size=24, per_device_batch_size=0), 1)


def test_a_tasks_own_global_batch_wins() -> None:
    assert plan_batches(TrainConfig(global_batch_size=96), 2, 8).global_batch == 8


# -------------------------------------------------------------------------------------------------------------- steps


class Rows(Dataset):
    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        return {"x": torch.ones(2)}


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.layer(x).mean()}


@pytest.mark.parametrize(
    "records, per_device, accumulation, epochs, max_steps",
    [(17, 4, 1, 1, -1), (17, 4, 2, 1, -1), (16, 4, 3, 2, -1), (3, 4, 2, 1, -1), (17, 2, 4, 2.5, -1), (17, 4, 1, 3, 2),
     (9, 2, 2, 0.5, -1), (1, 1, 8, 3, -1)],
)  # fmt: skip
def test_steps_are_the_trainers(
    records: int, per_device: int, accumulation: int, epochs: float, max_steps: int, tmp_path: Path
) -> None:
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=per_device, gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs, max_steps=max_steps, use_cpu=True, report_to="none", disable_tqdm=True,
        save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(Model(), arguments, train_dataset=Rows(records))
    trainer.train()
    plan = BatchPlan(per_device, accumulation, 1)
    assert plan.steps(records, epochs, max_steps) == trainer.state.max_steps == trainer.state.global_step


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5000), st.tuples(*[st.integers(1, 16)] * 3), st.sampled_from([0.5, 1, 1.5, 3]))
def test_steps_of_several_processes(records: int, sizes: tuple[int, int, int], epochs: float) -> None:
    """Every process walks ⌈records / world⌉ records; an unfinished accumulation is still a step."""
    per_device, accumulation, world = sizes
    plan = BatchPlan(per_device, accumulation, world)
    batches = len(range(0, -(-records // world), per_device))
    per_epoch = len(range(0, batches, accumulation))
    assert plan.steps(records, epochs) == -int(-epochs * per_epoch // 1)


@pytest.mark.parametrize("records, steps", [(23_998, 250), (40_000, 417), (29_859, 312)])
def test_published_step_counts(records: int, steps: int) -> None:
    """UCIT at 4 × 24, as its published scripts have it."""
    assert BatchPlan(24, 1, 4).steps(records, 1) == steps

"""Task prototypes: exact sums, the reference's arithmetic, reduction over processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing

from hide_llava.adapters.anchors import Anchors, ReferenceAnchors, similarities
from hide_llava.distributed import all_reduce, is_main

WIDTH = 16
CPU = torch.device("cpu")


def features(count: int = 100_000) -> torch.Tensor:
    """bf16 features with a large common mean, where a running mean in low precision goes wrong."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(count, WIDTH, generator=generator) * 0.01 + torch.linspace(-3, 3, WIDTH)).bfloat16()


def gathered(rows: torch.Tensor, batch: int) -> Anchors:
    anchors = Anchors()
    anchors.start(0, WIDTH, CPU)
    for part in rows.split(batch):
        anchors.add(0, part)
    return anchors


def test_hundred_thousand_bf16_features() -> None:
    rows = features()
    anchors = gathered(rows, 24)
    mean = rows.double().numpy().mean(0, dtype=np.float64)
    assert anchors.sums[0].dtype == torch.float64 and anchors.counts[0].dtype == torch.int64
    assert int(anchors.counts[0]) == len(rows)
    np.testing.assert_allclose((anchors.sums[0] / anchors.counts[0]).numpy(), mean, rtol=1e-13)
    assert torch.equal(anchors.mean(0), torch.from_numpy(mean).float())


def test_order_and_batches_do_not_matter() -> None:
    rows = features(20_000)
    shuffled = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))]
    one, other = gathered(rows, 24), gathered(shuffled, 7)
    torch.testing.assert_close(one.sums[0], other.sums[0], atol=0, rtol=1e-14)
    assert torch.equal(one.mean(0), other.mean(0))


def test_nothing_seen_is_none_and_tasks_are_unlimited() -> None:
    anchors = Anchors()
    for task in range(25):
        anchors.start(task, WIDTH, CPU)
        anchors.add(task, torch.full((2, WIDTH), float(task)))
    anchors.start(25, WIDTH, CPU)
    anchors.add(25, torch.zeros(0, WIDTH))  # a micro-batch without images
    assert anchors.mean(25) is None and torch.equal(anchors.mean(24), torch.full((WIDTH,), 24.0))
    other = Anchors()
    other.load(anchors.state(), CPU)
    assert other.sums.keys() == other.counts.keys() == anchors.sums.keys()
    assert all(torch.equal(other.sums[t], anchors.sums[t]) for t in range(26)) and other.mean(25) is None


# ------------------------------------------------------------------------------------------------- the reference's way


def test_reference_anchor_after_one_sample() -> None:
    anchors = ReferenceAnchors()
    anchors.start(0, WIDTH, CPU)
    start, feature = anchors.sums[0].clone(), torch.randn(1, WIDTH)
    assert start.abs().max() > 0  # 0.1 · N(0, 1), and it counts as a sample
    anchors.add(0, feature)
    torch.testing.assert_close(anchors.mean(0), (start + feature[0]) / 2)


@pytest.mark.parametrize(
    "batch, fixed",
    [(1, 256), (2, 512), (4, 1024), (6, 2048), (8, 2048), (12, 4096), (14, 4096), (16, 4096), (24, 8192), (32, 8192)],
)
def test_reference_counter_saturates(batch: int, fixed: int) -> None:
    """In bf16 the count stops growing once its spacing exceeds 2 B."""
    anchors = ReferenceAnchors()
    anchors.start(0, 1, CPU)
    rows, last = torch.zeros(batch, 1), 0.0
    for _ in range(20_000):
        anchors.add(0, rows)
        if float(anchors.counts[0]) == last:
            break
        last = float(anchors.counts[0])
    assert anchors.counts[0].dtype == torch.bfloat16 and last == fixed


def test_reference_counter_over_counts_before_it_saturates() -> None:
    anchors = ReferenceAnchors()
    anchors.start(0, 1, CPU)
    for _ in range(200):
        anchors.add(0, torch.zeros(24, 1))
    assert float(anchors.counts[0]) == 5696  # the true count is 4801


def test_reference_arithmetic_in_bf16_step_by_step() -> None:
    """S = a n + Σ f; n ← n + B; a ← S / n, each rounded to bf16."""
    anchors = ReferenceAnchors(torch.bfloat16)
    anchors.start(0, WIDTH, CPU)
    a, n = anchors.sums[0].clone(), torch.tensor(1.0, dtype=torch.bfloat16)
    for seed in range(50):
        rows = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(seed)).bfloat16()
        anchors.add(0, rows)
        total = a * n + rows.sum(0)
        n = n + 3
        a = total / n
    assert torch.equal(anchors.sums[0], a) and torch.equal(anchors.counts[0], n)


# ---------------------------------------------------------------------------------------------------------- processes


def work(rank: int, world: int, folder: str) -> None:
    """One of `world` gloo processes: gathers its share and saves what all have together."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    anchors = gathered(features(1001)[rank::world], 8)
    before = anchors.sums[0].clone()
    total, count = anchors.reduced(0)
    assert torch.equal(anchors.sums[0], before)  # a copy: state() may be called again and again
    value = torch.tensor([float(rank + 1)])
    all_reduce(value)
    torch.save({"sum": total, "count": count, "main": is_main(), "value": value}, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (2, str(tmp_path)), nprocs=2)
    one = gathered(features(1001), 8)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for result in results:
        assert int(result["count"]) == 1001 and float(result["value"]) == 3
        torch.testing.assert_close(result["sum"], one.sums[0], atol=0, rtol=1e-14)
    assert [r["main"] for r in results] == [True, False]
    assert is_main() and torch.equal(one.reduced(0)[0], one.sums[0])  # one process: nothing to do


def test_similarities_are_cosines_per_sample() -> None:
    rows, anchors = torch.randn(5, WIDTH), [torch.randn(WIDTH) for _ in range(3)]
    ours = similarities(rows.bfloat16(), anchors)
    assert ours.shape == (5, 3) and ours.dtype == torch.float32
    for b, row in enumerate(rows.bfloat16().double().numpy()):
        for i, anchor in enumerate(a.double().numpy() for a in anchors):
            want = row @ anchor / np.linalg.norm(row) / np.linalg.norm(anchor)
            assert abs(float(ours[b, i]) - want) < 1e-6

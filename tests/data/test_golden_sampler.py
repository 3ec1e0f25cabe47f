"""Index orders recorded from the reference, and LLaVA's rule of length grouping written out slowly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from hide_llava.data.sampler import GlobalBatches, ModalityLengthSampler
from hide_llava.errors import UserError


def literal(lengths, batch, world, seed):
    """The rule, step by step."""
    torch.manual_seed(seed)
    size = batch * world

    def deal(megabatch, lengths):
        if len(megabatch) % world:
            return [i for rank in range(world) for i in megabatch[rank::world]]
        chunks, sums = [[] for _ in range(world)], [0] * world
        for index in megabatch:
            open_chunks = [c for c in range(world) if len(chunks[c]) < len(megabatch) // world]
            shortest = min(open_chunks, key=lambda c: sums[c])
            chunks[shortest].append(index)
            sums[shortest] += lengths[index]
        return [i for chunk in chunks for i in chunk]

    def grouped(lengths):
        order = torch.randperm(len(lengths)).tolist()
        cuts = [order[i : i + size] for i in range(0, len(order), size)]
        return [deal(sorted(cut, key=lambda i: -lengths[i]), lengths) for cut in cuts]

    image = [i for i, length in enumerate(lengths) if length > 0]
    text = [i for i, length in enumerate(lengths) if length < 0]
    if not image or not text:
        return [i for megabatch in grouped(lengths) for i in megabatch]
    per_modality = [
        [[group[i] for i in megabatch] for megabatch in grouped([abs(lengths[i]) for i in group])]
        for group in (image, text)
    ]
    full = per_modality[0][:-1] + per_modality[1][:-1]
    rest = per_modality[0][-1] + per_modality[1][-1]
    return [i for m in torch.randperm(len(full)).tolist() for i in full[m]] + sorted(rest)


def test_recorded_orders(recorded):
    recordings = recorded("misc/sampler.json")
    assert len(recordings) == 12
    for case in recordings:
        sampler = ModalityLengthSampler(case["lengths"], case["batch_size"], case["world_size"], case["seed"])
        assert list(sampler) == case["indices"], case["name"]
        assert literal(case["lengths"], case["batch_size"], case["world_size"], case["seed"]) == case["indices"]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(-60, 60).filter(bool), min_size=1, max_size=70),
    batch=st.integers(1, 5),
    world=st.integers(1, 4),
    seed=st.integers(0, 999),
)
def test_every_index_once_and_as_written(lengths, batch, world, seed):
    order = list(ModalityLengthSampler(lengths, batch, world, seed))
    assert sorted(order) == list(range(len(lengths)))
    assert order == literal(lengths, batch, world, seed)


def test_epochs_differ_and_repeat():
    sampler = ModalityLengthSampler(range(1, 40), 4, seed=7)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(sampler) == list(ModalityLengthSampler(range(1, 40), 4, seed=8))
    sampler.set_epoch(0)
    assert list(sampler) == first and len(sampler) == 39


def test_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    list(ModalityLengthSampler([1, -2, 3], 1))
    assert torch.equal(before, torch.random.get_rng_state())


def test_bad_arguments():
    with pytest.raises(UserError, match="Sample 1 has length zero"):
        ModalityLengthSampler([3, 0], 1)
    with pytest.raises(UserError, match="positive"):
        ModalityLengthSampler([3], 0)


# ------------------------------------------------------------------------------------------------------ global batches

LAYOUTS = [(4, 1, 1), (2, 2, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4), (3, 2, 3)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 10, 11, 18, 25])
def test_every_sample_once_in_its_global_batch(count: int, layout: tuple[int, int, int]):
    """The same samples in the same steps in every layout; who has none takes part with a stand-in."""
    per_device, accumulation, world = layout
    lengths = [(-1) ** (i % 3 == 0) * (i % 5 + 1) for i in range(count)]
    parts = []
    for rank in range(world):
        order = ModalityLengthSampler(lengths, per_device * accumulation, world, 7)
        parts.append(GlobalBatches(order, per_device, accumulation, world, rank))
        parts[-1].set_epoch(2)
    taken, expected = [list(part) for part in parts], list(parts[0].order)
    assert {len(micro) for micro in taken} == {len(parts[0])}
    size = per_device * accumulation * world
    for step, at in enumerate(range(0, count, size)):
        micro = [m for part in taken for m in part[step * accumulation : (step + 1) * accumulation]]
        real = [i for m in micro for i in m if i >= 0]
        assert sorted(real) == sorted(expected[at : at + size]) and parts[0].rows(step) == len(real)
        assert all(m and (min(m) >= 0 or len(m) == 1) for m in micro)
        assert micro[0][0] >= 0  # the first process always has a sample
    assert parts[0].rows(parts[0].steps) == parts[0].rows(0)  # the next epoch
    if world == 1:
        assert taken[0] == list(BatchSampler(expected, per_device, False))


def test_the_content_of_a_step_does_not_depend_on_the_layout():
    lengths = [(-1) ** (i % 4 == 0) * (i % 7 + 1) for i in range(45)]
    found = set()
    for per_device, accumulation, world in LAYOUTS[:-1]:
        order = list(ModalityLengthSampler(lengths, per_device * accumulation, world, 3))
        found.add(tuple(tuple(sorted(order[at : at + 4])) for at in range(0, 45, 4)))
    assert len(found) == 1

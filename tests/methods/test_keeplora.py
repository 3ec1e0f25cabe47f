"""KeepLoRA against a recording of its published code, against loops in float64, and what its updates leave alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Subset

from hide_llava.adapters import gradients
from hide_llava.adapters.gradients import evenly, input_moments, weight_gradients
from hide_llava.adapters.subspace import added, leading, of_weight, outside, principal
from hide_llava.methods.base import Context
from hide_llava.methods.keeplora import KeepLora
from hide_llava.methods.routed import RoutedLlava
from tests.methods.host import assert_near, recorded, tasks
from tests.methods.recorded import on_tiny_llama, path_of, under

OFFICIAL = {
    "features": "gradients",
    "decomposition": "randomised",
    "rank": 3,
    "alpha": 0.75,
    "share": 0.4,
    "seed": 11,
    "task_energy": 0.9,
}


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return recorded("keeplora")


def batches(tensors: dict[str, Tensor], task: str) -> list[dict[str, Any]]:
    """The recorded records of a task, each a batch."""
    rows = zip(tensors[f"{task}/in.input_ids"], tensors[f"{task}/in.labels"])
    alone = {"has_image": torch.zeros(1, dtype=torch.bool), "pixels": [None], "sizes": [[]]}
    return [{"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None], "labels": labels[None], **alone}
            for ids, labels in rows]  # fmt: skip


def context(routed: RoutedLlava, records: list[dict[str, Any]]) -> Context:
    def loader(data: Subset, size: int) -> list[dict[str, Any]]:
        assert size == 1
        return [data[i] for i in range(len(data))]

    return Context(train_data=records, loader=loader, forward=lambda batch, **more: routed(**batch, **more))


def on_recording(tensors: dict[str, Tensor], **options: object) -> RoutedLlava:
    """The recorded model before its first task."""
    parameters = {k: v for k, v in tensors.items() if k.startswith("param.")}
    routed = on_tiny_llama(KeepLora, parameters, 0, **options)
    return routed


def in_first_task(tensors: dict[str, Tensor], **options: object) -> tuple[RoutedLlava, Context]:
    routed = on_recording(tensors, **options)
    first = context(routed, batches(tensors, "task1"))
    routed.method.before_task(tasks()[0], first)
    return routed, first


def rows(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Recorded `<prefix>model.layers.….weight` by the path of the linear in LLaVA."""
    return {path_of(k.removesuffix(".weight")): v for k, v in under(tensors, prefix).items()}


def span(basis: Tensor) -> Tensor:
    """The projector of rows [k, d]: bases of one subspace have the same."""
    return basis.T @ basis


def to_sign(actual: Tensor, expected: Tensor) -> Tensor:
    """Rows of `actual` with the signs of those of `expected`: a singular vector has none."""
    return actual * (actual * expected).sum(1, keepdim=True).sign()


# ---------------------------------------------------------------------------------------------------------- recording


def test_published_code(tensors: dict[str, Tensor]) -> None:
    """Its subspace of W, A of the first task, the subspace that the trained task adds, and A of the second task."""
    routed, first = in_first_task(tensors, **OFFICIAL)
    method, layers = routed.method, routed.method.linears()
    of_w = rows(tensors, "pretrained/out.")
    assert layers.keys() == of_w.keys() and len(layers) == 14
    for path, theirs in of_w.items():
        assert_near(span(method.pretrained[path].T), span(theirs))
    for path, theirs in rows(tensors, "task1/out.A.").items():
        ours = layers[path].lora_A["expert-01"].weight
        assert_near(to_sign(ours, theirs), theirs)
        ours.data.copy_(theirs)  # whose signs the recorded B goes with
    for path, theirs in rows(tensors, "task1/out.B.").items():
        layers[path].lora_B["expert-01"].weight.data.copy_(theirs)
    method.after_task(tasks()[0], first)
    for path, theirs in rows(tensors, "task1/out.M.").items():
        ours = torch.cat([method.pretrained[path], method.used[path]], 1).T
        assert ours.shape == theirs.shape
        assert_near(span(ours), span(theirs))
    method.before_task(tasks()[1], context(routed, batches(tensors, "task2")))
    for path, theirs in rows(tensors, "task2/out.A.").items():
        ours = layers[path].lora_A["expert-02"].weight
        assert_near(to_sign(ours, theirs), theirs)
        assert theirs.abs().max() > 0.1


def test_published_code_names_gradients_what_the_paper_says_of_inputs(tensors: dict[str, Tensor]) -> None:
    """By the inputs themselves the first task's subspace is another one: the option is not idle."""
    routed, first = in_first_task(tensors, **{**OFFICIAL, "features": "activations"})
    method = routed.method
    for path, theirs in rows(tensors, "task1/out.B.").items():
        method.linears()[path].lora_B["expert-01"].weight.data.copy_(theirs)
    method.after_task(tasks()[0], first)
    theirs = rows(tensors, "task1/out.M.")
    sizes = {path: method.pretrained[path].shape[1] + method.used[path].shape[1] for path in theirs}
    assert sizes != {path: len(m) for path, m in theirs.items()}


# --------------------------------------------------------------------------------------------------- passes over data


def test_gradients_are_those_of_the_weights(tensors: dict[str, Tensor]) -> None:
    """What autograd gives the weights themselves where they train, for the mean over records."""
    routed, first = in_first_task(tensors, share=0.5, rank=2)
    ours: dict[str, Tensor] = {}
    places = evenly(10, 0.5)
    weight_gradients(routed.core, "expert-01", first, places, lambda path, g: ours.__setitem__(path, g))
    weights = {
        path: layer.get_base_layer().weight.requires_grad_(True) for path, layer in routed.method.linears().items()
    }
    sum(routed(**first.train_data[place]).loss for place in places).backward()
    assert ours.keys() == weights.keys()
    for path, weight in weights.items():
        assert_near(ours[path], weight.grad / len(places))


@pytest.mark.parametrize("of_tokens", [False, True])
def test_moments_of_inputs_are_sums_or_means_over_tokens(of_tokens: bool, tensors: dict[str, Tensor]) -> None:
    routed, first = in_first_task(tensors, share=0.3, rank=2)
    expected = {path: torch.zeros(layer.in_features, layer.in_features, dtype=torch.float64)
                for path, layer in routed.method.linears().items()}  # fmt: skip
    tokens = dict.fromkeys(expected, 0)

    def see(path: str, x: Tensor) -> None:
        for token in x[0].double():
            expected[path] += token[:, None] * token[None, :]
            tokens[path] += 1

    handles = [layer.register_forward_pre_hook(lambda _, args, path=path: see(path, args[0].detach()))
               for path, layer in routed.method.linears().items()]  # fmt: skip
    for place in (0, 4, 9):
        routed(**first.train_data[place])
    for handle in handles:
        handle.remove()
    ours: dict[str, Tensor] = {}
    input_moments(routed.core, "expert-01", first, [0, 4, 9], ours.__setitem__, of_tokens)
    assert ours.keys() == expected.keys() and min(tokens.values()) > 3
    for path, moment in ours.items():
        assert_near(moment.double(), expected[path] / (tokens[path] if of_tokens else 3))


@pytest.mark.parametrize("look", [weight_gradients, input_moments])
def test_several_passes_give_the_same_bits(
    look: Any, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory for one decoder layer at a time: two passes over the sample instead of one, and the same numbers."""
    routed, first = in_first_task(tensors, rank=2)
    found: list[dict[str, Tensor]] = [{}, {}]
    forwards = []
    forward = first.forward
    first.forward = lambda batch, **more: forwards.append(1) or forward(batch, **more)
    for room, taken in zip((float("inf"), 1.0), found):
        monkeypatch.setattr(gradients, "_room", lambda device, room=room: room)
        look(routed.core, "expert-01", first, [0, 5], lambda path, g, taken=taken: taken.__setitem__(path, g))
    assert len(forwards) == 2 + 4
    assert found[0].keys() == found[1].keys() and all(torch.equal(found[0][path], found[1][path]) for path in found[0])


def test_processes_with_other_memory_take_the_same_lots(
    tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of a lot are added up over processes: the smallest of them says how large it is."""
    routed, first = in_first_task(tensors, rank=2)
    asked, found = [], {}
    monkeypatch.setattr(gradients, "least", lambda number, device: asked.append(number) or 1)
    zeros = gradients._zeros
    monkeypatch.setattr(gradients, "_zeros", lambda core, shapes: lots.append(list(shapes)) or zeros(core, shapes))
    lots: list[list[str]] = []
    input_moments(routed.core, "expert-01", first, [0, 5], found.__setitem__, True)
    assert asked == [2] and len(lots) == 2 and found.keys() == {path for path, _, _ in routed.core.layers("expert-01")}


def test_records_are_evenly_spaced() -> None:
    assert evenly(10, 0.4) == [0, 3, 6, 9] and evenly(7, 1.0) == list(range(7))
    assert evenly(3, 0.2) == [0] and evenly(1, 0.5) == [0]


# --------------------------------------------------------------------------------------------------------- subspaces


def by_hand(basis: Tensor, matrix: Tensor, energy: float) -> Tensor:
    """The criterion of GPM, one direction after another, with upstream's SVD in float64."""
    total = sum(float(value) ** 2 for value in torch.linalg.svdvals(matrix))
    rest = matrix.clone()
    for column in basis.T:
        rest = rest - column[:, None] * (column[:, None] * rest).sum(0, keepdim=True)
    u, s, _ = torch.linalg.svd(rest, full_matrices=False)
    held, k = 1 - float((s**2).sum()) / total, 0
    while held < energy and k < len(s):
        held += float(s[k]) ** 2 / total
        k += 1
    return u[:, :k]


@pytest.mark.parametrize("columns", [5, 40])
@pytest.mark.parametrize("energy", [0.6, 0.9, 0.99])
def test_directions_of_a_task(columns: int, energy: float) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(12, columns, dtype=torch.float64) * torch.linspace(3, 0.2, 12, dtype=torch.float64)[:, None]
    basis = torch.linalg.qr(torch.randn(12, 3, dtype=torch.float64))[0]
    expected = by_hand(basis, matrix, energy)
    ours = added(basis.float(), matrix, energy, moments=False).double()
    same = added(basis.float(), matrix @ matrix.T, energy, moments=True).double()
    assert ours.shape == same.shape == expected.shape and ours.shape[1] > 0
    for found in (ours, same):
        assert_near(found @ found.T, expected @ expected.T)
        assert (basis.T @ found).abs().max() < 1e-6


def test_nothing_is_added_where_all_is_held() -> None:
    basis = torch.eye(6)[:, :4]
    inside = basis @ torch.randn(4, 9)
    assert added(basis, inside, 0.99, moments=False).shape == (6, 0)
    assert added(basis, inside @ inside.T, 0.99, moments=True).shape == (6, 0)
    assert added(torch.eye(6), torch.randn(6, 3), 0.99, moments=False).shape == (6, 0)
    assert added(basis, torch.zeros(6, 3), 0.99, moments=False).shape == (6, 0)


@pytest.mark.parametrize("energy", [0.0, 0.4, 0.8, 1.0])
@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_directions_of_a_weight(shape: tuple[int, int], energy: float) -> None:
    torch.manual_seed(1)
    weight = torch.randn(*shape, dtype=torch.float64)
    u, s, _ = torch.linalg.svd(weight.T, full_matrices=False)
    k, held = 0, 0.0
    for value in s:
        held += float(value**2 / (s**2).sum())
        k += held < energy - 1e-12
    ours = of_weight(weight, energy).double()
    assert ours.shape == (shape[1], max(1, k))
    assert_near(ours @ ours.T, u[:, : max(1, k)] @ u[:, : max(1, k)].T)


@pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
def test_singular_vectors(shape: tuple[int, int]) -> None:
    """Both sides of the exact decomposition rebuild the matrix; a direction that it has not is zero."""
    torch.manual_seed(2)
    matrix = torch.randn(shape[0], 3) @ torch.randn(3, shape[1])
    left, right = leading(matrix, 4)
    vectors, squares = principal(matrix)
    assert left.shape == (shape[0], 4) and right.shape == (shape[1], 4) and int((squares > 0).sum()) == 3
    assert_near(left * squares[:4].sqrt().float() @ right.T, matrix, 1e-5)
    assert left[:, 3].abs().max() == 0 and right[:, 3].abs().max() == 0
    assert torch.equal(
        vectors.gather(0, vectors.abs().argmax(0, keepdim=True)) >= 0, torch.ones(1, len(squares)).bool()
    )
    wide, _ = leading(matrix, 12, seed=3)
    assert wide.shape == (shape[0], 12) and wide[:, 4:].abs().max() == 0


def test_outside_is_orthogonal() -> None:
    torch.manual_seed(3)
    basis, matrix = torch.linalg.qr(torch.randn(8, 3))[0], torch.randn(8, 5)
    assert (basis.T @ outside(matrix, basis)).abs().max() < 1e-6
    assert_near(outside(outside(matrix, basis), basis), outside(matrix, basis), 1e-5)


# -------------------------------------------------------------------------------------------------------- the method


def test_a_task_changes_nothing_that_earlier_ones_read(tensors: dict[str, Tensor]) -> None:
    """The second task's update gives 0 for every input inside M, whatever its B is; A is frozen, B trains."""
    routed, first = in_first_task(tensors, rank=3)
    method = routed.method
    method.after_task(tasks()[0], first)
    basis = {path: method.basis(path, layer) for path, layer in method.linears().items()}
    method.before_task(tasks()[1], context(routed, batches(tensors, "task2")))
    trained = {id(p) for group in method.params() for p in group["params"]}
    moved = 0
    for path, layer in method.linears().items():
        a, b = layer.lora_A["expert-02"].weight, layer.lora_B["expert-02"].weight
        assert id(b) in trained and id(a) not in trained and not b.any()
        assert (a @ basis[path]).abs().max() < 1e-5
        moved += bool(a.any())
    assert moved > 0 and len(trained) == len(basis)  # the projector is frozen here


def test_shallow_layers_move_less_in_the_second_version(tensors: dict[str, Tensor]) -> None:
    """c_l of KeepLoRA++: 0.2 of the first of two layers, 1 of the second."""
    plain, scaled = (in_first_task(tensors, rank=3, first_scale=c)[0].method.linears() for c in (1.0, 0.2))
    for path, layer in plain.items():
        expected = (0.2 if "layers.0." in path else 1.0) * layer.lora_A["expert-01"].weight
        assert_near(scaled[path].lora_A["expert-01"].weight, expected)


def test_a_checkpoint_within_a_task_holds_its_frozen_half(tensors: dict[str, Tensor]) -> None:
    """Another A would make the trained B another update: it is stored until the task has ended, and put back."""
    routed, first = in_first_task(tensors, rank=3)
    state = {k: v.clone() if isinstance(v, Tensor) else v for k, v in routed.method.state().items()}
    assert sum(key.startswith("A.") for key in state) == 14
    other = on_recording(tensors, rank=3)
    other.method.before_task(tasks()[0], context(other, batches(tensors, "task2")))
    other.method.load_state(state)
    for path, layer in other.method.linears().items():
        assert torch.equal(layer.lora_A["expert-01"].weight, state[f"A.{path}"])
    routed.method.after_task(tasks()[0], first)
    assert not any(key.startswith("A.") for key in routed.method.state())
    assert sum(key.startswith("used.") for key in routed.method.state()) == 14

"""DISCO against recordings of MCITlib's code and against loops in fp64."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from hide_llava.errors import UserError
from hide_llava.methods.base import Context, Features
from hide_llava.methods.disco import Disco
from hide_llava.methods.registry import method_config
from tests.methods.host import (
    LAYER,
    assert_near,
    fill,
    layer_of,
    on_one_linear,
    recorded,
    run_linear,
    tasks,
    trainable_at_7b,
)

CONTEXT = Context(widths={"clip_image": 768, "clip_text": 768})


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return recorded("disco_mcitlib")


def learned(tensors: dict[str, Tensor], count: int = 3) -> Disco:
    """Rank 2 per task, the recordings' scale 2 (theirs is alpha / (slots · rank) = 16 / 8), anchors from their batches."""
    prefix = "layer_train_task1/param."
    method = on_one_linear(Disco, tensors[prefix + "W"], rank=2, alpha=4.0)
    for task in tasks(count):
        method.before_task(task, CONTEXT)
        name = method.expert(task.index)
        fill(method, name, tensors[f"{prefix}A.{task.index}"], tensors[f"{prefix}B.{task.index}"])
        for batch in range(3):
            text = tensors.get(f"anchors/in.text.task{task.index}.batch{batch}", torch.ones(1, 768))
            method.loss(None, {}, features(text))
        method.after_task(task, CONTEXT)
    return method


def features(text: Tensor) -> Features:
    rows = len(text)
    return Features(torch.randn(rows, 768), text, torch.tensor([i % 2 == 0 for i in range(rows)]))


def test_recorded_anchors_have_our_direction(tensors: dict[str, Tensor]) -> None:
    """Theirs are sums whose count stays 1, ours means; bf16 sums have lost a little already after nine samples."""
    method = learned(tensors)
    assert torch.equal(tensors["anchors/out.text_count"], torch.ones(4, 1))
    for task in range(3):
        ours, theirs = method.text_anchors.mean(task), tensors["anchors/out.text_anchors"][task]
        assert int(method.text_anchors.counts[task]) == 9
        assert_near(ours / ours.norm(), theirs / theirs.norm())
        assert float(theirs.norm() / ours.norm()) == pytest.approx(9, rel=1e-4)


def cosines(method: Disco, seen: Features) -> Tensor:
    """Of one row with every anchor, in the recordings' eight slots."""
    return pad(method.similarity(seen, *method._anchors())[0], (0, 8 - len(method.learned)))


def test_recorded_weights(tensors: dict[str, Tensor]) -> None:
    method, seen = learned(tensors), features(tensors["route_single/in.text"])
    assert_near(cosines(method, seen), tensors["route_single/aux.cos_text"])
    assert_near(method.routing_weights(seen)[0], tensors["route_single/out.weights"])


def test_batch_average_is_not_offered(tensors: dict[str, Tensor]) -> None:
    """Theirs averages the text features of a batch: two samples of different tasks get the same blurred weights. Ours
    answers each row as alone. The average, given as one row, does reproduce the recording."""
    method, text = learned(tensors), tensors["route_batch/in.text"]
    blurred, average = tensors["route_batch/out.weights"], features(text.mean(0, keepdim=True))
    assert_near(cosines(method, average), tensors["route_batch/aux.cos_text"])
    assert_near(method.routing_weights(average)[0], blurred)
    rows = method.routing_weights(features(text))
    assert_near(rows, torch.cat([method.routing_weights(features(row[None])) for row in text]))
    assert (rows - blurred).abs().amax(1).min() > 0.3 and rows.argmax(1).unique().numel() == 2


def test_unlearned_slots_are_not_offered(tensors: dict[str, Tensor]) -> None:
    """Counting an unlearned slot (anchor 0, cosine 0) into the softmax takes mass from the learned ones: e^0 of the sum."""
    method, seen = learned(tensors), features(tensors["route_all_slots/in.text"])
    theirs = tensors["route_all_slots/out.weights"]
    assert theirs[3] > 0
    assert_near(cosines(method, seen), tensors["route_all_slots/aux.cos_text"])
    assert_near(theirs[:3] / theirs[:3].sum(), method.routing_weights(seen)[0])


@pytest.mark.parametrize("task", [1, 3])
def test_recorded_training_layer(tensors: dict[str, Tensor], task: int) -> None:
    method, case = learned(tensors, task + 1), f"layer_train_task{task}"
    x = tensors["layer_train_task1/in.x"].clone().requires_grad_(True)
    y = run_linear(method, method.route({}, features(torch.randn(3, 768)), True), x)
    assert_near(y.detach(), tensors[f"{case}/out.train"])
    (y * tensors["layer_train_task1/in.G"]).sum().backward()
    layer, name = layer_of(method), method.expert(task)
    assert_near(x.grad, tensors[f"{case}/grad.train.x"])
    assert_near(layer.lora_A[name].weight.grad, tensors[f"{case}/grad.train.A.{task}"])
    assert_near(layer.lora_B[name].weight.grad, tensors[f"{case}/grad.train.B.{task}"])
    assert all(layer.lora_A[method.expert(t)].weight.grad is None for t in range(task))


@pytest.mark.parametrize("case", ["single", "batch", "all_slots", "onehot"])
def test_recorded_inference_layer(tensors: dict[str, Tensor], case: str) -> None:
    """Given its weights: the matrix that it multiplies A x by, which is our gate on the diagonal, output and gradient."""
    weights = tensors[f"layer_eval_{case}/in.weights"]
    method = learned(tensors, len(weights))
    method.prepare_inference()
    method.routing_weights = lambda seen, task=None: weights.expand(len(seen.text), -1)
    x = tensors["layer_train_task1/in.x"].clone().requires_grad_(True)
    route = method.route({}, features(torch.randn(3, 768)), False)
    for gate in route.gates["routed"]:
        assert_near(pad(gate, (0, 8 - len(gate))).diag(), tensors[f"layer_eval_{case}/aux.AB"])
    y = run_linear(method, route, x)
    assert_near(y.detach(), tensors[f"layer_eval_{case}/out.eval"])
    (y * tensors["layer_train_task1/in.G"]).sum().backward()
    assert_near(x.grad, tensors[f"layer_eval_{case}/grad.eval.x"])


def test_stale_blocks_are_not_offered(tensors: dict[str, Tensor]) -> None:
    """Theirs leaves a block on whose weight becomes exactly 0; a route of ours knows nothing of the one before."""
    method = learned(tensors, 4)
    method.prepare_inference()
    x, outputs = tensors["layer_train_task1/in.x"], []
    for slot in (0, 1):
        method.routing_weights = lambda seen, task=None, slot=slot: torch.eye(4)[slot].expand(len(seen.text), -1)
        outputs.append(run_linear(method, method.route({}, features(torch.randn(3, 768)), False), x).detach())
    both = outputs[0] + outputs[1] - x @ tensors["layer_train_task1/param.W"].T
    assert_near(both, tensors["layer_eval_stale/out.eval"])
    assert (outputs[1] - both).abs().max() > 0.1


def test_formula() -> None:
    """Output and gradient of x, per sample, expert by expert and token by token, in fp64; the image never counts."""
    torch.manual_seed(4)
    w, x, text = torch.randn(6, 5), torch.randn(3, 4, 5), torch.randn(3, 7)
    method = on_one_linear(Disco, w, rank=2, alpha=3.0, temperature=0.4)
    data = [torch.randn(n, 7) for n in (3, 5)]
    for task, seen in zip(tasks(2), data):
        method.before_task(task, Context(widths={"clip_image": 4, "clip_text": 7}))
        fill(method, method.expert(task.index), torch.randn(2, 5), torch.randn(6, 2))
        method.loss(None, {}, Features(torch.randn(len(seen), 4), seen, torch.ones(len(seen), dtype=torch.bool)))
        method.after_task(task, Context())
    anchors = [d.double().sum(0) / len(d) for d in data]
    layer = dict(method.core.llava.named_modules())[LAYER]
    expected, x64 = [], x.double().requires_grad_(True)
    for row in range(3):
        cosines = [float(text[row].double() @ e / text[row].double().norm() / e.norm()) for e in anchors]
        total = sum(math.exp(c / 0.4) for c in cosines)
        for token in x64[row]:
            y = w.double() @ token
            for i, c in enumerate(cosines):
                a, b = (p[method.expert(i)].weight.double() for p in (layer.lora_A, layer.lora_B))
                y = y + math.exp(c / 0.4) / total * 1.5 * (b @ (a @ token))
            expected.append(y)
    method.prepare_inference()
    seen = Features(torch.randn(3, 4), text, torch.tensor([True, False, True]))
    expected, cotangent = torch.stack(expected).view(3, 4, 6), torch.randn(3, 4, 6)
    y = run_linear(method, method.route({}, seen, False), x.requires_grad_(True))
    assert_near(y.detach().double(), expected.detach())
    (y * cotangent).sum().backward()
    (expected * cotangent).sum().backward()
    assert_near(x.grad.double(), x64.grad)


def test_size_at_7b() -> None:
    projector = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert trainable_at_7b(Disco) == 16 * 32 * 3 * (4096 + 11008) + projector  # 23.2 M per task, FFN only


@pytest.mark.parametrize(
    "values, message",
    [
        ({"rank": 0}, "rank=0: must be at least 1"),
        ({"temperature": 0.0}, "temperature=0.0: must be greater than 0"),
        ({"projector": "copied"}, "projector=copied: expected one of shared, frozen, per_task"),
        ({"fusion": "factor_sum"}, "unknown key 'method.fusion' for method 'disco'"),
    ],
)
def test_impossible_values(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        method_config({"name": "disco", **values})

"""MoELoRA against recordings of CoIN and Prism, against loops in fp64, and its size at 7B."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from hide_llava.backbones.llava15 import Llava15
from hide_llava.errors import UserError
from hide_llava.methods.base import Route
from hide_llava.methods.moelora import MoELora
from hide_llava.methods.registry import method_config
from tests.methods.host import (
    LAYER,
    assert_experts,
    assert_near,
    fill,
    layer_of,
    on_one_linear,
    recorded,
    run_linear,
    run_masked,
    stacked,
    tiny_llama,
    trainable_at_7b,
)

SHAPE = {"rank": 8, "alpha": 16.0, "experts": 4}


def loaded(tensors: dict[str, Tensor], **options: object) -> MoELora:
    """The recordings' layer as our method."""
    method = on_one_linear(MoELora, tensors["layer/param.W"], **SHAPE, **options)
    fill(method, "experts", *stacked(tensors, "layer/param."))
    router = method.modules["router"].weight(LAYER)
    router.data.copy_(tensors["layer/param.router"])
    return method


def route(method: MoELora) -> Route:
    return method.route({}, None, True)


def gradients(
    method: MoELora, x: Tensor, cotangent: Tensor, run: Callable[..., Tensor] = run_linear
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output of run(method, route, x) and its gradients."""
    x, layer = x.clone().requires_grad_(True), layer_of(method)
    y = run(method, route(method), x)
    leaves = {"x": x, "A": layer.lora_A["experts"].weight, "B": layer.lora_B["experts"].weight,
              "router": method.modules["router"].weight(LAYER)}  # fmt: skip
    return y.detach(), dict(zip(leaves, torch.autograd.grad((y * cotangent).sum(), list(leaves.values()))))


def assert_recorded(grads: dict[str, Tensor], tensors: dict[str, Tensor], prefix: str) -> None:
    """All of `gradients` equal the recorded ones."""
    assert_experts(grads["A"], grads["B"], tensors, prefix)
    for key in ("router", "x"):
        assert_near(grads[key], tensors[prefix + key])


@pytest.mark.parametrize(
    "name, reference", [("moelora_coin", "none"), ("prism_clmoe", "none"), ("prism_moelora", "prism")]
)
def test_recorded_layer(name: str, reference: str) -> None:
    tensors = recorded(name)
    method = loaded(tensors, reference=reference)
    y, grads = gradients(method, tensors["layer/in.x"], tensors["layer/in.G"])
    for mode in ("train", "eval"):
        assert_near(y, tensors[f"layer/out.{mode}"])
    assert_recorded(grads, tensors, "layer/grad.train.")
    if name == "prism_clmoe":
        assert_near(y, tensors["layer/aux.mixture_of_products"])


def test_recorded_router_logits() -> None:
    tensors = recorded("moelora_coin")
    logits = loaded(tensors).modules["router"](LAYER, tensors["layer/in.x"])
    assert_near(logits, tensors["layer/aux.router_logits"])


def test_recorded_model() -> None:
    """A whole tiny Llama with the mixture on all seven linears: logits, loss and every gradient, expert by expert."""
    from hide_llava.adapters.core import Core
    from tests.methods.host import tasks

    tensors = recorded("moelora_coin")
    method = MoELora(MoELora.Config(dropout=0.0, **SHAPE), Core(Llava15(tiny_llama(tensors))), tasks())
    method.setup()
    grads = {}
    for path, _, layer in method.core.layers("experts"):
        theirs = "tiny_llama/param." + path.replace("language_model.", "") + "."
        fill(method, "experts", *stacked(tensors, theirs), path)
        method.modules["router"].weight(path).data.copy_(tensors[theirs + "router"])
        grads[theirs.replace("param.", "grad.train.")] = (
            layer.lora_A["experts"].weight, layer.lora_B["experts"].weight, method.modules["router"].weight(path)
        )  # fmt: skip
    method.core.follow(route(method))
    batch = {k: tensors[f"tiny_llama/in.{k}"] for k in ("input_ids", "attention_mask", "labels")}
    output = method.core.llava(**batch)
    real = batch["attention_mask"].bool()
    for mode in ("train", "eval"):  # one function
        assert_near(output.logits[real], tensors[f"tiny_llama/out.{mode}.logits"][real])
        assert_near(output.loss, tensors[f"tiny_llama/out.{mode}.loss"])
    assert len(grads) == 14
    output.loss.backward()
    for theirs, (a, b, router) in grads.items():
        assert_experts(a.grad, b.grad, tensors, theirs)
        assert_near(router.grad, tensors[theirs + "router"])


def test_recorded_dropout_is_not_offered() -> None:
    """CoIN draws one mask per expert, Prism's router reads the dropped-out input. One LoRA has one mask; its router reads
    what every other layer of the model reads. In expectation the same, and identical without dropout (above). With their
    inputs of experts and router, our gate and experts give their outputs and gradients."""

    def one_mask(method: MoELora, route: Route, x: Tensor, kept: Tensor) -> Tensor:
        return run_linear(method, route, kept * x) + layer_of(method).get_base_layer()((1 - kept) * x)

    for name, reference, run in (("prism_moelora", "prism", one_mask), ("moelora_coin", "none", run_masked)):
        tensors = recorded(name)
        x, method = tensors["layer/in.x"], loaded(tensors, reference=reference)
        kept = tensors["dropout/in.x_dropped"] / x  # 0 or 1 / (1 − p)
        y, grads = gradients(method, x, tensors["layer/in.G"], partial(run, kept=kept))
        assert_near(y, tensors["dropout/out.train"])
        assert_recorded(grads, tensors, "dropout/grad.train.")
    assert not torch.equal(kept[0], kept[1])


# ------------------------------------------------------------------------------------------------------ naive reference


def naive(x: Tensor, w: Tensor, a: Tensor, b: Tensor, router: Tensor, scale: float, product: bool = False) -> Tensor:
    """The equation, expert by expert and token by token, in fp64."""
    experts, k, rows = router.shape[0], a.shape[0] // router.shape[0], []
    for token in x.reshape(-1, x.shape[-1]):
        score = [torch.dot(router[i], token) for i in range(experts)]
        total = sum(torch.exp(s) for s in score)
        g = [torch.exp(s) / total for s in score]
        y = w @ token
        for i in range(experts):
            for j in range(experts) if product else [i]:
                weight = g[i] * g[j] if product else g[i]
                y = y + scale * weight * (b[:, j * k : (j + 1) * k] @ (a[i * k : (i + 1) * k] @ token))
        rows.append(y)
    return torch.stack(rows).view(*x.shape[:-1], -1)


@pytest.mark.parametrize("reference", ["none", "prism"])
def test_formula(reference: str) -> None:
    torch.manual_seed(3)
    w, x, cotangent = torch.randn(6, 5), torch.randn(2, 3, 5), torch.randn(2, 3, 6)
    method = on_one_linear(MoELora, w, rank=6, alpha=9.0, experts=3, reference=reference)
    fill(method, "experts", torch.randn(6, 5), torch.randn(6, 6))
    torch.nn.init.normal_(method.modules["router"].weight(LAYER))
    y, grads = gradients(method, x, cotangent)
    layer = layer_of(method)
    leaves = [x, layer.lora_A["experts"].weight, layer.lora_B["experts"].weight, method.modules["router"].weight(LAYER)]
    x64, a, b, router = (p.detach().double().requires_grad_(True) for p in leaves)
    expected = naive(x64, w.double(), a, b, router, 9.0 / 6, reference == "prism")
    assert_near(y, expected.detach())
    theirs = torch.autograd.grad((expected * cotangent).sum(), [x64, a, b, router])
    for key, value in zip(("x", "A", "B", "router"), theirs):
        assert_near(grads[key], value)


def test_prism_computes_something_else() -> None:
    """Random tensors, 4 experts of rank 4: the two updates share direction only partly (cosine about .6, norm about half)."""
    cosines, norms = [], []
    for seed in range(8):
        torch.manual_seed(seed)
        a, b, x, w = torch.randn(16, 48), torch.randn(48, 16), torch.randn(2, 5, 48), torch.zeros(48, 48)
        updates = []
        for reference in ("none", "prism"):
            torch.manual_seed(seed)
            method = on_one_linear(MoELora, w, rank=16, alpha=32.0, experts=4, reference=reference)
            fill(method, "experts", a, b)
            updates.append(run_linear(method, route(method), x).detach().flatten())
        cosines.append(float(cosine_similarity(*updates, dim=0)))
        norms.append(float(updates[1].norm() / updates[0].norm()))
    assert 0.45 < sum(cosines) / 8 < 0.75 and max(cosines) < 0.9
    assert 0.45 < sum(norms) / 8 < 0.65
    tensors = recorded("prism_moelora")
    ours = run_linear(loaded(tensors), route(loaded(tensors)), tensors["layer/in.x"])
    assert_near(ours.detach(), tensors["layer/aux.mixture_of_products"])
    assert (ours - tensors["layer/out.train"]).abs().max() > 1


# ------------------------------------------------------------------------------------------------- size, configuration


def test_size_at_7b() -> None:
    """128 · 2.499 M + 8 · 1.139 M + 20.98 M: the 350 M that BranchLoRA's paper states for MoELoRA."""
    adapters = 128 * 32 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    routers = 8 * 32 * (6 * 4096 + 11008)
    projector = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    total = trainable_at_7b(MoELora)
    assert total == adapters + routers + projector
    assert round(total / 1e6) == 350


@pytest.mark.parametrize(
    "values, message",
    [
        ({"rank": -8}, "rank=-8: must be at least 1"),
        ({"rank": 100}, "rank=100: must be a multiple of experts=8"),
        ({"experts": 0}, "experts=0: must be at least 1"),
        ({"reference": "coin"}, "reference=coin: expected one of none, prism"),
    ],
)
def test_impossible_values(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        method_config({"name": "moelora", **values})

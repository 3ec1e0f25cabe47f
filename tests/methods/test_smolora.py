"""SMoLoRA against recordings of its code, against loops in fp64, and its prompt pooling."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from hide_llava.adapters.core import Core
from hide_llava.backbones.llava15 import Llava15
from hide_llava.errors import UserError
from hide_llava.methods.base import Context, Features, Route
from hide_llava.methods.registry import method_config
from hide_llava.methods.smolora import SMoLora
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
    tasks,
    tiny_llama,
    trainable_at_7b,
)

SHAPE = {"rank": 8, "alpha": 16.0, "experts": 4}
PUBLISHED = {"gates": "random", "pool": "call"}
CONTEXT = Context(widths={"sentence": 384})


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return recorded("smolora")


def fill_gates(method: SMoLora, tensors: dict[str, Tensor], prefix: str, path: str = LAYER) -> None:
    for name, keys in (("visual", ["vu_gate"]), ("instruction", ["ins_gate"]), ("fusion", ["fc_vu", "fc_if"])):
        method.modules[name].weight(path).data.copy_(torch.cat([tensors[prefix + key] for key in keys]))


def loaded(tensors: dict[str, Tensor], **options: object) -> SMoLora:
    method = on_one_linear(SMoLora, tensors["full/param.W"], **SHAPE, **options)
    method.before_task(tasks()[0], CONTEXT)
    fill(method, "experts", *stacked(tensors, "full/param."))
    fill_gates(method, tensors, "full/param.")
    return method


def route(method: SMoLora, embedding: Tensor, mask: Tensor, train: bool = True, **batch: Tensor) -> Route:
    """`embedding` [d]: the same instruction for every row, as in the recordings; or [B, d]."""
    features = Features(sentence=embedding.expand(len(mask), -1))
    return method.route({"attention_mask": mask, **batch}, features, train)


def ones(x: Tensor) -> Tensor:
    return torch.ones(x.shape[:2], dtype=torch.long)


# ---------------------------------------------------------------------------------------------------------- recordings


def assert_recorded(method: SMoLora, tensors: dict[str, Tensor], prefix: str, path: str = LAYER) -> None:
    """Gradients of every expert and of both fusion heads of one linear."""
    layer, heads = layer_of(method, path), torch.cat([tensors[prefix + "fc_vu"], tensors[prefix + "fc_if"]])
    assert_experts(layer.lora_A["experts"].weight.grad, layer.lora_B["experts"].weight.grad, tensors, prefix)
    assert_near(method.modules["fusion"].weight(path).grad, heads)


@pytest.mark.parametrize("case, index", [("full", 0), ("instruction_1", 1), ("instruction_2", 2)])
def test_recorded_layer(tensors: dict[str, Tensor], case: str, index: int) -> None:
    method = loaded(tensors, **PUBLISHED)
    x = tensors["full/in.x"].clone().requires_grad_(True)
    embedding = tensors["full/in.instruction_embeddings"][index]
    y = run_linear(method, route(method, embedding, ones(x)), x)
    assert_near(y.detach(), tensors[f"{case}/out.train"])
    (y * tensors["full/in.G"]).sum().backward()
    assert_recorded(method, tensors, f"{case}/grad.train.")
    assert_near(x.grad, tensors[f"{case}/grad.train.x"])
    assert method.modules["visual"].weight(LAYER).grad is None  # a constant one-hot: no gradient, ever
    assert method.modules["instruction"].weight(LAYER).grad is None
    if case == "full":  # the others were not recorded at inference
        y = run_linear(method, route(method, embedding, ones(x), train=False), x)
        assert_near(y.detach(), tensors["full/out.eval"])


def test_recorded_choices(tensors: dict[str, Tensor]) -> None:
    """Pooled input, the logits and indices of both gates, and the one-hot of both."""
    method, x = loaded(tensors, **PUBLISHED), tensors["full/in.x"]
    visual = method.modules["visual"](LAYER, x.mean(1))
    for case, index in (("full", 0), ("instruction_1", 1), ("instruction_2", 2)):
        assert_near(x.mean(1), tensors[f"{case}/aux.pooled"][:, 0])
        assert_near(visual.detach(), tensors[f"{case}/aux.vu_logits"][:, 0])
        logits = method.modules["instruction"](LAYER, tensors["full/in.instruction_embeddings"][index])
        assert_near(logits.detach(), tensors[f"{case}/aux.ins_logits"])
        assert torch.equal(visual.argmax(-1), tensors[f"{case}/aux.vu_index"])
        assert torch.equal(logits.argmax(-1), tensors[f"{case}/aux.ins_index"])
        hard = torch.cat([method.choose(visual), method.choose(logits).expand(len(x), -1)], -1)
        assert torch.equal(hard[:, None], tensors[f"{case}/aux.gate"])


def test_recorded_padding(tensors: dict[str, Tensor]) -> None:
    """pool: call lets padding choose the expert; ours answers every row as if it were alone, gradients included."""
    x, mask = tensors["full/in.x"], tensors["padded/in.mask"].long()
    embedding = tensors["full/in.instruction_embeddings"][0]
    published = loaded(tensors, **PUBLISHED)
    assert_near(run_linear(published, route(published, embedding, mask), x).detach(), tensors["padded/out.batch"])
    for b in range(len(x)):
        method = loaded(tensors, gates="random")
        together = x.clone().requires_grad_(True)
        y = run_linear(method, route(method, embedding, mask), together)
        length = int(mask[b].sum())
        assert_near(y[b, :length].detach(), tensors[f"padded/out.single.{b}"][0])
        (y[b, :length] * tensors["full/in.G"][b, :length]).sum().backward()
        assert_near(together.grad[b, :length], tensors[f"padded/grad.single.{b}.x"][0])
        assert_recorded(method, tensors, f"padded/grad.single.{b}.")
    differs = (tensors["padded/out.batch"][2, :3] - tensors["padded/out.single.2"][0]).abs().max()
    assert differs > 0.1  # the recorded defect is visible


def test_recorded_decoding(tensors: dict[str, Tensor]) -> None:
    """pool: call chooses anew for every token; ours keeps what it chose at prefill."""
    embedding, steps = tensors["full/in.instruction_embeddings"][0], tensors["decode/in.x_steps"]
    published, ours = loaded(tensors, **PUBLISHED), loaded(tensors, gates="random")
    prompt = tensors["full/in.x"]
    kept = route(ours, embedding, ones(prompt), train=False)
    run_linear(ours, kept, prompt)
    chosen = tensors["full/aux.vu_index"]
    assert any(not torch.equal(row, chosen) for row in tensors["decode/aux.vu_index"])
    for step, expected in zip(steps, tensors["decode/out.steps"]):
        again = route(published, embedding, ones(step), train=False)
        assert_near(run_linear(published, again, step).detach(), expected)
        hard = torch.cat([torch.eye(2)[chosen], torch.eye(2)[tensors["full/aux.ins_index"]].expand(3, -1)], -1)
        held = naive(ours, step, hard, [(0, 1), (0, 1), (0, 1)])
        assert_near(run_linear(ours, kept, step).detach(), held.detach().float())


def test_recorded_model(tensors: dict[str, Tensor]) -> None:
    """A whole tiny Llama with experts on its FFN: logits and loss of training and inference, and every gradient."""
    method = SMoLora(SMoLora.Config(dropout=0.0, **SHAPE, **PUBLISHED), Core(Llava15(tiny_llama(tensors))), tasks())
    method.setup()
    method.before_task(tasks()[0], CONTEXT)
    names = {path: path.replace("language_model.", "") for path, _, _ in method.core.layers("experts")}
    for path, name in names.items():
        fill(method, "experts", *stacked(tensors, f"tiny_llama/param.{name}."), path)
        fill_gates(method, tensors, f"tiny_llama/param.{name}.", path)
    batch = {k: tensors[f"tiny_llama/in.{k}"] for k in ("input_ids", "attention_mask", "labels")}
    embedding = tensors["full/in.instruction_embeddings"][1]
    real = batch["attention_mask"].bool()
    for mode in ("eval", "train"):
        method.core.follow(route(method, embedding, batch["attention_mask"], mode == "train", labels=batch["labels"]))
        output = method.core.llava(**batch)
        assert_near(output.logits[real], tensors[f"tiny_llama/out.{mode}.logits"][real])
        assert_near(output.loss, tensors[f"tiny_llama/out.{mode}.loss"])
    output.loss.backward()
    assert len(names) == 6
    for path, name in names.items():
        assert_recorded(method, tensors, f"tiny_llama/grad.train.{name}.", path)


def test_recorded_dropout_is_not_offered(tensors: dict[str, Tensor]) -> None:
    """The published code draws a mask per expert, also for experts that are off; one LoRA has one mask. With its inputs
    of the four experts, our choice and fusion give its output and gradients."""
    kept = tensors["dropout/in.x_dropped"] / tensors["full/in.x"]  # 0 or 1 / .7
    assert not torch.equal(kept[0], kept[1])
    method, x = loaded(tensors, **PUBLISHED), tensors["full/in.x"].clone().requires_grad_(True)
    y = run_masked(method, route(method, tensors["full/in.instruction_embeddings"][0], ones(x)), x, kept)
    assert_near(y.detach(), tensors["dropout/out.train"])
    (y * tensors["full/in.G"]).sum().backward()
    assert_recorded(method, tensors, "dropout/grad.train.")
    assert_near(x.grad, tensors["dropout/grad.train.x"])


# ------------------------------------------------------------------------------------------------------ naive reference


def naive(method: SMoLora, x: Tensor, hard: Tensor, spans: list[tuple[int, int]]) -> Tensor:
    """The equations, row by row, token by token and expert by expert, in fp64, for given choices `hard` [B, E]."""
    layer = layer_of(method)
    a, b = (p["experts"].weight.double() for p in (layer.lora_A, layer.lora_B))
    w, heads = layer.get_base_layer().weight.double(), method.modules["fusion"].weight(LAYER).double()
    scale, experts = layer.scaling["experts"], method.config.experts
    k, out = a.shape[0] // experts, []
    for row in range(len(x)):
        tokens = []
        for token in x[row, spans[row][0] : spans[row][1]].double():
            branch = [torch.zeros(w.shape[0], dtype=torch.float64) for _ in range(2)]
            for e in range(experts):
                delta = scale * (b[:, e * k : (e + 1) * k] @ (a[e * k : (e + 1) * k] @ token))
                branch[2 * e // experts] = branch[2 * e // experts] + hard[row, e].double() * delta
            score = [torch.dot(heads[i], branch[i]) for i in range(2)]
            weight = torch.exp(score[0]) / (torch.exp(score[0]) + torch.exp(score[1]))
            tokens.append(w @ token + weight * branch[0] + (1 - weight) * branch[1])
        out.append(torch.stack(tokens))
    return torch.stack(out)


def test_straight_through_gates() -> None:
    """Forward: the one-hot h of each prompt's own mean. Backward: ∂L/∂z = p ⊙ (∂L/∂h − p·∂L/∂h); from there into both
    gates and, through the mean, into every token of the prompt. A, B and the heads: as if h were a constant."""
    torch.manual_seed(5)
    x, cotangent = torch.randn(2, 5, 6, requires_grad=True), torch.randn(2, 5, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])  # left padding
    answers = torch.tensor([[-100, -100, -100, 7, 8], [-100, -100, -100, -100, 9]])
    method = on_one_linear(SMoLora, torch.randn(4, 6), rank=8, alpha=4.0, experts=4)
    method.before_task(tasks()[0], Context(widths={"sentence": 3}))
    fill(method, "experts", torch.randn(8, 6), torch.randn(4, 8))
    embedding = torch.randn(2, 3)
    y = run_linear(method, route(method, embedding, mask, labels=answers), x)
    (y * cotangent).sum().backward()

    x64, spans = x.detach().double().requires_grad_(True), [(0, 3), (2, 4)]  # prompts without padding and answer
    prompts = torch.stack([row[slice(*span)].detach().mean(0) for row, span in zip(x64, spans)])
    gates = [method.modules[name].weight(LAYER) for name in ("visual", "instruction")]
    logits = [prompts @ gates[0].double().T, embedding.double() @ gates[1].double().T]
    hard = torch.cat([torch.eye(2, dtype=torch.float64)[z.argmax(1)] for z in logits], 1).requires_grad_(True)
    expected = naive(method, x64, hard, [(0, 5), (0, 5)])
    assert_near(y.detach(), expected.detach())
    layer = layer_of(method)
    plain = [layer.lora_A["experts"].weight, layer.lora_B["experts"].weight, method.modules["fusion"].weight(LAYER)]
    slope, by_token, *slopes = torch.autograd.grad((expected * cotangent).sum(), [hard, x64, *plain])
    for parameter, gradient in zip(plain, slopes):
        assert_near(parameter.grad, gradient)
    for gate, z, h, read in zip(gates, logits, slope.split(2, 1), (prompts, embedding.double())):
        p = z.detach().softmax(1)
        dz = p * (h - (p * h).sum(1, keepdim=True))
        assert_near(gate.grad, (dz.T @ read).float())
        assert gate.grad.abs().max() > 1e-3
        if gate is gates[0]:  # the instruction is not of the model
            for row, (start, end) in enumerate(spans):
                for n in range(start, end):
                    by_token[row, n] += sum(dz[row, e] * gate[e].detach().double() for e in range(2)) / (end - start)
    assert_near(x.grad.double(), by_token)


def test_trained_and_random_gates_differ_only_in_gradients(tensors: dict[str, Tensor]) -> None:
    x, embedding = tensors["full/in.x"], tensors["full/in.instruction_embeddings"][0]
    outputs = []
    for gates in ("trained", "random"):
        method = loaded(tensors, gates=gates)
        outputs.append(run_linear(method, route(method, embedding, ones(x)), x).detach())
    assert torch.equal(*outputs)


def test_padding_side_and_answer_do_not_matter() -> None:
    """The same prompt, right-padded with its answer in training and left-padded in generation, is read the same."""
    torch.manual_seed(0)
    prompt, answer, noise = torch.randn(1, 3, 12), torch.randn(1, 2, 12), 9 * torch.randn(1, 2, 12)
    method = on_one_linear(SMoLora, torch.randn(10, 12), **SHAPE)
    method.before_task(tasks()[0], CONTEXT)
    fill(method, "experts", torch.randn(8, 12), torch.randn(10, 8))
    embedding = torch.randn(384)
    training = torch.cat([prompt, answer, noise], 1)
    labels = torch.tensor([[-100, -100, -100, 5, 6, -100, -100]])
    seen = route(method, embedding, torch.tensor([[1, 1, 1, 1, 1, 0, 0]]), labels=labels)
    asked = route(method, embedding, torch.tensor([[0, 0, 1, 1, 1]]), train=False)
    trained = run_linear(method, seen, training)[:, :3]
    generated = run_linear(method, asked, torch.cat([noise, prompt], 1))[:, 2:]
    assert_near(generated.detach(), trained.detach())


def test_gates_are_learned_with_the_first_task_only() -> None:
    def trained(**options: object) -> list[set[str]]:
        method = on_one_linear(SMoLora, torch.zeros(10, 12), **SHAPE, **options)
        names = []
        for task in tasks(2):
            method.before_task(task, CONTEXT)
            mine = {id(p) for group in method.params() for p in group["params"]}
            names.append({n.split(".")[0] for n, p in method.modules.named_parameters() if id(p) in mine})
        return names

    assert trained() == [{"visual", "instruction", "fusion"}, {"fusion"}]
    assert trained(gates="random") == [{"fusion"}, {"fusion"}]


def test_oracle_takes_the_mean_instruction_of_the_task() -> None:
    method = on_one_linear(SMoLora, torch.zeros(10, 12), **SHAPE, instruction="oracle", samples=2)
    assert method.oracle and not on_one_linear(SMoLora, torch.zeros(10, 12), **SHAPE).oracle
    means = []
    for task in tasks(2):
        texts = torch.randn(5, 384)
        context = Context(
            train_data=range(5), widths={"sentence": 384}, loader=lambda data, size: [list(data)],
            features=lambda batch, texts=texts: SimpleNamespace(sentence=texts[batch]),
        )  # fmt: skip
        method.before_task(task, context)
        means.append(method.instructions[task.index])
        assert any(torch.allclose(means[-1], texts[[i, j]].mean(0)) for i in range(5) for j in range(i))
    mask, own = torch.ones(3, 2), torch.randn(3, 384)
    for train, batch, expected in ((True, {}, means[1]), (False, {"task": 0}, means[0])):
        gate = route(method, own, mask, train, **batch).gates["experts"]
        used = (gate if train else gate.alone).args[1]
        assert torch.equal(used, expected.expand(3, -1))
    restored = on_one_linear(SMoLora, torch.zeros(10, 12), **SHAPE, instruction="oracle")
    restored.load_state(method.state())
    restored.modules.load_state_dict(method.modules.state_dict())
    assert torch.equal(restored.instructions[1], means[1])


# ------------------------------------------------------------------------------------------------- size, configuration


def test_size_at_7b() -> None:
    """FFN only: 128 · 1.450 M of adapters, 2.5 M + .15 M of gates, 1.7 M of fusion heads, the projector."""
    adapters = 128 * 32 * 3 * (4096 + 11008)
    visual, instruction = 32 * 4 * (2 * 4096 + 11008), 32 * 3 * 4 * 384
    fusion = 32 * 2 * (2 * 11008 + 4096)
    projector = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert trainable_at_7b(SMoLora) == adapters + visual + instruction + fusion + projector
    assert [round(n / 1e6, 2) for n in (visual, instruction, fusion)] == [2.46, 0.15, 1.67]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"experts": 7}, "experts=7: must be even"),
        ({"rank": 20}, "rank=20: must be a multiple of experts=8"),
        ({"gates": "soft"}, "gates=soft: expected one of trained, random"),
        ({"pool": "mean"}, "pool=mean: expected one of prompt, call"),
        ({"instruction": "index"}, "instruction=index: expected one of line, question, oracle"),
        ({"samples": 0}, "samples=0: must be at least 1"),
    ],
)
def test_impossible_values(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        method_config({"name": "smolora", **values})

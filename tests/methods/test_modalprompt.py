"""ModalPrompt against recordings of MCITlib's code, and its terms against loops in fp64."""

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from hide_llava.adapters.core import Core
from hide_llava.backbones.llava15 import Llava15, Llava15Vision, insert_prompts, splice
from hide_llava.methods.base import Context, Features
from hide_llava.methods.modalprompt import ModalPrompt
from tests.methods.host import assert_near, recorded, tasks, trainable_at_7b
from tests.methods.prompted import CONTEXT, alone, naive_cosine, on_words, some_features
from tests.methods.refused import assert_refused

WORDS, LENGTH, COUNT = 50, 3, 4
IMAGE = 576  # tokens of an image
MCITLIB = {"reference": "mcitlib", "length": LENGTH}
CASES = [("train_first", 1, 1), ("train", 3, 1), ("train_k3", 3, 3), ("train_first_k3", 1, 3)]


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return recorded("modalprompt_mcitlib")


def llava_of(tensors: dict[str, Tensor]) -> LlavaForConditionalGeneration:
    text = LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                       vocab_size=WORDS, rms_norm_eps=1e-6, max_position_embeddings=1024, pad_token_id=0)  # fmt: skip
    vision = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                              image_size=4, patch_size=2)  # fmt: skip
    llava = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_id=49))
    state = {k.removeprefix("model/param.model."): v for k, v in tensors.items() if k.startswith("model/param.model.")}
    words = tensors["model/param.embed_tokens"][:WORDS]
    llava.model.language_model.load_state_dict({**state, "embed_tokens.weight": words})
    llava.lm_head.weight.data.copy_(tensors["model/param.lm_head.weight"])
    return llava.eval()


def loaded(tensors: dict[str, Tensor], current: int, train: bool = True, **options: object) -> ModalPrompt:
    """The method with the recorded parameters: in training of task `current` (from 1), or when it is done."""
    method = ModalPrompt(ModalPrompt.Config(**MCITLIB, **options), Core(Llava15(llava_of(tensors))), tasks(COUNT))
    method.setup()
    for task in method.tasks[:current]:
        method.before_task(task, Context(widths={"clip_image": 768, "clip_text": 768}))
        prompt = method.modules["prompts"][method.names[-1]]
        prompt.data.copy_(tensors["model/param.embed_tokens"][tensors["model/aux.prompt_ids"][task.index]])
        prefix = f"model/param.transform.{task.index}."
        transform = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        method.modules["transform"].load_state_dict(transform)
        if not train or task.index + 1 < current:
            method.after_task(task, Context())
    method.core.llava.requires_grad_(False)
    if train:
        for parameter in method.prompt_parameters():
            parameter.requires_grad_(True)
    return method


def features_of(tensors: dict[str, Tensor]) -> Features:
    image, text = tensors["batch/in.image_features"], tensors["batch/in.text_features"]
    return Features(image, text, torch.ones(len(image), dtype=torch.bool))


def assembled(method: ModalPrompt, tensors: dict[str, Tensor], train: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, mask and labels of the recorded batch with the method's prompts; the projector is the identity."""
    rows: dict[str, list[Tensor]] = {"input_ids": [], "attention_mask": [], "labels": []}
    repeats = torch.where(tensors["batch/in.input_ids"] == -200, IMAGE, 1)
    for key, values in rows.items():
        fill = torch.where(repeats > 1, -100, tensors["batch/in.labels"]) if key == "labels" else None
        source = tensors[f"batch/in.{key}"] if fill is None else fill
        values += [row.repeat_interleave(times) for row, times in zip(source, repeats)]
    ids, mask, labels = (torch.stack(values) for values in rows.values())
    vision = Llava15Vision(torch.empty(0), tensors["batch/in.patch_embeddings"], torch.empty(0))
    embeds = splice(method.core.llava, ids, vision, lambda patches: patches)
    return insert_prompts(method.route({}, features_of(tensors), train).prompts, embeds, mask, labels)


# ---------------------------------------------------------------------------------------------------------- recordings


@pytest.mark.parametrize(("case", "current", "k"), CASES)
def test_recorded_training(tensors: dict[str, Tensor], case: str, current: int, k: int) -> None:
    """Chosen prompts, the sequence, all three losses, and the gradients of what the current task trains. Its guidance has
    a column for the current task too."""
    method = loaded(tensors, current, top_k=k)
    features = features_of(tensors)
    image, text = method.cosines(features, [*method.prototypes, method.prototype()])
    assert_near(((image + text) / 2).detach(), tensors[f"{case}/aux.guidance"])
    if method.prototypes:
        assert_near(method.guidance(features), tensors[f"{case}/aux.guidance"][:, :-1])
    assert torch.equal(method.choose(features, True), tensors[f"{case}/out.selected_tasks"])
    embeds, mask, labels = assembled(method, tensors, True)
    head = tensors[f"{case}/out.head"]
    assert_near(embeds[:, : head.shape[1]].detach(), head)
    assert torch.equal(mask, tensors[f"{case}/out.attention_mask"])
    assert torch.equal(labels, tensors[f"{case}/out.labels"])
    assert mask.shape[1] == int(tensors[f"{case}/out.sequence_length"])
    cross_entropy = method.core.llava(inputs_embeds=embeds, attention_mask=mask, labels=labels).loss
    terms = method.loss(None, {}, features)
    for name, value in {"ce": cross_entropy, **terms, "total": cross_entropy + sum(terms.values())}.items():
        assert_near(value.detach(), tensors[f"{case}/loss.{name}"])
    prompt, *transform = method.prompt_parameters()
    names = [name for name, _ in method.modules["transform"].named_parameters()]
    rows = tensors["model/aux.prompt_ids"][current - 1]
    for kind, loss in (("align", sum(terms.values())), ("total", cross_entropy + sum(terms.values()))):
        gradients = torch.autograd.grad(loss, [prompt, *transform], retain_graph=True)
        assert_near(gradients[0], tensors[f"{case}/grad.{kind}.embed_tokens"][rows])
        for name, gradient in zip(names, gradients[1:]):
            assert_near(gradient, tensors[f"{case}/grad.{kind}.transform.{current - 1}.{name}"])


@pytest.mark.parametrize(("case", "current", "k"), [("eval", 3, 1), ("eval_all", 4, 1), ("eval_k3", 3, 3)])
def test_recorded_inference(tensors: dict[str, Tensor], case: str, current: int, k: int) -> None:
    method, features = loaded(tensors, current, False, top_k=k), features_of(tensors)
    assert_near(torch.stack(method.prototypes), tensors["model/aux.prototypes"][:current])
    assert_near(method.guidance(features), tensors[f"{case}/aux.guidance"])
    assert torch.equal(method.choose(features, False), tensors[f"{case}/out.selected_tasks"])
    embeds, mask, _ = assembled(method, tensors, False)
    assert mask.shape[1] == int(tensors[f"{case}/out.sequence_length"])
    assert_near(embeds[:, : tensors[f"{case}/out.head"].shape[1]], tensors[f"{case}/out.head"])
    assert torch.equal(mask, tensors[f"{case}/out.attention_mask"])


def test_the_last_task_learns_its_prompt(tensors: dict[str, Tensor]) -> None:
    """A recorded defect that is not offered: MCITlib's mask of trainable rows is empty in the last task."""
    masks = tensors["model/aux.row_mask"]
    assert [int(mask.sum()) for mask in masks] == [LENGTH, LENGTH, LENGTH, 0]
    for current in range(1, COUNT + 1):
        method = loaded(tensors, current, top_k=1)
        embeds, mask, labels = assembled(method, tensors, True)
        method.core.llava(inputs_embeds=embeds, attention_mask=mask, labels=labels).loss.backward()
        assert method.prompt_parameters()[0].grad.abs().sum(1).all()  # every token of the prompt


# --------------------------------------------------------------------------------------------------------------- maths


def after(count: int, **options: object) -> ModalPrompt:
    """In training of its `count`-th task (from 1), with random prompts."""
    torch.manual_seed(4)
    method = on_words(ModalPrompt, length=2, **options)
    for task in tasks(5)[:count]:
        method.before_task(task, CONTEXT)
        with torch.no_grad():
            method.modules["prompts"][method.names[-1]].normal_()
        if task.index + 1 < count:
            method.after_task(task, CONTEXT)
    for parameter in method.prompt_parameters():
        parameter.requires_grad_(True)
    return method


def naive_prototype(values: list[Tensor]) -> list[Tensor]:
    """Mean over tokens of Linear – SiLU – Linear, number by number."""
    prompt, w1, b1, w2, b2 = values
    total = [torch.zeros((), dtype=torch.float64)] * len(w2)
    for token in prompt:
        hidden = [sum(w1[j, k] * token[k] for k in range(len(token))) + b1[j] for j in range(len(w1))]
        hidden = [h / (1 + (-h).exp()) for h in hidden]
        for i in range(len(w2)):
            total[i] = total[i] + (sum(w2[i, j] * hidden[j] for j in range(len(hidden))) + b2[i]) / len(prompt)
    return total


def test_alignment_against_loops() -> None:
    method, features = after(2), some_features()
    mine = method.prompt_parameters()
    theirs = [p.detach().double().requires_grad_(True) for p in mine]
    prototype = naive_prototype(theirs)
    image = sum((1 - naive_cosine(list(features.image[b].double()), prototype)) / 4 for b in (0, 2, 3))
    text = sum((1 - naive_cosine(list(features.text[b].double()), prototype)) / 4 for b in range(4))
    terms = method.loss(None, {}, features)
    assert_near(terms["image"].detach().double(), image.detach())  # a record without image has no image term
    assert_near(terms["text"].detach().double(), text.detach())
    sum(terms.values()).backward()
    (image + text).backward()
    for ours, expected in zip(mine, theirs):
        assert_near(ours.grad.double(), expected.grad)
    assert method.modules["prompts"]["task-01"].grad is None


def naive_order(method: ModalPrompt, features: Features, row: int, share: float) -> list[int]:
    """Finished tasks by guidance, the largest last."""
    scores = []
    for prototype in method.prototypes:
        c = list(prototype.double())
        image, text = (naive_cosine(list(f[row].double()), c) for f in (features.image, features.text))
        scores.append(float(share * image + (1 - share) * text))
    return sorted(range(len(scores)), key=lambda j: scores[j])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_guidance_and_order_against_loops(share: float) -> None:
    """K = 2 of four past prompts, then the current one nearest to the text; each record chooses for itself."""
    method, features = after(5, top_k=2, image_share=share), some_features(1)
    prompts = [p.detach() for p in method.modules["prompts"].values()]
    together = method.route({}, features, True)
    for row in (0, 2, 3):  # at share 1 the record without image is guided by nothing
        order = [*naive_order(method, features, row, share)[-2:], 4]
        assert torch.equal(together.prompts[row].detach(), torch.cat([prompts[j] for j in order]))
        assert [bool(w[row]) for w in together.weights.values()] == [j in order for j in range(5)]
    assert len({tuple(row.tolist()) for row in method.choose(features, True)}) > 1
    method.after_task(method.tasks[-1], CONTEXT)
    for row in (0, 2, 3):
        assert method.choose(features, False)[row].tolist() == naive_order(method, features, row, share)[-2:]
    for row in range(4):
        one = method.route({}, alone(features, row), True).prompts[0]
        assert torch.equal(one, method.route({}, features, True).prompts[row])


def test_mcitlib_counts_the_current_prompt() -> None:
    features = some_features(2)
    published, paper = after(4, top_k=3, reference="mcitlib"), after(4, top_k=2)
    assert torch.equal(published.choose(features, True), paper.choose(features, True))
    assert published.choose(features, True).shape[1] == 3
    assert after(4, top_k=1, reference="mcitlib").choose(features, True).tolist() == [[3]] * 4
    assert after(2).choose(features, True).shape[1] == 2  # never more than there are


# --------------------------------------------------------------------------------------------------------------- state


def test_the_transform_is_dropped_and_its_prototype_kept() -> None:
    method = after(2)
    expected = method.prototype().detach()
    inside, before = method.state(), method.prompt_parameters()
    method.load_state(inside)  # as when a task resumes: the optimizer holds these very parameters
    assert len(before) == 5 and all(a is b for a, b in zip(before, method.prompt_parameters()))
    method.after_task(tasks()[1], CONTEXT)
    assert torch.equal(method.prototypes[-1], expected) and list(method.modules) == ["prompts"]
    restored, features = on_words(ModalPrompt, length=2), some_features()
    restored.load_state(method.state())
    restored.modules.load_state_dict(method.modules.state_dict())
    assert torch.equal(restored.route({}, features, False).prompts, method.route({}, features, False).prompts)
    method.before_task(tasks()[2], CONTEXT)
    earlier = {k: v for k, v in restored.state().items() if k != "prototype.task-02"} | {"learned": 1}
    method.load_state(earlier)
    assert list(method.modules) == ["prompts"] and list(method.modules["prompts"]) == ["task-01"]


def test_size_at_7b() -> None:
    """10 words' room for the prompt, 19.9 M for the transform, which the stage does not keep."""
    assert trainable_at_7b(ModalPrompt) == 10 * 4096 + 4096 * 4096 + 4096 + 4096 * 768 + 768


def test_settings_that_are_refused() -> None:
    assert_refused("modalprompt", "top_k", 0, "at least 1")
    assert_refused("modalprompt", "image_share", 1.5, "[0, 1]")
    assert_refused("modalprompt", "reference", "prism", "none, mcitlib")
    assert_refused("modalprompt", "length", 0, "at least 1")
    assert_refused("modalprompt", "lr", -1.0, "greater than 0")


def test_features_of_different_widths_have_a_part_of_the_prototype_each() -> None:
    """cos with the first part for the image, with the rest for the text."""
    torch.manual_seed(0)
    features = Features(image=torch.randn(3, 4), text=torch.randn(3, 6), has_image=torch.ones(3, dtype=torch.bool))
    prototypes = [torch.randn(10) for _ in range(2)]
    image, text = ModalPrompt.cosines(None, features, prototypes)
    for b in range(3):
        for t, c in enumerate(prototypes):
            assert image[b, t] == pytest.approx(torch.cosine_similarity(features.image[b], c[:4], 0).item(), abs=1e-6)
            assert text[b, t] == pytest.approx(torch.cosine_similarity(features.text[b], c[4:], 0).item(), abs=1e-6)

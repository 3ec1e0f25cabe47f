"""`plan` for every family: the formula against torch's counter, on tiny random models and a picture that is really processed."""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import hide_llava.methods.all  # noqa: F401
from hide_llava.adapters.core import Core
from hide_llava.backbones import auto
from hide_llava.backbones.counts import counted, skeleton, thinned
from hide_llava.backbones.pictures import picture_of
from hide_llava.backbones.shapes import CLIP_TEXT, CLIP_VISION, ModelShape
from hide_llava.config import compose
from hide_llava.errors import UserError
from hide_llava.evaluation.batches import key_value_bytes
from hide_llava.methods.base import REGISTRY, Context, Task
from hide_llava.methods.registry import method_config
from hide_llava.planning.cards import CARDS
from hide_llava.planning.estimate import Work
from hide_llava.planning.flops import Flops
from hide_llava.planning.plan import plan
from hide_llava.planning.sizes import Sizes, sizes, sizes_of_alike_layers
from hide_llava.training.memory import activations
from hide_llava.training.run import Run

HEIGHT, WIDTH = 90, 140
TEXT = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 120, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
SQUARE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 7,
}  # fmt: skip
SIGLIP = {**SQUARE, "model_type": "siglip_vision_model", "vision_use_head": False}
CLIP = {**SQUARE, "model_type": "clip_vision_model", "num_hidden_layers": 3}
PINS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
Made = tuple[t.PretrainedConfig, Any]


def qwen(kind: str) -> Made:
    patch = 14 if kind in ("qwen2_vl", "qwen2_5_vl") else 16
    size = {"shortest_edge": 4 * patch**2, "longest_edge": 400 * patch**2}
    image = t.Qwen2VLImageProcessorPil(patch_size=patch, merge_size=2, size=size)
    special = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}
    rope = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}
    text = {**TEXT, "rope_parameters": rope, **({} if patch == 14 else {"head_dim": 16})}
    if kind == "qwen2_vl":
        vision = {"depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
        return t.Qwen2VLConfig(text_config=text, vision_config=vision, **special), image
    vision = {"depth": 3, "hidden_size": 32, "out_hidden_size": 48, "intermediate_size": 48, "num_heads": 2,
              "patch_size": patch}  # fmt: skip
    if kind == "qwen2_5_vl":
        vision |= {"window_size": 56, "fullatt_block_indexes": [1]}
        return t.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **special), image
    vision |= {"num_position_embeddings": 36}
    vision |= {"deepstack_visual_indexes": [0, 1]}
    if kind == "qwen3_vl_moe":
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
        return t.Qwen3VLMoeConfig(text_config=text, vision_config=vision, **special), image
    return t.Qwen3VLConfig(text_config=text, vision_config=vision, **special), image


def internvl() -> Made:
    image = t.GotOcr2ImageProcessorPil(
        size={"height": 28, "width": 28}, crop_to_patches=True, min_patches=1, max_patches=6
    )
    vision = {**SQUARE, "image_size": [28, 28], "patch_size": [7, 7]}
    text = {**TEXT, "model_type": "qwen2"}
    return t.InternVLConfig(text_config=text, vision_config=vision, image_seq_length=4, image_token_id=5), image


def anyres(kind: str) -> Made:
    size = {"image_grid_pinpoints": PINS}
    if kind == "llava_next":
        image = t.LlavaNextImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=PINS
        )
        text = {**TEXT, "model_type": "mistral", "sliding_window": None}
        return t.LlavaNextConfig(
            text_config=text, vision_config=CLIP, vision_feature_layer=-2, image_token_index=5, **size
        ), image
    image = t.LlavaOnevisionImageProcessorPil(size={"height": 28, "width": 28}, image_grid_pinpoints=PINS)
    text = {**TEXT, "model_type": "qwen2"}
    aspect = {"llava_onevision": "anyres_max_9", "llava_onevision, made smaller": "anyres_max_1"}[kind]
    return t.LlavaOnevisionConfig(text_config=text, vision_config=SIGLIP, image_token_index=5, video_token_index=6,
                                  vision_aspect_ratio=aspect, **size), image  # fmt: skip


def idefics(kind: str, edge: int = 84) -> Made:
    processor, config = {"smolvlm": (t.SmolVLMImageProcessorPil, t.SmolVLMConfig),
                         "idefics3": (t.Idefics3ImageProcessorPil, t.Idefics3Config)}[kind]  # fmt: skip
    image = processor(size={"longest_edge": edge}, max_image_size={"longest_edge": 28}, do_image_splitting=True)
    text = {**TEXT, "model_type": "llama"}
    return config(text_config=text, vision_config=SQUARE, scale_factor=2, image_token_id=5), image


def gemma3() -> Made:
    text = {**TEXT, "head_dim": 16, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
    image = t.Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    return t.Gemma3Config(text_config=text, vision_config=SIGLIP, mm_tokens_per_image=4, image_token_index=5), image


def paligemma() -> Made:
    text = {**TEXT, "model_type": "gemma", "head_dim": 16}
    image = t.SiglipImageProcessorPil(size={"height": 28, "width": 28})
    return t.PaliGemmaConfig(text_config=text, vision_config=SIGLIP, projection_dim=48, image_token_index=5), image


def mistral3() -> Made:
    image = t.PixtralImageProcessorPil(size={"longest_edge": 84}, patch_size={"height": 14, "width": 14})
    vision = {**SQUARE, "model_type": "pixtral", "head_dim": 16, "image_size": 84}
    text = {**TEXT, "model_type": "mistral", "sliding_window": None, "head_dim": 16}
    return t.Mistral3Config(text_config=text, vision_config=vision, spatial_merge_size=2, vision_feature_layer=-1,
                            image_token_index=5), image  # fmt: skip


def llava() -> Made:
    text, image = {**TEXT, "model_type": "llama"}, t.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28)
    return t.LlavaConfig(text_config=text, vision_config=CLIP, image_token_id=5), image


DENSE: dict[str, Callable[[], Made]] = {
    "llava": llava,
    **{kind: lambda kind=kind: qwen(kind) for kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")},
    **{kind: lambda kind=kind: anyres(kind) for kind in ("llava_next", "llava_onevision", "llava_onevision, made smaller")},
    "internvl": internvl,
    **{kind: lambda kind=kind: idefics(kind) for kind in ("idefics3", "smolvlm")},
    "smolvlm, one tile": lambda: idefics("smolvlm", 28),
    "gemma3": gemma3,
    "paligemma": paligemma,
    "mistral3": mistral3,
}  # fmt: skip
OTHERS = {kind: lambda kind=kind: qwen(kind) for kind in ("qwen3_vl_moe",)}


@cache
def made(kind: str) -> tuple[t.PretrainedConfig, Any, t.PreTrainedModel]:
    config, image = {**DENSE, **OTHERS}[kind]()
    torch.manual_seed(0)
    model = t.AutoModelForImageTextToText.from_config(copy.deepcopy(config), attn_implementation="eager")
    return config, image, model.float().eval().requires_grad_(False)


def shape_of(kind: str) -> ModelShape:
    config, image, _ = made(kind)
    shape = ModelShape(config, "", processor=image)
    shape.__dict__["picture"] = picture_of(config, image, HEIGHT, WIDTH)  # of that size instead of the assumed one
    return shape


def pixels(kind: str) -> dict[str, Tensor]:
    """What the model's processor makes of the picture."""
    _, image, model = made(kind)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8))
    more = {"patch_size": 14} if kind == "mistral3" else {}
    found = image([picture], return_tensors="np", **more)
    wanted = inspect.signature(model.model.get_image_features).parameters
    return {k: torch.tensor(np.asarray(v)) for k, v in found.items() if k in wanted}


def seen(kind: str) -> tuple[int, int, Tensor | list[Tensor]]:
    """Operations of tower and projector for the picture, those of the backward pass of the projector, and its result."""
    model = made(kind)[2]
    backbone = auto.bare(model)
    backbone.projector.requires_grad_(True)
    with FlopCounterMode(display=False) as forward:
        result = model.model.get_image_features(**pixels(kind), return_dict=True)
    features = result.pooler_output
    each = list(features) if isinstance(features, (list, tuple)) else [features]
    deep = [x for layer in getattr(result, "deepstack_features", None) or [] for x in layer]
    with FlopCounterMode(display=False) as backward:
        sum(x.sum() for x in [*each, *deep]).backward()
    backbone.projector.requires_grad_(False)
    return forward.get_total_flops(), backward.get_total_flops(), each


# ---------------------------------------------------------------------------------------------------------- operations


@pytest.mark.parametrize("kind", DENSE)
def test_the_decoder_is_what_torch_counts(kind: str) -> None:
    model, flops, n = made(kind)[2], Flops(shape_of(kind)), 40
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        states = model.get_decoder()(inputs_embeds=torch.randn(1, n, 48), use_cache=False).last_hidden_state
        model.get_output_embeddings()(states)
    assert counter.get_total_flops() == flops.forward(n)


@pytest.mark.parametrize("kind", DENSE)
def test_tower_and_projector_are_what_torch_counts(kind: str) -> None:
    flops, (forward, backward, features) = Flops(shape_of(kind)), seen(kind)
    assert flops.vision() + flops.projector(False) == forward
    assert flops.projector(True) - flops.projector(False) == backward
    picture, tokens = flops.picture, sum(len(x.flatten(0, -2)) for x in features)
    if kind == "mistral3":
        assert (tokens, picture.positions) == (24, 28)  # 54 × 84 pixels: 4 lines of 6, each with one token more
    elif kind.split(",")[0] in ("idefics3", "smolvlm"):
        assert picture.positions == tokens_of_idefics(kind)
    else:
        assert picture.positions == tokens + {"internvl": 2, "gemma3": 4}.get(kind, 0)


def tokens_of_idefics(kind: str) -> int:
    """Of what its processor puts in place of an image: words in angle brackets, and ends of lines."""
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

    _, lines, columns = made(kind)[1].get_number_of_image_patches(HEIGHT, WIDTH)
    return len(re.findall(r"<[^>]*>|\n+", get_image_prompt_string(lines, columns, 4, "<fake>", "<image>", "<global>")))


def test_windows_of_the_tower_are_counted() -> None:
    """Qwen2.5-VL: a layer of three attends in full, the others within 4 × 4 patches; the grid is 6 × 10 here."""
    picture = Flops(shape_of("qwen2_5_vl")).picture
    assert picture.rows == 60 and picture.pairs == 60**2 + 2 * (4**2 + 2**2) * (4**2 + 4**2 + 2**2)


def test_an_image_budget_is_the_processors() -> None:
    config, image, _ = made("internvl")
    fewer = copy.deepcopy(image)
    fewer.max_patches = 2
    assert picture_of(config, fewer, HEIGHT, WIDTH).rows < picture_of(config, image, HEIGHT, WIDTH).rows
    assert picture_of(config, None) is None and picture_of(made("llava")[0], None).positions == 16


# ------------------------------------------------------------------------------------------------- sizes and memory


@pytest.mark.parametrize("kind", [*DENSE, *OTHERS])
def test_parameters_are_those_of_the_model(kind: str) -> None:
    config, _, model = made(kind)
    counts, backbone = counted(config), auto.bare(model)
    assert counts.parameters == sum(p.numel() for p in model.parameters())
    assert counts.linears == sum(m.weight.numel() for m in backbone.layers.modules() if isinstance(m, nn.Linear))
    thin = skeleton(thinned(config))
    assert sum(p.numel() for p in auto.bare(thin).projector.parameters()) == sum(
        p.numel() for p in backbone.projector.parameters()
    )
    assert sum(p.numel() for p in thin.parameters()) < counts.parameters


@pytest.mark.parametrize("name", ["lora", "hide", "l2p"])
@pytest.mark.parametrize("kind", DENSE)
def test_sizes_are_those_of_the_loaded_model(kind: str, name: str) -> None:
    """All that a method trains, and where its adapters are: on the decoder alone, whose linears the tower's are named like."""
    shape, tasks, options = shape_of(kind), [Task(0, "task-0", 1)], method_config({"name": name})
    planned = sizes(REGISTRY[name], options, shape, tasks)
    method = REGISTRY[name](options, Core(auto.bare(copy.deepcopy(made(kind)[2]))), tasks)
    method.setup()
    method.before_task(tasks[0], Context(widths=shape.widths))
    assert planned.trained == sum(p.numel() for group in method.params() for p in group["params"])
    where = (0, 0, 0) if name == "l2p" else (14, 2, 0)
    assert (planned.linears, planned.layers, planned.elsewhere) == where
    assert planned == sizes_of_alike_layers(REGISTRY[name], options, shape, tasks)


def test_memory_by_the_shape_of_a_layer() -> None:
    """Gemma3: heads of 16 for a width of 48, four norms a layer and one for queries and for keys."""
    counts = counted(made("gemma3")[0])
    assert counts.normed == 2 * (4 * 48 + (4 + 2) * 16) and counts.heads == 64
    assert counts.read == 2 * (3 * 48 + 64 + 2 * 48 + 80) and counts.written == 2 * (64 + 2 * 32 + 48 + 2 * 80 + 48)
    layers = 4 * counts.normed + 3 * counts.read + 2 * 2 * (4 * 64 + 3 * 80)
    assert activations(counts, 1, 2, False, 10, 1) == 10 * layers + 14 * 120
    assert activations(counts, 1, 2, True, 10, 1) == 10 * (2 * 48 * 2 + layers // 2) + 14 * 120
    assert key_value_bytes(made("gemma3")[0].get_text_config(), 2) == 2 * 2 * 2 * 16 * 2


# --------------------------------------------------------------------------------------------------------------- CLIP


def test_a_clip_beside_the_model() -> None:
    """0.43 B parameters, of which the vision tower runs once an image, where the method routes by images."""
    assert (CLIP_VISION.parameters + CLIP_TEXT.parameters) / 1e9 == pytest.approx(0.43, abs=0.005)
    shape, none = shape_of("qwen3_vl"), Sizes.none()
    beside = ModelShape(shape.config, "", clip_vision=CLIP_VISION, processor=shape.processor)
    own = ModelShape(shape.config, "", processor=shape.processor)
    routed = Sizes(**{**none.__dict__, "needs": frozenset({"clip_image"})})
    assert Work(beside, none, 2).record(0) == Work(own, routed, 2).record(0)
    for ask in (lambda work: work.record(0), Work.answer):
        assert ask(Work(beside, routed, 2)) - ask(Work(own, routed, 2)) == CLIP_VISION.flops
    config = t.CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                                image_size=336, patch_size=14)  # fmt: skip
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        tower = t.CLIPVisionModel._from_config(config, attn_implementation="eager")
        tower(torch.zeros(1, 3, 336, 336))
    assert counter.get_total_flops() == CLIP_VISION.flops


# ----------------------------------------------------------------------------------------------------------- the text


@pytest.fixture
def text_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """The plan of a model folder that holds config.json and, if told so, the picture settings; no weights, no data."""
    monkeypatch.setattr(Run, "prepare", lambda self: None)

    def write(kind: str, settings: bool, *words: str, **how: object) -> str:
        config, image, _ = made(kind)
        (folder := tmp_path / kind).mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str))
        if settings:
            image.save_pretrained(folder)
        words = (f"model.path={folder}", f"data_root={tmp_path}", "model.clip=null", *words)
        return plan(Run(compose(["benchmark=mini-ucit", "model=mini", "train=mini", *words])), **how)

    return write


def test_plan_of_another_family(text_of: Callable[..., str]) -> None:
    text = text_of("qwen3_vl", True, "method=hide", "model.dtype=auto", "model.device=auto", gpu="h100")
    assert "adapts 14 linears of 2 decoder layers; none of the vision tower" in text
    assert "in torch.bfloat16 (model.dtype=auto: planned for a GPU" in text  # small as it is
    assert "a picture of 640 × 480 pixels is assumed: " in text and "CLIP's vision tower on the image" in text
    assert re.search(r"memory of one process in training, rough: .* CLIP's vision tower 1\.1", text)
    assert re.search(r"an answer: .* GFLOP .*; 88 image, 60 prompt", text)


def test_plan_says_what_it_does_not_know(text_of: Callable[..., str]) -> None:
    for kind, why in (("qwen3_vl_moe", "experts"),):
        text = text_of(kind, True, "method=lora", "method.targets=attention")
        (line,) = (line for line in text.splitlines() if "not known" in line and line.startswith("operations"))
        assert why in line and "trained in one task: " in text and "an answer: " not in text
    for method in ("lora", "zero_shot"):
        text = text_of("internvl", False, f"method={method}")
        assert "operations, hours and memory: not known, how many positions an image takes" in text


def test_a_family_without_a_formula_is_refused() -> None:
    with pytest.raises(UserError, match="transformers has no model of it"):
        skeleton(t.LlamaConfig())
    with pytest.raises(UserError, match="not known, the decoder"):
        Flops(shape_of("qwen3_vl_moe")).forward(3)


@pytest.mark.parametrize("kind", DENSE)
def test_hours_on_a_card(kind: str) -> None:
    work = Work(shape_of(kind), Sizes.none(), 2)
    assert CARDS["h100"].training_seconds(work, 1e12, 10) > 0 and CARDS["h100"].answering_seconds(work, 10, 10**9) > 0

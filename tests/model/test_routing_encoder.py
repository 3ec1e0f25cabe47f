"""Routing features equal transformers' CLIP on the same weights, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    CLIPTextModel,
    CLIPVisionModelWithProjection,
    LlavaForConditionalGeneration,
)

from hide_llava.backbones.llava15 import Llava15Vision, see
from hide_llava.backbones.routing_encoder import ClipRoutingEncoder
from hide_llava.errors import UserError
from hide_llava.methods.base import Features
from hide_llava.training.run import Run
from hide_llava.training.session import Session
from tests.tiny import SIZE, configuration

TEXTS = ["What is the object in the image?", "", "a", "Describe it. " * 60, "a", "How\nmany  CELLS?"]


@pytest.fixture(scope="module")
def clip(world: Path) -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection.from_pretrained(world / "clip").eval()


@pytest.fixture(scope="module")
def llava(world: Path, clip: CLIPVisionModelWithProjection) -> LlavaForConditionalGeneration:
    """The tiny LLaVA with the CLIP's own vision tower, as LLaVA-1.5 has."""
    model = LlavaForConditionalGeneration.from_pretrained(world / "llava").eval()
    tower = {k.removeprefix("vision_model."): v for k, v in clip.state_dict().items() if "visual_projection" not in k}
    own = model.model.vision_tower.state_dict()
    prefix = "vision_model." if next(iter(own)).startswith("vision_model.") else ""
    model.model.vision_tower.load_state_dict({prefix + k: v for k, v in tower.items()})
    return model


@pytest.fixture
def folder(world: Path, tmp_path: Path) -> Path:
    """A copy of the CLIP folder that a test may spoil."""
    return shutil.copytree(world / "clip", tmp_path / "clip")


def rows_of(pixels: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Each picture as the pixels of a row of its own."""
    return [{"pixel_values": one} for one in pixels.split(1)]


def test_image_feature_is_clips_image_embedding(
    world: Path, llava: LlavaForConditionalGeneration, clip: CLIPVisionModelWithProjection
) -> None:
    pixels = torch.randn(3, 3, SIZE, SIZE)
    with torch.no_grad():
        want = clip(pixels).image_embeds
    ours = ClipRoutingEncoder(llava, world / "clip").image(see(llava, pixels), rows_of(pixels))
    assert ours.shape == (3, 24) and ours.dtype == torch.float32
    assert ClipRoutingEncoder(llava, world / "clip").width == 24
    torch.testing.assert_close(ours, want, atol=1e-5, rtol=1e-5)
    assert (ours.norm(dim=1) - 1).abs().min() > 1e-3  # not normalised


def test_text_feature_is_the_pooled_text_tower(world: Path, llava: LlavaForConditionalGeneration) -> None:
    """String by string, without padding; long texts are cut at 77 tokens with the end token kept."""
    encoder = ClipRoutingEncoder(llava, world / "clip")
    tokenizer, tower = AutoTokenizer.from_pretrained(world / "clip"), CLIPTextModel.from_pretrained(world / "clip")
    ours = encoder.text(TEXTS)
    assert ours.shape == (len(TEXTS), 24) and ours.dtype == torch.float32
    for text, row in zip(TEXTS, ours):
        ids = tokenizer(text, truncation=True, max_length=77, return_tensors="pt").input_ids
        assert ids.shape[1] <= 77 and ids[0, -1] == 703
        with torch.no_grad():
            want = tower.eval()(ids).pooler_output[0]
        torch.testing.assert_close(row, want, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(encoder.text([text])[0], row, atol=1e-5, rtol=1e-5)  # alone as in a batch
    assert torch.equal(ours[2], ours[4])  # equal strings, equal rows
    assert len({tuple(r) for r in ours.tolist()}) == len(set(TEXTS))


def test_a_text_feature_depends_on_the_text_alone(world: Path, llava: LlavaForConditionalGeneration) -> None:
    """Bit for bit: whatever else is in the batch, whoever asks first and in which precision."""
    apart = [ClipRoutingEncoder(llava, world / "clip").text([text])[0] for text in TEXTS]
    encoder = ClipRoutingEncoder(llava, world / "clip").train()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            together = encoder.text(TEXTS[::-1]).flip(0)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(together, torch.stack(apart))
    assert not together.requires_grad and not encoder.training


def test_a_text_is_encoded_once(world: Path, llava: LlavaForConditionalGeneration) -> None:
    encoder, calls = ClipRoutingEncoder(llava, world / "clip"), []
    encoder.text_model.register_forward_hook(lambda *_: calls.append(1))
    first, again = encoder.text(TEXTS), encoder.text(TEXTS[:2])
    assert len(calls) == len(set(TEXTS)) and torch.equal(first[:2], again)
    encoder.to(torch.float64)  # elsewhere or of another type: nothing that was kept fits
    encoder.text(TEXTS[:1])
    assert len(calls) == len(set(TEXTS)) + 1


def test_engines_see_no_encoder(world: Path, tmp_path: Path) -> None:
    """Processes call a text tower differently often, so none may be divided among them or broadcast."""
    session = Session(Run(configuration(world, "hide", tmp_path / "run")))
    known = {*session.routed.parameters(), *session.routed.buffers()}
    assert session.routed.encoder is not None
    assert not known & {*session.routed.encoder.parameters(), *session.routed.encoder.buffers()}


def test_features_stay_fp32_beside_a_bf16_model(world: Path) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(world / "llava", dtype=torch.bfloat16)
    encoder = ClipRoutingEncoder(model, world / "clip")
    pixels = torch.randn(1, 3, SIZE, SIZE)
    assert encoder.image(see(model, pixels), rows_of(pixels)).dtype == torch.float32
    assert encoder.text(["a"]).dtype == encoder.visual_projection.dtype == torch.float32
    assert not any(p.requires_grad for p in encoder.parameters())


def test_rows_without_an_image_are_zero(world: Path, tmp_path: Path) -> None:
    """In a mixed batch every feature stands in its own row; `zero_image` fills the gap with an all-zero picture's."""
    pixels = torch.randn(2, 3, SIZE, SIZE)
    batch = {"input_ids": torch.ones(3, 1, dtype=torch.long), "has_image": torch.tensor([True, False, True]),
             "pixels": [rows_of(pixels)[0], None, rows_of(pixels)[1]], "texts": ["a", "b", "c"]}  # fmt: skip
    for method, empty in (("hide", True), ("hide-official", False)):
        session = Session(Run(configuration(world, method, tmp_path / "run")))
        vision = session.routed.see(batch)
        found: Features = session.routed.features(batch, vision)
        seen = session.routed.encoder.image(vision, rows_of(pixels))
        assert torch.equal(found.image[0], seen[0]) and torch.equal(found.image[2], seen[1])
        zeros = torch.zeros(1, 3, SIZE, SIZE)
        of_zeros = session.routed.encoder.image(see(session.core.llava, zeros), rows_of(zeros))[0]
        want = torch.zeros(24) if empty else of_zeros
        torch.testing.assert_close(found.image[1], want, atol=1e-6, rtol=0)
        text_only = {**batch, "has_image": torch.tensor([False] * 3), "pixels": [None] * 3}
        assert session.routed.features(text_only, None).image.shape == (3, 24)


def test_the_instruction_is_the_last_line(world: Path, tmp_path: Path) -> None:
    texts = ["How many cells?\nUse one word.", "What is it?\nUse one word.", "How many cells?\nUse a sentence."]
    batch = {"input_ids": torch.ones(3, 1).long(), "has_image": torch.tensor([False] * 3), "texts": texts}
    for option, alike in (("line", True), ("question", False)):
        session = Session(Run(configuration(world, "smolora", tmp_path / "run", f"method.instruction={option}")))
        a, b, c = session.routed.features(batch, None).sentence
        assert torch.equal(a, b) == alike and not torch.equal(a, c)


# ------------------------------------------------------------------------------------------------------------- refused


def rewrite(folder: Path, keep: str) -> None:
    """Keep the tensors whose name does not contain `keep`."""
    file = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if keep not in k}, file, {"format": "pt"})


def test_no_clip_folder(llava: LlavaForConditionalGeneration) -> None:
    with pytest.raises(UserError, match=r"set model\.clip"):
        ClipRoutingEncoder(llava, None)


def test_without_a_text_tower(llava: LlavaForConditionalGeneration, folder: Path) -> None:
    """The vision half of CLIP, as LLaVA's own checkpoints carry it."""
    rewrite(folder, "text_model")
    with pytest.raises(UserError, match=r"lacks weights.*model\.clip"):
        ClipRoutingEncoder(llava, folder)


def test_without_a_visual_projection(llava: LlavaForConditionalGeneration, folder: Path) -> None:
    rewrite(folder, "visual_projection")
    with pytest.raises(UserError, match="no visual_projection"):
        ClipRoutingEncoder(llava, folder)


def test_projection_of_another_width(llava: LlavaForConditionalGeneration, folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file({**load_file(file), "visual_projection.weight": torch.randn(24, 40)}, file, {"format": "pt"})
    with pytest.raises(UserError, match="takes 40 features but LLaVA's vision tower gives 32"):
        ClipRoutingEncoder(llava, folder)


def test_a_folder_that_is_no_clip(llava: LlavaForConditionalGeneration, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no usable CLIP text tower"):
        ClipRoutingEncoder(llava, tmp_path / "empty")


def test_projection_is_found_in_a_bin_file(world: Path, llava: LlavaForConditionalGeneration, folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    ours, want = ClipRoutingEncoder(llava, folder), ClipRoutingEncoder(llava, world / "clip")
    assert torch.equal(ours.visual_projection, want.visual_projection)
    assert torch.equal(ours.text(["a"]), want.text(["a"]))


def test_unknown_encoder_is_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"router\.encoder=dino: expected clip or open_clip"):
        Session(Run(configuration(world, "hide", tmp_path / "run", "router.encoder=dino")))
    Session(Run(configuration(world, "lora", tmp_path / "run", "router.encoder=dino")))  # needs no features, loads none


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_image_feature_of_a_bf16_tower_is_made_in_fp32(given: torch.dtype, world: Path, llava) -> None:
    """In training on a GPU the states are fp32 (CUDA's autocast), in generation bf16; the norm's weights are bf16."""
    half = LlavaForConditionalGeneration.from_pretrained(world / "llava", dtype=torch.bfloat16).eval()
    half.model.vision_tower.load_state_dict(llava.model.vision_tower.state_dict())
    cls = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).to(given)
    none = torch.empty(0)
    ours = ClipRoutingEncoder(half, world / "clip").image(Llava15Vision(none, none, cls), [])
    exact = ClipRoutingEncoder(llava, world / "clip").image(Llava15Vision(none, none, cls.float()), [])
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, exact, atol=2e-2, rtol=2e-2)  # what rounding the norm's weights to bf16 costs

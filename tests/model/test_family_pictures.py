"""Pictures of every family: how many of them a model sees, and what samples are routed by."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel

from hide_llava.backbones.auto import reader_of
from hide_llava.backbones.routing_encoder import ClipBeside, OwnFeatures
from hide_llava.backbones.sentence_encoder import SentenceEncoder
from hide_llava.data.collator import Collator
from hide_llava.errors import UserError
from hide_llava.evaluation.binding import answered_with, differences, refuse_other
from hide_llava.schema import ModelConfig
from hide_llava.training.run import Run
from tests.families import (
    FAMILIES,
    SEVERAL,
    Family,
    Zoo,
    asked,
    furthest,
    logits,
    picture,
)
from tests.tiny import configuration

# ----------------------------------------------------------------------------------------------------------------- the budget

# A budget below what the folder says, and a picture that it makes smaller. Gemma 3 cuts pictures only if it is asked to.
BUDGETS: dict[str, tuple[dict[str, int], tuple[int, int]]] = {
    "qwen2_vl": ({"max_pixels": 3136}, (120, 120)), "qwen2_5_vl": ({"max_pixels": 3136}, (120, 120)),
    "qwen3_vl": ({"max_pixels": 4096}, (120, 120)), "qwen3_vl_moe": ({"max_pixels": 4096}, (120, 120)),
    "mistral3": ({"max_pixels": 784}, (120, 120)), "internvl": ({"max_tiles": 2}, (60, 60)),
    "llava_next": ({"max_tiles": 2}, (90, 80)), "llava_onevision": ({"max_tiles": 2}, (90, 80)),
    "smolvlm": ({"max_tiles": 1}, (90, 60)), "idefics3": ({"max_tiles": 4}, (90, 60)),
    "gemma3": ({"max_tiles": 2}, (600, 300)),
}  # fmt: skip


@pytest.mark.parametrize("family", BUDGETS, indirect=True)
def test_model_and_processor_keep_to_a_budget(family: Family) -> None:
    """Another number of positions, that both agree on, alone and in a batch, with and without weights."""
    budget, size = BUDGETS[family.kind]
    other = family.load(image=budget)
    rows = [
        asked(other, "What is it?", [picture(*size)]),
        asked(other, "How many?"),
        asked(other, "Which?", [picture(40, 80)]),
    ]
    full = family.asked("What is it?", [picture(*size)])
    fewer = len(full["input_ids"]) > len(rows[0]["input_ids"])
    assert fewer or (family.kind == "gemma3" and len(full["input_ids"]) < len(rows[0]["input_ids"]))
    alone = [logits(other, [row])[0] for row in rows]
    assert furthest(logits(other, rows), alone) <= 5e-5
    features = other.see(Collator()(rows[:1])).output.pooler_output
    positions = sum(len(part.flatten(0, -2)) for part in ([features] if isinstance(features, Tensor) else features))
    assert positions == int((rows[0]["input_ids"] == other.model.config.image_token_id).sum())
    read = reader_of(family.folder, None, config=ModelConfig(name="m", path=str(family.folder), image=budget))
    assert read.question("What is it?", [size]).ids == rows[0]["input_ids"].tolist()
    assert read.settings() == other.reader().settings() != family.reader.settings()


@pytest.mark.parametrize("family", [*BUDGETS, "paligemma"], indirect=True)
def test_a_budget_of_another_kind_is_refused(family: Family) -> None:
    taken = next(iter(BUDGETS.get(family.kind, ({},))[0]), None)
    for name in {"max_pixels", "max_tiles"} - {taken}:
        with pytest.raises(UserError, match=rf"model\.image\.{name}=5000: .*{taken or 'takes neither'}"):
            family.load(image={name: 5000})


def test_answers_are_bound_to_the_budget(world: Path, zoo: Zoo, tmp_path: Path) -> None:
    """In place of the transform of pictures, which such a model does not have."""

    def stored(name: str, *more: str) -> dict[str, Any]:
        words = (f"model.path={zoo('qwen3_vl').folder}", "model.clip=null", "model.sentence=null", *more)
        return answered_with(Run(configuration(world, "lora", tmp_path / name, *words)), None, None)

    plain, small = stored("plain"), stored("small", "model.image.max_pixels=4096")
    assert plain["image_transform"] == "processor" and plain["image_budget"] == {"max_pixels": None, "max_tiles": None}
    assert differences(plain, small) == ["max_pixels None there, 4096 now"]
    with pytest.raises(UserError, match=r"answered with other settings \(max_pixels None there, 4096 now\)"):
        refuse_other(tmp_path, json.loads(json.dumps(plain)), small)
    refuse_other(tmp_path, json.loads(json.dumps(small)), stored("again", "model.image.max_pixels=4096"))


# ------------------------------------------------------------------------------------------------------------------- routing


@pytest.fixture(scope="module")
def clip(world: Path) -> ClipBeside:
    shutil.copy(world / "llava" / "preprocessor_config.json", world / "clip")  # other models' pictures are no CLIP's
    return ClipBeside(world / "clip")


def square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    side = max(image.size)
    made = Image.new("RGB", (side, side), colour)
    made.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return made


def of_transformers(folder: Path, images: list[Image.Image]) -> Tensor:
    """CLIP's own features [n, d] of pictures that are padded to squares."""
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    colour = tuple(int(255 * mean) for mean in processor.image_mean)
    pixels = processor([square(image, colour) for image in images], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        found = CLIPModel.from_pretrained(folder).eval().get_image_features(pixel_values=pixels)
    return found if isinstance(found, Tensor) else found.pooler_output


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_a_clip_beside_the_model_gives_clips_features(family: Family, clip: ClipBeside, world: Path) -> None:
    """With pixels of its own, which the model does not see; of a row with two pictures their mean."""
    backbone = family.backbone
    images = [
        [picture(90, 60)],
        [],
        [picture(40, 80)],
        *([[picture(60, 60), picture(90, 60)]] * (family.kind in SEVERAL)),
    ]
    reader, rows = backbone.reader(beside=clip.pixels), [family.asked("What is it?", shown) for shown in images]
    for row, shown in zip(rows, images):
        row["pixels"] = reader.pixels(shown) if shown else None
        assert not shown or row["pixels"]["routing"].shape == (len(shown), 3, 28, 28)
    batch = Collator()(rows)
    vision, pixels = backbone.see(batch), [row for row in batch["pixels"] if row is not None]
    found = clip.image(vision, pixels)
    wanted = torch.stack([of_transformers(world / "clip", shown).mean(0) for shown in images if shown])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert found.shape[1] == clip.width and found.dtype == torch.float32
    torch.testing.assert_close(clip.image(vision, pixels[:1]), found[:1], atol=1e-6, rtol=1e-6)
    without = family.backbone.see(Collator()([family.asked("What is it?", shown) for shown in images]))
    assert torch.equal(without.pooled, vision.pooled)
    assert (
        furthest(logits(backbone, rows), family.logits([family.asked("What is it?", shown) for shown in images])) == 0
    )


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_own_features_do_not_depend_on_the_batch(family: Family, world: Path) -> None:
    """Nor on whether the model trains; a row's width is what a router is told."""
    sentence = SentenceEncoder(world / "sentence")
    backbone = family.load()
    rows = [asked(backbone, "What is it?", shown) for shown in ([picture(90, 60)], [picture(40, 80)], [])]
    if family.kind in SEVERAL:
        rows.append(asked(backbone, "Which?", [picture(60, 60), picture(90, 60)]))
    seen = [row for row in rows if row["pixels"] is not None]
    whole = backbone.see(Collator()(rows)).pooled
    assert whole.shape == (len(seen), OwnFeatures(backbone, sentence).width) and whole.dtype == torch.float32
    alone = torch.cat([backbone.see(Collator()([row])).pooled for row in seen])
    torch.testing.assert_close(whole, alone, atol=2e-5, rtol=1e-5)
    assert (whole[0] - whole[1]).abs().max() > 0.01
    backbone.model.train()
    assert torch.equal(backbone.see(Collator()(rows)).pooled, whole)
    assert backbone.see(Collator()([asked(backbone, "How many?")])) is None


def test_a_tower_with_dropout_looks_without_it(zoo: Zoo, tmp_path: Path) -> None:
    family = zoo("internvl")
    folder = shutil.copytree(family.folder, tmp_path / "internvl")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] |= {"hidden_dropout_prob": 0.5, "projection_dropout": 0.5, "attention_dropout": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    backbone = Family("internvl", folder).load()
    assert any(module.p == 0.5 for module in backbone.tower.modules() if isinstance(module, torch.nn.Dropout))
    rows = [asked(backbone, "What is it?", [picture(90, 60)])]
    seen = backbone.see(Collator()(rows)).pooled
    backbone.model.train()
    assert torch.equal(backbone.see(Collator()(rows)).pooled, seen)
    backbone.model.train()  # as a Trainer does in every step
    assert torch.equal(backbone.see(Collator()(rows)).pooled, seen) and backbone.layers.training

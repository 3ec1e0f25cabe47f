"""A stage's adapter folder is a plain peft adapter: anyone can load it on a plain LLaVA."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from hide_llava.adapters.route import Route
from hide_llava.backbones.vicuna import IMAGE_TOKEN
from hide_llava.data.collator import Collator
from hide_llava.data.dataset import QuestionDataset
from hide_llava.data.records import load_questions
from hide_llava.pipeline import run
from hide_llava.training.run import Run
from hide_llava.training.run_folder import RunFolder
from hide_llava.training.session import Session
from tests.tiny import configuration, write_world

IMAGE_ID, PAD_ID = 512, 513


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world with a model in llava-hf's layout: `<image>` and `<pad>` are rows behind the text vocabulary."""
    world = write_world(tmp_path_factory.mktemp("world"))
    whole = LlavaForConditionalGeneration.from_pretrained(world / "llava")
    whole.resize_token_embeddings(576)
    whole.config.image_token_id, whole.config.pad_token_id = IMAGE_ID, PAD_ID
    whole.save_pretrained(world / "llava")
    return world


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    output = tmp_path_factory.mktemp("runs") / "hide"
    run(configuration(world, "hide", output), evaluate=False, report=False)
    return RunFolder(output)


@pytest.mark.parametrize("stage", [0, 2])
def test_plain_peft_gives_the_same_logits(stage: int, finished: RunFolder, world: Path) -> None:
    session = Session(Run.at(finished.path))
    session.restore(stage)
    folder = finished.stage(f"0{stage + 1}-task{stage}")
    data = world / "data"
    rows = load_questions(data / f"task{stage}" / "test.json")
    questions = QuestionDataset(rows, data, session.backbone.reader())
    batch = Collator(side="right")([questions[0], questions[1], questions[2]])
    assert bool(batch["has_image"].all())
    with torch.no_grad():
        expert = session.method.expert(stage)
        session.method.route = lambda *_: Route([expert])  # this expert alone, nothing folded
        ours = session.routed.eval()(**batch).logits
        session.method.route = lambda *_: Route()
        bare = session.routed(**batch).logits

    plain = LlavaForConditionalGeneration.from_pretrained(world / "llava").eval()
    plain.model.multi_modal_projector.load_state_dict(load_file(folder / "projector.safetensors"))
    model = PeftModel.from_pretrained(plain, str(folder / "adapter")).eval()
    ids = batch["input_ids"].masked_fill(batch["input_ids"] == IMAGE_TOKEN, IMAGE_ID)
    with torch.no_grad():
        pixels = torch.cat([row["pixel_values"] for row in batch["pixels"]])
        theirs = model(input_ids=ids, attention_mask=batch["attention_mask"], pixel_values=pixels).logits
    attended = batch["attention_mask"].bool()
    assert ours.shape[-1] == len(session.backbone.tokenizer) < theirs.shape[-1]
    torch.testing.assert_close(theirs[..., : ours.shape[-1]][attended], ours[attended], atol=1e-5, rtol=1e-5)
    assert (ours - bare)[attended].abs().max() > 1e-2  # the expert does something


def test_the_folder_is_only_an_adapter(finished: RunFolder, world: Path) -> None:
    """Two files; every tensor of the decoder's seven linears, fp32; the projector and the method's state lie beside."""
    for stage in ("01-task0", "02-task1", "03-task2"):
        folder = finished.stage(stage) / "adapter"
        assert {p.name for p in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
        tensors = load_file(folder / "adapter_model.safetensors")
        assert len(tensors) == 2 * 7 * 2 and all(t.dtype == torch.float32 for t in tensors.values())
        assert all("language_model.layers." in k and ".lora_" in k for k in tensors)
        assert all(not k.endswith(("lora_A.expert-01.weight", "lora_B.expert-01.weight")) for k in tensors)

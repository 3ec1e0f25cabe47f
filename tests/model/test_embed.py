"""The splice and the prompts against naive per-row loops; the vision tower runs once."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from hide_llava.backbones.llava15 import Llava15Vision, insert_prompts, see, splice
from hide_llava.backbones.vicuna import IMAGE_TOKEN
from hide_llava.data.collator import Collator
from hide_llava.data.dataset import QuestionDataset, TrainingDataset
from hide_llava.data.records import load_questions, load_records
from hide_llava.data.turns import IGNORE
from hide_llava.evaluation.cells import _Collate
from hide_llava.methods.base import Context, Task
from hide_llava.training.run import Run
from hide_llava.training.session import Session
from tests.tiny import SIZE, configuration

PATCHES = 4


@pytest.fixture(scope="module")
def llava(world: Path) -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(world / "llava").eval()


def batch_of_ids(side: str) -> Tensor:
    """Three rows of different length: image after BOS, no image, image further back."""
    image = [IMAGE_TOKEN] * PATCHES
    rows = [[1, *image, 7, 8], [1, 9, 10], [1, 11, 12, *image, 13]]
    return Collator(side=side)._pad([torch.tensor(r) for r in rows], 0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_patches_land_at_the_image_positions_in_row_order(side: str, llava: LlavaForConditionalGeneration) -> None:
    ids, pixels = batch_of_ids(side), torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        vision = see(llava, pixels)
        ours = splice(llava, ids, vision, llava.model.multi_modal_projector)
        table, projected = llava.get_input_embeddings().weight, llava.model.multi_modal_projector(vision.patches)
    image, used = -1, 0
    for b, row in enumerate(ids.tolist()):
        if IMAGE_TOKEN in row:
            image, used = image + 1, 0
        for n, token in enumerate(row):
            if token == IMAGE_TOKEN:
                assert torch.equal(ours[b, n], projected[image, used])
                used += 1
            else:
                assert torch.equal(ours[b, n], table[token])


def test_splice_equals_upstream(llava: LlavaForConditionalGeneration) -> None:
    """The same embeddings as transformers' own LLaVA makes of the same picture and its `<image>` ids."""
    ids, pixels = batch_of_ids("left"), torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        ours = splice(llava, ids, see(llava, pixels), llava.model.multi_modal_projector)
        mask = (ids != 0).long()
        want = llava(input_ids=ids.masked_fill(ids == IMAGE_TOKEN, 511), pixel_values=pixels, attention_mask=mask)
        got = llava(inputs_embeds=ours, attention_mask=mask)
    torch.testing.assert_close(got.logits[mask.bool()], want.logits[mask.bool()], atol=1e-5, rtol=1e-5)


def test_see_gives_the_selected_and_the_last_layer(llava: LlavaForConditionalGeneration) -> None:
    pixels = torch.randn(2, 3, SIZE, SIZE)
    vision = see(llava, pixels)
    with torch.no_grad():
        out = llava.model.vision_tower(pixels, output_hidden_states=True)
    assert torch.equal(vision.patches, out.hidden_states[-2][:, 1:]) and vision.patches.shape == (2, PATCHES, 32)
    assert torch.equal(vision.cls, out.last_hidden_state[:, 0]) and not vision.patches.requires_grad
    assert torch.equal(vision.pooled, vision.patches.mean(1)) and vision.pooled.dtype == torch.float32


def test_wrong_number_of_images_is_refused(llava: LlavaForConditionalGeneration) -> None:
    ids = batch_of_ids("left")
    for count in (1, 3):
        vision = Llava15Vision(torch.randn(count, 32), torch.randn(count, PATCHES, 32), torch.randn(count, 32))
        with pytest.raises(ValueError, match=rf"8 image positions for {count}×4 patches"):
            splice(llava, ids, vision, llava.model.multi_modal_projector)


def test_text_only_batch(llava: LlavaForConditionalGeneration) -> None:
    ids = torch.tensor([[1, 5, 9], [1, 7, 2]])
    assert torch.equal(splice(llava, ids, None, llava.model.multi_modal_projector), llava.get_input_embeddings()(ids))


# ------------------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("with_labels", [True, False], ids=["labels", "no labels"])
def test_prompts_go_after_bos(side: str, with_labels: bool) -> None:
    """Against one Python loop per row: padding, BOS, prompts, the rest; never a padded prompt."""
    torch.manual_seed(0)
    lengths, width, count = [7, 3, 5, 1], 6, 2
    longest = max(lengths)
    prompts, embeds = torch.randn(4, count, width), torch.randn(4, longest, width)
    mask, labels = torch.zeros(4, longest, dtype=torch.long), torch.full((4, longest), IGNORE)
    for b, n in enumerate(lengths):
        real = slice(longest - n, longest) if side == "left" else slice(0, n)
        mask[b, real] = 1
        labels[b, real] = torch.arange(100 * b, 100 * b + n)
    new_embeds, new_mask, new_labels = insert_prompts(prompts, embeds, mask, labels if with_labels else None)
    assert new_embeds.shape == (4, longest + count, width) and (new_labels is None) == (not with_labels)
    for b, n in enumerate(lengths):
        first = longest - n if side == "left" else 0
        rows, attended, targets = [], [], []
        for position in range(longest):
            rows.append(embeds[b, position])
            attended.append(int(mask[b, position]))
            targets.append(int(labels[b, position]))
            if position == first:
                rows += list(prompts[b])
                attended += [1] * count
                targets += [IGNORE] * count
        assert torch.equal(new_embeds[b], torch.stack(rows))
        assert new_mask[b].tolist() == attended and sum(attended) == n + count
        if with_labels:
            assert new_labels[b].tolist() == targets


def test_prompts_receive_gradients() -> None:
    prompts = torch.randn(2, 3, 4, requires_grad=True)
    out, _, _ = insert_prompts(prompts, torch.randn(2, 5, 4), torch.ones(2, 5, dtype=torch.long), None)
    (2 * out).sum().backward()
    assert torch.equal(prompts.grad, torch.full((2, 3, 4), 2.0))


# ------------------------------------------------------------------------------------------------------------ one pass


def test_what_is_trained_is_aligned_in_memory(world: Path, tmp_path: Path) -> None:
    """Wherever it lay in a mapped file, so that a stage that is gone on with in a new session sums in the same order."""
    session = Session(Run(configuration(world, "hide", tmp_path / "run")))
    for parameter in session.core.projector.parameters():
        place = torch.empty(parameter.numel() + 1)[1:].view_as(parameter)  # 4 bytes behind one
        parameter.data = place.copy_(parameter.data)
    session.begin_stage(session.stages[0], Context(widths=session.widths))
    trained = [p for group in session.method.params() for p in group["params"]]
    assert {id(p) for p in session.core.projector.parameters()} <= {id(p) for p in trained}
    assert all(p.data_ptr() % 64 == 0 for p in trained)


@pytest.mark.parametrize("method", ["hide", "lora"])
def test_the_tower_runs_once(method: str, world: Path, tmp_path: Path) -> None:
    """Once per training forward and once per generate call, routing features included."""
    session = Session(Run(configuration(world, method, tmp_path / "run")))
    session.begin_stage(session.stages[0], Context(widths=session.widths))
    calls: list[int] = []
    tower = session.core.llava.model.vision_tower
    tower.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    reader, data = session.backbone.reader(), world / "data"
    records = load_records(data / "task0" / "train.json", data)
    train = TrainingDataset(records, data, reader)
    session.routed.train()(**Collator(side="right")([train[0], train[7], train[1]]))
    assert calls == [2]  # of three rows one has no image
    session.method.loss(None, {}, session.routed(**Collator(side="right")([train[0], train[1]])).features)
    session.method.after_task(Task(0, "task0", 3), Context())
    questions = load_questions(data / "task0" / "test.json")
    test = QuestionDataset(questions, data, reader)
    calls.clear()
    with session:
        batch = _Collate()([test[0], test[1], test[5]])
        ids, _ = session.routed.generate(batch, 6)
    assert ids.shape[1] > 1 and calls == [2]

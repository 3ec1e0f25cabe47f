"""Batches recorded from the reference's collator and image splice."""

import pytest
import torch
from safetensors.torch import load_file

from hide_llava.backbones.llava15_reader import Llava15Reader, expand_image
from hide_llava.backbones.vicuna import IMAGE_TOKEN, encode_training
from hide_llava.data.collator import Collator
from hide_llava.data.dataset import TrainingDataset
from hide_llava.data.records import load_records
from hide_llava.errors import UserError

PATCHES = 576


@pytest.fixture(scope="module")
def splices(golden):
    return load_file(golden / "misc/mm_splice.safetensors")


def encoded(case, tokenizer, max_length=2048):
    return encode_training(case["conversations"], "image" in case, tokenizer, max_length, "reference")


def collate(pairs):
    """Collate bare (input_ids, labels) pairs."""
    samples = [
        {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "types": {}, "pixels": None, "sizes": [], "text": "",
         "id": 0}
        for ids, labels in pairs
    ]  # fmt: skip
    return Collator()(samples)


@pytest.mark.parametrize("max_length", [2048, 300])
def test_unexpanded_batches(max_length, recorded, cases, tokenizer):
    recording = recorded("misc/collator.json")[str(max_length)]
    rows = [encoded(cases[name], tokenizer, max_length) for name in recording["ids"]]
    batch = collate([(row.input_ids[:max_length], row.labels[:max_length]) for row in rows])
    assert batch["input_ids"].tolist() == recording["input_ids"]
    assert batch["labels"].tolist() == recording["labels"]
    for name, mask, row in zip(recording["ids"], batch["attention_mask"].tolist(), recording["attention_mask"]):
        # The reference drops a literal <unk> (its id is the padding id); we attend to it.
        assert mask == [int(value) for value in row] or name == "unk_in_text"


@pytest.mark.parametrize("key", ["mixed", "trunc", "two_turn_tokens", "unk"])
def test_splice(key, recorded, cases, splices, tokenizer):
    recording = next(entry for entry in recorded("misc/mm_splice.json") if entry["key"] == key)
    limit = recording["tokenizer_model_max_length"]
    pairs = []
    for name in recording["ids"]:
        ids, labels, _ = encoded(cases[name], tokenizer)
        if key == "unk":  # the reference removes positions with the padding id before the splice
            labels = [label for token, label in zip(ids, labels) if token != 0]
            ids = [token for token in ids if token != 0]
        pairs.append(expand_image(ids, labels, PATCHES, limit))
    batch = collate(pairs)
    assert batch["labels"].tolist() == splices[f"{key}.labels"].tolist()
    assert batch["attention_mask"].tolist() == splices[f"{key}.attention_mask"].tolist()


def test_training_dataset_gives_the_recorded_batch(
    golden, recorded, cases, splices, tokenizer, transform, write, tmp_path
):
    recording = next(entry for entry in recorded("misc/mm_splice.json") if entry["key"] == "mixed")
    records = load_records(write([cases[name] for name in recording["ids"]]), golden / "data", tmp_path)
    dataset = TrainingDataset(records, golden / "data", Llava15Reader(tokenizer, PATCHES, transform))
    batch = Collator()([dataset[index] for index in range(3)])
    assert batch["labels"].tolist() == splices["mixed.labels"].tolist()
    assert batch["attention_mask"].tolist() == splices["mixed.attention_mask"].tolist()
    assert batch["ids"] == recording["ids"]
    assert batch["has_image"].tolist() == [True, False, True]
    assert (batch["input_ids"] == IMAGE_TOKEN).sum(1).tolist() == [PATCHES, 0, PATCHES]
    first, none, last = batch["pixels"]
    assert none is None and batch["sizes"][1] == []
    for row in (first, last):
        assert row["pixel_values"].shape == (1, 3, 336, 336) and row["pixel_values"].dtype == torch.float32


def test_where_the_reference_goes_wrong_we_refuse(golden, recorded, cases, tokenizer, transform, write, tmp_path):
    """Every recorded case that trains on nothing, on no image, or crashes there, is skipped with its reason here."""
    recordings = recorded("misc/preprocess_v1.json")["2048"]
    records = load_records(write([cases[recording["id"]] for recording in recordings]), golden / "data", tmp_path)
    reference = Llava15Reader(tokenizer, PATCHES, transform, masks="reference")
    dataset = TrainingDataset(records, golden / "data", reference, on_bad_sample="skip")
    reasons = {bad["id"]: bad["reason"] for bad in dataset.skipped}
    masked = {recording["id"] for recording in recordings if recording["n_label"] == 0}
    assert masked <= set(reasons)
    assert set(reasons) - masked == {
        "image_no_token",  # trained without its image, which still moved the anchor
        "tag_image_uppercase",  # the same
        "text_only_with_image_literal",  # the literal tag was trained on as text
        "image_token_two_turns",  # IndexError
        "long_image",  # the answer lies beyond max_length once the image is expanded
    }
    assert len(dataset) == 20 and len(dataset.modality_lengths) == 20
    lengths = {recording["id"]: recording["modality_lengths_prop"] for recording in recordings}
    kept = [records[index]["id"].strip('"') for index in dataset.indices]
    assert dataset.modality_lengths == [lengths[name] for name in kept]

    exact = TrainingDataset(records, golden / "data", Llava15Reader(tokenizer, PATCHES), on_bad_sample="skip")
    now = {bad["id"]: bad["kind"] for bad in exact.skipped}
    assert set(reasons) - set(now) == {"eos_in_text", "assistant_in_answer"}  # their answers are text, and found
    assert set(now) <= set(reasons) and now["unk_in_text"] == "special token in an answer"
    assert (now["no_answer"], now["empty_answer"]) == ("no answer", "empty answer")


def test_cut_inside_the_image_is_an_error(cases, tokenizer):
    ids, labels, _ = encoded(cases["image_token_second_turn"], tokenizer)
    image = ids.index(IMAGE_TOKEN)
    kept, kept_labels = expand_image(ids, labels, 8, image + 8)
    assert kept[-8:] == [IMAGE_TOKEN] * 8 and len(kept) == len(kept_labels) == image + 8
    for limit in (image + 7, image + 1, image, image - 1):
        with pytest.raises(UserError, match=f"ends at token {image + 8}, beyond the limit of {limit}"):
            expand_image(ids, labels, 8, limit)

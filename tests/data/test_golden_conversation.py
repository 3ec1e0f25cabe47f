"""Ids, labels and routing texts recorded from the reference's preprocessing, on odd records and the training data."""

import pytest

from hide_llava.data.conversation import (
    SYSTEM,
    build_prompt,
    encode_training,
    last_line,
    reference_routing_text,
    routing_text,
)
from hide_llava.data.dataset import modality_length


@pytest.mark.parametrize("max_length", [2048, 300])
def test_ids_and_labels(max_length, recorded, cases, tokenizer):
    recordings = recorded("misc/preprocess_v1.json")[str(max_length)]
    assert len(recordings) == 30
    for recording in recordings:
        case = cases[recording["id"]]
        encoded = encode_training(case["conversations"], "image" in case, tokenizer, max_length)
        assert encoded.input_ids == recording["input_ids"], recording["id"]
        assert encoded.labels == recording["labels"], recording["id"]
        assert encoded.mismatch == ("tokenization mismatch" in recording["stdout"]), recording["id"]
        assert modality_length(case["conversations"], "image" in case) == recording["modality_lengths_prop"]


@pytest.mark.parametrize("task", ["task0", "task1", "task2"])
def test_training_data(task, recorded, tokenizer):
    for record, recording in zip(recorded(f"data/{task}.json"), recorded("misc/preprocess_v1.json")[task], strict=True):
        encoded = encode_training(record["conversations"], "image" in record, tokenizer, 2048)
        assert (encoded.input_ids, encoded.labels) == (recording["input_ids"], recording["labels"])
        assert not encoded.mismatch


def test_reference_routing_text(recorded, cases, tokenizer):
    for recording in recorded("misc/tokenization.json")["clip_text_from_ids"]:
        case = cases[recording["id"]]
        ids = encode_training(case["conversations"], "image" in case, tokenizer, 2048).input_ids
        assert reference_routing_text(ids, tokenizer) == recording["clip_text"], recording["id"]


def test_both_routing_texts_agree_where_the_reference_is_sound(recorded, tokenizer):
    for task in ("task0", "task1", "task2"):
        for record in recorded(f"data/{task}.json"):
            if "image" in record:
                ids = encode_training(record["conversations"], True, tokenizer, 2048).input_ids
                assert routing_text(record["conversations"]) == reference_routing_text(ids, tokenizer)


def test_question_routing_text_keeps_what_the_reference_loses(cases):
    assert routing_text(cases["text_only_single"]["conversations"]) == "What is one two three?"
    assert routing_text(cases["assistant_word_in_question"]["conversations"]) == "Is the ASSISTANT here?"
    assert routing_text(cases["first_from_gpt_skipped"]["conversations"]) == "What?"
    assert routing_text("What is it?\n<image>") == "What is it?"


def test_last_line_is_the_instruction_where_there_is_one():
    assert last_line("Is it red?\nA. Yes\nB. No\nAnswer with the letter.") == "Answer with the letter."
    assert last_line("What is it?\n") == last_line("What is it?") == "What is it?" and last_line("") == ""


def test_prompt_strings(recorded, turns):
    templates = recorded("misc/tokenization.json")["conv_templates"]
    assert build_prompt(turns("Q", "A", "Q2"), generate=True) == templates["vicuna_v1"]["prompt"].replace(
        " USER: Q2 ASSISTANT:", "USER: Q2 ASSISTANT:"
    )
    assert build_prompt(turns("Q", "A")) == SYSTEM + " USER: Q ASSISTANT: A</s>"
    assert build_prompt(turns("Q"), generate=True) == SYSTEM + " USER: Q ASSISTANT:"

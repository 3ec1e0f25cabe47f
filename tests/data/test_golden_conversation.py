"""Ids, labels and routing texts recorded from the reference's preprocessing, on odd records and the training data."""

import random

import pytest

from hide_llava.backbones.vicuna import (
    IMAGE_TOKEN,
    MASKS,
    SYSTEM,
    build_prompt,
    encode_question,
    encode_training,
    reference_routing_text,
)
from hide_llava.data.dataset import modality_length
from hide_llava.data.turns import IGNORE, last_line, routing_text


@pytest.mark.parametrize("max_length", [2048, 300])
def test_ids_and_labels(max_length, recorded, cases, tokenizer):
    recordings = recorded("misc/preprocess_v1.json")[str(max_length)]
    assert len(recordings) == 30
    for recording in recordings:
        case = cases[recording["id"]]
        encoded = encode_training(case["conversations"], "image" in case, tokenizer, max_length, "reference")
        assert encoded.input_ids == recording["input_ids"], recording["id"]
        assert encoded.labels == recording["labels"], recording["id"]
        assert encoded.mismatch == ("tokenization mismatch" in recording["stdout"]), recording["id"]
        assert modality_length(case["conversations"], "image" in case) == recording["modality_lengths_prop"]


@pytest.mark.parametrize("task", ["task0", "task1", "task2"])
def test_training_data(task, recorded, tokenizer):
    for record, recording in zip(recorded(f"data/{task}.json"), recorded("misc/preprocess_v1.json")[task], strict=True):
        for masks in MASKS:
            encoded = encode_training(record["conversations"], "image" in record, tokenizer, 2048, masks)
            assert (encoded.input_ids, encoded.labels) == (recording["input_ids"], recording["labels"])
            assert not encoded.mismatch


@pytest.mark.parametrize("max_length", [2048, 300])
def test_exact_labels_are_the_recorded_ones_where_the_reference_finds_the_answers(
    max_length, recorded, cases, tokenizer
):
    """The ids are the same in every case; labels differ only in the records that the reference gives up."""
    given_up = set()
    for recording in recorded("misc/preprocess_v1.json")[str(max_length)]:
        case = cases[recording["id"]]
        encoded = encode_training(case["conversations"], "image" in case, tokenizer, max_length)
        assert encoded.input_ids == recording["input_ids"], recording["id"]
        if encoded.labels != recording["labels"]:
            given_up.add(recording["id"])
    assert given_up == {"eos_in_text", "unk_in_text", "assistant_in_answer"}


def supervised(encoded, tokenizer):
    """The trained tokens as text, one string for each unbroken span."""
    spans, inside = [], False
    for label in encoded.labels:
        if label != IGNORE:
            token = tokenizer.convert_ids_to_tokens(label)
            spans = [*spans[:-1], spans[-1] + token] if inside else [*spans, token]
        inside = label != IGNORE
    return [span.replace("▁", " ") for span in spans]


# texts of the turns, and what must be trained, whatever the prompt says
PROMPTS = {
    "plain": (["What is it?", "cat"], ["cat"]),
    "ends in ASSISTANT:": (["What is it? ASSISTANT:", "cat"], ["cat"]),
    "ends in Assistant:": (["What is it? Assistant:", "cat"], ["cat"]),
    "templated": (["USER: What is it? ASSISTANT:", "cat"], ["cat"]),
    "in the middle": (["USER: hi ASSISTANT: ho USER: What is it?", "cat"], ["cat"]),
    "second round": (["What?", "cat", "Sure? ASSISTANT:", "yes"], ["cat", "yes"]),
    "three rounds": (["ASSISTANT: a", "b", "c ASSISTANT: d", "e", "f", "g"], ["b", "e", "g"]),
    "in the answer": (["What does it say?", "It says ASSISTANT: hi"], ["It says ASSISTANT: hi"]),
    "end of sequence in the question": (["What is </s> here?", "a tag"], ["a tag"]),
    "both, in two rounds": (["What is </s>? ASSISTANT: ", "a", "and <unk> </s>", "b"], ["a", "b"]),
    "unknown token in the question": (["What is <unk> here?", "a tag"], ["a tag"]),
}


@pytest.mark.parametrize("has_image", [True, False])
@pytest.mark.parametrize("name", PROMPTS)
def test_only_the_answer_and_its_stop_token_are_trained(name, has_image, tokenizer, turns):
    texts, answers = PROMPTS[name]
    first = f"<image>\n{texts[0]}" if has_image else texts[0]
    encoded = encode_training(turns(first, *texts[1:]), has_image, tokenizer, 2048)
    assert supervised(encoded, tokenizer) == [f" {answer}</s>" for answer in answers]
    reference = encode_training(turns(first, *texts[1:]), has_image, tokenizer, 2048, "reference")
    assert encoded.input_ids == reference.input_ids
    assert (encoded.labels == reference.labels) == (name in ("plain", "ends in Assistant:"))


def test_exact_and_reference_agree_on_random_texts(tokenizer, turns):
    """Odd blanks, bytes, line ends and bits of the template, cut and uncut: 600 conversations that the walk can follow."""
    rng, agreed = random.Random(0), 0
    words = ["cat", " ", "  ", "\n", "é", "漢", "😀", "<s", "ASSISTANT", "USER:", "1.5", "\t", "don't", "▁", "\u2028", "</", "…"]
    while agreed < 600:
        texts = ["".join(rng.choice(words) + rng.choice(["", " "]) for _ in range(rng.randint(1, 9)))
                 for _ in range(2 * rng.randint(1, 3))]  # fmt: skip
        limit, has_image = rng.choice([2048, 60]), rng.random() < 0.5
        talk = turns("<image>\n" + texts[0] if has_image else texts[0], *texts[1:])
        if any(word in text for text in texts for word in ("ASSISTANT:", "<s>", "</s>")):
            continue
        walked = encode_training(talk, has_image, tokenizer, limit, "reference")
        if not walked.mismatch:
            assert encode_training(talk, has_image, tokenizer, limit) == walked, texts
            agreed += 1


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


@pytest.mark.parametrize("has_image", [False, True])
def test_a_question_may_follow_others(turns, tokenizer, has_image):
    """Its ids are how the same turns begin in training, up to where the answer does."""
    talk = turns("What is it?", "A star.", "Sure?", "Yes.")
    whole = encode_training([{**talk[0], "value": "<image>\nWhat is it?"}, *talk[1:]] if has_image else talk, has_image,
                            tokenizer, 2048)  # fmt: skip
    asked = encode_question("Sure?", has_image, tokenizer, talk[:2])
    assert whole.input_ids[: len(asked)] == asked
    assert IGNORE not in whole.labels[len(asked) :] and whole.labels[len(asked) - 1] == IGNORE
    marked = [{**talk[0], "value": "What is <image> it?"}, talk[1]]
    if has_image:  # the place that the text names is kept, as it is without turns before
        assert encode_question("Sure?", True, tokenizer, marked) != asked
        assert encode_question("Sure?", True, tokenizer, marked).count(IMAGE_TOKEN) == asked.count(IMAGE_TOKEN) == 1

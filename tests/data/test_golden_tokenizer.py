"""Ids recorded from transformers 4.31 + tokenizers 0.13.3, the reference's stack."""

import json

import pytest

from hide_llava.backbones import llama_tokenizer as module
from hide_llava.backbones.llama_tokenizer import encode, load_tokenizer
from hide_llava.backbones.vicuna import encode_question, tokenize_with_image


@pytest.fixture(params=["base", "misc/llama_fast_export"], ids=["from tokenizer.model", "from tokenizer.json"])
def loaded(request, golden):
    return load_tokenizer(golden / request.param)


def test_strings(loaded, recorded):
    strings = recorded("misc/tokenization.json")["strings"]
    assert len(strings) == 20
    for string in strings:
        assert encode(string["text"], loaded) == string["fast"], string["text"]
        assert loaded(string["text"]).input_ids == string["fast"], string["text"]
        assert loaded.decode(string["fast"]) == string["fast_decode"]
        assert loaded.decode(string["fast"], skip_special_tokens=True) == string["fast_decode_skip"]


def test_prompts_with_image(loaded, recorded):
    tokenization = recorded("misc/tokenization.json")
    for prompt in tokenization["eval_prompts"]:
        assert tokenize_with_image(prompt["prompt"], loaded) == prompt["fast"] == prompt["slow"]
    for case in tokenization["tokenizer_image_token"]:
        assert tokenize_with_image(case["prompt"], loaded) == case["ids"], case["prompt"]


def test_questions(loaded, recorded):
    prompts = {prompt["question_id"]: prompt["fast"] for prompt in recorded("misc/tokenization.json")["eval_prompts"]}
    for question in recorded("data/test.json"):
        assert encode_question(question["text"], True, loaded) == prompts[question["question_id"]]


def test_built_backend_is_the_exported_one(golden):
    built = json.loads(module._build(golden / "base" / "tokenizer.model").to_str())
    exported = json.loads((golden / "misc/llama_fast_export/tokenizer.json").read_text())
    merges = [" ".join(merge) for merge in built["model"].pop("merges")]  # newer files write pairs
    assert merges == exported["model"].pop("merges")
    assert {key: built["model"][key] for key in exported["model"]} == exported["model"]
    for part in ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder"):
        assert built[part] == exported[part], part


def test_padding_is_the_unknown_token(loaded):
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (1, 2, 0)

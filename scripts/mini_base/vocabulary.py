"""The two tokenizers of the small base: LLaMA-format BPE for the decoder, CLIP-format BPE for the text tower.

Both are trained on the words of the pre-training mixture and of the six tasks until every word is one token:
short sequences are what makes CPU experiments quick. Any other text still round-trips, byte by byte.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from hide_llava.benchmarks.mini.domains import DOMAINS
from hide_llava.benchmarks.mini.tasks import TASKS

from .pretrain import draw

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
OFTEN = 20  # a word is counted so often at most: merges then follow the words and not the tasks' share
IMAGE, PAD = "<image>", "<pad>"
PRIVATE = 0xE000  # the first code point that is nobody's letter
# Stood in ArxivQA's questions until the last round of calibration (docs/MINI_UCIT.md), so that the shipped base has its words.
FORMER = "\nRationale: The bars of the figure are looked at from left to right."
_WORD = re.compile(r"[A-Za-z]+|[0-9]")


def corpus(seed: int = 0) -> list[str]:
    """Texts whose words must be single tokens."""
    rng = np.random.default_rng([seed, 99])
    texts = [f"{SYSTEM} USER: ASSISTANT:", *[FORMER] * OFTEN]
    for task in (*TASKS.values(), *DOMAINS.values()):
        for _ in range(400):
            example = task.make(rng)
            texts += ["\n" + example.question, *example.answers]
    words = task_words(seed)
    for _ in range(6000):
        texts += [f"\n{question} {answer}" for question, answer, _ in draw(rng, words, 1, read=0.5).turns]
    return texts


def task_words(seed: int = 0) -> list[str]:
    """Words and numbers of the six tasks and the five domains, sorted: the base meets them in repetition exercises only."""
    rng = np.random.default_rng([seed, 98])
    found = set(_WORD.findall(FORMER))
    for task in (*TASKS.values(), *DOMAINS.values()):
        for _ in range(400):
            example = task.make(rng)
            for text in (example.question, *example.answers):
                found.update(_WORD.findall(text))
    return sorted(found)


def _merges(words: Counter[str], suffix: str) -> list[tuple[str, str]]:
    """BPE merges that turn each word into one token, in training order; suffix: what its last letter carries.

    The trainer has a suffix of its own, but numbers the letters that carry it in the order of a hash table, and breaks ties by
    number: with it every run has other merges. So the last letter stands as a letter of its own while it trains.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=100_000, min_frequency=1, show_progress=False, special_tokens=[])
    marked = {word[:-1] + chr(PRIVATE + ord(word[-1])) if suffix else word: count for word, count in words.items()}
    tokenizer.train_from_iterator([" ".join([word] * min(count, OFTEN)) for word, count in sorted(marked.items())], trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(_unmarked(left, suffix), _unmarked(right, suffix)) for left, right in merges]


def _unmarked(piece: str, suffix: str) -> str:
    last = ord(piece[-1]) - PRIVATE
    return f"{piece[:-1]}{chr(last)}{suffix}" if suffix and last >= 0 else piece


def llama_tokenizer(texts: list[str]) -> Tokenizer:
    """Fast tokenizer with LLaMA's pipeline: "▁" in front, byte fallback, `<s>` first; `<image>`, `<pad>` last."""
    words: Counter[str] = Counter()
    characters: set[str] = {"▁"}
    for text in texts:
        for word in text.split():
            start, *_ = _WORD.findall(word) or [""]
            if word.startswith(start):
                words["▁" + start] += bool(start)
            characters.update(word)
        words.update(line_start for line_start in re.findall(r"\n([A-Za-z]+)", text))
    merges = _merges(words, "")
    specials = ["<unk>", "<s>", "</s>"]
    pieces = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *("".join(pair) for pair in merges)]
    pieces += sorted(characters - set(pieces))
    pieces = list(dict.fromkeys(pieces))

    def added(index: int, content: str) -> dict:
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        return {"id": index, "content": content, **flags}

    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            *(added(index, name) for index, name in enumerate(specials)),
            added(len(pieces), IMAGE),
            added(len(pieces) + 1, PAD),
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                start,
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<s>", "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": [list(pair) for pair in merges],
        },
    }
    return Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))


def save_llama(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json as in llava-hf folders."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": PAD,
        "extra_special_tokens": {"image_token": IMAGE},
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "padding_side": "right",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def save_clip(texts: list[str], folder: Path) -> int:
    """vocab.json, merges.txt and tokenizer_config.json of CLIP's byte-level BPE; returns the vocabulary size."""
    words: Counter[str] = Counter()
    for text in texts:
        words.update(_WORD.findall(text.lower()))
    merges = _merges(words, "</w>")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {piece: index for index, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return len(pieces)

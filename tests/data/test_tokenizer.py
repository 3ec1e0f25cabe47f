"""The tokenizer is proved at load, and refused with a reason."""

import json
import random
import shutil
import time

import pytest
import sentencepiece
from tokenizers import Tokenizer, pre_tokenizers

from hide_llava.backbones import llama_tokenizer as module
from hide_llava.backbones.llama_tokenizer import encode, load_tokenizer
from hide_llava.errors import UserError


@pytest.fixture
def folder(golden, tmp_path):
    """A folder with an exact tokenizer.json that tests may spoil."""
    shutil.copy(golden / "misc/llama_fast_export/tokenizer.json", tmp_path)
    return tmp_path


def spoil(folder, change):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_empty_folder(tmp_path):
    with pytest.raises(UserError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_unreadable_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"not a tokenizer")
    with pytest.raises(UserError, match="not a readable"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.update(post_processor=None), "empty text"),
        (lambda c: c.update(normalizer=c["normalizer"]["normalizers"][1]), "newline"),
        (lambda c: c.update(normalizer=c["normalizer"]["normalizers"][0]), "trailing space"),
        (lambda c: c.update(decoder=None), "comes back as"),
    ],
    ids=["no bos", "no dummy prefix", "spaces kept", "no decoder"],
)
def test_changed_layout_is_refused(folder, change, reason):
    spoil(folder, change)
    with pytest.raises(UserError, match=reason):
        load_tokenizer(folder)


def test_missing_special_token(folder):
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|end|>"}')
    with pytest.raises(UserError, match=r"eos token '<\|end\|>'"):
        load_tokenizer(folder)


def test_sentencepiece_beside_it_is_the_judge(folder, golden):
    shutil.copy(golden / "base/tokenizer.model", folder)
    load_tokenizer(folder)
    spoil(folder, lambda c: c["model"]["merges"].remove("h e"))
    with pytest.raises(UserError, match="sentencepiece gives"):
        load_tokenizer(folder)


def test_converted_folder_has_the_original_vocabulary(folder, tokenizer):
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens(["<image>", "<pad>"])
    backend.save(str(folder / "tokenizer.json"))
    loaded = load_tokenizer(folder)
    assert len(loaded) == len(tokenizer) == 512
    assert encode("a <pad> and <image>", loaded) == encode("a <pad> and <image>", tokenizer)


def test_special_tokens_are_found_before_normalisation(folder, tokenizer):
    spoil(folder, lambda c: [token.update(normalized=True) for token in c["added_tokens"]])
    assert encode("red</s>USER", load_tokenizer(folder)) == encode("red</s>USER", tokenizer)


def test_metaspace_layout_is_put_right(folder, tokenizer):
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    content = json.loads(backend.to_str())
    content["normalizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content))
    loaded = load_tokenizer(folder)
    for text in ("red</s>USER: Why?", "a\n\nb", " x"):
        assert encode(text, loaded) == encode(text, tokenizer)


def test_full_size_vocabulary(tmp_path):
    """32,000 pieces: built in seconds, and equal to sentencepiece on text it has not seen."""
    random.seed(0)
    syllables = [a + b for a in "bcdfghjklmnprstvwxz" for b in ("a", "e", "i", "o", "u", "an", "er", "ing", "ou", "st")]
    words = ["".join(random.choices(syllables, k=random.randint(1, 4))) for _ in range(60000)]
    text = [" ".join(random.choices(words, k=20)) for _ in range(12000)]
    (tmp_path / "text.txt").write_text("\n".join(text[:11900]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=32000, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    start = time.perf_counter()
    loaded = load_tokenizer(tmp_path)
    assert time.perf_counter() - start < 20  # about 0.4 s on an idle machine
    judge = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for line in text[11900:]:
        assert encode(line, loaded)[1:] == judge.encode(line)


def test_llama_vocabulary_must_give_the_known_ids():
    class Llama:
        ids = {"▁the": 278}

        def get_vocab(self):
            return self.ids

        def __len__(self):
            return 32000

    question, newline = [1, 3148, 1001, 29901], [1, 29871, 13]
    assert module._known_ids(Llama(), question, newline) is None
    assert "expected [3148" in module._known_ids(Llama(), [1, 3148, 1001, 29901, 29871], newline)

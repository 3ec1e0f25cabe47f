"""The LLaMA tokenizer of LLaVA-1.5, exactly as the reference trains with it, or an error.

The reference uses the *fast legacy* LLaMA tokenizer: every chunk of text between special tokens gets its own leading
"▁". Loading the same folder through `AutoTokenizer` of transformers 5 gives different ids without a warning, and one
shifted id turns every label of a sample into noise. So this module builds the backend itself and proves it at load.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from hide_llava.errors import UserError

UNDERLINE = "▁"  # what sentencepiece writes for a space

CONVERTED = ("<image>", "<pad>")  # tokens that the conversion to the transformers format adds (backbones/original.py)

# Encoded at every load. Without special tokens inside, so that sentencepiece itself can be asked for the right answer.
PROOF = (
    "",
    " ",
    "\n",
    "\n\nWhat",
    "USER: ",
    "USER:",
    " ASSISTANT: ",
    "\nWhat is the object in the image?\nAnswer the question using a single word or phrase. ASSISTANT:",
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: ",
    " leading",
    "trailing ",
    "two  spaces   three    four",
    "tab\there\r\nwindows line",
    "12345 + 3.14 = [0.10, 0.25, 0.9, 1.0]",
    "A. 1/2 (B) <x> {y} $z$ \\frac{a}{b} a_b-c*d @#%^&~`|",
    "café naïve – “quotes” … Ünïcödé 漢字 русский 😀",
    "▁x ▁▁",
    "aaaaaaaaaa hahahahaha ........ ------",
)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in `folder`, from `tokenizer.json` or, failing that, built from `tokenizer.model`.

    Padding is the unknown token (id 0 for LLaMA), as in the reference. Raises UserError when there is no tokenizer,
    when it is not a LLaMA one, or when a built-in list of strings is not encoded as the reference encodes it.
    """
    folder = Path(folder)
    as_json, as_sentencepiece = folder / "tokenizer.json", folder / "tokenizer.model"
    if as_json.is_file():
        source, backend = as_json, _read_json(as_json)
    elif as_sentencepiece.is_file():
        source, backend = as_sentencepiece, _build(as_sentencepiece)
    else:
        raise UserError(f"{folder} has neither tokenizer.json nor tokenizer.model; point to a LLaVA-1.5 model folder.")

    names = _special_names(folder)
    for role, token in names.items():
        if backend.token_to_id(token) is None:
            raise UserError(f"{source}: the {role} token {token!r} is not in the vocabulary; use a LLaMA tokenizer.")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=names["bos"],
        eos_token=names["eos"],
        unk_token=names["unk"],
        pad_token=names["unk"],
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    wrong = _broken_rule(tokenizer)
    if wrong is None and as_sentencepiece.is_file():
        wrong = _differs_from_sentencepiece(tokenizer, as_sentencepiece)
    if wrong is not None:
        raise UserError(
            f"{source}: this tokenizer would not encode prompts as LLaVA-1.5 was trained ({wrong}); use the original "
            "tokenizer.model, or a tokenizer.json exported from the legacy LLaMA tokenizer."
        )
    return tokenizer


def encode(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids of `text` with the leading BOS; the one call that prompts go through (no padding, no truncation)."""
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=True).ids


# ------------------------------------------------------------------------------------------------ building the backend


def _read_json(path: Path) -> Tokenizer:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        # Converted folders append <image> and <pad>. The reference does not know them (a literal "<pad>" in a text is
        # ordinary text), and images never go through the tokenizer here, so the vocabulary is LLaMA's own again.
        words = len(content["model"]["vocab"])
        kept = [token for token in content["added_tokens"] if token["id"] < words or token["content"] not in CONVERTED]
        # Some early exports look for special tokens in the text after "▁" is put in; the reference looks before.
        content["added_tokens"] = [{**token, "normalized": False} for token in kept]
        backend = Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises a bare Exception for anything it cannot parse
        raise UserError(f"{path} is not a readable tokenizer.json: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    if isinstance(backend.model, BPE) and backend.model.byte_fallback and backend.pre_tokenizer is not None:
        # A LLaMA vocabulary exported with the newer "Metaspace" layout drops the "▁" after special tokens. The
        # vocabulary and merges are the same, so the layout of the reference is put back (and proved by the caller).
        backend.pre_tokenizer = None
        _apply_legacy_layout(backend)
    return backend


def _build(path: Path) -> Tokenizer:
    from transformers.convert_slow_tokenizer import SentencePieceExtractor

    try:
        extractor = SentencePieceExtractor(str(path))
    except Exception as error:  # protobuf's own DecodeError, whose class depends on the protobuf implementation
        raise UserError(f"{path} is not a readable sentencepiece model: {error}") from error
    proto = extractor.proto
    if proto.trainer_spec.model_type != 2 or proto.normalizer_spec.precompiled_charsmap:
        raise UserError(f"{path} is a sentencepiece model but not a LLaMA one (BPE without text normalisation).")
    vocabulary = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    merges = _merges(vocabulary, {piece.piece: piece.score for piece in proto.pieces})
    unk = proto.pieces[proto.trainer_spec.unk_id].piece
    backend = Tokenizer(BPE(vocabulary, merges, unk_token=unk, fuse_unk=True, byte_fallback=True))
    kinds = {2: True, 3: True, 4: False}  # unknown and control pieces are special tokens, user-defined ones are not
    backend.add_tokens(
        [AddedToken(p.piece, normalized=False, special=kinds[p.type]) for p in proto.pieces if p.type in kinds]
    )
    bos = proto.pieces[proto.trainer_spec.bos_id].piece
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1", special_tokens=[(bos, proto.trainer_spec.bos_id)]
    )
    _apply_legacy_layout(backend)
    return backend


def _merges(vocabulary: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """Sentencepiece stores scores, BPE wants ordered merges: best product first, then lowest ids of the two parts.

    transformers 5 orders the merges of one product differently from the version that LLaVA-1.5 was trained with, so its
    helper is not used. Linear in the total length of the vocabulary: 0.2 s for 32,000 pieces.
    """
    merges: list[tuple[str, str]] = []
    for product in sorted(vocabulary, key=lambda piece: -scores[piece]):  # stable: equal scores in id order
        pairs = ((product[:cut], product[cut:]) for cut in range(1, len(product)))
        known = [(left, right) for left, right in pairs if left in vocabulary and right in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges


def _apply_legacy_layout(backend: Tokenizer) -> None:
    """Every chunk gets a leading "▁", spaces become "▁", words are not split before BPE; decoding undoes it once."""
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(UNDERLINE), normalizers.Replace(" ", UNDERLINE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(UNDERLINE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )


def _special_names(folder: Path) -> dict[str, str]:
    """The text of the bos, eos and unk tokens, from the folder's own files, with LLaMA's as defaults."""
    names = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
    for file in ("tokenizer_config.json", "special_tokens_map.json"):  # the second one wins
        path = folder / file
        if not path.is_file():
            continue
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON: {error}") from error
        for role in names:
            value = entries.get(f"{role}_token")
            value = value.get("content") if isinstance(value, dict) else value
            names[role] = value or names[role]
    return names


# --------------------------------------------------------------------------------------------------- proof at load time


def _broken_rule(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """The first rule of the legacy LLaMA tokenizer that does not hold, in words, or None."""
    bos, eos, space = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.get_vocab().get(UNDERLINE)
    if space is None:
        return "its vocabulary has no '▁' piece"
    if encode("", tokenizer) != [bos]:
        return f"the empty text should give only the bos token, but gives {encode('', tokenizer)}"
    newline = encode("\n", tokenizer)
    if newline[:2] != [bos, space] or len(newline) != 3:
        return f"a newline should give bos, '▁', newline, but gives {newline}"
    question = encode("USER:", tokenizer)
    if encode("USER: ", tokenizer) != [*question, space]:
        return "a trailing space should add exactly one '▁'"
    # Multi-turn prompts have text right after </s>; the label walk counts on the "▁" that legacy inserts there.
    around = [*encode("ab", tokenizer), eos, *encode("cd", tokenizer)[1:]]
    if encode(f"ab{tokenizer.eos_token}cd", tokenizer) != around:
        return "text after a special token should be encoded like text at the start"
    for text in PROOF:
        back = tokenizer.decode(encode(text, tokenizer), skip_special_tokens=True)
        if back.lstrip(" ") != text.replace(UNDERLINE, " ").lstrip(" "):
            return f"{text!r} comes back as {back!r}"
    return _known_ids(tokenizer, question, newline)


def _known_ids(tokenizer: PreTrainedTokenizerFast, question: list[int], newline: list[int]) -> str | None:
    """With LLaMA's own 32k vocabulary, `USER: <image>\\n` must give the ids that LLaVA-1.5 was trained on."""
    if tokenizer.get_vocab().get("▁the") != 278 or len(tokenizer) < 32000:
        return None  # another vocabulary, for instance that of a small test model
    got = [*question[1:], newline[1], -200, *newline[1:]]
    want = [3148, 1001, 29901, 29871, -200, 29871, 13]
    return None if got == want else f"'USER: <image>\\n' gives {got}, expected {want}"


def _differs_from_sentencepiece(tokenizer: PreTrainedTokenizerFast, path: Path) -> str | None:
    from sentencepiece import SentencePieceProcessor

    judge = SentencePieceProcessor(model_file=str(path))
    if judge.vocab_size() > len(tokenizer):
        return f"it has {len(tokenizer)} tokens, {path.name} beside it has {judge.vocab_size()}"
    # Besides the fixed strings, pieces spread over the whole vocabulary, each as a word of its own.
    step = max(1, judge.vocab_size() // 300)
    pieces = [
        judge.id_to_piece(i).replace(UNDERLINE, " ")
        for i in range(0, judge.vocab_size(), step)
        if not (judge.is_control(i) or judge.is_unknown(i) or judge.is_byte(i))
    ]
    for text in (*PROOF, *pieces):
        want, got = judge.encode(text), encode(text, tokenizer)[1:]
        if got != want:
            return f"{text!r} gives {got[:12]}, sentencepiece gives {want[:12]}"
    return None

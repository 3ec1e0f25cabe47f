"""Penn-Treebank tokenisation of captions: through Java (the published way) or in Python (an approximation).

Both lower-case and drop the punctuation tokens below, as the COCO caption tools do. Brackets survive: after
lower-casing "-lrb-" is no longer the "-LRB-" of the published list, so it counts as a word there and here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from hide_llava.errors import UserError

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
JAR = "stanford-corenlp-3.4.1.jar"
# Everything the Java tokenizer takes for a line end; one such character inside a caption would shift all later ones.
LINE_BREAKS = re.compile("[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]")


def java_available() -> bool:
    """Whether a Java runtime can be started (the caption metrics' tokenizer and METEOR need one)."""
    return java_version() is not None


def java_version() -> str | None:
    """First line of `java -version`, or None when there is no working Java."""
    java = shutil.which("java")
    return None if java is None else _version_of(java)


@cache
def _version_of(java: str) -> str | None:
    """Asked once: starting Java takes a quarter of a second, and every caption cell wants to know."""
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stderr or done.stdout).strip().splitlines()[0] if (done.stderr or done.stdout).strip() else "java"


def tokenize_java(captions: list[str]) -> list[str]:
    """Tokens of each caption, joined by spaces, from the Stanford tokenizer that pycocoevalcap carries.

    UserError when pycocoevalcap or Java is missing or the tokenizer loses a line.
    """
    try:
        import pycocoevalcap.tokenizer
    except ImportError:
        raise UserError("Caption scores need pycocoevalcap: pip install -e '.[caption]'.") from None
    folder = Path(pycocoevalcap.tokenizer.__file__ or next(iter(pycocoevalcap.tokenizer.__path__))).parent
    jar = next((p for p in (folder / JAR, folder / "tokenizer" / JAR) if p.is_file()), None)
    if jar is None:
        raise UserError(f"{JAR} is missing from the installed pycocoevalcap; reinstall it.")
    lines = [LINE_BREAKS.sub(" ", caption) for caption in captions]
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    command += ["-encoding", "UTF-8"]
    text = "\n".join(lines) + "\n"
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", b"") or b""
        raise UserError(
            f"The Java tokenizer failed: {detail.decode(errors='replace').strip()[-300:] or error}."
        ) from None
    tokenized = done.stdout.decode().split("\n")[: len(lines)]
    if len(tokenized) < len(lines):
        raise UserError(f"The Java tokenizer returned {len(tokenized)} lines for {len(lines)} captions.")
    return [_keep(line.split(" ")) for line in tokenized]


def tokenize_python(captions: list[str]) -> list[str]:
    """The same without Java: close on ordinary captions, not identical in general."""
    return [_keep(_tokens(LINE_BREAKS.sub(" ", caption))) for caption in captions]


def _keep(tokens: list[str]) -> str:
    return " ".join(token for token in (t.strip() for t in tokens) if token and token not in PUNCTUATION)


_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_LOOKALIKES = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "«": '"', "»": '"', "–": "--", "—": "--", "…": "...", "€": "$"}
)
_ABBREVIATIONS = (  # words that keep their period
    "mr mrs ms dr prof st jr sr rev gen col capt lt sgt gov sen rep pres hon inc ltd co corp bros vs etc "
    "approx dept est jan feb mar apr jun jul aug sep sept oct nov dec ave blvd rd mt e.g i.e a.m p.m"
)
_SPLITS = {
    "cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na", "gimme": "gim me", "lemme": "lem me",
}  # fmt: skip
_TOKEN = re.compile(
    r"""
      https?://[^\s"'<>]+[^\s"'<>.,;:!?)]            # web address
    | [\w.+-]+@[\w-]+(?:\.[\w-]+)+                   # mail address
    | (?:[^\W\d_]\.){2,}                             # u.s.a.
    | (?:ABBREVIATIONS)\.                            # mr.
    | (?:no|vol|fig)\.(?=\s*\d)                      # no. 7
    | (?<!\w)'(?:n'(?!\w)|tis\b|twas\b|em\b|cause\b|\d0s\b)   # rock 'n' roll
    | '(?:s|re|ve|ll|d|m)(?![^\W_])                  # clitics
    | n't\b
    | '\d\d(?!\d)                                    # '57
    | \d+(?:[.,:/-]\d+)*(?![.,:/-]?\w)              # 3.5  1,000  1/2  10:30
    | \d*-?[^\W\d_](?:(?!n't\b)\w)*(?:[-/&.](?:(?!n't\b)\w)+)*(?:'(?=[^\W\d_])(?!(?:s|re|ve|ll|d|m|t)\b)\w+)?
    | \d+(?:[.,]\d+)*                               # the 5,000 of 5,000mg
    | \.{2,} | -{2,} | [!?]{2,} | ``|'' | \S
    """.replace("ABBREVIATIONS", "|".join(re.escape(a) for a in _ABBREVIATIONS.split())),
    re.VERBOSE,
)


def _tokens(caption: str) -> list[str]:
    tokens: list[str] = []
    for token in _TOKEN.findall(caption.translate(_LOOKALIKES).lower()):
        if token in _BRACKETS:
            tokens.append(_BRACKETS[token])
        elif token == '"':
            tokens.append("''")
        elif set(token) == {"."} or set(token) == {"-"}:
            tokens.append("...")  # runs of dots and dashes are punctuation, whatever their length
        elif token in _SPLITS:
            tokens += _SPLITS[token].split()
        else:
            tokens.append(token)
    return tokens

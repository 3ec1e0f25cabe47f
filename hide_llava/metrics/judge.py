"""A language model that reads an answer out of a longer text: any OpenAI-compatible server, its answers kept on disk.

The address and the model come from the metric's options, the key from $HIDE_JUDGE_KEY (else $OPENAI_API_KEY; a local
server may need none). Answers are stored under the SHA-256 of everything that was sent, so that a score can be repeated
without the server and nothing is asked twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.metrics.rows import read_json, read_text

PROMPT = """Below are a question about a picture and somebody's response to it. Write down nothing but the final answer
that the response gives, in the form that the question asks for: an option letter, a whole number, a decimal number or a
list. If it gives no answer, write NONE.

Question: {question}

Response: {response}

Final answer:"""
TRIES = 5
BUSY = (408, 409, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Judge:
    """url: base address, e.g. https://host/v1. template: a prompt with {question} and {response}."""

    url: str
    model: str
    template: str
    cache: Path
    max_tokens: int = 128

    @property
    def label(self) -> str:
        """What tables say: the model and the first eight digits of the prompt's SHA-256."""
        return f"judge {self.model}, prompt {hashlib.sha256(self.template.encode()).hexdigest()[:8]}"

    def extract(self, question: str, response: str) -> str:
        """The judge's reading of a response. UserError when the server cannot be reached or says no."""
        prompt = self.template.replace("{question}", question).replace("{response}", response)
        messages = [{"role": "user", "content": prompt}]
        asked = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.max_tokens}
        key = hashlib.sha256(json.dumps([self.url, asked], sort_keys=True).encode()).hexdigest()
        file = self.cache / key[:2] / f"{key}.json"
        if not file.is_file():
            from hide_llava.storage import write_json  # imports torch

            write_json(file, {"url": self.url, "request": asked, "answer": self._ask(asked)})
        return str(read_json(file, "stored judge answer")["answer"])

    def _ask(self, asked: dict) -> str:
        headers = {"Content-Type": "application/json"}
        if secret := os.environ.get("HIDE_JUDGE_KEY") or os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {secret}"
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", data=json.dumps(asked).encode(), headers=headers, method="POST"
        )
        for attempt in range(1, TRIES + 1):
            try:
                with urllib.request.urlopen(request, timeout=120) as reply:
                    return str(json.load(reply)["choices"][0]["message"]["content"]).strip()
            except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
                refused = isinstance(error, urllib.error.HTTPError) and error.code not in BUSY
                if refused or attempt == TRIES:
                    raise UserError(
                        f"The judge at {self.url} ({self.model}) gave no answer after {attempt} tries: {error}; answers "
                        "so far are kept, so repeat the command, or leave judge_url out to score without a judge."
                    ) from None
                time.sleep(min(2.0**attempt, 20.0) * PAUSE)
        raise AssertionError("unreachable")


PAUSE = 1.0
"""Factor of the waiting times between tries."""


def judge_from(options: dict) -> Judge | None:
    """The judge that the options name (judge_url, judge_model, judge_prompt, judge_cache), or None without any.

    UserError when only one of url and model is given, the address is not http(s), or the prompt lacks its places.
    """
    url, model = options.get("judge_url"), options.get("judge_model")
    if not url and not model:
        return None
    if not url or not model:
        raise UserError("A judge needs both judge_url (an OpenAI-compatible base address) and judge_model.")
    if not str(url).startswith(("http://", "https://")):
        raise UserError(f"judge_url is {url!r}; expected an address that starts with http:// or https://.")
    template = PROMPT
    if options.get("judge_prompt"):
        template = read_text(Path(options["judge_prompt"]), "judge prompt")
    if "{question}" not in template or "{response}" not in template:
        raise UserError(f"{options['judge_prompt']}: a judge prompt needs the places {{question}} and {{response}}.")
    root = os.environ.get("HIDE_CACHE") or Path.home() / ".cache" / "hide-llava"
    cache = Path(options.get("judge_cache") or Path(root) / "judge")
    return Judge(str(url), str(model), template, cache.expanduser())

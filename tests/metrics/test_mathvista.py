"""MLLM-ACL's Math rule (docs/METRICS.md), without a judge and with one that runs here."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hide_llava.errors import UserError
from hide_llava.metrics import judge, score, score_files
from hide_llava.metrics.mathvista import RULE_LABEL, infer_option, read_option

CHOICES = ["3/11", "8/11", "6/11", "3/5"]
MULTI = {"answer_type": "text", "choices": CHOICES, "answer": "8/11"}


def number(kind: str, answer: str) -> dict:
    return {"answer_type": kind, "answer": answer}


def one(text: str, fields: dict, **options) -> tuple[float, float]:
    result = score("mathvista", [{"question_id": 1, "text": text}], [{"question_id": 1, "text": "Q", **fields}],
                   options=options)  # fmt: skip
    return result["legacy"]["score"] / 100, result["clean"]["score"] / 100


@pytest.mark.parametrize(
    "text, fields, legacy, clean",
    [
        ("B", MULTI, 1, 1),
        ("The answer is (B) 8/11.", MULTI, 1, 1),
        ("8/11", MULTI, 1, 1),
        ("18/11", MULTI, 1, 0),  # a choice inside a longer number
        ("A or B", MULTI, 0, 0),
        ("A or B", {**MULTI, "answer": "3/11"}, 0, 0),
        ("A man would say 8/11", MULTI, 0, 1),  # the article is taken as option A
        ("I can't process this file. B", MULTI, 0, 1),  # a refusal, whatever follows
        ("Z", MULTI, 0, 0),
        ("none of them", MULTI, 0, 0),
        ("14", number("integer", "14"), 1, 1),
        (" 14 ", number("integer", "14"), 1, 1),
        ("14.", number("integer", "14"), 0, 1),  # int("14.") fails: the judge's work
        ("The number is 14.", number("integer", "14"), 0, 1),
        ("14 or 15", number("integer", "14"), 0, 0),
        ("0", number("integer", "0"), 0, 1),  # a correct zero is falsy
        ("1.2", number("float", "1.20"), 1, 1),
        ("about 1.234", number("float", "1.23"), 0, 1),
        ("[1, 2]", number("list", "[1, 2]"), 0, 1),  # lists can never be right
        ("None", number("list", "None"), 0, 1),
        ("5", number("integer", "6"), 0, 0),
        ("", number("integer", "6"), 0, 0),
    ],
)
def test_rule_without_judge(text, fields, legacy, clean) -> None:
    assert one(text, fields) == (legacy, clean)


def test_option_readers() -> None:
    assert infer_option("a", ["x", "y"]) is None and infer_option("A", ["x", "y"]) == "A"
    assert infer_option("XY", ["x", "q"]) == "A" and read_option("XY", ["x", "q"]) is None
    assert infer_option("E", CHOICES) is None and read_option("(c)", CHOICES) == "C"


def test_gold_comes_from_testmini_by_id(tmp_path: Path) -> None:
    table = {"1": {"pid": "1", "answer": "14", "answer_type": "integer", "choices": None, "query": "How many?"},
             "2": {"pid": "2", **MULTI}}  # fmt: skip
    (tmp_path / "testmini.json").write_text(json.dumps(table))
    answers = tmp_path / "a.jsonl"
    rows = [{"question_id": "testmini_1", "text": "B"}, {"question_id": "testmini_0", "text": "14"}]
    answers.write_text("\n".join(map(json.dumps, rows)))
    result = score_files("mathvista", answers, tmp_path / "testmini.json")
    assert result["score"] == 100 and result["labels"] == [RULE_LABEL] and result["legacy"]["judge"] == "none"
    with pytest.raises(UserError, match=r"Only 1 of 2 .*testmini_1"):
        score("mathvista", rows[1:], [], tmp_path / "testmini.json")
    questions = [{"question_id": "testmini_7", "text": "Q"}]
    with pytest.raises(UserError, match="testmini_7"):
        score("mathvista", rows, questions, tmp_path / "testmini.json")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"answer": "1"}, "answer_type is None"),
        ({**MULTI, "answer": "1/2"}, "none of its choices"),
        ({"answer_type": "integer", "answer": None}, "answer is None"),
    ],
)
def test_incomplete_records_are_refused(fields, message) -> None:
    with pytest.raises(UserError, match=message):
        one("x", fields)


# --------------------------------------------------------------------------------------------------------- the judge


@pytest.fixture
def server(tmp_path: Path, monkeypatch):
    """An OpenAI-compatible server that answers with the last word of the response it is asked about."""
    seen: list[dict] = []
    failing: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
            if failing:
                self.send_error(failing.pop(0))
                return
            prompt = body["messages"][0]["content"]
            said = prompt.split("Response: ")[1].split("\n")[0].split()[-1]
            reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *args) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setattr(judge, "PAUSE", 0.0)
    monkeypatch.setenv("HIDE_JUDGE_KEY", "secret-key")
    options = {
        "judge_url": f"http://127.0.0.1:{running.server_port}/v1",
        "judge_model": "tiny-judge",
        "judge_cache": str(tmp_path / "judged"),
    }
    yield options, seen, failing
    running.shutdown()
    running.server_close()


def test_the_judge_reads_what_the_rule_cannot(server, tmp_path: Path) -> None:
    options, seen, _ = server
    questions = [{"question_id": 1, "text": "How many?", **number("integer", "14")},
                 {"question_id": 2, "text": "Zero?", **number("integer", "0")},
                 {"question_id": 3, "text": "Which?", **MULTI}]  # fmt: skip
    rows = [{"question_id": 1, "text": "I count 14"}, {"question_id": 2, "text": "0"}, {"question_id": 3, "text": "D"}]
    result = score("mathvista", rows, questions, options=options)
    assert result["legacy"]["score"] == pytest.approx(200 / 3)  # 14 and, with a judge, 0; option D is taken as it is
    assert result["legacy"]["judge"] == result["clean"]["judge"] == "tiny-judge"
    assert [label for label in result["labels"] if label.startswith("judge tiny-judge, prompt ")]
    assert len(seen) == 2 and seen[0]["key"] == "Bearer secret-key"
    assert seen[0]["path"] == "/v1/chat/completions" and seen[0]["temperature"] == 0
    assert "How many?" in seen[0]["messages"][0]["content"]
    stored = list((tmp_path / "judged").glob("*/*.json"))
    assert len(stored) == 2 and not any("secret-key" in file.read_text() for file in stored)
    score("mathvista", rows, questions, options=options)
    assert len(seen) == 2  # everything was on disk
    score("mathvista", rows, questions, options={**options, "judge_model": "other"})
    assert len(seen) == 4  # another model is another question


def test_own_prompt_changes_the_label(server, tmp_path: Path) -> None:
    options, seen, _ = server
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Q {question}\nResponse: {response}\n")
    labels = [
        score("mathvista", [{"question_id": 1, "text": "it is 3"}], [{"question_id": 1, **number("integer", "3")}],
              options=o)["labels"]
        for o in (options, {**options, "judge_prompt": str(prompt)})
    ]  # fmt: skip
    assert labels[0] != labels[1] and seen[1]["messages"][0]["content"] == "Q \nResponse: it is 3\n"


def test_a_busy_server_is_asked_again_and_a_refusal_is_explained(server) -> None:
    options, seen, failing = server
    failing += [503, 429]
    assert one("so 14", number("integer", "14"), **options)[0] == 1 and len(seen) == 3
    failing.append(401)
    with pytest.raises(UserError, match=r"tiny-judge.*gave no answer after 1 tries.*401") as error:
        one("so 15", number("integer", "15"), **options)
    assert "secret-key" not in str(error.value)
    failing += [500] * judge.TRIES
    with pytest.raises(UserError, match=f"after {judge.TRIES} tries"):
        one("so 15", number("integer", "15"), **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"judge_url": "http://x"}, "both judge_url"),
        ({"judge_url": "file:///x", "judge_model": "m"}, "http://"),
        ({"judge_url": "http://x", "judge_model": "m", "judge_prompt": "no-such-file"}, "does not exist"),
    ],
)
def test_judge_options_are_checked(options, message) -> None:
    from hide_llava.metrics import get

    with pytest.raises(UserError, match=message):
        get("mathvista").check(options)

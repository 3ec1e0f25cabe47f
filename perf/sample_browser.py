"""How long the sample browser of a large run takes to write, to open, to filter, to sort, to search and to page.

    PYTHONPATH=. python perf/sample_browser.py                      # six tasks of 3,000 questions: 63,000 answers
    PYTHONPATH=. python perf/sample_browser.py --questions 100      # 2,100 answers
    PYTHONPATH=. python perf/sample_browser.py --pictures 0         # without thumbnails

The run is made up: answers, verdicts and weights of a run that forgets, and a JPEG of 640 × 480 for every question (names of 50
different files). Writing is timed in this process; the page in Chromium without a window, opened from the disk, where there is
one. A time of the page is from the event to the finished rows, the smallest of `--rounds`. A search reads all answers the first
time, which is told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from hide_llava.config import compose
from hide_llava.results.report import write_report
from hide_llava.results.thumbnails import MOST
from hide_llava.training.run import Run
from tests.chromium import Chromium, installed

SENTENCE = "a red bus stands in front of the old brick house while two dogs play on wet grass near some trees"
WORDS = SENTENCE.split()
DRAWN = "document.querySelectorAll('.browse tbody tr').length > 0"


def write_pictures(folder: Path, names: list[str], different: int = 50) -> None:
    """JPEG files of smooth noise, as large as photographs of that size."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for k, name in enumerate(names):
        if k < different:
            coarse = Image.fromarray(generator.integers(0, 255, (48, 64, 3), dtype=np.uint8))
            coarse.resize((640, 480)).save(folder / name, quality=85)
        else:
            os.link(folder / names[k % different], folder / name)


def write_run(folder: Path, questions: int, pictures: bool = True) -> Path:
    """A run folder with the answers of six stages; every third answer that was right is lost at a stage drawn at random."""
    config = compose(["benchmark=mini-ucit", "method=hide-mini", "model=mini", f"data_root={folder / 'data'}"])
    tasks, path, drawn = Run.at(_configured(folder, config)).tasks, folder / "run", random.Random(0)
    stages = [{"name": f"{t + 1:02d}-{task.id}", "title": task.title, "train_tasks": [task.id], "status": "complete",
               "eval_tasks": [one.id for one in tasks[: t + 1]]} for t, task in enumerate(tasks)]  # fmt: skip
    manifest = {"schema": 1, "name": "large", "preset": "hide-mini", "method": "hide", "benchmark": "mini-ucit", "model": "mini",
                "seed": 0, "stages": stages,
                "tasks": [{"id": task.id, "title": task.title, "metric": task.metric} for task in tasks]}  # fmt: skip
    (path / "manifest.json").write_text(json.dumps(manifest))
    for t, task in enumerate(tasks):
        ids = [f"{task.id}_{k:05d}" for k in range(questions)]
        images = [f"{identity}.jpg" for identity in ids]
        if pictures:
            write_pictures(task.question_images, images)
        gold = [" ".join(drawn.sample(WORDS, 12 if t in (2, 5) else 1)) for _ in ids]
        texts = [" ".join(drawn.sample(WORDS, 15)) + "?\nAnswer the question using a single word or phrase." for _ in ids]
        task.question_files[0].parent.mkdir(parents=True, exist_ok=True)
        rows = [{"question_id": i, "text": q, "image": image, "answer": g} for i, q, image, g in zip(ids, texts, images, gold)]
        task.question_files[0].write_text(json.dumps(rows))
        lost = [drawn.randint(t + 1, 6) if drawn.random() < 0.33 else 6 for _ in ids]
        for s in range(t, len(tasks)):
            answers, verdicts = [], {}
            for k, identity in enumerate(ids):
                right = s < lost[k] and k % 5 > 0
                weights = [drawn.random() ** 4 + 2 * (e == t) for e in range(s + 1)]
                routing = {f"task-{e + 1:02d}": round(w / sum(weights), 6) for e, w in enumerate(weights)}
                text = gold[k] if right else " ".join(drawn.sample(WORDS, drawn.choice([1, 1, 8])))
                answers.append({"question_id": identity, "prompt": texts[k], "text": text, "token_ids": [1] * 8,
                                "routing": routing})  # fmt: skip
                verdicts[identity] = float(right)
            score = 100 * sum(verdicts.values()) / questions
            cell = path / "eval" / stages[s]["name"] / task.id
            cell.mkdir(parents=True)
            (cell / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
            (cell / "score.json").write_text(json.dumps({
                "metric": task.metric, "score": score, "headline": "clean", "clean": {"score": score}, "verdicts": verdicts,
                "n_expected": questions, "n_scored": questions}))  # fmt: skip
    return path


def _configured(folder: Path, config) -> Path:
    """A run folder that holds nothing but its configuration."""
    run = folder / "run"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump()))
    return run


def time_page(page: Path, profile: Path, rounds: int) -> dict[str, float]:
    """Milliseconds, by what was done."""
    found: dict[str, list[float]] = {}
    with Chromium(profile) as browser:
        for _ in range(rounds):
            browser.look(1600)
            browser.open("about:blank#")
            start = time.perf_counter()
            browser.open(page.as_uri())
            browser.until(DRAWN)
            found.setdefault("open, first rows", []).append(1000 * (time.perf_counter() - start))
            first_paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"
            found.setdefault("first contentful paint of the page", []).append(browser.until(first_paint))
            for what, name, value in [
                ("filter: forgotten", "state", "lost"), ("and misrouted", "misrouted", True), ("filter cleared", None, None),
                ("filter: one task", "task", "iconqa"), ("filter cleared", None, None),
                ("sort: id", "sort", "id"), ("sort: stage when lost", "sort", "lost"), ("sort: score", "sort", "low"),
                ("next page", "page", 1), ("last page", "page", 10**6),
                ("search, first: reads all answers", "q", "wet grass"), ("search, again", "q", "brick house"),
            ]:  # fmt: skip
                found.setdefault(what, []).append(browser.run(ACT % json.dumps([name, value])))
        assert not browser.complaints, browser.complaints
    return {what: min(times) for what, times in found.items()}


# From the event to the rows that are drawn next; a search waits 200 ms for more letters, which are taken off.
ACT = """(async ([name, value]) => {
  const form = document.querySelector('#browser form'), body = document.querySelector('.browse tbody');
  const drawn = new Promise((done) =>
    new MutationObserver((_, it) => { it.disconnect(); done(); }).observe(body, {childList: true}));
  const start = performance.now();
  if (name === null) form.reset();
  else if (name === 'page' && value === 1) document.querySelector('[data-go="1"]').click();
  else if (name === 'page') {
    const box = document.querySelector('[name=page]');
    box.value = value;
    box.dispatchEvent(new Event('change', {bubbles: true}));
  } else {
    const field = form.elements[name];
    if (value === true) field.checked = true; else field.value = value;
    field.dispatchEvent(new Event('input', {bubbles: true}));
  }
  await drawn;
  body.getBoundingClientRect();
  return performance.now() - start - (name === 'q' ? 200 : 0);
})(%s)"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--questions", type=int, default=3000, help="of each of the six tasks")
    parser.add_argument("--pictures", type=int, default=MOST, help="thumbnails at most; 0 makes no pictures either")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep the run there")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = words.folder or Path(temporary)
        run = folder / "run"
        if not (run / "manifest.json").is_file():
            write_run(folder, words.questions, words.pictures > 0)
        print("| what | time |\n|---|---|")
        for what in ("report, first", "report, again"):
            start, used = time.perf_counter(), time.process_time()
            page = write_report(run, words.pictures)
            took, used = time.perf_counter() - start, time.process_time() - used
            print(f"| {what} | {took:.1f} s, {used:.1f} s of a core |", flush=True)
        times = time_page(page, Path(temporary) / "profile", words.rounds) if installed() else {}
        for what, value in times.items():
            print(f"| {what} | {value:.0f} ms |")
        files = [file for file in (page.parent / "samples").rglob("*") if file.is_file()]
        pictures = [file for file in files if file.suffix == ".jpg"]
        scripts = [file for file in files if file.suffix == ".js"]
        for what, some in (("scripts", scripts), ("thumbnails", pictures)):
            print(f"| {what} | {len(some):,} files, {sum(file.stat().st_size for file in some) / 1e6:.1f} MB |")
        print(f"| index.js | {(page.parent / 'samples' / 'index.js').stat().st_size / 1e6:.2f} MB |")


if __name__ == "__main__":
    main()

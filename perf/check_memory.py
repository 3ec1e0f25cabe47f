"""Memory and speed of `hide-llava check` on an annotation file of gigabytes.

    python perf/check_memory.py --gigabytes 2 --images 1000000

Writes a benchmark of one task into a temporary folder: training records in the real format, as many image files (empty:
without --deep they are looked for, not opened), a few questions. Then runs `check` in a process of its own and prints
its peak resident memory and records per CPU second, beside those of a check of 1,000 records (interpreter and libraries).

Target: less than 2 GB for 2 GB of records and a million images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from measure import table

WORDS = ("how", "many", "red", "kites", "are", "over", "the", "river", "and", "which", "of", "them", "is", "nearest")


def image_name(i: int) -> str:
    return f"task/train/{i // 1000:05d}/COCO_train2014_{i:012d}.jpg"


def records(images: int) -> Iterator[str]:
    """Training records as JSON text, without end: two turns each, about 450 bytes, ids and questions all different."""
    i = 0
    while True:
        words = " ".join(WORDS[(i * 7 + k * k) % len(WORDS)] for k in range(24))
        question = f"<image>\nPicture {i}: {words}?\nAnswer the question using a single word or phrase."
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": f"{i % 90} kites"}]
        turns += [{"from": "human", "value": f"And what is number {i}?"}, {"from": "gpt", "value": "a boat"}]
        yield json.dumps({"id": f"{i:09d}", "image": image_name(i % images), "conversations": turns})
        i += 1


def write_data(folder: Path, size: int, images: int) -> int:
    """A benchmark with `size` bytes of training records; the number of records is returned."""
    home = folder / "data" / "task"
    home.mkdir(parents=True)
    count = written = 0
    with (home / "train.json").open("w", encoding="utf-8", buffering=1 << 20) as file:
        for text in records(images):
            file.write(("," if count else "[") + "\n" + text)
            count, written = count + 1, written + len(text) + 2
            if written >= size:
                break
        file.write("\n]\n")
    for i in range(min(images, count)):
        path = folder / "data" / image_name(i)
        if i % 1000 == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT))
    questions = [{"question_id": i, "text": f"What is test number {i}?", "answer": "a boat"} for i in range(3000)]
    (home / "test.json").write_text(json.dumps(questions))
    task = {"id": "task", "title": "Task", "train": "task/train.json", "test": "task/test.json", "metric": "exact_upper",
            "n_train": count, "n_test": 3000}  # fmt: skip
    tree = {"benchmark": {"name": "large", "instructions": "data", "images": "data", "tasks": [task]}}
    (folder / "bench.yaml").write_text(json.dumps(tree))
    return count


def measured_check(folder: Path) -> tuple[float, float, dict]:
    """(CPU seconds, peak MiB, report) of `hide-llava check --json` in a new process."""
    words = [sys.executable, "-m", "hide_llava.cli", "check", f"benchmark={folder}/bench.yaml", f"data_root={folder}"]
    with subprocess.Popen([*words, "--json"], stdout=subprocess.PIPE, text=True) as process:
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = usage.ru_utime + usage.ru_stime
    if process.returncode:
        raise SystemExit(f"check ended with {process.returncode}:\n{out[-2000:]}")
    return seconds, usage.ru_maxrss / 2 ** (20 if sys.platform == "darwin" else 10), json.loads(out)


def measure(size: int, images: int) -> tuple[int, float, float]:
    """(records, CPU seconds, peak MiB) of a check of `size` bytes; the data are removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="check-memory-") as name:
        count = write_data(Path(name), size, images)
        seconds, peak, report = measured_check(Path(name))
        found = next(f for f in report["files"] if f["split"] == "train")
        if (found["records"], found["images"], report["findings"]) != (count, min(images, count), []):
            raise SystemExit(f"check found {found['records']} records and {report['findings']}, written were {count}")
        return count, seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--images", type=int, default=1_000_000)
    args = parser.parse_args()
    _, base_seconds, base_peak = measure(450_000, 1000)
    count, seconds, peak = measure(int(args.gigabytes * 1e9), args.images)
    speed = count / max(seconds - base_seconds, 1e-9)
    print(table(
        ["data", "records", "images", "CPU seconds", "peak MiB", "bytes a record beyond the small check", "records per CPU s"],
        [["small", "", "", f"{base_seconds:.1f}", f"{base_peak:.0f}", "", ""],
         [f"{args.gigabytes:g} GB", f"{count:,}", f"{min(args.images, count):,}", f"{seconds:.1f}", f"{peak:.0f}",
          f"{(peak - base_peak) * 2**20 / count:.0f}", f"{speed:,.0f}"]],
    ))  # fmt: skip


if __name__ == "__main__":
    main()

"""Memory and time of reading records in each shape, beside LLaVA's JSON of the same records.

    python perf/record_formats.py --records 20000 --kilobytes 40

Writes the same records as LLaVA's JSON with the pictures as files, as OpenAI's messages in JSON lines, and as Parquet and a saved
data set that hold the pictures. A process of its own for each then builds the table of records (`load_records`), looks whether
every picture can be decoded, as a run does before it trains, and decodes a thousand of them in random order. Printed is its
peak resident memory, alone, as a ratio to LLaVA's JSON and beyond what the imports take, and the CPU seconds of the three
parts. Arrow files are mapped into memory: their pages count as resident as long as nothing else needs the room.

Target: Parquet and JSON lines within 1.5 of LLaVA's JSON, however many records there are.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from measure import table
from PIL import Image

DIFFERENT = 997  # pictures; they come again and again
ROOT = Path(__file__).parent.parent
RANDOM = 1000  # pictures that are decoded in random order
SHAPES = ("LLaVA JSON", "messages", "Parquet", "saved")
READ = """
import json, random, sys, time
from pathlib import Path
from hide_llava.data.dataset import pictures_of
from hide_llava.data.decoded import undecodable
from hide_llava.data.images import load_image
from hide_llava.data.records import load_records
source, root, many = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
sys.path.insert(0, "perf")
from record_formats import resident
import datasets, pyarrow.parquet
before = resident()
times = [time.process_time()]
records = load_records(source, root)
times.append(time.process_time())
assert not undecodable(pictures_of(records, root), workers=2)
times.append(time.process_time())
for index in random.Random(0).choices(range(len(records)), k=many):
    for name in records[index]["image"]:
        load_image(root / name)
times.append(time.process_time())
seconds = [b - a for a, b in zip(times, times[1:])]
print(json.dumps({"records": len(records), "peak": resident(), "before": before, "seconds": seconds}))
"""


def resident() -> float:
    """The most MiB that this program had in memory. getrusage would count those of its parent, before it began."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@lru_cache(DIFFERENT)
def picture(i: int, size: int) -> bytes:
    """A JPEG of about `size` bytes: noise, which does not pack."""
    side = max(8, int((size / 0.9) ** 0.5))
    made = io.BytesIO()
    pixels = np.random.default_rng(i).integers(0, 256, (side, side, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(made, "JPEG", quality=60)
    return made.getvalue()


def record(i: int) -> dict[str, Any]:
    asked, answer = f"<image>\nHow many kites are in picture {i}?", f"{i % 90} kites"
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return {"id": i, "image": f"{i // 1000:04d}/{i}.jpg", "conversations": turns}


def message(i: int) -> dict[str, Any]:
    plain = record(i)
    question = plain["conversations"][0]["value"].removeprefix("<image>\n")
    parts = [{"type": "image_url", "image_url": {"url": plain["image"]}}, {"type": "text", "text": question}]
    return {"id": i, "messages": [{"role": "user", "content": parts},
                                  {"role": "assistant", "content": plain["conversations"][1]["value"]}]}  # fmt: skip


def write(folder: Path, count: int, size: int) -> dict[str, Path]:
    """The sources by shape; the pictures' files lie in `folder`."""
    import datasets

    from hide_llava.data.convert import convert

    for i in range(count):
        file = folder / record(i)["image"]
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(picture(i % DIFFERENT, size))
    sources = {"LLaVA JSON": folder / "train.json", "messages": folder / "messages.jsonl", "Parquet": folder / "train.parquet",
               "saved": folder / "saved"}  # fmt: skip
    sources["LLaVA JSON"].write_text(json.dumps([record(i) for i in range(count)]))
    sources["messages"].write_text("".join(json.dumps(message(i)) + "\n" for i in range(count)))
    convert(sources["LLaVA JSON"], sources["Parquet"], folder)

    def rows() -> Iterator[dict[str, Any]]:
        for i in range(count):
            name = record(i)["image"]
            yield record(i) | {"image": {"bytes": (folder / name).read_bytes(), "path": name}}

    datasets.disable_progress_bars()
    made = datasets.Dataset.from_generator(rows, cache_dir=str(folder / "cache"), writer_batch_size=100)
    made.save_to_disk(sources["saved"])
    return sources


def read(source: Path, folder: Path, many: int) -> dict[str, Any]:
    """What a new process with an empty cache says of it."""
    with tempfile.TemporaryDirectory() as cache:
        words = [sys.executable, "-c", READ, str(source), str(folder), str(many)]
        done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "HIDE_CACHE": cache}, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--kilobytes", type=float, default=40, help="of a picture")
    parser.add_argument("--random", type=int, default=RANDOM, help="pictures that are decoded in random order")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="record-formats-") as name:
        sources = write(Path(name), args.records, int(args.kilobytes * 1000))
        found = {shape: read(sources[shape], Path(name), args.random) for shape in SHAPES}
    first = found["LLaVA JSON"]["peak"]
    print(table(
        ["shape", "records", "peak MiB", "ratio", "MiB beyond the imports", "CPU s: table", "decoding all", "random"],
        [[shape, f"{one['records']:,}", f"{one['peak']:.0f}", f"{one['peak'] / first:.2f}", f"{one['peak'] - one['before']:.0f}",
          *(f"{seconds:.1f}" for seconds in one["seconds"])] for shape, one in found.items()],
    ))  # fmt: skip


if __name__ == "__main__":
    main()

"""Pictures in a table are never all in memory: converting and reading 80 MB of them takes at most 40 MB more than 10 MB."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT = 40  # MiB
MEASURE = """
import json, sys
from pathlib import Path
sys.path.insert(0, "perf")
from record_formats import message, picture, record, resident
from hide_llava.data.convert import convert
from hide_llava.data.dataset import pictures_of
from hide_llava.data.decoded import undecodable
from hide_llava.data.images import load_image
from hide_llava.data.records import load_records

def read(name, count):
    folder = Path(sys.argv[1]) / name
    for i in range(count):
        file = folder / record(i)["image"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(i % 20, 100_000))
    (folder / "messages.jsonl").write_text("".join(json.dumps(message(i)) + "\\n" for i in range(count)))
    made = convert(folder / "messages.jsonl", folder / "train.parquet")
    records = load_records(folder / "train.parquet", folder)
    bad = undecodable(pictures_of(records, folder), workers=2)
    for i in range(0, count, 7):
        load_image(folder / records[i]["image"][0])
    convert(folder / "train.parquet", folder / "back" / "train.json")
    same = all((folder / "back" / record(i)["image"]).read_bytes() == picture(i % 20, 100_000) for i in range(0, count, 50))
    size = (folder / "train.parquet").stat().st_size
    return {"records": made.records, "pictures": made.pictures, "bad": len(bad), "same": same, "peak": resident(), "size": size}

print(json.dumps([read("small", 200), read("large", 1500)]))
"""


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HIDE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, cwd=ROOT,
                          env=environment, timeout=500)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    small, large = json.loads(done.stdout.splitlines()[-1])
    for one, count in ((small, 200), (large, 1500)):
        assert (one["records"], one["pictures"], one["bad"], one["same"]) == (count, count, 0, True)
    assert large["size"] > 75_000_000
    assert large["peak"] - small["peak"] < LIMIT, (small, large)

"""`check` streams: 60 MB of records need less than 60 MB of memory (read as a list of dicts they need about 400)."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT = 60 * 2**20
MEASURE = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, "perf")
from check_memory import write_data
from hide_llava.studies.audit.check import check
from hide_llava.config import compose
from hide_llava.training.run import Run

def audit(name, size):
    folder = Path(sys.argv[1]) / name
    count = write_data(folder, size, 20_000)
    words = [f"benchmark={folder}/bench.yaml", f"data_root={folder}", "method=zero_shot", "model=mini"]
    report = check(Run(compose(words)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"written": count, "found": report.files[0].records, "findings": len(report.findings), "peak": peak}

print(json.dumps([audit("small", 100_000), audit("large", 60_000_000)]))
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, cwd=ROOT,
                          env=environment, timeout=500)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    small, large = json.loads(done.stdout.splitlines()[-1])
    assert large["found"] == large["written"] > 120_000 and large["findings"] == 0
    assert large["peak"] - small["peak"] < LIMIT, (small, large)

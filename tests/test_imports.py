"""A verb imports what it uses: seconds at every start, in every worker and every rank."""

import subprocess
import sys

import pytest

ABOUT_DATA = ("datasets", "pandas", "pyarrow", "fsspec.implementations.http", "transformers.trainer", "matplotlib",
              "pycocoevalcap", "bitsandbytes", "deepspeed", "open_clip")  # fmt: skip


LIGHT = ("torch", "transformers", "numpy", "pydantic", "yaml", "rich", *ABOUT_DATA)


@pytest.mark.parametrize("statement, without", [
    ("import hide_llava.methods.all, hide_llava.evaluation.predict", ABOUT_DATA),
    ("import hide_llava.cli; hide_llava.cli.main(['--help'])", LIGHT),
    ("import hide_llava.cli; hide_llava.cli.main(['run', '--help'])", LIGHT),
    ("import hide_llava.cli; hide_llava.cli.main(['analyze', '--help'])", LIGHT),
    ("import hide_llava.metrics", ("torch", "transformers", *ABOUT_DATA)),
], ids=["predict", "help", "help of run", "help of analyze", "score"])  # fmt: skip
def test_what_is_not_used_is_not_imported(statement: str, without: tuple[str, ...]) -> None:
    code = f"import sys; {statement}; print('\\nimported:', *(m for m in {without!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["imported:"]

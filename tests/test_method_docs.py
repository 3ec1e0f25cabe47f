"""The pages of docs/methods are what scripts/build_method_docs.py makes of the source, and say something in every place."""

import importlib.util
import re
from pathlib import Path

import pytest

from hide_llava.config import names

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def written() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("build_method_docs", ROOT / "scripts" / "build_method_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pages()


def test_committed_pages_are_what_the_generator_writes(written: dict[str, str]) -> None:
    folder = ROOT / "docs" / "methods"
    assert {p.name for p in folder.iterdir()} == written.keys()
    stale = [name for name, text in written.items() if (folder / name).read_text(encoding="utf-8") != text]
    assert not stale, f"run: python scripts/build_method_docs.py (stale: {', '.join(stale)})"


def test_every_page_is_complete(written: dict[str, str]) -> None:
    pages = {name: text for name, text in written.items() if name not in ("README.md", "zero_shot.md")}
    for name, text in pages.items():
        for heading in ("## Hyper-parameters", "## What is stored", "## Cost", "## Presets"):
            assert heading in text, (name, heading)
        rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", text.replace("\\|", "/"), re.MULTILINE)
        assert rows
        for field, cells in rows:
            kind, _, allowed, meaning = cells.split(" | ")
            assert meaning, f"{name}: {field} has no comment in its Config"
            assert allowed or kind.strip("`").startswith(("list", "dict", "str")), f"{name}: {field} has no range"
    shown = {
        preset for text in written.values() for preset in re.findall(r"^\| `method=([\w-]+)` \|", text, re.MULTILINE)
    }
    assert shown == set(names("method"))


def test_pages_state_computed_numbers(written: dict[str, str]) -> None:
    """The arithmetic is in tests/training/test_plan.py."""
    assert "trained in one task: 222.37 M parameters" in written["branchlora.md"]
    assert "(38.2 MiB as bf16)" in written["hide.md"]
    assert re.search(r"^\| \[moelora\]\(moelora.md\) \|.*\| 349.90 \| 1,334.8 \|", written["README.md"], re.MULTILINE)
    assert "the teacher (1 forward without gradient; not in the first task)" in written["lwf.md"]
    assert "**reconstruction**" in written["llavac.md"] and "**oracle**" in written["individual.md"]

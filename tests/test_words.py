"""What docstrings, comments and pages cite is there: files of this repository, their headings, options of the configuration.

A file of somebody else's repository is written OWNER/NAME:path, or as its address.
"""

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from hide_llava.config import compose, names

ROOT = Path(__file__).parent.parent
FOREIGN = re.compile(r"https?://\S+|\b[\w.-]+/[\w.-]+:[\w./*-]*\w")
CITED = re.compile(r"(?<![\w./*{}$<>…-])(?:[\w.*-]+/)*[\w*-]+\.(?:md|py|sh|yaml|toml|json|png|cpp)\b(?![/*{])")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"(docs/[\w/]+\.md), ([A-Z][\w' -]*)")
TOP = ("docs", "tests", "scripts", "configs", "hide_llava", "perf", "examples")
# Files that a command writes, and names that stand for a file of the reader's own.
WRITTEN = ("agreement.md", "cka.md", "comparison.md", "forgetting.md", "leakage.md", "matrix.md", "router.md", "search.md",
           "weights.md")  # fmt: skip
OWN = re.compile(r"(?:\.\./|\./)?(?:\w+/)*(?:my_\w+|mine|orthogonal|elsewhere|copy|NAME)\.(?:py|yaml|md)")
# A section of a page by its number, or of a design that is not here: no reader of the repository can open it.
UNKNOWN = re.compile(r"\w\.md §|\bDESIGN\b|\[DECISION\]")


@cache
def tracked() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


def pages() -> list[str]:
    return [name for name in tracked() if name.endswith(".md")]


def texts() -> list[str]:
    """Every file whose words are looked at."""
    return [n for n in tracked() if n.endswith((".py", ".md", ".yaml", ".sh", ".toml", ".cff")) and n != "tests/test_words.py"]


def docstrings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node) or ""


def words(name: str) -> str:
    """Docstrings and comments of code, comments of YAML and scripts, all of a page and of the published tables."""
    source = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith((".md", ".cff", "published.yaml")):
        return source
    if name.endswith(".py"):
        comments = [t.string for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT]
        return "\n".join([*docstrings(source), *comments])
    return "\n".join(re.findall(r"(?:^|\s)#(.*)$", source, re.MULTILINE))


def is_there(cited: str, name: str) -> bool:
    """A file by its path from the root, from the package, or from the folder of the file that cites it."""
    base = {"", "hide_llava/", "tests/", "docs/", f"{Path(name).parent}/"}
    return any(next(ROOT.glob(f"{folder}{cited}".removeprefix("./")), None) for folder in base)


def missing(name: str, text: str) -> list[str]:
    found = []
    for cited in CITED.findall(FOREIGN.sub(" ", text)):
        of_us = cited.startswith(tuple(f"{top}/" for top in TOP))
        if not (of_us or cited.endswith(".md") or ("/" in cited and cited.endswith(".py"))):
            continue
        if cited.rsplit("/", 1)[-1] in WRITTEN or OWN.fullmatch(cited) or is_there(cited, name):
            continue
        found.append(f"{name}: {cited}")
    return found


@pytest.mark.parametrize("folder", ["hide_llava", "tests", "docs", "configs", "perf", "scripts", "examples", ""])
def test_every_cited_file_is_there(folder: str) -> None:
    inside = [n for n in texts() if (n.startswith(f"{folder}/") if folder else n.split("/")[0] not in TOP)]
    assert [fault for name in inside for fault in missing(name, words(name))] == []


def test_the_rule_sees_a_file_that_is_not_there() -> None:
    text = "docs/NOTHING.md, see nothing.md and methods/nothing.py; fine: docs/DATA.md, methods/hide.py, scripts/*.sh, a.py, "
    text += "cka.md, zackschen/CoIN:ETrain/Eval/nothing.py, https://github.com/a/b/blob/HEAD/nothing.md, ./my_method.py"
    assert missing("x.py", text) == ["x.py: docs/NOTHING.md", "x.py: nothing.md", "x.py: methods/nothing.py"]


def test_no_source_that_nobody_can_open() -> None:
    found = [f"{name}: {hit}" for name in texts()
             for hit in UNKNOWN.findall((ROOT / name).read_text(encoding="utf-8"))]  # fmt: skip
    assert found == []


def slugs(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_links_of_pages_lead_somewhere() -> None:
    broken = []
    for name in pages():
        text = re.sub(r"```.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in LINK.findall(text):
            if re.match(r"https?:|mailto:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (ROOT / name).parent / path if path else ROOT / name
            if not file.exists() or (anchor and anchor not in slugs(file)):
                broken.append(f"{name}: {target}")
    assert broken == []


def test_cited_headings_are_there() -> None:
    cited = [(n, *hit) for n in texts() if n.endswith((".py", ".yaml")) for hit in HEADING.findall(words(n))]
    assert len(cited) > 5
    heads = {page: [s.replace("-", " ") for s in slugs(ROOT / page)] for _, page, _ in cited}
    assert [hit for hit in cited if not any(hit[2].lower().startswith(h) for h in heads[hit[1]])] == []


# ------------------------------------------------------------------------------------------------------ docs/PROTOCOLS.md

PROTOCOLS = (ROOT / "docs" / "PROTOCOLS.md").read_text(encoding="utf-8")
OF_METHOD = {"HiDe": "hide", "DISCO": "disco", "O-LoRA": "olora", "MoELoRA": "moelora", "SAME": "same", "CL-MoE": "clmoe",
             "SMoLoRA": "smolora", "ModalPrompt": "modalprompt", "RegLoRA (SEFE)": "sefe", "SEFE": "sefe"}  # fmt: skip


def table(section: str) -> list[list[str]]:
    text = PROTOCOLS.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()
            if line.startswith("| ") and not line.startswith(("| published", "| method |", "| metric |"))]  # fmt: skip


def options(cell: str) -> list[str]:
    """`key=value` words in the code of a cell."""
    return [word for code in re.findall(r"`([^`]+)`", cell) for word in code.split() if re.fullmatch(r"[\w.]+=\S+", word)]


def test_options_that_restore_published_behaviour_compose() -> None:
    seen = []
    for section in ("Training", "Methods", "Evaluation"):
        for cells in table(section):
            wanted = [word for word in options(cells[-1]) if not word.startswith("model.")]
            if not wanted:
                continue
            method = [] if any(w.startswith("method=") for w in wanted) else [f"method={OF_METHOD.get(cells[0], 'hide')}"]
            benchmark = [] if any(w.startswith("benchmark=") for w in wanted) else ["benchmark=ucit"]
            for one in [[w for w in wanted if not w.startswith("train=")], *([w] for w in wanted if w.startswith("train="))]:
                compose([*benchmark, *method, "model=llava-1.5-7b", *one])
            seen += wanted
    assert len(seen) > 20


def test_every_preset_of_published_code_is_on_the_page() -> None:
    first = PROTOCOLS.split("\n## Training")[0]
    for name in [n for n in names("method") if n.endswith(("-official", "-mcitlib", "-prism"))]:
        assert f"`method={name}`" in first, name
    for benchmark in [n for n in names("benchmark") if n.endswith(("-official", "-original"))]:
        assert benchmark in first, benchmark


# ------------------------------------------------------------------------------------------------------- CONTRIBUTING.md

GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "hide_llava"


def test_every_step_of_the_walks_is_in_its_file() -> None:
    steps = re.findall(r"^\| .+ \| `([\w.]+)` \| `([\w/]+\.py)` \|$", GUIDE, re.MULTILINE)
    assert len(steps) > 25 and GUIDE.count("### Walk ") == 3
    for function, file in steps:
        scope: list[ast.stmt] = ast.parse((PACKAGE / file).read_text(encoding="utf-8")).body
        for name in function.split("."):
            found = [node for node in scope if getattr(node, "name", None) == name]
            assert found, f"{file} has no {function}"
            scope = getattr(found[0], "body", [])


def test_the_tree_names_every_file_and_folder_of_the_package() -> None:
    tree = GUIDE.split("hide_llava/\n")[1].split("```")[0]
    named = set(re.findall(r"\b(\w+(?:\.py|/))", tree))
    there = {f"{p.name}/" for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    there |= {p.name for p in PACKAGE.glob("*.py") if p.name != "__init__.py"}
    assert {name for name in named if name != "base.py"} == there


# ---------------------------------------------------------------------------------------------------------------- configs


def head(group: str, name: str) -> list[str]:
    """The comment that a configuration begins with."""
    lines = (ROOT / "configs" / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]


@pytest.mark.parametrize("name", names("method"))
def test_a_method_says_what_to_expect(name: str) -> None:
    """Its numbers are those of the page that it names."""
    launch, *about, expect = head("method", name)
    assert launch.startswith("# hide-llava run ") and about and expect.startswith("# Expect")
    if "no result is known" in expect:
        return
    if demo := re.match(r"# Expect .* what README\.md prints of the demo: Last ([\d.]+), forgetting ([\d.]+)\.", expect):
        printed = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
        assert {("Last", demo[1]), ("Forgetting", demo[2])} <= {tuple(line.split()) for line in printed}
        return
    last, forgetting, page = re.fullmatch(
        r"# Expect on mini-ucit: Last ([\d.]+)(?:, forgetting (-?[\d.]+))? \((docs/\w+\.md)\)\. Not run at 7B\.", expect
    ).groups()
    rows = [line for line in (ROOT / page).read_text(encoding="utf-8").splitlines() if re.match(rf"\| `?{name}[`\s]", line)]
    assert any(f"| {last} " in row and (forgetting is None or f"| {forgetting} " in row) for row in rows)


@pytest.mark.parametrize("name", names("benchmark"))
def test_a_benchmark_says_what_to_expect(name: str) -> None:
    launch, *about, expect = head("benchmark", name)
    assert launch.startswith("# hide-llava run ") and about
    benchmark = compose([f"benchmark={name}", "method=lora", "model=llava-1.5-7b"]).benchmark
    trained = sum(task.train is not None for task in benchmark.tasks)
    cells = trained * (trained + 1) // 2 + len(benchmark.tasks) - trained + trained * len(benchmark.general)
    assert expect.startswith(f"# Expect {trained} stages and {cells} cells; ")

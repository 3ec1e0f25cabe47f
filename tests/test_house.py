"""The plan of the house: imports run from a higher floor to a lower one, and nobody carries the whole configuration around."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hide_llava"
# From the ground up; what stands in one line may not know each other. A name is a folder of the package or a file in it.
FLOORS = (
    ("errors", "__init__"),
    ("settings", "storage", "distributed", "precision", "launch", "presets", "parser", "plugins", "several",
     "quiet", "yaml_text"),
    ("schema", "progress", "metrics", "completion"),
    ("naming", "data"),
    ("backbones",),
    ("adapters",),
    ("methods", "benchmarks"),
    ("config",),
    ("training",),
    ("evaluation",),
    ("planning", "results", "preflight", "arguments"),
    ("pipeline", "interop"),
    ("parallel",),
    ("grid",),
    ("sweep", "search", "demo", "doctor", "listing", "studies"),
    ("commands",),
    ("data_commands",),
    ("cli",),
)
# Who may take a RunConfig: those that make it, the run that resolves it, and those that a command line calls with it.
WHOLE = ("schema", "naming", "config", "training/run", "training/variant", "pipeline", "grid", "sweep")


def name(file: Path) -> str:
    return str(file.relative_to(PACKAGE).with_suffix(""))


def room(file: Path) -> str:
    return name(file).split("/")[0]


def imported(node: ast.AST) -> Iterator[str]:
    """Modules of the package that are imported anywhere in it, but not those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.ImportFrom) and child.module and child.module.split(".")[0] == "hide_llava":
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names if alias.name.split(".")[0] == "hide_llava")
        else:
            yield from imported(child)


def module(path: str) -> Path | None:
    """The file of `hide_llava.a.b`, or of the module that has `b`."""
    parts = path.split(".")[1:]
    for end in (len(parts), len(parts) - 1):
        for tail in (".py", "/__init__.py"):
            file = PACKAGE / ("/".join(parts[:end]) + tail if parts[:end] else "__init__.py")
            if file.is_file():
                return file
    return None


FILES = sorted(PACKAGE.rglob("*.py"))
EDGES = {file: {found for path in imported(ast.parse(file.read_text())) if (found := module(path))} for file in FILES}


def test_every_room_has_a_floor() -> None:
    rooms = [one for floor in FLOORS for one in floor]
    assert sorted(rooms) == sorted({room(file) for file in FILES})


@pytest.mark.parametrize("above", range(len(FLOORS)))
def test_imports_run_downward(above: int) -> None:
    below = {one for floor in FLOORS[:above] for one in floor}
    wrong = [f"{name(file)} → {name(other)}" for file, others in EDGES.items() if room(file) in FLOORS[above]
             for other in others if room(other) != room(file) and room(other) not in below]  # fmt: skip
    assert not wrong


def test_no_circle() -> None:
    open_, done = [], set()

    def visit(file: Path) -> None:
        assert file not in open_, " → ".join(map(name, [*open_[open_.index(file) :], file]))
        if file not in done:
            open_.append(file)
            for other in EDGES[file] - {file}:
                visit(other)
            done.add(open_.pop())

    for file in FILES:
        visit(file)


def test_nobody_carries_the_whole_configuration() -> None:
    takers = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.arg) and node.annotation and "RunConfig" in ast.unparse(node.annotation):
                takers.add(name(file))
    assert takers <= set(WHOLE)


def test_only_the_command_line_knows_the_studies() -> None:
    knowing = {room(file) for file, others in EDGES.items() if any(room(other) == "studies" for other in others)}
    assert knowing == {"studies", "cli"}

"""Write docs/methods/ from the source: a page per method, and the table of all.

    python scripts/build_method_docs.py

Text and equations are the method's docstring, hyper-parameters the fields of its Config with their comments, ranges what
its types and validators allow, costs what `hide-llava plan` computes for LLaVA-1.5-7B and six tasks. Nothing is typed
by hand, so change the source and run this again; tests/test_method_docs.py compares.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import io
import re
import textwrap
import tokenize
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

import hide_llava.methods.all  # noqa: F401
from hide_llava.backbones.shapes import ModelShape, published
from hide_llava.config import configs_folder, names, read_yaml
from hide_llava.listing import comment
from hide_llava.methods.base import REGISTRY, Method, Task
from hide_llava.methods.registry import method_config
from hide_llava.planning.estimate import Work
from hide_llava.planning.plan import MIB, answer_line, extra_passes, record_line, stored_bytes, trained_lines
from hide_llava.planning.sizes import Sizes, sizes_of_alike_layers
from hide_llava.settings import MethodConfig, Searched, bounds, expected, kinds, learning_rates, strengths
from hide_llava.storage import write_text

FOLDER = Path(__file__).parent.parent / "docs" / "methods"
SHAPE, TASKS = ModelShape(published("7b"), ""), [Task(i, f"task-{i}", 6) for i in range(6)]
NOTE = "<!-- Written by scripts/build_method_docs.py from {}; change that file, not this one. -->\n"
INDEX = """# Methods

One page each, with equations, hyper-parameters, what is stored, costs and presets. Trained and stored numbers are those of
one task (the first) at LLaVA-1.5-7B with the method's own preset, in fp32 and projector included, without what a method keeps
of all tasks (its page says that); `hide-llava plan` prints them for any setting.
**They are not matched**: ranks and targets are the papers', so give `method.rank` for a fair comparison.
How to add a method: [ADD_A_METHOD.md](../ADD_A_METHOD.md).

| method | presets | paper | routes by | labels | trained M | stored MiB | beside plain training and answering |
|---|---|---|---|---|---|---|---|
"""
FEATURES = {"clip_image": "CLIP image", "clip_text": "CLIP text", "sentence": "sentence embedding"}


# ---- from the source ------------------------------------------------------------------------------------------------
def doc(cls: type[Method]) -> str:
    return inspect.getdoc(inspect.getmodule(cls)) or ""


def lineage(config: type[MethodConfig]) -> list[tuple[str, ast.ClassDef]]:
    """The source of a class and of those it inherits options from, the nearest first, and its statements."""
    classes = (c for c in config.__mro__ if issubclass(c, MethodConfig) and c is not MethodConfig)
    sources = [textwrap.dedent(inspect.getsource(c)) for c in classes]
    return [(source, ast.parse(source).body[0]) for source in sources]


def comments(source: str, body: ast.ClassDef) -> dict[str, str]:
    """Field → trailing comment, of the fields that this class itself declares."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    lines = {n.target.id: n.end_lineno for n in body.body if isinstance(n, ast.AnnAssign)}
    return {name: found[line] for name, line in lines.items() if line in found}


@cache
def meanings(config: type[MethodConfig]) -> dict[str, str]:
    """Field → the comment of the nearest class in the line of inheritance that has one."""
    return {name: said for one in reversed(lineage(config)) for name, said in comments(*one).items()}


@cache
def refused(config: type[MethodConfig]) -> list[tuple[str, str]]:
    """(field, what else is required of it) of every `raise ValueError("field=…: must be …")`, at the defaults."""
    default, found = config(), []
    for node in (node for _, body in lineage(config) for node in ast.walk(body) if isinstance(node, ast.Raise)):
        parts = node.exc.args[0].values  # of an f-string: texts, and `self.field`s
        text = "".join(p.value if isinstance(p, ast.Constant) else str(getattr(default, p.value.attr)) for p in parts)
        found.append(re.match(r"(\w+)=(?:{.*?}|.*?): (.*)", text).groups())
    return found


def allowed(config: type[MethodConfig], name: str, field: FieldInfo) -> str:
    """The values that a field takes, in words; of a mapping, those of its keys."""
    chosen = any(one is bool or get_origin(one) is Literal for one in kinds(field.annotation))
    inner = FieldInfo.from_annotation(get_args(field.annotation)[-1]) if get_origin(field.annotation) is dict else field
    words = [expected(field.annotation) if chosen else bounds(inner)]
    words[0] += " or null" if words[0] and NoneType in kinds(field.annotation) else ""
    words += [says.removeprefix("must be ") for one, says in refused(config) if one == name]
    return "; ".join(filter(None, words))


def type_of(kind: object) -> str:
    """`int | None`, `dict[str, float]`, and `str` where it is one of several."""
    if get_origin(kind) in (list, dict):
        return f"{get_origin(kind).__name__}[{', '.join(map(type_of, get_args(kind)))}]"
    names = ("str" if get_origin(one) is Literal else type_of(one) if get_origin(one) else one.__name__ for one in kinds(kind))
    return " | ".join(names).replace("NoneType", "None")


def cell(text: str) -> str:
    """Text inside a table."""
    return text.replace("|", "\\|")


@cache
def all_presets() -> dict[str, dict[str, Path]]:
    """Method → preset → file."""
    found: dict[str, dict[str, Path]] = {}
    for name in names("method"):
        path = configs_folder() / "method" / f"{name}.yaml"
        found.setdefault(read_yaml(path)["method"]["name"], {})[name] = path
    return found


def presets(cls: type[Method]) -> dict[str, Path]:
    return all_presets()[cls.name]


def measured(cls: type[Method]) -> Sizes:
    """Of the preset that has the method's name."""
    path = presets(cls)[cls.name]
    return sizes_of_alike_layers(cls, method_config(read_yaml(path)["method"]), SHAPE, TASKS)


def told(cls: type[Method]) -> bool:
    """Whether the method is told the task of a question, unless an option says otherwise."""
    return cls.is_oracle(vars(cls.Config()))


def routed_by(count: Sizes) -> list[str]:
    """The features that the method routes by, in words."""
    return [words for need, words in FEATURES.items() if need in count.needs]


# ---- Markdown -------------------------------------------------------------------------------------------------------
def body(text: str) -> str:
    """A docstring as Markdown: paragraphs with formulas or columns keep their lines."""
    parts = []
    for paragraph in text.split("\n\n"):
        lines = paragraph.splitlines()
        if re.match(r"(Differences?|Published code)\b", paragraph):
            parts.append("## Differences from published code")
        shaped = any(re.search(r"\S {2,}\S|^ |^\S* = |^L = |^Input: ", line) for line in lines)
        parts.append("```text\n" + paragraph + "\n```" if shaped else paragraph)
    return "\n\n".join(parts)


def parameters(cls: type[Method]) -> str:
    rows = ["| key | type | default | allowed | meaning |", "|---|---|---|---|---|"]
    default = cls.Config()
    for name, field in cls.Config.model_fields.items():
        value = getattr(default, name)
        value = "null" if value is None else cell(str(value).lower() if isinstance(value, bool) else str(value))
        what = cell(meanings(cls.Config).get(name, "").replace("None:", "null:"))
        kind = cell(type_of(field.annotation))
        rows.append(f"| `{name}` | `{kind}` | `{value}` | {cell(allowed(cls.Config, name, field))} | {what} |")
    return "\n".join(rows) if len(rows) > 2 else "None."


def searched(cls: type[Method]) -> str:
    """What a search varies: the learning rate, and the strengths with what is tried of each beside the usual value."""
    rate = next(iter(learning_rates(cls.Config)), "train.learning_rate")
    marks = strengths(cls.Config)
    named = [f"`{name}` ({tried(mark)})" for name, mark in marks.items()]
    kind = "no strength" if not named else f"the strength{'s' * (len(named) > 1)} {' and '.join(named)}"
    return f"`scripts/compare_methods.sh --search` varies the learning rate `{rate}` and {kind}."


def tried(mark: Searched) -> str:
    """`0.25, 0.75, 0.9`, or `÷ 10, × 10, …`."""
    return ", ".join(f"{value:g}" for value in mark.values) or f"÷ {mark.step:g}, × {mark.step:g}, …"


def kept(count: Sizes) -> str:
    """What the folder of the first task holds."""
    rows = []
    if count.files:
        what = "the task's adapter" if len(count.files) == 1 else f"{len(count.files)} adapters"
        rows.append(f"{what}, as plain peft folders: {count.stored_adapter / 1e6:,.2f} M parameters")
    if count.projector:
        rows.append(f"the projector: {count.projector / 1e6:,.2f} M parameters")
    if count.stored_modules:
        rows.append(f"own modules ({', '.join(count.modules)}): {count.stored_modules / 1e6:,.2f} M parameters")
    rows += [f"{name}, from the second task on: {n / 1e6:,.2f} M parameters" for name, n in count.cost.later.items()]
    rows += [f"{what}: {size / MIB:,.1f} MiB after six tasks" for what, size in count.cost.state.items()]
    return "\n".join(f"- {row}" for row in rows)


def page(cls: type[Method], count: Sizes | None) -> str:
    source = f"hide_llava/methods/{inspect.getmodule(cls).__name__.rpartition('.')[2]}.py"
    title, _, rest = doc(cls).partition("\n\n")
    parts = [NOTE.format(source), f"# {cls.name}\n", " ".join(title.split()) + "\n"]
    marks = [f"**{label}**" for label in cls.labels] + (
        ["**oracle**: is told the task of a question"] if told(cls) else []
    )
    parts += [f"Every number of it is marked: {', '.join(marks)}.\n"] if marks else []
    parts += [body(rest) + "\n"] if rest else []
    parts += [
        "## Hyper-parameters\n",
        "`method.<key>=<value>` on the command line, or in a preset.\n",
        parameters(cls) + "\n",
    ]
    parts += [searched(cls) + "\n"] if cls.trains else []
    if count is not None:
        work = Work(SHAPE, count, len(TASKS))
        extra = extra_passes(work)
        needs = routed_by(count)
        parts += ["## What is stored\n", "With every task, here the first:\n", kept(count) + "\n"]
        parts += [
            "## Cost\n",
            "At LLaVA-1.5-7B, six tasks, activation checkpointing, the preset of the method's name.\n",
        ]
        lines = [line for line in trained_lines(count) if not line.startswith(("stored", "kept"))]
        lines += [record_line(work, len(TASKS)), answer_line(work), *(extra or ["extra passes: none"])]
        lines += [f"routing features: {', '.join(needs)}"] if needs else []
        parts.append("\n".join(f"- {line}" for line in lines) + "\n")
    rows = [f"| `method={name}` | {cell(comment(path)) or 'The defaults.'} |" for name, path in presets(cls).items()]
    parts += [
        "## Presets\n",
        "| preset | what it is |\n|---|---|\n" + "\n".join(rows) + "\n",
        f"Source: [{source}](../../{source})",
    ]
    return "\n".join(parts) + "\n"


def row(cls: type[Method], count: Sizes | None) -> str:
    paper = re.search(r"arXiv[: ](\d{4}\.\d{4,5})", doc(cls))
    labels = [*cls.labels, *(["oracle"] if told(cls) else [])]
    numbers, extra, needs = ("0", "0"), [], []
    if count is not None:
        numbers = (f"{count.trained / 1e6:,.2f}", f"{stored_bytes(count) / MIB:,.1f}")
        extra, needs = extra_passes(Work(SHAPE, count, len(TASKS))), routed_by(count)
    cells = [f"[{cls.name}]({cls.name}.md)", ", ".join(presets(cls)),
             f"[{paper.group(1)}](https://arxiv.org/abs/{paper.group(1)})" if paper else "",
             ", ".join(needs), ", ".join(labels), *numbers, "<br>".join(extra)]  # fmt: skip
    return "| " + " | ".join(cell(c) for c in cells) + " |"


def pages() -> dict[str, str]:
    """File name → text."""
    own = sorted((c for c in REGISTRY.values() if c.__module__.startswith("hide_llava.methods.")), key=lambda c: c.name)
    counts = {c.name: measured(c) if c.trains else None for c in own}
    index = NOTE.format("hide_llava/methods/") + "\n" + INDEX + "\n".join(row(c, counts[c.name]) for c in own) + "\n"
    return {"README.md": index, **{f"{c.name}.md": page(c, counts[c.name]) for c in own}}


def main() -> None:
    argparse.ArgumentParser(description="Write docs/methods/ from the source of the methods.").parse_args()
    written = pages()
    for old in FOLDER.glob("*.md"):
        if old.name not in written:
            old.unlink()
    for name, text in written.items():
        write_text(FOLDER / name, text)
    print(f"{len(written)} pages in {FOLDER}")


if __name__ == "__main__":
    main()

"""README.md of an export: what it is, how it is loaded, how well it does, where it comes from, whose licence holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hide_llava.results.run_reader import read_run
from hide_llava.results.tables import format_matrix
from hide_llava.training.run import Run

LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "license*")

LOADING = {
    "hf": """```python
from transformers import AutoModelForImageTextToText

model = AutoModelForImageTextToText.from_pretrained("{here}", dtype="{dtype}")
```""",
    "peft": """```python
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

base = AutoModelForImageTextToText.from_pretrained("{base}", dtype="{dtype}")
{projector}model = PeftModel.from_pretrained(base, "{adapter}")
```""",
    "load": """```python
from load import load  # the load.py of this folder

model = load("{here}")
print(model.answer("picture.png", "What is shown in the picture?"))
```""",
}


def card(run: Run, about: dict[str, Any], source: Path, notes: list[str]) -> str:
    """The text of README.md. about: of export.json. source: the base model's folder."""
    licence = licence_of(source)
    head = [
        "---", f"base_model: {about['base']}", f"library_name: {'transformers' if about['to'] == 'hf' else 'peft'}",
        "pipeline_tag: image-text-to-text", *([f"license: {licence}"] if licence else []),
        "tags: [continual-learning, visual-instruction-tuning, lora, hide-llava]", "---",
    ]  # fmt: skip
    title = f"# {about['run']}, after stage {about['stage']} ({about['stage_name']})"
    trained = (
        f"`{about['base']}` trained with the method `{about['preset']}` on {len(about['tasks'])} tasks of "
        f"`{about['benchmark']}`, one after the other: {', '.join(about['tasks'])}."
    )
    parts = [
        "\n".join(head), title, trained, "## How to load it", *notes, prompts(about), "## Results", results(run), "## Proof",
        proof(about), "## Where it comes from", provenance(about), "## Licence", licences(source, licence),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def prompts(about: dict[str, Any]) -> str:
    """What reads a question as the run did."""
    here = "its `base/`" if about["to"] == "vllm" else "this folder"
    text = f"Prompts are those of `AutoProcessor.from_pretrained` of {here}, with its chat template"
    if about["image_transform"] is None:
        return f"{text}; answers are greedy."
    how = {"pad": "padded to a square", "crop": "cropped to a square"}[about["image_transform"]]
    return f"{text}, which is LLaVA-1.5's with its system prompt; pictures are {how}, as the run was asked. Answers are greedy."


def results(run: Run) -> str:
    """The accuracy matrix, as far as it was evaluated."""
    matrix = read_run(run.folder.path).matrix
    if not any(cell is not None for row in matrix.cells for cell in row):
        return "Not evaluated when this was written."
    return f"Rows: after each stage; columns: each task's score in percent.\n\n```\n{format_matrix(matrix).strip()}\n```"


def proof(about: dict[str, Any]) -> str:
    counted = ", ".join(f"{name}: {count}" for name, count in about["modules"].items())
    lines = [
        f"Written, loaded again by transformers and peft alone, and compared in {about['dtype']} before it was finished "
        f"(`export.json`). Counted: {counted}.",
        "",
        "| with | prompt | distance from the run | distance of the run from the base |",
        "|---|---|---|---|",
    ]
    for name, prompts in about["prompts"].items():
        lines += [f"| {name} | {p['question']} | {p['difference']:.1e} | {p['effect']:.1e} |" for p in prompts]
    return "\n".join([*lines, "", "Distances are of logits, as shares of the largest."])


def provenance(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return "\n".join([
        f"- run `{about['run']}`, stage {about['stage']}, seed {about['seed']}, method `{about['method']}` (all options in "
        "`export.json`)",
        f"- trained weights: chain `{about['weights_sha256']}`",
        f"- base model: `{about['model']}`, SHA-256 over its files `{about['model_sha256']}`",
        f"- written by {versions}",
    ])  # fmt: skip


def licence_of(source: Path) -> str | None:
    """The identifier that the front matter of the base model's card states."""
    readme = source / "README.md"
    if not readme.is_file():
        return None
    head = re.match(r"---\n(.*?)\n---", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    found = re.search(r"^license:\s*([\w.-]+)\s*$", head[1], re.MULTILINE) if head else None
    return found[1] if found else None


def licences(source: Path, stated: str | None) -> str:
    """What the base model's folder says, which also holds for what is made of it."""
    files = sorted({p.name for pattern in LICENCES for p in source.glob(pattern) if p.is_file()})
    said = f"its card states `{stated}`" if stated else "its folder states no licence in a card: look where it was published"
    there = f", and it holds {', '.join(f'`{name}`' for name in files)}" if files else ""
    return (f"These weights are derived from the base model, whose terms hold for them too: {said}{there}. Those of the training "
            "data were not looked at.")  # fmt: skip

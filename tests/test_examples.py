"""The examples run by the commands that their pages print, with fewer records."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hide_llava.backbones.auto import class_of, load, reader_of
from hide_llava.config import compose
from hide_llava.data.collator import Collator
from hide_llava.data.dataset import item
from hide_llava.errors import UserError
from hide_llava.schema import ImageConfig, ModelConfig
from tests.test_docs import ROOT, hide_llava
from tests.tiny import arguments

EXAMPLES = ROOT / "examples"
FEW = ["limit=4", "train.epochs=1", "train.num_workers=0"]


def test_the_method_runs(world: Path, tmp_path: Path) -> None:
    """By the command of its docstring; every question takes one expert, and the second stage keeps the first task's anchor."""
    code = (EXAMPLES / "add_a_method.py").read_text()
    words = shlex.split(re.search(r"^    (hide-llava run .*)$", code, re.MULTILINE)[1])
    own = [w for w in words if w.startswith("method")]
    assert own == ["method=./examples/add_a_method.py", "method.rank=4"]
    tiny = [w for w in arguments(world, "", tmp_path / "run") if not w.startswith("method=")]
    hide_llava("run", *tiny, *own, folder=ROOT)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert [s["status"] for s in manifest["stages"]] == ["complete"] * 3 and manifest["method"] == "nearest-expert"
    rows = [json.loads(line) for file in tmp_path.glob("run/eval/03-*/*/predictions.jsonl") for line in file.open()]
    assert len(rows) == 18 and all(sorted(row["routing"].values()) == [0.0, 0.0, 1.0] for row in rows)
    stored = [load_file(file) for file in sorted(tmp_path.glob("run/stages/*/method.safetensors"))]
    assert [sorted(k for k in s if k.endswith("count")) for s in stored][1] == ["anchor.0.count", "anchor.1.count"]
    assert all(bool((stored[0]["anchor.0.sum"] == s["anchor.0.sum"]).all()) for s in stored)


@pytest.fixture(scope="module")
def commands() -> list[list[str]]:
    (block,) = re.findall(r"^```\n(.*?)^```$", (EXAMPLES / "add_a_benchmark" / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for line in block.splitlines()]


def test_the_benchmark_runs(commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    draw, check, lora, hide, compare = commands
    assert draw[0] == "python" and all(c[0] == "hide-llava" for c in commands[1:])
    subprocess.run([sys.executable, *draw[1:]], cwd=tmp_path, check=True, timeout=120)
    assert "error" not in hide_llava(*check[1:], folder=tmp_path).lower()
    hide_llava(*lora[1:], *FEW, folder=tmp_path)
    (run,) = (tmp_path / "runs").iterdir()
    assert len(list(run.glob("eval/*/*/score.json"))) == 3
    hide_llava("compare", f"runs/{run.name}", folder=tmp_path)
    monkeypatch.chdir(tmp_path)
    named = [compose(words[2:]).run_folder() for words in (lora, hide)]
    assert [folder.match(pattern) for folder, pattern in zip(named, compare[2:], strict=True)] == [True, True]


# ------------------------------------------------------------------------------------------------------------ the backbone


@pytest.fixture(scope="module")
def aya(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example's package as pip leaves it (`site`) and the tiny model that its script writes."""
    folder, source = tmp_path_factory.mktemp("aya"), EXAMPLES / "add_a_backbone"
    group, entry = re.search(
        r'^\[project\.entry-points\."(\S+)"\]\n(\S+ = "\S+")$', (source / "pyproject.toml").read_text(), re.MULTILINE
    ).groups()
    info = folder / "site" / "aya_vision_backbone-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(source / "aya_vision.py", folder / "site")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: aya-vision-backbone\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n".replace('"', ""))
    script = [sys.executable, source / "make_tiny.py", folder / "models" / "tiny-aya"]
    subprocess.run(script, check=True, timeout=120, capture_output=True)
    return folder


def test_the_backbone_runs(aya: Path, tmp_path: Path) -> None:
    """By the commands of its page, with fewer records; installing is the fixture's, and so is the tiny model."""
    text = (EXAMPLES / "add_a_backbone" / "README.md").read_text()
    (block,) = re.findall(r"^```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    install, make, preview, run = (shlex.split(line) for line in block.splitlines())
    assert install == ["pip", "install", "--no-deps", "-e", "examples/add_a_backbone"]
    assert make[:2] == ["python", "examples/add_a_backbone/make_tiny.py"] and make[2] == "models/tiny-aya"
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    (tmp_path / "models").symlink_to(aya / "models")
    shown = hide_llava(*preview[1:], path=aya / "site", folder=tmp_path)
    answers = re.findall(r"<\|CHATBOT_TOKEN\|>⟦(.+?)<\|END_OF_TURN_TOKEN\|>⟧$", shown, re.MULTILINE)
    assert len(answers) == shown.count("══") == 6 and "[image × 27]" in shown
    hide_llava(*run[1:], *FEW, path=aya / "site", folder=tmp_path)
    (made,) = (tmp_path / "runs").iterdir()
    assert len(list(made.glob("eval/*/*/score.json"))) == 3


def test_the_backbone_computes_what_transformers_does(aya: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row of a batch of two, one and no pictures, whose tiles differ, as transformers' own processor and model by itself."""
    monkeypatch.syspath_prepend(str(aya / "site"))
    backbone = load(ModelConfig(name="tiny", path="tiny-aya", device="cpu", image=ImageConfig(max_tiles=3)), aya / "models")
    assert type(backbone) is class_of("aya_vision") and backbone.title == "Aya Vision"
    reader, pictures = backbone.reader(), [Image.new("RGB", (28, 28), "red"), Image.new("RGB", (90, 30), "blue")]
    rows, alone = [], []
    for shown in (pictures, pictures[1:], []):
        sizes = [picture.size for picture in shown]
        read = reader.question("What is it?", sizes)
        rows.append({**item(read, reader.pixels(shown) if shown else None, sizes), "question_id": len(rows)})
        content = [*({"type": "image"} for _ in shown), {"type": "text", "text": "What is it?"}]
        prompt = backbone.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = backbone.processor(
            text=[prompt], images=[shown] if shown else None, return_tensors="pt", add_special_tokens=False
        )
        assert inputs["input_ids"][0].tolist() == read.ids
        alone.append(backbone.model(**inputs).logits[0])
    batch = Collator(side="left")(rows)
    logits = backbone.run(backbone.ready(batch, backbone.see(batch), {}, None, None, False)).logits
    for row, own in zip(logits, alone, strict=True):
        torch.testing.assert_close(row[-len(own) :], own, rtol=0, atol=1e-4)
    assert (alone[0][-1] - alone[1][-1]).abs().max() > 0.1


def test_the_backbones_image_budget(aya: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a picture four times as wide as high: tiles and the whole picture once more, each as 2 × 2 placeholders."""
    monkeypatch.syspath_prepend(str(aya / "site"))
    folder = aya / "models" / "tiny-aya"

    def tokens(**budget: int) -> int:
        config = ModelConfig(name="tiny", path=str(folder), image=ImageConfig(**budget))
        reader = reader_of(folder, None, config=config)
        return reader.question("?", [(112, 28)]).ids.count(reader.image_id)

    assert (tokens(), tokens(max_tiles=2), tokens(max_tiles=1)) == (5 * 4, 3 * 4, 4)
    with pytest.raises(UserError, match=r"max_pixels=9000: .* of type aya_vision, which takes model\.image\.max_tiles instead"):
        tokens(max_pixels=9000)

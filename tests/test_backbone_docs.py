"""docs/BACKBONES.md and docs/ADD_A_BACKBONE.md say what the code does: tables, presets, members, the example."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
import transformers
from PIL import Image

from hide_llava.backbones.auto import FAMILIES, class_of, family_of, reader_of
from hide_llava.backbones.chat import ChatBackbone
from hide_llava.backbones.image_budget import LIMITS
from hide_llava.backbones.llava15 import Llava15
from hide_llava.backbones.loading import cached
from hide_llava.config import compose, names
from hide_llava.data.dataset import TrainingDataset
from hide_llava.data.records import load_records
from hide_llava.data.turns import IGNORE
from hide_llava.errors import UserError
from hide_llava.schema import ImageConfig, ModelConfig
from hide_llava.training.run import Run
from tests import zoo
from tests.cli.call import call

ROOT = Path(__file__).parent.parent
GUIDE, PAGE = (ROOT / "docs" / name for name in ("ADD_A_BACKBONE.md", "BACKBONES.md"))
OTHERS = [name for name in names("model") if compose(["benchmark=ucit", "method=lora", f"model={name}"]).model.family]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_backbone_docs", ROOT / "scripts" / "build_backbone_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_what_the_code_says(script: ModuleType) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert script.written(text) == text, "run: python scripts/build_backbone_docs.py"


def test_the_tables_are_complete(script: ModuleType) -> None:
    """The verdicts that are known: LLaVA-1.5 takes all, others nothing that repeats its published code, a MoE no `ffn`."""
    titles, found = [cls.title for cls in script.families()], script.verdicts()
    assert sorted(n for own in found.values() for n in own) == sorted(names("method")) and len(titles) == 10
    no = {
        (preset, title) for (_, row), own in found.items() for preset in own for title, why in zip(titles, row) if why
    }
    of_llava = {"hide-official", "hide-mcitlib", "olora-mcitlib", "modalprompt-mcitlib"}
    others = {title for title in titles if title != "LLaVA-1.5"}
    assert no == {(p, t) for p in of_llava for t in others} | {
        (p, "Qwen3-VL-MoE") for p in ("disco", "lora-gate-up", "same", "smolora")
    }
    assert sorted(kind for kinds in script.families().values() for kind in kinds) == sorted(FAMILIES) == sorted(LIMITS)


@pytest.mark.parametrize("name", OTHERS)
def test_a_preset_of_another_family(name: str, tmp_path: Path) -> None:
    """It names its family, its image budget is one that the family has, and a run of it is refused nothing; its file says that
    it was not run, and what is known of its licence."""
    config = compose(["benchmark=ucit", "method=hide", f"model={name}", f"model_root={tmp_path}"])
    run = Run(config)
    assert run.family is class_of(config.model.family) is not Llava15
    budget = {key for key, value in config.model.image.model_dump().items() if value is not None}
    assert budget <= {LIMITS[config.model.family][0]}
    comment = (ROOT / "configs" / "model" / f"{name}.yaml").read_text(encoding="utf-8")
    assert "weights were not run here" in comment and "# Licence: " in comment
    assert f"`{name}`" in PAGE.read_text(encoding="utf-8")


def test_a_plan_without_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = call(
        "plan",
        "benchmark=ucit",
        "method=hide",
        "model=qwen2.5-vl-3b",
        f"model_root={tmp_path}",
        f"data_root={tmp_path}",
    )
    assert done.code == 0 and done.out.startswith("hide on ucit with qwen2.5-vl-3b"), done.err


def test_a_family_that_nobody_knows_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the folder nor `model.family` says it; an image budget shows that it is no LLaVA-1.5."""
    config = ModelConfig(name="own", path="somebody/model")
    assert family_of(config, tmp_path) is None
    with pytest.raises(UserError, match=r"model\.family=qwen3_v: no backbone.*qwen3_vl"):
        family_of(config.model_copy(update={"family": "qwen3_v"}), tmp_path)
    words = ["benchmark=ucit", "method=lora", "model=llava-1.5-7b", f"model_root={tmp_path}", "model.image.max_tiles=2"]
    with pytest.raises(UserError, match=r"model\.image.*unless model\.family says"):
        Run(compose(words))
    (tmp_path / "config.json").write_text('{"model_type": "gemma3"}')
    assert config.image == ImageConfig()
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: str(tmp_path / file))
    assert cached("somebody/model") == tmp_path and cached("no/hub/id") is None and cached("./somebody") is None
    assert family_of(config, tmp_path) is class_of("gemma3")


def test_a_transformers_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "__version__", "5.9.1")
    with pytest.raises(UserError, match=r"'gemma3' needs transformers 5\.18 or newer, and 5\.9\.1 is installed"):
        class_of("gemma3")
    assert class_of("llava") is Llava15 and class_of("nothing") is None
    assert "[note] transformers is older than 5.18: LLaVA-1.5 works" in call("doctor").out


def test_doctor_says_what_is_routed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = (
        "doctor",
        "benchmark=ucit",
        "method=hide",
        "model=qwen2.5-vl-3b",
        f"model_root={tmp_path}",
        f"data_root={tmp_path}",
    )
    out = call(*words).out
    assert "Qwen-VL: its vision tower is not CLIP's, so methods that route by CLIP load the whole of model.clip" in out
    assert (
        "[bad]  CLIP openai/clip" in out
        and "[note] sentence encoder sentence-transformers/all-MiniLM-L6-v2 is not" in out
    )
    own = call(*words, "router.encoder=own").out
    assert "take its own tower's features" in own and "[bad]  sentence encoder sentence-transformers" in own
    assert "[bad]  router.encoder=own takes its text" in call(*words, "router.encoder=own", "model.sentence=clip").out
    (tmp_path / "openai" / "clip-vit-large-patch14-336").mkdir(parents=True)
    assert "[ok]   CLIP openai/clip-vit-large-patch14-336" in call(*words).out


# -------------------------------------------------------------------------------------------------------------- the guide


def test_the_guides_code_is_the_examples() -> None:
    """The example's own test runs it (tests/test_examples.py)."""
    text, example = GUIDE.read_text(encoding="utf-8"), ROOT / "examples" / "add_a_backbone"
    blocks = {
        kind: re.search(rf"^```{kind}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[1]
        for kind in ("python", "toml", "sh")
    }
    assert blocks["python"] == (example / "aya_vision.py").read_text(encoding="utf-8")
    assert blocks["toml"] in (example / "pyproject.toml").read_text(encoding="utf-8")
    assert f"```\n{blocks['sh']}```" in (example / "README.md").read_text(encoding="utf-8")


def test_the_guides_table_names_what_a_family_overrides() -> None:
    """Every member that some family of this repository has otherwise is there, and nothing that does not exist."""
    table = GUIDE.read_text(encoding="utf-8").split("## What a family may say")[1].split("\n## ")[0]
    named = set(re.findall(r"^\| `(\w+)", table, re.MULTILINE))
    assert all(hasattr(ChatBackbone, name) for name in named)
    families = {class_of(kind) for kind in FAMILIES} - {Llava15}
    own = {name for cls in families for name in vars(cls) if not name.startswith("_")}
    assert own <= named


# ---------------------------------------------------------------------------------------------------- several pictures


def test_the_pages_record_of_two_pictures(tmp_path: Path) -> None:
    """Each stands at its place, before the question; a model that reads one picture refuses it."""
    record = json.loads(
        re.search(r"^```json\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[1]
    )
    for i, name in enumerate(record["image"]):
        Image.new("RGB", (28 + 28 * i, 28)).save(tmp_path / name)
    (tmp_path / "train.json").write_text(json.dumps([record]))
    rows = load_records(tmp_path / "train.json", tmp_path, several=True)
    reader = reader_of(zoo.write("internvl", tmp_path / "model"), None)
    (sample,) = TrainingDataset(rows, tmp_path, reader, max_length=200)
    assert sample["sizes"] == [(28, 28), (56, 28)]
    read = reader.training(record["conversations"], sample["sizes"], 200)
    text = reader.tokenizer.decode(read.ids)
    assert len(read.spans) == 2 and text.index("</img>") < text.rindex("<img>") < text.index("What is different")
    assert reader.tokenizer.decode([label for label in read.labels if label != IGNORE]) == "the star<|im_end|>"
    with pytest.raises(UserError, match="names 2 pictures"):
        load_records(tmp_path / "train.json", tmp_path, several=False)

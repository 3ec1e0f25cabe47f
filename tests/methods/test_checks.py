"""What a method or its package gets wrong is told in a sentence, before it becomes a wrong number."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hide_llava.methods.all  # noqa: F401
from hide_llava.errors import UserError
from hide_llava.listing import KINDS, listing
from hide_llava.methods.base import REGISTRY, Method, Route, register
from hide_llava.methods.lora import SequentialLora
from hide_llava.methods.registry import method_class, method_config
from hide_llava.pipeline import run
from hide_llava.training.run import Run
from tests.tiny import configuration

SHORT = ("tasks=[task0]", "train.max_steps=1")


def slip(**wrong: Any) -> type[Method]:
    """Sequential LoRA with one thing wrong."""
    return type("Slip", (SequentialLora,), {"name": "test-slip", "__module__": __name__, **wrong})


def nested(self: Method) -> dict:
    return {"past": {"0": torch.zeros(2)}}


def misspelt(self: Method, batch: dict, features: Any, train: bool) -> Route:
    return Route([self.adapter] if train else ["sequentail"])


def gate(self: Method, batch: dict, features: Any, train: bool) -> Route:
    return Route([self.adapter], {"sequentail": torch.ones(1)})


def test_methods_are_listed_by_kind_and_year() -> None:
    """Every method of ours has a kind; within a kind the older paper comes first."""
    head, *rows = [line.split() for line in listing("methods").splitlines()]
    assert head == ["PRESET", "METHOD", "KIND", "YEAR", "WHAT"]
    ours = {name for name, cls in REGISTRY.items() if cls.__module__.startswith("hide_llava.methods.")}
    listed = [name for methods in KINDS.values() for name in methods]
    assert sorted(listed) == sorted(ours)
    order = [row[0] for row in rows]
    assert order.index("ewc") < order.index("olora") < order.index("keeplora") < order.index("moelora") < order.index("same")
    assert rows[order.index("keeplora-official")][:4] == ["keeplora-official", "keeplora", "subspace", "2026"]


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"adapters": lambda self: []}, "adapter 'sequential' trains but adapters() does not name it"),
        ({"adapters": lambda self: ["sequential", "emma"]}, "adapters(): there is no adapter 'emma'; there are: sequential"),
        ({"params": lambda self: []}, "params() names nothing that trains"),
        ({"params": lambda self: [{"params": self.core.parameters_of("sequential"), "lr": "adaptor"}]}, "lr='adaptor'"),
        ({"needs": frozenset({"clip_images"})}, "needs has 'clip_images'. Did you mean 'clip_image'?"),
        ({"route": lambda self, *_: None}, "route() must return a Route, got None"),
        ({"route": misspelt}, "route: there is no adapter 'sequentail'; there are: sequential"),
        ({"route": gate}, "gates of the route: there is no adapter 'sequentail'"),
        ({"loss": lambda self, *_: 0.5}, "loss() must return a dictionary of name → tensor, got 0.5"),
        ({"loss": lambda self, *_: {"a": 0.5}}, "loss() must return a dictionary of name → tensor"),
        ({"state": nested}, "state() has 'past', which is neither a tensor nor a JSON value"),
        ({"prepare_inference": lambda self: self.core.fold(["emma"], [1.0], "delta_sum", [])}, "fold: there is no adapter"),
    ],
)  # fmt: skip
def test_slips(wrong: dict, says: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "test-slip", slip(**wrong))
    (tmp_path / "slip.yaml").write_text("method: {name: test-slip}")
    with pytest.raises(UserError, match=re.escape(says)):
        run(configuration(world, f"{tmp_path}/slip.yaml", tmp_path / "run", *SHORT), report=False)


# ------------------------------------------------------------------------------------------------------------ plug-ins

GOOD = """from hide_llava.methods.lora import SequentialLora


class Own(SequentialLora):
    'One sentence.'
    name = '{}'
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """package(method, module, code): an installed package that offers `method` as `module:Own`."""
    monkeypatch.setattr("hide_llava.methods.base.REGISTRY", dict(REGISTRY))
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(method: str, module: str, code: str) -> None:
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[hide_llava.methods]\n{method} = {module}:Own\n")
        (tmp_path / f"{module}.py").write_text(code)

    return install


def test_a_plug_in_is_found_and_listed(package: Callable, world: Path, tmp_path: Path) -> None:
    package("own-method", "plug_good", GOOD.format("own-method"))
    config = configuration(world, "own-method", tmp_path / "run", "method.rank=3")  # without any YAML
    assert Run(config).new_manifest()["versions"]["plug_good"] == "1.0"
    method = config.method
    assert (method["name"], method["preset"], method["rank"], method["alpha"]) == ("own-method", "own-method", 3, 32.0)
    assert method_class("own-method").__module__ == "plug_good" and method_class("own-method").name == "own-method"
    (line,) = [line for line in listing("methods").splitlines() if line.startswith("own-method")]
    assert "One sentence. (from plug_good:Own)" in line


@pytest.mark.parametrize(
    "module, code, says",
    [
        ("plug_import", "import does_not_exist_xyz\n", "cannot be imported: ModuleNotFoundError: No module named"),
        ("plug_syntax", "def (:\n", "cannot be imported: SyntaxError"),
        ("plug_missing", "x = 1\n", "cannot be imported: AttributeError"),
        ("plug_class", "class Own:\n    name = 'own-method'\n", "is not a subclass of Method"),
        ("plug_name", GOOD.format("other"), "has name = 'other'; the two must be the same"),
    ],
)
def test_broken_plug_ins(module: str, code: str, says: str, package: Callable) -> None:
    package("own-method", module, code)
    with pytest.raises(UserError, match=re.escape(says)) as error:
        method_class("own-method")
    assert "method 'own-method'" in str(error.value) and f"{module}:Own (package {module} 1.0)" in str(error.value)
    (line,) = [line for line in listing("methods").splitlines() if line.startswith("own-method")]
    assert "[unusable: " in line and says in line


def test_one_name_is_one_method(package: Callable) -> None:
    package("own-method", "plug_one", GOOD.format("own-method"))
    package("own-method", "plug_two", GOOD.format("own-method"))
    package("lora", "plug_lora", GOOD.format("lora"))
    with pytest.raises(UserError, match=r"offered by plug_(one|two):Own .* and plug_(one|two):Own .*; uninstall one"):
        method_class("own-method")
    with pytest.raises(UserError, match=r"'lora' is both hide_llava.methods.lora:SequentialLora and plug_lora:Own"):
        method_class("lora")
    with pytest.raises(UserError, match="'ewc' is both"):
        register(slip(name="ewc"))


def test_an_unknown_method_says_where_own_ones_come_from() -> None:
    with pytest.raises(UserError, match=r"Did you mean 'lora'.*announces it as an entry point"):
        method_class("lorra")


PLAIN = """from dataclasses import dataclass
from hide_llava.methods.lora import SequentialLora


class Own(SequentialLora):
    name = 'own-method'

    @dataclass
    class Config{base}:
        strength: float = 0.5
"""


@pytest.mark.parametrize("base", ["", "(SequentialLora.Config)"])
def test_a_config_that_is_a_dataclass_is_refused_with_what_to_write(base: str, package: Callable) -> None:
    package("own-method", "plug_dataclass" + str(len(base)), PLAIN.format(base=base))
    with pytest.raises(UserError, match=r"'own-method': plug_dataclass.*Own.Config is no MethodConfig. Write `cl"):
        method_class("own-method")


OPTIONS = """from typing import Literal

from pydantic import Field, field_validator, model_validator

from hide_llava.methods.base import Method, MethodConfig
from hide_llava.training.run import Run


class Own(Method):
    name = 'own-method'

    class Config(MethodConfig):
        weights: dict[str, float] = {"a": 1}
        share: float | None = Field(1, ge=0, le=1)
        parts: list[Literal["x", "y"]] = ["x"]
        even: int = Field(2, multiple_of=2)
        word: str

        @field_validator("parts")
        @classmethod
        def _once(cls, parts: list) -> list:
            if len(set(parts)) < len(parts):
                raise ValueError("each at most once")
            return parts

        @model_validator(mode="after")
        def _together(self):
            if self.even == 4 and self.share == 1:
                raise ValueError("with even=4, share must be below 1.")
            return self
"""


def test_options_of_a_plug_in_are_read_and_refused_as_those_of_any_method(package: Callable) -> None:
    package("own-method", "plug_options", OPTIONS)

    def options(**values: Any) -> Any:
        return method_config({"name": "own-method", "word": 7, **values})

    assert repr(options().model_dump()) == repr(
        {"weights": {"a": 1.0}, "share": 1.0, "parts": ["x"], "even": 2, "word": "7"}
    )
    assert options(weights={"b": 2}, share="0.5").weights == {"a": 1.0, "b": 2.0}
    wrong = {
        "method.weights.b=[]: expected a number.": {"weights": {"b": []}},
        "method.share=2: must be in [0, 1].": {"share": 2},
        "method.share='x': expected a number or null.": {"share": "x"},
        "method.parts[1]=z: expected one of x, y.": {"parts": ["x", "z"]},
        "method.parts='x': expected a list, each one of x, y.": {"parts": "x"},
        "method.parts=['x', 'x']: each at most once.": {"parts": ["x", "x"]},
        "method.even=3: must be a multiple of 2.": {"even": 3},
        "method: with even=4, share must be below 1.": {"even": 4},
        "unknown key 'method.evn' for method 'own-method'. Did you mean 'method.even'?": {"evn": 3},
    }
    for says, values in wrong.items():
        with pytest.raises(UserError) as caught:
            options(**values)
        assert str(caught.value) == says
    with pytest.raises(UserError, match=r"^the configuration lacks method\.word\.$"):
        method_config({"name": "own-method"})

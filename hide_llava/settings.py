"""What every section of the configuration is: a pydantic model, which reads YAML's values and refuses in sentences."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from typing_extensions import Self

from hide_llava.errors import UserError

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
_AT_INFERENCE = "acts at inference only"
# `temperature: Inference[float] = Field(0.1, gt=0)`: an option that decides how a trained run answers and never what is
# trained, so that `hide-llava eval RUN method.temperature=0.05` may change it.
Inference = Annotated[T, _AT_INFERENCE]
_LEARNING_RATE = "stands in place of train.learning_rate"
# `lr: LearningRate[float | None] = Field(None, gt=0)`: an option that is the method's learning rate wherever it is not null.
LearningRate = Annotated[T, _LEARNING_RATE]

_PER_TASK = "of each task"
# `subsets: PerTask[int] = {}`: an option whose keys are ids of tasks; a run says of which the benchmark has none.
PerTask = Annotated[dict[str, T], _PER_TASK]


@dataclass(frozen=True)
class Searched:
    """Marks an option as a strength of its method, which a search tries beside the usual value (hide_llava/search.py).

    values: what is tried, in that order, of an option with a limit other than 0 or without a usual value; none: the usual value
    divided and multiplied by `step`.
    """

    values: tuple[float, ...] = ()
    step: float = 10.0


# `strength: Strength[float] = Field(0.5, ge=0)`, and `mix: Annotated[float, Searched((0.25, 0.75))] = Field(0.5, ge=0, le=1)`
Strength = Annotated[T, Searched()]
Unknown = Callable[[str, str, list[str]], str]  # (prefix of the key, key, known keys) → what to say of an unknown key
TRUTH = {"true": True, "yes": True, "y": True, "on": True, "false": False, "no": False, "n": False, "off": False}
READ: dict[type, Callable[[str], Any]] = {int: int, float: float, bool: lambda text: TRUTH[text.lower()]}
NAMES = {int: ["a whole number"], float: ["a number"], bool: ["true", "false"], str: ["a text"], NoneType: ["null"]}
LIMITS = ("ge", "gt", "le", "lt")
UNKNOWN = ("extra_forbidden", "invalid_key")  # pydantic's names of an unknown key; the latter is no text


class Settings(BaseModel):
    """A section: no unknown keys, no values of another type, no number that is infinite or none."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,  # 1 is 1.0 for a float, as where it is given
        protected_namespaces=(),  # keys may begin with model_
    )

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        return as_written(value, cls.model_fields[info.field_name].annotation)


class MethodConfig(Settings):
    """The options of a method: a subclass, named `Config` inside the method, has a field for each.

    Types and `Field(ge=…, gt=…, le=…, lt=…)` say which values are allowed, `Inference[type]` that an option acts at inference
    only, `Strength[type]` and `LearningRate[type]` what a search varies. What holds between fields is checked by a
    `@model_validator(mode="after")` that raises ValueError("field=value: must …").
    """


class DividedRank(MethodConfig):
    """Of a method whose `rank` is that of all its `experts` together: two fields of whoever inherits from this beside others."""

    @model_validator(mode="after")
    def _rank_of_experts(self) -> Self:
        if self.rank % self.experts:
            raise ValueError(f"rank={self.rank}: must be a multiple of experts={self.experts}")
        return self


def inference_options(config: type[MethodConfig]) -> frozenset[str]:
    """Names of the options that are marked as acting at inference only."""
    return frozenset(name for name, field in config.model_fields.items() if _AT_INFERENCE in field.metadata)


def strengths(config: type[MethodConfig]) -> dict[str, Searched]:
    """The options that are marked as strengths, in their order, and what a search tries of each."""
    marks = {name: [m for m in field.metadata if isinstance(m, Searched)] for name, field in config.model_fields.items()}
    return {name: found[-1] for name, found in marks.items() if found}


def learning_rates(config: type[MethodConfig]) -> list[str]:
    """Names of the options that are marked as the method's own learning rate."""
    return [name for name, field in config.model_fields.items() if _LEARNING_RATE in field.metadata]


def per_task(config: type[MethodConfig]) -> list[str]:
    """Names of the options whose keys are ids of tasks."""
    return [name for name, field in config.model_fields.items() if _PER_TASK in field.metadata]


class Lacking(UserError):
    """Nothing is wrong but that keys without a default are not there."""


class Wrong(UserError):
    """Keys and values that do not fit: a sentence for each, of which the first is the message."""

    def __init__(self, problems: list[str]):
        super().__init__(problems[0])
        self.problems = problems


def kinds(kind: Any) -> tuple[Any, ...]:
    """The types that a value may have, of a union or not."""
    if get_origin(kind) is Annotated:
        return kinds(kind.__origin__)
    return sum(map(kinds, get_args(kind)), ()) if get_origin(kind) in (Union, UnionType) else (kind,)


def as_written(value: Any, kind: Any) -> Any:
    """What YAML's value means to a field of that type: `seed: 010` is ten, `id: 2020` a text, `tf32: yes` true.

    A value that does not fit stays as it is, so that it is refused.
    """
    types = kinds(kind)
    for one in types:
        if get_origin(one) is list and isinstance(value, list):
            return [as_written(item, *get_args(one)) for item in value]
        if get_origin(one) is dict and isinstance(value, dict):
            of_key, of_value = get_args(one)
            return {as_written(key, of_key): as_written(item, of_value) for key, item in value.items()}
    if isinstance(value, str) and str not in types:
        for read in (READ[one] for one in READ if one in types):
            with contextlib.suppress(ValueError, KeyError):
                return read(value)
    elif isinstance(value, (int, float)) and not {float, int, type(value)} & set(types):
        if str in types:
            return str(value)
        if bool in types and isinstance(value, int):
            return bool(value)
    return value


def expected(kind: Any) -> str:
    """The values of a type in words: `one of pad, crop`, `a whole number or null`, `a list of texts`."""
    types = kinds(kind)
    words = [word for one in types for word in _words(one)]
    if any(get_origin(one) is Literal for one in types) and all(" " not in word for word in words):
        return f"one of {', '.join(words)}"
    return " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def _words(one: Any) -> list[str]:
    if get_origin(one) is Literal:
        return [str(value) for value in get_args(one)]
    if get_origin(one) is list:
        item = expected(*get_args(one))
        return [f"a list of {item[2:]}s" if item.startswith("a ") and " or " not in item else f"a list, each {item}"]
    return NAMES.get(one, ["a mapping"])


def bounds(field: FieldInfo) -> str:
    """The range of a number in words: `at least 1`, `in [0, 1)`; empty where there is none."""
    found = {k: getattr(m, k) for m in field.metadata for k in LIMITS if getattr(m, k, None) is not None}
    said = {k: f"{value:g}" for k, value in found.items()}
    low, high = said.get("ge", said.get("gt")), said.get("le", said.get("lt"))
    if low and high:
        return f"in {'[' if 'ge' in said else '('}{low}, {high}{']' if 'le' in said else ')'}"
    words = {"ge": "at least", "gt": "greater than", "le": "at most", "lt": "less than"}
    return " ".join(f"{words[k]} {value}" for k, value in said.items())


def validated(kind: type[M], tree: dict[str, Any], unknown: Unknown, section: str = "") -> M:
    """The tree as settings of that kind.

    section: what the keys begin with in a message.

    Raises:
        Lacking: keys without a default are not there.
        Wrong: unknown keys, and values that do not fit.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        problems = sorted(error.errors(), key=lambda problem: problem["type"] not in UNKNOWN)
    wrong = [problem for problem in problems if problem["type"] != "missing"]
    if not wrong:
        raise Lacking(f"the configuration lacks {', '.join(sorted(_key(p['loc'], section) for p in problems))}.")
    raise Wrong([_sentence(problem, kind, section, unknown) for problem in wrong])


def _place(kind: type[BaseModel], loc: Sequence[str | int]) -> tuple[list[str | int], FieldInfo]:
    """The part of an error's place that is one in the configuration (a union's branches are not), and what is there."""
    keys, field = [], FieldInfo.from_annotation(kind)
    for place, key in enumerate(loc):
        inner = [one for one in kinds(field.annotation) if one is not NoneType]
        lists = [one for one in inner if get_origin(one) is list]
        if len(inner) > 1 and len(lists) == 1 and isinstance(loc[min(place + 1, len(loc) - 1)], int):
            field = FieldInfo.from_annotation(lists[0])  # a list or a word, of which the list is wrong inside
            continue
        if len(inner) != 1:
            break
        if get_origin(inner[0]) in (list, dict):
            field = FieldInfo.from_annotation(get_args(inner[0])[-1])
        elif key in getattr(inner[0], "model_fields", {}):
            field = inner[0].model_fields[key]
        else:
            break
        keys.append(key)
    return keys, field


def _key(loc: Sequence[str | int], section: str) -> str:
    """`benchmark.tasks[0].id`."""
    text = section + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in loc)
    return text.removeprefix(".")


def _sentence(problem: Any, kind: type[BaseModel], section: str, unknown: Unknown) -> str:
    keys, field = _place(kind, problem["loc"])
    key, value, type_, context = _key(keys, section), problem["input"], problem["type"], problem.get("ctx", {})
    if type_ in UNKNOWN:
        model = next(one for one in kinds(field.annotation) if one is not NoneType)
        return unknown(key and f"{key}.", str(problem["loc"][-1]), list(model.model_fields))
    own = str(context["error"]).removesuffix(".") if type_ in ("value_error", "assertion_error") else ""
    if own and not keys:
        begins = re.match(r"\w+", own)  # with a field, as a rule: then it is named as every other
        return f"{section}{'.' if begins and begins[0] in kind.model_fields else ': '}{own}."
    if any(limit in context for limit in LIMITS) and bounds(field):
        own = f"must be {bounds(field)}"
    elif type_ == "finite_number":
        own = "must be a finite number"
    elif re.search(r"_(type|parsing|from_float|literal_error|required)$", f"_{type_}"):
        own = f"expected {expected(field.annotation)}{comma_hint(value)}"
    said = str(value) if type_ == "literal_error" and str(value).isprintable() else repr(value)
    said = {"None": "null", "True": "true", "False": "false"}.get(said, said)
    return f"{key}={said}: {own or problem['msg'].replace('Input should', 'must')}."


def comma_hint(value: Any) -> str:
    """What a refused text with commas may have been meant as."""
    if not isinstance(value, str) or "," not in value:
        return ""
    return f"; a list is written [{value}], and several values, one run for each, are for the verbs run, train and eval"

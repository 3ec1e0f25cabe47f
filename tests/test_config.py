"""Composition, validation and round trip of the configuration."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hide_llava.config import (
    GROUPS,
    BenchmarkConfig,
    RunConfig,
    TrainConfig,
    compose,
    configs_folder,
    flatten,
    from_yaml,
    merge,
    names,
    parse_yaml,
    to_yaml,
)
from hide_llava.errors import UserError
from hide_llava.naming import joined

UCIT = ["benchmark=ucit", "model=llava-1.5-7b"]


def ucit(*more: str) -> RunConfig:
    method = [] if any(m.startswith("method=") for m in more) else ["method=hide"]
    return compose([*UCIT, *method, *more])


def refusal(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        ucit(*words)
    message = str(caught.value)
    assert "\n" not in message and "Error" not in message, message
    return message


@pytest.fixture
def write(tmp_path: Path):
    def to_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return to_file


# --------------------------------------------------------------------------------------------------------- composition


def test_order_of_composition(write) -> None:
    """Later wins: defaults, model, benchmark, train, method, command line."""
    sources = ("model", "benchmark", "train", "method")
    bodies = {
        "model": "model: {name: m, path: p}",
        "benchmark": "benchmark: {name: b, tasks: [{id: a, title: A, test: t.json, metric: exact_upper}]}",
        "train": "train: {name: t}",
        "method": "method: {name: lora}",
    }
    fields = ("global_batch_size", "save_steps", "max_length", "logging_steps")
    choices = []
    for i, group in enumerate(sources):  # file i sets fields 0…i: the last file to name a field wins
        extra = {"train": {f: 1000 + i for f in fields[: len(fields) - i]}, "eval": {"batch_size": 1000 + i}}
        tree = merge(yaml.safe_load(bodies[group]), extra)
        choices.append(f"{group}={write(group + '.yaml', yaml.safe_dump(tree))}")
    for words in (choices, choices[::-1]):  # the order of the words does not matter
        train = compose(words).train
        assert [getattr(train, f) for f in fields] == [1003, 1002, 1001, 1000]
        assert compose(words).eval.batch_size == 1003
        assert compose([*words, "eval.batch_size=7"]).eval.batch_size == 7
        assert compose(["eval.batch_size=7", *words]).eval.batch_size == 7
    assert compose(choices).train.learning_rate == TrainConfig().learning_rate


def test_defaults_of_a_verb_yield_to_the_user() -> None:
    assert compose([*UCIT, "method=hide"], {"train": "mini"}).train.name == "mini"
    assert compose([*UCIT, "method=hide", "train=default"], {"train": "mini"}).train.name == "default"
    assert compose([], {"benchmark": "ucit", "model": "llava-1.5-7b", "method": "lora"}).method["name"] == "lora"


def test_a_preset_may_set_other_sections() -> None:
    plain, preset = ucit(), ucit("method=hide-mcitlib")
    settings = [(c.eval.image_transform, c.eval.max_new_tokens, c.train.global_batch_size) for c in (plain, preset)]
    assert settings == [(None, None, 96), ("crop", 256, 64)]
    assert preset.method["name"] == "hide" and preset.method["preset"] == "hide-mcitlib"
    assert (preset.method["rank"], preset.method["fusion"]) == (16, "factor_sum")
    assert ucit("method=hide-mcitlib", "eval.image_transform=pad").eval.image_transform == "pad"


def test_method_section_is_complete_and_typed() -> None:
    """Every field of the method's Config is there, with defaults; command-line words get the field's type."""
    method = ucit("method.rank=4", "method.expanded_layers=[0,-1]", "method.init_std=null").method
    assert (method["rank"], method["expanded_layers"], method["init_std"]) == (4, [0, -1], None)
    assert method["alpha"] == 16.0 and method["routing"] == "softmax_learned"


def test_every_file_composes() -> None:
    for group in GROUPS:
        for name in names(group):
            chosen = {"benchmark": "ucit", "model": "llava-1.5-7b", "method": "hide", group: name}
            config = compose([f"{g}={n}" for g, n in chosen.items()])
            first = (configs_folder() / group / f"{name}.yaml").read_text().splitlines()[0]
            assert first.startswith("# hide-llava run "), f"{group}/{name}.yaml: begins with the command that runs it"
            compose(first.removeprefix("# hide-llava run ").split())
            assert getattr(config, group) is not None
    assert {"hide", "hide-official", "lora", "multitask", "zero_shot"} <= set(names("method"))


def test_a_file_of_ones_own(write) -> None:
    path = write("mine.yaml", "method: {name: hide, rank: 2}\nseed: 7")
    config = ucit(f"method={path}")
    assert (config.method["preset"], config.method["rank"], config.seed) == ("mine", 2, 7)
    assert config.run_folder() == Path("runs/ucit-mine-llava-1.5-7b-seed7")


@pytest.mark.parametrize(
    "words, rest",
    [
        ((), ""),
        (("seed=42", "train=default", "train.epochs=1", "train.epochs=1.0", "method.rank=8"), ""),  # what is so anyway
        (("eval.batch_size=32", "eval.max_new_tokens=9", "caption.tokenizer=python", "train.save_steps=7"), ""),
        (("data_root=/a", "model_root=/b", "model.device=cpu", "train.report_to=wandb"), ""),
        (("train.epochs=6",), "-epochs=6"),
        (("train.learning_rate=1e-4", "method.rank=16"), "-rank=16-learning_rate=0.0001"),
        (("method.rank=16", "train.learning_rate=0.0001"), "-rank=16-learning_rate=0.0001"),
        (("train.learning_rate=0.00012345678",), "-learning_rate=0.00012345678"),
        (("tasks=[vizwiz,imagenet-r]", "limit=16"), "-imagenet-r+vizwiz-limit16"),
        (("method.expanded_layers=[0,1]", "train.gradient_checkpointing=false"),
         "-expanded_layers=0,1"),  # what changes no number makes no other run
        (("train=24gb",), "-train=24gb"),
        (("train=24gb", "model.quantization=8bit"), "-train=24gb-quantization=8bit"),
        (("benchmark.image_transform=crop",), "-image_transform=crop"),
    ],
)  # fmt: skip
def test_a_folders_name_says_what_is_not_the_default(words: tuple[str, ...], rest: str) -> None:
    """Without overrides, or with those that cannot change the trained model, it is the old name: such runs are resumed."""
    assert ucit(*words).output == f"runs/ucit-hide-llava-1.5-7b-seed42{rest}"


def test_long_and_odd_values_are_hashed_in_names() -> None:
    odd = [ucit(f"model.path={path}").run_folder().name for path in ("/a/b c", "/a/b  c")]
    assert len(set(odd)) == 2 and all(re.fullmatch(r"ucit-hide-llava-1.5-7b-seed42-path=[0-9a-f]{8}", n) for n in odd)
    many = [f"train.{k}=0.1234567{i}" for i, k in enumerate(("epochs", "learning_rate", "projector_lr", "warmup_ratio",
                                                            "weight_decay", "max_grad_norm"))]  # fmt: skip
    names = [ucit(*many, more).run_folder().name for more in ("seed=42", "train.max_steps=5")]
    assert len(set(names)) == 2 and all(re.search(r"seed42-changes-[0-9a-f]{8}$", name) for name in names), names
    long = [f"task-of-a-long-name-{i}" for i in range(9)]
    assert joined(long[:2]) == "task-of-a-long-name-0+task-of-a-long-name-1"
    assert re.fullmatch("tasks-[0-9a-f]{8}", joined(long)) and joined(long) != joined(long[::-1])


# -------------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    "word, fragments",
    [
        ("train.epoch=2", ("command line", "'train.epoch'", "'train.epochs'")),
        ("trian.epochs=2", ("'trian'", "'train'")),
        ("sead=3", ("'sead'", "'seed'")),
        ("train.lr=3", ("'train.lr'", "Did you mean 'train.learning_rate'?")),
        ("train.batch_size=3", ("Did you mean 'train.global_batch_size'?",)),
        ("train.num_epochs=3", ("Did you mean 'train.epochs'?",)),
        ("eval.bs=3", ("Did you mean 'eval.batch_size'?",)),
        ("method.lora_alpha=3", ("Did you mean 'method.alpha'?",)),
        ("lr=3", ("Did you mean 'train.learning_rate'?",)),
        ("num_train_epochs=3", ("Did you mean 'train.epochs'?",)),
        ("output_dir=x", ("Did you mean 'output'?",)),
        ("eval.batchsize=2", ("'eval.batchsize'", "'eval.batch_size'")),
        ("method.rnk=4", ("'method.rnk'", "'hide'", "rank'")),
        ("method.zzzzzz=4", ("'method.zzzzzz'", "Known: ", "expanded_layers")),
        ("rank=4", ("command line", "unknown key 'rank'", "Did you mean 'method.rank'?")),
        ("Epochs=4", ("'train.epochs'",)),
        ("num_workers=4", ("'train.num_workers' or 'eval.num_workers'",)),
        ("dtype=float32", ("'model.dtype'",)),
        ("method=HiDe", ("unknown method 'HiDe'", "Did you mean 'hide'?")),
        ("method=hid", ("unknown method 'hid'", "'hide'")),
        ("benchmark=ucti", ("unknown benchmark 'ucti'", "'ucit'")),
        ("train=defualt", ("unknown train 'defualt'", "'default'")),
        ("model=qqqq", ("unknown model 'qqqq'", "Known: gemma-3-4b")),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(word: str, fragments: tuple[str, ...]) -> None:
    message = refusal(word)
    for fragment in fragments:
        assert fragment in message, message


@pytest.mark.parametrize(
    "text, fragments",
    [
        ("method: {name: lora}\ntrain: {epoch: 2}", ("mine.yaml", "'train.epoch'", "'train.epochs'")),
        ("method: {name: lora}\ntrian: {epochs: 2}", ("mine.yaml", "'trian'", "'train'")),
        ("method: {name: lora, rnk: 2}", ("mine.yaml: unknown key 'method.rnk'", "rank'")),
        ("method: {name: lora, rank: big}", ("mine.yaml: method.rank='big': expected a whole number.",)),
        ("method: {name: lora}\nrank: 2", ("mine.yaml: unknown key 'rank'", "'method.rank'")),
        ("method: {name: loar}", ("mine.yaml: unknown method 'loar'", "'lora'")),
        ("method: {name: [lora]}", ("mine.yaml: 'method.name' takes the name of one method", "['lora']")),
        ("method: {rank: 2}", ("mine.yaml: the method section has no 'name'",)),
        ("method: lora", ("mine.yaml: 'method' must be a mapping, e.g. `method: {name: lora}`",)),
        ("method: {name: lora}\ntrain: {epochs: .nan}", ("mine.yaml: train.epochs=nan: must be a finite number",)),
        ("method: {name: lora}\nbenchmark: {tasks: [{idd: a}]}", ("'benchmark.tasks[0].idd'", "id'")),
        ("method: {name: lora}\nbenchmark: {tasks: 3}", ("mine.yaml: benchmark.tasks=3: expected a list of map",)),
        ("method: {name: lora}\ntrain: {epochs: 0}", ("mine.yaml: train.epochs=0: must be greater than 0.",)),
        ("method: {name: lora}\nmodel: {dtype: int4}", ("mine.yaml: model.dtype=int4: expected one of auto, ",)),
        ("method: {name: lora}\n7: 8", ("mine.yaml: unknown key '7'. Known: benchmark, ",)),
        ("method: {name: clmoe, top_k: 9}", ("mine.yaml: method.top_k=9: must be at most experts=8.",)),
        ("method: {name: clmoe, momentum: {old: 2}}", ("mine.yaml: method.momentum.old=2: must be in [0, 1].",)),
        ("method: {name: lora}\ntrain: fast", ("'train'", "'fast'")),
        ("train: {epochs: 2}", ("no top-level 'method:' section",)),
        ("- a\n- b", ("mapping at the top level",)),
        ("method: {name: [", ("not valid YAML",)),
    ],
)
def test_wrong_files_name_the_file_and_the_key(text: str, fragments: tuple[str, ...], write) -> None:
    message = refusal(f"method={write('mine.yaml', text)}")
    for fragment in fragments:
        assert fragment in message, message


@pytest.mark.parametrize(
    "word, says",
    [
        ("train.epochs=many", "'many': expected a number."),
        ("train.epochs=true", "true: expected a number."),
        ("train.global_batch_size=2.5", "2.5: expected a whole number."),
        ("train.gradient_checkpointing=maybe", "maybe: expected one of auto, true, false."),
        ("train.gradient_checkpointing=null", "null: expected one of auto, true, false."),
        ("train.gradient_checkpointing=[true]", "[True]: expected one of auto, true, false."),
        ("train.per_device_batch_size=some", "some: expected auto, a whole number or null."),
        ("train.per_device_batch_size=2.5", "2.5: expected auto, a whole number or null."),
        ("train.per_device_batch_size=true", "true: expected auto, a whole number or null."),
        ("train.max_steps=", "null: expected a whole number."),
        ("model.tf32=perhaps", "'perhaps': expected true or false."),
        ("model.name=[a]", "['a']: expected a text."),
        ("limit=[1]", "[1]: expected a whole number or null."),
        ("tasks=clevr-math", "'clevr-math': expected a list of texts or null."),
        ("tasks=a,b", "'a,b': expected a list of texts or null; a list is written [a,b], and several values, one run "
                      "for each, are for the verbs run, train and eval."),
        ("benchmark.tasks={a: 1}", "{'a': 1}: expected a list of mappings."),
        ("method.rank=big", "'big': expected a whole number."),
        ("method.rank=4.0", "4.0: expected a whole number."),
        ("method.expanded_layers=top", "'top': expected a list of whole numbers or auto."),
        ("seed=abc", "'abc': expected a whole number."),
    ],
)  # fmt: skip
def test_wrong_types_name_the_field_and_what_it_takes(word: str, says: str) -> None:
    assert refusal(word) == f"command line: {word.partition('=')[0]}={says}"


def test_wrong_parts_are_named() -> None:
    says = "command line: method.expanded_layers[1]='x': expected a whole number."
    assert refusal("method.expanded_layers=[0,x]") == says
    assert refusal("eval=3") == "command line: 'eval' must be a mapping of its keys, got 3."
    assert refusal("train.epochs=[") == "'train.epochs=[': the value cannot be read as YAML."


@pytest.mark.parametrize(
    "word",
    ["train.epochs=0", "train.global_batch_size=-4", "train.learning_rate=0", "eval.batch_size=0", "train.save_steps=0",
     "benchmark.max_new_tokens=0", "model.dtype=float8", "model.attention=fast", "eval.split=dev",
     "eval.image_transform=stretch", "train.on_bad_sample=ignore", "caption.tokenizer=nltk", "method.rank=0",
     "method.dropout=1.5", "method.fusion=sum", "method.routing=best", "method.temperature=0", "method.targets=mlp"],
)  # fmt: skip
def test_impossible_values_name_the_field(word: str) -> None:
    key, _, value = word.partition("=")
    message = refusal(word)
    assert message.startswith(f"command line: {key}={value}: ")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("key", [name for name, field in TrainConfig.model_fields.items() if field.annotation is float])
def test_numbers_are_finite(key: str, value: str) -> None:
    assert refusal(f"train.{key}={value}") == f"command line: train.{key}={value}: must be a finite number."


def test_a_value_is_told_with_the_layer_that_it_came_from(write) -> None:
    """Of several wrong ones the first of the schema; a wrong one that a later layer sets right is none."""
    preset = write("mine.yaml", "method: {name: clmoe, experts: 4, rank: 6}\neval: {split: dev}")
    says = "mine.yaml: eval.split=dev: expected one of test, val."
    assert refusal(f"method={preset}") == refusal(f"method={preset}", "caption.tokenizer=x", "method.rank=0") == says
    assert refusal(f"method={preset}", "seed=x") == "command line: seed='x': expected a whole number."
    assert refusal(f"method={preset}", "eval.split=val") == "mine.yaml: method.rank=6: must be a multiple of experts=4."
    own = ("eval.split=val", "method.rank=8", "method.top_k=5")
    assert refusal(f"method={preset}", *own) == "command line: method.top_k=5: must be at most experts=4."
    assert ucit(f"method={preset}", *own[:2]).method["rank"] == 8
    model = write("m.yaml", "model: {name: m, path: p}\nrank: 2")
    assert refusal(f"model={model}") == "m.yaml: unknown key 'rank'. Did you mean 'method.rank'?"


def test_sections_that_are_only_a_name(write) -> None:
    for group in GROUPS:
        path = write("mine.yaml", f"{group}: mini")
        with pytest.raises(
            UserError, match=rf"mine\.yaml: '{group}' must be a mapping, e\.g\. `{group}: {{name: mini}}`"
        ):
            compose(["benchmark=mini-ucit", "method=lora", f"{group}={path}"])


def test_a_method_without_options() -> None:
    assert refusal("method=zero_shot", "method.rank=4").endswith("for method 'zero_shot'. It has no options.")


def test_words_that_are_no_override() -> None:
    for word in ("train.epochs", "=3", "--epochs"):
        assert f"'{word}' is not an override" in refusal(word)
    with pytest.raises(UserError, match=r"benchmark= is missing\. Known: "):
        compose(["method=hide", "model=mini"])


def test_a_benchmark_names_the_model_and_recipe_it_is_run_with(write) -> None:
    config = compose(["benchmark=mini-ucit", "method=lora"])
    assert (config.model.name, config.train.name, config.benchmark.defaults) == ("mini", "mini", {})
    named = compose(["benchmark=mini-ucit", "method=lora", "model=llava-1.5-7b", "train=default"])
    assert (named.model.name, named.train.name) == ("llava-1.5-7b", "default")
    tasks = "[{id: a, title: A, test: t.json, metric: exact_upper}]"
    path = write("b.yaml", f"benchmark: {{name: b, defaults: {{method: hide}}, tasks: {tasks}}}")
    with pytest.raises(UserError, match=r"'benchmark.defaults' takes model and train"):
        compose([f"benchmark={path}", "method=lora"])


def test_tasks_are_checked(write) -> None:
    one = "{id: a, title: A, test: t.json, metric: exact_upper}"
    bad = {f"[{one}, {one}]": "task ids repeat", "[]": "no tasks", "[{id: a, title: A, test: t.json}]": "metric"}
    for tasks, says in bad.items():
        path = write("bench.yaml", f"benchmark: {{name: b, tasks: {tasks}}}")
        with pytest.raises(UserError, match=says):
            compose([f"benchmark={path}", "model=mini", "method=lora"])


# ----------------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("method", names("method"))
def test_round_trip(method: str, tmp_path: Path) -> None:
    config = ucit(f"method={method}", "train.max_steps=3", "output=here", "limit=5", "tasks=[CLEVR,iconqa]",
                  "task_order=[clevr-math,IconQA]")  # fmt: skip
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    again = from_yaml(tmp_path / "config.yaml")
    assert again.model_dump() == config.model_dump()
    assert to_yaml(again) == to_yaml(config)
    changed = from_yaml(tmp_path / "config.yaml", ["eval.batch_size=9"])
    assert changed.eval.batch_size == 9 and changed.train.max_steps == 3
    assert [t.id for t in changed.benchmark.tasks] == changed.task_order == ["clevr-math", "iconqa"]
    with pytest.raises(UserError, match=r"'eval\.batch_siez'.*'eval\.batch_size'"):
        from_yaml(tmp_path / "config.yaml", ["eval.batch_siez=9"])
    with pytest.raises(UserError, match="method= of an existing run"):
        from_yaml(tmp_path / "config.yaml", ["method=lora"])


def test_flatten_names_what_differs() -> None:
    one, other = (flatten(c.model_dump()) for c in (ucit(), ucit("train.epochs=2", "method.rank=4")))
    assert {k for k in one if one[k] != other[k]} == {"train.epochs", "method.rank", "output"}  # the folder's name says it
    assert one["benchmark.tasks.0.id"] == "imagenet-r" and one["method.expanded_layers"] == [-1]


def test_folders_come_from_the_configuration_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HIDE_DATA", raising=False)
    monkeypatch.setenv("HIDE_MODELS", "/weights")
    assert ucit().data_folder() == Path("data") and ucit().model_folder() == Path("/weights")
    assert ucit("model_root=/other", "data_root=/d").model_folder() == Path("/other")
    monkeypatch.setenv("HIDE_DATA", "/env")
    assert ucit().data_folder() == Path("/env") and ucit("data_root=/d").data_folder() == Path("/d")


# ------------------------------------------------------------------------------------------------------ plain YAML values


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("seed=010", "seed", 10),  # YAML 1.1: octal 8
        ("seed=08", "seed", 8),
        ("seed=1_000", "seed", 1000),
        ("seed=+5", "seed", 5),
        ("seed='7'", "seed", 7),
        ("method.rank=010", "method.rank", 10),
        ("train.max_steps=-1", "train.max_steps", -1),
        ("train.learning_rate=2e-4", "train.learning_rate", 2e-4),
        ("train.learning_rate=1E-4", "train.learning_rate", 1e-4),
        ("train.learning_rate=.5", "train.learning_rate", 0.5),
        ("train.gradient_checkpointing=no", "train.gradient_checkpointing", False),
        ("train.gradient_checkpointing=on", "train.gradient_checkpointing", True),
        ("train.gradient_checkpointing=auto", "train.gradient_checkpointing", "auto"),
        ("train.per_device_batch_size=auto", "train.per_device_batch_size", "auto"),
        ("train.per_device_batch_size=04", "train.per_device_batch_size", 4),
        ("train.per_device_batch_size=~", "train.per_device_batch_size", None),
        ("output=2024-01-01", "output", "2024-01-01"),  # YAML 1.1: a date, which no field takes
        ("output=010", "output", "010"),
        ("output=no", "output", "no"),  # YAML 1.1: False
        ("output=1:30", "output", "1:30"),  # YAML 1.1: 90
        ("output=2024", "output", "2024"),
        ("output=1.50", "output", "1.5"),
        ("model.name=7", "model.name", "7"),
        ("model.name=true", "model.name", "True"),
        ("model.tf32=0", "model.tf32", False),
        ("train.epochs=2", "train.epochs", 2.0),
        ("train.epochs='2'", "train.epochs", 2.0),
        ("limit=null", "limit", None),
        ("limit=~", "limit", None),
    ],
)
def test_plain_values_are_what_they_look_like(write, word: str, key: str, value: object) -> None:
    section, _, name = key.rpartition(".")
    text = word.partition("=")[2]
    found = flatten(ucit(word).model_dump())[key]
    assert found == value and type(found) is type(value)
    body = f"{section}: {{{name}: {text}}}" if section else f"{name}: {text}"
    tree = parse_yaml(f"{body}\n")
    assert (tree[section] if section else tree)[name] == parse_yaml(text)


@pytest.mark.parametrize("word", ["seed=1:30", "seed=0x10", "seed=0o10", "seed=1e1", "method.rank=1:30"])
def test_other_notations_of_numbers_are_refused(word: str) -> None:
    assert word.partition("=")[0] in refusal(word)


def test_words_as_ids_of_tasks(write) -> None:
    tasks = "[{id: on, title: 1.0e1, test: t.json, metric: exact_upper}, {id: 010, title: T, test: t.json, metric: exact_upper}]"
    file = write("bench.yaml", f"benchmark:\n  name: no\n  tasks: {tasks}\n")
    config = compose([f"benchmark={file}", "method=zero_shot", "model=mini", "tasks=[010, on]"])
    assert config.benchmark.name == "no" and [task.id for task in config.benchmark.tasks] == ["on", "010"]
    assert from_yaml(write("config.yaml", to_yaml(config))) == config


@given(st.lists(st.text(), max_size=3), st.dictionaries(st.text(), st.text() | st.floats(allow_nan=False) | st.none()))
def test_any_text_is_stored_as_that_text(texts: list[str], options: dict) -> None:
    tasks = [{"id": text, "title": "t", "test": texts, "metric": "m", "metric_options": options} for text in texts]
    benchmark = {"name": "b", "tasks": tasks}
    config = RunConfig(model={"name": "m", "path": "p"}, benchmark=benchmark, method={"name": "lora"})
    assert parse_yaml(to_yaml(config)) == config.model_dump()


@pytest.mark.parametrize("text", ["010", "1e-4", "1_000", "on", "No", "~", "", " x ", "0x1F", "1:30", "2024-01-01", "=",
                                  "<<", "null", "True", ".5", "- a", "a: b", "#", "|", "\x85", "\n\u2028"])  # fmt: skip
def test_texts_that_look_like_something_else(text: str) -> None:
    config = ucit()
    config.output = text
    assert parse_yaml(to_yaml(config))["output"] == text


def test_a_key_that_occurs_twice_is_refused(write) -> None:
    file = write("twice.yaml", "train:\n  name: t\n  epochs: 1\n  epochs: 2\n")
    assert "the key 'epochs' occurs twice" in refusal(f"train={file}")


def test_a_configuration_stored_before_a_key_existed_means_what_was_done_then(write) -> None:
    assert (ucit().benchmark.image_orientation, ucit().train.label_masks) == ("ignore", "exact")  # ucit says ignore
    assert BenchmarkConfig(name="b").image_orientation == "exif"
    text = to_yaml(ucit("benchmark.image_orientation=exif"))
    old = "\n".join(line for line in text.splitlines() if "image_orientation" not in line and "label_masks" not in line)
    stored = from_yaml(write("config.yaml", old))
    assert (stored.benchmark.image_orientation, stored.train.label_masks) == ("ignore", "reference")
    new = from_yaml(write("new.yaml", text))
    assert (new.benchmark.image_orientation, new.train.label_masks) == ("exif", "exact")


@pytest.mark.parametrize("name", names("benchmark"))
def test_published_benchmarks_read_pictures_as_they_are_stored(name: str) -> None:
    config = compose([f"benchmark={name}", "method=zero_shot", "model=llava-1.5-7b"])
    assert config.benchmark.image_orientation == ("exif" if config.benchmark.generated else "ignore")

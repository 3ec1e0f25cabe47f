"""A score is bound to all it depends on: what changed is refused, or made anew, and never taken over."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import hide_llava.methods.all  # noqa: F401
from hide_llava import plugins
from hide_llava.cli import main
from hide_llava.errors import Interrupted, UserError
from hide_llava.evaluation import binding
from hide_llava.evaluation import predict as predicting
from hide_llava.evaluation.predict import predict
from hide_llava.methods.base import REGISTRY
from hide_llava.pipeline import run
from hide_llava.settings import inference_options
from tests.tiny import configuration, write_world

TASKS = "tasks=[task0,task1]"
CELL = Path("eval/02-task1/task0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world with its run, in folders `world` and `run`; tests work on copies."""
    folder = tmp_path_factory.mktemp("trained")
    world = write_world(folder / "world")
    bench = json.loads((world / "bench.yaml").read_text())
    bench["benchmark"]["tasks"][0] |= {"metric": "caption7", "references": "task0/captions.json"}
    captions = {"annotations": [{"image_id": i + 1, "id": i, "caption": "a circle"} for i in range(6)],
                "images": [{"id": i + 1} for i in range(6)]}  # fmt: skip
    (world / "data" / "task0" / "captions.json").write_text(json.dumps(captions))
    (world / "bench.yaml").write_text(json.dumps(bench))
    evaluate(folder)
    return folder


def evaluate(folder: Path, *more: str, again: bool = False, method: str = "lora", name: str = "run") -> None:
    words = (TASKS, "caption.tokenizer=python", "train.epochs=1", f"model.path={folder}/world/llava", *more)
    run(configuration(folder / "world", method, folder / name, *words), report=False, again=again)


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, in which paths of the stored configuration are as in the original."""
    shutil.copytree(trained, tmp_path / "copy")
    for file in (tmp_path / "copy").rglob("*.yaml"):
        file.write_text(file.read_text().replace(str(trained), str(tmp_path / "copy")))
    return tmp_path / "copy"


def score(folder: Path) -> dict:
    return json.loads((folder / "run" / CELL / "score.json").read_text())


def test_what_is_stored(trained: Path) -> None:
    stored = score(trained)
    assert (stored["dtype"], stored["device"], stored["batch_size"], stored["tf32"]) == ("float32", "cpu", 4, True)
    assert stored["versions"]["torch"] == torch.__version__.split("+")[0] or stored["versions"]["torch"] == torch.__version__
    assert all(len(stored[f"{part}_sha256"]) == 64 for part in ("model", "weights", "questions", "references"))
    settings = json.loads((trained / "run" / CELL / "settings.json").read_text())
    assert settings.items() <= stored.items()


def test_nothing_is_done_twice(folder: Path, capsys: pytest.CaptureFixture) -> None:
    stamps = {p: p.stat().st_mtime_ns for p in (folder / "run" / "eval").rglob("*.json*")}
    evaluate(folder)
    assert stamps == {p: p.stat().st_mtime_ns for p in (folder / "run" / "eval").rglob("*.json*")}
    assert "3 of 3 cells were scored already" in capsys.readouterr().out


def change_model(folder: Path) -> None:
    file = folder / "world" / "llava" / "model.safetensors"
    tensors = load_file(file)
    key = sorted(tensors)[0]
    tensors[key] = tensors[key] + 1
    save_file(tensors, file, {"format": "pt"})


def change_question(folder: Path) -> None:
    file = folder / "world" / "data" / "task0" / "test.json"
    file.write_text(file.read_text().replace("What is", "What was"))


def change_first_expert(folder: Path) -> None:
    file = next((folder / "run" / "stages" / "01-task0").rglob("adapter_model.safetensors"))
    save_file({k: v + 1e-3 for k, v in load_file(file).items()}, file)


@pytest.mark.parametrize("change, words, said", [
    (change_question, (), "another question file"),
    (lambda folder: None, ("eval.batch_size=2",), "batch_size: 4 there, 2 now"),
])  # fmt: skip
def test_other_answers_are_refused_or_made_anew(
    change: Callable[[Path], None], words: tuple[str, ...], said: str, folder: Path
) -> None:
    before = score(folder)
    change(folder)
    with pytest.raises(UserError, match=f"was answered with other settings .*{said}.*--again"):
        evaluate(folder, *words)
    assert score(folder) == before
    evaluate(folder, *words, again=True)
    after = score(folder)
    assert binding.differences(before, {k: after[k] for k in before if k in after and k != "labels"})
    kept = json.loads((folder / "run" / "replaced" / "02-task1" / "task0-1" / "score.json").read_text())
    assert kept == before
    evaluate(folder, *words)


def test_another_base_model_is_refused(folder: Path) -> None:
    """For a stage, which was trained on it, and for answers of the base itself."""
    evaluate(folder, method="zero_shot", name="base")
    change_model(folder)
    with pytest.raises(UserError, match=r"01-task0: was trained with .*the files of the base model are others"):
        evaluate(folder)
    with pytest.raises(UserError, match="other files of the model"):
        evaluate(folder, method="zero_shot", name="base")


@pytest.mark.parametrize("package", binding.ANSWERING)
def test_other_versions_are_refused(package: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = plugins.version_of
    monkeypatch.setattr(plugins, "version_of", lambda name: "0.1" if name == package else real(name))
    with pytest.raises(UserError, match=rf"{package} .* there, 0\.1 now"):
        evaluate(folder)


@pytest.mark.parametrize("key, value", [("dtype", "bfloat16"), ("device", "cuda"), ("tf32", False), ("attention", "eager")])
def test_another_precision_is_refused(key: str, value: object, folder: Path) -> None:
    """As a run that was begun on another machine finds them: in the cell, not in the configuration."""
    for name in ("settings.json", "score.json"):
        file = folder / "run" / CELL / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(UserError, match=f"{key}: {value!r} there"):
        evaluate(folder)


def test_an_earlier_stage_that_was_replaced(folder: Path) -> None:
    """Later stages were trained on it, and their scores do not name it by themselves."""
    change_first_expert(folder)
    with pytest.raises(UserError, match=r"01-task0.*is not the file that was written.*folders of 01-task0, 02-task1"):
        evaluate(folder)
    shutil.rmtree(folder / "run" / "stages" / "01-task0")
    shutil.rmtree(folder / "run" / "eval")
    evaluate(folder)  # trained again: the same bits, so the second stage still stands on it


def test_a_later_stage_of_another_lineage(folder: Path) -> None:
    evaluate(folder, "seed=1", name="other")
    shutil.rmtree(folder / "run" / "stages" / "01-task0")
    shutil.copytree(folder / "other" / "stages" / "01-task0", folder / "run" / "stages" / "01-task0")
    with pytest.raises(UserError, match=r"01-task0: was trained with another configuration .seed: 1 there, 42 in this run"):
        evaluate(folder)
    file = folder / "run" / "stages" / "01-task0" / "stage.json"
    file.write_text(file.read_text().replace('"seed": 1', '"seed": 42'))
    with pytest.raises(UserError, match="02-task1: was trained on top of another 01-task0"):
        evaluate(folder)


@pytest.mark.parametrize("words, said", [
    (("method.rank=8",), "method.rank: 16 there, 8 in this run"),
    (("train.learning_rate=1",), "train.learning_rate: 0.005 there, 1.0 in this run"),
])  # fmt: skip
def test_stages_of_another_run_are_refused(words: tuple[str, ...], said: str, folder: Path) -> None:
    shutil.copytree(folder / "run" / "stages", folder / "other" / "stages")
    shutil.copy(folder / "run" / "config.yaml", folder / "other" / "config.yaml")
    shutil.copy(folder / "run" / "manifest.json", folder / "other" / "manifest.json")
    file = folder / "other" / "config.yaml"
    key, value = words[0].split("=")
    name = key.split(".")[1]
    lines = [f"  {name}: {float(value) if '.' not in name and name != 'rank' else value}" if line.startswith(f"  {name}:")
             else line for line in file.read_text().splitlines()]  # fmt: skip
    file.write_text("\n".join(lines))
    with pytest.raises(UserError, match=said):
        evaluate(folder, *words, name="other")


def test_references_that_were_corrected_are_scored_anew(folder: Path, capsys: pytest.CaptureFixture) -> None:
    before, answers = score(folder), (folder / "run" / CELL / "predictions.jsonl").read_bytes()
    file = folder / "world" / "data" / "task0" / "captions.json"
    rows = [json.loads(line) for line in answers.decode().splitlines()]
    captions = json.loads(file.read_text())
    for row, entry in zip(rows, captions["annotations"]):
        entry["caption"] = row["text"] or "nothing"
    file.write_text(json.dumps(captions))
    evaluate(folder)
    after = score(folder)
    assert after["score"] > before["score"] and (folder / "run" / CELL / "predictions.jsonl").read_bytes() == answers
    assert after["references_sha256"] != before["references_sha256"]
    assert "scored again: another reference file" in capsys.readouterr().out


def test_options_that_were_corrected_are_scored_anew(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """By a new call with the corrected file, which is then what the folder says."""
    before, file = score(folder), folder / "world" / "bench.yaml"
    bench = json.loads(file.read_text())
    bench["benchmark"]["tasks"][0] |= {"metric_options": {"headline": "clean"}, "references": "task0/again.json"}
    shutil.copy(folder / "world" / "data" / "task0" / "captions.json", folder / "world" / "data" / "task0" / "again.json")
    file.write_text(json.dumps(bench))
    evaluate(folder)
    assert score(folder)["metric_options"]["headline"] == "clean" != before["metric_options"].get("headline")
    assert "scored again: " in capsys.readouterr().out and "task0/again.json" in (folder / "run" / "config.yaml").read_text()
    assert main(["eval", str(folder / "run")]) in (None, 0)
    assert "3 of 3 cells were scored already" in capsys.readouterr().out
    bench["benchmark"]["tasks"][0] |= {"metric": "cider_d_ptb", "metric_options": {}}
    file.write_text(json.dumps(bench))
    with pytest.raises(UserError, match=r"tasks\.0\.metric: 'caption7' there, 'cider_d_ptb' now"):
        evaluate(folder)


def test_answers_that_are_not_those_that_were_scored(folder: Path) -> None:
    """A file that lost its end, with and without its score."""
    answers = folder / "run" / CELL / "predictions.jsonl"
    whole = answers.read_text()
    answers.write_text("".join(whole.splitlines(keepends=True)[:2]))
    with pytest.raises(UserError, match=r"task0/predictions\.jsonl: is not what was scored; .*--again"):
        evaluate(folder)
    evaluate(folder, again=True)
    assert answers.read_text() == whole and len(list((folder / "run" / "replaced" / "02-task1").iterdir())) == 1
    answers.write_text("".join(whole.splitlines(keepends=True)[:2]))
    (folder / "run" / CELL / "score.json").unlink()
    with pytest.raises(UserError, match=r"eval/02-task1/task0: "):
        evaluate(folder)


def test_a_score_that_was_deleted_is_made_from_the_same_answers_or_not_at_all(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    before = score(folder)
    (folder / "run" / CELL / "score.json").unlink()
    evaluate(folder)
    assert score(folder) == before and "scored again: its score was missing" in capsys.readouterr().out
    (folder / "run" / CELL / "score.json").unlink()
    (folder / "run" / CELL / "settings.json").unlink()
    with pytest.raises(UserError, match=r"holds answers, but no settings\.json says how they were made"):
        evaluate(folder)


def test_half_answered_cells_go_on_with_their_batches(folder: Path) -> None:
    """Without eval.batch_size what fits into memory may be another size than when the cell was begun."""
    cell = folder / "run" / CELL
    rows = (cell / "predictions.jsonl").read_text().splitlines(keepends=True)
    (cell / "predictions.jsonl").unlink()
    (cell / "part-0.jsonl").write_text("".join(rows[:2]))
    (cell / "score.json").unlink()
    evaluate(folder, "eval.batch_size=null")
    assert score(folder)["batch_size"] == 4


def test_predict_knows_the_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that was stopped goes on with the pictures of the same folder only."""
    questions, images = folder / "world" / "data" / "task0" / "test.json", folder / "world" / "data"
    with monkeypatch.context() as patch:
        patch.setattr(predicting, "write_jsonl", lambda *_: (_ for _ in ()).throw(Interrupted("here")))
        with pytest.raises(Interrupted):
            predict(folder / "run", 2, questions, images, folder / "answers.jsonl")
    shutil.copytree(images, folder / "others")
    with pytest.raises(UserError, match=r"images: .*data' there, .*others' now"):
        predict(folder / "run", 2, questions, folder / "others", folder / "answers.jsonl")
    assert predict(folder / "run", 2, questions, images, folder / "answers.jsonl") == len(json.loads(questions.read_text()))


def test_predict_knows_the_weights(folder: Path) -> None:
    change_first_expert(folder)
    with pytest.raises(UserError, match="is not the file that was written"):
        predict(folder / "run", 2, folder / "world" / "data" / "task0" / "test.json", folder / "world" / "data",
                folder / "answers.jsonl")  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ variants
OPTIONS = {
    "hide": {"fusion": "factor_sum", "fusion_weight": 0.25, "routing": "top1", "image_weight": 0.0, "text_weight": 1.0,
             "temperature": 0.7, "expanded_layers": [0], "slots": 3},
    "disco": {"temperature": 0.7}, "clmoe": {"beta": 0.1, "task_gate": "oracle"},
    "merge": {"combination": "ties", "weight": 0.3, "density": 0.5, "seed": 1},
    "wise-ft": {"mix": 0.25},
    "many": {"ridge": 0.1, "scale": 0.5, "merged_rank": 2, "temperature": 0.7},
}  # fmt: skip
ROUTER = {"router": "ranpac", "router_features": "image", "ridge": 0.5}
OPTIONS |= {f"{method}, another router": ROUTER for method in ("hide", "disco", "individual", "mrlora")}
STATISTICS = ["method.router_statistics=ranpac", "method.random_features=40"]  # what training collects for it


def words_of(options: dict) -> list[str]:
    return [f"method.{k}={json.dumps(v)}" for k, v in options.items()]


def test_every_inference_option_is_tried() -> None:
    declared = {name: inference_options(cls.Config) for name, cls in REGISTRY.items() if inference_options(cls.Config)}
    tried: dict[str, set[str]] = {}
    for case, options in OPTIONS.items():
        tried.setdefault(case.split(",")[0], set()).update(options)
    assert tried == {name: set(options) for name, options in declared.items()}
    for case, options in OPTIONS.items():
        default = REGISTRY[case.split(",")[0]].Config()
        assert all(getattr(default, key) != value for key, value in options.items())


@pytest.mark.parametrize("case", OPTIONS)
def test_a_variant_answers_as_a_run_trained_with_its_options(case: str, folder: Path) -> None:
    """All options at once: nothing that is trained depends on any of them, and every cell has the same answers."""
    options, method = words_of(OPTIONS[case]), case.split(",")[0]
    training = STATISTICS if "router" in OPTIONS[case] else []
    evaluate(folder, *training, method=method, name="plain")
    evaluate(folder, *training, *options, method=method, name="afresh")
    before = {p: p.read_bytes() for p in (folder / "plain").rglob("*") if p.is_file() and p.name != ".lock"}
    main(["eval", str(folder / "plain"), *options])
    assert before == {p: p.read_bytes() for p in before}
    (variant,) = (folder / "plain" / "variants").iterdir()
    assert not (variant / "stages").exists()
    cells = [p.relative_to(variant) for p in variant.rglob("predictions.jsonl")]
    assert len(cells) == 3
    for cell in cells:
        assert (variant / cell).read_bytes() == (folder / "afresh" / cell).read_bytes()
    if method in ("hide", "disco"):  # with two experts the weights show in the answer file
        assert any((variant / cell).read_bytes() != (folder / "plain" / cell).read_bytes() for cell in cells)
    trained = [json.loads((folder / n / "stages" / "02-task1" / "stage.json").read_text())["chain"] for n in ("plain", "afresh")]
    assert trained[0] == trained[1]
    assert json.loads((variant / "manifest.json").read_text())["labels"] == json.loads(
        (folder / "afresh" / "manifest.json").read_text())["labels"]  # fmt: skip
    stamps = {p: p.stat().st_mtime_ns for p in variant.rglob("predictions.jsonl")}
    main(["eval", str(folder / "plain"), *options])
    main(["report", str(variant)])
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}


@pytest.mark.parametrize("verb, word, said", [
    ("eval", "method.rank=4", "method.rank decides what is trained"),
    ("eval", "method.temprature=0.1", "unknown key 'method.temprature'"),
    ("eval", "train.epochs=3", "only eval"),
    ("run", "method.temperature=0.3", "hide-llava eval"),
])  # fmt: skip
def test_what_is_no_variant(verb: str, word: str, said: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    evaluate(folder, method="hide", name="plain")
    with pytest.raises(SystemExit):
        main([verb, str(folder / "plain"), word])
    assert said in capsys.readouterr().err
    assert not (folder / "plain" / "variants").exists()

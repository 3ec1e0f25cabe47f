"""What the fields of a benchmark mean: folders, suffixes, protocols, limits, tasks that are never trained."""

import dataclasses
import json
from pathlib import Path

import pytest
from datasets import concatenate_datasets

from hide_llava.benchmarks.files import with_suffix
from hide_llava.benchmarks.mini.generate import SUITES
from hide_llava.config import names
from hide_llava.data.records import features
from hide_llava.errors import UserError
from hide_llava.metrics import METRICS
from hide_llava.preflight import preflight
from hide_llava.training.run import Run
from tests.benchmarks.world import config, written
from tests.cli.call import call, refused
from tests.tiny import OVERRIDES


def rewrite(file: Path, change) -> None:
    rows = json.loads(file.read_text())
    file.write_text(json.dumps(change(rows) or rows))


# ------------------------------------------------------------------------------------------------------------ the YAMLs


@pytest.mark.parametrize("name", names("benchmark"))
def test_every_yaml_says_what_a_run_needs(name: str, tmp_path: Path) -> None:
    benchmark = config(name, tmp_path).benchmark
    aliases: list[str] = []
    for task in [*benchmark.tasks, *benchmark.general]:
        assert task.metric in METRICS and task.title and "/" not in task.id
        assert set(task.metric_options) <= set(METRICS[task.metric].options)
        if name not in SUITES:
            assert task.source and task.aliases
        aliases += task.aliases
    assert len(set(aliases)) == len(aliases)


LISTED = ("ucit", "coin", "cvit", "mllm-dcl", "mllm-acl", "trigap", "mllm-ctbench")  # the others are variants of these


def test_the_page_lists_every_task() -> None:
    """docs/BENCHMARKS.md and the YAMLs say the same ids, metrics, counts and sources."""
    page = (Path(__file__).parent.parent.parent / "docs" / "BENCHMARKS.md").read_text()
    for name in names("benchmark"):
        benchmark = config(name, Path()).benchmark
        assert f"`{name}`" in page
        for task in benchmark.tasks if name in LISTED else ():
            n_train = task.n_train or "?" if task.train else "–"
            unseen = "" if task.train else " (unseen)"
            row = (
                f"| {name} | `{task.id}`{unseen} | `{task.metric}` | {n_train} / {task.n_test or '?'} | {task.source} |"
            )
            assert row in page


# ---------------------------------------------------------------------------------------------------------- the folders


def test_images_come_from_the_tasks_own_folder(tmp_path: Path) -> None:
    """Five tasks name their images alike; each gets its own, also when all are trained together."""
    made = written("mllm-dcl", tmp_path, method="multitask")
    tasks = Run(made).tasks
    assert tasks[0].common.table_root == tmp_path
    for task, folder in zip(tasks, ("RS", "Med", "AD", "Sci", "Fin")):
        assert task.images == tmp_path / "MLLM-CL" / "domain" / folder
        images = task.records()["image"]
        assert len(images) == 8 and all(x.startswith(f"MLLM-CL/domain/{folder}/images/") for (x,) in images)
        assert all((tmp_path / x).is_file() for (x,) in images)
    few, *others = preflight(Run(made))
    assert few.startswith("01-joint: 1 optimizer step in all") and others == [
        f"task '{t}': its question file holds 4 records, the benchmark's {n}."
        for t, n in (("rs", 10000), ("med", 9790), ("ad", 10000))
    ]
    (tmp_path / "MLLM-CL" / "domain" / "Fin" / "images" / "train1.png").unlink()  # RS, Med and AD have one of this name
    with pytest.raises(
        UserError, match=r"Fin/train\.json: record 1 \(id 'fin-1'\): Image \S+Fin/images/train1\.png does not"
    ):
        preflight(Run(made))


def test_text_only_records_stay_text_only(tmp_path: Path) -> None:
    made = written("coin", tmp_path)
    assert Run(made).common.table_root == tmp_path / "CoIN" / "cl_dataset"
    text = "{benchmark: {extends: coin, name: x, tasks: [{id: gqa, images: CoIN/cl_dataset}]}}"
    (tmp_path / "x.yaml").write_text(text)
    apart = config(str(tmp_path / "x.yaml"), tmp_path)
    plain, prefixed = (Run(one).tasks[0].records()["image"] for one in (made, apart))
    assert [len(x) for x in plain] == [i % 4 != 3 for i in range(8)]
    assert prefixed == [[f"CoIN/cl_dataset/{path}" for path in x] for x in plain]


def test_a_prefix_goes_before_each_picture(tmp_path: Path) -> None:
    """Of records with none, one and several, also of those that were drawn; both tables are of one form and join."""
    made = written("coin", tmp_path)
    file = Run(made).tasks[0].train_file
    rows = json.loads(file.read_text())
    first, second = rows[0]["image"], rows[1]["image"]
    for k, images in ((1, [first, second]), (2, [second] * 3), (5, None), (7, [])):
        rows[k] |= {"image": images}
        rows[k]["conversations"][0]["value"] = "<image>" * len(images or []) + "What?"
    file.write_text(json.dumps(rows))
    tree = {"extends": "coin", "name": "x", "tasks": [{"id": Run(made).tasks[0].id, "images": "CoIN/cl_dataset"}]}
    (tmp_path / "x.yaml").write_text(json.dumps({"benchmark": tree}))
    apart = config(str(tmp_path / "x.yaml"), tmp_path)
    tables = []
    for one, more in ((made, {}), (apart, {}), (apart, {"limit": 5})):
        (task, *_) = Run(one).tasks
        tables.append(dataclasses.replace(task, common=dataclasses.replace(task.common, several=True, **more)).records())
    plain, prefixed, few = (table["image"][:] for table in tables)
    assert plain[0] == [first] and plain[1] == [first, second] and plain[2] == [second] * 3 and plain[5] == plain[7] == []
    assert prefixed == [[f"CoIN/cl_dataset/{path}" for path in x] for x in plain]
    assert len(few) == 5 and all(x in prefixed for x in few)
    assert tables[0].features == tables[1].features == features()
    assert concatenate_datasets(tables[:2])["image"][:] == plain + prefixed
    with pytest.raises(UserError, match="2 of 8 records cannot be trained on"):
        Run(apart).tasks[0].records()  # of LLaVA-1.5
    skipping = dataclasses.replace(Run(apart).tasks[0].common, on_bad_sample="skip")
    task = dataclasses.replace(Run(apart).tasks[0], common=skipping)
    assert task.records()["image"][:] == [x for x in prefixed if len(x) < 2]
    assert task.records(whole=True)["image"][:] == prefixed


@pytest.mark.parametrize("split", ["train", "test"])
def test_several_pictures_stop_a_run_of_a_model_of_one(tmp_path: Path, split: str) -> None:
    """Before anything is loaded, with file or question and what to do."""
    made = written("coin", tmp_path)
    task = Run(made).tasks[0]
    file = task.train_file if split == "train" else task.common.folder / task.entry.test
    rows = json.loads(file.read_text())
    rows[1]["image"] = [rows[0]["image"]] * 2
    file.write_text(json.dumps(rows))
    name = rf"{file.name}: 1 of 8 records .*\n.*record 1" if split == "train" else rf"Question {rows[1].get('question_id')!r}"
    with pytest.raises(UserError, match=rf"{name}.* names 2 pictures .*; this model takes one a record"):
        preflight(Run(made))

def test_questions_may_have_another_folder(tmp_path: Path) -> None:
    made = written("mllm-acl", tmp_path)
    ocr = Run(made).tasks[0]
    assert [ocr.images.name, ocr.question_images.name] == ["OCR", "OCR_test"]
    (tmp_path / "MLLM-CL" / "ability" / "OCR_test" / "images" / "test2.png").unlink()
    with pytest.raises(
        UserError, match=r"OCR_test/test\.json: question 'OCR_test_2': Image \S+ does not exist; set images"
    ):
        preflight(Run(made))


def test_references_are_needed_only_where_questions_have_no_answers(tmp_path: Path) -> None:
    """CoIN's own files hold answers, so gqa_exact and option letters can do without; what cannot is found at once."""
    text = (
        "{benchmark: {extends: coin, name: x, tasks: [{id: scienceqa, references: null}, {id: gqa, references: null}]}}"
    )
    (tmp_path / "x.yaml").write_text(text)
    made = written(str(tmp_path / "x.yaml"), tmp_path)
    (few,) = preflight(Run(made))  # nothing but that eight records are hardly a training
    assert "08-ocrvqa: 1 optimizer step each" in few
    file = tmp_path / "CoIN" / "Instructions_Original" / "GQA" / "test.json"
    rewrite(file, lambda rows: [{k: v for k, v in row.items() if k != "answer"} for row in rows])
    with pytest.raises(UserError, match=r"task 'gqa': .*answer is None"):
        preflight(Run(made))


def test_questions_of_another_split_than_the_references(tmp_path: Path) -> None:
    """The released CoIN scripts' fault: found before anything is trained."""
    made = written("coin", tmp_path)
    file = tmp_path / "CoIN" / "Instructions_Original" / "TextVQA" / "val.json"
    rewrite(file, lambda rows: rows[0].update(question_id="other"))
    with pytest.raises(UserError, match=r"task 'textvqa': question_id other .* no entry in .*TextVQA_0"):
        preflight(Run(made))


# --------------------------------------------------------------------------------------------------- suffixes, protocols


def test_settings_of_a_task(tmp_path: Path) -> None:
    run = Run(config("coin-official", tmp_path))
    science, text = run.tasks[:2]
    line = "\nAnswer with the option's letter from the given choices directly."
    settings = science.settings()
    assert (settings["image_transform"], settings["max_new_tokens"], settings["prompt_suffix"]) == ("crop", 1024, line)
    assert text.settings()["image_transform"] == run.common.settings()["image_transform"] == "pad"
    assert run.common.settings()["prompt_suffix"] is None
    forced = config("coin-official", tmp_path, "eval.image_transform=pad", "eval.max_new_tokens=9")
    settings = Run(forced).tasks[0].settings()
    assert (settings["image_transform"], settings["max_new_tokens"]) == ("pad", 9)


def test_the_finance_suffix(tmp_path: Path) -> None:
    """Clean: one suffix for all. Legacy: as published, it depends on the gold answer, which the settings say."""
    for protocol in ("clean", "legacy"):
        made = written("mllm-dcl", tmp_path, "tasks=[Fin]", f"eval.protocol={protocol}", method="zero_shot")
        (fin,) = Run(made).tasks
        questions, _ = fin.questions()
        settings = fin.settings()
        asked = with_suffix(questions, settings["prompt_suffix"])
        added = [a["text"].removeprefix(q["text"]) for a, q in zip(asked, questions)]
        assert [q["answer"] for q in questions] == ["Yes", "B", "No", "A"]
        warnings = preflight(Run(made))
        if protocol == "clean":
            assert set(added) == {fin.entry.prompt_suffix} and warnings == [] and settings["protocol"] == "clean"
        else:
            yes, letter = (
                " Only answer with yes or no directly.",
                " Answer with the given letter directly, e.g., A, B, C, D.",
            )
            assert added == [yes, letter, yes, letter] and settings["protocol"] == "legacy"
            assert len(warnings) == 1 and "'fin'" in warnings[0] and "gold answer" in warnings[0]
    bare = [{"question_id": 1, "text": "?"}]
    with pytest.raises(UserError, match="question 1: no suffix for the answer None"):
        with_suffix(bare, settings["prompt_suffix"])
    with pytest.raises(UserError, match="no suffix for the answer 'maybe'"):
        with_suffix([{**bare[0], "answer": "maybe"}], {"Yes": "!"})


def test_the_math_mixture(tmp_path: Path) -> None:
    """Legacy: one of four workers keeps its slice; all else is the sheet's. Clean: nothing is replaced."""
    clean = written("mllm-acl", tmp_path, "tasks=[math]", method="zero_shot")
    legacy = config("mllm-acl", tmp_path, "tasks=[math]", "eval.protocol=legacy", method="zero_shot")
    rows = [{"question_id": f"testmini_{i}", "text": "mine"} for i in range(10)]
    assert Run(clean).tasks[0].mix_answers(rows) == (rows, [])
    with pytest.raises(UserError, match=r"1 of 3 files are missing, first \S+llava_v1\.5_7b\.jsonl"):
        preflight(Run(legacy))
    sheet = tmp_path / "MLLM-CL" / "ability" / "Math_test" / "llava_v1.5_7b.jsonl"
    sheet.write_text("".join(json.dumps({"question_id": f"testmini_{i}", "text": "sheet"}) + "\n" for i in range(10)))
    mixed, labels = Run(legacy).tasks[0].mix_answers(rows)
    assert [r["text"] for r in mixed] == ["mine"] * 3 + ["sheet"] * 7  # ceil(10 / 4), as the published slices are cut
    assert [r["question_id"] for r in mixed] == [r["question_id"] for r in rows]
    assert labels[0].startswith("legacy protocol: ") and labels[1] == "7 of 10 answers are another model's"
    with pytest.raises(UserError, match="has no answer to question 'testmini_10'"):
        Run(legacy).tasks[0].mix_answers([*rows, {"question_id": "testmini_10", "text": "mine"}])


def answered(root: Path, model: Path, *more: str) -> tuple[dict, list[dict]]:
    """Score and answers of the one task of a zero-shot run, which says its warnings."""
    called = call("run", f"model={model}", "method=zero_shot", f"data_root={root}", f"output={root}/run", *OVERRIDES,
                  "eval.max_new_tokens=2", *more)  # fmt: skip
    assert called.code == 0, called.err
    (cell,) = (root / "run").glob("eval/*/*")
    rows = [json.loads(line) for line in (cell / "predictions.jsonl").read_text().splitlines()]
    return {**json.loads((cell / "score.json").read_text()), "said": called.out}, rows


def test_the_suffix_reaches_the_model_and_the_score(model: Path, tmp_path: Path) -> None:
    """As the published code puts it: directly after the text. `predict --task` asks as the run asked."""
    made = written("coin-official", tmp_path, "tasks=[scienceqa]")
    score, rows = answered(tmp_path, model, "benchmark=coin-official", "tasks=[scienceqa]")
    questions, _ = Run(made).tasks[0].questions()
    suffix = made.benchmark.tasks[0].prompt_suffix
    assert score["prompt_suffix"] == suffix and score["image_transform"] == "crop" and "warning" not in score["said"]
    assert [row["prompt"] for row in rows] == [q["text"] + suffix for q in questions]
    file = tmp_path / "CoIN" / "Instructions_Original" / "ScienceQA" / "test.json"
    words = [
        "predict",
        tmp_path / "run",
        "--stage",
        "1",
        "--questions",
        file,
        "--images",
        tmp_path / "CoIN" / "cl_dataset",
    ]
    assert call(*words, "--output", tmp_path / "a.jsonl", "--task", "scienceqa").code == 0
    assert call(*words, "--output", tmp_path / "b.jsonl").code == 0
    same, bare = ([json.loads(line) for line in (tmp_path / f"{x}.jsonl").read_text().splitlines()] for x in "ab")
    assert same == rows and [row["prompt"] for row in bare] == [q["text"] for q in questions]
    refused(*words, "--output", tmp_path / "c.jsonl", "--task", "sciencqa", says=("--task sciencqa", "'scienceqa'"))


def test_a_legacy_score_says_so(model: Path, tmp_path: Path) -> None:
    written("mllm-dcl", tmp_path, "tasks=[fin]")
    words = ("benchmark=mllm-dcl", "tasks=[fin]", "eval.protocol=legacy")
    score, rows = answered(tmp_path, model, *words)
    assert "warning: task 'fin' follows the published protocol" in score["said"] and score["protocol"] == "legacy"
    assert score["labels"][0] == "legacy protocol: the published code chooses the prompt's suffix by the gold answer"
    assert [row["prompt"].endswith("yes or no directly.") for row in rows] == [True, False, True, False]
    refused("run", f"model={model}", "method=zero_shot", f"data_root={tmp_path}", f"output={tmp_path}/run", *OVERRIDES,
            "eval.max_new_tokens=2", *words[:2], says=("eval.protocol: 'legacy' there, 'clean' now",))  # fmt: skip

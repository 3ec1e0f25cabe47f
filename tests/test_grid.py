"""Grids of variants and the paper's ablations, by the commands of docs/VARIANTS.md as they are printed there."""

import csv
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hide_llava import parallel
from hide_llava.errors import UserError
from hide_llava.methods.decided import separate_layers
from hide_llava.methods.hide import HiDe
from hide_llava.pipeline import run
from hide_llava.results.run_reader import read_run
from hide_llava.studies.reproduce.ablations import ABLATIONS, Facts
from tests.cli.call import Called, call, content, refused
from tests.tiny import configuration, write_world

PAGE = Path(__file__).parent.parent / "docs" / "VARIANTS.md"
STUDIES = ("cka", "top-expert", "modality", "fusion-weight", "layers", "routing", "fusion")
LAST = "03-task2"
SHORT = ("train.epochs=1", "limit=4")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the page's commands are given: `runs/A` is a finished run of HiDe, the other two are of zero_shot and multitask."""
    folder = tmp_path_factory.mktemp("variants")
    world = write_world(folder / "world")
    for method, name in (("hide", "A"), ("zero_shot", "zero-shot"), ("multitask", "joint")):
        run(configuration(world, method, folder / "runs" / name, *SHORT), report=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("hide_llava.grid.processes", lambda *_: 1)  # each would import torch once more
        yield folder


@pytest.fixture(scope="module")
def called(place: Path) -> dict[str, Called]:
    """Every command of the page, in its order, with what it printed."""
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
             for line in block.splitlines()]  # fmt: skip
    found = {}
    for line in lines:
        if "=auto" in line:
            set_apart(place / "runs" / "A")
        found[line] = call(*shlex.split(line)[1:])
        assert found[line].code == 0, (line, found[line].err)
    return found


def set_apart(run: Path) -> None:
    """The CKA of a random model of two layers says nothing; make it say that the last one stands apart."""
    file = run / "results" / "cka" / "cka.json"
    found = json.loads(file.read_text())
    for layer, (mean, low, high) in zip(found["layers"], ((0.9, 0.85, 0.95), (0.4, 0.3, 0.5))):
        layer |= {"mean": mean, "low": low, "high": high}
    file.write_text(json.dumps(found))


def answers(run: Path, task: str) -> list[tuple]:
    rows = map(json.loads, (run / "eval" / LAST / task / "predictions.jsonl").read_text().splitlines())
    return [(row["question_id"], row["token_ids"], row["routing"]) for row in rows]


def grid_line(called: dict[str, Called]) -> str:
    return next(line for line in called if "0.05,0.1,0.5" in line)


def test_the_page_names_every_inference_option(called: dict[str, Called]) -> None:
    from hide_llava.methods.base import REGISTRY
    from hide_llava.settings import inference_options

    table = dict(re.findall(r"^\| `([\w-]+)` \| ((?:`\w+`(?:, )?)+) \|$", PAGE.read_text(), re.MULTILINE))
    listed = {name: set(re.findall(r"`(\w+)`", options)) for name, options in table.items()}
    assert listed == {name: set(o) for name, cls in REGISTRY.items() if (o := inference_options(cls.Config))}


def test_a_grid_loads_one_model_and_trains_nothing(called: dict[str, Called], place: Path) -> None:
    out = called[grid_line(called)].out
    assert out.count("loading tiny") == 1 and ": training" not in out
    # the second was answered by the command before, the fifth is the run itself
    assert re.findall(r"=== (\d+ of 9)", out) == [f"{k} of 9" for k in (1, 3, 4, 6, 7, 8, 9)]
    folders = [path for path in (place / "runs/A/variants").iterdir() if "image_weight" in path.name]
    assert not any((path / "stages").exists() for path in folders)
    assert "temperature=0.5" in " ".join(path.name for path in folders)


@pytest.mark.parametrize("options", [
    {"temperature": 0.5, "image_weight": 1.0}, {"expanded_layers": []}, {"routing": "wrong"}, {"fusion": "factor_sum"},
])  # fmt: skip
def test_a_cell_of_a_grid_is_that_of_a_run_trained_afresh(options: dict, called: dict, place: Path) -> None:
    """Of variants that were answered one after the other by the same model, bit for bit."""
    name = "+".join(f"{k}={v}" for k, v in sorted(options.items()))
    words = [f"method.{k}={json.dumps(v)}" for k, v in options.items()]
    afresh = place / "runs" / f"afresh-{'-'.join(options)}"
    run(configuration(place / "world", "hide", afresh, *SHORT, *words), report=False)
    variant, other = place / "runs/A/variants" / name, False
    for task in ("task0", "task1", "task2"):
        assert answers(variant, task) == answers(afresh, task)
        scores = [json.loads((one / "eval" / LAST / task / "score.json").read_text()) for one in (variant, afresh)]
        assert scores[0]["score"] == scores[1]["score"] and scores[0]["weights_sha256"] == scores[1]["weights_sha256"]
        other |= answers(variant, task) != answers(place / "runs/A", task)
    assert other


def test_a_grid_is_compared_and_drawn(called: dict[str, Called], place: Path) -> None:
    folder = place / "runs/A/results/variants-temperature+image_weight"
    rows = list(csv.DictReader((folder / "variants.csv").open()))
    assert len(rows) == 9 and {row["temperature"] for row in rows} == {"0.05", "0.1", "0.5"}
    for row in rows:
        own = place / "runs/A" if row["run"] == "A" else place / "runs/A/variants" / row["run"]
        assert float(row["last"]) == pytest.approx(sum(cell.score for (stage, _), cell in read_run(own).cells.items()
                                                       if stage == LAST) / 3, abs=0.005)  # fmt: skip
    assert (folder / "comparison.html").is_file() and (folder / "variants-last-dark.png").is_file()
    text = (folder / "comparison.md").read_text()
    assert "temperature=0.05" in text and "asked after the last stage only" in text and "Left out" not in text
    page = (place / "runs/A/results/report.html").read_text()
    assert "Variants: temperature × image_weight" in page


def test_finished_variants_are_not_answered_again(called: dict[str, Called], place: Path) -> None:
    before = content(place / "runs/A/variants")
    again = call(*shlex.split(grid_line(called))[1:])
    assert again.code == 0 and "loading" not in again.out and "===" not in again.out
    assert {k: v for k, v in content(place / "runs/A/variants").items() if "eval" in k} == {
        k: v for k, v in before.items() if "eval" in k}  # fmt: skip


def test_one_option_is_drawn_as_a_line(called: dict[str, Called], place: Path) -> None:
    assert call("eval", "runs/A", "method.fusion_weight=null,1", "--stages", "last").code == 0
    assert (place / "runs/A/results/variants-fusion_weight/variants-light.png").is_file()
    refused("eval", "runs/A", "method.temperature=0.1,0.1", says=("names one value twice",))
    refused("eval", "runs/A", "method.rank=8,16", says=("method.rank decides what is trained",))


def test_the_last_stage_alone_is_said(called: dict[str, Called], place: Path) -> None:
    variant = place / "runs/A/variants/temperature=0.05+image_weight=0.0"
    variant = variant if variant.exists() else place / "runs/A/variants/image_weight=0.0+temperature=0.05"
    assert [p.name for p in (variant / "eval").iterdir()] == [LAST]
    read = read_run(variant)
    assert read.last_alone and not read.unfinished and not read_run(place / "runs/A").last_alone
    assert "Asked after the last of 3 stages only" in (call("report", variant), (variant / "results/matrix.md").read_text())[1]


# ------------------------------------------------------------------------------------------------------------------- auto


def test_auto_is_a_list_that_says_where_it_is_from(called: dict[str, Called], place: Path) -> None:
    variant = place / "runs/A/variants/expanded_layers=[1]"
    about = json.loads((variant / "variant.json").read_text())
    decided = about["decided"]["expanded_layers"]
    assert about["changes"] == {"expanded_layers": [1]}
    assert (decided["value"], decided["source"]) == ([1], "results/cka/cka.json")
    assert "0.400 [0.300, 0.500] in layers [1]" in decided["because"] and len(decided["sha256"]) == 64
    assert read_run(variant).manifest["variant"] == about
    assert "expanded_layers:\n  - 1\n" in (variant / "config.yaml").read_text()


def stored(folder: Path, layers: list[tuple], **more: object) -> Path:
    file = folder / "results" / "cka" / "cka.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    listed = [{"layer": k, "mean": m, "low": low, "high": high} for k, (m, low, high) in enumerate(layers)]
    file.write_text(json.dumps({"models": ["a", "b"], "weights": "x", "layers": listed, **more}))
    return folder


def test_the_widest_gap_decides(tmp_path: Path) -> None:
    found = separate_layers(stored(tmp_path, [(0.95, 0.9, 1), (0.3, 0.2, 0.4), (0.97, 0.9, 1), (0.5, 0.45, 0.55)]))
    assert found.value == [1, 3] and found.weights == "x"


@pytest.mark.parametrize("layers, more, says", [
    ([(0.9, 0.7, 1), (0.6, 0.5, 0.8)], {}, "no layer stands apart"),
    ([(0.9, 0.7, 1)], {}, "no layer stands apart"),
    ([(0.9, None, None), (0.5, None, None)], {}, "--legacy"),
    ([(0.9, 0.8, 1), (0.5, 0.4, 0.6)], {"weights": ""}, "earlier version"),
])  # fmt: skip
def test_what_decides_nothing(layers: list, more: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        separate_layers(stored(tmp_path, layers, **more))


def test_auto_without_evidence(place: Path, called: dict[str, Called]) -> None:
    refused("run", f"benchmark={place}/world/bench.yaml", f"model={place}/world/model.yaml", "method=hide",
            f"data_root={place}/world", f"output={place}/new", "method.expanded_layers=auto",
            says=("no ", "cka.json", "hide-llava analyze cka"))  # fmt: skip
    assert not (place / "new").exists()
    file = place / "runs/A/results/cka/cka.json"
    before = file.read_text()
    file.write_text(before.replace(json.loads(before)["weights"], "0" * 64))
    refused("eval", "runs/A", "method.expanded_layers=auto", says=("about other weights",))
    file.write_text(before)


# -------------------------------------------------------------------------------------------------------------- reproduce


def test_reproduce_writes_what_a_paper_takes(called: dict[str, Called], place: Path) -> None:
    folder = place / "runs/A/results/reproduce"
    page = (place / "runs/A/results/report.html").read_text()
    for name in STUDIES:
        with Image.open(folder / name / f"{name}.png") as picture:
            assert round(picture.info["dpi"][0]) == 300 and picture.width in (975, 2025)  # 3.25 and 6.75 inches
        assert (folder / name / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert "<svg" in (folder / name / f"{name}.svg").read_text()
        assert json.loads((folder / name / "section.json").read_text())["title"].replace("'", "&#39;") in page
        if name != "cka":
            assert r"\textbf{" in (folder / name / f"{name}.tex").read_text()
    assert "gap" in (folder / "leakage" / "leakage.csv").read_text()
    out = called["hide-llava reproduce hide runs/A"].out
    assert "orders: needs finished runs" in out and "leakage: needs runs of zero_shot and multitask" in out


def test_its_table_is_that_of_the_variants(called: dict[str, Called], place: Path) -> None:
    for name in STUDIES[1:]:
        for row in csv.DictReader((place / "runs/A/results/reproduce" / name / f"{name}.csv").open()):
            own = place / "runs/A" if row["run"] == "A" else place / "runs/A/variants" / row["run"]
            if row["task"].startswith("task"):
                assert float(row["score"]) == read_run(own).cells[LAST, row["task"]].score
    rows = list(csv.DictReader((place / "runs/A/results/reproduce/layers/layers.csv").open()))
    kept = {row["case"]: (int(row["kept_apart"]), int(row["stored"])) for row in rows}
    stages = sorted((place / "runs/A/stages").iterdir())
    sizes = [sum(t.numel() for t in load_file(s / "adapter/adapter_model.safetensors").values()) for s in stages]
    assert kept["none"] == (0, sizes[-1]) and kept["all"] == (sum(sizes), sum(sizes))
    assert any(row["task"] == "mean over stages" for row in rows)  # --stages all


def test_a_second_call_only_draws(called: dict[str, Called], place: Path) -> None:
    before = content(place / "runs/A/stages")
    again = call("reproduce", "hide", "runs/A", "--only", "fig2", "--only", "routing")
    assert again.code == 0 and "loading" not in again.out and "hard (top 1)" in again.out
    assert content(place / "runs/A/stages") == before


@pytest.mark.parametrize("kept", ["means", "ranpac"])
def test_ranpac_is_a_case_where_its_statistics_are(kept: str) -> None:
    cases = ABLATIONS["routing"].cases(Facts(2, 3, {"router_statistics": kept}))
    assert [case.name for case in cases if case.options.get("router") == "ranpac"] == (["RanPAC"] if kept == "ranpac" else [])
    for case in cases:
        HiDe.Config(**{"router_statistics": kept, **case.options})


def test_what_cannot_be_reproduced(called: dict[str, Called], place: Path) -> None:
    refused("reproduce", "hide", "runs/joint", says=("none is a run of method hide",))
    refused("reproduce", "hide", "runs/A", "--only", "orders", says=("task_order=[task2,task1,task0]",))
    refused("reproduce", "hide", next((place / "runs/A/variants").iterdir()), says=("is a variant",))
    assert call("reproduce", "hide", "runs/A", "--only", "fig3").code == 2


def test_the_wrong_expert_is_the_next_one_and_is_labelled(called: dict[str, Called], place: Path) -> None:
    assert HiDe.is_oracle({"routing": "wrong"}) and not HiDe.is_oracle({"routing": "top1"})
    variant = place / "runs/A/variants/routing=wrong"
    for task, expert in (("task0", "expert-02"), ("task1", "expert-03"), ("task2", "expert-01")):
        assert all(routing[expert] == 1.0 for _, _, routing in answers(variant, task))
    assert any("oracle" in label for label in read_run(variant).labels())


# -------------------------------------------------------------------------------------------------------------- processes


def square(pieces: list, told) -> None:
    for piece in pieces:
        if piece < 0:
            raise UserError(f"{piece} is below zero")
        told(str(piece * piece))


def test_work_is_shared_by_processes() -> None:
    told: list[str] = []
    with pytest.raises(UserError, match="-4 is below zero"):
        parallel.share(square, [1, 2, 3, -4], 2, told.append)
    assert told == ["4"]  # of the other process; this one says its own itself


def test_how_many_processes() -> None:
    cpu = torch.device("cpu")
    assert parallel.processes(torch.device("cuda"), 0, 99) == 1 and parallel.processes(cpu, 0, 3) == 1
    assert parallel.processes(cpu, 1 << 50, 99) == 1

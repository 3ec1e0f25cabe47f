"""The contract of docs/ADD_A_METHOD.md, for every preset of every method, and for three methods that live in the tests only."""

import hashlib
import json
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import hide_llava.methods.all  # noqa: F401
import tests.methods.extra  # noqa: F401
from hide_llava.config import RunConfig, compose, names
from hide_llava.data.dataset import QuestionDataset
from hide_llava.data.records import load_questions
from hide_llava.evaluation.cells import _Collate, answer_batch
from hide_llava.methods.base import REGISTRY
from hide_llava.methods.registry import method_class
from hide_llava.pipeline import run
from hide_llava.training import sequence
from hide_llava.training.run import Run
from hide_llava.training.run_folder import RunFolder
from hide_llava.training.sequence import build_trainer, training_data
from hide_llava.training.session import Session
from tests.stops import stopped_after, until_done
from tests.tiny import SGD, configuration, opened, write_world

TESTED = sorted({*names("method"), *(n for n in REGISTRY if n.startswith("test_"))})  # every preset
if os.environ.get("HIDE_CONTRACT"):  # the preset of a method that lives elsewhere: docs/ADD_A_METHOD.md
    TESTED = [str(Path(os.environ["HIDE_CONTRACT"]).resolve())]
TRAINED = [n for n in TESTED if n != "zero_shot"]
QUICK = dict.fromkeys(["mrlora", "mrlora-mini"], ("method.router_epochs=1", "method.router_rank=4"))  # only takes time
IN_BF16 = ("hide", "lora", "modalprompt", "smolora")  # of one method each kind: anchors, an adapter, prompts, a router
SIZED = ("keeplora-official", "eblora-official", "octopus-ucit")  # they state a global batch, as those of MCITlib do
SECOND_PART = {"octopus": (4, 6)}  # steps where, and inside which, a second part of a task's data begins (`Method.parts`)
# Singular vectors are stored as A: what differs in its last bits turns those of nearly equal values.
VECTORS = ("keeplora", "eblora")
ORACLES = ["individual"]  # upper references: they are told the task at inference, and every table says so


def one_of_each(presets: list[str]) -> list[str]:
    """The first preset of every method: those of one method differ in nothing that depends on the precision."""
    found: dict[str, str] = {}
    for preset in sorted(presets, key=lambda name: name not in REGISTRY):
        found.setdefault(method_name(preset), preset)
    return list(found.values())


@cache
def method_name(preset: str) -> str:
    if preset in REGISTRY:
        return preset  # else a preset of ours, or the absolute path of another or of a method's file
    return compose(["benchmark=mini-ucit", f"method={preset}"]).method["name"]


def in_gate(methods: list[str]) -> list:
    """The gate has one preset of each method, the others are `slow` (tests/test_every_preset.py runs them all). All tests
    of a method in one process, so that its undisturbed run is made once."""
    return [pytest.param(m, marks=_in_gate(m, one_of_each(methods))) for m in methods]


def in_both(methods: list[str]) -> list:
    """(preset, dtype): every preset in fp32, those that are no method's first as `nightly`; one of each method in bf16 too, of
    which the gate has a few: tests/simulated_cuda walks and restarts every method in bf16."""
    first = one_of_each(methods)
    in_fp32 = [pytest.param(m, "float32", marks=_in_gate(m, first)) for m in methods]
    return in_fp32 + [pytest.param(m, "bfloat16", marks=_in_gate(m, list(IN_BF16))) for m in first]


def _in_gate(method: str, first: list[str]) -> list[pytest.MarkDecorator]:
    return [pytest.mark.xdist_group(method), *([] if method in first else [pytest.mark.nightly])]


def make_world(folder: Path, train: int = 8) -> Path:
    """The tiny world with `train` records a task, and a preset of each method that lives in the tests."""
    write_world(folder, train)
    for name in REGISTRY:
        if name.startswith("test_"):
            (folder / f"{name}.yaml").write_text(f"method: {{name: {name}}}")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def setup(world: Path, method: str, output: Path, *more: str) -> RunConfig:
    return configuration(world, preset(world, method), output, *small(method), *more)


def in_dtype(dtype: str) -> tuple[str, ...]:
    """Overrides: three tasks in fp32, where every rule of a method for earlier tasks shows, and two in bf16."""
    return (f"model.dtype={dtype}", *(("tasks=[task0,task1]",) if dtype == "bfloat16" else ()))


def preset(world: Path, method: str) -> str:
    """What `method=` takes: a preset of ours by its name, one of the tests by its file."""
    return f"{world}/{method}.yaml" if method.startswith("test_") else method


def small(method: str) -> tuple[str, ...]:
    """Overrides for a preset that states a size of its own."""
    published = ("train.global_batch_size=4", "eval.max_new_tokens=6") if "mcitlib" in method or method.startswith(SIZED) else ()
    return (*published, *QUICK.get(method, ()))


def tensors_of(run_folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of every finished stage."""
    found = {}
    for file in sorted(run_folder.glob("stages/*/**/*.safetensors")):
        for key, value in load_file(file).items():
            found[f"{file.relative_to(run_folder)}:{key}"] = value
    return found


def moments(tensors: dict[str, torch.Tensor], products: bool) -> dict[str, torch.Tensor]:
    """Singular vectors as the matrix they stand for: where values are close, vectors turn by rounding alone.

    SAME's eigenvectors with their values. products: also B A of every linear in place of both, and M M^T of a subspace M.
    """
    found = dict(tensors)
    for key in [key for key in found if products and ".lora_A." in key]:
        found[key] = found.pop(key.replace(".lora_A.", ".lora_B.")) @ found[key]
    for key in [key for key in found if products and ":used." in key]:
        found[key] = found[key] @ found[key].T
    for key in [key for key in found if ":basis." in key]:
        basis, values = found.pop(key), found.pop(key.replace(":basis.", ":values."))
        found[key] = basis * (values / values.max()) @ basis.T
    return found


def assert_same(
    a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], atol: float = 0.0, products: bool = False
) -> None:
    assert a.keys() == b.keys() and a
    if atol:
        a, b = moments(a, products), moments(b, products)
    for key in a:
        if atol == 0:
            assert torch.equal(a[key], b[key]), key
        else:
            torch.testing.assert_close(
                a[key].float(), b[key].float(), atol=atol, rtol=1e-4, msg=lambda m, key=key: f"{key}: {m}"
            )


def questions(session: Session, world: Path, task: int = 0) -> QuestionDataset:
    rows = load_questions(world / "data" / f"task{task}" / "test.json")
    transform = session.run.tasks[task].settings()["image_transform"]
    return QuestionDataset(rows, world / "data", session.reader(transform))


class Finished(dict):
    """One undisturbed run of each method, by (preset, dtype), made when first asked for."""

    def __init__(self, world: Path, folder: Path):
        super().__init__()
        self.world, self.folder = world, folder

    def __missing__(self, key: tuple[str, str]) -> Path:
        method, dtype = key
        self[key] = self.folder / f"{Path(method).stem}-{dtype}"
        run(setup(self.world, method, self[key], *in_dtype(dtype)), report=False)
        return self[key]


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(world, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("method", in_gate(TESTED))
def test_a_run_is_complete_and_idempotent(method: str, finished: Finished, world: Path) -> None:
    folder = finished[method, "float32"]
    assert all(s["status"] == "complete" for s in RunFolder(folder).manifest["stages"])
    stages = RunFolder(folder).manifest["stages"]
    for stage in stages:
        for task in stage["eval_tasks"]:
            score = json.loads((folder / "eval" / stage["name"] / task / "score.json").read_text())
            assert score["n_scored"] == score["n_expected"] == 6
    stamps = {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    answers = {p: p.stat().st_mtime_ns for p in folder.rglob("predictions.jsonl")}
    run(setup(world, method, folder, *in_dtype("float32")), report=False)
    assert stamps == {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    assert answers == {p: p.stat().st_mtime_ns for p in folder.rglob("predictions.jsonl")}


@pytest.mark.parametrize(("method", "dtype"), in_both(TESTED))
def test_batch_of_eight_answers_as_batch_of_one(method: str, dtype: str, finished: Finished, world: Path) -> None:
    """The same tokens in fp32. In bf16 the last bits of a product depend on its shape, so that two nearly equal words may
    change places: there the logits of the first word agree within bf16's step."""
    folder = RunFolder(finished[method, dtype])
    session = Session(Run.at(folder.path))
    if session.method.trains:
        session.restore(len(session.stages) - 1)
    data = questions(session, world, 1)
    other = questions(session, world, len(session.run.tasks) - 1)
    items = [data[i] for i in range(6)] + [other[i] for i in (0, 5)]
    if dtype == "bfloat16":
        with session:
            together, alone = first_logits(session, items), torch.cat([first_logits(session, [i]) for i in items])
        assert (together - alone).abs().max() <= 0.05 * alone.abs().max()  # of the bare base: 0.026
        return
    with session:
        together = answer_batch(session, _Collate()(items), 6, 0)
        alone = [answer_batch(session, _Collate()([item]), 6, 0)[0] for item in items]
    assert [r["token_ids"] for r in together] == [r["token_ids"] for r in alone]
    for a, b in zip(together, alone):
        assert a["routing"] == pytest.approx(b["routing"], abs=1e-5)
    if method.startswith("hide") and "prism" not in method:
        assert len({tuple(r["routing"].values()) for r in together}) >= 6  # every row really routes on its own


@pytest.mark.parametrize(("method", "dtype"), in_both(TESTED))
def test_decoding_is_upstreams_generate(method: str, dtype: str, finished: Finished, world: Path) -> None:
    """The same tokens, rows that end early included; in fp32 also where ended rows leave, and with a static cache."""
    folder = RunFolder(finished[method, dtype])
    session = Session(Run.at(folder.path))
    if session.method.trains:
        session.restore(len(session.stages) - 1)
    data, llava = questions(session, world, 1), session.core.llava
    with session, torch.no_grad():
        batch = _Collate()([data[i] for i in (0, 1, 5)]) | ({"task": 0} if session.method.oracle else {})
        batch["ids"] = list("abc")

        def upstream() -> list[list[int]]:
            ready, _, _ = session.routed.prepare(batch, False)
            ids = llava.generate(**ready.inputs, attention_mask=ready.attention_mask,
                                 max_new_tokens=8, do_sample=False, num_beams=1, pad_token_id=0)  # fmt: skip
            return ids.tolist()

        free = upstream()
        assert session.routed.generate(batch, 8)[0].tolist() == free
        of_last = set(free[-1])  # who is left alone, where the others say a word that it does not
        llava.generation_config.eos_token_id = [word for row in free[:-1] for word in row if word not in of_last] or [2]
        cut = upstream()
        assert session.routed.generate(batch, 8)[0].tolist() == cut
        if dtype == "float32":
            assert session.routed.generate(batch, 8, shrink=True)[0].tolist() == cut
            assert session.routed.generate(batch, 8, static=True)[0].tolist() == cut


@torch.no_grad()
def first_logits(session: Session, items: list[dict]) -> torch.Tensor:
    """[B, V] fp32: what the first word of each answer is chosen from."""
    batch = _Collate()(items) | ({"task": 0} if session.method.oracle else {})
    ready, _, _ = session.routed.prepare(batch, False)
    output = session.backbone.run(ready)
    return output.logits[:, -1].float()


@pytest.mark.parametrize(("method", "dtype"), in_both(TRAINED))
def test_stored_stages_answer_as_the_run_did(method: str, dtype: str, finished: Finished, world: Path) -> None:
    """Every stage, restored in a new session in reverse order, gives the answers that the run wrote."""
    folder = RunFolder(finished[method, dtype])
    session = Session(Run.at(folder.path))
    for stage in reversed(session.stages):
        session.restore(stage.index)
        name = f"{stage.index + 1:02d}-{stage.id}"
        data = questions(session, world, 0)
        order = sorted(range(6), key=lambda i: (-len(data.questions[i]["text"]), i))  # the run's batches: longest first
        with session:
            rows = [r for part in (order[:4], order[4:])
                    for r in answer_batch(session, _Collate()([data[i] for i in part]), 6, 0)]  # fmt: skip
        stored = [json.loads(x) for x in (folder.cell(name, "task0") / "predictions.jsonl").read_text().splitlines()]
        assert {r["question_id"]: r["token_ids"] for r in rows} == {r["question_id"]: r["token_ids"] for r in stored}


@pytest.mark.parametrize(("method", "dtype"), in_both(TRAINED))
def test_resumed_equals_uninterrupted(
    method: str, dtype: str, finished: Finished, world: Path, tmp_path: Path
) -> None:
    """Stopped inside every task, the stages come out bit for bit the same."""
    undisturbed = tensors_of(finished[method, dtype])
    config, steps = setup(world, method, tmp_path / "run", *in_dtype(dtype)), (2, *SECOND_PART.get(method_name(method), ()))
    with stopped_after(*steps):
        stops = until_done(lambda: run(config, evaluate=False, report=False))
    trained = [stage for stage in RunFolder(tmp_path / "run").manifest["stages"] if stage["train_tasks"]]
    assert stops == len(steps) * len(trained)
    assert_same(tensors_of(tmp_path / "run"), undisturbed)


@pytest.mark.parametrize("method", in_gate(TRAINED))
def test_only_what_the_method_trains_changes(method: str, world: Path, tmp_path: Path) -> None:
    """With weight decay 0.1: base, towers and the adapters of earlier tasks stay bit-identical."""
    config = setup(world, method, tmp_path / "run", "train.weight_decay=0.1")
    session = opened(config)
    for stage in session.stages[:2]:
        dataset = training_data(session, stage)
        trainer, _ = build_trainer(session, stage, dataset)
        before = hashes(session)
        mine = {id(p) for g in session.method.params() for p in g["params"]}
        own = {n for n, p in session.routed.named_parameters() if id(p) in mine}
        trainer.train()
        after = hashes(session)
        changed = {n for n in before if before[n] != after[n]}
        assert changed and changed <= own
        optimizer = {id(p) for g in trainer.optimizer.param_groups for p in g["params"]}
        assert optimizer <= mine
        sequence.finish_stage(session, stage, trainer.state.log_history, dataset)


def hashes(session: Session) -> dict[str, str]:
    return {
        n: hashlib.sha256(p.detach().numpy().tobytes()).hexdigest()
        for n, p in [*session.routed.named_parameters(), *session.routed.named_buffers()]
    }


@pytest.mark.parametrize("method", in_gate(TRAINED))
def test_layout_of_a_step_does_not_matter(method: str, world: Path, tmp_path: Path) -> None:
    """Checkpointing on ≡ off; 2 × batch 2 ≡ batch 4, extra losses and their log included."""
    plain = comparable(method)
    runs = []
    change = ("train.gradient_checkpointing=true", "train.per_device_batch_size=2")
    for name, more in (("a", plain), ("b", (*plain, *change))):
        run(setup(world, method, tmp_path / name, "train.epochs=1", *more), evaluate=False, report=False)
        runs.append(tmp_path / name)
    a, b = (tensors_of(r) for r in runs)
    if method in ("hide-official", "hide-mcitlib"):  # a running mean in bf16 counts depends on the order of arrival
        a, b = ({k: v for k, v in t.items() if "anchor" not in k} for t in (a, b))
    vectors = Path(method).stem.startswith(VECTORS)
    assert_same(a, b, atol=5e-5 if vectors else 1e-5, products=vectors)
    logs = [
        [json.loads(x) for x in sorted(r.glob("stages/*/trainer_log.jsonl"))[-1].read_text().splitlines()] for r in runs
    ]
    for one, two in zip(*logs):
        for key in one:
            if key.startswith("loss"):
                assert one[key] == pytest.approx(two[key], abs=2e-3), key


def comparable(method: str) -> tuple[str, ...]:
    """Overrides under which two layouts of the same steps must end alike."""
    dropout = ("method.dropout=0",) if "dropout" in fields(method) else ()
    return (*dropout, *SGD, *(("method.strength=5",) if method.startswith("ewc") else ()))  # 5000 blows up under SGD


def fields(method: str) -> list[str]:
    return list(method_class(method_name(method)).Config.model_fields)


@pytest.mark.parametrize("method", in_gate(TESTED))
def test_no_task_id_at_inference(method: str, finished: Finished, world: Path) -> None:
    folder = RunFolder(finished[method, "float32"])
    session = Session(Run.at(folder.path))
    assert session.method.oracle == (method in ORACLES) or method.endswith((".yaml", ".py"))
    if session.method.trains:
        session.restore(0)
    seen = []
    route = session.method.route
    session.method.route = lambda batch, *rest: seen.append(batch) or route(batch, *rest)
    with session:
        answer_batch(session, _Collate()([questions(session, world)[0]]), 3, 0)
    assert seen and all(("task" in batch) == session.method.oracle for batch in seen)


@pytest.mark.parametrize("method", ["hide", "hide-prism"])
def test_first_task_equals_plain_lora(method: str, world: Path, tmp_path: Path) -> None:
    """Training the first expert is training one LoRA: same tensors as the `lora` method of that shape."""
    shape = ("method.rank=8", "method.alpha=16", "method.dropout=0", "train.epochs=1")
    projector = "method.projector=frozen" if method == "hide-prism" else "method.projector=shared"
    for name in (method, "lora"):
        config = setup(world, name, tmp_path / name, *shape, projector, "method.init_std=0.01")
        session = opened(config)
        sequence.train_stage(session, session.stages[0])
    a, b = (
        {k.split(":")[1]: v for k, v in tensors_of(tmp_path / n).items() if "adapter_model" in k}
        for n in (method, "lora")
    )
    assert_same(a, b)

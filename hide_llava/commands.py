"""What each verb of the command line takes and does: its docstring is its help; it calls the library and prints.

What a verb does not need at every start is imported in it: `--help` takes a tenth of a second, torch takes seconds.
Annotations are evaluated here, when this is imported: were they strings, typer would evaluate each of them twice.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hide_llava.arguments import RunFolder, Words, configuration_of, names_a_run, options_of_a_run
from hide_llava.completion import complete
from hide_llava.errors import UserError

if TYPE_CHECKING:
    from hide_llava.training.run import Run


def run_of(config: Any) -> "Run":
    from hide_llava.training.run import Run

    return Run(config)


def run(overrides: Words = None) -> None:
    """Train and evaluate the whole sequence of tasks; run it again to resume.

    After each task the model is evaluated on every task it has seen. At the end tables, figures and report.html lie in
    RUN/results/.
    """
    _go(overrides or [], True, True)


def train(overrides: Words = None) -> None:
    """Train every stage, without evaluating; run it again to resume."""
    _go(overrides or [], True, False)


def evaluate(
    overrides: Words = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Answer anew what was answered with other settings; the old answers go to RUN/replaced/."),
    ] = False,
    stages: Annotated[Literal["all", "last"], typer.Option(help="Ask after every stage, or after the last alone.")] = "all",
) -> None:
    """Evaluate every trained stage on every task it has seen.

    Given a run folder, also with other inference options of its method (HiDe: method.temperature=0.05): nothing is trained,
    and the answers go to a variant of the run, a run folder of its own under RUN/variants/. Lists of values
    (method.temperature=0.05,0.1 method.image_weight=0,1) make a variant of each combination, compared in RUN/results/.
    """
    words = overrides or []
    if names_a_run(words) and _grid(words, stages, again):
        return
    _go(words, False, True, again, stages)


def _grid(words: list[str], stages: Literal["all", "last"], again: bool) -> bool:
    """Whether the words name several variants of a run; then they are evaluated and compared."""
    from hide_llava import grid

    folder, _ = options_of_a_run(words, True)
    keys, configs = grid.combinations(folder, words[1:])
    if not keys:
        return False
    page = grid.compared(folder, keys, grid.evaluate(folder, configs, stages, again))
    if page is not None:
        print(f"\n{page.with_suffix('.md').read_text(encoding='utf-8')}\nreport: {page}")
    return True


def _go(
    words: list[str], train: bool, evaluate: bool, again: bool = False, stages: Literal["all", "last"] = "all"
) -> None:
    from hide_llava import pipeline, sweep

    existing = names_a_run(words)
    if not existing and sweep.is_sweep(words):
        return _sweep(words, train, evaluate, again, stages)
    done = pipeline.run(configuration_of(words, not train), train, evaluate, existing=existing, again=again, stages=stages)
    _print_run(done["run"], done["report"])


def _sweep(words: list[str], train: bool, evaluate: bool, again: bool, stages: Literal["all", "last"]) -> None:
    from hide_llava.distributed import is_main
    from hide_llava.sweep import sweep

    outcome = sweep(words, train=train, evaluate=evaluate, again=again, stages=stages)
    if outcome.page is not None:
        print(f"\n{outcome.page.with_suffix('.md').read_text(encoding='utf-8')}\nreport: {outcome.page}")
    for folder, error in outcome.failed.items() if is_main() else ():
        print(f"failed: {folder}: {error}", file=sys.stderr)
    if outcome.failed:
        sys.exit(1)


def _print_run(run: Path, report: Path | None) -> None:
    from hide_llava.results.run_reader import read_run
    from hide_llava.results.tables import format_matrix

    if report is not None:
        print(format_matrix(read_run(run).matrix))
        print(f"run: {run}\nreport: {report}")


def plan(
    overrides: Words = None,
    gpus: Annotated[int | None, typer.Option(min=1, metavar="N", show_default="1", help="GPUs that train together.")] = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="CARD", help="Hours and memory on that card, estimated: h100, a100, 4090.")
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(metavar="N", show_default="100 each", help="What the GPUs sustain together.")
    ] = None,
) -> None:
    """Say what a run will take, before anything runs: steps, parameters, files, extra passes, memory and hours."""
    from hide_llava.planning.plan import plan

    print(plan(run_of(configuration_of(overrides or [])), tflops, gpus, gpu))


def doctor(overrides: Words = None) -> None:
    """Check this machine, and with a configuration also its files."""
    from hide_llava.doctor import report

    text, healthy = report(run_of(configuration_of(overrides)) if overrides else None)
    print(text)
    if not healthy:
        sys.exit(1)


def report(
    run: RunFolder,
    thumbnails: Annotated[
        int, typer.Option(min=0, metavar="N", help="Pictures of questions at most that are copied into the report; 0: none.")
    ] = 20_000,
) -> None:
    """Write tables, figures and report.html of a run, as far as it is finished.

    The page shows every question with its answers after all stages; what it shows lies in RUN/results/samples/ beside it.
    """
    from hide_llava.results.report import write_report

    _print_run(run, write_report(run, thumbnails))


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.", show_default=False)],
    published: Annotated[
        bool, typer.Option("--published", help="Also the published values, as ranges with their protocols.")
    ] = False,
    baseline: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Paired difference to this run on the same questions.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(metavar="TASK", help="Count only this task; may be repeated. The others' stages stay.")
    ] = None,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder, or a path ending in .html.")] = Path("runs/comparison"),
) -> None:
    """Show runs side by side, in one table per benchmark, metric and image transform.

    Runs that differ in nothing but seed and task order are one row, mean ± sd. Written as comparison.html, .md, .csv (one
    file per table) and .tex.
    """
    from hide_llava.results.comparison import write_comparison

    page = write_comparison(runs, output, baseline, published, task or ())
    print(page.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"report: {page}")


def predict(
    run: RunFolder,
    stage: Annotated[int, typer.Option(metavar="N", help="The run as it was after this stage; 1 = after the first task.")],
    questions: Annotated[Path, typer.Option(metavar="FILE", help="JSON list of {question_id, image, text}.")],
    images: Annotated[Path, typer.Option(metavar="DIR", help="Folder that `image` is relative to.")],
    output: Annotated[Path, typer.Option(metavar="FILE", help="JSON lines {question_id, prompt, text, token_ids, routing}.")],
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", show_default="the run's eval.batch_size", help="Questions asked together.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", show_default="the run's", help="Length of an answer.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, typer.Option(show_default="the run's", help="Number format.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help="Ask as this task is asked (transform, length, suffix).")
    ] = None,
) -> None:
    """Answer a question file with a run as it was after a stage."""
    from hide_llava.evaluation.predict import predict

    count = predict(run, stage, questions, images, output, batch_size, max_new_tokens, dtype, task)
    print(f"{count} answers in {output}")


def score(
    metric: Annotated[str, typer.Option(metavar="NAME", help="See `hide-llava ls metrics`.")],
    predictions: Annotated[Path, typer.Option(metavar="FILE", help="JSON lines {question_id, text}.")],
    references: Annotated[Path, typer.Option(metavar="FILE", help="Questions with their answers, or the metric's own file.")],
    questions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Question file, where the references are a separate file.")
    ] = None,
    tokenizer: Annotated[Literal["java", "python"], typer.Option(help="Captions without Java: python.")] = "java",
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Score an incomplete file, labelled partial.")
    ] = False,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the metric; may be repeated.")
    ] = None,
) -> None:
    """Score an answer file and print one JSON object."""
    from hide_llava.metrics import parse_options, score_files

    options = {"tokenizer": {"java": "ptb"}.get(tokenizer, tokenizer), "allow_partial": allow_partial}
    options |= parse_options(option or [])
    print(json.dumps(score_files(metric, predictions, references, questions, options=options), ensure_ascii=False))


def ls(
    what: Annotated[
        Literal["methods", "benchmarks", "models", "metrics", "runs"], typer.Argument(help="Of which.", show_default=False)
    ],
) -> None:
    """List what is known, one line each."""
    from hide_llava.listing import listing

    print(listing(what))


def export(
    run: RunFolder,
    stage: Annotated[int, typer.Option(metavar="N", help="The run as it was after this stage; 1 = after the first task.")],
    to: Annotated[Literal["peft", "hf", "vllm"], typer.Option(help="Adapters; a whole folder; a base with adapters for vLLM.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, typer.Option(show_default="the run's", help="Number format.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="NAME", show_default="the run's", help="What adapters name as their base model.")
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Then upload it to the Hugging Face hub, private if new.")
    ] = None,
) -> None:
    """Write a stage for other programs, and prove that it answers as the run does.

    What was written is loaded again without this package; its logits of two prompts must be the run's, and not the base
    model's. README.md says how it is loaded, export.json what was compared.
    """
    from hide_llava.interop.export import export

    print(f"exported to {export(run, stage, to, output, dtype, base, push)}; see its README.md")


def lmms_tasks(
    words: Annotated[
        list[str],
        typer.Argument(metavar="RUN", autocompletion=complete, help="A run folder, or benchmark= and data_root=."),
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")],
) -> None:
    """Write a benchmark's tasks for lmms-eval, with our question files and scorers.

    `lmms-eval --include_path DIR` finds them; they name questions and pictures where they lie.
    """
    from hide_llava.config import compose_data
    from hide_llava.interop.lmms_tasks import write
    from hide_llava.training.run import Run

    if names_a_run(words):
        if len(words) > 1:
            raise UserError("lmms-tasks takes a run folder, or benchmark= and data_root=; not both.")
        run = Run.at(Path(words[0]))
    else:
        run = run_of(compose_data(words))
        run.prepare()
    *names, group = write(run, output)
    print(f"{output}: {len(names)} tasks for lmms-eval, {', '.join(names)}; all of them: {group}")


def import_(
    kind: Annotated[
        Literal["lora", "moelora", "smolora", "hide-mcitlib", "hide-reference"],
        typer.Argument(help="Whose checkpoints.", show_default=False),
    ],
    checkpoint: Annotated[list[Path], typer.Option(metavar="DIR", help="A task's folder; repeat for several, in their order.")],
    base: Annotated[Path, typer.Option(metavar="DIR", help="The model folder it was trained from.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The run folder to write.")],
    clip: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The CLIP folder, for HiDe, SMoLoRA and original-format bases.")
    ] = None,
    preset: Annotated[str | None, typer.Option(metavar="NAME", show_default="the kind's", help="The method's preset.")] = None,
    benchmark: Annotated[
        str | None, typer.Option(metavar="NAME", show_default="task-1 … task-E", help="Where tasks and titles come from.")
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Routing slots of HiDe; the published code used 6 whatever E was.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only say what is there and whether it fits; write nothing.")] = False,
) -> None:
    """Import checkpoints of other code as a run.

    lora: LLaVA's own script, peft, or sequential fine-tuning of CoIN and MCITlib. moelora: CoIN's and MCITlib's. smolora:
    SMoLoRA's. hide-reference, hide-mcitlib: HiDe's authors' and MCITlib's. Every tensor is used, or the import is refused.
    """
    from hide_llava.interop.importing import import_checkpoints

    run, lines = import_checkpoints(kind, checkpoint, base, out, clip, preset, benchmark, slots, check)
    for line in lines:
        print(line)
    if run is None:
        print(f"fits {base}; nothing was written. Without --check: {out}")
    else:
        ask = f"hide-llava predict {run.path} --stage N --questions FILE --images DIR --output FILE"
        print(f"imported into {run.path}; try: {ask}")


def demo(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where the runs go.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of data and training.")] = 0,
) -> None:
    """Train HiDe and sequential LoRA on six small tasks and compare them; on a CPU this takes minutes."""
    from hide_llava.demo import demo

    demo(output, seed)

"""What each verb of the command line does: translate arguments, call the library, print."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from hide_llava.errors import UserError


def names_a_run(words: list[str]) -> bool:
    """Whether the first word is a run folder (whose name may hold `=`) and no override."""
    return bool(words) and ("=" not in words[0] or (Path(words[0]) / "config.yaml").is_file())


def _compose(args: argparse.Namespace) -> object:
    """The configuration of an existing run folder given first, or the composition of overrides.

    `eval` takes other inference options of the method too: then it is the configuration of a variant of that run.
    """
    from hide_llava.config import compose, from_yaml
    from hide_llava.schema import FREE

    words = args.overrides
    if not names_a_run(words):
        return compose(words)
    folder = Path(words[0])
    if not (folder / "config.yaml").is_file():
        raise UserError(f"'{folder}' is neither key=value nor a run folder (it has no config.yaml).")
    options = [word for word in words[1:] if word.startswith("method.")]
    for word in words[1:]:
        key = word.partition("=")[0]
        if word in options and args.verb != "eval":
            raise UserError(f"'{word}': options of the method are changed by `hide-llava eval {folder} {word}`.")
        if word not in options and not key.startswith("eval.") and key not in FREE:
            raise UserError(f"'{word}': of an existing run only eval.*, {', '.join(FREE[1:3])} and, by `hide-llava eval`, "
                            "inference options of the method can be changed.")  # fmt: skip
    config = from_yaml(folder / "config.yaml", words[1:])
    config.output = str(folder)
    if not options:
        return config
    from hide_llava.training.run import variant_of

    return variant_of(folder, config)


def _run_of(config: Any) -> Any:
    from hide_llava.training.run import Run

    return Run(config)


def run(args: argparse.Namespace) -> None:
    from hide_llava import pipeline, sweep

    existing = names_a_run(args.overrides)
    if not existing and sweep.is_sweep(args.overrides):
        return _sweep(args)
    done = pipeline.run(_compose(args), train=args.verb != "eval", evaluate=args.verb != "train", existing=existing,
                        again=getattr(args, "again", False))  # fmt: skip
    _print_run(done["run"], done["report"])


def _sweep(args: argparse.Namespace) -> None:
    from hide_llava.distributed import is_main
    from hide_llava.sweep import sweep

    outcome = sweep(args.overrides, train=args.verb != "eval", evaluate=args.verb != "train")
    if outcome.page is not None:
        print(f"\n{outcome.page.with_suffix('.md').read_text(encoding='utf-8')}\nreport: {outcome.page}")
    for folder, error in outcome.failed.items() if is_main() else ():
        print(f"failed: {folder}: {error}", file=sys.stderr)
    if outcome.failed:
        sys.exit(1)


def compare(args: argparse.Namespace) -> None:
    from hide_llava.results.comparison import write_comparison

    baseline = Path(args.baseline) if args.baseline else None
    page = write_comparison([Path(run) for run in args.runs], Path(args.output), baseline, args.published)
    print(page.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"report: {page}")


def _print_run(run: Path, report: Path | None) -> None:
    from hide_llava.results.run_reader import read_run
    from hide_llava.results.tables import format_matrix

    if report is not None:
        print(format_matrix(read_run(run).matrix))
        print(f"run: {run}\nreport: {report}")


def report(args: argparse.Namespace) -> None:
    from hide_llava.results.report import write_report

    _print_run(Path(args.run), write_report(Path(args.run)))


def plan(args: argparse.Namespace) -> None:
    from hide_llava.planning.plan import plan

    print(plan(_run_of(_compose(args)), args.tflops, args.gpus, args.gpu))


def predict(args: argparse.Namespace) -> None:
    from hide_llava.evaluation.predict import predict

    count = predict(Path(args.run), args.stage, Path(args.questions), Path(args.images), Path(args.output),
                    args.batch_size, args.max_new_tokens, args.dtype, args.task)  # fmt: skip
    print(f"{count} answers in {args.output}")


def score(args: argparse.Namespace) -> None:
    from hide_llava.metrics import parse_options, score_files

    options = {"tokenizer": {"java": "ptb"}.get(args.tokenizer, args.tokenizer), "allow_partial": args.allow_partial}
    options |= parse_options(args.option)
    questions = Path(args.questions) if args.questions else None
    result = score_files(args.metric, Path(args.predictions), Path(args.references), questions, options=options)
    print(json.dumps(result, ensure_ascii=False))


def preview(args: argparse.Namespace) -> None:
    from hide_llava.backbones.auto import reader_of
    from hide_llava.backbones.loading import resolve
    from hide_llava.config import names
    from hide_llava.data.preview import preview

    named = (args.data, args.images, args.model)
    if args.overrides and (args.data or args.images):
        raise UserError("preview takes --data and --images, or benchmark=; not both.")
    if not args.overrides and None in named:
        raise UserError("preview needs --data, --images and --model, or benchmark= and model=.")
    words = args.overrides or ["benchmark=ucit"]  # of which only the recipe's defaults are read
    model, clip = (Path(value) if value else None for value in (args.model, args.clip))
    if args.model in names("model") and not model.is_dir():
        words, model = [*words, f"model={args.model}"], None
    run = _run_of(_compose_data(words))
    if args.overrides:
        run.prepare()
    if model is None:
        model = resolve(run.model.path, run.model_root)
        clip = clip or resolve(run.model.clip, run.model_root)
    reader = reader_of(model, clip, args.label_masks or run.train.label_masks)
    files = [(Path(args.data), Path(args.images))] if args.data else [
        (task.train_file, task.images) for task in run.tasks if task.trained
    ]  # fmt: skip
    for data, images in files:
        if len(files) > 1 and not args.json:
            print(f"══ {data}")
        for line in preview(data, images, reader, args.max_length or run.train.max_length, args.limit, args.json):
            print(line)


def doctor(args: argparse.Namespace) -> None:
    from hide_llava.doctor import report

    text, healthy = report(_run_of(_compose(args)) if args.overrides else None)
    print(text)
    if not healthy:
        sys.exit(1)


def _compose_data(words: list[str]) -> Any:
    """A configuration of which only the data matters: method and model need not be named."""
    from hide_llava.config import compose

    return compose(words, {"method": "zero_shot", "model": "llava-1.5-7b"})


def check(args: argparse.Namespace) -> None:
    from hide_llava.studies.audit.check import check
    from hide_llava.studies.audit.show import readable

    report = check(_run_of(_compose_data(args.overrides)), args.deep)
    print(json.dumps(report.as_json(), ensure_ascii=False, indent=1) if args.json else readable(report))
    if not report.sound:
        sys.exit(1)


def leakage(args: argparse.Namespace) -> None:
    from hide_llava.results.run_reader import read_run
    from hide_llava.studies.leakage.report import write_leakage
    from hide_llava.studies.leakage.shares import leakage

    runs = [read_run(Path(run)) for run in args.run]
    run = _run_of(_compose_data(args.overrides))
    images = Path(args.pretraining_images) if args.pretraining_images else None
    audit = leakage(run, Path(args.pretraining), images)
    folder = Path(args.output or f"leakage-{run.benchmark.name}")
    print(write_leakage(audit, runs, folder))
    print(f"written: {folder}")


def cka(args: argparse.Namespace) -> None:
    from hide_llava.studies.cka.across_layers import analyse
    from hide_llava.studies.cka.report import write_cka

    report = analyse(Path(args.run), args.stage, args.task, args.samples, args.activation, args.pooling, args.kernel,
                     args.legacy)  # fmt: skip
    folder = Path(args.output or Path(args.run) / "results")
    print(write_cka(report, folder))
    print(f"written: {folder}")


def ls(args: argparse.Namespace) -> None:
    from hide_llava.listing import listing

    print(listing(args.what))


def import_(args: argparse.Namespace) -> None:
    from hide_llava.interop.hide_reference import import_run

    run = import_run([Path(c) for c in args.checkpoint], Path(args.base), Path(args.clip), Path(args.out),
                     args.preset, args.benchmark, args.slots)  # fmt: skip
    print(
        f"imported into {run.path}; try: hide-llava predict {run.path} --stage N --questions FILE --images DIR --output FILE"
    )


def demo(args: argparse.Namespace) -> None:
    from hide_llava.demo import demo

    demo(Path(args.output), args.seed)

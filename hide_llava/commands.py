"""What each verb of the command line does: translate arguments, call the library, print."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hide_llava.errors import UserError


def _compose(args: argparse.Namespace) -> object:
    """The configuration of an existing run folder given first, or the composition of overrides."""
    from hide_llava.config import compose, from_yaml
    from hide_llava.training.run_folder import FREE

    words = args.overrides
    if not words or "=" in words[0]:
        return compose(words)
    folder = Path(words[0])
    if not (folder / "config.yaml").is_file():
        raise UserError(f"'{folder}' is neither key=value nor a run folder (it has no config.yaml).")
    for word in words[1:]:
        key = word.partition("=")[0]
        if not key.startswith("eval.") and key not in FREE:
            raise UserError(f"'{word}': of an existing run only eval.* and {', '.join(FREE[1:3])} can be changed.")
    config = from_yaml(folder / "config.yaml", words[1:])
    config.output = str(folder)
    return config


def run(args: argparse.Namespace) -> None:
    from hide_llava import pipeline

    existing = bool(args.overrides) and "=" not in args.overrides[0]
    done = pipeline.run(_compose(args), train=args.verb != "eval", evaluate=args.verb != "train", existing=existing)
    _print_run(done["run"], done["report"])


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
    from hide_llava.training.plan import plan

    print(plan(_compose(args)))


def predict(args: argparse.Namespace) -> None:
    from hide_llava.evaluation.predict import predict

    count = predict(Path(args.run), args.stage, Path(args.questions), Path(args.images), Path(args.output),
                    args.batch_size, args.max_new_tokens, args.dtype)  # fmt: skip
    print(f"{count} answers in {args.output}")


def score(args: argparse.Namespace) -> None:
    from hide_llava.metrics import score_files

    options = {"tokenizer": {"java": "ptb"}.get(args.tokenizer, args.tokenizer), "allow_partial": args.allow_partial}
    questions = Path(args.questions) if args.questions else None
    result = score_files(args.metric, Path(args.predictions), Path(args.references), questions, options=options)
    print(json.dumps(result, ensure_ascii=False))


def preview(args: argparse.Namespace) -> None:
    from hide_llava.data.preview import preview

    for line in preview(Path(args.data), Path(args.images), Path(args.model), args.clip and Path(args.clip),
                        args.max_length, args.limit, args.json):  # fmt: skip
        print(line)


def doctor(args: argparse.Namespace) -> None:
    from hide_llava.doctor import report

    text, healthy = report(_compose(args) if args.overrides else None)
    print(text)
    if not healthy:
        sys.exit(1)


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

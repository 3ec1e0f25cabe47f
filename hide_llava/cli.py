"""The command line: parsing and printing only. Exit codes: 0 done, 1 failed run, 2 bad usage or bad input."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from hide_llava import commands
from hide_llava.errors import Interrupted, UserError
from hide_llava.launch import tell

OVERRIDES = """
A configuration is benchmark= method= model= [train=] plus any key=value of the tree, for example train.epochs=2
seed=1 method.rank=16 output=runs/mine. `hide-llava ls benchmarks|methods|models` lists names; a path to a YAML works too.
Data lies under data_root= or $HIDE_DATA, models under model_root= or $HIDE_MODELS.
Several runs (run, train, eval): seeds=0,1,2 and 'task_order=[a,b,c;c,b,a]' give every seed with every order.
"""


# what other programs call the verbs
OTHER_VERBS = {"evaluate": "eval", "test": "eval", "fit": "train", "finetune": "train", "infer": "predict",
               "generate": "predict", "answer": "predict", "list": "ls", "validate": "check", "estimate": "plan",
               "sweep": "run", "plot": "report", "analyse": "analyze"}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """Errors in the form of all other errors, with what was probably meant."""

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith((".", "?", "…")) else "."
        print(f"error: {message}{end} See `{self.prog} --help`.", file=sys.stderr)
        sys.exit(2)

    def parse_args(self, args: list[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        words = sys.argv[1:] if args is None else list(args)
        verbs = next(list(action.choices) for action in self._actions if action.dest == "verb")
        if words and not words[0].startswith("-") and words[0] not in verbs:
            self.error(_no_verb(words, verbs))
        parsed, unknown = self.parse_known_args(words, namespace)
        if unknown:
            keys = "overrides" in parsed
            hint = f" Keys are written without dashes: {_as_override(unknown[0], words)}" if keys else ""
            self.error(f"`{self.prog} {parsed.verb}` has no option {unknown[0]}.{hint}")
        return parsed


def _no_verb(words: list[str], verbs: list[str]) -> str:
    from hide_llava.errors import nearest

    if "=" in words[0]:
        return f"the verb is missing, for example: hide-llava run {' '.join(words)}"
    meant = f"Did you mean '{OTHER_VERBS[words[0]]}'?" if words[0] in OTHER_VERBS else nearest(words[0], verbs)
    return f"there is no verb '{words[0]}'. {meant}"


def _as_override(option: str, words: list[str]) -> str:
    """`--benchmark mini-ucit` and `--benchmark=mini-ucit` → `benchmark=mini-ucit`."""
    key, equals, value = option.lstrip("-").partition("=")
    if not equals:
        following = words[words.index(option) + 1 : words.index(option) + 2] if option in words else []
        value = following[0] if following and not following[0].startswith("-") and "=" not in following[0] else "…"
    return f"{key.replace('-', '_')}={value}"


def positive(text: str) -> int:
    """A whole number from 1 on, as a type for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="hide-llava", description="Continual instruction tuning of multimodal LLMs.",
        epilog="`hide-llava VERB --help` explains each verb with an example.",
    )  # fmt: skip
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)

    def verb(name: str, run: Callable, text: str, example: str, overrides: bool = False) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name, help=text.splitlines()[0], description=text + (OVERRIDES if overrides else ""),
            epilog=f"example:\n  {example}", formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        sub.set_defaults(run_verb=run)
        if overrides:
            sub.add_argument("overrides", nargs="*", metavar="key=value", help="see above; or an existing run folder")
        return sub

    example = "benchmark=ucit method=hide model=llava-1.5-7b"
    verb("run", commands.run, "Train and evaluate the whole sequence; run it again to resume.",
         f"hide-llava run {example}", True)  # fmt: skip
    verb("train", commands.run, "Train every stage, without evaluating.", f"hide-llava train {example}", True)
    sub = verb(
        "eval",
        commands.run,
        "Evaluate every trained stage on every task it has seen.\n\n"
        "Given a run folder, also with other inference options of its method (HiDe: method.temperature=0.05): nothing is\n"
        "trained, and the answers go to a variant of the run, a run folder of its own under RUN/variants/.",
        f"hide-llava eval {example}\n  hide-llava eval runs/NAME method.temperature=0.05 method.image_weight=1",
        True,
    )
    sub.add_argument("--again", action="store_true",
                     help="answer anew what was answered with other settings; the old answers go to RUN/replaced/")  # fmt: skip
    sub = verb("plan", commands.plan, "Steps, parameters, files, extra passes, memory and hours, before anything runs.",
               f"hide-llava plan {example} --gpus 8", True)  # fmt: skip
    sub.add_argument("--gpus", type=positive, default=None, metavar="N", help="GPUs that train together (1)")
    sub.add_argument("--gpu", default=None, metavar="CARD", help="hours and memory on that card, estimated: h100, a100, 4090")
    sub.add_argument("--tflops", type=float, default=None, help="what the GPUs sustain together (100 each)")
    verb(
        "doctor",
        commands.doctor,
        "Check this machine, and with a configuration also its files.",
        "hide-llava doctor",
        True,
    )

    sub = verb(
        "check",
        commands.check,
        "Are a benchmark's files there, complete and sound? Needs benchmark= only; exit code 1 when something is wrong.",
        "hide-llava check benchmark=ucit data_root=DIR --deep",
        True,
    )
    sub.add_argument("--deep", action="store_true", help="decode every image; find copies of train images in test")
    sub.add_argument("--json", action="store_true", help="one JSON object instead of readable text")
    sub = verb(
        "report", commands.report, "Write tables, figures and report.html of a run.", "hide-llava report runs/NAME"
    )
    sub.add_argument("run")
    sub = verb("compare", commands.compare,
               "Runs side by side: one table per benchmark, metric and image transform.\n\n"
               "Runs that differ in nothing but seed and task order are one row, mean ± sd. Written as comparison.html,\n"
               ".md, .csv (one file per table) and .tex.",
               "hide-llava compare runs/A runs/B --published --baseline runs/A")  # fmt: skip
    sub.add_argument("runs", nargs="+", metavar="RUN")
    sub.add_argument(
        "--published", action="store_true", help="also the published values, as ranges with their protocols"
    )
    sub.add_argument(
        "--baseline", default=None, metavar="RUN", help="paired difference to this run on the same questions"
    )
    sub.add_argument("--output", default="runs/comparison", help="folder, or a path ending in .html")
    sub = verb("predict", commands.predict, "Answer a question file with a run as it was after a stage.",
               "hide-llava predict runs/NAME --stage 3 --questions test.json --images DIR --output answers.jsonl")  # fmt: skip
    sub.add_argument("run")
    sub.add_argument("--stage", type=int, required=True, help="1 = after the first task")
    sub.add_argument("--questions", required=True, help="JSON list of {question_id, image, text}")
    sub.add_argument("--images", required=True, help="folder that `image` is relative to")
    sub.add_argument("--output", required=True, help="JSON lines {question_id, prompt, text, token_ids, routing}")
    sub.add_argument("--batch-size", type=positive, default=None, help="default: the run's eval.batch_size")
    sub.add_argument("--max-new-tokens", type=positive, default=None, help="default: the run's")
    sub.add_argument("--dtype", default=None, choices=["float32", "bfloat16", "float16"])
    sub.add_argument("--task", default=None, help="ask as this task is asked (transform, length, suffix)")

    sub = verb("score", commands.score, "Score an answer file; one JSON object on standard output.",
               "hide-llava score --metric exact_upper --predictions predictions.jsonl --references test.json")  # fmt: skip
    sub.add_argument("--metric", required=True)
    sub.add_argument("--predictions", required=True)
    sub.add_argument("--references", required=True)
    sub.add_argument("--questions", default=None, help="question file, where the references are a separate file")
    sub.add_argument("--tokenizer", default="java", choices=["java", "python"], help="captions without Java: python")
    sub.add_argument("--allow-partial", action="store_true", help="score an incomplete file, labelled partial")
    sub.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="of the metric; may be repeated"
    )

    sub = verb("preview", commands.preview, "Token ids and labels of training records, as the trainer sees them.",
               "hide-llava preview benchmark=mini-ucit tasks=[iconqa] model=mini --limit 3")  # fmt: skip
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="a benchmark's training files, in place of --data")
    sub.add_argument("--data", default=None)
    sub.add_argument("--images", default=None)
    sub.add_argument("--model", default=None, help="a model folder, or a name of `ls models`")
    sub.add_argument("--clip", default=None, help="CLIP folder, for an original-format model")
    sub.add_argument("--max-length", type=positive, default=None, help="default: train.max_length, 2048")
    sub.add_argument("--label-masks", default=None, choices=["exact", "reference"], help="default: train.label_masks, exact")
    sub.add_argument("--limit", type=positive, default=None, help="only the first N records")
    sub.add_argument("--json", action="store_true", help="JSON lines instead of readable text")

    _analyses(verbs)
    sub = verb("ls", commands.ls, "List what is known.", "hide-llava ls methods")
    sub.add_argument("what", choices=["methods", "benchmarks", "models", "metrics", "runs"])

    sub = verb("import", commands.import_, "Import checkpoints of other code as a run.",
               "hide-llava import hide-reference --checkpoint Task1 --base LLAVA --clip CLIP --out RUN")  # fmt: skip
    sub.add_argument("kind", choices=["hide-reference"])
    sub.add_argument("--checkpoint", action="append", required=True, help="a TaskN folder; repeat for several")
    sub.add_argument("--base", required=True, help="the LLaVA folder it was trained from")
    sub.add_argument("--clip", required=True)
    sub.add_argument("--out", required=True)
    sub.add_argument("--preset", default="hide-official")
    sub.add_argument("--benchmark", default=None, help="tasks and titles; default: task-1 … task-E")
    sub.add_argument(
        "--slots", type=positive, default=None, help="routing slots; the published code used 6 whatever E was"
    )

    sub = verb(
        "demo", commands.demo, "Six small tasks with HiDe and sequential LoRA on a CPU, in minutes.", "hide-llava demo"
    )
    sub.add_argument("--output", default="runs/demo")
    sub.add_argument("--seed", type=int, default=0)
    return parser


def _analyses(verbs: argparse._SubParsersAction) -> None:
    """`analyze leakage|cka`: one sub-command for each analysis."""
    analyze = verbs.add_parser(
        "analyze", help="Analyses of data and of runs.", description="`hide-llava analyze KIND --help` explains each.",
        epilog="example:\n  hide-llava analyze cka runs/NAME --stage 6", formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    kinds = analyze.add_subparsers(dest="kind", required=True, metavar="KIND")
    sub = kinds.add_parser(
        "leakage", help="How much of a benchmark is in the base model's instruction mix.",
        description="How much of a benchmark's images and questions is in the base model's instruction mix, and beside it the\n"
        "gap between zero-shot and multi-task scores. Needs benchmark= only. Writes leakage.md, .csv, .json and a figure.",
        epilog="example:\n  hide-llava analyze leakage benchmark=coin --pretraining llava_v1_5_mix665k.json "
        "--pretraining-images DIR --run runs/ZERO_SHOT --run runs/MULTITASK",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    sub.set_defaults(run_verb=commands.leakage)
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="benchmark= [data_root=] [tasks=[a,b]]")
    sub.add_argument(
        "--pretraining", required=True, metavar="FILE", help="the mix: LLaVA JSON {id, image, conversations}"
    )
    sub.add_argument(
        "--pretraining-images", default=None, metavar="DIR", help="its images, to be compared by content too"
    )
    sub.add_argument(
        "--run", action="append", default=[], help="a finished zero_shot or multitask run; may be repeated"
    )
    sub.add_argument("--output", default=None, metavar="DIR", help="default: leakage-BENCHMARK")
    sub = kinds.add_parser(
        "cka", help="Similarity of the stages' models, layer by layer.",
        description="Debiased CKA between the models of a run's stages on one shared set of prompts, layer by layer, with an\n"
        "interval, a permutation null and the effective dimension. Writes cka.md, cka.json and a figure.",
        epilog="example:\n  hide-llava analyze cka runs/NAME --stage 6 --samples 100",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    sub.set_defaults(run_verb=commands.cka)
    sub.add_argument("run")
    sub.add_argument("--stage", type=positive, required=True, help="compare the models of stages 1 to N")
    sub.add_argument("--task", action="append", default=None, help="only stages that train this task; may be repeated")
    sub.add_argument("--samples", type=positive, default=100, help="prompts of each task (default 100)")
    sub.add_argument("--activation", default="layer", choices=["layer", "mlp"], help="residual stream, or MLP branch")
    sub.add_argument("--pooling", default="last", choices=["last", "all"], help="last prompt token, or mean of all")
    sub.add_argument("--kernel", default="linear", choices=["linear", "rbf"])
    sub.add_argument(
        "--legacy", action="store_true", help="the published procedure: each model on its own task, biased"
    )
    sub.add_argument("--output", default=None, metavar="DIR", help="default: RUN/results")


def _quiet() -> None:
    """Only our own lines and real warnings: not upstream's load reports and bars."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import logging as python_logging
    import warnings

    import torch
    from transformers.utils import logging

    python_logging.getLogger("bitsandbytes").setLevel(python_logging.ERROR)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, where installed, warns that it chose so
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")


def main(argv: list[str] | None = None) -> None:
    """Entry point of `hide-llava`."""
    args = build_parser().parse_args(argv)
    if args.verb != "score" and not (args.verb == "ls" and args.what != "methods"):  # these do without torch's seconds
        _quiet()

    def stop(*_: object) -> None:
        raise Interrupted("stopped")

    before = {}
    with contextlib.suppress(ValueError):  # not the main thread: whoever embeds us handles signals
        for number in (signal.SIGTERM, signal.SIGUSR1):  # the trainer puts its own in place: it saves its state first
            before[number] = signal.signal(number, stop)
    try:
        args.run_verb(args)
    except UserError as error:
        tell(f"error: {error}")
        sys.exit(2)
    except Interrupted as error:
        tell(f"{error}; run the same command again to go on.")
        sys.exit(143)
    except KeyboardInterrupt:
        tell("interrupted; run the same command again to go on.")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        from hide_llava.storage import disk_error

        sentence = disk_error(error)
        if sentence is None:
            raise
        tell(f"error: {sentence}")
        sys.exit(2)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()

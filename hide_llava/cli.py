"""The command line: which verbs there are, and how one ends. Exit codes: 0 done, 1 failed run, 2 bad usage or bad input."""

from __future__ import annotations

import contextlib
import signal
import sys
from functools import partial
from typing import Any

import typer
from typer.core import TyperGroup

from hide_llava import commands, data_commands
from hide_llava.errors import Interrupted, UserError
from hide_llava.launch import tell
from hide_llava.parser import Verbs, add, flag, literal, markup, parse
from hide_llava.quiet import quiet
from hide_llava.studies import registry
from hide_llava.studies.ask.command import ask
from hide_llava.studies.audit.command import check
from hide_llava.studies.chat.command import chat
from hide_llava.studies.reproduce.command import reproduce

OVERRIDES = """A configuration is benchmark= method= model= [train=] plus any key=value of the tree:

benchmark= is the sequence of tasks, method= how forgetting is met, model= the model that is tuned, train= the recipe of
training (left out: default). `hide-llava ls benchmarks|methods|models` lists names; a path to a YAML works too, and
method=./my_method.py takes a file of your own.

Any key of the tree can be set, for example train.epochs=2 seed=1 method.rank=16 output=runs/mine. Data lies under data_root=
or $HIDE_DATA, models under model_root= or $HIDE_MODELS."""
SWEEP = "Several runs: seeds=0,1,2 and 'task_order=[a,b,c;c,b,a]' give every seed with every order."
EXAMPLE = "benchmark=ucit method=hide model=llava-1.5-7b"
TRAIN, LOOK, DATA, SETUP = "Run and train", "Look at results", "Data", "Setup"


def verbs() -> TyperGroup:
    """All verbs, with their help drawn for where it goes."""
    app = typer.Typer(
        name="hide-llava", cls=Verbs, subcommand_metavar="VERB", options_metavar="", rich_markup_mode=markup(),
        pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
        help="Continual instruction tuning of multimodal LLMs: train a model on one task after the other, and measure what it "
        "forgets.",
        epilog=f"`hide-llava VERB --help` explains each verb with an example.\n\nexample:\n  hide-llava run {EXAMPLE}",
    )  # fmt: skip
    configured, several = partial(add, app, teach=OVERRIDES), partial(add, app, teach=f"{OVERRIDES}\n\n{SWEEP}")
    several("run", commands.run, f"hide-llava run {EXAMPLE}", TRAIN)
    several("train", commands.train, f"hide-llava train {EXAMPLE}", TRAIN)
    several("eval", commands.evaluate, f"hide-llava eval {EXAMPLE}\n"
            "  hide-llava eval runs/NAME method.temperature=0.05,0.1 method.image_weight=0,1 --stages last", TRAIN)  # fmt: skip
    configured("plan", commands.plan, f"hide-llava plan {EXAMPLE} --gpus 8", TRAIN)
    add(app, "report", commands.report, "hide-llava report runs/NAME", LOOK)
    add(app, "compare", commands.compare, "hide-llava compare runs/A runs/B --published --baseline runs/A", LOOK)
    add(app, "reproduce", reproduce, "hide-llava reproduce hide runs/NAME --only top-expert --only layers", LOOK)
    add(app, "predict", commands.predict,
        "hide-llava predict runs/NAME --stage 3 --questions test.json --images DIR --output answers.jsonl", LOOK)  # fmt: skip
    add(app, "ask", ask, "hide-llava ask runs/NAME --image photo.jpg 'What is in the picture?'", LOOK)
    add(app, "chat", chat, "hide-llava chat runs/NAME", LOOK)
    add(app, "score", commands.score,
        "hide-llava score --metric exact_upper --predictions predictions.jsonl --references test.json", LOOK)  # fmt: skip
    app.add_typer(typer.Typer(
        cls=Studies, subcommand_metavar="KIND", options_metavar="",
        help="Look into data and into finished runs.\n\n`hide-llava analyze KIND --help` explains each.",
        epilog="example:\n  hide-llava analyze cka runs/NAME --stage 6",
    ), name="analyze", rich_help_panel=LOOK)  # fmt: skip
    configured("check", check, "hide-llava check benchmark=ucit data_root=DIR --deep", DATA)
    add(app, "preview", data_commands.preview, "hide-llava preview benchmark=mini-ucit tasks=[iconqa] model=mini --limit 3",
        DATA)  # fmt: skip
    add(app, "fetch", data_commands.fetch, "hide-llava fetch benchmark=ucit data_root=DIR", DATA)
    add(app, "convert", data_commands.convert, "hide-llava convert messages.jsonl train.parquet --images DIR", DATA)
    configured("doctor", commands.doctor, "hide-llava doctor", SETUP)
    add(app, "ls", commands.ls, "hide-llava ls methods", SETUP)
    add(app, "export", commands.export, "hide-llava export runs/NAME --stage 3 --to hf --output exports/NAME", LOOK)
    add(app, "lmms-tasks", commands.lmms_tasks, "hide-llava lmms-tasks runs/NAME --output lmms-tasks", LOOK)
    add(app, "import", commands.import_,
        "hide-llava import hide-reference --checkpoint Task1 --base LLAVA --clip CLIP --out RUN", SETUP)  # fmt: skip
    add(app, "demo", commands.demo, "hide-llava demo", SETUP)
    command = typer.main.get_command(app)
    command.params = [flag(param) for param in command.params]  # --install-completion and --show-completion
    return command


class Studies(Verbs):
    """`analyze`: the studies of the registry, looked up when they are asked for, since that reads every installed package."""

    def list_commands(self, ctx: typer.Context) -> list[str]:
        return sorted(registry.announced())

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:
        entries = registry.announced().get(cmd_name)
        if entries is None:
            return None
        try:
            return _study(cmd_name, entries)
        except UserError as error:  # in a list it is told; whoever calls it meets the error
            app = typer.Typer(rich_markup_mode=self.rich_markup_mode, add_completion=False)
            app.command(cmd_name, help=literal(f"cannot be used: {error}"))(lambda: None)
            return typer.main.get_command(app)

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:
        if (entries := registry.announced().get(args[0])) and not ctx.resilient_parsing:
            _study(args[0], entries)
        return super().resolve_command(ctx, args)


def _study(name: str, entries: list[Any]) -> Any:
    """The command of a study.

    Raises:
        UserError: it cannot be loaded, or typer cannot read its command.
    """
    study = registry.load(name, entries)
    app = typer.Typer(rich_markup_mode=markup(), add_completion=False)
    try:
        add(app, name, study.command, study.example or f"hide-llava analyze {name}")
        return typer.main.get_command(app)
    except Exception as error:  # whatever typer finds in somebody else's signature
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"study '{name}': the command of {entries[0].value} cannot be read: {reason}") from None


def main(argv: list[str] | None = None) -> None:
    """Entry point of `hide-llava`."""
    try:
        asked = parse(verbs(), sys.argv[1:] if argv is None else list(argv))
    except UserError as error:
        tell(f"error: {error}")
        sys.exit(2)
    if asked is None:
        return
    if asked.verb not in ("score", "convert", "fetch") and (asked.verb != "ls" or asked.options.get("what") == "methods"):
        quiet()  # the others do without torch's seconds

    def stop(*_: object) -> None:
        raise Interrupted("stopped")

    before = {}
    with contextlib.suppress(ValueError):  # not the main thread: whoever embeds us handles signals
        for number in (signal.SIGTERM, signal.SIGUSR1):  # the trainer puts its own in place: it saves its state first
            before[number] = signal.signal(number, stop)
    try:
        asked.work(**asked.options)
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

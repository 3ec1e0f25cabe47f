"""typer with this program's sentences: one line for a mistake, and a help that reads well with and without a terminal.

Parsing and doing are two steps. A command returns a `Call`, and whoever parsed decides when the work is done.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import shutil
import sys
from collections.abc import Callable
from types import NoneType
from typing import Any, Literal, NamedTuple, NoReturn, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from hide_llava.errors import UserError, nearest

UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # click's own, or that of the copy of click inside typer
NARROWEST, WIDEST = 72, 110  # columns: below, panels leave too little room to read; above, lines are too long

# what other programs call the verbs
OTHER_VERBS = {"evaluate": "eval", "test": "eval", "fit": "train", "finetune": "train", "infer": "predict",
               "generate": "predict", "answer": "predict", "list": "ls", "validate": "check", "estimate": "plan",
               "sweep": "run", "plot": "report", "analyse": "analyze"}  # fmt: skip


class Call(NamedTuple):
    """What a command line asks for."""

    verb: str
    work: Callable[..., None]
    options: dict[str, Any]


def later(verb: str, work: Callable[..., None]) -> Callable[..., Call]:
    """The same signature, for typer; called, it says what to do instead of doing it."""

    @functools.wraps(work)
    def call(**options: Any) -> Call:
        return Call(verb, work, options)

    return call


def drawn() -> bool:
    """Whether help is drawn in panels: else it is plain text, which needs no rich."""
    return sys.stdout.isatty() and shutil.get_terminal_size().columns >= NARROWEST


def markup() -> str | None:
    """typer's name for the way in which help is printed."""
    return "rich" if drawn() else None


def literal(text: str) -> str:
    """Help in which square brackets are square brackets, also where rich would take them for markup."""
    return re.sub(r"\[(?=[a-z#/@])", r"\\[", text) if drawn() else text


def add(app: typer.Typer, verb: str, work: Callable[..., None], example: str, panel: str | None = None, teach: str = "") -> None:
    """Add a verb. Its help is the docstring of `work`, then `teach`, then the example."""
    paragraphs = "\n\n".join(filter(None, [inspect.getdoc(work), teach])).split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    app.command(verb, cls=Verb, help=literal(text), epilog=literal(f"example:\n  {example}"), options_metavar="[OPTIONS]",
                rich_help_panel=panel)(later(verb, work))  # fmt: skip


def flag(option: Any) -> Any:
    """An option of typer's own, as quick and as plain as ours: its None would be converted, which imports pydantic."""
    option.default, option.display_type_rich = False, _no_type
    return option


def _no_type(ctx: typer.Context) -> None:
    """Instead of `<bool>` behind a flag and `<list[str]>` behind a word that says what it is."""


class _Telling:
    """What one verb and a group of verbs have in common: their mistakes and their help."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for param in self.params:
            if param.metavar if param.param_type_name == "argument" else param.is_flag:
                param.display_type_rich = _no_type

    def get_help_option(self, ctx: typer.Context) -> Any:
        option = super().get_help_option(ctx)
        return flag(option)

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            refuse(ctx, _sentence(ctx, error, given))

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:
        if self.rich_markup_mode is not None:
            from typer import rich_utils

            rich_utils.STYLE_HELPTEXT = ""  # all of the text is to be read, so none of it is dimmed
            rich_utils.MAX_WIDTH = min(shutil.get_terminal_size().columns, WIDEST)
        super().format_help(ctx, formatter)

    def format_epilog(self, ctx: typer.Context, formatter: Any) -> None:
        """Unwrapped: an example is there to be copied."""
        if self.epilog:
            formatter.write(f"\n{self.epilog}\n")


class Verb(_Telling, TyperCommand):
    """One verb."""


class Verbs(_Telling, TyperGroup):
    """A group of verbs. Without a terminal its panels are headed lists."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            refuse(ctx, f"the following arguments are required: {self.subcommand_metavar}")
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:
        known = self.list_commands(ctx)
        if args[0] not in known and not ctx.resilient_parsing:
            refuse(ctx, _no_verb(args, known, self.subcommand_metavar))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            first = inspect.cleandoc(command.help or "").partition("\n\n")[0]
            panels.setdefault(command.rich_help_panel or "Commands", []).append((name, " ".join(first.split())))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)


def refuse(ctx: typer.Context, sentence: str) -> NoReturn:
    """End with what is wrong and where it is explained."""
    end = "" if sentence.endswith((".", "?", "…")) else "."
    raise UserError(f"{sentence}{end} See `{ctx.command_path} --help`.")


def parse(command: TyperGroup, words: list[str]) -> Call | None:
    """What these words ask for; None where they asked for help, which is printed.

    Raises:
        UserError: the words are not understood.
    """
    try:
        asked = command.main(words, prog_name=command.name, standalone_mode=False, windows_expand_args=False)
    except UsageError as error:
        raise UserError(f"{error.format_message()} See `{command.name} --help`.") from None
    if isinstance(asked, int) and asked:  # typer's own exit code, for example of Ctrl-C meanwhile
        sys.exit(asked)
    return asked if isinstance(asked, Call) else None


def _no_verb(words: list[str], verbs: list[str], what: str) -> str:
    if what != "VERB":
        return f"argument {what}: invalid choice: '{words[0]}'. {nearest(words[0], verbs)}"
    if "=" in words[0]:
        return f"the verb is missing, for example: hide-llava run {' '.join(words)}"
    meant = f"Did you mean '{OTHER_VERBS[words[0]]}'?" if words[0] in OTHER_VERBS else nearest(words[0], verbs)
    return f"there is no verb '{words[0]}'. {meant}"


def _sentence(ctx: typer.Context, error: Any, given: list[str]) -> str:
    """What is wrong with these words, in our own words where typer's are not the user's."""
    kind, command = type(error).__name__, ctx.command
    if kind == "NoSuchOption":
        return _no_option(ctx, error.option_name, given)
    if kind == "MissingParameter":
        trial = command.make_context(ctx.info_name, list(given), parent=ctx.parent, resilient_parsing=True)
        missing = [_shown(p) for p in command.params if p.required and trial.params.get(p.name) in (None, (), [])]
        return f"the following arguments are required: {', '.join(missing)}"
    if kind == "BadParameter" and error.param is not None:
        values, _, _ = command.make_parser(ctx).parse_args(list(given))
        return f"argument {_shown(error.param)}: {_expected(command, error, values.get(error.param.name))}"
    return error.format_message()


def _shown(param: Any) -> str:
    """How a user writes it: `--stage`, or the name of a word without a key."""
    return param.opts[0] if param.param_type_name == "option" else param.name


def _no_option(ctx: typer.Context, option: str, given: list[str]) -> str:
    written = next((w for w in given if w.partition("=")[0] == option or (w[:2] == option and w != "--")), option)
    if isinstance(ctx.command, TyperGroup):
        return f"the verb is missing, for example: hide-llava run {_as_override(written, given)}"
    known = [name for param in ctx.command.get_params(ctx) for name in param.opts if name.startswith("--")]
    close = difflib.get_close_matches(written.partition("=")[0], known, 1, 0.75)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    if not hint and written.lstrip("-")[:1].isalpha() and any(param.name == "overrides" for param in ctx.command.params):
        hint = f" Keys are written without dashes: {_as_override(written, given)}"
    return f"`{ctx.command_path}` has no option {written.partition('=')[0]}.{hint}"


def _as_override(option: str, words: list[str]) -> str:
    """`--benchmark mini-ucit` and `--benchmark=mini-ucit` → `benchmark=mini-ucit`."""
    key, equals, value = option.lstrip("-").partition("=")
    if not equals:
        following = words[words.index(option) + 1 : words.index(option) + 2] if option in words else []
        value = following[0] if following and not following[0].startswith("-") and "=" not in following[0] else "…"
    return f"{key.replace('-', '_')}={value}"


def _expected(command: Any, error: Any, value: object) -> str:
    """What a value is not: one of a few words, a whole number, a number."""
    hint = get_type_hints(inspect.unwrap(command.callback)).get(error.param.name)
    kind = next((one for one in get_args(hint) if one is not NoneType), hint) if NoneType in get_args(hint) else hint
    if get_origin(kind) is Literal:
        return f"invalid choice: '{value}' (choose from {', '.join(map(str, get_args(kind)))})"
    if kind is int:
        least = getattr(error.param, "min", None)
        return f"'{value}' is not a whole number" + (f" of at least {least}" if least is not None else "")
    return f"'{value}' is not a number" if kind is float else f"'{value}': {error.message}"

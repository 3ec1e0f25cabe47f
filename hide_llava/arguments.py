"""What the words of a command line may be: a run folder, or overrides that make a configuration.

Annotations are evaluated here, when this is imported: were they strings, typer would evaluate each of them twice.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hide_llava.completion import complete
from hide_llava.errors import UserError

if TYPE_CHECKING:
    from hide_llava.schema import RunConfig

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="key=value", autocompletion=complete, help="See above; or an existing run folder."),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of the run.", show_default=False)]


def names_a_run(words: list[str]) -> bool:
    """Whether the first word is a run folder (whose name may hold `=`) and no override."""
    return bool(words) and ("=" not in words[0] or (Path(words[0]) / "config.yaml").is_file())


def configuration_of(words: list[str], evaluates: bool = False) -> "RunConfig":
    """The configuration of an existing run folder given first, or the composition of overrides.

    `eval` takes other inference options of the method too: then it is the configuration of a variant of that run.
    """
    from hide_llava.config import compose, from_yaml

    if not names_a_run(words):
        return compose(words)
    folder, options = options_of_a_run(words, evaluates)
    config = from_yaml(folder / "config.yaml", words[1:])
    config.output = str(folder)
    if not options:
        return config
    from hide_llava.training.variant import variant_of

    return variant_of(folder, config)


def options_of_a_run(words: list[str], evaluates: bool) -> tuple[Path, list[str]]:
    """(the run folder that the first word names, options of the method among the others).

    Raises:
        UserError: it is none, or a word changes what may not be changed of an existing run.
    """
    from hide_llava.schema import FREE

    folder = Path(words[0])
    if not (folder / "config.yaml").is_file():
        raise UserError(f"'{folder}' is neither key=value nor a run folder (it has no config.yaml).")
    options = [word for word in words[1:] if word.startswith("method.")]
    for word in words[1:]:
        key = word.partition("=")[0]
        if word in options and not evaluates:
            raise UserError(f"'{word}': what the method was trained with stays; options that act at inference are changed by "
                            f"`hide-llava eval {folder} {word}`.")  # fmt: skip
        if word not in options and not key.startswith("eval.") and key not in (*FREE, "benchmark.general"):
            raise UserError(f"'{word}': of an existing run only eval.*, benchmark.general, {', '.join(FREE[1:3])} and, by "
                            "`hide-llava eval`, inference options of the method can be changed.")  # fmt: skip
    return folder, options

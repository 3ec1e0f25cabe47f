"""What the verbs about data take and do, as `commands.py` has it of the others."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from hide_llava.commands import run_of
from hide_llava.completion import complete
from hide_llava.errors import UserError


def preview(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value", autocompletion=complete, help="A benchmark's training files, in place of --data."),
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="A training file.")] = None,
    images: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder that its images are relative to.")] = None,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="A model folder, or a name of `ls models`.")] = None,
    clip: Annotated[Path | None, typer.Option(metavar="DIR", help="CLIP folder, for an original-format model.")] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, metavar="N", show_default="train.max_length, 2048", help="Positions of a record.")
    ] = None,
    label_masks: Annotated[
        Literal["exact", "reference"] | None,
        typer.Option(show_default="train.label_masks, exact", help="Which tokens are trained on."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N records.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines instead of readable text.")] = False,
) -> None:
    """Show token ids and labels of training records, as the trainer sees them."""
    from hide_llava.backbones.auto import reader_of
    from hide_llava.backbones.loading import resolve
    from hide_llava.config import compose_data, names
    from hide_llava.data.preview import preview

    if overrides and (data or images):
        raise UserError("preview takes --data and --images, or benchmark=; not both.")
    if not overrides and None in (data, images, model):
        raise UserError("preview needs --data, --images and --model, or benchmark= and model=.")
    words = overrides or ["benchmark=ucit"]  # of which only the recipe's defaults are read
    folder = Path(model) if model else None
    if model in names("model") and not folder.is_dir():
        words, folder = [*words, f"model={model}"], None
    run = run_of(compose_data(words))
    if overrides:
        run.prepare()
    budget = None
    if folder is None:
        folder, budget = resolve(run.model.path, run.model_root), run.model
        clip = clip or resolve(run.model.clip, run.model_root)
    reader = reader_of(folder, clip, label_masks or run.train.label_masks, budget)
    files = [(data, images)] if data else [(task.train_file, task.images) for task in run.tasks if task.trained]
    for file, root in files:
        if len(files) > 1 and not as_json:
            print(f"══ {file}")
        for line in preview(file, root, reader, max_length or run.train.max_length, limit, as_json):
            print(line)


def fetch(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", autocompletion=complete, help="benchmark=, and data_root=.")
    ] = None,
    only_list: Annotated[bool, typer.Option("--list", help="Only say what would be downloaded, and from where.")] = False,
) -> None:
    """Download a benchmark's data as far as they are on the Hugging Face hub, and say how the rest is got.

    Licences are shown first. A download that was stopped goes on when the command is run again, and every file is compared with
    the hash that the hub states for it.
    """
    from hide_llava.benchmarks.fetch import Unreachable, fetch
    from hide_llava.config import compose_data

    called = [word.removeprefix("benchmark=") for word in overrides or [] if word.startswith("benchmark=")]
    if not called:
        raise UserError("fetch needs benchmark=, for example: hide-llava fetch benchmark=ucit")
    config = compose_data(overrides)
    try:
        for line in fetch(config.benchmark, config.data_folder(), only_list, called[-1]):
            print(line, flush=True)
    except Unreachable:
        sys.exit(1)


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="JSON, JSON lines, Parquet, Arrow, or a saved data set.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A name that ends in .json, .jsonl or .parquet.")],
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", show_default="the folder of the file", help="The folder that pictures are named from."),
    ] = None,
    questions: Annotated[
        bool, typer.Option("--questions", help="They are questions: a conversation of one becomes {text, answer}.")
    ] = False,
) -> None:
    """Write records of any shape as LLaVA's JSON, as JSON lines or as Parquet.

    Parquet takes the pictures in, which it reads from --images; from it back to JSON they are written there, and each record is
    as it was.
    """
    from hide_llava.data.convert import convert

    made = convert(source, target, images, questions)
    where = "in it" if target.suffix == ".parquet" else "written beside it"
    print(f"{target}: {made.records:,} records; {made.pictures:,} pictures {where}")

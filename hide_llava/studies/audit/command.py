"""`hide-llava check`."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from hide_llava.completion import complete


def check(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", autocompletion=complete, help="benchmark=, perhaps data_root=.")
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode every image, and find copies of train images in test.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of readable text.")] = False,
) -> None:
    """Check whether a benchmark's files are there, complete and sound.

    Needs benchmark= only. The exit code is 1 when something is wrong.
    """
    from hide_llava.config import compose_data
    from hide_llava.studies.audit.check import check
    from hide_llava.studies.audit.show import readable
    from hide_llava.training.run import Run

    report = check(Run(compose_data(overrides or [])), deep)
    print(json.dumps(report.as_json(), ensure_ascii=False, indent=1) if as_json else readable(report))
    if not report.sound:
        sys.exit(1)

"""A variant of a finished run: other inference options on the same stages, in a run folder under `variants/` of the run."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from hide_llava.config import RunConfig
from hide_llava.errors import UserError
from hide_llava.methods.base import Method
from hide_llava.methods.decided import Decision
from hide_llava.methods.registry import method_class
from hide_llava.settings import inference_options
from hide_llava.storage import write_json
from hide_llava.training.lineage import chain_of
from hide_llava.training.run_folder import RunFolder

LONGEST = 100  # letters of a value in the name of a folder; what is longer is a hash


def variant_of(folder: Path, config: RunConfig) -> RunConfig:
    """Make `config` a variant of the run in `folder`: other inference options on the same stages.

    It is a run folder under `variants/` of that run, named by the options, without stages of its own. A configuration that
    differs in none of them stays that of the run itself. Options that studies of the run decide become what they say, and the
    variant says where that is from.

    Raises:
        UserError: an option that decides what is trained, or one that no study of the run decides.
    """
    run, method = RunFolder(RunFolder(folder).trained_in.resolve()), method_class(config.method["name"])
    options, decided = inference_options(method.Config), _decided(method, config, run)
    config.method |= {name: decision.value for name, decision in decided.items()}
    own = run.config.method
    # a method's own file may have moved: its content is compared when it is read
    changed = {k: v for k, v in config.method.items() if v != own.get(k) and k != "file"}
    for key in changed.keys() - options:
        may = f"; of a finished run these can be changed: {', '.join(sorted(options))}" if options else ""
        raise UserError(f"method.{key} decides what is trained, so it needs a run of its own{may}.")
    config.output = str(run.path)
    if not changed:
        return config
    name = "+".join(f"{k}={_short(v)}" for k, v in sorted(changed.items()))
    variant = run.path / "variants" / name
    config.output = str(variant)
    about = {"of": "../..", "changes": changed}
    if decided:
        about["decided"] = {key: dataclasses.asdict(decision) for key, decision in decided.items()}
    if decided or not (variant / "variant.json").is_file():
        write_json(variant / "variant.json", about)
        if (variant / "manifest.json").is_file():
            write_json(variant / "manifest.json", {**RunFolder(variant).manifest, "variant": about})
    return config


def _decided(method: type[Method], config: RunConfig, run: RunFolder) -> dict[str, Decision]:
    """What the run's studies say of the options that are left to them.

    Raises:
        UserError: of `Method.decided_by_studies`, or because the stages that were looked at are not there any more.
    """
    found = method.decided_by_studies(config.method, run.path)
    if found:
        there = {chain_of(stage) for stage in (run.path / "stages").iterdir() if (stage / "method.json").is_file()}
        for name, decision in found.items():
            if decision.weights not in there:
                raise UserError(f"{run.path / decision.source}: is about other weights than the stages of the run, so it cannot "
                                f"decide method.{name}; make it anew.")  # fmt: skip
    return found


def _short(value: Any) -> str:
    text = "[" + ",".join(map(str, value)) + "]" if isinstance(value, list) else str(value).replace("/", "_")
    return text if len(text) <= LONGEST else hashlib.sha256(text.encode()).hexdigest()[:8]

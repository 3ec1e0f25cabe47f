"""SPICE (Anderson et al. 2016, arXiv 1607.08822), only when asked for: slow, and never part of a mean."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.metrics.ptb import java_available

MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def require_spice() -> None:
    """UserError without pycocoevalcap, Java or the language models, which are not part of the package."""
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None or not found.submodule_search_locations:
        raise UserError("SPICE needs pycocoevalcap: pip install -e '.[caption]'.")
    if not java_available():
        raise UserError("SPICE needs Java and no working `java` was found; install a Java runtime, or leave spice out.")
    folder = Path(next(iter(found.submodule_search_locations))) / "spice" / "lib"
    missing = [name for name in MODELS if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"SPICE needs {missing[0]} in {folder}; fetch it once with `python -m pycocoevalcap.spice."
            "get_stanford_models` (or copy the file from CoreNLP 2015-12-09), or leave spice out."
        )


def spice(gts: dict, res: dict) -> float:
    """Mean SPICE F of tokenised captions, 0…1. UserError when its Java process fails (it wants Java 8)."""
    require_spice()
    from pycocoevalcap.spice.spice import Spice

    try:
        return float(Spice().compute_score(gts, res)[0])
    except (OSError, subprocess.CalledProcessError, json.JSONDecodeError) as error:
        raise UserError(f"SPICE's Java process failed ({error}); it runs on Java 8. Leave spice out.") from None

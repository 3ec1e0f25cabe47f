"""The command line with the test-only methods registered: `python -m tests.methods.run_cli run …`.

`python -m tests.methods.run_cli each FILE`: FILE is a JSON list of configurations (lists of words), run one after the other.
"""

import json
import sys
from pathlib import Path

import tests.methods.extra  # noqa: F401
from hide_llava.cli import main
from hide_llava.config import compose
from hide_llava.pipeline import run
from hide_llava.quiet import quiet

if __name__ == "__main__":
    if sys.argv[1] == "each":
        quiet()
        for words in json.loads(Path(sys.argv[2]).read_text()):
            run(compose(words), report=False)
    else:
        main()

"""Choose the learning rate and the strengths of a method on the validation split: the same number of trials for every method.

    python scripts/search_strengths.py runs/search benchmark=mini-ucit method=ewc model=mini train=mini [key=value …]
    python scripts/search_strengths.py runs/search --table

The first writes runs/search/ewc.json, and goes on when it is called again; the second the table runs/search.md of all that were
searched. The rule is in hide_llava/search.py; `scripts/compare_methods.sh --search` does this for every method.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hide_llava.errors import Interrupted, UserError
from hide_llava.quiet import quiet
from hide_llava.results.searches import words_of, write_table
from hide_llava.search import TRIALS, search


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the trials' run folders and METHOD.json go")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="the configuration, as for `hide-llava run`")
    parser.add_argument("--trials", type=int, default=TRIALS, help=f"of the method (default {TRIALS})")
    parser.add_argument("--table", action="store_true", help="write the table of what was searched")
    given = parser.parse_intermixed_args(words)  # options may stand between the folder and the overrides
    quiet()
    try:
        if given.table:
            print(write_table(given.folder))
            return
        found = search(given.overrides, given.folder, given.trials)
    except UserError as error:
        sys.exit(f"error: {error}")
    except Interrupted as error:
        print(f"{error}; run the same command again to go on.", file=sys.stderr)
        sys.exit(143)
    print(f"{found.method}: chosen {' '.join(words_of(found.chosen)) or 'nothing, it does not train'}")


if __name__ == "__main__":
    main()

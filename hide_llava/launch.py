"""torchrun that ends with the sentence of the process that failed first, instead of a page about its children.

    python -m hide_llava.launch --nproc-per-node 4 -m hide_llava.cli run benchmark=ucit method=hide model=llava-1.5-7b
"""

from __future__ import annotations

import json
import os
import sys
import time

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # torchrun names a file to each process, in which it may say why it failed


def tell(sentence: str) -> None:
    """The last words of a process, on stderr and, under torchrun, where the launcher finds them."""
    print(sentence, file=sys.stderr, flush=True)
    if file := os.environ.get(ERROR_FILE):
        extra = {"py_callstack": sentence, "timestamp": str(int(time.time()))}
        try:
            with open(file, "w", encoding="utf-8") as handle:
                json.dump({"message": {"message": sentence, "extraInfo": extra}}, handle)
        except OSError:
            pass  # it is on stderr


def main(words: list[str] | None = None) -> None:
    """Takes torchrun's command line; the exit code is that of the process which failed first."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.run(run.parse_args(words))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        said = failure.message
        said = said.get("message", "") if isinstance(said, dict) else f"process {rank} failed: {said}"
        print(said, file=sys.stderr, flush=True)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)


if __name__ == "__main__":
    main()

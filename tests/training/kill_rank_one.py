"""`python -m tests.training.kill_rank_one N run …`: rank 1 dies by SIGKILL before the optimizer step it comes to N-th."""

import os
import signal
import sys
import time
from typing import Any

from hide_llava import cli
from hide_llava.training import trainer


def main(count: int, words: list[str]) -> None:
    seen = [0]

    def die(*_: Any, **__: Any) -> None:
        seen[0] += 1
        if seen[0] == count and os.environ["RANK"] == "1":
            print(f"DYING {time.time()}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.RunCallback.on_pre_optimizer_step = die  # HiDe has no gradient hook of its own
    cli.main(words)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])

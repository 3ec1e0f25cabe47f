"""Experience replay: sequential LoRA that also trains on records kept from earlier tasks.

Task t trains on D_t ∪ M_{t−1} with cross-entropy alone. M holds, of every earlier task i, the first m_i records of a
permutation of D_i that is drawn from `buffer_seed`: a uniform sample, nested when the share shrinks.
    unit: records   m_i = ⌊C / t⌋ (one more for the first C mod t tasks): C records in total, balanced over t past tasks
    unit: percent   m_i = ⌈C/100 · |D_i|⌉

State: (task, place of the record in its table); never the records. Prism's buffer (the first records that rank 0 meets
and that win a coin toss) is not offered: it is not a sample of the task, and depends on the number of processes.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from hide_llava.adapters.observe import sample
from hide_llava.methods.base import Context, Task, register
from hide_llava.methods.cost import Cost, Pass
from hide_llava.methods.lora import SequentialLora


@register
class Replay(SequentialLora):
    name = "replay"

    class Config(SequentialLora.Config):
        buffer: float = Field(180.0, gt=0)  # C, size of the memory in `unit`
        unit: Literal["records", "percent"] = "records"  # records (of all tasks together) | percent (of each task)
        buffer_seed: int = Field(0, ge=0)  # of the draw of the records

        @model_validator(mode="after")
        def _buffer_of_unit(self) -> Self:
            if self.unit == "percent" and self.buffer > 100:
                raise ValueError(f"buffer={self.buffer:g}: must be at most 100, with unit=percent")
            if self.unit == "records" and self.buffer % 1:
                raise ValueError(f"buffer={self.buffer:g}: must be a whole number of records, with unit=records")
            return self

    def setup(self) -> None:
        self.buffer: dict[int, list[int]] = {}  # past task → places of the records to replay

    def share(self, count: int, position: int, tasks: int) -> int:
        """m_i of a task with `count` records, the `position`-th of `tasks` past ones."""
        if self.config.unit == "percent":
            return math.ceil(count * self.config.buffer / 100)
        whole, rest = divmod(int(self.config.buffer), tasks)
        return whole + (position < rest)

    def train_data(self, task: Task, records: Any, context: Context) -> Any:
        self.buffer = {}
        tables = [records]
        for i in range(task.index):
            past = context.records(i)
            size = self.share(len(past), i, task.index)
            self.buffer[i] = sample(len(past), size, self.config.buffer_seed + i)
            tables.append(past.select(self.buffer[i]))
        from datasets import concatenate_datasets

        return concatenate_datasets(tables)

    def cost(self) -> Cost:
        def kept(counts: list[int]) -> int:
            *past, _ = counts
            return sum(min(count, self.share(count, i, len(past))) for i, count in enumerate(past))

        words = f"{self.config.buffer:g} {'records' if self.config.unit == 'records' else 'percent of the records'}"
        return Cost((Pass(f"{words} of earlier tasks, trained along", "epoch", 1, 1, kept, later=True),))

    def state(self) -> dict[str, Any]:
        return {"buffer": {str(task): places for task, places in self.buffer.items()}}

    def load_state(self, state: dict[str, Any]) -> None:
        self.buffer = {int(task): places for task, places in state["buffer"].items()}

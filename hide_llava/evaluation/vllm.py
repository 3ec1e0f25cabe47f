"""`eval.backend=vllm`: answers come from a server that serves the run's export; routing, and a probe, from our own path.

A method whose answer is one set of weights asks the base model, or the one adapter that is named like the method. One that
routes hard asks the expert that our encoder chooses as the LoRA of the request. One that weighs several experts, or mixes
projectors, or inserts prompts, cannot be asked: a request has one adapter.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hide_llava.adapters.route import Route
from hide_llava.data.collator import moved
from hide_llava.data.images import load_image
from hide_llava.data.records import pictures
from hide_llava.errors import UserError
from hide_llava.evaluation.vllm_client import Client, body
from hide_llava.storage import read_json, write_json
from hide_llava.training.session import Session

if TYPE_CHECKING:
    from hide_llava.evaluation.cells import Begun, Cell

VLLM = "vllm"  # the value of eval.backend
PROBE = 32  # questions that both paths answer first
AT_ONCE = 64  # requests that wait for an answer together; vLLM makes its batches of what waits


class Served:
    """The server at `eval.vllm_url`, in the place of a session's model. stage: its number, for `{stage}` in the address.

    Raises:
        UserError: no server, or it serves the export of another run or stage, as far as its folder can be read here.
    """

    def __init__(self, session: Session, stage: int, weights: str | None):
        self.session = session
        self.client = Client(session.run.eval.vllm_url.replace("{stage}", str(stage)))
        cards = self.client.models()
        bases = [card for card in cards if not card.get("parent")]
        if not bases:
            raise UserError(f"{self.client.url}: serves adapters and no base model; serve an export of this run.")
        self.base = bases[0]["id"]
        self.adapters = [card["id"] for card in cards if card.get("parent")]
        self._check_export(bases[0].get("root"), stage, weights)
        self.about = {"version": self.client.version(), "adapters": sorted(self.adapters)}

    def _check_export(self, root: str | None, stage: int, weights: str | None) -> None:
        """What the folder of the base says of itself, where this machine has it; the probe is what counts."""
        for file in (Path(root or "") / "export.json", Path(root or "").parent / "export.json"):
            if root and file.is_file() and (about := read_json(file)).get("weights_sha256") != weights:
                raise UserError(f"{self.client.url}: serves {root}, the export of stage {about.get('stage')} of the run "
                                f"{about.get('run')}, and stage {stage} of this run is to be answered; export and serve that "
                                "one, and run again.")  # fmt: skip

    def names(self, route: Route, rows: int) -> list[str]:
        """The served model that answers each row.

        Raises:
            UserError: no one served model answers as the route does, or it is not served.
        """
        preset = self.session.run.preset
        if route.projectors is not None or route.prompts is not None:
            what = "mixes projectors" if route.projectors is not None else "inserts prompts"
            raise UserError(f"eval.backend=vllm: method={preset} {what} for each question, which no request to vLLM can say; "
                            "leave eval.backend at own.")  # fmt: skip
        gates = list(route.gates.values())
        standing = set(self.session.core.standing)
        if not gates and not set(route.active) - standing:
            return self._one_model(route, rows)
        if not route.weights or not all(isinstance(gate, Tensor) for gate in gates):
            raise UserError(f"eval.backend=vllm: method={preset} weighs its adapters for each token or input, and vLLM adds the "
                            "one adapter of a request as it is; leave eval.backend at own.")  # fmt: skip
        return [self._adapter(name) for name in self._hard(route.weights)]

    def _hard(self, weights: dict[str, Tensor]) -> list[str]:
        """The one expert of each row."""
        experts, table = list(weights), torch.stack(list(weights.values()), 1)
        if bool(((table != 0) & (table != 1)).any()) or not bool((table.sum(1) == 1).all()):
            preset = self.session.run.preset
            raise UserError(f"eval.backend=vllm: method={preset} adds several experts with weights of each question (soft "
                            "routing of the top layers), and a request to vLLM has one adapter with weight 1; set "
                            "method.routing=top1 where the method has it, or another method.router, or leave eval.backend at "
                            "own.")  # fmt: skip
        return [experts[i] for i in table.argmax(1).tolist()]

    def _one_model(self, route: Route, rows: int) -> list[str]:
        """Nothing of the answer depends on the question, but perhaps on its task, whose expert is folded in our own path."""
        if self.session.run.oracle and route.weights and self.adapters:
            return [self._adapter(name) for name in self._hard(route.weights)]
        method = self.session.run.method.name
        return [method if method in self.adapters else self.base] * rows

    def _adapter(self, name: str) -> str:
        if name not in self.adapters:
            raise UserError(f"{self.client.url}: serves {', '.join([self.base, *self.adapters])}, and not the adapter {name}; "
                            "start `vllm serve` with the --lora-modules that the README.md of the export names.")  # fmt: skip
        return name


class ServedCell:
    """Answers batches of a cell by the server: `Begun.rows`. questions: with their suffix."""

    def __init__(self, served: Served, cell: Cell, questions: list[dict[str, Any]]):
        self.served, self.cell = served, cell
        self.by_id = {json.dumps(question["question_id"]): question for question in questions}

    def __call__(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows {question_id, prompt, text, token_ids, routing} of a collated batch, as of `cells.answer_batch`."""
        session = self.served.session
        batch = moved(batch, session.core.llava.device)
        if session.method.oracle:
            batch["task"] = self.cell.index
        route = session.routed.route_of(batch)
        names = self.served.names(route, len(batch["ids"]))

        def row(place: int) -> dict[str, Any]:
            text, ids = self._asked(batch["ids"][place], names[place])
            weights = {name: round(float(w[place]), 6) for name, w in route.weights.items()}
            return {"question_id": batch["ids"][place], "prompt": batch["prompts"][place], "text": text, "token_ids": ids,
                    "routing": weights}  # fmt: skip

        with ThreadPoolExecutor(min(AT_ONCE, len(names)), "vllm") as pool:
            return list(pool.map(row, range(len(names))))

    def _asked(self, identifier: Any, model: str) -> tuple[str, list[int]]:
        question, settings = self.by_id[json.dumps(identifier)], self.cell.settings
        images = [load_image(self.cell.images / path, settings["image_orientation"]) for path in pictures(question)]
        try:
            return self.served.client.answer(body(model, question["text"], images, settings["max_new_tokens"]))
        except UserError as error:
            raise UserError(f"question {identifier!r}, asked of {model}: {error}") from None


def serve(session: Session, begun: list[Begun]) -> None:
    """Let the server answer cells of one stage, once it has answered PROBE questions, spread over them, as our own path does.

    Raises:
        UserError: no server, another export, a method that no request can say, or a different answer.
    """
    first = begun[0].cell
    served = Served(session, first.stage, first.settings["weights_sha256"])
    asked = [ServedCell(served, one.cell, one.questions) for one in begun]
    found = []
    for place, (one, theirs) in enumerate(zip(begun, asked)):
        share = min(len(range(place, PROBE, len(begun))), len(one.questions))
        places = [i * len(one.questions) // share for i in range(share)]
        size = one.settings["batch_size"]
        for start in range(0, share, size):
            batch = one.batch(places[start : start + size])
            found += [(one.cell.label, *both) for both in zip(one.rows(batch), theirs(batch))]
    prove(served, found, first.folder.parent / "vllm_probe.json")
    for one, theirs in zip(begun, asked):
        if one.mine:
            one.rows, one.settings = theirs, {**one.settings, "vllm": served.about}


def prove(served: Served, rows: list[tuple[str, dict[str, Any], dict[str, Any]]], file: Path) -> None:
    """Compare the answers of both paths and write what was found. rows: label of the cell, our row, the server's row.

    Raises:
        UserError: an answer differs; nothing is scored then.
    """
    differing = [
        {"cell": label, "question_id": own["question_id"], "own": own["text"], "vllm": theirs["text"]}
        for label, own, theirs in rows if own["text"] != theirs["text"]
    ]  # fmt: skip
    found = {"questions": len(rows), "agreeing": len(rows) - len(differing), "url": served.client.url, **served.about}
    write_json(file, {**found, "differing": differing})
    if differing:
        first = differing[0]
        raise UserError(
            f"eval.backend=vllm: {len(differing)} of {len(rows)} answers of {served.client.url} differ from our own path's, so "
            f"nothing is scored; the first is {first['cell']}, question {first['question_id']!r}: "
            f"{_short(first['own'])} here, {_short(first['vllm'])} there. All are in {file}."
        )


def _short(text: str) -> str:
    return json.dumps(text if len(text) <= 60 else f"{text[:60]}…", ensure_ascii=False)

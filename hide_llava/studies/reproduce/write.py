"""The files of an ablation under RUN/results/reproduce/NAME/, and its section of the run's report."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from hide_llava.results.run_reader import StoredRun, read_run
from hide_llava.results.sections import write_section
from hide_llava.results.tables import markdown_table
from hide_llava.storage import write_text
from hide_llava.studies.reproduce import figures, tables
from hide_llava.studies.reproduce.ablations import ABLATIONS
from hide_llava.studies.reproduce.beside import Beside
from hide_llava.studies.reproduce.paper import Draw, save
from hide_llava.studies.reproduce.similarity import Found, draw
from hide_llava.studies.reproduce.variants import Row

HEADING = "HiDe's ablations on this run: "
FILES = "Files for a paper (CSV, LaTeX, PNG at 300 dpi, PDF, SVG) lie in results/reproduce/{}/."
OWN = {"modality": "image_weight", "fusion-weight": "fusion_weight"}  # of a sweep: the option that it is over


def write_ablation(name: str, rows: list[Row], folder: Path) -> str:
    """NAME.csv, .tex and figures in `folder`, and the section; returns the table as Markdown."""
    ablation, run, sized = ABLATIONS[name], rows[0].run, name == "layers"
    write_text(folder / f"{name}.csv", tables.tidy(rows).to_csv(index=False, lineterminator="\n"))
    caption = f"{ablation.title}: {_of(run)}. {_labels(rows)}".rstrip()
    write_text(folder / f"{name}.tex", tables.latex(rows, caption, f"tab:{name}", sized))
    save(_drawn(name, rows), folder, name)
    header, texts = tables.shown(rows, sized)
    note = ". ".join(filter(None, [_labels(rows), FILES.format(name)]))
    write_section(folder, f"{HEADING}{_lower(ablation.title)}", ablation.reading, header, texts, name, note, 760)
    return _markdown(ablation.title, header, texts, _labels(rows))


def _drawn(name: str, rows: list[Row]) -> Draw:
    if name in OWN:
        axis, base = ABLATIONS[name].axis, read_run(_base(rows))
        own = base.config["method"].get(OWN[name])
        if name == "fusion-weight":
            own = 1 / len(base.manifest["stages"]) if own is None else own
            return partial(figures.sweep, rows=rows, axis=axis, own=own)
        share = own / (own + base.config["method"]["text_weight"])
        return partial(figures.routed_by, rows=rows, axis=axis, own=share)
    return partial(figures.split if name == "layers" else figures.by_task, rows=rows)


def _base(rows: list[Row]) -> Path:
    """The run folder that the rows are variants of."""
    path = rows[0].run.path
    return path.parent.parent if path.parent.name == "variants" else path


def write_similarity(found: Found, folder: Path) -> str:
    """The layers' CKA as cka.csv and figures, and the section; returns a sentence."""
    from pandas import DataFrame

    models = list(enumerate(found["models"]))
    pairs = [{"layer": one["layer"], "after": a, "and_after": b, "cka": one["matrix"][i][j], "mean_of_layer": one["mean"],
              "low": one["low"], "high": one["high"], "permuted": one["null"]}
             for one in found["layers"] for i, a in models for j, b in models if i < j]  # fmt: skip
    write_text(folder / "cka.csv", DataFrame(pairs).to_csv(index=False, lineterminator="\n"))
    save(partial(draw, found=found), folder, "cka")
    text = "Debiased CKA of the models after each task on one set of prompts, as the paper's figure 1 shows it layer by layer."
    write_section(folder, f"{HEADING}similarity of the layers", text, figure="cka", note=FILES.format("cka"))
    low = min(found["layers"], key=lambda one: one["mean"])
    limits = f"[{low['low']:.3f}, {low['high']:.3f}]"
    return f"similarity of the layers (CKA): least in layer {low['layer']}, {low['mean']:.3f} {limits}\n"


def write_beside(name: str, table: Beside, folder: Path) -> str:
    """NAME.csv and .tex in `folder`, and the section; returns the table as Markdown."""
    from pandas import DataFrame

    frame = DataFrame([values for _, values in table.rows], [name for name, _ in table.rows], table.columns, dtype=float)
    write_text(folder / f"{name}.csv", frame.rename_axis("row").to_csv(lineterminator="\n"))
    escaped = frame.rename(columns=tables.escaped)
    write_text(folder / f"{name}.tex", tables.booktabs(escaped, f"{table.title}. {table.note}".rstrip(), f"tab:{name}"))
    header, texts = table.shown()
    write_section(folder, f"{HEADING}{_lower(table.title)}", table.reading, header, texts, None, table.note)
    return _markdown(table.title, header, texts, table.note)


def _markdown(title: str, header: list[str], texts: list[list[str]], note: str) -> str:
    return "\n".join([f"## {title}", "", *markdown_table(header, texts), *(["", note] if note else []), ""])


def _of(run: StoredRun) -> str:
    manifest = run.manifest
    return f"{manifest.get('preset')} on {manifest.get('benchmark')}, {manifest.get('model')}, seed {manifest.get('seed')}"


def _labels(rows: list[Row]) -> str:
    """What must stand beside the numbers; which rows are told the task id, their names say."""
    found = dict.fromkeys(label for row in rows for label in row.run.labels() if not label.startswith("oracle"))
    return "; ".join(found)


def _lower(title: str) -> str:
    return title[:1].lower() + title[1:]

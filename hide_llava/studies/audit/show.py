"""The report of `check` for people: what is wrong first, then one line per file."""

from __future__ import annotations

from hide_llava.studies.audit.check import CheckReport, FileSummary
from hide_llava.studies.audit.findings import ORDER, plural

MARKS = {"error": "[bad] ", "warning": "[warn]", "note": "[note]"}


def readable(report: CheckReport) -> str:
    """The whole report as text."""
    lines = [_headline(report), ""]
    for level in ORDER:
        for finding in (f for f in report.findings if f.level == level):
            lines.append(f"{MARKS[level]} {finding.task} {finding.split}: {finding.text}")
            lines += [f"         {example}" for example in finding.examples]
            if finding.examples and finding.count > len(finding.examples):
                lines.append(f"         … and {finding.count - len(finding.examples):,} more")
    if report.findings:
        lines.append("")
    lines += [*_table(report.files), "", f"Prompts longer than the text encoder reads: {report.prompt_lengths}.",
              f"Records that training would cut down to nothing: {report.answer_room}."]  # fmt: skip
    if report.apart:
        how = "by path, content and look" if report.deep else "by path"
        lines.append(f"No two splits of a task share a picture, or a question about the same picture, compared {how}.")
    if not report.deep:
        lines.append("Images were looked for, not opened; --deep decodes them and compares them by content and look.")
    return "\n".join(lines)


def _headline(report: CheckReport) -> str:
    counts = [plural(report.count(level), level) for level in ORDER if report.count(level)]
    state = "sound" if report.sound else "NOT sound"
    return f"{report.benchmark} under {report.data_root}: {state}{' (' + ', '.join(counts) + ')' if counts else ''}"


def _table(files: list[FileSummary]) -> list[str]:
    header = ["task", "split", "records", "expected", "questions", "images", "long prompts", "answers"]
    rows = [
        [
            f.task, f.split, f"{f.records:,}", "?" if f.expected is None else f"{f.expected:,}", f"{f.questions:,}",
            f"{f.images:,}", f"{f.long_prompts:,}", _shares(f.answers),
        ]
        for f in files
    ]  # fmt: skip
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    text = (0, 1, 7)

    def line(row: list[str]) -> str:
        cells = (cell.ljust(w) if k in text else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths)))
        return "  ".join(cells).rstrip()

    return [line(header), "  ".join("-" * width for width in widths), *map(line, rows)]


def _shares(answers: dict[str, int]) -> str:
    total = sum(answers.values())
    if not total:
        return "in the references"
    ordered = sorted(answers.items(), key=lambda item: -item[1])
    return ", ".join(f"{form} {100 * count / total:.3g} %" for form, count in ordered)

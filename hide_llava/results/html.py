"""The parts of a self-contained page: shell, style, tables, embedded figures. No scripts, no external resources."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from hide_llava.storage import write_bytes

STYLE = """
:root { color-scheme: light dark; --paper:#ffffff; --ink:#1b1f24; --muted:#5b6573; --line:#e2e6eb; --card:#f6f8fa;
  --heat:#0f4c81; --hot-ink:#ffffff; --accent:#0b62a8; --warn:#8a4b00; --warn-card:#fff5e6;
  --good:#0a7a55; --bad:#b3261e; }
@media (prefers-color-scheme: dark) { :root { --paper:#161a20; --ink:#e8ebef; --muted:#98a2b0; --line:#2d343e;
  --card:#1d232b; --heat:#8cc4f5; --hot-ink:#10141a; --accent:#7db8ec; --warn:#f2b866; --warn-card:#2c2416;
  --good:#4fd1a5; --bad:#ff8a80; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--paper); color:var(--ink); font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
  "Helvetica Neue",Arial,sans-serif; }
main { max-width:1060px; margin:0 auto; padding:28px 20px 64px; }
h1 { font-size:1.7rem; line-height:1.2; margin:0 0 .3rem; overflow-wrap:anywhere; }
h2 { font-size:1.15rem; margin:2.4rem 0 .7rem; padding-top:.9rem; border-top:1px solid var(--line); }
h3 { font-size:1rem; margin:1.4rem 0 .4rem; }
p.lead { margin:.1rem 0 1rem; color:var(--muted); }
.note { color:var(--muted); font-size:.88rem; max-width:75ch; }
dl.facts { display:grid; grid-template-columns:repeat(auto-fill,minmax(155px,1fr)); gap:10px 22px; margin:0 0 1rem; }
dl.facts div { min-width:0; } dl.facts div.wide { grid-column:1 / -1; }
dt { color:var(--muted); font-size:.78rem; } dd { margin:0; overflow-wrap:anywhere; }
.numbers { display:grid; grid-template-columns:repeat(auto-fill,minmax(175px,1fr)); gap:12px; }
.number { background:var(--card); border-radius:10px; padding:12px 14px; min-width:0; }
.number b { display:block; font-size:1.6rem; line-height:1.25; font-weight:650; font-variant-numeric:tabular-nums; }
.number span { font-size:.86rem; } .number code { display:block; margin-top:4px; color:var(--muted); font-size:.7rem;
  background:none; padding:0; overflow-wrap:anywhere; }
.scroll { overflow-x:auto; margin:0 0 .6rem; }
table { border-collapse:collapse; font-size:.92rem; font-variant-numeric:tabular-nums; }
table.full { width:100%; }
.rows th:first-child { position:sticky; left:0; background:var(--paper); white-space:normal; min-width:8em; max-width:22em; }
th,td { padding:7px 12px; text-align:right; white-space:nowrap; border-bottom:1px solid var(--line); }
th { color:var(--muted); font-weight:600; font-size:.84rem; } tbody th { color:var(--ink); font-weight:500; }
th:first-child, th.text, td.text { text-align:left; } th.mid, td.mid { text-align:center; }
  td.text { white-space:normal; overflow-wrap:anywhere; min-width:9em; }
td.heat { background:color-mix(in oklab, var(--heat) calc(var(--v) * 100%), var(--card)); text-align:center;
  border:2px solid var(--paper); }
td.hot { color:var(--hot-ink); }
tr.sum th, tr.sum td { border-top:2px solid var(--line); } td.best { font-weight:700; }
figure { margin:0 0 1rem; overflow-x:auto; } figure img { max-width:100%; min-width:540px; height:auto; display:block; }
.warn { background:var(--warn-card); border-left:4px solid var(--warn); padding:10px 16px; border-radius:6px;
  margin:1rem 0; }
.warn p { margin:.2rem 0; } .warn ul { margin:.3rem 0; padding-left:1.2rem; }
details { border-bottom:1px solid var(--line); } details > summary { cursor:pointer; padding:9px 0; }
details[open] { padding-bottom:12px; } summary small { color:var(--muted); margin-left:.5em; }
pre { background:var(--card); border-radius:8px; padding:14px; overflow-x:auto; font-size:.82rem; line-height:1.45; }
code { font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; font-size:.86em; }
td small { display:block; color:var(--muted); font-size:.72rem; font-weight:400; line-height:1.35; }
td.heat small { color:inherit; opacity:.9; } td.none small { white-space:normal; min-width:8em; }
.ok { color:var(--good); } .no { color:var(--bad); }
td.prompt { color:var(--muted); text-align:left; white-space:pre-wrap; overflow-wrap:anywhere; min-width:14em; }
td.answer { text-align:left; white-space:pre-wrap; overflow-wrap:anywhere; min-width:10em; }
thead th { white-space:normal; vertical-align:bottom; }
a { color:var(--accent); } footer { margin-top:3rem; color:var(--muted); font-size:.85rem; }
@media (max-width:640px) { main { padding:18px 14px 48px; } h1 { font-size:1.35rem; } th,td { padding:6px 8px; }
  .numbers { grid-template-columns:repeat(2,1fr); } }
@media print { details > * { display:block; } .scroll { overflow:visible; } }
"""


def page(title: str, body: str) -> str:
    """A complete document. The policy forbids anything that is not in this file."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and its parts; nothing when all parts are empty."""
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(parts) if any(parts) else ""


def facts_list(pairs: list[tuple[str, str]]) -> str:
    """Name/value pairs in columns; a long value takes a line of its own."""
    cells = (
        f'<div class="{"wide" if len(value) > 60 else ""}"><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>'
        for key, value in pairs
    )
    return f'<dl class="facts">{"".join(cells)}</dl>'


def table(header: list[str], rows: list[list[str]], full: bool = False, text_columns: tuple[int, ...] = ()) -> str:
    """A plain table; the first column is a row heading, cells are escaped."""
    head = "".join(
        f'<th scope="col"{" class=text" if k in text_columns else ""}>{escape(cell)}</th>'
        for k, cell in enumerate(header)
    )
    body = ""
    for first, *rest in rows:
        cells = "".join(
            f"<td{' class=text' if k in text_columns else ''}>{escape(cell)}</td>" for k, cell in enumerate(rest, 1)
        )
        body += f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>\n'
    kind = ' class="full"' if full else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def heat_cell(text: str, value: float | None, small: str = "") -> str:
    """A table cell coloured by a value of 0…100, with a small line below; an empty cell stays blank."""
    if value is None:
        return "<td></td>"
    share = min(max(value / 100, 0.0), 1.0)
    # From here on the light theme's cell is dark and the dark theme's cell is light, so the ink changes.
    hot = " hot" if share > 0.62 else ""
    below = f"<small>{escape(small)}</small>" if small else ""
    return f'<td class="heat{hot}" style="--v:{share:.3f}">{escape(text)}{below}</td>'


def picture(light: bytes, dark: bytes, alt: str, width: int | None = None) -> str:
    """One figure in both themes, embedded."""
    uri = {n: "data:image/png;base64," + base64.b64encode(data).decode() for n, data in (("l", light), ("d", dark))}
    size = f' width="{width}"' if width else ""
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{uri["d"]}">'
        f'<img src="{uri["l"]}" alt="{escape(alt)}"{size}></picture></figure>'
    )


def warning(title: str, lines: list[str]) -> str:
    """A box of things the reader must know; nothing without lines."""
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="warn" role="note"><p><strong>{escape(title)}</strong></p><ul>{items}</ul></div>'


def details(title: str, note: str, body: str, opened: bool = False) -> str:
    """A folded part."""
    return (
        f"<details{' open' if opened else ''}><summary>{escape(title)}<small>{escape(note)}</small></summary>\n"
        f"{body}</details>"
    )


def write(path: Path, text: str | bytes) -> Path:
    """A killed report leaves the old file intact."""
    write_bytes(path, text.encode("utf-8") if isinstance(text, str) else text)
    return path

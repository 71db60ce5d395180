"""One HTML file with everything about a run: facts, means, pictures, every number. It refers to no other file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from bench import records, table
from bench.records import Run

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; } td, th { padding: .15em .7em; text-align: right; }
td:first-child, th:first-child, td:last-child, th:last-child { text-align: left; }
th { border-bottom: 1px solid #888; } tr.case td { font-weight: 600; padding-top: .8em; text-align: left; }
tr.wrong, tr.failed { color: #b00; } tr.unsupported { color: #888; }
img { max-width: 100%; } code { background: #f3f3f3; }
"""


def _row(cells: Iterable[str], tag: str = "td") -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _facts(run: Run) -> list[str]:
    machine = run.machine
    versions = ", ".join(f"{name} {v}" for name, v in (machine.get("versions") or {}).items() if v)
    pairs = [
        ("measured", run.created),
        (
            "processor",
            f"{machine.get('processor')}, {machine.get('cores')} cores, compiled for {machine.get('target')}",
        ),
        ("load before", str(machine.get("load"))),
        ("commit", str(machine.get("commit") or "unknown")),
        ("versions", versions),
        ("settings", ", ".join(f"{name} {value}" for name, value in run.settings.items())),
    ]
    return [f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in pairs]


def _measurements(run: Run) -> list[str]:
    lines = []
    for title, members in table.by_case(run.measurements):
        lines.append(f'<tr class="case"><td colspan="{len(table.HEADINGS)}">{escape(title)}</td></tr>')
        for m in members:
            mark = "" if m.status == records.TIMED else f' class="{m.status}"'
            lines.append(_row(table.cells(m)).replace("<tr>", f"<tr{mark}>", 1))
    return lines


def html(run: Run, pictures: Sequence[Path]) -> str:
    """The report's text."""
    means = ("family", "provider", "how", "cases", "x eager", "x best peer", "worst x eager", "case")
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Kernel benchmarks</title>",
        f"<style>{_STYLE}</style></head><body><h1>Kernel benchmarks</h1>",
        "<table>",
        *_facts(run),
        "</table>",
        *(f"<p>{escape(table.limits_line(found))}</p>" for found in run.limits),
        *(f"<p><b>{escape(line)}</b></p>" for line in run.complaints),
        "<h2>Ours: geometric means by family</h2>",
        "<p>Ratios are another engine's time as a multiple of ours: above 1, ours is faster.</p><table>",
        _row(means, "th"),
        *map(_row, table.means_rows(run)),
        "</table>",
    ]
    for path in pictures:
        content = base64.b64encode(path.read_bytes()).decode()
        parts.append(
            f'<h2>{escape(path.stem)}</h2><img alt="{escape(path.stem)}" src="data:image/png;base64,{content}">'
        )
    parts += [
        "<h2>Every measurement</h2>",
        "<p>Medians over rounds in which the engines took turns; quartiles of the ratios in brackets. No time without "
        "a result inside the error budget. Memory is the peak beyond the inputs, results included: what our kernels "
        "asked for, and for the other engines the growth of resident memory, without what they keep from set-up.</p>",
        "<table>",
        _row(table.HEADINGS, "th"),
        *_measurements(run),
        "</table></body></html>",
    ]
    return "\n".join(parts)


def write(run: Run, folder: Path, pictures: Sequence[Path]) -> Path:
    """Write report.html into `folder`; its path."""
    path = folder / "report.html"
    path.write_text(html(run, pictures))
    return path

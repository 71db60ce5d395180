"""Measurements as text: numbers with units, the table of a run, geometric means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.table import Table
from rich.text import Text

from bench import records, summary
from bench.limits import Limits
from bench.providers import OURS
from bench.records import Measurement, Run
from bench.timing import Quartiles

DASH = "-"


def duration(seconds: float) -> str:
    """Three digits and a unit: "12.3 us"."""
    for factor, unit in ((1e9, "ns"), (1e6, "us"), (1e3, "ms")):
        if seconds * factor < 999.5:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def size(nbytes: int | None) -> str:
    """A number of bytes with a unit: "1.5 MB"."""
    if nbytes is None:
        return DASH
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if nbytes >= factor:
            return f"{nbytes / factor:.3g} {unit}"
    return f"{nbytes} B"


def ratio(found: Quartiles | None, spread: bool = True) -> str:
    """A ratio, with its quartiles behind it: "1.52 (1.48-1.55)"."""
    if found is None:
        return DASH
    text = f"{found.median:.2f}"
    return f"{text} ({found.low:.2f}-{found.high:.2f})" if spread else text


def rate(m: Measurement) -> str:
    """GFLOP/s or GB/s."""
    return DASH if m.rate is None else f"{m.rate[0]:.3g} {m.rate[1]}"


def way(m: Measurement) -> str:
    """How a case was run: "training, 2 threads, float64"."""
    parts = [m.passes, f"{m.threads} thread{'s' * (m.threads > 1)}", m.dtype]
    return ", ".join([*parts, m.layout] if m.layout != "given" else parts)


HEADINGS = ("provider", "time", "x eager (quartiles)", "x best peer", "rate", "of limit", "memory", "remark")


def cells(m: Measurement) -> tuple[str, ...]:
    """One measurement under `HEADINGS`."""
    if m.seconds is None:
        told = {records.WRONG: "WRONG", records.FAILED: "FAILED"}.get(m.status, DASH)
        return (m.provider, told, *[DASH] * 5, m.reason)
    share = DASH if m.limit_share is None else f"{100 * m.limit_share:.0f} %"
    peer = ratio(m.peer_ratio, spread=False)
    beside = f" {m.best_peer}" if m.provider in OURS and m.best_peer else ""
    return (
        m.provider,
        duration(m.seconds.median),
        ratio(m.eager_ratio),
        peer + beside,
        rate(m),
        share,
        size(m.memory),
        m.reason,
    )


def by_case(measurements: Iterable[Measurement]) -> Iterator[tuple[str, list[Measurement]]]:
    """Title and measurements of each case that was run in one way."""
    groups: dict[tuple[object, ...], list[Measurement]] = {}
    for m in measurements:
        groups.setdefault(m.group, []).append(m)
    for members in groups.values():
        first = members[0]
        yield f"{first.op}: {first.name} [{way(first)}]", members


def table_of(run: Run) -> Table:
    """Every measurement, a block for each case."""
    table = Table(title=None, show_edge=False, pad_edge=False)
    for number, heading in enumerate(HEADINGS):
        right = 0 < number < len(HEADINGS) - 1
        table.add_column(heading, justify="right" if right else "left", no_wrap=number < len(HEADINGS) - 1)
    for title, members in by_case(run.measurements):
        table.add_section()
        table.add_row(Text(title, style="bold"))
        for m in members:
            style = {records.WRONG: "red", records.FAILED: "red", records.UNSUPPORTED: "dim"}.get(m.status, "")
            shown = cells(m)
            table.add_row(Text("  " + shown[0]), *[Text(cell) for cell in shown[1:]], style=style)
    return table


def means_table(run: Run) -> Table:
    """Geometric means of our ratios for each family."""
    table = Table(title="Ours: geometric means by family", title_justify="left", show_edge=False, pad_edge=False)
    for heading in ("family", "provider", "how", "cases", "x eager", "x best peer", "worst x eager", "case"):
        right = heading in ("cases", "x eager", "x best peer", "worst x eager")
        table.add_column(heading, justify="right" if right else "left")
    for row in means_rows(run):
        table.add_row(*[Text(cell) for cell in row])
    return table


def means_rows(run: Run) -> Iterator[tuple[str, ...]]:
    """The cells of the geometric means."""

    def number(value: float | None) -> str:
        return DASH if value is None else f"{value:.2f}"

    for f in summary.family_means(run.measurements):
        how = f"{f.passes}, {f.threads} thread{'s' * (f.threads > 1)}, {f.dtype}"
        ratios = (number(f.to_eager), number(f.to_peer), number(f.worst))
        yield f.family, f.provider, how, str(f.cases), *ratios, f.worst_case


def limits_line(found: Limits) -> str:
    """The machine's limits in one line."""
    copies = ", ".join(f"{size(n)}: {speed / 1e9:.3g}" for n, speed in sorted(found.copies.items()))
    return (
        f"limits, {found.threads} thread{'s' * (found.threads > 1)}, {found.dtype}: {found.flops / 1e9:.3g} GFLOP/s of "
        f"multiply-adds; GB/s of copies by size: {copies}"
    )

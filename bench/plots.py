"""Pictures of a run: bars of ratios, a roofline, and cost against size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # Into files alone: no display is asked for.

from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from bench.records import Measurement, Run

COLOURS = {
    "ours": "#c1272d",
    "ours-packed": "#7a1018",
    "torch": "#4d4d4d",
    "compile": "#e8912d",
    "onnxruntime": "#0071bc",
    "openvino": "#5aa02c",
}
MARKERS = {"ours": "o", "ours-packed": "P", "torch": "s", "compile": "D", "onnxruntime": "^", "openvino": "v"}
#: Cases on one page of bars.
_BARS = 40

Way = tuple[str, int, str]


def _by_way(measurements: Iterable[Measurement]) -> dict[Way, list[Measurement]]:
    """What was timed, by pass, threads and dtype."""
    found: dict[Way, list[Measurement]] = defaultdict(list)
    for m in measurements:
        if m.seconds is not None:
            found[m.passes, m.threads, m.dtype].append(m)
    return found


def _title(what: str, way: Way) -> str:
    passes, threads, dtype = way
    return f"{what}: {passes}, {threads} thread{'s' * (threads > 1)}, {dtype}"


def _save(figure: Figure, folder: Path, name: str) -> Path:
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)
    return path


def _colour(provider: str) -> str:
    return COLOURS.get(provider, "#999999")


def bars(members: Sequence[Measurement], way: Way) -> Figure | None:
    """How many times as fast as PyTorch eager each provider is, with quartiles, a group of bars for each case."""
    members = [m for m in members if m.eager_ratio is not None and m.provider != "torch"]
    if not members:
        return None
    titles = list(dict.fromkeys((m.op, m.name) for m in members))
    providers = list(dict.fromkeys(m.provider for m in members))
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.17 * len(titles) * (len(providers) + 1)))
    thickness = 0.85 / len(providers)
    for number, provider in enumerate(providers):
        mine = [m for m in members if m.provider == provider]
        places = [titles.index((m.op, m.name)) + thickness * number for m in mine]
        ratios = [m.eager_ratio for m in mine if m.eager_ratio is not None]
        spread = [[r.median - r.low for r in ratios], [r.high - r.median for r in ratios]]
        # From 1 on: to the right faster than eager, to the left slower.
        axes.barh(
            places, [r.median - 1 for r in ratios], thickness, left=1, color=_colour(provider), label=provider,
            xerr=spread, error_kw={"elinewidth": 0.7, "alpha": 0.7},
        )  # fmt: skip
    axes.axvline(1, color=COLOURS["torch"], linewidth=1)
    axes.set_yticks([i + thickness * (len(providers) - 1) / 2 for i in range(len(titles))])
    axes.set_yticklabels([f"{op}: {name}" for op, name in titles], fontsize=7)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as PyTorch eager (log scale; quartiles)")
    axes.set_title(_title("Ratio to eager", way), fontsize=10)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def roofline(members: Sequence[Measurement], way: Way, run: Run) -> Figure | None:
    """GFLOP/s against operations per byte, under the machine's measured limits."""
    passes, threads, dtype = way
    members = [m for m in members if m.flops and m.bytes_moved]
    limits = run.limits_of(threads, dtype)
    if not members or limits is None:
        return None
    figure, axes = pyplot.subplots(figsize=(8, 5))
    intensities = [m.flops / m.bytes_moved for m in members]
    low, high = min(*intensities, 0.1) / 2, max(*intensities, 100) * 2
    for number, (nbytes, label) in enumerate(((max(limits.copies), "main memory"), (min(limits.copies), "cache"))):
        speed = limits.copies[nbytes]
        knee = limits.flops / speed
        points = [low, max(low, min(knee, high)), high]
        roof = [min(limits.flops, speed * at) / 1e9 for at in points]
        text = f"{label}: {speed / 1e9:.3g} GB/s, {limits.flops / 1e9:.3g} GFLOP/s"
        axes.plot(points, roof, color="black", linestyle="-" if number == 0 else "--", linewidth=1, label=text)
    for provider in dict.fromkeys(m.provider for m in members):
        mine = [m for m in members if m.provider == provider]
        axes.scatter(
            [m.flops / m.bytes_moved for m in mine],
            [m.flops / m.seconds.median / 1e9 for m in mine if m.seconds is not None],
            s=18, alpha=0.8, color=_colour(provider), marker=MARKERS.get(provider, "x"), label=provider,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte that must move")
    axes.set_ylabel("GFLOP/s")
    axes.set_title(_title("Roofline", way), fontsize=10)
    axes.legend(fontsize=7)
    return figure


def cost(members: Sequence[Measurement], way: Way) -> Figure | None:
    """Time against the size of the work, both on log scales, a picture for each family."""
    families = list(dict.fromkeys(m.family for m in members))
    if not families:
        return None
    columns = min(len(families), 3)
    rows = -(-len(families) // columns)
    figure, grid = pyplot.subplots(rows, columns, figsize=(4.2 * columns, 3.2 * rows), squeeze=False)
    cells: list[Any] = list(grid.flat)
    for axes, family in zip(cells, families):
        mine = [m for m in members if m.family == family]
        by_flops = all(m.flops for m in mine)
        for provider in dict.fromkeys(m.provider for m in mine):
            points = sorted(
                (m.flops if by_flops else m.bytes_moved, m.seconds.median)
                for m in mine
                if m.provider == provider and m.seconds is not None
            )
            # Points, not a line: cases of one size may be different work.
            axes.plot(
                [x for x, _ in points], [y for _, y in points], marker=MARKERS.get(provider, "x"), markersize=4,
                linestyle="", alpha=0.8, color=_colour(provider), label=provider,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(family, fontsize=9)
        axes.set_xlabel("operations" if by_flops else "bytes moved", fontsize=8)
        axes.set_ylabel("seconds", fontsize=8)
        axes.tick_params(labelsize=7, which="both")
    for axes in cells[len(families) :]:
        axes.remove()
    figure.suptitle(_title("Cost against size", way), fontsize=10)
    figure.tight_layout()
    found = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(found.values(), found.keys(), fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw(run: Run, folder: Path) -> list[Path]:
    """Every picture of a run as PNG in `folder`; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for way, members in _by_way(run.measurements).items():
        name = "-".join(map(str, (way[0], f"{way[1]}threads", way[2])))
        titles = list(dict.fromkeys((m.op, m.name) for m in members))
        for page, first in enumerate(range(0, len(titles), _BARS), start=1):
            shown = set(titles[first : first + _BARS])
            figure = bars([m for m in members if (m.op, m.name) in shown], way)
            if figure is not None:
                paths.append(_save(figure, folder, f"ratios-{name}" + (f"-{page}" if len(titles) > _BARS else "")))
        for kind, figure in (("roofline", roofline(members, way, run)), ("cost", cost(members, way))):
            if figure is not None:
                paths.append(_save(figure, folder, f"{kind}-{name}"))
    return paths

"""Calls of rnn_layer, lstm_layer and gru_layer that tests and benchmarks share."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.case import Case
from kernels.recurrence.gates import GATES


def _layer(
    cell: str,
    name: str,
    sizes: tuple[int, int, int, int],
    *tags: str,
    directions: int = 1,
    bias: bool = True,
    states: bool = True,
    projection: int = 0,
    lengths: tuple[int, ...] | None = None,
    **arguments: Any,
) -> Case:
    """A case of sizes (T, B, I, H)."""
    steps, batch, inputs, units = sizes
    rows, hidden = len(GATES[cell]) * units, projection or units
    shapes: dict[str, tuple[int, ...]] = {
        "x": (batch, steps, inputs) if arguments.get("batch_first") else (steps, batch, inputs)
    }
    for suffix in ("", "_reverse")[:directions]:
        shapes |= {f"w_ih{suffix}": (rows, inputs), f"w_hh{suffix}": (rows, hidden)}
        if bias:
            shapes |= {f"b_ih{suffix}": (rows,), f"b_hh{suffix}": (rows,)}
        if projection:
            shapes[f"w_hr{suffix}"] = (projection, units)
    if states:
        shapes["h0"] = (directions, batch, hidden)
        if cell == "lstm":
            shapes["c0"] = (directions, batch, units)
    # Small enough that steps damp errors: what a chaotic recurrence does to rounding says nothing about a kernel.
    scale = {name: 0.6 * units**-0.5 for name in shapes if name.startswith("w_")}
    if lengths is not None:
        arguments["lengths"] = np.array(lengths, np.int64)
    return Case(f"{cell}_layer", name, shapes, arguments, tags, scale=scale)


def _all(name: str, sizes: tuple[int, int, int, int], *tags: str, **arguments: Any) -> tuple[Case, ...]:
    return tuple(_layer(cell, name, sizes, *tags, **dict(arguments)) for cell in GATES)


CASES = (
    # Every argument at least once, small.
    *_all("plain", (4, 3, 5, 6), "ci"),
    *_all("both directions", (5, 2, 3, 18), "ci", directions=2),
    *_all("batch first, no biases", (3, 4, 8, 6), "ci", bias=False, batch_first=True),
    *_all("no states", (3, 2, 4, 4), "ci", states=False),
    *_all("last step", (4, 3, 5, 17), "ci", directions=2, return_last=True),
    *_all("lengths", (6, 5, 4, 7), "ci", lengths=(3, 6, 1, 4, 6)),
    *_all(
        "lengths, both directions, batch first", (5, 4, 3, 6), "ci",
        directions=2, lengths=(2, 5, 0, 3), batch_first=True,
    ),
    *_all("lengths, last step", (5, 4, 3, 6), "ci", directions=2, lengths=(2, 0, 3, 1), return_last=True),
    _layer("rnn", "relu", (4, 3, 5, 6), "ci", directions=2, nonlinearity="relu"),
    _layer("gru", "reset before", (4, 3, 5, 7), "ci", reset_after=False),
    _layer(
        "gru", "reset before, lengths, both directions", (4, 3, 5, 6), "ci",
        directions=2, reset_after=False, lengths=(4, 1, 3),
    ),
    _layer("lstm", "projection", (4, 3, 5, 9), "ci", projection=4),
    _layer(
        "lstm", "projection, lengths, both directions", (5, 3, 4, 6), "ci",
        directions=2, projection=3, lengths=(2, 5, 4), batch_first=True,
    ),
    # Awkward sizes.
    *_all("one of everything", (1, 1, 1, 1), "odd", states=False),
    *_all("one step", (1, 7, 9, 17), "odd", directions=2),
    *_all("one row", (9, 1, 33, 50), "odd"),
    *_all("past a tile", (3, 27, 21, 33), "odd"),
    *_all("past a run of taps", (2, 4, 300, 140), "odd"),
    *_all("empty batch", (3, 0, 4, 5), "odd", directions=2),
    *_all("nothing but empty rows", (3, 2, 4, 5), "odd", lengths=(0, 0)),
    # Networks: an article's LSTM text classifier, speech, single requests.
    *_all("B1 T50 64-64", (50, 1, 64, 64), "bench"),
    *_all("B64 T50 64-64", (50, 64, 64, 64), "bench"),
    *_all("B1 T100 256-256", (100, 1, 256, 256), "bench"),
    *_all("B32 T100 256-256", (100, 32, 256, 256), "bench"),
    *_all("B64 T50 64-64 lengths", (50, 64, 64, 64), "bench", lengths=tuple(1 + 7 * i % 50 for i in range(64))),
)  # fmt: skip

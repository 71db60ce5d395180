"""Few rows of a wide layer: the units shared out among threads give the bits of the rows' own way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import kernels
from kernels.op import OPS
from kernels.recurrence import columns, numba_cpu
from kernels.recurrence.gates import GATES
from kernels.recurrence.panels import PANEL_VECTORS
from kernels.runtime.numba_cpu import has_teams
from kernels.simd import VECTOR_BYTES

pytestmark = pytest.mark.skipif(not has_teams(), reason="no OpenMP runtime here to start regions on")

#: Units of three panels in float32 and six in float64, where vectors are of 64 bytes.
UNITS = 192


def _forget_plans() -> None:
    for cell in GATES:
        OPS[f"{cell}_layer"].plans.clear()


@pytest.fixture(autouse=True)
def fresh_plans() -> Iterator[None]:
    """No plan of other numbers of threads, before and after."""
    _forget_plans()
    yield
    _forget_plans()


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Parts of each call that went by columns."""
    parts: list[int] = []

    def run(steps: int, total: int, *rest: Any) -> None:
        parts.append(total)
        columns.run_columns(steps, total, *rest)

    monkeypatch.setattr(numba_cpu, "run_columns", run)
    monkeypatch.setattr(columns, "STEP_GRAIN", 1)
    return parts


def _arguments(cell: str, batch: int, directions: int, dtype: str, states: bool = True, **more: Any) -> dict[str, Any]:
    rng = np.random.default_rng(batch)
    steps, inputs, rows = 5, 7, len(GATES[cell]) * UNITS
    found: dict[str, Any] = {"x": rng.standard_normal((steps, batch, inputs)).astype(dtype)}
    for suffix in ("", "_reverse")[:directions]:
        for name, shape in (("w_ih", (rows, inputs)), ("w_hh", (rows, UNITS)), ("b_ih", (rows,)), ("b_hh", (rows,))):
            found[name + suffix] = (rng.standard_normal(shape) * 0.07).astype(dtype)
    if states:
        for name in ("h0", "c0")[: 1 + (cell == "lstm")]:
            found[name] = rng.standard_normal((directions, batch, UNITS)).astype(dtype)
    return found | more


def _run(monkeypatch: pytest.MonkeyPatch, threads: int, op: str, arguments: dict[str, Any]) -> list[np.ndarray]:
    monkeypatch.setattr(numba_cpu, "threads_for", lambda work, grain: threads)
    value, pullback = kernels.vjp(op, **arguments, backend="numba")
    values = list(value) if isinstance(value, tuple) else [value]
    return [*values, *(g for g in pullback(*(np.ones_like(v) for v in values)) if g is not None)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("way", [(1, 1, 2), (1, 1, 8), (1, 2, 4), (3, 1, 4), (2, 2, 16)])
@pytest.mark.parametrize("cell", GATES)
def test_bits_are_those_of_one_thread(
    monkeypatch: pytest.MonkeyPatch, ran: list[int], cell: str, way: tuple[int, int, int], dtype: str
) -> None:
    batch, directions, threads = way
    panels = UNITS * np.dtype(dtype).itemsize // (PANEL_VECTORS * VECTOR_BYTES)
    parts = min(threads // directions, panels) * directions
    arguments = _arguments(cell, batch, directions, dtype)
    alone = _run(monkeypatch, 1, f"{cell}_layer", arguments)
    assert ran == []
    shared = _run(monkeypatch, threads, f"{cell}_layer", arguments)
    assert ran == [parts]
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("cell", GATES)
def test_last_step_and_no_states(monkeypatch: pytest.MonkeyPatch, ran: list[int], cell: str) -> None:
    arguments = _arguments(cell, 1, 2, "float32", states=False, return_last=True)
    if cell == "rnn":
        arguments["nonlinearity"] = "relu"
    alone = _run(monkeypatch, 1, f"{cell}_layer", arguments)
    shared = _run(monkeypatch, 4, f"{cell}_layer", arguments)
    assert ran == [4]
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(one, other)


def test_by_rows_where_columns_do_not_serve(monkeypatch: pytest.MonkeyPatch, ran: list[int]) -> None:
    """As many rows as threads; lengths; a second product; units that are no whole panels."""
    for op, arguments in (
        ("lstm_layer", _arguments("lstm", 4, 1, "float32")),
        ("lstm_layer", _arguments("lstm", 2, 1, "float32", lengths=np.array([5, 2]))),
        ("gru_layer", _arguments("gru", 1, 1, "float32", reset_after=False)),
    ):
        _run(monkeypatch, 4, op, arguments)
    narrow = {n: a[:50] if n != "x" else a for n, a in _arguments("rnn", 1, 1, "float32", states=False).items()}
    narrow["w_hh"] = narrow["w_hh"][:, :50]
    _run(monkeypatch, 4, "rnn_layer", narrow)
    assert ran == []


def test_small_steps_are_not_worth_a_region(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 x 192 x 192 multiply-adds are two grains; 192 x 192 are none."""
    monkeypatch.setattr(numba_cpu, "threads_for", lambda work, grain: 4)
    for cell, words in (("lstm", "2 groups of units on 4 threads, a region a step"), ("rnn", "1 part on 4 threads")):
        explained = str(kernels.explain(f"{cell}_layer", **_arguments(cell, 1, 1, "float32"), backend="numba"))
        assert words in explained

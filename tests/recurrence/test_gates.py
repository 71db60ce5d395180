"""Gate orders of ONNX and Keras 3: their own equations, written out on their own layouts, give our results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kernels
from kernels.recurrence import gates
from tests.recurrence.modules import CELLS, OURS, random_params

Array = np.ndarray[Any, Any]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def onnx_layer(cell: str, x: Array, w: Array, r: Array, b: Array, linear_before_reset: int) -> Array:
    """One direction as the ONNX operators RNN, LSTM (gates i, o, f, c) and GRU (z, r, h) define it; (T, B, H)."""
    units = r.shape[1]
    wb, rb = np.split(b, 2)
    h = c = np.zeros((x.shape[1], units))
    states = []
    for step in x:
        if cell == "rnn":
            h = np.tanh(step @ w.T + h @ r.T + wb + rb)
        elif cell == "lstm":
            i, o, f, g = np.split(step @ w.T + h @ r.T + wb + rb, 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        else:
            (wz, wr, wh), (rz, rr, rh) = np.split(w, 3), np.split(r, 3)
            (wbz, wbr, wbh), (rbz, rbr, rbh) = np.split(wb, 3), np.split(rb, 3)
            z = sigmoid(step @ wz.T + h @ rz.T + wbz + rbz)
            reset = sigmoid(step @ wr.T + h @ rr.T + wbr + rbr)
            if linear_before_reset:
                n = np.tanh(step @ wh.T + reset * (h @ rh.T + rbh) + wbh)
            else:
                n = np.tanh(step @ wh.T + (reset * h) @ rh.T + rbh + wbh)
            h = (1 - z) * n + z * h
        states.append(h)
    return np.stack(states)


def keras_layer(cell: str, x: Array, kernel: Array, recurrent: Array, bias: Array, reset_after: bool) -> Array:
    """Keras 3's SimpleRNN, LSTM (i, f, c, o) and GRU (z, r, h) cells; (T, B, H)."""
    h = c = np.zeros((x.shape[1], recurrent.shape[0]))
    states = []
    for step in x:
        if cell == "rnn":
            h = np.tanh(step @ kernel + bias + h @ recurrent)
        elif cell == "lstm":
            i, f, g, o = np.split(step @ kernel + bias + h @ recurrent, 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        else:
            input_bias, recurrent_bias = bias if reset_after else (bias, np.zeros_like(bias))
            xz, xr, xh = np.split(step @ kernel + input_bias, 3, axis=1)
            rz, rr, rh = np.split(recurrent, 3, axis=1)
            bz, br, bh = np.split(recurrent_bias, 3)
            z, reset = sigmoid(xz + h @ rz + bz), sigmoid(xr + h @ rr + br)
            n = np.tanh(xh + (reset * (h @ rh + bh) if reset_after else (reset * h) @ rh))
            h = z * h + (1 - z) * n
        states.append(h)
    return np.stack(states)


def variants() -> list[Any]:
    """(cell, arguments of ours): a GRU in both forms."""
    both = [pytest.param("gru", {"reset_after": after}, id=f"gru {after}") for after in (True, False)]
    return [*(pytest.param(cell, {}, id=cell) for cell in CELLS if cell != "gru"), *both]


@pytest.mark.parametrize("cell, arguments", variants())
def test_onnx(cell: str, arguments: dict[str, Any]):
    x = np.random.default_rng(0).standard_normal((6, 3, 5))
    params = random_params(cell, 5, 7, directions=2, dtype="float64")
    w, r, b = gates.to_onnx(cell, params)  # type: ignore[arg-type]
    assert b is not None and w.shape[0] == r.shape[0] == b.shape[0] == 2
    theirs = onnx_layer(cell, x, w[0], r[0], b[0], int(arguments.get("reset_after", 0)))
    ours = OURS[cell](x, params, bidirectional=True, **arguments)[0]
    np.testing.assert_allclose(ours[..., :7], theirs, rtol=1e-12, atol=1e-13)
    back = gates.from_onnx(cell, w, r, b)
    for one, other in zip(params, back, strict=True):
        for first, second in zip(one, other, strict=True):
            np.testing.assert_array_equal(first, second)
    assert gates.to_onnx(cell, [(*one[:2], None, None) for one in params])[2] is None  # type: ignore[misc]
    assert gates.from_onnx(cell, w, r)[0][2:] == (None, None)


@pytest.mark.parametrize("cell, arguments", variants())
def test_keras(cell: str, arguments: dict[str, Any]):
    x = np.random.default_rng(0).standard_normal((6, 3, 5))
    (layer,) = random_params(cell, 5, 7, dtype="float64")
    after = arguments.get("reset_after", True)
    kernel, recurrent, bias = gates.to_keras(cell, layer, reset_after=after)  # type: ignore[arg-type]
    assert bias is not None and bias.ndim == (2 if cell == "gru" and after else 1)
    theirs = keras_layer(cell, x, kernel, recurrent, bias, after)
    np.testing.assert_allclose(OURS[cell](x, [layer], **arguments)[0], theirs, rtol=1e-12, atol=1e-13)
    back = gates.from_keras(cell, kernel, recurrent, bias)
    np.testing.assert_allclose(OURS[cell](x, [back], **arguments)[0], theirs, rtol=1e-12, atol=1e-13)
    again = gates.to_keras(cell, back, reset_after=after)
    for first, second in zip((kernel, recurrent, bias), again, strict=True):
        np.testing.assert_array_equal(first, second)
    assert gates.to_keras(cell, (*layer[:2], None, None))[2] is None
    assert gates.from_keras(cell, kernel, recurrent)[2:] == (None, None)


def test_the_order_is_as_said():
    """i, f, g, o and r, z, n, rows one below the other, seen by switching single gates off."""
    x, zero = np.ones((1, 1, 1)), np.zeros((4, 1))
    for gate, expected in (("o", 0.0), ("i", 0.0), ("g", -1.0)):
        bias = np.full(4, 50.0)
        bias["ifgo".index(gate)] = -50
        (h, _), _ = kernels.lstm_cell(x[0], None, zero, zero, bias), None
        assert h[0, 0] == pytest.approx(expected * np.tanh(1) if expected else 0.0, abs=1e-12)
    for z, n, expected in ((50.0, 50.0, 0.25), (-50.0, 50.0, 1.0), (-50.0, -50.0, -1.0)):
        h = kernels.gru_cell(x[0], np.full((1, 1), 0.25), zero[:3], zero[:3], np.array([0.0, z, n]))
        assert h[0, 0] == pytest.approx(expected)


def test_reorder_refuses_what_does_not_divide():
    with pytest.raises(ValueError, match=r"reorder: stacked must have a multiple of 4 rows, got \(6, 2\)"):
        gates.reorder(np.zeros((6, 2)), gates.GATES["lstm"], gates.ONNX_GATES["lstm"])

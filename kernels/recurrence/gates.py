"""The order of gates in weights and biases, stated once, and converters to and from other libraries' orders.

Here, as in torch, a layer's weights stack the gates' matrices along the rows:

    LSTM  w_ih (4 H, I), w_hh (4 H, H)   input i, forget f, cell g, output o
    GRU   w_ih (3 H, I), w_hh (3 H, H)   reset r, update z, new n
    RNN   w_ih (H, I), w_hh (H, H)

ONNX has LSTM i, o, f, c and GRU z, r, h; Keras 3 has LSTM i, f, c, o and GRU z, r, h, kernels transposed. (ONNX's and
Keras' c is the cell gate g, h the new gate n.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
#: Weights of one layer and direction: w_ih, w_hh, b_ih, b_hh; a bias may be None.
Layer = tuple[Array, Array, Array | None, Array | None]

#: The gates of each cell in the order of their rows.
GATES = {"rnn": ("h",), "lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n")}
#: The same gates in the order of other libraries.
ONNX_GATES = {"rnn": ("h",), "lstm": ("i", "o", "f", "g"), "gru": ("z", "r", "n")}
KERAS_GATES = {"rnn": ("h",), "lstm": ("i", "f", "g", "o"), "gru": ("z", "r", "n")}


def reorder(stacked: Array, given: tuple[str, ...], wanted: tuple[str, ...]) -> Array:
    """Gates stacked along the first dimension, each of the same size, in another order.

    Args:
        stacked: (G * H, ...).
        given: names of the G gates as they are stacked.
        wanted: the same names as they shall be stacked.
    """
    if stacked.shape[0] % len(given):
        raise ValueError(f"reorder: stacked must have a multiple of {len(given)} rows, got {stacked.shape}")
    gates = dict(zip(given, np.split(stacked, len(given))))
    return np.concatenate([gates[name] for name in wanted])


def from_onnx(cell: str, w: Array, r: Array, b: Array | None = None) -> list[Layer]:
    """Weights of an ONNX RNN, LSTM or GRU node as one tuple for each direction.

    Args:
        cell: "rnn", "lstm" or "gru".
        w: (D, G * H, I).
        r: (D, G * H, H).
        b: (D, 2 * G * H), the input's biases before the recurrent ones, or None.

    An ONNX GRU with linear_before_reset = 1 is one with reset_after=True here.
    """
    layers: list[Layer] = []
    for d in range(w.shape[0]):
        biases: list[Array | None] = [None, None]
        if b is not None:
            biases = [reorder(half, ONNX_GATES[cell], GATES[cell]) for half in np.split(b[d], 2)]
        w_ih, w_hh = (reorder(m[d], ONNX_GATES[cell], GATES[cell]) for m in (w, r))
        layers.append((w_ih, w_hh, biases[0], biases[1]))
    return layers


def to_onnx(cell: str, layers: list[Layer]) -> tuple[Array, Array, Array | None]:
    """A layer's directions as ONNX's W (D, G * H, I), R (D, G * H, H) and B (D, 2 * G * H), or None without biases."""

    def stack(arrays: list[Array]) -> Array:
        return np.stack([reorder(a, GATES[cell], ONNX_GATES[cell]) for a in arrays])

    w, r = stack([layer[0] for layer in layers]), stack([layer[1] for layer in layers])
    if all(layer[2] is None and layer[3] is None for layer in layers):
        return w, r, None
    halves = []
    for half in (2, 3):
        given = [layer[half] for layer in layers]
        halves.append(stack([np.zeros(w.shape[1], w.dtype) if b is None else b for b in given]))
    return w, r, np.concatenate(halves, axis=1)


def from_keras(cell: str, kernel: Array, recurrent_kernel: Array, bias: Array | None = None) -> Layer:
    """Weights of a Keras 3 SimpleRNN, LSTM or GRU layer.

    Args:
        cell: "rnn", "lstm" or "gru".
        kernel: (I, G * H).
        recurrent_kernel: (H, G * H).
        bias: (G * H,); (2, 3 * H) for a GRU with reset_after=True, the input's before the recurrent one; None without.
    """

    def turned(a: Array) -> Array:
        return reorder(a.T, KERAS_GATES[cell], GATES[cell])

    b_ih = b_hh = None
    if bias is not None and bias.ndim == 2:
        b_ih, b_hh = (reorder(b, KERAS_GATES[cell], GATES[cell]) for b in bias)
    elif bias is not None:
        b_ih = reorder(bias, KERAS_GATES[cell], GATES[cell])
    return turned(kernel), turned(recurrent_kernel), b_ih, b_hh


def to_keras(cell: str, layer: Layer, *, reset_after: bool = True) -> tuple[Array, Array, Array | None]:
    """A layer's weights as Keras 3's kernel (I, G * H), recurrent_kernel (H, G * H) and bias, or None without biases.

    Keras has one bias where this library and torch have two: it is their sum, except for a GRU with `reset_after`,
    whose bias is (2, 3 * H) there too.
    """

    def turned(a: Array) -> Array:
        return np.ascontiguousarray(reorder(a, GATES[cell], KERAS_GATES[cell]).T)

    w_ih, w_hh, b_ih, b_hh = layer
    bias = None
    if b_ih is not None or b_hh is not None:
        zero = np.zeros(w_ih.shape[0], w_ih.dtype)
        first, second = (reorder(zero if b is None else b, GATES[cell], KERAS_GATES[cell]) for b in (b_ih, b_hh))
        bias = np.stack([first, second]) if cell == "gru" and reset_after else first + second
    return turned(w_ih), turned(w_hh), bias

"""What the Triton kernels of the recurrent layers share: the rows of a tile, products of a step, the cells' arithmetic.

Names that all kernels use:

    T, B, H, P, D    steps, rows, units, size of the hidden state, directions
    d, t             direction and step of x
    KIND             plan_gpu.kind_of; GATES of it: the recurrent product's that are taken at once
    rows, ends       places of a tile's rows in the batch (int64), and their lengths, 0 for a row that is not there
    n                units of a tile; inside a kernel all gates have the same ones
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.activation.activation_triton import sigmoid, tanh


@triton.jit
def rows_of_tile(order, lengths, first, B, T, HAS_LENGTHS: tl.constexpr, ROWS: tl.constexpr):
    """(rows, which exist, ends) of the tile that begins at `first`; order (B,): the rows by falling length."""
    i = first + tl.arange(0, ROWS)
    here = i < B
    if HAS_LENGTHS:
        rows = tl.load(order + i, mask=here, other=0).to(tl.int64)
        # Lengths are checked before, but not while a CUDA graph is captured.
        ends = tl.minimum(tl.maximum(tl.load(lengths + rows, mask=here, other=0), 0), T).to(tl.int32)
    else:
        rows = i.to(tl.int64)
        ends = tl.where(here, T, 0)
    return rows, here, ends


@triton.jit
def last_step(d, ends):
    """The step with which a direction ends."""
    return tl.where(d == 0, ends - 1, 0)


@triton.jit
def products(
    left, row_places, exists, right, n, width, K, right_n, right_k, right_gate,
    GATES: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, INNER: tl.constexpr, PRECISION: tl.constexpr,
    COMPUTED: tl.constexpr,
):  # fmt: skip
    """(ROWS, UNITS) for each of up to four gates g: the sums over k < K of left[row, k] * right[g, n, k].

    Elements of left lie at row_places + k, those of right at g * right_gate + n * right_n + k * right_k.
    """
    first = tl.zeros((ROWS, UNITS), COMPUTED)
    second = first
    third = first
    fourth = first
    lane = tl.arange(0, INNER)
    for start in range(0, K, INNER):
        k = start + lane
        a = tl.load(left + row_places[:, None] + k[None, :], mask=exists[:, None] & (k < K)[None, :], other=0.0)
        place = right + n[None, :] * right_n + k[:, None] * right_k
        inside = (n < width)[None, :] & (k < K)[:, None]
        b = tl.load(place, mask=inside, other=0.0)
        first = tl.dot(a, b, first, input_precision=PRECISION, out_dtype=COMPUTED)
        if GATES >= 2:
            b = tl.load(place + right_gate, mask=inside, other=0.0)
            second = tl.dot(a, b, second, input_precision=PRECISION, out_dtype=COMPUTED)
        if GATES >= 3:
            b = tl.load(place + 2 * right_gate, mask=inside, other=0.0)
            third = tl.dot(a, b, third, input_precision=PRECISION, out_dtype=COMPUTED)
        if GATES >= 4:
            b = tl.load(place + 3 * right_gate, mask=inside, other=0.0)
            fourth = tl.dot(a, b, fourth, input_precision=PRECISION, out_dtype=COMPUTED)
    return first, second, third, fourth


@triton.jit
def load_gates(pointer, places, mask, H, GATES: tl.constexpr, COMPUTED: tl.constexpr):
    """Four tensors: what stands at the places of each of the gates, H apart; 0 where masked and for gates not there."""
    first = tl.load(pointer + places, mask=mask, other=0.0).to(COMPUTED)
    second = first
    third = first
    fourth = first
    if GATES >= 2:
        second = tl.load(pointer + places + H, mask=mask, other=0.0).to(COMPUTED)
    if GATES >= 3:
        third = tl.load(pointer + places + 2 * H, mask=mask, other=0.0).to(COMPUTED)
    if GATES >= 4:
        fourth = tl.load(pointer + places + 3 * H, mask=mask, other=0.0).to(COMPUTED)
    return first, second, third, fourth


@triton.jit
def store_gates(pointer, places, mask, H, first, second, third, fourth, GATES: tl.constexpr):
    """The same places written."""
    tl.store(pointer + places, first.to(pointer.dtype.element_ty), mask=mask)
    if GATES >= 2:
        tl.store(pointer + places + H, second.to(pointer.dtype.element_ty), mask=mask)
    if GATES >= 3:
        tl.store(pointer + places + 2 * H, third.to(pointer.dtype.element_ty), mask=mask)
    if GATES >= 4:
        tl.store(pointer + places + 3 * H, fourth.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def store_hidden(
    value, t, last, ends, rows, d, n, P, D, full, final, h_n, f_t, f_b, B,
    HAS_FULL: tl.constexpr, HAS_FINAL: tl.constexpr,
):  # fmt: skip
    """The hidden state of step t, units n, where rows have that step: in the sequence, the last output, and h_n."""
    active = (t < ends)[:, None] & (n < P)[None, :]
    column = d * P + n
    if HAS_FULL:
        places = t.to(tl.int64) * f_t + rows * f_b
        tl.store(full + places[:, None] + column[None, :], value.to(full.dtype.element_ty), mask=active)
    if HAS_FINAL:
        at_end = active & (t == ends - 1)[:, None]
        tl.store(final + (rows * (D * P))[:, None] + column[None, :], value.to(final.dtype.element_ty), mask=at_end)
    places = (d.to(tl.int64) * B + rows) * P
    ending = active & (t == last)[:, None]
    tl.store(h_n + places[:, None] + n[None, :], value.to(h_n.dtype.element_ty), mask=ending)


# ----- cells -------------------------------------------------------------------------------------------------------


@triton.jit
def rnn_cell(total, KIND: tl.constexpr):
    """act(total); a NaN passes relu."""
    if KIND == "rnn_relu":
        return tl.where(total < 0, 0.0, total)
    else:
        return tanh(total)


@triton.jit
def lstm_cell(i, f, g, o, c):
    """(i, f, g, o, new cell, new state before a projection) from the gates' sums and the cell before."""
    i = sigmoid(i)
    f = sigmoid(f)
    g = tanh(g)
    o = sigmoid(o)
    c = f * c + i * g
    return i, f, g, o, c, o * tanh(c)


@triton.jit
def rnn_gradient(dh, h, KIND: tl.constexpr):
    """Gradient of the sum from that of the state and the state; relu passes nothing on where it is 0."""
    if KIND == "rnn_relu":
        return tl.where(h <= 0, 0.0, dh)
    else:
        return dh * (1.0 - h * h)


@triton.jit
def lstm_gradients(dh, dc, i, f, g, o, c, c_before):
    """Gradients of the sums of i, f, g, o, and of the cell before."""
    tanh_c = tanh(c)
    dc = dc + dh * o * (1.0 - tanh_c * tanh_c)
    return (
        dc * g * i * (1.0 - i), dc * c_before * f * (1.0 - f), dc * i * (1.0 - g * g), dh * tanh_c * o * (1.0 - o),
        dc * f,
    )  # fmt: skip


@triton.jit
def gru_gradients(dh, z, n, h):
    """Gradients of the sums of z and, before r, of n."""
    return dh * (h - n) * z * (1.0 - z), dh * (1.0 - z) * (1.0 - n * n)

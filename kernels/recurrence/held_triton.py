"""Whole sequences of small recurrent layers in Triton, with weights and states on chip; names: cells_triton.py.

The weights of all gates are loaded once, and the states of a tile of rows are tensors that a loop over the steps
carries: what of it lies in registers and what in shared memory, and the barriers between, are the compiler's business,
so that no value goes from one step to the next through global memory. WIDTH: a power of two that holds H.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.activation.activation_triton import sigmoid, tanh
from kernels.recurrence.backward_triton import cell_before, flows_in
from kernels.recurrence.cells_triton import (
    gru_gradients,
    last_step,
    load_gates,
    lstm_cell,
    lstm_gradients,
    rnn_cell,
    rnn_gradient,
    rows_of_tile,
    store_gates,
    store_hidden,
)


@triton.jit
def _weights(w, d, n, H, GATES: tl.constexpr, BACK: tl.constexpr):
    """(WIDTH, WIDTH) for each gate g, 0 outside: w[g, n, k] at (k, n), BACK at (n, k); w (D, GATES * H, H)."""
    w += d.to(tl.int64) * GATES * H * H
    inside = (n < H)[None, :] & (n < H)[:, None]
    if BACK:
        places = n[:, None] * H + n[None, :]
    else:
        places = n[None, :] * H + n[:, None]
    first = tl.load(w + places, mask=inside, other=0.0)
    second = first
    third = first
    fourth = first
    if GATES >= 2:
        second = tl.load(w + H * H + places, mask=inside, other=0.0)
    if GATES >= 3:
        third = tl.load(w + 2 * H * H + places, mask=inside, other=0.0)
    if GATES >= 4:
        fourth = tl.load(w + 3 * H * H + places, mask=inside, other=0.0)
    return first, second, third, fourth


@triton.jit
def held_forward(
    a, w, b_new, order, lengths, h0, c0, full, final, h_n, c_n, kept, cells, T, B, H, D, a_d, a_t, a_b, f_t, f_b,
    KIND: tl.constexpr, HAS_LENGTHS: tl.constexpr, HAS_B_NEW: tl.constexpr, HAS_H0: tl.constexpr,
    HAS_C0: tl.constexpr, HAS_FULL: tl.constexpr, HAS_FINAL: tl.constexpr, KEEPS: tl.constexpr, ROWS: tl.constexpr,
    WIDTH: tl.constexpr, PRECISION: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """All steps of a tile of rows in one direction. Programs: tiles of rows of each direction."""
    gates: tl.constexpr = 4 if KIND == "lstm" else (1 if KIND == "rnn_tanh" or KIND == "rnn_relu" else 3)
    tiles = tl.cdiv(B, ROWS)
    d = tl.program_id(0) // tiles
    rows, here, ends = rows_of_tile(order, lengths, tl.program_id(0) % tiles * ROWS, B, T, HAS_LENGTHS, ROWS)
    longest = tl.max(ends, 0)
    last = last_step(d, ends)
    n = tl.arange(0, WIDTH)
    w_1, w_2, w_3, w_4 = _weights(w, d, n, H, gates, False)
    exists = here[:, None] & (n < H)[None, :]
    of_units = ((d.to(tl.int64) * B + rows) * H)[:, None] + n[None, :]
    h = tl.zeros((ROWS, WIDTH), COMPUTED)
    c = h
    if HAS_H0:
        h = tl.load(h0 + of_units, mask=exists, other=0.0).to(COMPUTED)
    if HAS_C0:
        c = tl.load(c0 + of_units, mask=exists, other=0.0).to(COMPUTED)
    bias = tl.zeros((WIDTH,), COMPUTED)
    if HAS_B_NEW:
        bias = tl.load(b_new + d * H + n, mask=n < H, other=0.0).to(COMPUTED)
    # The input's sums of a step are on their way while the step before it is computed.
    t = tl.where(d == 0, 0, longest - 1)
    of_row = d.to(tl.int64) * a_d + rows * a_b
    places = (of_row + t.to(tl.int64) * a_t)[:, None] + n[None, :]
    a_1, a_2, a_3, a_4 = load_gates(a, places, exists & (t < ends)[:, None], H, gates, a.dtype.element_ty)
    for s in range(0, longest):
        t = tl.where(d == 0, s, longest - 1 - s)
        x_1, x_2, x_3, x_4 = a_1.to(COMPUTED), a_2.to(COMPUTED), a_3.to(COMPUTED), a_4.to(COMPUTED)
        following = tl.where(d == 0, s + 1, longest - 2 - s) + tl.zeros_like(ends)
        wanted = exists & ((following >= 0) & (following < ends))[:, None]
        places = (of_row + following.to(tl.int64) * a_t)[:, None] + n[None, :]
        a_1, a_2, a_3, a_4 = load_gates(a, places, wanted, H, gates, a.dtype.element_ty)
        active = exists & (t < ends)[:, None]
        kept_row = (d.to(tl.int64) * T + t) * B + rows
        state = h.to(w.dtype.element_ty)
        x_1 = tl.dot(state, w_1, x_1, input_precision=PRECISION, out_dtype=COMPUTED)
        if KIND == "lstm":
            x_2 = tl.dot(state, w_2, x_2, input_precision=PRECISION, out_dtype=COMPUTED)
            x_3 = tl.dot(state, w_3, x_3, input_precision=PRECISION, out_dtype=COMPUTED)
            x_4 = tl.dot(state, w_4, x_4, input_precision=PRECISION, out_dtype=COMPUTED)
            i, f, g, o, new_c, new_h = lstm_cell(x_1, x_2, x_3, x_4, c)
            if KEEPS:
                store_gates(kept, (kept_row * (4 * H))[:, None] + n[None, :], active, H, i, f, g, o, 4)
                tl.store(cells + (kept_row * H)[:, None] + n[None, :], new_c.to(cells.dtype.element_ty), mask=active)
            tl.store(c_n + of_units, new_c.to(c_n.dtype.element_ty), mask=active & (t == last)[:, None])
            c = tl.where(active, new_c, c)
        elif gates == 3:
            x_2 = tl.dot(state, w_2, x_2, input_precision=PRECISION, out_dtype=COMPUTED)
            r = sigmoid(x_1)
            z = sigmoid(x_2)
            if KIND == "gru_before":
                reset = (r * h).to(w.dtype.element_ty)
                new = tanh(tl.dot(reset, w_3, x_3, input_precision=PRECISION, out_dtype=COMPUTED))
                if KEEPS:
                    store_gates(kept, (kept_row * (3 * H))[:, None] + n[None, :], active, H, r, z, new, new, 3)
            else:
                q = tl.dot(state, w_3, input_precision=PRECISION, out_dtype=COMPUTED) + bias[None, :]
                new = tanh(x_3 + r * q)
                if KEEPS:
                    store_gates(kept, (kept_row * (4 * H))[:, None] + n[None, :], active, H, r, z, new, q, 4)
            new_h = (1.0 - z) * new + z * h
        else:
            new_h = rnn_cell(x_1, KIND)
        h = tl.where(active, new_h, h)
        store_hidden(new_h, t, last, ends, rows, d, n, H, D, full, final, h_n, f_t, f_b, B, HAS_FULL, HAS_FINAL)


@triton.jit
def held_backward(
    grad, w, order, lengths, grad_h, grad_c, sums, before, full, kept, cells, c0, grad_h0, grad_c0,
    T, B, H, D, g_t, g_b, g_c, s_d, s_t, s_b, p_d, p_t, p_b, f_t, f_b,
    KIND: tl.constexpr, HAS_GRAD: tl.constexpr, LAST: tl.constexpr, HAS_C0: tl.constexpr, HAS_GRAD_H: tl.constexpr,
    HAS_GRAD_C: tl.constexpr, HAS_LENGTHS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    PRECISION: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """All steps backward; grad_h, grad_c (D, B, H): of the final states. Programs: tiles of rows of each direction."""
    gates: tl.constexpr = 4 if KIND == "lstm" else (1 if KIND == "rnn_tanh" or KIND == "rnn_relu" else 3)
    tiles = tl.cdiv(B, ROWS)
    d = tl.program_id(0) // tiles
    rows, here, ends = rows_of_tile(order, lengths, tl.program_id(0) % tiles * ROWS, B, T, HAS_LENGTHS, ROWS)
    longest = tl.max(ends, 0)
    n = tl.arange(0, WIDTH)
    w_1, w_2, w_3, w_4 = _weights(w, d, n, H, gates, True)
    exists = here[:, None] & (n < H)[None, :]
    of_units = ((d.to(tl.int64) * B + rows) * H)[:, None] + n[None, :]
    dh = tl.zeros((ROWS, WIDTH), COMPUTED)
    dc = dh
    if HAS_GRAD_H:
        dh = tl.load(grad_h + of_units, mask=exists, other=0.0).to(COMPUTED)
    if HAS_GRAD_C:
        dc = tl.load(grad_c + of_units, mask=exists, other=0.0).to(COMPUTED)
    for s in range(0, longest):
        t = tl.where(d == 0, longest - 1 - s, s)
        active = exists & (t < ends)[:, None]
        kept_row = (d.to(tl.int64) * T + t) * B + rows
        to = (d.to(tl.int64) * s_d + t.to(tl.int64) * s_t + rows * s_b)[:, None] + n[None, :]
        total = dh + flows_in(grad, t, ends, rows, d, n, active, H, g_t, g_b, g_c, HAS_GRAD, LAST, COMPUTED)
        if KIND == "lstm":
            i, f, g, o = load_gates(kept, (kept_row * (4 * H))[:, None] + n[None, :], active, H, 4, COMPUTED)
            c = tl.load(cells + (kept_row * H)[:, None] + n[None, :], mask=active, other=0.0).to(COMPUTED)
            c_before = cell_before(cells, c0, t, d, ends, rows, n, active, T, B, H, HAS_C0, COMPUTED)
            d_1, d_2, d_3, d_4, new_dc = lstm_gradients(total, dc, i, f, g, o, c, c_before)
            store_gates(sums, to, active, H, d_1, d_2, d_3, d_4, 4)
            new_dh = tl.dot(d_1.to(w.dtype.element_ty), w_1, input_precision=PRECISION, out_dtype=COMPUTED)
            new_dh = tl.dot(d_2.to(w.dtype.element_ty), w_2, new_dh, input_precision=PRECISION, out_dtype=COMPUTED)
            new_dh = tl.dot(d_3.to(w.dtype.element_ty), w_3, new_dh, input_precision=PRECISION, out_dtype=COMPUTED)
            new_dh = tl.dot(d_4.to(w.dtype.element_ty), w_4, new_dh, input_precision=PRECISION, out_dtype=COMPUTED)
            dc = tl.where(active, new_dc, dc)
        elif gates == 3:
            places = (d.to(tl.int64) * p_d + t.to(tl.int64) * p_t + rows * p_b)[:, None] + n[None, :]
            h = tl.load(before + places, mask=active, other=0.0).to(COMPUTED)
            blocks: tl.constexpr = 4 if KIND == "gru_after" else 3
            r, z, new, q = load_gates(
                kept, (kept_row * (blocks * H))[:, None] + n[None, :], active, H, blocks, COMPUTED
            )  # fmt: skip
            d_z, d_n = gru_gradients(total, z, new, h)
            new_dh = total * z
            if KIND == "gru_after":
                d_q = d_n * r
                d_r = d_n * q * r * (1.0 - r)
                store_gates(sums, to, active, H, d_n, d_r, d_z, d_q, 4)
                new_dh = tl.dot(d_q.to(w.dtype.element_ty), w_3, new_dh, input_precision=PRECISION, out_dtype=COMPUTED)
            else:
                d_reset = tl.dot(d_n.to(w.dtype.element_ty), w_3, input_precision=PRECISION, out_dtype=COMPUTED)
                d_r = d_reset * h * r * (1.0 - r)
                new_dh += d_reset * r
                store_gates(sums, to, active, H, d_r, d_z, d_n, d_n, 3)
            new_dh = tl.dot(d_r.to(w.dtype.element_ty), w_1, new_dh, input_precision=PRECISION, out_dtype=COMPUTED)
            new_dh = tl.dot(d_z.to(w.dtype.element_ty), w_2, new_dh, input_precision=PRECISION, out_dtype=COMPUTED)
        else:
            places = (t.to(tl.int64) * f_t + rows * f_b)[:, None] + (d * H + n)[None, :]
            h = tl.load(full + places, mask=active, other=0.0).to(COMPUTED)
            d_1 = rnn_gradient(total, h, KIND)
            tl.store(sums + to, d_1.to(sums.dtype.element_ty), mask=active)
            new_dh = tl.dot(d_1.to(w.dtype.element_ty), w_1, input_precision=PRECISION, out_dtype=COMPUTED)
        dh = tl.where(active, new_dh, dh)
    # Rows that ended earlier, or began later, have kept what they had.
    tl.store(grad_h0 + of_units, dh.to(grad_h0.dtype.element_ty), mask=exists)
    if KIND == "lstm":
        tl.store(grad_c0 + of_units, dc.to(grad_c0.dtype.element_ty), mask=exists)

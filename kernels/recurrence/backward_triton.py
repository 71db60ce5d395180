"""The backward steps of a recurrent layer in Triton; names: cells_triton.py, barriers: forward_triton.py.

A step makes the gradients of its gates' sums, which stay for the weights' products after the last step, and from them
the gradient of the state before: two products more where forward has two. Between two barriers nothing is loaded and
stored at one place, so dc is kept twice, and what goes past the gates has a place of its own.

    grad      gradient of the output, element (t, row, column) at t * g_t + row * g_b + column * g_c; LAST: of the last
              step's output alone
    dh        (D, B, P) gradient of the state after the step; dc (2, D, B, H) of the cell
    past      (D, B, P): what of dh goes on without a product: through a GRU's z, or past a row without the step
    arrived   (D, ...) all that flows into a projected state, [t, row] at t * r_t + row * r_b
    sums      (D, ...) gradients of the sums, [t, row] at d * s_d + t * s_t + row * s_b, blocks as plan_gpu has them
    before    (D, ...) the state before each step, [t, row] at d * p_d + t * p_t + row * p_b
    full      hidden states, as forward has them; kept, cells, w, w_second likewise
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.recurrence.cells_triton import (
    gru_gradients,
    load_gates,
    lstm_gradients,
    products,
    rnn_gradient,
    rows_of_tile,
    store_gates,
)


@triton.jit
def first_step(d, ends):
    """The step with which a direction begins."""
    return tl.where(d == 0, 0, ends - 1)


@triton.jit
def flows_in(
    grad, t, ends, rows, d, n, active, P, g_t, g_b, g_c, HAS_GRAD: tl.constexpr, LAST: tl.constexpr,
    COMPUTED: tl.constexpr,
):  # fmt: skip
    """What flows from the output into the hidden state of step t, units n; 0 where not active."""
    if HAS_GRAD:
        if LAST:
            active = active & (t == ends - 1)[:, None]
        places = (t.to(tl.int64) * g_t + rows * g_b)[:, None] + ((d * P + n).to(tl.int64) * g_c)[None, :]
        return tl.load(grad + places, mask=active, other=0.0).to(COMPUTED)
    else:
        return tl.zeros(active.shape, COMPUTED)


@triton.jit
def cell_before(
    cells, c0, t, d, ends, rows, n, active, T, B, H, HAS_C0: tl.constexpr, COMPUTED: tl.constexpr
):  # fmt: skip
    """The LSTM's cell that step t began with."""
    previous = tl.where(d == 0, t - 1, t + 1) + tl.zeros_like(ends)
    inside = (previous >= 0) & (previous < ends)
    begins = (previous < 0) | (previous >= ends)
    places = (((d.to(tl.int64) * T + previous) * B + rows) * H)[:, None] + n[None, :]
    found = tl.load(cells + places, mask=active & inside[:, None], other=0.0).to(COMPUTED)
    if HAS_C0:
        places = ((d.to(tl.int64) * B + rows) * H)[:, None] + n[None, :]
        found += tl.load(c0 + places, mask=active & begins[:, None], other=0.0).to(COMPUTED)
    return found


@triton.jit
def _arrive(
    grad, dh, past, arrived, t, d, rows, here, ends, first, B, P, g_t, g_b, g_c, r_d, r_t, r_b,
    HAS_GRAD: tl.constexpr, LAST: tl.constexpr, HAS_LENGTHS: tl.constexpr, UNITS: tl.constexpr,
    COMPUTED: tl.constexpr,
):  # fmt: skip
    """All that flows into a projected hidden state."""
    n = first + tl.arange(0, UNITS)
    exists = here[:, None] & (n < P)[None, :]
    active = (t < ends)[:, None] & (n < P)[None, :]
    of_state = ((d.to(tl.int64) * B + rows) * P)[:, None] + n[None, :]
    old = tl.load(dh + of_state, mask=exists, other=0.0)
    total = old + flows_in(grad, t, ends, rows, d, n, active, P, g_t, g_b, g_c, HAS_GRAD, LAST, COMPUTED)
    places = (d.to(tl.int64) * r_d + t.to(tl.int64) * r_t + rows * r_b)[:, None] + n[None, :]
    tl.store(arrived + places, total.to(arrived.dtype.element_ty), mask=active)
    if HAS_LENGTHS:
        tl.store(past + of_state, tl.where(active, 0.0, old), mask=exists)


@triton.jit
def _gate_gradients(
    grad, w_second, dh, dc, past, arrived, sums, before, full, kept, cells, c0, grad_c0,
    s, t, d, rows, here, ends, first, T, B, H, P, D, g_t, g_b, g_c, r_d, r_t, r_b, s_d, s_t, s_b, p_d, p_t, p_b, f_t,
    f_b,
    KIND: tl.constexpr, PROJECTS: tl.constexpr, HAS_GRAD: tl.constexpr, LAST: tl.constexpr, HAS_C0: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, INNER: tl.constexpr, PRECISION: tl.constexpr,
    COMPUTED: tl.constexpr,
):  # fmt: skip
    """Gradients of the gates' sums, units `first` on; those of r later where it multiplies before the product."""
    n = first + tl.arange(0, UNITS)
    exists = here[:, None] & (n < H)[None, :]
    active = (t < ends)[:, None] & (n < H)[None, :]
    row = d.to(tl.int64) * B + rows
    of_units = (row * H)[:, None] + n[None, :]
    kept_row = (d.to(tl.int64) * T + t) * B + rows
    to = (d.to(tl.int64) * s_d + t.to(tl.int64) * s_t + rows * s_b)[:, None] + n[None, :]
    # Where nothing projects, H is P.
    if PROJECTS:
        left = d.to(tl.int64) * r_d + t.to(tl.int64) * r_t + rows * r_b
        total, _, _, _ = products(
            arrived, left, t < ends, w_second + d.to(tl.int64) * P * H, n, H, P, 1, H, 0,
            1, ROWS, UNITS, INNER, PRECISION, COMPUTED,
        )  # fmt: skip
        old = total
    else:
        old = tl.load(dh + of_units, mask=exists, other=0.0)
        total = old + flows_in(grad, t, ends, rows, d, n, active, P, g_t, g_b, g_c, HAS_GRAD, LAST, COMPUTED)
    passing = tl.zeros((ROWS, UNITS), COMPUTED)
    if KIND == "lstm":
        i, f, g, o = load_gates(kept, (kept_row * (4 * H))[:, None] + n[None, :], active, H, 4, COMPUTED)
        c = tl.load(cells + (kept_row * H)[:, None] + n[None, :], mask=active, other=0.0).to(COMPUTED)
        c_before = cell_before(cells, c0, t, d, ends, rows, n, active, T, B, H, HAS_C0, COMPUTED)
        half = tl.cast(D, tl.int64) * B * H
        old_dc = tl.load(dc + (s % 2) * half + of_units, mask=exists, other=0.0)
        d_i, d_f, d_g, d_o, new_dc = lstm_gradients(total, old_dc, i, f, g, o, c, c_before)
        store_gates(sums, to, active, H, d_i, d_f, d_g, d_o, 4)
        following = new_dc
        if HAS_LENGTHS:
            following = tl.where(active, new_dc, old_dc)
        tl.store(dc + (1 - s % 2) * half + of_units, following, mask=exists)
        beginning = active & (t == first_step(d, ends))[:, None]
        tl.store(grad_c0 + of_units, new_dc.to(grad_c0.dtype.element_ty), mask=beginning)
    elif KIND == "rnn_tanh" or KIND == "rnn_relu":
        places = (t.to(tl.int64) * f_t + rows * f_b)[:, None] + (d * P + n)[None, :]
        h = tl.load(full + places, mask=active, other=0.0).to(COMPUTED)
        tl.store(sums + to, rnn_gradient(total, h, KIND).to(sums.dtype.element_ty), mask=active)
    else:
        places = (d.to(tl.int64) * p_d + t.to(tl.int64) * p_t + rows * p_b)[:, None] + n[None, :]
        h = tl.load(before + places, mask=active, other=0.0).to(COMPUTED)
        blocks: tl.constexpr = 4 if KIND == "gru_after" else 3
        r, z, new, q = load_gates(
            kept, (kept_row * (blocks * H))[:, None] + n[None, :], active, H, blocks, COMPUTED
        )  # fmt: skip
        d_z, d_n = gru_gradients(total, z, new, h)
        if KIND == "gru_after":
            store_gates(sums, to, active, H, d_n, d_n * q * r * (1.0 - r), d_z, d_n * r, 4)
            passing = total * z
        else:
            store_gates(sums, to + H, active, H, d_z, d_n, d_n, d_n, 2)
    if not PROJECTS and (KIND == "gru_after" or (HAS_LENGTHS and KIND != "gru_before")):
        tl.store(past + of_units, tl.where(active, passing, old), mask=exists)


@triton.jit
def _reset_gradients(
    grad, w, dh, past, sums, before, kept, t, d, rows, here, ends, first,
    T, B, H, P, g_t, g_b, g_c, s_d, s_t, s_b, p_d, p_t, p_b,
    HAS_GRAD: tl.constexpr, LAST: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, INNER: tl.constexpr,
    PRECISION: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """The gradient of the sum of r where it multiplies before the product, and what passes by the gates."""
    n = first + tl.arange(0, UNITS)
    exists = here[:, None] & (n < H)[None, :]
    active = (t < ends)[:, None] & (n < H)[None, :]
    of_units = ((d.to(tl.int64) * B + rows) * H)[:, None] + n[None, :]
    kept_row = (d.to(tl.int64) * T + t) * B + rows
    of_step = d.to(tl.int64) * s_d + t.to(tl.int64) * s_t + rows * s_b
    d_reset, _, _, _ = products(
        sums, of_step + 2 * H, t < ends, w + (d.to(tl.int64) * 3 + 2) * H * H, n, H, H, 1, H, 0,
        1, ROWS, UNITS, INNER, PRECISION, COMPUTED,
    )  # fmt: skip
    r, z, _, _ = load_gates(kept, (kept_row * (3 * H))[:, None] + n[None, :], active, H, 2, COMPUTED)
    places = (d.to(tl.int64) * p_d + t.to(tl.int64) * p_t + rows * p_b)[:, None] + n[None, :]
    h = tl.load(before + places, mask=active, other=0.0).to(COMPUTED)
    tl.store(
        sums + of_step[:, None] + n[None, :], (d_reset * h * r * (1.0 - r)).to(sums.dtype.element_ty), mask=active
    )
    old = tl.load(dh + of_units, mask=exists, other=0.0)
    total = old + flows_in(grad, t, ends, rows, d, n, active, P, g_t, g_b, g_c, HAS_GRAD, LAST, COMPUTED)
    tl.store(past + of_units, tl.where(active, total * z + d_reset * r, old), mask=exists)


@triton.jit
def _state_gradient(
    w, dh, past, sums, grad_h0, t, d, rows, here, ends, first, B, H, P, s_d, s_t, s_b,
    KIND: tl.constexpr, HAS_LENGTHS: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, INNER: tl.constexpr,
    PRECISION: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """The gradient of the state before the step."""
    gates: tl.constexpr = 4 if KIND == "lstm" else (1 if KIND == "rnn_tanh" or KIND == "rnn_relu" else 3)
    taken: tl.constexpr = 2 if KIND == "gru_before" else gates
    skipped: tl.constexpr = 1 if KIND == "gru_after" else 0
    n = first + tl.arange(0, UNITS)
    exists = here[:, None] & (n < P)[None, :]
    of_state = ((d.to(tl.int64) * B + rows) * P)[:, None] + n[None, :]
    left = d.to(tl.int64) * s_d + t.to(tl.int64) * s_t + rows * s_b + skipped * H
    total, _, _, _ = products(
        sums, left, t < ends, w + d.to(tl.int64) * gates * H * P, n, P, taken * H, 1, P, 0,
        1, ROWS, UNITS, INNER, PRECISION, COMPUTED,
    )  # fmt: skip
    if HAS_LENGTHS or KIND == "gru_after" or KIND == "gru_before":
        total += tl.load(past + of_state, mask=exists, other=0.0)
    tl.store(dh + of_state, total, mask=exists)
    beginning = (t == first_step(d, ends))[:, None] & (t < ends)[:, None] & (n < P)[None, :]
    tl.store(grad_h0 + of_state, total.to(grad_h0.dtype.element_ty), mask=beginning)


@triton.jit
def backward_sequence(
    grad, w, w_second, order, lengths, dh, dc, past, arrived, sums, before, full, kept, cells, c0, grad_h0, grad_c0,
    T, B, H, P, D, g_t, g_b, g_c, r_d, r_t, r_b, s_d, s_t, s_b, p_d, p_t, p_b, f_t, f_b,
    KIND: tl.constexpr, PROJECTS: tl.constexpr, HAS_GRAD: tl.constexpr, LAST: tl.constexpr, HAS_C0: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, INNER: tl.constexpr, PRECISION: tl.constexpr,
    COMPUTED: tl.constexpr,
):  # fmt: skip
    """All steps of a tile of rows in one direction. Programs: tiles of rows of each direction."""
    tiles = tl.cdiv(B, ROWS)
    d = tl.program_id(0) // tiles
    rows, here, ends = rows_of_tile(order, lengths, tl.program_id(0) % tiles * ROWS, B, T, HAS_LENGTHS, ROWS)
    longest = tl.max(ends, 0)
    for s in range(0, longest):
        t = tl.where(d == 0, longest - 1 - s, s)
        if PROJECTS:
            for first in range(0, P, UNITS):
                _arrive(
                    grad, dh, past, arrived, t, d, rows, here, ends, first, B, P, g_t, g_b, g_c, r_d, r_t, r_b,
                    HAS_GRAD, LAST, HAS_LENGTHS, UNITS, COMPUTED,
                )  # fmt: skip
            tl.debug_barrier()
        for first in range(0, H, UNITS):
            _gate_gradients(
                grad, w_second, dh, dc, past, arrived, sums, before, full, kept, cells, c0, grad_c0, s, t, d, rows,
                here, ends, first, T, B, H, P, D, g_t, g_b, g_c, r_d, r_t, r_b, s_d, s_t, s_b, p_d, p_t, p_b, f_t, f_b,
                KIND, PROJECTS, HAS_GRAD, LAST, HAS_C0, HAS_LENGTHS, ROWS, UNITS, INNER, PRECISION, COMPUTED,
            )  # fmt: skip
        tl.debug_barrier()
        if KIND == "gru_before":
            for first in range(0, H, UNITS):
                _reset_gradients(
                    grad, w, dh, past, sums, before, kept, t, d, rows, here, ends, first, T, B, H, P, g_t, g_b, g_c,
                    s_d, s_t, s_b, p_d, p_t, p_b, HAS_GRAD, LAST, ROWS, UNITS, INNER, PRECISION, COMPUTED,
                )  # fmt: skip
            tl.debug_barrier()
        for first in range(0, P, UNITS):
            _state_gradient(
                w, dh, past, sums, grad_h0, t, d, rows, here, ends, first, B, H, P, s_d, s_t, s_b, KIND, HAS_LENGTHS,
                ROWS, UNITS, INNER, PRECISION, COMPUTED,
            )  # fmt: skip
        tl.debug_barrier()


@triton.jit(do_not_specialize=["s"])
def backward_step(
    grad, w, w_second, order, lengths, dh, dc, past, arrived, sums, before, full, kept, cells, c0, grad_h0, grad_c0,
    T, B, H, P, D, g_t, g_b, g_c, r_d, r_t, r_b, s_d, s_t, s_b, p_d, p_t, p_b, f_t, f_b, s,
    PART: tl.constexpr,
    KIND: tl.constexpr, PROJECTS: tl.constexpr, HAS_GRAD: tl.constexpr, LAST: tl.constexpr, HAS_C0: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, INNER: tl.constexpr, PRECISION: tl.constexpr,
    COMPUTED: tl.constexpr,
):  # fmt: skip
    """One part of the step that is the s-th backward, of every direction: "arrive", "gates", "reset" or "state".

    Programs: tiles of units, of tiles of rows, of each direction.
    """
    tiles = tl.cdiv(B, ROWS)
    columns = tl.cdiv(P if PART == "arrive" or PART == "state" else H, UNITS)
    first = tl.program_id(0) % columns * UNITS
    tile = tl.program_id(0) // columns
    d = tile // tiles
    rows, here, ends = rows_of_tile(order, lengths, tile % tiles * ROWS, B, T, HAS_LENGTHS, ROWS)
    t = tl.where(d == 0, T - 1 - s, s)
    if PART == "arrive":
        _arrive(
            grad, dh, past, arrived, t, d, rows, here, ends, first, B, P, g_t, g_b, g_c, r_d, r_t, r_b,
            HAS_GRAD, LAST, HAS_LENGTHS, UNITS, COMPUTED,
        )  # fmt: skip
    elif PART == "gates":
        _gate_gradients(
            grad, w_second, dh, dc, past, arrived, sums, before, full, kept, cells, c0, grad_c0, s, t, d, rows,
            here, ends, first, T, B, H, P, D, g_t, g_b, g_c, r_d, r_t, r_b, s_d, s_t, s_b, p_d, p_t, p_b, f_t, f_b,
            KIND, PROJECTS, HAS_GRAD, LAST, HAS_C0, HAS_LENGTHS, ROWS, UNITS, INNER, PRECISION, COMPUTED,
        )  # fmt: skip
    elif PART == "reset":
        _reset_gradients(
            grad, w, dh, past, sums, before, kept, t, d, rows, here, ends, first, T, B, H, P, g_t, g_b, g_c,
            s_d, s_t, s_b, p_d, p_t, p_b, HAS_GRAD, LAST, ROWS, UNITS, INNER, PRECISION, COMPUTED,
        )  # fmt: skip
    else:
        tl.static_assert(PART == "state")
        _state_gradient(
            w, dh, past, sums, grad_h0, t, d, rows, here, ends, first, B, H, P, s_d, s_t, s_b, KIND, HAS_LENGTHS,
            ROWS, UNITS, INNER, PRECISION, COMPUTED,
        )  # fmt: skip

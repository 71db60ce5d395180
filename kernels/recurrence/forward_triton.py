"""The forward steps of a recurrent layer in Triton, for weights that are read at every step; names: cells_triton.py.

What a step hands on to the next lies in global memory, in scratch that a launch alone uses: in one Triton program a
value that other threads shall read must either stay in a tensor, whose moves between threads the compiler makes safe,
or be stored, wait at a barrier of all threads, and be loaded. `tl.debug_barrier` is that barrier: bar.sync on NVIDIA,
which makes what a thread of the block wrote visible to all threads of the block that have passed it, in global memory
as in shared (PTX ISA, "bar"; CUDA C++ Programming Guide, "Synchronization Functions"), and s_barrier on AMD, where
the wavefronts of a workgroup share a first-level cache that takes their accesses in order (LLVM's AMDGPU memory
model, workgroup scope). Without it the compiler lets the next step's loads overtake the stores: it was seen to issue
asynchronous copies of the state before the barrier that it places for its own shared memory. Loads of the state must
not go through the read-only path (ld.global.nc) either; test_compiled.py looks for that.

States are kept twice: step s reads half s % 2 and writes the other one, so that tiles of units that are still to come
find the old state, and one barrier a product is enough. Nothing is loaded and stored at one place between two barriers:
where a tile is small, several threads load an element that one of them stores, and no order holds between them.

    a         (D, ...) the input's sums with biases, [t, row] at t * a_t + row * a_b, GATES * H side by side
    w         (D, gates * H, P), w_second (D, H, H) of the GRU's n or (D, P, H) of a projection
    b_new     (D, H), bias of the recurrent sum that r multiplies
    state     (2, D, B, P); cell (2, D, B, H); between (D, B, H), what a second product takes; update (D, B, H), z
    full      hidden states of every step, [t, row] at t * f_t + row * f_b, D * P side by side; final (B, D * P)
    kept      (D, T, B, KEPT * H) activated gates; cells (D, T, B, H)
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.activation.activation_triton import sigmoid, tanh
from kernels.recurrence.cells_triton import (
    last_step,
    load_gates,
    lstm_cell,
    products,
    rnn_cell,
    rows_of_tile,
    store_gates,
    store_hidden,
)


@triton.jit
def _hand_on(
    h, state, full, final, h_n, s, t, d, rows, here, ends, n, B, P, D, f_t, f_b,
    HAS_LENGTHS: tl.constexpr, HAS_FULL: tl.constexpr, HAS_FINAL: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """The new hidden state's units n to the next step and to the results; rows without this step keep the old one."""
    exists = here[:, None] & (n < P)[None, :]
    places = ((d.to(tl.int64) * B + rows) * P)[:, None] + n[None, :]
    half = tl.cast(D, tl.int64) * B * P
    following = h
    if HAS_LENGTHS:
        old = tl.load(state + (s % 2) * half + places, mask=exists, other=0.0).to(COMPUTED)
        following = tl.where((t < ends)[:, None], h, old)
    tl.store(state + (1 - s % 2) * half + places, following.to(state.dtype.element_ty), mask=exists)
    store_hidden(h, t, last_step(d, ends), ends, rows, d, n, P, D, full, final, h_n, f_t, f_b, B, HAS_FULL, HAS_FINAL)


@triton.jit
def _first_product(
    a, w, b_new, state, cell, between, update, full, final, h_n, c_n, kept, cells, s, t, d, rows, here, ends, first,
    T, B, H, P, D, a_d, a_t, a_b, f_t, f_b,
    KIND: tl.constexpr, PROJECTS: tl.constexpr, HAS_LENGTHS: tl.constexpr, HAS_B_NEW: tl.constexpr,
    HAS_FULL: tl.constexpr, HAS_FINAL: tl.constexpr, KEEPS: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
    INNER: tl.constexpr, PRECISION: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """The recurrent product of a step and its gates, units `first` on; the new states where no second one follows."""
    gates: tl.constexpr = 4 if KIND == "lstm" else (3 if KIND == "gru_after" else (2 if KIND == "gru_before" else 1))
    of_weights: tl.constexpr = 3 if KIND == "gru_before" else gates
    n = first + tl.arange(0, UNITS)
    exists = here[:, None] & (n < H)[None, :]
    active = (t < ends)[:, None] & (n < H)[None, :]
    row = d.to(tl.int64) * B + rows
    read = state + (s % 2) * (tl.cast(D, tl.int64) * B * P)
    sum_1, sum_2, sum_3, sum_4 = products(
        read, row * P, here, w + d.to(tl.int64) * of_weights * H * P, n, H, P, P, 1, H * P,
        gates, ROWS, UNITS, INNER, PRECISION, COMPUTED,
    )  # fmt: skip
    places = (d.to(tl.int64) * a_d + t.to(tl.int64) * a_t + rows * a_b)[:, None] + n[None, :]
    a_1, a_2, a_3, a_4 = load_gates(a, places, active, H, gates, COMPUTED)
    of_units = (row * H)[:, None] + n[None, :]
    kept_row = (d.to(tl.int64) * T + t) * B + rows
    if KIND == "lstm":
        half = tl.cast(D, tl.int64) * B * H
        old_cell = tl.load(cell + (s % 2) * half + of_units, mask=exists, other=0.0)
        i, f, g, o, c, h = lstm_cell(sum_1 + a_1, sum_2 + a_2, sum_3 + a_3, sum_4 + a_4, old_cell)
        following = c
        if HAS_LENGTHS:
            following = tl.where(active, c, old_cell)
        tl.store(cell + (1 - s % 2) * half + of_units, following, mask=exists)
        tl.store(c_n + of_units, c.to(c_n.dtype.element_ty), mask=active & (t == last_step(d, ends))[:, None])
        if KEEPS:
            store_gates(kept, (kept_row * (4 * H))[:, None] + n[None, :], active, H, i, f, g, o, 4)
            tl.store(cells + (kept_row * H)[:, None] + n[None, :], c.to(cells.dtype.element_ty), mask=active)
        if PROJECTS:
            tl.store(between + of_units, h.to(between.dtype.element_ty), mask=exists)
    elif KIND == "rnn_tanh" or KIND == "rnn_relu":
        h = rnn_cell(sum_1 + a_1, KIND)
    else:
        old = tl.load(read + of_units, mask=exists, other=0.0).to(COMPUTED)
        r = sigmoid(sum_1 + a_1)
        z = sigmoid(sum_2 + a_2)
        if KIND == "gru_before":
            tl.store(between + of_units, (r * old).to(between.dtype.element_ty), mask=exists)
            tl.store(update + of_units, z, mask=exists)
            if KEEPS:
                store_gates(kept, (kept_row * (3 * H))[:, None] + n[None, :], active, H, r, z, z, z, 2)
        else:
            if HAS_B_NEW:
                sum_3 += tl.load(b_new + d * H + n, mask=n < H, other=0.0).to(COMPUTED)[None, :]
            new = tanh(a_3 + r * sum_3)
            h = (1.0 - z) * new + z * old
            if KEEPS:
                store_gates(kept, (kept_row * (4 * H))[:, None] + n[None, :], active, H, r, z, new, sum_3, 4)
    if not PROJECTS and KIND != "gru_before":
        _hand_on(
            h, state, full, final, h_n, s, t, d, rows, here, ends, n, B, P, D, f_t, f_b,
            HAS_LENGTHS, HAS_FULL, HAS_FINAL, COMPUTED,
        )  # fmt: skip


@triton.jit
def _second_product(
    a, w, w_second, state, between, update, full, final, h_n, kept, s, t, d, rows, here, ends, first,
    T, B, H, P, D, a_d, a_t, a_b, f_t, f_b,
    KIND: tl.constexpr, HAS_LENGTHS: tl.constexpr, HAS_FULL: tl.constexpr, HAS_FINAL: tl.constexpr,
    KEEPS: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, INNER: tl.constexpr, PRECISION: tl.constexpr,
    COMPUTED: tl.constexpr,
):  # fmt: skip
    """The product that a step's first one leads to: of the reset state for a GRU's n, or an LSTM's projection."""
    n = first + tl.arange(0, UNITS)
    row = d.to(tl.int64) * B + rows
    if KIND == "gru_before":
        right = w + (d.to(tl.int64) * 3 + 2) * H * H
    else:
        right = w_second + d.to(tl.int64) * P * H
    h, _, _, _ = products(
        between, row * H, here, right, n, P, H, H, 1, 0, 1, ROWS, UNITS, INNER, PRECISION, COMPUTED
    )  # fmt: skip
    if KIND == "gru_before":
        exists = here[:, None] & (n < H)[None, :]
        active = (t < ends)[:, None] & (n < H)[None, :]
        of_units = (row * H)[:, None] + n[None, :]
        places = (d.to(tl.int64) * a_d + t.to(tl.int64) * a_t + rows * a_b)[:, None] + (2 * H + n)[None, :]
        new = tanh(h + tl.load(a + places, mask=active, other=0.0).to(COMPUTED))
        z = tl.load(update + of_units, mask=exists, other=0.0)
        old = tl.load(state + (s % 2) * (tl.cast(D, tl.int64) * B * H) + of_units, mask=exists, other=0.0).to(COMPUTED)
        h = (1.0 - z) * new + z * old
        if KEEPS:
            kept_row = (d.to(tl.int64) * T + t) * B + rows
            to = kept + (kept_row * (3 * H))[:, None] + (2 * H + n)[None, :]
            tl.store(to, new.to(kept.dtype.element_ty), mask=active)
    _hand_on(
        h, state, full, final, h_n, s, t, d, rows, here, ends, n, B, P, D, f_t, f_b,
        HAS_LENGTHS, HAS_FULL, HAS_FINAL, COMPUTED,
    )  # fmt: skip


@triton.jit
def forward_sequence(
    a, w, w_second, b_new, order, lengths, state, cell, between, update, full, final, h_n, c_n, kept, cells,
    T, B, H, P, D, a_d, a_t, a_b, f_t, f_b,
    KIND: tl.constexpr, PROJECTS: tl.constexpr, HAS_LENGTHS: tl.constexpr, HAS_B_NEW: tl.constexpr,
    HAS_FULL: tl.constexpr, HAS_FINAL: tl.constexpr, KEEPS: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
    INNER: tl.constexpr, PRECISION: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """All steps of a tile of rows in one direction. Programs: tiles of rows of each direction."""
    tiles = tl.cdiv(B, ROWS)
    d = tl.program_id(0) // tiles
    rows, here, ends = rows_of_tile(order, lengths, tl.program_id(0) % tiles * ROWS, B, T, HAS_LENGTHS, ROWS)
    longest = tl.max(ends, 0)
    for s in range(0, longest):
        t = tl.where(d == 0, s, longest - 1 - s)
        for first in range(0, H, UNITS):
            _first_product(
                a, w, b_new, state, cell, between, update, full, final, h_n, c_n, kept, cells, s, t, d, rows, here,
                ends, first, T, B, H, P, D, a_d, a_t, a_b, f_t, f_b, KIND, PROJECTS, HAS_LENGTHS, HAS_B_NEW, HAS_FULL,
                HAS_FINAL, KEEPS, ROWS, UNITS, INNER, PRECISION, COMPUTED,
            )  # fmt: skip
        tl.debug_barrier()
        if PROJECTS or KIND == "gru_before":
            for first in range(0, P, UNITS):
                _second_product(
                    a, w, w_second, state, between, update, full, final, h_n, kept, s, t, d, rows, here, ends, first,
                    T, B, H, P, D, a_d, a_t, a_b, f_t, f_b, KIND, HAS_LENGTHS, HAS_FULL, HAS_FINAL, KEEPS,
                    ROWS, UNITS, INNER, PRECISION, COMPUTED,
                )  # fmt: skip
            tl.debug_barrier()


@triton.jit(do_not_specialize=["s"])
def forward_step(
    a, w, w_second, b_new, order, lengths, state, cell, between, update, full, final, h_n, c_n, kept, cells,
    T, B, H, P, D, a_d, a_t, a_b, f_t, f_b, s,
    SECOND: tl.constexpr,
    KIND: tl.constexpr, PROJECTS: tl.constexpr, HAS_LENGTHS: tl.constexpr, HAS_B_NEW: tl.constexpr,
    HAS_FULL: tl.constexpr, HAS_FINAL: tl.constexpr, KEEPS: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
    INNER: tl.constexpr, PRECISION: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """One product of step s of every direction. Programs: tiles of units, of tiles of rows, of each direction."""
    tiles = tl.cdiv(B, ROWS)
    columns = tl.cdiv(P if SECOND else H, UNITS)
    first = tl.program_id(0) % columns * UNITS
    tile = tl.program_id(0) // columns
    d = tile // tiles
    rows, here, ends = rows_of_tile(order, lengths, tile % tiles * ROWS, B, T, HAS_LENGTHS, ROWS)
    t = tl.where(d == 0, s, T - 1 - s)
    if SECOND:
        _second_product(
            a, w, w_second, state, between, update, full, final, h_n, kept, s, t, d, rows, here, ends, first,
            T, B, H, P, D, a_d, a_t, a_b, f_t, f_b, KIND, HAS_LENGTHS, HAS_FULL, HAS_FINAL, KEEPS,
            ROWS, UNITS, INNER, PRECISION, COMPUTED,
        )  # fmt: skip
    else:
        _first_product(
            a, w, b_new, state, cell, between, update, full, final, h_n, c_n, kept, cells, s, t, d, rows, here,
            ends, first, T, B, H, P, D, a_d, a_t, a_b, f_t, f_b, KIND, PROJECTS, HAS_LENGTHS, HAS_B_NEW, HAS_FULL,
            HAS_FINAL, KEEPS, ROWS, UNITS, INNER, PRECISION, COMPUTED,
        )  # fmt: skip

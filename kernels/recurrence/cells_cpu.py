"""The cells on vectors: from the sums of a step's products to the new states, for a few rows.

In all of them x and s are pointers to the input's and the recurrent sums, elements [rows, stride], each gate `units`
wide, one beside the other; reading a whole vector past the last gate's end must be allowed, since the lanes of a unit
that is not there are computed and dropped. bias: pointer to [stride]. c, h: pointers to states, with room for whole
vectors. What backward needs goes to the rows `order[i]` of kept, elements [.., kept gates * units], and of cells,
elements [.., units], where `keeps` is not 0. first, last: the units that are computed, from a multiple of the lanes on.
"""

from __future__ import annotations

from kernels.runtime.numba_cpu import jit
from kernels.simd import (
    advance,
    lanes_of,
    load,
    peek,
    select,
    sigmoid_gate,
    store,
    store_first,
    tanh_gate,
    zeros_like,
)


@jit
def rnn_rows(rows, first, last, is_relu, x, s, stride, bias, h, h_stride):
    """h = act(x + s + bias) for the units [first, last)."""
    lanes = lanes_of(x)
    for i in range(rows):
        xs, ss, hs = advance(x, i * stride), advance(s, i * stride), advance(h, i * h_stride)
        for j in range(first, last, lanes):
            total = load(xs, j) + load(ss, j) + load(bias, j)
            if is_relu:
                # The comparison is false for NaN, which passes.
                total = select(total < 0.0, zeros_like(x), total)
            else:
                total = tanh_gate(total)
            store(hs, j, total)


@jit
def lstm_rows(rows, first, last, units, x, s, stride, bias, c, c_stride, h, h_stride, keeps, order, kept, cells):
    """c = f c + i g, h = o tanh(c) with gates i, f, g, o of x + s + bias."""
    lanes = lanes_of(x)
    for row in range(rows):
        xs, ss = advance(x, row * stride), advance(s, row * stride)
        cs, hs = advance(c, row * c_stride), advance(h, row * h_stride)
        place = peek(order, row) * keeps
        gates_to, cell_to = advance(kept, place * 4 * units), advance(cells, place * units)
        for j in range(first, last, lanes):
            i = sigmoid_gate(load(xs, j) + load(ss, j) + load(bias, j))
            at = j + units
            f = sigmoid_gate(load(xs, at) + load(ss, at) + load(bias, at))
            at += units
            g = tanh_gate(load(xs, at) + load(ss, at) + load(bias, at))
            at += units
            o = sigmoid_gate(load(xs, at) + load(ss, at) + load(bias, at))
            cell = f * load(cs, j) + i * g
            store(cs, j, cell)
            store(hs, j, o * tanh_gate(cell))
            if keeps:
                left = last - j
                store_first(gates_to, j, i, left)
                store_first(gates_to, j + units, f, left)
                store_first(gates_to, j + 2 * units, g, left)
                store_first(gates_to, j + 3 * units, o, left)
                store_first(cell_to, j, cell, left)


@jit
def gru_rows(rows, first, last, units, x, s, stride, bias, bias_s, h, h_stride, keeps, order, kept):
    """h = n + z (h - n) with r, z of x + s + bias and n = tanh(x + bias + r (s + bias_s)).

    bias_s: the recurrent bias of n alone, pointer to [units].
    """
    lanes = lanes_of(x)
    for row in range(rows):
        xs, ss, hs = advance(x, row * stride), advance(s, row * stride), advance(h, row * h_stride)
        gates_to = advance(kept, peek(order, row) * keeps * 4 * units)
        for j in range(first, last, lanes):
            r = sigmoid_gate(load(xs, j) + load(ss, j) + load(bias, j))
            at = j + units
            z = sigmoid_gate(load(xs, at) + load(ss, at) + load(bias, at))
            at += units
            q = load(ss, at) + load(bias_s, j)
            n = tanh_gate(load(xs, at) + load(bias, at) + r * q)
            store(hs, j, n + z * (load(hs, j) - n))
            if keeps:
                left = last - j
                store_first(gates_to, j, r, left)
                store_first(gates_to, j + units, z, left)
                store_first(gates_to, j + 2 * units, n, left)
                store_first(gates_to, j + 3 * units, q, left)


@jit
def gru_reset_rows(rows, units, x, s, stride, bias, h, h_stride, reset, reset_stride):
    """reset = r h, for a GRU whose r multiplies before the product; r and z take the place of their sums in s."""
    lanes = lanes_of(x)
    for row in range(rows):
        xs, ss, hs = advance(x, row * stride), advance(s, row * stride), advance(h, row * h_stride)
        to = advance(reset, row * reset_stride)
        for j in range(0, units, lanes):
            at = j + units
            r = sigmoid_gate(load(xs, j) + load(ss, j) + load(bias, j))
            z = sigmoid_gate(load(xs, at) + load(ss, at) + load(bias, at))
            store(to, j, r * load(hs, j))
            # No lane past the last unit: the sums of z begin there.
            store_first(ss, j, r, units - j)
            store_first(ss, at, z, units - j)


@jit
def gru_new_rows(rows, units, x, s, stride, bias, q, q_stride, h, h_stride, keeps, order, kept):
    """h = n + z (h - n) with n = tanh(x + bias + q); s holds r and z, q is w_hn (r h)."""
    lanes = lanes_of(x)
    for row in range(rows):
        xs, ss = advance(x, row * stride), advance(s, row * stride)
        qs, hs = advance(q, row * q_stride), advance(h, row * h_stride)
        gates_to = advance(kept, peek(order, row) * keeps * 3 * units)
        for j in range(0, units, lanes):
            at = j + 2 * units
            n = tanh_gate(load(xs, at) + load(qs, j) + load(bias, at))
            z = load(ss, j + units)
            store(hs, j, n + z * (load(hs, j) - n))
            if keeps:
                left = units - j
                store_first(gates_to, j, load(ss, j), left)
                store_first(gates_to, j + units, z, left)
                store_first(gates_to, j + 2 * units, n, left)

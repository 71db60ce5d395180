"""The cells backward on vectors: from the gradient of a step's new states to that of its sums, for one row.

All arguments but sizes are pointers to elements of that row. Memory of `units` elements is never touched past its end;
`dh` and the carried states, working memory, are read in whole vectors. The gradients of the sums go to vectors `total`
vectors apart, gate by gate; GRU with the reset after the product has four gates: r, z, then the gradients of
w_hn h + b_hn and of w_in x + b_in. What goes to panels goes to vectors of panels `panel_stride` apart.
"""

from __future__ import annotations

from kernels.recurrence.panels import PANEL_VECTORS
from kernels.runtime.numba_cpu import jit
from kernels.simd import advance, lanes_of, load, load_first, select, store, tanh_gate, zeros_like


@jit
def rnn_row_back(units, total, is_relu, dh, h_new, sums):
    """ds = dh act'(s), from the new state."""
    for j in range(0, units, lanes_of(dh)):
        h, gradient = load_first(h_new, j, units - j), load(dh, j)
        if is_relu:
            # Where the state is 0 nothing passes, not even NaN, as in torch.
            gradient = select(h <= 0.0, zeros_like(dh), gradient)
        else:
            gradient = gradient * (1.0 - h * h)
        store(sums, j * total, gradient)


@jit
def gate_distance(units, total, like):
    """Elements from one gate's gradients to the next one's."""
    lanes = lanes_of(like)
    return (units + lanes - 1) // lanes * lanes * total


@jit
def panel_place(j, panel_stride, like):
    """Where the vector of element j of a row lies in panels."""
    width = PANEL_VECTORS * lanes_of(like)
    return j // width * panel_stride + j % width


@jit
def lstm_row_back(units, total, dh, carried_c, gates, c_new, c_old, sums, projects, panels, panel_stride):
    """ds of i, f, g, o; carried_c becomes the gradient of c_old. With `projects` the panels get o tanh(c_new)."""
    gate = gate_distance(units, total, dh)
    for j in range(0, units, lanes_of(dh)):
        left, to = units - j, advance(sums, j * total)
        i, f = load_first(gates, j, left), load_first(gates, j + units, left)
        g, o = load_first(gates, j + 2 * units, left), load_first(gates, j + 3 * units, left)
        tanh_c = tanh_gate(load_first(c_new, j, left))
        gradient = load(dh, j)
        dc = load(carried_c, j) + gradient * o * (1.0 - tanh_c * tanh_c)
        store(carried_c, j, dc * f)
        store(to, 0, dc * g * i * (1.0 - i))
        store(to, gate, dc * load_first(c_old, j, left) * f * (1.0 - f))
        store(to, 2 * gate, dc * i * (1.0 - g * g))
        store(to, 3 * gate, gradient * tanh_c * o * (1.0 - o))
        if projects:
            store(panels, panel_place(j, panel_stride, dh), o * tanh_c)


@jit
def gru_row_back(units, total, dh, gates, h_old, sums):
    """ds of r, z, the recurrent and the input's part of n; dh becomes dh z."""
    gate = gate_distance(units, total, dh)
    for j in range(0, units, lanes_of(dh)):
        left, to = units - j, advance(sums, j * total)
        r, z = load_first(gates, j, left), load_first(gates, j + units, left)
        n, q = load_first(gates, j + 2 * units, left), load_first(gates, j + 3 * units, left)
        gradient = load(dh, j)
        store(dh, j, gradient * z)
        dn = gradient * (1.0 - z) * (1.0 - n * n)
        store(to, 0, dn * q * r * (1.0 - r))
        store(to, gate, gradient * (load_first(h_old, j, left) - n) * z * (1.0 - z))
        store(to, 2 * gate, dn * r)
        store(to, 3 * gate, dn)


@jit
def gru_new_row_back(units, total, dh, gates, h_old, sums):
    """With the reset before the product: ds of z and n; dh becomes dh z."""
    gate = gate_distance(units, total, dh)
    for j in range(0, units, lanes_of(dh)):
        left, to = units - j, advance(sums, j * total)
        z, n = load_first(gates, j + units, left), load_first(gates, j + 2 * units, left)
        gradient = load(dh, j)
        store(dh, j, gradient * z)
        store(to, gate, gradient * (load_first(h_old, j, left) - n) * z * (1.0 - z))
        store(to, 2 * gate, gradient * (1.0 - z) * (1.0 - n * n))


@jit
def gru_reset_row_back(units, total, d_reset, carried, gates, old_panels, sums, panels, panel_stride):
    """Then, from the gradient of r h_old: ds of r; carried += d_reset r; the panels get r h_old."""
    for j in range(0, units, lanes_of(d_reset)):
        at = panel_place(j, panel_stride, d_reset)
        r, h, gradient = load_first(gates, j, units - j), load(old_panels, at), load(d_reset, j)
        store(carried, j, load(carried, j) + gradient * r)
        store(sums, j * total, gradient * h * r * (1.0 - r))
        store(panels, at, r * h)

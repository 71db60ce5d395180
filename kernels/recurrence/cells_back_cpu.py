"""The cells backward on vectors: from the gradient of a step's new states to that of its sums, for one row.

All arguments but sizes are pointers to elements of that row. Memory of `units` elements is never touched past its end;
`dh` and the carried states, working memory, are read in whole vectors. The gradients of the sums lie as the gates do;
GRU with the reset after the product has four: r, z, then those of w_hn h + b_hn and of w_in x + b_in.
"""

from __future__ import annotations

from kernels.runtime.numba_cpu import jit
from kernels.simd import lanes_of, load, load_first, select, store, store_first, tanh, zeros_like


@jit
def rnn_row_back(units, is_relu, dh, h_new, sums):
    """ds = dh act'(s), from the new state."""
    lanes = lanes_of(dh)
    for j in range(0, units, lanes):
        left = units - j
        h, gradient = load_first(h_new, j, left), load(dh, j)
        if is_relu:
            # Where the state is 0 nothing passes, not even NaN, as in torch.
            gradient = select(h <= 0.0, zeros_like(dh), gradient)
        else:
            gradient = gradient * (1.0 - h * h)
        store_first(sums, j, gradient, left)


@jit
def lstm_row_back(units, dh, carried_c, gates, c_new, c_old, sums, projects, unprojected):
    """ds of i, f, g, o; carried_c becomes the gradient of c_old. With `projects` unprojected = o tanh(c_new)."""
    lanes = lanes_of(dh)
    for j in range(0, units, lanes):
        left = units - j
        i, f = load_first(gates, j, left), load_first(gates, j + units, left)
        g, o = load_first(gates, j + 2 * units, left), load_first(gates, j + 3 * units, left)
        tanh_c = tanh(load_first(c_new, j, left))
        gradient = load(dh, j)
        dc = load(carried_c, j) + gradient * o * (1.0 - tanh_c * tanh_c)
        store(carried_c, j, dc * f)
        store_first(sums, j, dc * g * i * (1.0 - i), left)
        store_first(sums, j + units, dc * load_first(c_old, j, left) * f * (1.0 - f), left)
        store_first(sums, j + 2 * units, dc * i * (1.0 - g * g), left)
        store_first(sums, j + 3 * units, gradient * tanh_c * o * (1.0 - o), left)
        if projects:
            store_first(unprojected, j, o * tanh_c, left)


@jit
def gru_row_back(units, dh, carried, gates, h_old, sums):
    """ds of r, z, the recurrent and the input's part of n; carried = dh z."""
    lanes = lanes_of(dh)
    for j in range(0, units, lanes):
        left = units - j
        r, z = load_first(gates, j, left), load_first(gates, j + units, left)
        n, q = load_first(gates, j + 2 * units, left), load_first(gates, j + 3 * units, left)
        gradient = load(dh, j)
        store(carried, j, gradient * z)
        dn = gradient * (1.0 - z) * (1.0 - n * n)
        store_first(sums, j, dn * q * r * (1.0 - r), left)
        store_first(sums, j + units, gradient * (load_first(h_old, j, left) - n) * z * (1.0 - z), left)
        store_first(sums, j + 2 * units, dn * r, left)
        store_first(sums, j + 3 * units, dn, left)


@jit
def gru_new_row_back(units, dh, carried, gates, h_old, sums):
    """With the reset before the product: ds of z and n; carried = dh z."""
    lanes = lanes_of(dh)
    for j in range(0, units, lanes):
        left = units - j
        z, n = load_first(gates, j + units, left), load_first(gates, j + 2 * units, left)
        gradient = load(dh, j)
        store(carried, j, gradient * z)
        store_first(sums, j + units, gradient * (load_first(h_old, j, left) - n) * z * (1.0 - z), left)
        store_first(sums, j + 2 * units, gradient * (1.0 - z) * (1.0 - n * n), left)


@jit
def gru_reset_row_back(units, d_reset, carried, gates, h_old, sums, reset):
    """Then, from the gradient of r h_old: ds of r; carried += d_reset r; reset = r h_old."""
    lanes = lanes_of(d_reset)
    for j in range(0, units, lanes):
        left = units - j
        r, h, gradient = load_first(gates, j, left), load_first(h_old, j, left), load(d_reset, j)
        store(carried, j, load(carried, j) + gradient * r)
        store_first(sums, j, gradient * h * r * (1.0 - r), left)
        store_first(reset, j, r * h, left)

"""The Triton kernels of layer_norm and rms_norm. A tile is (rows, elements of a row), see kernels.runtime.row_tiles.

Arguments that they take: x and grad (rows, n), each with its strides; weight, bias (n,) with their strides, None unless
HAS_WEIGHT, HAS_BIAS; means, scales (rows,): the mean and 1 / sqrt(variance + EPS) of each row, contiguous; results,
contiguous. CENTRED: False takes the mean for 0. Half precision is computed in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.runtime.rows_triton import load_rows, store_rows


@triton.jit
def _of_elements(pointer, step, c, n, PRESENT: tl.constexpr, other: tl.constexpr, COMPUTED: tl.constexpr):
    """Elements c (BLOCK,) of weight or bias as (1, BLOCK); `other` where there is none."""
    if PRESENT:
        return tl.load(pointer + c.to(tl.int64) * step, mask=c < n, other=0.0).to(COMPUTED)[None, :]
    else:
        return tl.full((1, c.shape[0]), other, COMPUTED)


@triton.jit
def normalise_rows(
    x, weight, bias, out, means, scales, rows, n, x_row, x_n, weight_n, bias_n,
    EPS: tl.constexpr, CENTRED: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, KEEPS: tl.constexpr,
    WHOLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """out (rows, n) = (x - mean) * scale * weight + bias; means and scales where KEEPS."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = row < rows
    begin = row * x_row
    lane = tl.arange(0, BLOCK)
    mean = tl.zeros((ROWS,), COMPUTED)
    lost = tl.zeros((ROWS,), COMPUTED)
    squares = tl.zeros((ROWS,), COMPUTED)
    if WHOLE:
        apart = load_rows(x, begin, x_n, lane, n, here, 0.0, COMPUTED)
        if CENTRED:
            mean = tl.sum(apart, 1) / n
            apart = tl.where(lane[None, :] < n, apart - mean[:, None], 0.0)
            # What the mean lacks by rounding (Chan, Golub and LeVeque, 1983).
            lost = tl.sum(apart, 1) / n
            apart = tl.where(lane[None, :] < n, apart - lost[:, None], 0.0)
        squares = tl.sum(apart * apart, 1)
    else:
        if CENTRED:
            for first in range(0, n, BLOCK):
                mean += tl.sum(load_rows(x, begin, x_n, first + lane, n, here, 0.0, COMPUTED), 1)
            mean = mean / n
        for first in range(0, n, BLOCK):
            apart = load_rows(x, begin, x_n, first + lane, n, here, 0.0, COMPUTED) - mean[:, None]
            apart = tl.where((first + lane)[None, :] < n, apart, 0.0)
            if CENTRED:
                lost += tl.sum(apart, 1)
            squares += tl.sum(apart * apart, 1)
        lost = lost / n
        # NaN and infinities stay as they are.
        less = squares - lost * lost * n
        squares = tl.where(less < 0.0, 0.0, less)
    scale = 1.0 / tl.sqrt(squares / n + EPS)
    if KEEPS:
        tl.store(scales + row, scale.to(scales.dtype.element_ty), mask=here)
        if CENTRED:
            tl.store(means + row, (mean + lost).to(means.dtype.element_ty), mask=here)
    for first in range(0, n, BLOCK):
        c = first + lane
        if not WHOLE:
            apart = load_rows(x, begin, x_n, c, n, here, 0.0, COMPUTED) - mean[:, None] - lost[:, None]
        y = apart * scale[:, None]
        if HAS_WEIGHT:
            y = y * _of_elements(weight, weight_n, c, n, True, 1.0, COMPUTED)
        if HAS_BIAS:
            y = y + _of_elements(bias, bias_n, c, n, True, 0.0, COMPUTED)
        store_rows(out, row * n, 1, c, n, here, y)


@triton.jit
def gradients_of_parts(
    grad, x, weight, means, scales, grad_x, of_weight, of_bias, rows, n, part,
    grad_row, grad_n, x_row, x_n, weight_n,
    CENTRED: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    WANTS_X: tl.constexpr, WANTS_WEIGHT: tl.constexpr, WANTS_BIAS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """Of `part` rows: the gradient of x, and their own sums for weight and bias. A block holds a whole row.

    grad_x (rows, n); of_weight, of_bias (parts, n), in which programs write a row each.
    """
    number = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    of_rows = tl.arange(0, ROWS)
    factors = _of_elements(weight, weight_n, c, n, HAS_WEIGHT, 1.0, COMPUTED)
    weight_sum = tl.zeros((ROWS, BLOCK), COMPUTED)
    bias_sum = tl.zeros((ROWS, BLOCK), COMPUTED)
    for first in range(0, part, ROWS):
        row = number * part + first + of_rows
        here = (row < rows) & (first + of_rows < part)
        g = load_rows(grad, row * grad_row, grad_n, c, n, here, 0.0, COMPUTED)
        scale = tl.load(scales + row, mask=here, other=0.0).to(COMPUTED)[:, None]
        normal = load_rows(x, row * x_row, x_n, c, n, here, 0.0, COMPUTED)
        if CENTRED:
            normal = normal - tl.load(means + row, mask=here, other=0.0).to(COMPUTED)[:, None]
        normal = tl.where(c[None, :] < n, normal * scale, 0.0)
        if WANTS_WEIGHT:
            weight_sum += g * normal
        if WANTS_BIAS:
            bias_sum += g
        if WANTS_X:
            g = g * factors
            along = tl.sum(g * normal, 1)[:, None] / n
            found = g - normal * along
            if CENTRED:
                found = found - tl.sum(g, 1)[:, None] / n
            store_rows(grad_x, row * n, 1, c, n, here, found * scale)
    if WANTS_WEIGHT:
        tl.store(of_weight + number * n + c, tl.sum(weight_sum, 0), mask=c < n)
    if WANTS_BIAS:
        tl.store(of_bias + number * n + c, tl.sum(bias_sum, 0), mask=c < n)


@triton.jit
def gradient_of_long_rows(
    grad, x, weight, means, scales, grad_x, rows, n, grad_row, grad_n, x_row, x_n, weight_n,
    CENTRED: tl.constexpr, HAS_WEIGHT: tl.constexpr, BLOCK: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """The gradient of x, a row a program, read twice."""
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    here = row < rows
    lane = tl.arange(0, BLOCK)
    scale = tl.load(scales + row, mask=here, other=0.0).to(COMPUTED)[:, None]
    mean = tl.zeros((1, 1), COMPUTED)
    if CENTRED:
        mean = tl.load(means + row, mask=here, other=0.0).to(COMPUTED)[:, None]
    level = tl.zeros((1,), COMPUTED)
    along = tl.zeros((1,), COMPUTED)
    for first in range(0, n, BLOCK):
        c = first + lane
        g = load_rows(grad, row * grad_row, grad_n, c, n, here, 0.0, COMPUTED)
        g = g * _of_elements(weight, weight_n, c, n, HAS_WEIGHT, 1.0, COMPUTED)
        normal = (load_rows(x, row * x_row, x_n, c, n, here, 0.0, COMPUTED) - mean) * scale
        level += tl.sum(g, 1)
        along += tl.sum(tl.where(c[None, :] < n, g * normal, 0.0), 1)
    level = (level / n)[:, None]
    along = (along / n)[:, None]
    for first in range(0, n, BLOCK):
        c = first + lane
        g = load_rows(grad, row * grad_row, grad_n, c, n, here, 0.0, COMPUTED)
        g = g * _of_elements(weight, weight_n, c, n, HAS_WEIGHT, 1.0, COMPUTED)
        normal = (load_rows(x, row * x_row, x_n, c, n, here, 0.0, COMPUTED) - mean) * scale
        found = g - normal * along
        if CENTRED:
            found = found - level
        store_rows(grad_x, row * n, 1, c, n, here, found * scale)


@triton.jit
def sums_of_columns(
    grad, x, means, scales, of_weight, of_bias, rows, n, part, grad_row, grad_n, x_row, x_n,
    CENTRED: tl.constexpr, WANTS_WEIGHT: tl.constexpr, WANTS_BIAS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """What `part` rows give to BLOCK columns of the gradients of weight and bias: of_weight, of_bias (parts, n).

    Programs: (blocks of columns, parts).
    """
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    number = tl.program_id(1).to(tl.int64)
    of_rows = tl.arange(0, ROWS)
    weight_sum = tl.zeros((ROWS, BLOCK), COMPUTED)
    bias_sum = tl.zeros((ROWS, BLOCK), COMPUTED)
    for first in range(0, part, ROWS):
        row = number * part + first + of_rows
        here = (row < rows) & (first + of_rows < part)
        g = load_rows(grad, row * grad_row, grad_n, c, n, here, 0.0, COMPUTED)
        if WANTS_WEIGHT:
            scale = tl.load(scales + row, mask=here, other=0.0).to(COMPUTED)[:, None]
            normal = load_rows(x, row * x_row, x_n, c, n, here, 0.0, COMPUTED)
            if CENTRED:
                normal = normal - tl.load(means + row, mask=here, other=0.0).to(COMPUTED)[:, None]
            weight_sum += g * (normal * scale)
        if WANTS_BIAS:
            bias_sum += g
    if WANTS_WEIGHT:
        tl.store(of_weight + number * n + c, tl.sum(weight_sum, 0), mask=c < n)
    if WANTS_BIAS:
        tl.store(of_bias + number * n + c, tl.sum(bias_sum, 0), mask=c < n)

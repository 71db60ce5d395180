"""The Triton kernels of the poolings, and of their gradients. A program has BLOCK elements of the result.

The result lies as (N, C, H, W), or as (N, H, W, C) where LAST; inputs have strides (image, channel, row, column). Along
each dimension window o has taps first + r * dilation for r < KERNEL, those of them in [0, end). In backward each place
of the image collects from the windows that cover it, in their order: no atomics. Half precision is computed in float32.

Arguments in common: size: elements of the result. channels: C. height, width: of the image. out_height, out_width: of
the windows. ADAPTIVE: windows as of windows.adaptive, else sliding by STRIDE with PADDING and DILATION, each
(vertical, horizontal).
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.runtime.elementwise_triton import elements_of_program, unravel_image


@triton.jit
def _window(o, size, outputs, KERNEL, STRIDE, PADDING, DILATION, ADAPTIVE: tl.constexpr):
    """(first tap, end) of windows o: the taps count that are at least 0 and below end."""
    if ADAPTIVE:
        return o * size // outputs, tl.cdiv((o + 1) * size, outputs)
    else:
        first = o * STRIDE - PADDING
        return first, tl.minimum(first + DILATION * (KERNEL - 1) + 1, size)


@triton.jit
def _extent(o, size, outputs, KERNEL, STRIDE, PADDING, COUNT: tl.constexpr):
    """What windows o count for in the divisor along one dimension: COUNT is "adaptive", "padded" or "inside"."""
    if COUNT == "adaptive":
        return tl.cdiv((o + 1) * size, outputs) - o * size // outputs
    else:
        first = o * STRIDE - PADDING
        if COUNT == "padded":
            return tl.minimum(first + KERNEL, size + PADDING) - first
        else:
            return tl.minimum(first + KERNEL, size) - tl.maximum(first, 0)


@triton.jit
def _first_cover(place, size, outputs, KERNEL, STRIDE, PADDING, DILATION, ADAPTIVE: tl.constexpr):
    """The first of the windows that may cover some places of the image."""
    if ADAPTIVE:
        return place * outputs // size
    else:
        # ceil((place + PADDING - reach) / STRIDE), at least 0.
        beyond = tl.maximum(place + PADDING - DILATION * (KERNEL - 1), 0)
        return (beyond + STRIDE - 1) // STRIDE


@triton.jit
def _power(x, P: tl.constexpr):
    """x ** P in x's type: by squaring for integers up to 16, else in float64 (NaN for a negative x)."""
    if P == 0.0:
        return tl.zeros_like(x) + 1.0
    elif P == 1.0:
        return x
    elif P < 0.0:
        return 1.0 / _power(x, -P)
    elif P == 0.5:
        return tl.sqrt(x)
    elif P <= 16.0 and P % 2.0 == 0.0:
        half = _power(x, P / 2.0)
        return half * half
    elif P <= 16.0 and P % 1.0 == 0.0:
        return x * _power(x, P - 1.0)
    elif P % 2.0 == 0.0:
        return tl.exp2(tl.log2(tl.abs(x).to(tl.float64)) * P).to(x.dtype)
    elif P % 1.0 == 0.0:
        size = tl.exp2(tl.log2(tl.abs(x).to(tl.float64)) * P).to(x.dtype)
        return tl.where(x < 0, -size, size)
    else:
        return tl.exp2(tl.log2(x.to(tl.float64)) * P).to(x.dtype)


@triton.jit
def max_of_windows(
    x, out, indices, size, channels, height, width, out_height, out_width, x_image, x_channel, x_row, x_column,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    ADAPTIVE: tl.constexpr, MAGNITUDE: tl.constexpr, KEEPS: tl.constexpr, LAST: tl.constexpr,
    BLOCK: tl.constexpr, LONG: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """The largest value of each window, and where it was (int64, flat in its plane) where KEEPS.

    NaN wins, of several the last; of equal values the first. A window without a tap in the image is -inf, and its place
    is the nearest one. MAGNITUDE: 1 for the largest |x|, -1 for the smallest, 0 for x itself.
    """
    i, here = elements_of_program(size, BLOCK, LONG)
    n, c, oh, ow = unravel_image(i, channels, out_height, out_width, LAST)
    top, bottom = _window(oh, height, out_height, KERNEL_H, STRIDE_H, PADDING_H, DILATION_H, ADAPTIVE)
    left, right = _window(ow, width, out_width, KERNEL_W, STRIDE_W, PADDING_W, DILATION_W, ADAPTIVE)
    start = n.to(tl.int64) * x_image + c.to(tl.int64) * x_channel
    best = tl.full((BLOCK,), -float("inf"), COMPUTED)
    # Of the first tap inside, or behind the image where there is none.
    tap_row = (tl.maximum(-top, 0) + DILATION_H - 1) // DILATION_H
    tap = (tap_row * KERNEL_W + (tl.maximum(-left, 0) + DILATION_W - 1) // DILATION_W).to(tl.int32)
    for r in range(KERNEL_H):
        h = top + r * DILATION_H
        in_rows = here & (h >= 0) & (h < bottom)
        of_row = start + h.to(tl.int64) * x_row
        for s in range(KERNEL_W):
            w = left + s * DILATION_W
            inside = in_rows & (w >= 0) & (w < right)
            value = tl.load(x + of_row + w.to(tl.int64) * x_column, mask=inside, other=0.0).to(COMPUTED)
            if MAGNITUDE == 1:
                value = tl.abs(value)
            elif MAGNITUDE == -1:
                value = -tl.abs(value)
            takes = inside & ((value > best) | (value != value))
            best = tl.where(takes, value, best)
            if KEEPS:
                tap = tl.where(takes, r * KERNEL_W + s, tap)
    if MAGNITUDE == -1:
        best = -best
    tl.store(out + i, best.to(out.dtype.element_ty), mask=here)
    if KEEPS:
        row = tl.minimum(top + tap // KERNEL_W * DILATION_H, height - 1)
        column = tl.minimum(left + tap % KERNEL_W * DILATION_W, width - 1)
        tl.store(indices + i, row.to(tl.int64) * width + column, mask=here)


@triton.jit
def gradient_of_maxima(
    grad, indices, x, out, size, channels, height, width, out_height, out_width,
    g_image, g_channel, g_row, g_column, i_image, i_channel, i_row, i_column, x_image, x_channel, x_row, x_column,
    COVERS_H: tl.constexpr, COVERS_W: tl.constexpr,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    ADAPTIVE: tl.constexpr, SIGNED: tl.constexpr, LAST: tl.constexpr,
    BLOCK: tl.constexpr, LONG: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """out[place] = the sum of grad over the windows whose index is that place; times the sign of x where SIGNED.

    COVERS_H, COVERS_W: how many windows one after the other may cover a place, at most.
    """
    i, here = elements_of_program(size, BLOCK, LONG)
    n, c, h, w = unravel_image(i, channels, height, width, LAST)
    first_row = _first_cover(h, height, out_height, KERNEL_H, STRIDE_H, PADDING_H, DILATION_H, ADAPTIVE)
    first_column = _first_cover(w, width, out_width, KERNEL_W, STRIDE_W, PADDING_W, DILATION_W, ADAPTIVE)
    g_start = n.to(tl.int64) * g_image + c.to(tl.int64) * g_channel
    i_start = n.to(tl.int64) * i_image + c.to(tl.int64) * i_channel
    own = h.to(tl.int64) * width + w
    total = tl.zeros((BLOCK,), COMPUTED)
    for a in range(COVERS_H):
        row = first_row + a
        for b in range(COVERS_W):
            column = first_column + b
            exists = here & (row < out_height) & (column < out_width)
            at = tl.load(
                indices + i_start + row.to(tl.int64) * i_row + column.to(tl.int64) * i_column, mask=exists, other=-1
            )
            g = tl.load(
                grad + g_start + row.to(tl.int64) * g_row + column.to(tl.int64) * g_column, mask=exists, other=0.0
            )
            total += tl.where(at == own, g.to(COMPUTED), 0.0)
    if SIGNED:
        places = n.to(tl.int64) * x_image + c.to(tl.int64) * x_channel + h.to(tl.int64) * x_row
        value = tl.load(x + places + w.to(tl.int64) * x_column, mask=here, other=0.0).to(COMPUTED)
        total = total * tl.where(value > 0, 1.0, tl.where(value < 0, -1.0, 0.0))
    tl.store(out + i, total.to(out.dtype.element_ty), mask=here)


@triton.jit
def mean_of_windows(
    x, out, size, channels, height, width, out_height, out_width, x_image, x_channel, x_row, x_column, divisor,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, ADAPTIVE: tl.constexpr, COUNT: tl.constexpr,
    POWER: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr, LONG: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """The sum of each window over its divisor: what COUNT says (see `_extent`), or `divisor` where that is "given".

    POWER: None, or p: then it is (K * mean of x ** p) ** (1 / p), K the size of the full window.
    """
    i, here = elements_of_program(size, BLOCK, LONG)
    n, c, oh, ow = unravel_image(i, channels, out_height, out_width, LAST)
    top, bottom = _window(oh, height, out_height, KERNEL_H, STRIDE_H, PADDING_H, 1, ADAPTIVE)
    left, right = _window(ow, width, out_width, KERNEL_W, STRIDE_W, PADDING_W, 1, ADAPTIVE)
    start = n.to(tl.int64) * x_image + c.to(tl.int64) * x_channel
    total = tl.zeros((BLOCK,), COMPUTED)
    for r in range(KERNEL_H):
        h = top + r
        in_rows = here & (h >= 0) & (h < bottom)
        of_row = start + h.to(tl.int64) * x_row
        for s in range(KERNEL_W):
            w = left + s
            inside = in_rows & (w >= 0) & (w < right)
            value = tl.load(x + of_row + w.to(tl.int64) * x_column, mask=inside, other=0.0).to(COMPUTED)
            if POWER is not None:
                value = tl.where(inside, _power(value, POWER), 0.0)
            total += value
    if COUNT == "given":
        found = total / divisor
    else:
        count = _extent(oh, height, out_height, KERNEL_H, STRIDE_H, PADDING_H, COUNT)
        count = count * _extent(ow, width, out_width, KERNEL_W, STRIDE_W, PADDING_W, COUNT)
        found = total / count.to(COMPUTED)
    if POWER is not None:
        # + 0.0 makes -0.0 a plain 0, as the reference has it.
        found = _power((found + 0.0) * (KERNEL_H * KERNEL_W), 1.0 / POWER)
    tl.store(out + i, found.to(out.dtype.element_ty), mask=here)


@triton.jit
def gradient_of_means(
    grad, x, y, out, size, channels, height, width, out_height, out_width,
    g_image, g_channel, g_row, g_column, x_image, x_channel, x_row, x_column, y_image, y_channel, y_row, y_column,
    divisor,
    COVERS_H: tl.constexpr, COVERS_W: tl.constexpr,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, ADAPTIVE: tl.constexpr, COUNT: tl.constexpr,
    POWER: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr, LONG: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """out[place] = the sum of grad / divisor over the windows that cover it; with POWER as reference.py has it, from x
    and the output y. COVERS_H, COVERS_W as in `gradient_of_maxima`."""
    i, here = elements_of_program(size, BLOCK, LONG)
    n, c, h, w = unravel_image(i, channels, height, width, LAST)
    first_row = _first_cover(h, height, out_height, KERNEL_H, STRIDE_H, PADDING_H, 1, ADAPTIVE)
    first_column = _first_cover(w, width, out_width, KERNEL_W, STRIDE_W, PADDING_W, 1, ADAPTIVE)
    g_start = n.to(tl.int64) * g_image + c.to(tl.int64) * g_channel
    y_start = n.to(tl.int64) * y_image + c.to(tl.int64) * y_channel
    total = tl.zeros((BLOCK,), COMPUTED)
    for a in range(COVERS_H):
        row = first_row + a
        top, bottom = _window(row, height, out_height, KERNEL_H, STRIDE_H, PADDING_H, 1, ADAPTIVE)
        in_rows = here & (row < out_height) & (top <= h) & (h < bottom)
        for b in range(COVERS_W):
            column = first_column + b
            left, right = _window(column, width, out_width, KERNEL_W, STRIDE_W, PADDING_W, 1, ADAPTIVE)
            covers = in_rows & (column < out_width) & (left <= w) & (w < right)
            g = tl.load(
                grad + g_start + row.to(tl.int64) * g_row + column.to(tl.int64) * g_column, mask=covers, other=0.0
            ).to(COMPUTED)
            if POWER is not None:
                places = y_start + row.to(tl.int64) * y_row + column.to(tl.int64) * y_column
                output = tl.load(y + places, mask=covers, other=1.0).to(COMPUTED)
                scaled = g * _power(output, 1.0 - POWER) * (KERNEL_H * KERNEL_W)
                # Powers that add up to 0 pass nothing on; for p = 1 nor does NaN.
                if POWER > 0.0:
                    nothing = output == 0.0
                else:
                    nothing = output == float("inf")
                if POWER == 1.0:
                    nothing = nothing | (output != output)
                g = tl.where(nothing, 0.0, scaled)
            if COUNT == "given":
                share = g / divisor
            else:
                count = _extent(row, height, out_height, KERNEL_H, STRIDE_H, PADDING_H, COUNT)
                count = count * _extent(column, width, out_width, KERNEL_W, STRIDE_W, PADDING_W, COUNT)
                share = g / count.to(COMPUTED)
            total += tl.where(covers, share, 0.0)
    if POWER is not None:
        places = n.to(tl.int64) * x_image + c.to(tl.int64) * x_channel + h.to(tl.int64) * x_row
        value = tl.load(x + places + w.to(tl.int64) * x_column, mask=here, other=1.0).to(COMPUTED)
        total = total * _power(value, POWER - 1.0)
    tl.store(out + i, total.to(out.dtype.element_ty), mask=here)

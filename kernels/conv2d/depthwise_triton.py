"""The Triton kernels of depthwise convolutions, whose channels do not mix, and the sums over pixels.

Arguments as in product_triton.py. MULTIPLIER: output channels of an input channel. No sum is long enough for tensor
cores; a program has BLOCK elements of the result and goes over the taps.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.activation.activation_triton import activate
from kernels.runtime.elementwise_triton import elements_of_program, unravel_image


@triton.jit
def convolve_depthwise(
    source, weight, bias, out, sums, size, channels, height, width, out_height, out_width,
    x_image, x_channel, x_row, x_column, w_out, w_row, w_column,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    MULTIPLIER: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, KEEPS: tl.constexpr,
    LAST: tl.constexpr, BLOCK: tl.constexpr, LONG: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """out (N, channels, out_height, out_width) = act(bias + weight * source), and the sums where KEEPS."""
    e, here = elements_of_program(size, BLOCK, LONG)
    n, k, i, j = unravel_image(e, channels, out_height, out_width, LAST)
    start = n.to(tl.int64) * x_image + (k // MULTIPLIER).to(tl.int64) * x_channel
    filters = k.to(tl.int64) * w_out
    total = tl.zeros((BLOCK,), COMPUTED)
    for r in range(KERNEL_H):
        h = i * STRIDE_H + r * DILATION_H - PADDING_H
        in_rows = here & (h >= 0) & (h < height)
        of_row = start + h.to(tl.int64) * x_row
        for s in range(KERNEL_W):
            w = j * STRIDE_W + s * DILATION_W - PADDING_W
            inside = in_rows & (w >= 0) & (w < width)
            x = tl.load(source + of_row + w.to(tl.int64) * x_column, mask=inside, other=0.0).to(COMPUTED)
            f = tl.load(weight + filters + r * w_row + s * w_column, mask=here, other=0.0).to(COMPUTED)
            # What lies in the padding is 0, whatever the weight.
            total += tl.where(inside, x * f, 0.0)
    if HAS_BIAS:
        total += tl.load(bias + k, mask=here, other=0.0).to(COMPUTED)
    if KEEPS:
        tl.store(sums + e, total.to(sums.dtype.element_ty), mask=here)
    tl.store(out + e, activate(total, ACTIVATION).to(out.dtype.element_ty), mask=here)


@triton.jit
def spread_depthwise(
    source, weight, bias, out, size, channels, height, width, out_height, out_width,
    x_image, x_channel, x_row, x_column, w_out, w_row, w_column,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    MULTIPLIER: tl.constexpr, HAS_BIAS: tl.constexpr,
    LAST: tl.constexpr, BLOCK: tl.constexpr, LONG: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """The transpose: out (N, channels, out_height, out_width) from source (N, channels * MULTIPLIER, height, width)."""
    e, here = elements_of_program(size, BLOCK, LONG)
    n, c, i, j = unravel_image(e, channels, out_height, out_width, LAST)
    start = n.to(tl.int64) * x_image
    total = tl.zeros((BLOCK,), COMPUTED)
    for m in range(MULTIPLIER):
        k = c * MULTIPLIER + m
        for r in range(KERNEL_H):
            down = i + PADDING_H - r * DILATION_H
            h = down // STRIDE_H
            in_rows = here & (down >= 0) & (down % STRIDE_H == 0) & (h < height)
            of_row = start + k.to(tl.int64) * x_channel + h.to(tl.int64) * x_row
            for s in range(KERNEL_W):
                right = j + PADDING_W - s * DILATION_W
                w = right // STRIDE_W
                inside = in_rows & (right >= 0) & (right % STRIDE_W == 0) & (w < width)
                x = tl.load(source + of_row + w.to(tl.int64) * x_column, mask=inside, other=0.0).to(COMPUTED)
                f = tl.load(weight + k.to(tl.int64) * w_out + r * w_row + s * w_column, mask=here, other=0.0)
                total += tl.where(inside, x * f.to(COMPUTED), 0.0)
    if HAS_BIAS:
        total += tl.load(bias + c, mask=here, other=0.0).to(COMPUTED)
    tl.store(out + e, total.to(out.dtype.element_ty), mask=here)


@triton.jit
def sums_of_pixels(
    grad, source, parts, images, channels, height, width, out_height, out_width, part,
    g_image, g_channel, g_row, g_column, x_image, x_channel, x_row, x_column,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    MULTIPLIER: tl.constexpr, TIMES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, COMPUTED: tl.constexpr,
    INDEX: tl.constexpr, VECTORS: tl.constexpr,
):  # fmt: skip
    """What `part` pixels of grad (N, channels, out_height, out_width) give to each channel's sums.

    TIMES: grad times what a tap meets in the source, which is a depthwise weight's gradient; else grad alone, the
    bias's. parts (parts, channels * taps). Programs: taps, the fastest, then blocks of channels; parts.
    """
    taps: tl.constexpr = KERNEL_H * KERNEL_W
    program = tl.program_id(0)
    number = tl.program_id(1).to(INDEX)
    tap = program % taps
    k = program // taps * BLOCK + tl.arange(0, BLOCK)
    down = tap // KERNEL_W * DILATION_H - PADDING_H
    right = tap % KERNEL_W * DILATION_W - PADDING_W
    outputs = k.to(INDEX) * g_channel
    inputs = (k // MULTIPLIER).to(INDEX) * x_channel
    plane = out_height * out_width
    total = tl.zeros((ROWS, BLOCK), COMPUTED)
    for first in range(0, part, ROWS):
        lane = first + tl.arange(0, ROWS)
        pixel = number * part + lane
        image = pixel // plane
        exists = (lane < part) & (image < images)
        in_plane = (pixel % plane).to(tl.int32)
        i = in_plane // out_width
        j = in_plane % out_width
        at = image * g_image + i.to(INDEX) * g_row + j.to(INDEX) * g_column
        mask = exists[:, None] & (k < channels)[None, :]
        g = tl.load(grad + at[:, None] + outputs[None, :], mask=mask, other=0.0).to(COMPUTED)
        if TIMES:
            h = i * STRIDE_H + down
            w = j * STRIDE_W + right
            inside = mask & ((h >= 0) & (h < height) & (w >= 0) & (w < width))[:, None]
            at = image * x_image + h.to(INDEX) * x_row + w.to(INDEX) * x_column
            x = tl.load(source + at[:, None] + inputs[None, :], mask=inside, other=0.0).to(COMPUTED)
            total += tl.where(inside, g * x, 0.0)
        else:
            total += g
    places = number * channels * taps + k.to(INDEX) * taps + tap
    tl.store(parts + places, tl.sum(total, 0), mask=k < channels)

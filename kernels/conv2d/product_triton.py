"""The Triton kernels of convolutions as matrix products (implicit GEMM): no image of patches is ever made.

Arguments in common: a source image (N, C, height, width), a weight and a result with their strides in elements; groups
are programs of their own, and channel counts are those of a group. TRANSPOSED: the transpose of conv2d in its image,
that is the gradient of x, and conv_transpose2d. KERNEL, STRIDE, PADDING (top, left), DILATION: of the conv2d, vertical
and horizontal. PRECISION: of float32 products, "ieee" or "tf32". Sums are taken in float32, in float64 for float64.
INDEX: int32, or int64 where an array is too long for it. VECTORS: channels lie side by side, 16 at least; only the
kernel report reads it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.activation.activation_triton import activate


@triton.jit
def _taps_of_phase(
    phase, size,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr, COMMON: tl.constexpr,
):  # fmt: skip
    """One dimension of the transpose: the result's coordinates phase, phase + STRIDE, ... meet the same taps.

    Returns (how many coordinates, first tap, how many taps, the source's coordinate that the first of each meets).
    Taps follow each other STRIDE / COMMON apart, COMMON the greatest common divisor of STRIDE and DILATION.
    """
    first = KERNEL
    for r in tl.static_range(STRIDE // COMMON):
        if r < KERNEL:
            first = tl.where((phase + PADDING - r * DILATION) % STRIDE == 0, r, first)
    step: tl.constexpr = STRIDE // COMMON
    begin = (phase + PADDING - first * DILATION) // STRIDE
    return tl.cdiv(size - phase, STRIDE), first, tl.cdiv(KERNEL - first, step), begin


@triton.jit
def convolve(
    source, weight, bias, out, sums, images, in_channels, out_channels, height, width, out_height, out_width,
    x_image, x_channel, x_row, x_column, w_group, w_out, w_in, w_row, w_column, y_image, y_channel, y_row, y_column,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    COMMON_H: tl.constexpr, COMMON_W: tl.constexpr, TRANSPOSED: tl.constexpr, FLAT: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, KEEPS: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, COMPUTED: tl.constexpr,
    INDEX: tl.constexpr, VECTORS: tl.constexpr,
):  # fmt: skip
    """out = act(bias + weight * source), and the sums before the activation where KEEPS, laid out as out is.

    Programs: blocks of output channels, the fastest, then blocks of pixels; phases (STRIDE_H * STRIDE_W where
    TRANSPOSED, else 1); groups. FLAT: taps and channels are one index, for few channels; else a step is in one tap.
    """
    # From a tap to the next: how far in the source, and how far in the filter.
    move_h: tl.constexpr = -(DILATION_H // COMMON_H) if TRANSPOSED else DILATION_H
    move_w: tl.constexpr = -(DILATION_W // COMMON_W) if TRANSPOSED else DILATION_W
    skip_h: tl.constexpr = STRIDE_H // COMMON_H if TRANSPOSED else 1
    skip_w: tl.constexpr = STRIDE_W // COMMON_W if TRANSPOSED else 1
    column_blocks = tl.cdiv(out_channels, COLUMNS)
    program = tl.program_id(0)
    phase = tl.program_id(1)
    group = tl.program_id(2).to(INDEX)
    if TRANSPOSED:
        phase_h = phase // STRIDE_W
        phase_w = phase % STRIDE_W
        grid_h, tap_h, taps_h, begin_h = _taps_of_phase(
            phase_h, out_height, KERNEL_H, STRIDE_H, PADDING_H, DILATION_H, COMMON_H
        )
        grid_w, tap_w, taps_w, begin_w = _taps_of_phase(
            phase_w, out_width, KERNEL_W, STRIDE_W, PADDING_W, DILATION_W, COMMON_W
        )
    else:
        grid_h = out_height
        grid_w = out_width
        tap_h = 0
        tap_w = 0
        taps_h = KERNEL_H
        taps_w = KERNEL_W

    pixel = (program // column_blocks).to(INDEX) * ROWS + tl.arange(0, ROWS)
    plane = tl.maximum(grid_h * grid_w, 1)
    image = pixel // plane
    if TRANSPOSED:
        # A phase behind the last row or column has no pixel at all.
        exists = image < tl.where(grid_h * grid_w > 0, images, 0)
    else:
        exists = image < images
    in_plane = (pixel % plane).to(tl.int32)
    i = in_plane // tl.maximum(grid_w, 1)
    j = in_plane % tl.maximum(grid_w, 1)
    if TRANSPOSED:
        h = i + begin_h
        w = j + begin_w
        target_row = phase_h + i * STRIDE_H
        target_column = phase_w + j * STRIDE_W
    else:
        h = i * STRIDE_H - PADDING_H
        w = j * STRIDE_W - PADDING_W
        target_row = i
        target_column = j
    begin = image * x_image + h.to(INDEX) * x_row + w.to(INDEX) * x_column + group * in_channels * x_channel

    k = program % column_blocks * COLUMNS + tl.arange(0, COLUMNS)
    of_output = k < out_channels
    filters = group * w_group + k.to(INDEX) * w_out
    lane = tl.arange(0, INNER)
    total = tl.zeros((ROWS, COLUMNS), COMPUTED)
    if FLAT:
        terms = taps_h * taps_w * in_channels
        for first in range(0, terms, INNER):
            term = first + lane
            tap = term // in_channels
            c = term % in_channels
            a = tap // taps_w
            b = tap % taps_w
            places = a.to(INDEX) * move_h * x_row + b.to(INDEX) * move_w * x_column + c.to(INDEX) * x_channel
            row = h[:, None] + (a * move_h)[None, :]
            column = w[:, None] + (b * move_w)[None, :]
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            x = tl.load(
                source + begin[:, None] + places[None, :],
                mask=inside & exists[:, None] & (term < terms)[None, :], other=0.0,
            )  # fmt: skip
            of_tap = (tap_h + a * skip_h).to(INDEX) * w_row + (tap_w + b * skip_w).to(INDEX) * w_column
            f = tl.load(
                weight + (of_tap + c.to(INDEX) * w_in)[:, None] + filters[None, :],
                mask=(term < terms)[:, None] & of_output[None, :], other=0.0,
            )  # fmt: skip
            total = tl.dot(x, f, total, input_precision=PRECISION, out_dtype=COMPUTED)
    else:
        blocks = tl.cdiv(in_channels, INNER)
        for step in range(0, taps_h * taps_w * blocks):
            tap = step // blocks
            c = step % blocks * INNER + lane
            a = tap // taps_w
            b = tap % taps_w
            move = (a * move_h).to(INDEX) * x_row + (b * move_w).to(INDEX) * x_column
            row = h + a * move_h
            column = w + b * move_w
            inside = exists & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            x = tl.load(
                source + (begin + move)[:, None] + c.to(INDEX)[None, :] * x_channel,
                mask=inside[:, None] & (c < in_channels)[None, :], other=0.0,
            )  # fmt: skip
            of_tap = (tap_h + a * skip_h).to(INDEX) * w_row + (tap_w + b * skip_w).to(INDEX) * w_column
            f = tl.load(
                weight + (c.to(INDEX) * w_in)[:, None] + (filters + of_tap)[None, :],
                mask=(c < in_channels)[:, None] & of_output[None, :], other=0.0,
            )  # fmt: skip
            total = tl.dot(x, f, total, input_precision=PRECISION, out_dtype=COMPUTED)

    channel = group * out_channels + k
    if HAS_BIAS:
        total += tl.load(bias + channel, mask=of_output, other=0.0).to(COMPUTED)[None, :]
    target = image * y_image + target_row.to(INDEX) * y_row + target_column.to(INDEX) * y_column
    places = target[:, None] + (channel * y_channel)[None, :]
    mask = exists[:, None] & of_output[None, :]
    if KEEPS:
        tl.store(sums + places, total.to(sums.dtype.element_ty), mask=mask)
    tl.store(out + places, activate(total, ACTIVATION).to(out.dtype.element_ty), mask=mask)


@triton.jit
def weight_gradient_of_parts(
    grad, source, parts, images, in_channels, out_channels, height, width, out_height, out_width, part, whole,
    g_image, g_channel, g_row, g_column, x_image, x_channel, x_row, x_column, p_out, p_in, p_tap,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, COMPUTED: tl.constexpr,
    INDEX: tl.constexpr, VECTORS: tl.constexpr,
):  # fmt: skip
    """What `part` pixels give to the gradient of conv2d's weight: a row of parts (parts, whole), whole its elements.

    grad: of the output, (N, C_out, out_height, out_width). p_out, p_in, p_tap: strides of the weight's elements in a
    row. Programs: blocks of output channels, then of taps and input channels; parts; groups.
    """
    row_blocks = tl.cdiv(out_channels, ROWS)
    program = tl.program_id(0)
    number = tl.program_id(1).to(INDEX)
    group = tl.program_id(2).to(INDEX)
    k = program % row_blocks * ROWS + tl.arange(0, ROWS)
    term = program // row_blocks * COLUMNS + tl.arange(0, COLUMNS)
    terms = KERNEL_H * KERNEL_W * in_channels
    tap = term // in_channels
    c = term % in_channels
    down = tap // KERNEL_W * DILATION_H - PADDING_H
    right = tap % KERNEL_W * DILATION_W - PADDING_W
    places = (group * in_channels + c) * x_channel + down.to(INDEX) * x_row + right.to(INDEX) * x_column
    outputs = (group * out_channels + k) * g_channel
    plane = out_height * out_width
    total = tl.zeros((ROWS, COLUMNS), COMPUTED)
    for first in range(0, part, INNER):
        pixel = number * part + first + tl.arange(0, INNER)
        image = pixel // plane
        exists = image < images
        in_plane = (pixel % plane).to(tl.int32)
        i = in_plane // out_width
        j = in_plane % out_width
        at = image * g_image + i.to(INDEX) * g_row + j.to(INDEX) * g_column
        g = tl.load(
            grad + at[:, None] + outputs[None, :], mask=exists[:, None] & (k < out_channels)[None, :], other=0.0
        )
        row = (i * STRIDE_H)[:, None] + down[None, :]
        column = (j * STRIDE_W)[:, None] + right[None, :]
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        at = image * x_image + (i * STRIDE_H).to(INDEX) * x_row + (j * STRIDE_W).to(INDEX) * x_column
        x = tl.load(
            source + at[:, None] + places[None, :], mask=inside & exists[:, None] & (term < terms)[None, :], other=0.0
        )
        total = tl.dot(tl.trans(g), x, total, input_precision=PRECISION, out_dtype=COMPUTED)
    found = number * whole + (group * out_channels + k)[:, None] * p_out + (c * p_in + tap * p_tap)[None, :]
    tl.store(parts + found, total, mask=(k < out_channels)[:, None] & (term < terms)[None, :])

"""Backward kernels of the poolings.

A maximum sends each gradient to one input: they are added plane by plane in the order of the outputs, so equal inputs
give equal bits for any number of threads. A mean spreads each gradient over a window: here each input gathers the
outputs whose windows hold it, from tables int64 [2, inputs] of the first such output and of one past the last.

In all of them `sizes` is int64, of passes_cpu.sizes_of, `like` any array of the element type, and dy, indices and dx
are addresses.
"""

from __future__ import annotations

from kernels.runtime.numba_cpu import jit, threaded
from kernels.simd import (
    array_at,
    full,
    lane_mask,
    lanes_of,
    load_first,
    load_masked,
    peek,
    pointer,
    poke,
    store,
    store_first,
    store_masked,
    zeros_like,
)


@jit
def _spread_planes(first, last, sizes, like, dy, indices, dx):
    """dx[n, c, indices[n, c, i, j]] += dy[n, c, i, j] for planes [first, last); dx (N, C, H, W) is overwritten."""
    size, outputs = sizes[0] * sizes[1], sizes[2] * sizes[3]
    dy, dx = array_at(like, dy, 1), array_at(like, dx, 1)
    indices = array_at(sizes, indices, 1)
    lanes = lanes_of(dx)
    zero = zeros_like(dx)
    for plane in range(first, last):
        gradient = pointer(dx, plane * size)
        for k in range(0, size, lanes):
            store_first(gradient, k, zero, size - k)
        incoming = pointer(dy, plane * outputs)
        positions = pointer(indices, plane * outputs)
        for k in range(outputs):
            at = peek(positions, k)
            poke(gradient, at, peek(gradient, at) + peek(incoming, k))


@jit
def _fill_planes(first, last, size, like, dy, dx):
    """Planes [first, last) of dx (planes, size) = the gradient of their means, dy (planes,)."""
    dy, dx = array_at(like, dy, 1), array_at(like, dx, 1)
    for plane in range(first, last):
        gradient = pointer(dx, plane * size)
        share = full(dx, dy[plane] / size)
        whole = size - size % lanes_of(dx)
        for k in range(0, whole, lanes_of(dx)):
            store(gradient, k, share)
        if whole < size:
            store_first(gradient, whole, share, size - whole)


@jit
def _spread_channels(first, last, sizes, like, dy, indices, dx, blocks):
    """As `_spread_planes` for dy, indices (N, H_out, W_out, C) and dx (N, H, W, C).

    The channels fall into `blocks` parts; [first, last) counts the parts of all images.
    """
    channels, pixels, outputs = sizes[4], sizes[0] * sizes[1], sizes[2] * sizes[3]
    dy, dx = array_at(like, dy, 1), array_at(like, dx, 1)
    indices = array_at(sizes, indices, 1)
    lanes = lanes_of(dx)
    zero = zeros_like(dx)
    for unit in range(first, last):
        image = unit // blocks
        block = unit - image * blocks
        begin = channels * block // blocks
        length = channels * (block + 1) // blocks - begin
        gradient = pointer(dx, image * pixels * channels + begin)
        for pixel in range(pixels):
            for c in range(0, length, lanes):
                store_first(gradient, pixel * channels + c, zero, length - c)
        incoming = pointer(dy, image * outputs * channels + begin)
        positions = pointer(indices, image * outputs * channels + begin)
        for k in range(outputs):
            for c in range(length):
                at = peek(positions, k * channels + c) * channels + c
                poke(gradient, at, peek(gradient, at) + peek(incoming, k * channels + c))


@jit(forceinline=True)
def _gather_row(incoming, above, row, row_divisors, column_divisors, output_width, sums):
    """sums[j] = what an input of this row gets of the outputs [above[0, row], above[1, row]) of column j."""
    lanes = lanes_of(incoming)
    for j in range(0, output_width, lanes):
        divisor = load_first(column_divisors, j, output_width - j, 1.0)
        total = zeros_like(incoming)
        for i in range(above[0, row], above[1, row]):
            gradient = load_first(incoming, i * output_width + j, output_width - j)
            total = total + gradient / (divisor * row_divisors[i])
        store_first(sums, j, total, output_width - j)


@jit
def _gather_planes(first, last, sizes, like, dy, above, beside, row_divisors, column_divisors, dx, scratch):
    """Gradient of a mean: dy (N, C, H_out, W_out) -> dx (N, C, H, W), planes [first, last).

    above [2, H], beside [2, W]: the outputs whose windows hold each row and each column.
    scratch: [N * C, W_out].
    """
    height, width, output_height, output_width = sizes[0], sizes[1], sizes[2], sizes[3]
    dy, dx = array_at(like, dy, 1), array_at(like, dx, 1)
    divisors = pointer(column_divisors)
    lanes = lanes_of(dx)
    for plane in range(first, last):
        incoming = pointer(dy, plane * output_height * output_width)
        gradient = pointer(dx, plane * height * width)
        sums = pointer(scratch, plane * output_width)
        for row in range(height):
            base = row * width
            if row > 0 and above[0, row] == above[0, row - 1] and above[1, row] == above[1, row - 1]:
                for w in range(0, width, lanes):
                    v = load_first(gradient, base - width + w, width - w)
                    store_first(gradient, base + w, v, width - w)
                continue
            _gather_row(incoming, above, row, row_divisors, divisors, output_width, sums)
            for w in range(width):
                start = beside[0, w]
                end = beside[1, w]
                if start >= end:  # between two windows
                    poke(gradient, base + w, 0.0)
                    continue
                total = peek(sums, start)
                for j in range(start + 1, end):
                    total += peek(sums, j)
                poke(gradient, base + w, total)


@jit
def _gather_channels(first, last, sizes, like, dy, above, beside, row_divisors, column_divisors, dx):
    """As `_gather_planes` for dy (N, H_out, W_out, C) and rows [first, last) of all images of dx (N, H, W, C)."""
    height, width, output_height, output_width, channels = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    dy, dx = array_at(like, dy, 1), array_at(like, dx, 1)
    lanes = lanes_of(dx)
    for unit in range(first, last):
        image = unit // height
        row = unit - image * height
        for w in range(width):
            gradient = pointer(dx, (unit * width + w) * channels)
            for c in range(0, channels, lanes):
                inside = lane_mask(dx, 0, channels - c)
                total = zeros_like(dx)
                for i in range(above[0, row], above[1, row]):
                    incoming = pointer(dy, (image * output_height + i) * output_width * channels + c)
                    for j in range(beside[0, w], beside[1, w]):
                        divisor = row_divisors[i] * column_divisors[j]
                        total = total + load_masked(incoming, j * channels, inside, 0.0) / divisor
                store_masked(gradient, c, total, inside)


fill_planes = threaded(_fill_planes)
spread_planes = threaded(_spread_planes)
spread_channels = threaded(_spread_channels)
gather_planes = threaded(_gather_planes)
gather_channels = threaded(_gather_channels)

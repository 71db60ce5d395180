"""Depthwise convolution of channels-last images, one filter a channel: forward and both gradients.

Vectors run over channels. A pixel meets just the taps that lie in the source, so nothing is padded or copied.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba.np.unsafe.ndarray import to_fixed_tuple

from kernels.activation.vectors import ACTIVATION_CODES, activate
from kernels.conv2d.launch import Launch, Run
from kernels.runtime.by_address import Run as AddressRun
from kernels.runtime.numba_cpu import address, jit, scratch, threaded, threads_for
from kernels.simd import (
    VECTOR_BYTES,
    fma,
    lanes_of,
    load_first,
    pointer,
    pointer_at,
    splat_like,
    store_first,
    transpose,
)

Array = np.ndarray[Any, Any]

#: Multiply-adds that are worth a thread of their own: about ten microseconds.
GRAIN = 100_000


class Pixels(NamedTuple):
    """Sizes of a pass from a source image to a target image of as many channels."""

    images: int
    channels: int
    height: int  # of the source
    width: int
    rows: int  # of the target
    columns: int
    kernel_height: int
    kernel_width: int
    stride_row: int
    stride_column: int
    dilation_row: int
    dilation_column: int
    top: int
    left: int
    transposed: int  # 0: the source is conv2d's image; 1: the source is its output, the target its image
    activation: int
    keeps_sums: int  # the sums before the activation are wanted too


FIELDS = len(Pixels._fields)


@jit
def _source_of(target, tap, stride, dilation, before, transposed):
    """The source row (or column) that a target's meets at a tap; below 0 for none."""
    if transposed:
        distance = target + before - tap * dilation
        quotient = distance // stride
        return quotient if quotient * stride == distance else -1
    return target * stride + tap * dilation - before


@jit
def _correlate_rows(first, last, settings, x, filters, bias, y, before):
    """Target rows [first, last) of all images: y[row, column, c] = act(bias[c] + sum over taps of filter * x).

    settings: int64, the fields of Pixels. filters: elements [kh, kw, C]. x, bias, y, before: addresses of elements [N,
    H, W, C], of [C], of [N, rows, columns, C], and of as many for the sums before the activation, which are
    p.keeps_sums.
    """
    p = Pixels(*to_fixed_tuple(settings, FIELDS))
    source, shifts = pointer_at(x, filters), pointer_at(bias, filters)
    results, kept = pointer_at(y, filters), pointer_at(before, filters)
    lanes = lanes_of(source)
    for line in range(first, last):
        image = line // p.rows
        row = line - image * p.rows
        for c in range(0, p.channels, lanes):
            rest = p.channels - c
            shift = load_first(shifts, c, rest)
            for column in range(p.columns):
                total = splat_like(source, 0.0)
                for r in range(p.kernel_height):
                    h = _source_of(row, r, p.stride_row, p.dilation_row, p.top, p.transposed)
                    if h < 0 or h >= p.height:
                        continue
                    for s in range(p.kernel_width):
                        w = _source_of(column, s, p.stride_column, p.dilation_column, p.left, p.transposed)
                        if w < 0 or w >= p.width:
                            continue
                        place = ((image * p.height + h) * p.width + w) * p.channels + c
                        tap = (r * p.kernel_width + s) * p.channels + c
                        total = fma(load_first(source, place, rest), load_first(pointer(filters), tap, rest), total)
                total = total + shift
                out = (line * p.columns + column) * p.channels + c
                if p.keeps_sums:
                    store_first(kept, out, total, rest)
                if p.activation != 0:
                    total = activate(p.activation, total)
                store_first(results, out, total, rest)


_correlate = threaded(_correlate_rows)


@jit
def _filter_vectors(first, last, settings, x, dy, filters):
    """Vectors [first, last) of channels of filters[r, s, c] = sum over images and pixels of dy * x at tap (r, s).

    settings: int64, the fields of Pixels. x, dy: addresses of elements [N, H, W, C] and [N, rows, columns, C].
    """
    p = Pixels(*to_fixed_tuple(settings, FIELDS))
    source, gradient = pointer_at(x, filters), pointer_at(dy, filters)
    lanes = lanes_of(source)
    for vector in range(first, last):
        c = vector * lanes
        rest = p.channels - c
        for r in range(p.kernel_height):
            for s in range(p.kernel_width):
                total = splat_like(source, 0.0)
                for image in range(p.images):
                    of_image = splat_like(source, 0.0)
                    for row in range(p.rows):
                        h = row * p.stride_row + r * p.dilation_row - p.top
                        if h < 0 or h >= p.height:
                            continue
                        of_row = splat_like(source, 0.0)
                        for column in range(p.columns):
                            w = column * p.stride_column + s * p.dilation_column - p.left
                            if w < 0 or w >= p.width:
                                continue
                            out = ((image * p.rows + row) * p.columns + column) * p.channels + c
                            place = ((image * p.height + h) * p.width + w) * p.channels + c
                            of_row = fma(load_first(gradient, out, rest), load_first(source, place, rest), of_row)
                        of_image = of_image + of_row
                    total = total + of_image
                store_first(pointer(filters), (r * p.kernel_width + s) * p.channels + c, total, rest)


_sum_filters = threaded(_filter_vectors)


@jit
def _turn(matrix, rows, columns, turned, like):
    """turned[column, row] = matrix[row, column]; addresses of elements of the type of `like`."""
    transpose(pointer_at(matrix, like), columns, rows, columns, pointer_at(turned, like), rows)


def _sizes(
    source: tuple[int, ...], target: tuple[int, ...], p: Any, transposed: bool, activation: str | None, keeps_sums: bool
) -> Pixels:
    return Pixels(
        source[0],
        source[1],
        source[2],
        source[3],
        target[2],
        target[3],
        p.kernel[0],
        p.kernel[1],
        p.stride[0],
        p.stride[1],
        p.dilation[0],
        p.dilation[1],
        p.padding[0],
        p.padding[2],
        int(transposed),
        ACTIVATION_CODES[activation],
        int(keeps_sums),
    )


def launch(
    p: Any, source: tuple[int, ...], target: tuple[int, ...], transposed: bool, activation: str | None, keeps_sums: bool
) -> Launch:
    """A depthwise pass on channels-last images, prepared.

    Args:
        p: the problem: kernel, stride, dilation, padding.
        source, target: shapes of the images.
        transposed: whether the source is conv2d's output and the target its image.
        activation: applied to the sums.
        keeps_sums: whether the sums before it are wanted too.
    """
    channels, taps, dtype = source[1], p.kernel[0] * p.kernel[1], np.dtype(p.x.dtype)
    settings = np.array(_sizes(source, target, p, transposed, activation, keeps_sums), np.int64)
    rows = target[0] * target[2]

    def make(threads: int) -> Run:
        def run(x: int, weight: int, bias: int, y: int, before: int) -> bool:
            filters = scratch(taps * channels, dtype)
            _turn(weight, channels, taps, address(filters), filters)
            _correlate(rows, threads, settings, x, filters, bias, y, before)
            return True

        return run

    return Launch(make, rows * target[3] * channels * taps, GRAIN)


def filter_launch(p: Any, image: tuple[int, ...], gradient: tuple[int, ...], dtype: np.dtype[Any]) -> AddressRun:
    """What computes dw (C, 1, kh, kw), contiguous: ``run(x, dy, dw)`` with the addresses of channels-last images of
    these shapes, and of dw."""
    channels, taps = image[1], p.kernel[0] * p.kernel[1]
    settings = np.array(_sizes(image, gradient, p, False, None, False), np.int64)
    vectors, work = -(-channels * dtype.itemsize // VECTOR_BYTES), math.prod(gradient) * taps

    def run(x: int, dy: int, dw: int) -> None:
        filters = scratch(taps * channels, dtype)
        _sum_filters(vectors, threads_for(work, GRAIN), settings, x, dy, filters)
        _turn(address(filters), taps, channels, dw, filters)

    return run

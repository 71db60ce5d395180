"""Moving images and sums: copies, zero margins, and sums of pixels x channels to where an image has them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kernels.activation.vectors import activate
from kernels.runtime.numba_cpu import jit, threaded, threads_for
from kernels.simd import (
    advance,
    broadcast,
    lane_mask,
    lanes_of,
    load,
    load_first,
    load_masked,
    pointer_at,
    splat_like,
    store,
    store_first,
    transpose,
)


class Source(NamedTuple):
    """Sizes and distances of the source image and of its padded copy."""

    channels: int
    height: int
    width: int
    channels_last: int
    top: int
    left: int
    padded_height: int
    padded_row: int
    padded_channel: int
    given_image: int


@jit
def copy_run(src, dst, count):
    """dst[:count] = src[:count]."""
    lanes = lanes_of(src)
    i = 0
    while i + lanes <= count:
        store(dst, i, load(src, i))
        i += lanes
    if i < count:
        store_first(dst, i, load_first(src, i, count - i), count - i)


@jit
def fill(dst, count, value):
    """dst[:count] = value, a vector of the same number."""
    lanes = lanes_of(dst)
    i = 0
    while i + lanes <= count:
        store(dst, i, value)
        i += lanes
    if i < count:
        store_first(dst, i, value, count - i)


@jit
def clear(dst, count):
    """dst[:count] = 0."""
    fill(dst, count, splat_like(dst, 0.0))


@jit
def _fill_parts(first, last, channels, size, bias, y, like):
    """Planes [first, last) of y, each of `size` elements, all of them its channel's bias.

    bias, y: addresses of elements [channels] and [N, channels, size]. like: an array of the elements' type.
    """
    shifts, planes = pointer_at(bias, like), pointer_at(y, like)
    for plane in range(first, last):
        fill(advance(planes, plane * size), size, broadcast(shifts, plane % channels))


_fill_planes = threaded(_fill_parts)
#: Elements that are worth a thread of their own.
_FILL_GRAIN = 100_000


def fill_planes(images: int, channels: int, size: int, bias: int, y: int, like: np.ndarray[Any, Any]) -> None:
    """What passes do first whose grids leave gaps: all of y is its channel's bias. As `_fill_parts`."""
    planes = images * channels
    _fill_planes(planes, threads_for(planes * size, _FILL_GRAIN), channels, size, bias, y, like)


@jit
def pad_image(image, s, first_channel, last_channel, padded):
    """Copy channels [first, last) of one image into its place in `padded`, with zeros around.

    image: elements [C, H, W], or [H, W, C] when channels-last (then all channels are copied, as one wide plane).
    """
    planes_from, planes_to, thick = first_channel, last_channel, 1
    if s.channels_last:
        planes_from, planes_to, thick = 0, 1, s.channels
    run = s.width * thick
    before = s.left * thick
    after = s.padded_row - before - run
    lanes = lanes_of(image)
    # Rows that fit into a vector are stored as one, as long as that ends inside the plane: what is past the row's end
    # is written over by the next.
    whole = 0
    if s.padded_row <= lanes:
        whole = min(s.height, (s.padded_height * s.padded_row - lanes) // s.padded_row + 1 - s.top)
    mask = lane_mask(image, before, before + run)
    for c in range(planes_from, planes_to):
        plane = advance(padded, c * s.padded_channel)
        clear(plane, s.top * s.padded_row)
        row = advance(plane, s.top * s.padded_row)
        source = advance(image, c * s.height * run)
        for _ in range(whole):
            store(row, 0, load_masked(source, -before, mask, 0.0))
            source = advance(source, run)
            row = advance(row, s.padded_row)
        for _ in range(max(whole, 0), s.height):
            clear(row, before)
            copy_run(source, advance(row, before), run)
            clear(advance(row, before + run), after)
            source = advance(source, run)
            row = advance(row, s.padded_row)
        clear(row, (s.padded_height - s.top - s.height) * s.padded_row)


@jit
def add_bias(sums, rows, width, valid, bias):
    """sums[row, :width] += bias for every row; bias: [valid <= width] elements."""
    lanes = lanes_of(sums)
    for j in range(0, width, lanes):
        shift = load_first(bias, j, valid - j)
        for r in range(rows):
            store(sums, r * width + j, load(sums, r * width + j) + shift)


@jit
def apply_activation(sums, count, code):
    """sums[:count] = act(sums[:count]); count is a multiple of the lanes, code one of ACTIVATION_CODES."""
    lanes = lanes_of(sums)
    if code == 1:
        for i in range(0, count, lanes):
            store(sums, i, activate(1, load(sums, i)))
    elif code != 0:
        for i in range(0, count, lanes):
            store(sums, i, activate(code, load(sums, i)))


@jit
def write_sums(sums, rows, width, valid, first, plane, y, out_image, out_channel):
    """y at pixel first + row and channel c = sums[row, c] for c < valid; pixels are counted through all images.

    plane: pixels of an image. y: begins at the first of the channels. Channels next to each other are stored as they
    are; else pixels next to each other, up to an image's end, are turned by transposes.
    """
    lanes = lanes_of(sums)
    if out_channel == 1:
        step = out_image // plane
        for r in range(rows):
            for j in range(0, valid, lanes):
                store_first(y, (first + r) * step + j, load(sums, r * width + j), valid - j)
        return
    r = 0
    while r < rows:
        image = (first + r) // plane
        pixel = first + r - image * plane
        run = min(rows - r, plane - pixel)
        target = advance(y, image * out_image + pixel)
        transpose(advance(sums, r * width), width, run, valid, target, out_channel)
        r += run

"""Backward of the windows: each gradient, times the activation's derivative, goes to the winner of its window.

Vectors run over channels, as the winners lie: a tap's gradient is the window's in the lanes where it won, else 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.np.unsafe.ndarray import to_fixed_tuple

from kernels.activation.vectors import ACTIVATION_CODES, activation_gradient
from kernels.conv2d.image_pass import MOVE_GRAIN, tile_width
from kernels.conv2d.launch import in_lines
from kernels.conv2d.weight_gradient import bias_launch
from kernels.conv2d_max_pool2d.bands import Windows
from kernels.runtime.by_address import LIKE, Run, by_threads
from kernels.runtime.numba_cpu import address, jit, scratch, threaded
from kernels.simd import (
    advance,
    array_at,
    lane_mask,
    lanes_of,
    load,
    load_bytes_masked,
    load_first,
    load_masked,
    pointer,
    pointer_at,
    select,
    splat_integer,
    store,
    store_first,
    store_masked,
    transpose,
    zeros_like,
)


class Route(NamedTuple):
    """Sizes of a pass; every field an int."""

    channels: int
    code: int  # of the activation
    incoming_last: int  # the gradients come channels-last
    outgoing_last: int  # and leave so
    disjoint: int  # no two windows share a pixel
    covered: int  # every pixel of the map is in a window
    images: int
    # Where in scratch begin the gradients of a tile, the turned maps and the sums of images; the lines are the first.
    at_g: int
    at_maps: int
    at_sums: int


FIELDS, WINDOW_FIELDS = len(Route._fields), len(Windows._fields)


@jit(inline="always")
def _derived(grad, known, code):
    if code == 0:
        return grad
    return activation_gradient(1, grad, known) if code == 1 else activation_gradient(code, grad, known)


@jit
def _incoming(r, w, image, channel, valid, dy, known, lines, g):
    """g[window, :] = gradients of the sums at the winners, of `valid` channels from `channel` on.

    lines: scratch elements [tile width, windows]. g: elements [windows, tile width].
    """
    lanes = lanes_of(g)
    width = 2 * lanes
    count = w.rows * w.columns
    if r.incoming_last:
        place = image * count * r.channels + channel
        for j in range(0, valid, lanes):
            inside = lane_mask(g, 0, valid - j)
            for q in range(count):
                at = place + q * r.channels + j
                grad = load_masked(dy, at, inside, 0.0)
                store(g, q * width + j, _derived(grad, load_masked(known, at, inside, 0.0), r.code))
        return
    place = (image * r.channels + channel) * count
    if r.code == 0:
        transpose(advance(dy, place), count, valid, count, g, width)
        return
    whole = valid * count // lanes * lanes
    for i in range(0, whole, lanes):
        store(lines, i, _derived(load(dy, place + i), load(known, place + i), r.code))
    rest = valid * count - whole
    if rest > 0:
        grad = load_first(dy, place + whole, rest)
        store_first(lines, whole, _derived(grad, load_first(known, place + whole, rest), r.code), rest)
    transpose(lines, count, valid, count, g, width)


@jit
def _sum(g, rows, columns, valid, sums):
    """sums[:valid] = sums of g [rows, columns, tile width], row by row."""
    lanes = lanes_of(g)
    width = 2 * lanes
    for j in range(0, valid, lanes):
        total = zeros_like(g)
        for i in range(rows):
            part = zeros_like(g)
            for q in range(i * columns, (i + 1) * columns):
                part = part + load(g, q * width + j)
            total = total + part
        store_first(sums, j, total, valid - j)


@jit
def route_image(r, w, g, winners, valid, out, pitch):
    """out[pixel * pitch + channel] = g where the pixel won its window, for `valid` channels; 0 elsewhere.

    g: elements [windows, tile width]. winners: bytes [windows, r.channels] from the first of the channels on.
    """
    lanes = lanes_of(g)
    width = 2 * lanes
    line = w.map_columns * pitch
    for j in range(0, valid, lanes):
        inside = lane_mask(g, 0, valid - j)
        zero = zeros_like(g)
        if not r.covered:
            for pixel in range(w.map_rows * w.map_columns):
                store_masked(out, pixel * pitch + j, zero, inside)
        for i in range(w.rows):
            first = i * w.down - w.above
            top = max(first, 0)
            bottom = min(first + w.height, w.map_rows)
            for q in range(w.columns):
                left = q * w.along - w.left
                right = min(left + w.width, w.map_columns)
                tap = (top - first) * w.width + max(-left, 0)
                left = max(left, 0)
                window = i * w.columns + q
                grad = load(g, window * width + j)
                at = load_bytes_masked(g, winners, window * r.channels + j, inside)
                p = advance(out, top * line + left * pitch + j)
                if r.disjoint:
                    for row in range(bottom - top):
                        for column in range(right - left):
                            won = at == splat_integer(g, tap + row * w.width + column)
                            store_masked(p, row * line + column * pitch, select(won, grad, zero), inside)
                else:
                    for row in range(bottom - top):
                        for column in range(right - left):
                            won = at == splat_integer(g, tap + row * w.width + column)
                            place = row * line + column * pitch
                            old = load_masked(p, place, inside, 0.0)
                            store_masked(p, place, old + select(won, grad, zero), inside)


@jit
def _route_parts(first, last, parts, settings, bytes_like, dy, known, winners, out, scratch):
    """Parts [first, last) of all images x tiles of channels.

    settings: int64, the fields of Route and Windows. bytes_like: any array of uint8. dy, known, winners, out: addresses
    of the gradients, of what the derivative reads, of bytes and of the result. scratch: lines, elements [parts, windows
    * tile width]; from r.at_g on as many; from r.at_maps on [parts, map * tile width] where the result is not
    channels-last; from r.at_sums on [N, channels], the sums over each image's windows.
    """
    r = Route(*to_fixed_tuple(settings, FIELDS))
    w = Windows(*to_fixed_tuple(settings[FIELDS:], WINDOW_FIELDS))
    arriving, kept, results = pointer_at(dy, scratch), pointer_at(known, scratch), pointer_at(out, scratch)
    taps = array_at(bytes_like, winners, 1)
    width = 2 * lanes_of(scratch)
    blocks = (r.channels + width - 1) // width
    count = w.rows * w.columns
    pixels = w.map_rows * w.map_columns
    units = r.images * blocks
    for part in range(first, last):
        here = pointer(scratch, r.at_g + part * count * width)
        free = pointer(scratch, part * count * width)
        for unit in range(units * part // parts, units * (part + 1) // parts):
            image = unit // blocks
            channel = (unit - image * blocks) * width
            valid = min(width, r.channels - channel)
            taken = pointer(taps, image * count * r.channels + channel)
            _incoming(r, w, image, channel, valid, arriving, kept, free, here)
            _sum(here, w.rows, w.columns, valid, pointer(scratch, r.at_sums + image * r.channels + channel))
            if r.outgoing_last:
                place = image * pixels * r.channels + channel
                route_image(r, w, here, taken, valid, advance(results, place), r.channels)
            else:
                turned = pointer(scratch, r.at_maps + part * pixels * width)
                route_image(r, w, here, taken, valid, turned, width)
                place = (image * r.channels + channel) * pixels
                transpose(turned, width, pixels, valid, advance(results, place), pixels)


_route = threaded(_route_parts)


def launch(
    w: Windows,
    images: int,
    channels: int,
    dtype: np.dtype[Any],
    activation: str | None,
    incoming_last: bool,
    outgoing_last: bool,
) -> Run:
    """What computes the gradient of the part of the convolution that the windows see, and of the bias, prepared.

    ``run(dy, known, winners, out, db)``: addresses of dense (N, C, PH, PW) gradients, of what the activation's
    derivative reads as these lie (0 without an activation), of bytes (N, C, PH, PW) that lie channels-last, of the
    map's gradient, and of the bias's (C,), or 0.

    Args:
        w: the windows.
        images, channels: N and C.
        dtype: of the numbers.
        activation: between the convolution and the windows.
        incoming_last: the layout of dy and known.
        outgoing_last: the layout of out.
    """
    width = tile_width(dtype)
    disjoint = w.down >= w.height and w.along >= w.width
    covered = (w.down, w.along) == (w.height, w.width) and w.above == w.left == 0
    flags = (int(incoming_last), int(outgoing_last), int(disjoint), int(covered))
    units, bytes_like = images * -(-channels // width), LIKE["uint8"]
    to_bias = bias_launch((images, channels, 1, 1), dtype, True)

    def make(threads: int) -> Run:
        parts = min(units, threads)
        lines = parts * w.pixels * width
        begins = in_lines((lines, lines, 0 if outgoing_last else parts * w.map_pixels * width, images * channels))
        r = Route(channels, ACTIVATION_CODES[activation], *flags, images, *begins[1:4])
        settings, total = np.array((*r, *w), np.int64), begins[-1]

        def run(dy: int, known: int, winners: int, out: int, db: int) -> None:
            memory = scratch(total, dtype)
            _route(parts, parts, parts, settings, bytes_like, dy, known or dy, winners, out, memory)
            if db:
                to_bias(address(memory) + r.at_sums * dtype.itemsize, db)

        return run

    return by_threads(make, images * channels * w.map_pixels, MOVE_GRAIN)

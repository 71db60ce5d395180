"""Backward of the windows: each gradient, times the activation's derivative, goes to the winner of its window.

Vectors run over channels, as the winners lie: a tap's gradient is the window's in the lanes where it won, else 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kernels.activation.vectors import ACTIVATION_CODES, activation_gradient
from kernels.conv2d.image_pass import MOVE_GRAIN, flat, tile_width
from kernels.conv2d.weight_gradient import bias_gradient
from kernels.conv2d_max_pool2d.bands import Windows
from kernels.runtime.numba_cpu import empty, jit, scratch, threaded, threads_for
from kernels.simd import (
    advance,
    lane_mask,
    lanes_of,
    load,
    load_bytes_masked,
    load_first,
    load_masked,
    pointer,
    select,
    splat_integer,
    store,
    store_first,
    store_masked,
    transpose,
    zeros_like,
)

Array = np.ndarray[Any, Any]


class Route(NamedTuple):
    """Sizes of a pass; every field an int."""

    channels: int
    code: int  # of the activation
    incoming_last: int  # the gradients come channels-last
    outgoing_last: int  # and leave so
    disjoint: int  # no two windows share a pixel
    covered: int  # every pixel of the map is in a window


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
def _route_parts(first, last, parts, r, w, dy, known, winners, lines, g, maps, sums, out):
    """Parts [first, last) of all images x tiles of channels.

    r, w: Route and Windows. dy, known: elements of the gradients, and of what the derivative reads. winners: bytes.
    lines, g: scratch elements [parts, windows * tile width]; maps: [parts, map * tile width], or [1] where the result
    is channels-last. sums: elements [N, channels], the sums over each image's windows. out: the result's elements.
    """
    width = 2 * lanes_of(out)
    blocks = (r.channels + width - 1) // width
    count = w.rows * w.columns
    pixels = w.map_rows * w.map_columns
    units = sums.shape[0] * blocks
    for part in range(first, last):
        here = pointer(g, part * count * width)
        free = pointer(lines, part * count * width)
        for unit in range(units * part // parts, units * (part + 1) // parts):
            image = unit // blocks
            channel = (unit - image * blocks) * width
            valid = min(width, r.channels - channel)
            taken = pointer(winners, image * count * r.channels + channel)
            _incoming(r, w, image, channel, valid, pointer(dy), pointer(known), free, here)
            _sum(here, w.rows, w.columns, valid, pointer(sums, image * r.channels + channel))
            if r.outgoing_last:
                place = image * pixels * r.channels + channel
                route_image(r, w, here, taken, valid, pointer(out, place), r.channels)
            else:
                turned = pointer(maps, part * pixels * width)
                route_image(r, w, here, taken, valid, turned, width)
                transpose(turned, width, pixels, valid, pointer(out, (image * r.channels + channel) * pixels), pixels)


_route = threaded(_route_parts)


def route_gradient(
    w: Windows,
    grad_output: Array,
    known: Array | None,
    winners: Array,
    activation: str | None,
    incoming_last: bool,
    outgoing_last: bool,
) -> tuple[Array, Array]:
    """The gradient of the part of the convolution that the windows see, and of the bias.

    Args:
        w: the windows.
        grad_output: dense (N, C, PH, PW).
        known: what the activation's derivative reads, as grad_output; None without an activation.
        winners: bytes (N, C, PH, PW), channels-last.
        activation: between the convolution and the windows.
        incoming_last: the layout of grad_output.
        outgoing_last: the layout of the result.
    """
    images, channels = grad_output.shape[:2]
    dtype = grad_output.dtype
    width = tile_width(dtype)
    disjoint = w.down >= w.height and w.along >= w.width
    covered = (w.down, w.along) == (w.height, w.width) and w.above == w.left == 0
    r = Route(
        channels, ACTIVATION_CODES[activation], int(incoming_last), int(outgoing_last), int(disjoint), int(covered)
    )
    units = images * -(-channels // width)
    parts = min(units, threads_for(images * channels * w.map_pixels, MOVE_GRAIN))
    sums = empty((images, channels), dtype)
    shape = (images, w.map_rows, w.map_columns, channels)
    out = empty(shape if outgoing_last else (images, channels, w.map_rows, w.map_columns), dtype)
    _route(
        parts,
        parts,
        parts,
        r,
        w,
        flat(grad_output),
        flat(grad_output if known is None else known),
        flat(winners),
        scratch(parts * w.pixels * width, dtype),
        scratch(parts * w.pixels * width, dtype),
        scratch(1 if outgoing_last else parts * w.map_pixels * width, dtype),
        sums,
        out.reshape(-1),
    )
    return out.transpose(0, 3, 1, 2) if outgoing_last else out, bias_gradient(sums[:, :, None, None], True)

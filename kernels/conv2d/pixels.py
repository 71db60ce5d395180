"""The pixels of a pass of the gather kernel: which of them share a tile, and where their inputs lie.

A block of output pixels becomes lists of places, one class after another, each filled up to whole tiles; on the way its
images are padded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kernels.conv2d.geometry import Table
from kernels.conv2d.moves import pad_image
from kernels.runtime.numba_cpu import jit
from kernels.simd import TILE_ROWS, advance, lanes_of, peek, poke

#: Rows of the tile for what is left of a class of pixels, when that is few.
FEW_ROWS = 4


class Pass(NamedTuple):
    """Sizes and distances of a pass; all in elements and pixels."""

    images: int
    rows: int  # of the output
    columns: int
    padded_image: int
    padded_channel: int
    slots: int  # padded images that a part keeps at once; 0: the source is read where it lies
    out_image: int
    out_channel: int
    groups: int
    group_inputs: int  # source channels of a group
    group_outputs: int  # output channels of a group
    kernel_taps: int  # taps of a whole filter
    block: int  # output pixels of a block
    list_size: int  # entries of a block's lists of pixels, each class filled up to whole tiles
    activation: int  # its code in ACTIVATION_CODES
    pixel_parts: int  # the work falls into pixel_parts * block_parts parts
    block_parts: int
    panel_inputs: int  # channels whose weights are packed right before their use; 0: all of them are packed
    weight_out: int  # distances in the weight
    weight_in: int
    weight_group: int
    keeps_sums: int  # the sums before the activation are wanted too
    parts: int  # where in scratch the memory of the parts begins, behind the panels that all of them read
    part_size: int  # from there to that of the next part
    panels: int  # where in a part's the panels that it packs itself begin, the totals, and the int64 lists
    totals: int
    lists: int


class Meetings(NamedTuple):
    """Which source pixels and taps each output pixel meets, as int64 tables.

    Pixels fall into classes that share their taps: the class of (i, j) is row_class[i] + column_class[j], and its
    place in the source row_place[i] + column_place[j].
    """

    row_class: Table
    row_place: Table
    column_class: Table
    column_place: Table
    classes: np.ndarray[Any, np.dtype[np.int64]]  # [classes, 3]: taps, channels of a chunk, start in the tap tables
    source_taps: Table  # a chunk of channels x taps: where the source has them, from a pixel's place
    weight_taps: Table  # and where a panel has them


@jit
def _pad_next(p, x, s, image, source, ready):
    """Pads `image` if it is not among the `ready` ones; returns the first image that is not padded yet."""
    if p.slots and image >= ready:
        pad_image(
            advance(x, image * s.given_image), s, 0, s.channels, advance(source, image % p.slots * p.padded_image)
        )
        return image + 1
    return ready


@jit
def end_class(p, lists, width, position, size):
    """The end of a class of `size` pixels at `position` of the lists, filled up to a whole tile of either size."""
    rest = size % TILE_ROWS
    end = position + size - rest + (0 if rest == 0 else FEW_ROWS if rest <= FEW_ROWS else TILE_ROWS)
    for at in range(position + size, end):
        poke(lists, p.list_size + at, p.block * width)  # totals that nobody reads
    return end


@jit
def repeat_last(lists, position, end):
    """Rows past the end of a class repeat its last pixel."""
    for at in range(position, end):
        poke(lists, at, peek(lists, position - 1))


@jit
def _list_pixels(p, m, begin, count, x, s, source, ready, lists, starts):
    """As `sort_pixels` for a single class: rows of pixels one after another."""
    width = 2 * lanes_of(source)
    plane = p.rows * p.columns
    q = 0
    while q < count:
        image = (begin + q) // plane
        pixel = begin + q - image * plane
        ready = _pad_next(p, x, s, image, source, ready)
        i = pixel // p.columns
        j = pixel - i * p.columns
        run = min(count - q, p.columns - j)
        slot = image % p.slots if p.slots else image
        place = slot * p.padded_image + m.row_place[i]
        for t in range(run):
            poke(lists, q + t, place + m.column_place[j + t])
        q += run
    for t in range(count):
        poke(lists, p.list_size + t, t * width)
    end = end_class(p, lists, width, 0, count)
    repeat_last(lists, count, end)
    poke(starts, 0, 0)
    poke(starts, 1, end)
    return ready


@jit
def sort_pixels(p, m, begin, count, x, s, source, ready, lists, starts):
    """Lists of a block's pixels by class; pads the images that they need.

    lists: int64 [3, list_size]: places in the source by class, places in the totals by class, scratch. starts: int64
    [2, classes + 1]: where a class begins, scratch. Returns the first image that is not padded yet.
    """
    classes = m.classes.shape[0]
    if classes == 1:
        return _list_pixels(p, m, begin, count, x, s, source, ready, lists, starts)
    width = 2 * lanes_of(source)
    kinds = advance(lists, 2 * p.list_size)
    for k in range(classes + 1):
        poke(starts, k, 0)
    plane = p.rows * p.columns
    image = begin // plane
    i = (begin - image * plane) // p.columns
    j = begin - image * plane - i * p.columns
    for q in range(count):
        if q == 0 or (i == 0 and j == 0):
            ready = _pad_next(p, x, s, image, source, ready)
        kind = m.row_class[i] + m.column_class[j]
        poke(kinds, q, kind)
        poke(starts, kind, peek(starts, kind) + 1)
        j += 1
        if j == p.columns:
            j = 0
            i += 1
            if i == p.rows:
                i = 0
                image += 1
    # From counts to starts.
    following = advance(starts, classes + 1)
    position = 0
    for k in range(classes):
        size = peek(starts, k)
        poke(starts, k, position)
        poke(following, k, position)
        position = end_class(p, lists, width, position, size)
    poke(starts, classes, position)
    image = begin // plane
    i = (begin - image * plane) // p.columns
    j = begin - image * plane - i * p.columns
    for q in range(count):
        kind = peek(kinds, q)
        at = peek(following, kind)
        poke(following, kind, at + 1)
        slot = image % p.slots if p.slots else image
        poke(lists, at, slot * p.padded_image + m.row_place[i] + m.column_place[j])
        poke(lists, p.list_size + at, q * width)
        j += 1
        if j == p.columns:
            j = 0
            i += 1
            if i == p.rows:
                i = 0
                image += 1
    for k in range(classes):
        repeat_last(lists, peek(following, k), peek(starts, k + 1))
    return ready

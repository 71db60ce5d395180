"""Windows over sums [pixel, channel] that lie in cache: vectors run over channels, so nothing is shuffled.

`w` is a `Windows` of bands.py. `sums` holds the map's rows from `base` on, [rows, map columns, width], without bias.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kernels.activation.vectors import ACTIVATION_CODES, activate
from kernels.conv2d.image_pass import flat
from kernels.conv2d.moves import write_sums
from kernels.conv2d_max_pool2d.bands import Windows
from kernels.runtime.numba_cpu import jit
from kernels.simd import (
    advance,
    is_nan,
    lane_mask,
    lanes_of,
    load,
    load_first,
    maximum_nan,
    pointer,
    select,
    splat_integer,
    splat_like,
    store,
    store_bytes_masked,
)

Array = np.ndarray[Any, Any]


#: ``run(x, weight, bias, y, winners, before)`` with the addresses of arrays in the layout of the pass, the winners
#: channels-last; 0 for winners, and for the sums of the winners `before`, that are not kept. False where the kernel
#: could not do it.
PoolRun = Callable[[int, int, int, int, int, int], bool]


class Target(NamedTuple):
    """What comes of the windows and where it lies; every field an int, distances in elements."""

    outputs: int  # channels
    out_image: int
    out_channel: int
    activation: int  # its code
    keeps_winners: int
    keeps_sums: int
    activates_sums: int  # bias and activation come before the windows, in place; else the windows add them


def target_of(
    w: Windows, channels: int, activation: str | None, channels_last: bool, keeps_winners: bool, keeps_sums: bool
) -> Target:
    """The target of a pass with so many output channels."""
    code = ACTIVATION_CODES[activation]
    return Target(
        channels,
        channels * w.pixels,
        1 if channels_last else w.pixels,
        code,
        int(keeps_winners),
        int(keeps_sums),
        int(code > 1 and not keeps_winners),
    )


def elements(array: Array) -> Array:
    """The elements of a dense array in memory order, without a copy."""
    return flat(array) if array.size else array.reshape(-1)


@jit(inline="always")
def at_least(v, floor):
    """relu with a floor of 0, nothing with one of -inf; NaN and -0.0 pass."""
    return select(v < floor, floor, v)


@jit(inline="always")
def floor_of(like, code):
    """What `at_least` takes for an activation's code: 1 is relu, any other none."""
    return splat_like(like, 0.0 if code == 1 else -np.inf)


@jit
def pool_values(sums, w, base, begin, end, width, bias, valid, code, pooled):
    """pooled[i, j, :] = act(max of the window + bias) for the rows of windows [begin, end).

    A rounded sum grows with what is added, and so does relu: they may follow the maximum. code: 1 is relu, any other
    none; `valid` channels of the `width` have a bias, and the others are not pooled.
    """
    lanes = lanes_of(sums)
    floor = floor_of(sums, code)
    line = w.map_columns * width
    for c in range(0, valid, lanes):
        shift = load_first(bias, c, valid - c)
        for i in range(begin, end):
            first = i * w.down - w.above
            top = max(first, 0)
            bottom = min(first + w.height, w.map_rows)
            row = advance(sums, (top - base) * line + c)
            target = advance(pooled, (i - begin) * w.columns * width + c)
            for j in range(w.columns):
                left = j * w.along - w.left
                right = min(left + w.width, w.map_columns)
                left = max(left, 0)
                p = advance(row, left * width)
                if bottom - top == 2 and right - left == 2:
                    a = maximum_nan(load(p, 0), load(p, width))
                    b = maximum_nan(load(p, line), load(p, line + width))
                    best = maximum_nan(a, b)
                elif right - left == 3:
                    best = maximum_nan(maximum_nan(load(p, 0), load(p, width)), load(p, 2 * width))
                    for r in range(1, bottom - top):
                        q = advance(p, r * line)
                        a = maximum_nan(maximum_nan(load(q, 0), load(q, width)), load(q, 2 * width))
                        best = maximum_nan(best, a)
                else:
                    best = load(p, 0)
                    for r in range(bottom - top):
                        for s in range(right - left):
                            best = maximum_nan(load(p, r * line + s * width), best)
                store(target, j * width, at_least(best + shift, floor))


@jit(inline="always")
def choose(v, tap, best, at):
    """A value joins the search: it wins when it is larger or NaN."""
    wins = (v > best) | is_nan(v)
    return select(wins, v, best), select(wins, splat_integer(v, tap), at)


@jit
def pool_winners(sums, w, base, begin, end, width, bias, valid, code, pooled, winners, channels, kept, keeps):
    """As `pool_values`, for any code, and which tap of its window each maximum is.

    winners: bytes [rows of windows, columns, channels], from the first of these channels on. kept: as `pooled`, the
    sums with bias of the winners, where `keeps` says that they are wanted.
    """
    lanes = lanes_of(sums)
    floor = floor_of(sums, code)
    line = w.map_columns * width
    for c in range(0, valid, lanes):
        shift = load_first(bias, c, valid - c)
        inside = lane_mask(sums, 0, valid - c)
        for i in range(begin, end):
            first = i * w.down - w.above
            top = max(first, 0)
            bottom = min(first + w.height, w.map_rows)
            row = advance(sums, (top - base) * line + c)
            place = (i - begin) * w.columns
            for j in range(w.columns):
                left = j * w.along - w.left
                right = min(left + w.width, w.map_columns)
                tap = (top - first) * w.width + max(-left, 0)
                left = max(left, 0)
                p = advance(row, left * width)
                at = splat_integer(sums, tap)
                if bottom - top == 2 and right - left == 2 and code <= 1:
                    best = at_least(load(p, 0) + shift, floor)
                    best, at = choose(at_least(load(p, width) + shift, floor), tap + 1, best, at)
                    best, at = choose(at_least(load(p, line) + shift, floor), tap + w.width, best, at)
                    best, at = choose(at_least(load(p, line + width) + shift, floor), tap + w.width + 1, best, at)
                else:
                    best = splat_like(sums, -np.inf)
                    known = best
                    for r in range(bottom - top):
                        for s in range(right - left):
                            before = load(p, r * line + s * width) + shift
                            v = at_least(before, floor) if code <= 1 else activate(code, before)
                            wins = (v > best) | is_nan(v)
                            best = select(wins, v, best)
                            known = select(wins, before, known)
                            at = select(wins, splat_integer(sums, tap + r * w.width + s), at)
                    if keeps:
                        store(kept, (place + j) * width + c, known)
                store(pooled, (place + j) * width + c, best)
                store_bytes_masked(winners, (place + j) * channels + c, at, inside)


@jit
def pool_band(t, w, band, totals, width, valid, channel, bias, pooled, kept, y, winners, before):
    """Pool a band's sums of the channels from `channel` on, and write what comes of it.

    t, w: Target and Windows. band: a row of the table of bands.py. totals: the band's sums, [pixels, width] with
    `valid` channels. bias: elements [outputs], added by the windows. pooled, kept: scratch elements [windows, width].
    y, before: elements of the output, and as these of the winners' sums. winners: bytes, channels-last.
    """
    image, images, begin, end, base = band[0], band[1], band[4], band[5], band[6]
    if end <= begin:
        return
    count = (end - begin) * w.columns
    shift = pointer(bias, channel)
    for n in range(images):
        sums = advance(totals, n * w.map_rows * w.map_columns * width)
        out = advance(pooled, n * count * width)
        if t.keeps_winners:
            place = ((image + n) * w.rows + begin) * w.columns * t.outputs + channel
            known = advance(kept, n * count * width if t.keeps_sums else 0)
            pool_winners(
                sums, w, base, begin, end, width, shift, valid, t.activation, out, pointer(winners, place), t.outputs,
                known, t.keeps_sums,
            )  # fmt: skip
        else:
            pool_values(sums, w, base, begin, end, width, shift, valid, t.activation, out)
    first = (image * w.rows + begin) * w.columns
    write_pooled(t, w, first, images * count, width, valid, channel, pooled, y)
    if t.keeps_sums:
        write_pooled(t, w, first, images * count, width, valid, channel, kept, before)


@jit
def write_pooled(t, w, first, count, width, valid, channel, pooled, y):
    """y at windows [first, first + count), counted through all images, from `channel` on = pooled [count, width]."""
    target = pointer(y, channel * t.out_channel)
    write_sums(pooled, count, width, valid, first, w.rows * w.columns, target, t.out_image, t.out_channel)

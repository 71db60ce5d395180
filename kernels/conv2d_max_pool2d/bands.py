"""How the rows of a convolution's maps are computed and pooled: a pure function from sizes to a table.

A band is some rows of an image's map, or a few whole small maps. Its sums lie in scratch that stays in cache, and the
windows that end in it are pooled there; rows that later windows see again are carried over to the next band, so that
none is computed twice. The work falls into parts at rows of windows: only there a row may be computed by both.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from kernels.conv2d_max_pool2d.op import Conv2dMaxPool2dProblem

Table = np.ndarray[Any, np.dtype[np.int64]]

#: Columns of a table of bands: the first image and how many; the map's rows [TOP, BOTTOM) that are computed; the rows
#: of windows [BEGIN, END) that are pooled; the first row in scratch, from which on rows up to TOP are carried over; and
#: the row from which on they are carried over to the next band.
IMAGE, IMAGES, TOP, BOTTOM, BEGIN, END, BASE, KEEP = range(8)


class Windows(NamedTuple):
    """The windows of a pooling and the map that they slide over; every field an int."""

    rows: int  # of windows
    columns: int
    height: int  # of a window
    width: int
    down: int  # from window to window
    along: int
    above: int  # rows and columns of padding
    left: int
    map_rows: int
    map_columns: int

    @property
    def map_pixels(self) -> int:
        """Pixels of a map."""
        return self.map_rows * self.map_columns

    @property
    def pixels(self) -> int:
        """Windows of a map."""
        return self.rows * self.columns


def windows_of(p: Conv2dMaxPool2dProblem) -> Windows:
    """The windows of a problem, over the part of its convolution that they see."""
    kernel, stride, padding = p.pool_kernel_size, p.pool_stride, p.pool_padding
    sides = (kernel[0], kernel[1], stride[0], stride[1], padding[0], padding[1])
    return Windows(p.output_shape[2], p.output_shape[3], *sides, p.seen[2], p.seen[3])


class Bands(NamedTuple):
    """Bands and what they need.

    Attributes:
        table: int64 [bands, 8], see above.
        parts: int64 [parts + 1], where in the table each part begins.
        block: pixels that a band computes at most.
        room: pixels in scratch at most, those carried over included.
        carried: pixels that are carried over at most.
        images: maps of a band at most.
        outputs: windows of a band at most.
    """

    table: Table
    parts: Table
    block: int
    room: int
    carried: int
    images: int
    outputs: int


def _windows_done(w: Windows, bottom: int) -> int:
    """Rows of windows that end above the map's row `bottom`."""
    if bottom >= w.map_rows:
        return w.rows
    return min(w.rows, max(0, (bottom + w.above - w.height) // w.down + 1))


def _of_image(w: Windows, image: int, begin: int, end: int, most_rows: int, multiple: int) -> list[tuple[int, ...]]:
    """The bands of an image's rows of windows [begin, end)."""
    top = max(0, begin * w.down - w.above) // multiple * multiple
    last = min(w.map_rows, (end - 1) * w.down - w.above + w.height)
    count = -(-(last - top) // most_rows)
    step = -(-(last - top) // (count * multiple)) * multiple
    found: list[tuple[int, ...]] = []
    base = top
    while top < last:
        bottom = min(last, top + step)
        done = end if bottom == last else min(end, max(begin, _windows_done(w, bottom)))
        keep = bottom if done == end else min(bottom, max(0, done * w.down - w.above))
        found.append((image, 1, top, bottom, begin, done, base, keep))
        top, begin, base = bottom, done, keep
    return found


@lru_cache(1024)
def plan_bands(w: Windows, images: int, most_pixels: int, parts: int, multiple: int = 1) -> Bands:
    """The bands of a pass.

    Args:
        w: windows and map.
        images: N.
        most_pixels: pixels of the maps that a band computes at most, but for one row (or `multiple` of them).
        parts: into which the bands fall, of about equal work; fewer where there are fewer rows of windows.
        multiple: bands begin at rows of this multiple.
    """
    together = min(images, max(1, most_pixels // w.map_pixels))
    most_rows = max(multiple, most_pixels // w.map_columns // multiple * multiple)
    total = images * w.rows
    bounds = [total * part // parts for part in range(parts + 1)]
    if images >= 8 * parts:
        bounds = [bound // w.rows * w.rows for bound in bounds]
    table: list[tuple[int, ...]] = []
    starts = [0]
    for first, last in zip(bounds, bounds[1:], strict=False):
        while first < last:
            image, begin = divmod(first, w.rows)
            whole = (last - first) // w.rows if begin == 0 else 0
            if whole and w.map_rows <= most_rows:
                count = min(whole, together)
                table.append((image, count, 0, w.map_rows, 0, w.rows, 0, w.map_rows))
                first += count * w.rows
            else:
                end = min(w.rows, begin + last - first)
                table += _of_image(w, image, begin, end, most_rows, multiple)
                first += end - begin
        starts.append(len(table))
    found = np.asarray(table, np.int64).reshape(-1, 8)
    return Bands(
        found,
        np.asarray(starts, np.int64),
        max(b[IMAGES] * (b[BOTTOM] - b[TOP]) for b in table) * w.map_columns,
        max(b[IMAGES] * (b[BOTTOM] - b[BASE]) for b in table) * w.map_columns,
        max(b[BOTTOM] - b[KEEP] for b in table) * w.map_columns,
        max(b[IMAGES] for b in table),
        max(b[IMAGES] * (b[END] - b[BEGIN]) for b in table) * w.columns,
    )

"""Maxima of windows one column wide on contiguous planes (N, C, H, W), as text recognisers have them.

A row of windows is the maximum of whole rows of the image: vectors lie side by side, nothing is shuffled or masked.
"""

from __future__ import annotations

import numpy as np

from kernels.runtime.numba_cpu import jit, threaded
from kernels.simd import (
    advance,
    array_at,
    lane_mask,
    lanes_of,
    load,
    load_masked,
    maximum_nan,
    pointer,
    splat_like,
    store,
    store_masked,
)


@jit(forceinline=True)
def _largest(image, width, first, end, step, y):
    """y[:width] = the maxima of rows [first, end) by `step`; -inf where there are none."""
    lanes = lanes_of(image)
    whole = width >= lanes
    inside = lane_mask(y, 0, width)
    for start in range(0, width, lanes):
        # The last vector of a row begins early where it can, and does some windows again: it needs no mask.
        j = max(min(start, width - lanes), 0)
        source = advance(image, first * width + j)
        best = splat_like(image, -np.inf)
        for _ in range(first, end, step):
            best = maximum_nan(load(source, 0) if whole else load_masked(source, 0, inside, -np.inf), best)
            source = advance(source, step * width)
        if whole:
            store(y, j, best)
        else:
            store_masked(y, j, best, inside)


@jit
def _max_columns(first, last, height, stride, padding, dilation, sizes, like, x, y):
    """Planes [first, last): x (N, C, H, W) -> y (N, C, H_out, W), windows of `height` rows.

    sizes: int64, of passes_cpu.sizes_of; like: any array of the element type; x, y: addresses.
    """
    image_height, width, rows = sizes[0], sizes[1], sizes[2]
    x, y = array_at(like, x, 1), array_at(like, y, 1)
    for plane in range(first, last):
        image = pointer(x, plane * image_height * width)
        for i in range(rows):
            top = i * stride - padding
            end = min(top + (height - 1) * dilation + 1, image_height)
            if top < 0:
                top += (dilation - 1 - top) // dilation * dilation
            _largest(image, width, top, end, dilation, pointer(y, (plane * rows + i) * width))


max_columns = threaded(_max_columns)

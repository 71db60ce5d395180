"""Windows of 2x2 side by side in planes so narrow that two rows of windows fit into a vector.

Lanes of the lower half belong to one row of windows, those of the upper half to the next: half as many loads, shuffles
and stores as rows one by one. The order in which inputs join a window is that of planes.py.
"""

from __future__ import annotations

from kernels.pool2d.planes import MAXIMUM, ROOT_OF_SQUARES
from kernels.runtime.numba_cpu import jit, threaded
from kernels.simd import (
    advance,
    any_lane,
    array_at,
    evens,
    is_nan,
    lane_mask,
    lanes_of,
    load_masked,
    maximum,
    maximum_nan,
    odds,
    pointer,
    sqrt,
    store_masked,
)


@jit(forceinline=True)
def _line(kind, keeps_nan, upper, lower, inside):
    """Both rows' windows in one row of inputs each; and the lanes in which a NaN was seen, where it gets lost."""
    a = load_masked(upper, 0, inside, 0.0)
    b = load_masked(lower, 0, inside, 0.0)
    nan = is_nan(a) | is_nan(b)
    if kind == ROOT_OF_SQUARES:
        a = a * a
        b = b * b
    if kind != MAXIMUM:
        return evens(a, b) + odds(a, b), nan
    if keeps_nan:
        return maximum_nan(odds(a, b), evens(a, b)), nan
    return maximum(odds(a, b), evens(a, b)), nan


@jit(forceinline=True)
def _rows(kind, keeps_nan, x, width, y, rows, output_width, factor):
    """All rows of windows from x and y on, which point to elements; whether an input was NaN."""
    lanes = lanes_of(x)
    half = lanes // 2
    inside = lane_mask(x, 0, 2 * output_width)
    low = lane_mask(x, 0, output_width)
    high = lane_mask(x, half, half + output_width)
    nan = lane_mask(x, 0, 0)
    for i in range(0, rows, 2):
        upper = advance(x, 2 * i * width)
        # The last row of an odd number is done twice and stored once.
        both = i + 1 < rows
        lower = advance(upper, 2 * width if both else 0)
        top, strange = _line(kind, keeps_nan, upper, lower, inside)
        bottom, more = _line(kind, keeps_nan, advance(upper, width), advance(lower, width), inside)
        nan = nan | (strange | more)
        if kind != MAXIMUM:
            total = (top + bottom) * 0.25
            if kind == ROOT_OF_SQUARES:
                total = sqrt(total * factor)
        elif keeps_nan:
            total = maximum_nan(bottom, top)
        else:
            total = maximum(bottom, top)
        place = i * output_width
        store_masked(y, place, total, low)
        if both:
            store_masked(y, place + output_width - half, total, high)
    return any_lane(nan)


@jit
def _pool_pairs(first, last, kind, sizes, like, x, y, factor):
    """Planes [first, last): x (N, C, H, W), y (N, C, H // 2, W // 2), with W // 2 at most half of the lanes.

    kind: a tuple whose length is one of planes.py's. factor: multiplies the mean of squares under the root.
    sizes: int64, of passes_cpu.sizes_of; like: any array of the element type; x, y: addresses.
    """
    height, width, rows, columns = sizes[0], sizes[1], sizes[2], sizes[3]
    x, y = array_at(like, x, 1), array_at(like, y, 1)
    for plane in range(first, last):
        image, output = pointer(x, plane * height * width), pointer(y, plane * rows * columns)
        nan = _rows(len(kind), False, image, width, output, rows, columns, factor)
        if len(kind) == MAXIMUM and nan:
            _rows(len(kind), True, image, width, output, rows, columns, factor)


pool_pairs = threaded(_pool_pairs)

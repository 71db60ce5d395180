"""Where the windows of a pooling lie: sizes, starts, ends and divisors along one dimension. Pure functions."""

from __future__ import annotations

from typing import Any

import numpy as np

Indices = np.ndarray[Any, np.dtype[np.int64]]


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Windows along one dimension of `size` inputs; 0 or less when none fits.

    With ceil_mode a last window may reach past the padding, but not start in the padding behind the image: such a one
    is dropped, as torch does (the formula in its documentation does not say so).
    """
    room = size + 2 * padding - dilation * (kernel - 1) - 1 + (stride - 1 if ceil_mode else 0)
    count = room // stride + 1
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1
    return count


def sliding(size: int, outputs: int, kernel: int, stride: int, padding: int) -> tuple[Indices, Indices, Indices]:
    """(start, end, extent) of each of the `outputs` windows along one dimension.

    [start, end) is the part inside the image. `extent` is what count_include_pad=True counts: inputs and padding, but
    not what ceil_mode adds behind the padding.
    """
    first = np.arange(outputs, dtype=np.int64) * stride - padding
    behind = np.minimum(first + kernel, size + padding)
    return np.maximum(first, 0), np.minimum(behind, size), behind - first


def taps(size: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> tuple[Indices, Indices]:
    """(start, end) of each of the `outputs` windows along one dimension.

    start is the first tap inside the image, end one past the last. A dilated window may have no tap inside: then it is
    empty (start == end) and starts at the input nearest to its next tap.
    """
    first = np.arange(outputs, dtype=np.int64) * stride - padding
    skipped = np.maximum(-(first // dilation), 0)
    start = first + skipped * dilation
    end = np.minimum(first + dilation * (kernel - 1) + 1, size)
    nearest = np.minimum(start, size - 1)
    return nearest, np.where(start < end, end, nearest)


def adaptive(size: int, outputs: int) -> tuple[Indices, Indices]:
    """(start, end) of each of the `outputs` adaptive windows.

    Window i goes from floor(i * size / outputs) to ceil((i + 1) * size / outputs). They cover the dimension, differ by
    one or two in length, and overlap where `outputs` does not divide `size`.
    """
    i = np.arange(outputs, dtype=np.int64)
    return i * size // outputs, -(-(i + 1) * size // outputs)

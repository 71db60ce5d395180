"""The same numbers in every memory layout that a caller may bring."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from tests.support.matrix import Array


def contiguous(a: Array) -> Array:
    """Packed, last dimension fastest."""
    return np.array(a, order="C")


def transposed(a: Array) -> Array:
    """Packed, first dimension fastest."""
    return np.array(a, order="F")


def last_two_swapped(a: Array) -> Array:
    """Packed, last two dimensions swapped."""
    return a if a.ndim < 2 else np.array(a.swapaxes(-1, -2), order="C").swapaxes(-1, -2)


def sliced(a: Array) -> Array:
    """Every second element of every dimension of a larger array; NaN lies between."""
    larger = _filled(tuple(2 * s + 1 for s in a.shape), a.dtype)
    view = larger[(..., *(slice(1, None, 2) for _ in a.shape))]
    view[...] = a
    return view


def padded_rows(a: Array) -> Array:
    """Rows inside longer rows: the last dimension has stride 1, the others are too long for the shape."""
    larger = _filled((*a.shape[:-1], a.shape[-1] + 3) if a.ndim else (), a.dtype)
    view = larger[..., : a.shape[-1]] if a.ndim else larger
    view[...] = a
    return view


def offset(a: Array) -> Array:
    """Packed, one element into its memory: aligned to the element and to nothing more."""
    memory = _filled((a.size + 1,), a.dtype)
    view = memory[1:].reshape(a.shape)
    view[...] = a
    return view


def negative(a: Array) -> Array:
    """Every dimension runs backwards."""
    backwards = (..., *(slice(None, None, -1) for _ in a.shape))
    return np.array(a[backwards], order="C")[backwards]


def channels_last(a: Array) -> Array:
    """(N, C, H, W) lying as (N, H, W, C); others packed."""
    return np.array(a.transpose(0, 2, 3, 1), order="C").transpose(0, 3, 1, 2) if a.ndim == 4 else contiguous(a)


def read_only(a: Array) -> Array:
    """Packed and not writeable."""
    fresh = contiguous(a)
    fresh.flags.writeable = False
    return fresh


def _filled(shape: tuple[int, ...], dtype: np.dtype) -> Array:  # type: ignore[type-arg]
    return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 0, dtype)


#: Every layout in which NumPy arrays come.
LAYOUTS: dict[str, Callable[[Array], Array]] = {
    f.__name__: f
    for f in (transposed, last_two_swapped, sliced, padded_rows, offset, negative, channels_last, read_only)
}
#: Those that torch tensors have too.
TORCH_LAYOUTS = tuple(name for name in LAYOUTS if name not in ("negative", "read_only"))


def as_tensor(array: Array) -> torch.Tensor:
    """A tensor on the very memory of an array, its strides and storage offset included."""
    return torch.from_numpy(array)


def repeated(a: Array, dimension: int) -> Array:
    """The first slice of a dimension, repeated without memory: stride 0."""
    first = np.array(a.take([0], dimension), order="C")
    return np.broadcast_to(first, a.shape)

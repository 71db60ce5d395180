"""The sinusoidal position encoding."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from kernels import arrays, checks


def _dtype_name(dtype: Any) -> str:
    """Name of a NumPy or torch dtype, or of one given by name."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", None) or str(dtype)
    return name.removeprefix("torch.")


def position_encoding(
    length: int, d_model: int, *, offset: int = 0, base: float = 10000.0, dtype: Any = None, like: Any = None
) -> Any:
    """The table of sinusoidal positions (Vaswani et al., Attention Is All You Need, 2017).

    Row r is the position p = offset + r. Channel 2i is ``sin(p / base**(2i / d_model))``, channel 2i + 1 the cosine of
    the same angle; of an odd d_model the last channel is a sine. Each number is computed in float64 and rounded once.
    A constant: it has no gradient. To a (batch, length, d_model) array it is added as it is.

    Args:
        length: number of positions, at least 0.
        d_model: number of channels, at least 0.
        offset: first position, which may be negative: for a sequence that goes on, as in decoding with a cache.
        base: ratio of the longest wavelength to the shortest, above 0 and finite.
        dtype: "float32", "float64", "float16" or, for torch, "bfloat16", by name or as a NumPy or torch dtype. None is
            like's, where that is floating-point, else float32.
        like: an array of the wanted kind (NumPy, torch, CuPy) on the wanted device: the sequence itself, or its token
            indices. None gives NumPy.

    Returns:
        array (length, d_model), contiguous, of its own memory.

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above.
        MemoryError: there is no memory for the result in float64.

    Example:
        >>> x = x + kernels.position_encoding(x.shape[1], x.shape[2], like=x)
    """
    op = "position_encoding"
    length = checks.integer(op, "length", length, 0)
    d_model = checks.integer(op, "d_model", d_model, 0)
    offset = checks.integer(op, "offset", offset)
    base = checks.number(op, "base", base)
    if not 0 < base < math.inf:
        checks.fail(op, "base", "must be above 0 and finite", base)
    kind = "numpy"
    if like is not None:
        found = arrays.kind(like)
        if found is None:
            checks.fail_type_name(op, "like", "must be None or a NumPy, torch or CuPy array", type(like).__name__)
        kind = found
    if dtype is None:
        form = None if like is None else arrays.spec(like)
        name = form.dtype if form is not None and form.floating else "float32"
    else:
        name = _dtype_name(dtype)
    if name not in checks.FLOATING or (name == "bfloat16" and kind != "torch"):
        allowed = [n for n in checks.FLOATING if n != "bfloat16" or kind == "torch"]
        checks.fail(
            op, "dtype", f"must be None or one of {', '.join(allowed)}", repr(dtype if dtype is not None else name)
        )
    form = arrays.ArraySpec((length, d_model), "float64")
    words = f"length {length}, d_model {d_model}"
    checks.memory(op, "the result", (form, replace(form, shape=(length, 1)), replace(form, shape=(d_model,))), words)
    table = _table(length, d_model, offset, base)
    if kind == "torch":
        import torch

        return torch.from_numpy(table).to(like.device, getattr(torch, name))
    rounded = table.astype(name, copy=False)
    if kind == "cupy":
        import cupy

        with like.device:
            return cupy.asarray(rounded)
    return rounded


def _table(length: int, d_model: int, offset: int, base: float) -> np.ndarray[Any, Any]:
    """The table in float64."""
    even = np.arange(0, d_model, 2)
    positions = np.arange(offset, offset + length, dtype=np.float64)[:, None]
    angles = positions / base ** (even / max(d_model, 1))
    table = np.empty((length, d_model))
    table[:, 0::2] = np.sin(angles)
    table[:, 1::2] = np.cos(angles[:, : d_model // 2])
    return table

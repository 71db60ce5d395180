"""The error budget: how wrong a kernel may be, decided once for every test.

A kernel is compared with the float64 reference on the same numbers. Its largest error over an array may be

    2 x the largest error of torch's own op in the same dtype on the same input  +  BAND units in the last place,

a unit being the distance between neighbouring numbers of that dtype at the result's scale, its largest finite
magnitude. So a kernel may be as inexact as the summation that everyone uses, not more, and the allowance grows with the
length of the sums by itself, because torch's error does. The band is for rounding alone: where torch happens to hit
the exact value, another order of the same few operations still may differ in the last bits.

NaN must be where the reference has NaN, and infinities must have its signs. Integers (indices) must be equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

#: Units in the last place, at the result's scale, that rounding alone may cost.
BAND = 4

#: Error of torch's own op that is forgiven this many times.
FACTOR = 2


def unit(exact: Array, dtype: Any, least_scale: float = 0.0) -> float:
    """Distance between neighbouring numbers of `dtype` at the largest finite magnitude in `exact`."""
    finite = np.abs(exact[np.isfinite(exact)])
    scale = min(finite.max(initial=least_scale), np.finfo(dtype).max)
    return float(np.spacing(np.dtype(dtype).type(scale)))


def error(found: Array, exact: Array) -> float:
    """Largest absolute difference where both are finite; 0 for an empty array."""
    both = np.isfinite(found) & np.isfinite(exact)
    if not both.any():
        return 0.0
    return float(np.abs(found[both].astype(np.float64) - exact[both]).max())


def allowance(
    exact: Array, torchs: Array | None, dtype: Any, torch_units: float = 0.0, least_scale: float = 0.0
) -> float:
    """Largest permitted error against `exact`, given what torch found in `dtype` (None: torch has no such op).

    `torch_units` is an error of torch's, in units of the scale, known from other inputs of the same form: with a
    handful of results torch may hit the exact ones by luck. `least_scale` is the scale where all results cancel to
    nothing.
    """
    one = unit(exact, dtype, least_scale)
    torch_error = 0.0 if torchs is None else error(torchs, exact)
    return FACTOR * max(torch_error, torch_units * one) + BAND * one


def complaint(
    found: Array,
    exact: Array,
    torchs: Array | None = None,
    torch_units: float = 0.0,
    least_scale: float = 0.0,
) -> str | None:
    """What is wrong with `found`, in one line; None when it is within the budget.

    Args:
        found: the kernel's result, in the dtype under test.
        exact: the float64 reference's result for the same numbers.
        torchs: torch's own result in the dtype under test.
        torch_units: see :func:`allowance`.
        least_scale: see :func:`allowance`.
    """
    if found.shape != exact.shape:
        return f"shape {found.shape} must be {exact.shape}"
    if found.dtype.kind in "iub":
        if exact.dtype.kind not in "iub":
            return f"dtype {found.dtype} must be floating"
        wrong = found != exact
        return _at("unequal", wrong, found, exact) if wrong.any() else None
    wrong = np.isnan(found) != np.isnan(exact)
    if wrong.any():
        return _at("NaN in one alone", wrong, found, exact)
    # What overflows the dtype is infinite in it.
    with np.errstate(over="ignore"):
        rounded = exact.astype(found.dtype)
    infinite = np.isinf(found) | np.isinf(rounded)
    wrong = infinite & (found != rounded)
    if wrong.any() and torchs is not None:
        wrong &= found != torchs
    if wrong.any():
        return _at("infinite in one alone", wrong, found, exact)
    permitted = allowance(exact, torchs, found.dtype, torch_units, least_scale)
    wrong = np.zeros(found.shape, bool)
    finite = np.isfinite(found) & np.isfinite(exact)
    wrong[finite] = np.abs(found[finite].astype(np.float64) - exact[finite]) > permitted
    if not wrong.any():
        return None
    ulp = unit(exact, found.dtype, least_scale)
    theirs = "" if torchs is None else f", torch's {error(torchs, exact) / ulp:.2f} ulp"
    text = f"error {error(found, exact) / ulp:.2f} ulp of the scale exceeds {permitted / ulp:.2f} ulp{theirs}"
    return _at(text, wrong, found, exact)


def _at(text: str, wrong: Array, found: Array, exact: Array) -> str:
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    count = f"{int(wrong.sum())} of {wrong.size} wrong"
    return f"{text}; {count}, first at {first}: {found[first]!r}, exactly {exact[first]!r}"

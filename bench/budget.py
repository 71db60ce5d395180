"""The gate's rule: how far from the exact result a timed result may lie.

The same budget that the tests hold the kernels to (tests/support/budget.py, compared in tests/bench): at most twice
the largest error of torch's own op on the same numbers in the same dtype, plus a few units in the last place at the
result's scale. NaN and infinities must be where the reference has them, integers (indices) must be equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

#: Units in the last place, at the result's scale, that rounding alone may cost.
BAND = 4
#: Error of torch's own op that is forgiven this many times.
FACTOR = 2


def unit(exact: Array, dtype: Any) -> float:
    """Distance between neighbouring numbers of `dtype` at the largest finite magnitude in `exact`."""
    finite = np.abs(exact[np.isfinite(exact)])
    scale = min(finite.max(), np.finfo(dtype).max) if finite.size else 0.0
    return float(np.spacing(np.dtype(dtype).type(scale)))


def error(found: Array, exact: Array) -> float:
    """Largest absolute difference where both are finite; 0 for an empty array."""
    both = np.isfinite(found) & np.isfinite(exact)
    return float(np.abs(found[both].astype(np.float64) - exact[both]).max()) if both.any() else 0.0


def complaint(found: Array | None, exact: Array | None, torchs: Array | None = None) -> str | None:
    """What is wrong with `found`, in one line; None when it is within the budget.

    Args:
        found: the result under test, in its dtype.
        exact: the float64 reference's result for the same numbers; None where there is none.
        torchs: torch's own result in the dtype under test, None where torch has no such op.
    """
    if found is None or exact is None:
        return None if found is exact else ("missing" if found is None else "there should be none")
    if found.shape != exact.shape:
        return f"shape {found.shape} must be {exact.shape}"
    if found.dtype.kind in "iub":
        wrong = int((found != exact).sum())
        return f"{wrong} of {found.size} indices differ" if wrong else None
    if (np.isnan(found) != np.isnan(exact)).any():
        return "NaN where the reference has none, or none where it has NaN"
    with np.errstate(over="ignore"):  # What overflows the dtype is infinite in it.
        rounded = exact.astype(found.dtype)
    wrong_infinities = (np.isinf(found) | np.isinf(rounded)) & (found != rounded)
    if torchs is not None:
        wrong_infinities &= found != torchs
    if wrong_infinities.any():
        return "infinite where the reference is not, or the other way round"
    one = unit(exact, found.dtype)
    theirs = 0.0 if torchs is None else error(torchs, exact)
    permitted = FACTOR * theirs + BAND * one
    mine = error(found, exact)
    if mine <= permitted:
        return None
    beside = "" if torchs is None else f", torch's is {theirs / one:.2f} ulp"
    return f"error {mine / one:.2f} ulp of the scale exceeds {permitted / one:.2f} ulp{beside}"

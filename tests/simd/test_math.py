"""exp, log, tanh, sigmoid and ndtr: errors beside PyTorch's, limits, and where the coefficients come from."""

import numpy as np
import pytest
from numba import njit, types

from kernels.simd import (
    coefficients,
    exp,
    exp_nonpositive,
    lanes_of,
    load_first,
    log,
    ndtr,
    pointer,
    sigmoid,
    store_first,
    tanh,
)

mpmath = pytest.importorskip("mpmath")
torch = pytest.importorskip("torch")

from tests.simd.fit_polynomials import FITS, fits  # noqa: E402  needs mpmath

NAMES = ["exp", "log", "tanh", "sigmoid", "ndtr"]
DTYPES = [np.float32, np.float64]


@njit(nogil=True, error_model="numpy")
def run_math(x, out):
    """out [5, n] from x [n]: a row for each of NAMES."""
    n = x.size
    p, q = pointer(x), pointer(out)
    for i in range(0, n, lanes_of(p)):
        value = load_first(p, i, n - i)
        store_first(q, i, exp(value), n - i)
        store_first(q, n + i, log(value), n - i)
        store_first(q, 2 * n + i, tanh(value), n - i)
        store_first(q, 3 * n + i, sigmoid(value), n - i)
        store_first(q, 4 * n + i, ndtr(value), n - i)


def ours(name, x):
    out = np.empty((len(NAMES), x.size), x.dtype)
    run_math(x, out)
    return out[NAMES.index(name)]


def exact(name, x):
    """Far more digits than the element type's, as long double."""
    # In 64 bits of mantissa NumPy's own functions are exact enough for float32 and, on x86, for float64.
    x = x.astype(np.longdouble)
    with np.errstate(all="ignore"):
        if name == "sigmoid":
            small = np.exp(-abs(x))
            return np.where(x >= 0, 1, small) / (1 + small)
        if name == "ndtr":
            # Beyond these bounds it is 0 or 1.
            bounded = np.clip(x, -150, 150)
            with mpmath.workdps(30):
                digits = [mpmath.nstr(mpmath.ncdf(mpmath.mpf(float(value))), 25) for value in bounded]
            return np.array([np.longdouble(number) for number in digits])
        return getattr(np, name)(x)


def points(name, dtype):
    rng = np.random.default_rng(0)
    count = 2000 if name == "ndtr" else 100_000
    low, high = (-103, 88.7) if dtype == np.float32 else (-744, 709.7)
    smallest = np.finfo(dtype).tiny
    parts = [
        rng.uniform(-1, 1, count),
        rng.uniform(-10, 10, count),
        rng.uniform(low, high, count),
        np.exp(rng.uniform(np.log(smallest), 2, count)) * rng.choice([-1, 1], count),
        rng.uniform(0.5, 2, count),
        rng.uniform(0.999, 1.001, count),
    ]
    x = np.concatenate(parts).astype(dtype)
    if name == "log":
        subnormal = (rng.uniform(0.01, 1, count) * smallest).astype(dtype)
        return np.concatenate([abs(x), subnormal, (rng.uniform(0, 1, count) * np.finfo(dtype).max).astype(dtype)])
    return x


@njit(nogil=True, error_model="numpy")
def run_exp_nonpositive(x, out):
    """out [n] from x [n]."""
    n = x.size
    p, q = pointer(x), pointer(out)
    for i in range(0, n, lanes_of(p)):
        store_first(q, i, exp_nonpositive(load_first(p, i, n - i)), n - i)


def error_in_ulp(found, wanted, least=0.0):
    """The largest error, in units of the results, or of `least` where these are smaller."""
    with np.errstate(over="ignore", under="ignore"):
        unit = np.spacing(np.maximum(abs(wanted), least).astype(found.dtype)).astype(np.longdouble)
    return float(np.max(abs(found - wanted) / unit))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_error_at_most_twice_that_of_torch(name, dtype):
    if dtype == np.float64 and np.finfo(np.longdouble).nmant < 63:
        pytest.skip("long double is no longer than double here")
    x = points(name, dtype)
    wanted = exact(name, x)
    # gelu multiplies x by ndtr(x): in the lower tail, what counts is the error beside results of 1/2 to 1.
    least = 0.5 if name == "ndtr" else 0.0
    error = error_in_ulp(ours(name, x), wanted, least)
    theirs = error_in_ulp(getattr(torch.special if least else torch, name)(torch.from_numpy(x)).numpy(), wanted, least)
    # PyTorch's sigmoid drops its smallest values to zero; that error is no yardstick.
    budget = 2.5 if name == "sigmoid" else 2 * max(theirs, 0.6)
    print(f"{name} {np.dtype(dtype)}: {error:.2f} ulp, torch {theirs:.2f}")
    assert error <= budget, f"{error:.2f} ulp, torch {theirs:.2f}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_limits(name, dtype):
    info = np.finfo(dtype)
    x = np.array(
        [np.inf, -np.inf, np.nan, -np.nan, 0.0, -0.0, 1e4, -1e4, 1e30, -1e30, info.max, -info.max, -1.0]
        + [info.tiny, -info.tiny, info.smallest_subnormal, -info.smallest_subnormal, 1.0],
        dtype,
    )
    found = ours(name, x)
    with np.errstate(over="ignore"):
        wanted = exact(name, x).astype(dtype)
    np.testing.assert_array_almost_equal_nulp(found[np.isfinite(wanted)], wanted[np.isfinite(wanted)], 2)
    np.testing.assert_array_equal(found[~np.isfinite(wanted)], wanted[~np.isfinite(wanted)])
    signed = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(found[signed]), np.signbit(wanted[signed]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_underflow_is_gradual(dtype):
    low = np.linspace(-87, -105, 5000) if dtype == np.float32 else np.linspace(-708, -747, 5000)
    x = low.astype(dtype)
    for name in ("exp", "sigmoid"):
        assert error_in_ulp(ours(name, x), exact(name, x)) <= 2.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_nonpositive(dtype):
    x = np.minimum(points("exp", dtype), dtype(40))
    x = np.concatenate([x, np.linspace(-87, -105, 5000, dtype=dtype), np.linspace(-700, -750, 5000, dtype=dtype)])
    found = np.empty_like(x)
    run_exp_nonpositive(x, found)
    assert error_in_ulp(found, exact("exp", x)) <= 1.2
    # NaN of any payload passes: the low bits of `strange` would be an exponent.
    layout = np.int32 if dtype == np.float32 else np.int64
    strange = np.arange(1, 1000, dtype=layout).view(dtype) * 0 + np.nan
    strange = (strange.view(layout) | np.arange(999, dtype=layout)).view(dtype)
    least = np.finfo(dtype).smallest_subnormal
    x = np.concatenate([strange, [-np.inf, np.finfo(dtype).min, -1e30, 0.0, -0.0, -least]]).astype(dtype)
    found = np.empty_like(x)
    run_exp_nonpositive(x, found)
    assert np.isnan(found[:999]).all()
    np.testing.assert_array_equal(found[999:], np.array([0, 0, 0, 1, 1, 1], dtype))


def test_coefficients_are_a_fresh_fit():
    for name in FITS:
        table = getattr(coefficients, name.rsplit("_FLOAT", 1)[0])
        for dtype, (fresh, _) in fits(name).items():
            np.testing.assert_allclose(table[getattr(types, dtype)], fresh, rtol=1e-12)

"""sigmoid_gate and tanh_gate: errors against long double, and limits."""

import numpy as np
import pytest
from numba import njit

from kernels.simd import lanes_of, load_first, pointer, sigmoid_gate, store_first, tanh_gate

DTYPES = [np.float32, np.float64]


@njit(nogil=True, error_model="numpy")
def run_gates(x, sigmoids, tanhs):
    """Both functions of x [n]."""
    n = x.size
    p = pointer(x)
    for i in range(0, n, lanes_of(p)):
        value = load_first(p, i, n - i)
        store_first(pointer(sigmoids), i, sigmoid_gate(value), n - i)
        store_first(pointer(tanhs), i, tanh_gate(value), n - i)


def gates(x):
    found = np.empty_like(x), np.empty_like(x)
    run_gates(x, *found)
    return found


def errors(found, wanted):
    """In units of the last place of each value."""
    return abs(found - wanted) / np.spacing(abs(wanted).astype(found.dtype)).astype(np.longdouble)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e-6, 0.3, 1.0, 8.0, 80.0])
def test_errors(size, dtype):
    if dtype == np.float64 and np.finfo(np.longdouble).nmant < 63:
        pytest.skip("long double is no longer than double here")
    x = np.random.default_rng(0).uniform(-size, size, 100_001).astype(dtype)
    sigmoids, tanhs = gates(x)
    exact = x.astype(np.longdouble)
    of_tanh = errors(tanhs, np.tanh(exact))
    assert of_tanh.max() <= 3
    # Where 1 - tanh**2 is small, nothing but the last rounding is left.
    assert of_tanh[abs(x) > 1.5].max(initial=0) <= 0.75
    # Half a unit of x itself is |x| / 2 units of exp(-x).
    assert (errors(sigmoids, 1 / (1 + np.exp(-exact))) <= 3 + abs(exact) / 2).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_limits(dtype):
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e30, -1e30, 1000, -1000, 50, -2000], dtype)
    sigmoids, tanhs = gates(x)
    np.testing.assert_array_equal(sigmoids, [1, 0, np.nan, 0.5, 0.5, 1, 0, 1, 0, 1, 0])
    np.testing.assert_array_equal(tanhs, [1, -1, np.nan, 0, 0, 1, -1, 1, -1, 1, -1])
    np.testing.assert_array_equal(np.signbit(tanhs[3:5]), [False, True])


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_stay_in_the_ranges_of_the_functions(dtype):
    """Around every bound at which the argument is cut off."""
    x = np.concatenate([np.linspace(bound - 2, bound + 2, 4001) for bound in (-104, -88, -20, -9.1, 9.1, 20, 40)])
    sigmoids, tanhs = gates(x.astype(dtype))
    assert ((sigmoids >= 0) & (sigmoids <= 1) & (abs(tanhs) <= 1)).all()
    assert (sigmoids[x < -86.5] < 1e-37).all() and (sigmoids[x > 37.5] == 1).all()
    assert (abs(tanhs[abs(x) > 19.5]) == 1).all()

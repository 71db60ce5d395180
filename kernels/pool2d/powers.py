"""The elementwise parts of lp_pool2d around a mean: powers, roots, and their derivatives, in the type of the arrays.

like: an array of that type; all others are addresses.
"""

from __future__ import annotations

from kernels.runtime.numba_cpu import jit, threaded
from kernels.simd import array_at


@jit(forceinline=True)
def _power(x, exponent):
    """x ** exponent; the exponents that need no library call without one."""
    if exponent == 2:
        return x * x
    if exponent == 1:
        return x
    if exponent == -1:
        return -exponent / x  # 1 / x without leaving x's type
    return x**exponent


@jit
def _raise(first, last, like, x, exponent, powers):
    """powers[k] = x[k] ** exponent."""
    x, powers = array_at(like, x, last), array_at(like, powers, last)
    for k in range(first, last):
        powers[k] = _power(x[k], exponent)


@jit
def _take_root(first, last, like, means, size, exponent):
    """means[k] = (size * means[k]) ** exponent, in place; a mean of -0 counts as 0."""
    means = array_at(like, means, last)
    for k in range(first, last):
        mean = means[k]
        if mean == 0:
            mean = abs(mean)
        means[k] = _power(mean * size, exponent)


@jit
def _root_gradient(first, last, like, dy, y, size, exponent, no_sum, dmeans):
    """dmeans[k] = dy[k] * size * y[k] ** exponent, with exponent = 1 - p; 0 where y is `no_sum`.

    torch multiplies by the sign of the sum, which is 0 for NaN; that shows where no other factor is NaN: for p = 1.
    """
    dy, y, dmeans = array_at(like, dy, last), array_at(like, y, last), array_at(like, dmeans, last)
    for k in range(first, last):
        dmeans[k] = dy[k] * _power(y[k], exponent) * size
        if y[k] == no_sum or (exponent == 0 and y[k] != y[k]):
            dmeans[k] = 0


@jit
def _power_gradient(first, last, like, x, exponent, dx):
    """dx[k] *= x[k] ** exponent, with exponent = p - 1."""
    x, dx = array_at(like, x, last), array_at(like, dx, last)
    for k in range(first, last):
        dx[k] *= _power(x[k], exponent)


@jit
def _take_sizes(first, last, like, x, sign, sizes):
    """sizes[k] = sign * abs(x[k]), which may be x."""
    x, sizes = array_at(like, x, last), array_at(like, sizes, last)
    for k in range(first, last):
        sizes[k] = sign * abs(x[k])


@jit
def _sign_gradient(first, last, like, x, dx):
    """dx[k] *= sign(x[k]), with 0 for 0 and (as torch has it) NaN."""
    x, dx = array_at(like, x, last), array_at(like, dx, last)
    for k in range(first, last):
        dx[k] *= (x[k] > 0) - (x[k] < 0)


take_sizes = threaded(_take_sizes, align=16)
raise_to = threaded(_raise, align=16)
take_root = threaded(_take_root, align=16)
root_gradient = threaded(_root_gradient, align=16)
power_gradient = threaded(_power_gradient, align=16)
sign_gradient = threaded(_sign_gradient, align=16)

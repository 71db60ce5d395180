"""The elementwise parts of lp_pool2d around a mean: powers, roots, and their derivatives, in the type of the arrays."""

from __future__ import annotations

from kernels.runtime.numba_cpu import jit, threaded


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
def _raise(first, last, x, exponent, powers):
    """powers[k] = x[k] ** exponent."""
    for k in range(first, last):
        powers[k] = _power(x[k], exponent)


@jit
def _take_root(first, last, means, size, exponent):
    """means[k] = (size * means[k]) ** exponent, in place; a mean of -0 counts as 0."""
    for k in range(first, last):
        mean = means[k]
        if mean == 0:
            mean = abs(mean)
        means[k] = _power(mean * size, exponent)


@jit
def _root_gradient(first, last, dy, y, size, exponent, no_sum, dmeans):
    """dmeans[k] = dy[k] * size * y[k] ** exponent, with exponent = 1 - p; 0 where y is `no_sum`.

    torch multiplies by the sign of the sum, which is 0 for NaN; that shows where no other factor is NaN: for p = 1.
    """
    for k in range(first, last):
        dmeans[k] = dy[k] * _power(y[k], exponent) * size
        if y[k] == no_sum or (exponent == 0 and y[k] != y[k]):
            dmeans[k] = 0


@jit
def _power_gradient(first, last, x, exponent, dx):
    """dx[k] *= x[k] ** exponent, with exponent = p - 1."""
    for k in range(first, last):
        dx[k] *= _power(x[k], exponent)


@jit
def _sign_gradient(first, last, x, dx):
    """dx[k] *= sign(x[k]), with 0 for 0 and (as torch has it) NaN."""
    for k in range(first, last):
        dx[k] *= (x[k] > 0) - (x[k] < 0)


raise_to = threaded(_raise, align=16)
take_root = threaded(_take_root, align=16)
root_gradient = threaded(_root_gradient, align=16)
power_gradient = threaded(_power_gradient, align=16)
sign_gradient = threaded(_sign_gradient, align=16)

"""The activations in Triton: functions that epilogues of other kernels call, and two elementwise kernels.

gelu: Hendrycks and Gimpel, Gaussian Error Linear Units (2016); silu: Elfwing et al. (2017). The tanh form of gelu is
computed as x * sigmoid(2u), which is 0.5 * x * (1 + tanh(u)) without its cancellation.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from kernels.activation.functions import CUBIC, SQRT_2_OVER_PI
from kernels.runtime.elementwise_triton import elements_of_program, place_of

_SQRT_HALF = tl.constexpr(math.sqrt(0.5))
_INVERSE_SQRT_2_PI = tl.constexpr(1 / math.sqrt(2 * math.pi))
_TWICE_SQRT_2_OVER_PI = tl.constexpr(2 * SQRT_2_OVER_PI)
_CUBIC = tl.constexpr(CUBIC)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), without overflow for any x."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def tanh(x):
    """Hyperbolic tangent: near 0 the seventh convergent of Lambert's continued fraction, where exp would cancel."""
    square = x * x
    above = ((square + 378.0) * square + 17325.0) * square + 135135.0
    below = ((28.0 * square + 3150.0) * square + 62370.0) * square + 135135.0
    size = tl.abs(x)
    e = tl.exp(-2.0 * size)
    far = (1.0 - e) / (1.0 + e)
    return tl.where(size < 0.5, x * above / below, tl.where(x < 0, -far, far))


@triton.jit
def _normal(x):
    """Cumulative distribution of the standard normal."""
    return 0.5 * (1.0 + tl.erf(x * _SQRT_HALF))


@triton.jit
def activate(x, NAME: tl.constexpr):
    """act(x) in float32 or float64; NAME as in functions.py, None is the identity."""
    if NAME is None:
        return x
    elif NAME == "relu":
        return tl.where(x < 0, 0.0, x)
    elif NAME == "gelu":
        return x * _normal(x)
    elif NAME == "gelu_tanh":
        return x * sigmoid((x + x * x * x * _CUBIC) * _TWICE_SQRT_2_OVER_PI)
    elif NAME == "silu":
        return x * sigmoid(x)
    elif NAME == "sigmoid":
        return sigmoid(x)
    else:
        tl.static_assert(NAME == "tanh")
        return tanh(x)


@triton.jit
def activation_gradient(grad, value, NAME: tl.constexpr):
    """grad * act'(x); value is act(x) for the activations in functions.FROM_OUTPUT, else x.

    relu passes nothing on where its output is 0, not even NaN.
    """
    if NAME == "relu":
        return tl.where(value <= 0, 0.0, grad)
    elif NAME == "tanh":
        return grad * (1.0 - value * value)
    elif NAME == "sigmoid":
        return grad * (value * (1.0 - value))
    elif NAME == "gelu":
        return grad * (_normal(value) + value * (tl.exp(-0.5 * value * value) * _INVERSE_SQRT_2_PI))
    elif NAME == "gelu_tanh":
        s = sigmoid((value + value * value * value * _CUBIC) * _TWICE_SQRT_2_OVER_PI)
        slope = (1.0 + value * value * 3.0 * _CUBIC) * _TWICE_SQRT_2_OVER_PI
        return grad * (s + value * (s * (1.0 - s)) * slope)
    else:
        tl.static_assert(NAME == "silu")
        s = sigmoid(value)
        return grad * (s * (1.0 + value * (1.0 - s)))


@triton.jit
def activate_elements(
    x, out, size, n0, n1, n2, n3, x0, x1, x2, x3,
    NAME: tl.constexpr, SAME: tl.constexpr, BLOCK: tl.constexpr, LONG: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """out = act(x); out dense. SAME: x lies as out does, else at strides x0 to x3 of the dimensions n0 to n3."""
    i, here = elements_of_program(size, BLOCK, LONG)
    if SAME:
        value = tl.load(x + i, mask=here)
    else:
        value = tl.load(x + place_of(i, n1, n2, n3, x0, x1, x2, x3), mask=here)
    found = activate(value.to(COMPUTED), NAME)
    tl.store(out + i, found.to(out.dtype.element_ty), mask=here)


@triton.jit
def activation_gradient_elements(
    grad, known, out, size, n0, n1, n2, n3, g0, g1, g2, g3, k0, k1, k2, k3,
    NAME: tl.constexpr, SAME: tl.constexpr, BLOCK: tl.constexpr, LONG: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """out = grad * act'(x), from x or act(x) in `known`; as `activate_elements`."""
    i, here = elements_of_program(size, BLOCK, LONG)
    if SAME:
        g = tl.load(grad + i, mask=here)
        value = tl.load(known + i, mask=here)
    else:
        g = tl.load(grad + place_of(i, n1, n2, n3, g0, g1, g2, g3), mask=here)
        value = tl.load(known + place_of(i, n1, n2, n3, k0, k1, k2, k3), mask=here)
    found = activation_gradient(g.to(COMPUTED), value.to(COMPUTED), NAME)
    tl.store(out + i, found.to(out.dtype.element_ty), mask=here)

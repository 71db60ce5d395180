"""exp, tanh, sigmoid and ndtr where no instruction multiplies by a power of two: AVX2, SSE, NEON.

There the power is made by a shift, in the exponent's own bits, and results that may be subnormal are computed at
2**BELOW times their size and brought down by the last operation, which rounds once. Such processors have few registers
and look less far ahead, so that chains of operations are short: polynomials in pairs, and exp(r) - 1 and the power are
combined in one operation, exp(x) = power + power * (exp(r) - 1), which also rounds less than a product.
"""

from numba import types

from kernels.simd import coefficients
from kernels.simd.emit import Lanes
from kernels.simd.formats import FORMATS

#: Exponent of the size at which what may be subnormal is computed: half way down the normal range.
BELOW = {types.float32: 64, types.float64: 512}
#: sigmoid rounds to 0 from the negative of the first up (away from zero), and to 1 from the second up.
_SIGMOID_ENDS = {types.float32: (-105.0, 20.0), types.float64: (-747.0, 40.0)}
#: From here on tanh is 1 - 2 / (exp(2x) + 1), in which the rounding errors of the quotient count little.
_TANH_SPLIT = 0.65


def rest_of_exp(r: Lanes) -> Lanes:
    """exp(r) - 1 for |r| up to log(2) / 2."""
    square = r * r
    return r.polynomial_in_pairs(coefficients.EXP[r.type.dtype], square).fma(square, r)


def _powers(x: Lanes, sign: float, offset: int) -> tuple[Lanes, Lanes]:
    """(2**(n + offset), n) with n the integer nearest to x * sign * log2(e); 0 < n + offset + bias."""
    layout = FORMATS[x.type.dtype]
    # The shift drops everything of the shifter itself, and leaves the sign clear.
    shifter = layout.shifter + (offset + layout.bias)
    shifted = x.fma(sign * coefficients.LOG2_E, shifter)
    return (shifted.bits() << layout.mantissa_bits).as_float(x.type), shifted - shifter


def exp_nonpositive(x: Lanes) -> Lanes:
    """exp(x) for x up to 40; NaN passes."""
    dtype = x.type.dtype
    below = BELOW[dtype]
    power, n = _powers(x, 1.0, below)
    r = n.fma(-coefficients.LOG_2_LOW[dtype], n.fma(-coefficients.LOG_2_HIGH[dtype], x))
    # Far down the power is anything. Zero before the last product: what underflows is slow, and scores that are masked
    # are all -inf.
    raised = x.compare("<=", FORMATS[dtype].exp_low).select(x.constant(0.0), rest_of_exp(r).fma(power, power))
    return raised * 2.0**-below


def sigmoid(x: Lanes) -> Lanes:
    """1 / (1 + exp(-x)); NaN passes."""
    dtype = x.type.dtype
    low, high = _SIGMOID_ENDS[dtype]
    scale = 2.0 ** -BELOW[dtype]
    x = x.constant(low).maximum(x.constant(high).minimum(x))
    power, n = _powers(x, -1.0, -BELOW[dtype])
    r = n.fma(-coefficients.LOG_2_LOW[dtype], n.fma(-coefficients.LOG_2_HIGH[dtype], -x))
    return x.constant(scale) / (rest_of_exp(r).fma(power, power) + scale)


def tanh(x: Lanes) -> Lanes:
    """Hyperbolic tangent; NaN passes."""
    dtype = x.type.dtype
    size, square = x.absolute(), x * x
    small = (x * square).fma(square.polynomial(coefficients.TANH_SMALLER[dtype]), x)
    bounded = x.constant(FORMATS[dtype].tanh_one).minimum(size)
    power, n = _powers(bounded, 2.0, 0)
    r = n.fma(-coefficients.LOG_2, bounded + bounded)
    quotient = x.constant(-2.0) / rest_of_exp(r).fma(power, power + 1.0)
    return size.compare("<", _TANH_SPLIT).select(small, quotient + 1.0).copysign(x)


def ndtr(x: Lanes) -> Lanes:
    """Distribution function of the standard normal; NaN passes."""
    dtype = x.type.dtype
    layout = FORMATS[dtype]
    # Past 20 there is no tail in any element type; in this order of operands NaN passes.
    size = x.constant(20.0).minimum(x.absolute())
    exponent = size.polynomial_in_pairs(coefficients.NDTR[dtype], size * size)
    # The tail is left out where its power of two would not be a normal number.
    vanishes = exponent.compare("<", -(layout.bias - 1) * coefficients.LOG_2)
    power, n = _powers(exponent, 1.0, 0)
    tail = vanishes.select(x.constant(0.0), rest_of_exp(n.fma(-coefficients.LOG_2, exponent)).fma(power, power))
    return x.compare("<", 0.0).select(tail, x.constant(1.0) - tail)

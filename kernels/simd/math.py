"""exp, log, tanh, sigmoid and ndtr of vectors, float32 and float64, to about one unit in the last place.

Limits are those of the functions: infinities give theirs, NaN gives NaN, results below the normal range lose digits
gradually. Each function is a few dozen instructions without a branch, written once for all types and lane counts; those
with an exponential in them twice: for AVX-512, and for targets without its instruction that scales by a power of two
(math_by_bits.py).
Range reductions follow W. J. Cody and W. Waite, Software Manual for the Elementary Functions (1980); the form of log is
that of P. Tang's and K. C. Ng's (fdlibm, e_log.c); the polynomials are our own (coefficients.py).
"""

import math

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.simd import coefficients, emit, math_by_bits
from kernels.simd.arithmetic import lanewise
from kernels.simd.emit import Lanes
from kernels.simd.formats import FORMATS
from kernels.simd.target import TARGET
from kernels.simd.types import SimdType


def scales_at_once(vector: SimdType) -> bool:
    """Whether one instruction multiplies these vectors by powers of two, right also for subnormal results."""
    return TARGET.has_avx512 and vector.lanes * vector.dtype.bitwidth == 512


def _reduce(x: Lanes) -> tuple[Lanes, Lanes]:
    """(shifted, r) with exp(x) = 2**n * exp(r), where n is the low bits of `shifted`, |r| at most log(2) / 2."""
    dtype = x.type.dtype
    shifter = FORMATS[dtype].shifter
    shifted = x.fma(coefficients.LOG2_E, shifter)
    n = shifted - shifter
    return shifted, n.fma(-coefficients.LOG_2_LOW[dtype], n.fma(-coefficients.LOG_2_HIGH[dtype], x))


def reduce_simply(x: Lanes, factor: float = 1.0) -> tuple[Lanes, Lanes]:
    """The same of x * factor, a power of two or its negative, in one step: r is off by up to n * 2**-29 (float32)."""
    shifter = FORMATS[x.type.dtype].shifter
    shifted = x.fma(factor * coefficients.LOG2_E, shifter)
    return shifted, (shifted - shifter).fma(-coefficients.LOG_2, x * factor)


def exp_series(r: Lanes) -> Lanes:
    """exp(r) for |r| up to log(2) / 2."""
    # The first terms by themselves, so that they are rounded once each.
    return r.polynomial(coefficients.EXP[r.type.dtype]).fma(r, 1.0).fma(r, 1.0)


def power_of_two(shifted: Lanes) -> Lanes:
    """2**n for n in the low bits of `shifted`, when it is a normal number."""
    layout = FORMATS[shifted.type.dtype]
    # The shift drops everything of the shifter itself.
    exponent = (shifted.bits() << layout.mantissa_bits) + (layout.bias << layout.mantissa_bits)
    return exponent.as_float(shifted.type)


def scale(x: Lanes, shifted: Lanes, vanishes: Lanes | None = None) -> Lanes:
    """x * 2**n for n in the low bits of `shifted`, rounded once, also where the result is subnormal or infinite.

    In the lanes of the mask `vanishes` the result is 0, whatever is in x and `shifted`.
    """
    vector = x.type
    layout = FORMATS[vector.dtype]
    if scales_at_once(vector):
        kind = "ps" if vector.dtype == types.float32 else "pd"
        llvm_vector, mask, n = vector.llvm_type(), ir.IntType(vector.lanes), shifted - layout.shifter
        function = emit.declare(
            x.builder,
            f"llvm.x86.avx512.mask.scalef.{kind}.512",
            ir.FunctionType(llvm_vector, [llvm_vector, llvm_vector, llvm_vector, mask, emit.int32]),
        )
        wanted = ir.Constant(mask, -1) if vanishes is None else x.builder.bitcast((~vanishes).value, mask)
        zero, rounding = ir.Constant(llvm_vector, None), ir.Constant(emit.int32, 4)
        return x.wrap(x.builder.call(function, [x.value, n.value, zero, wanted, rounding]))
    if vanishes is not None:
        # An exponent of 0 first: a product that underflows takes 25 times as long.
        shifted = vanishes.select(x.constant(layout.shifter), shifted)
    # In two steps, because 2**n alone may not be a number: biased exponents half and rest, half + rest = n + 2 * bias.
    both = shifted.bits() - (layout.bits(layout.shifter) - 2 * layout.bias)
    half = both.shift_right(1)
    rest = both - half
    first, second = ((part << layout.mantissa_bits).as_float(vector) for part in (half, rest))
    scaled = x * first * second
    return scaled if vanishes is None else vanishes.select(x.constant(0.0), scaled)


def _exp(x: Lanes) -> Lanes:
    # In this order of operands NaN passes.
    return exp_bounded(x.constant(FORMATS[x.type.dtype].exp_high).minimum(x))


def exp_bounded(x: Lanes) -> Lanes:
    """exp(x) for x below exp_high, or NaN."""
    # Masked scores are all -inf, and what underflows is slow: those lanes are left out.
    vanishes = x.compare("<=", FORMATS[x.type.dtype].exp_low)
    shifted, r = _reduce(x)
    return scale(exp_series(r), shifted, vanishes)


def _exp_nonpositive(x: Lanes) -> Lanes:
    return _exp(x) if scales_at_once(x.type) else math_by_bits.exp_nonpositive(x)


def _log(x: Lanes) -> Lanes:
    dtype = x.type.dtype
    layout = FORMATS[dtype]
    # Subnormal numbers are made normal.
    smallest, lift = 2.0 ** (1 - layout.bias), layout.mantissa_bits
    is_tiny = x.compare("<", smallest)
    bits = is_tiny.select(x * 2.0**lift, x).bits()
    # x = 2**e * m with m from sqrt(1/2) to sqrt(2); `biased` is e + bias, and positive.
    from_root = bits - (layout.bits(math.sqrt(0.5)) - (layout.bias << layout.mantissa_bits))
    biased = from_root.shift_right(layout.mantissa_bits)
    m = (bits - (biased << layout.mantissa_bits) + (layout.bias << layout.mantissa_bits)).as_float(x.type)
    e = (biased + layout.bits(layout.shifter)).as_float(x.type) - (layout.shifter + layout.bias)
    e = is_tiny.select(e - float(lift), e)
    # log(1 + f) = f - f**2/2 + s * (f**2/2 + s**2 * polynomial(s**2)) with s = f / (2 + f).
    f = m - 1.0
    s = f / (f + 2.0)
    z = s * s
    half_square = f * f * 0.5
    tail = s * (half_square + z * z.polynomial(coefficients.LOG[dtype]))
    small = half_square - e.fma(coefficients.LOG_2_LOW[dtype], tail)
    result = e.fma(coefficients.LOG_2_HIGH[dtype], f - small)
    result = x.compare("==", math.inf).select(x, result)
    result = x.compare("==", 0.0).select(x.constant(-math.inf), result)
    return x.compare(">=", 0.0).select(result, x.constant(math.nan))


def _tanh(x: Lanes) -> Lanes:
    if not scales_at_once(x.type):
        return math_by_bits.tanh(x)
    dtype = x.type.dtype
    size, square = x.absolute(), x * x
    small = (x * square).fma(square.polynomial(coefficients.TANH_SMALL[dtype]), x)
    # tanh = 1 - 2 / (exp(2|x|) + 1), in which the rounding errors of the quotient, below 1/4, count little.
    shifted, r = reduce_simply(x.constant(FORMATS[dtype].tanh_one).minimum(size), 2.0)
    quotient = x.constant(-2.0) / power_of_two(shifted).fma(exp_series(r), 1.0)
    return size.compare("<", 1.0).select(small, quotient + 1.0).copysign(x)


def _sigmoid(x: Lanes) -> Lanes:
    if not scales_at_once(x.type):
        return math_by_bits.sigmoid(x)
    # exp of what is never positive cannot overflow, and for x < 0 keeps all digits of small results.
    e = exp_bounded(-x.absolute())
    return x.compare(">=", 0.0).select(x.constant(1.0), e) / (e + 1.0)


def _ndtr(x: Lanes) -> Lanes:
    if not scales_at_once(x.type):
        return math_by_bits.ndtr(x)
    layout = FORMATS[x.type.dtype]
    # Past 20 there is no tail in any element type; in this order of operands NaN passes.
    exponent = x.constant(20.0).minimum(x.absolute()).polynomial(coefficients.NDTR[x.type.dtype])
    # The tail is left out where its power of two would not be a normal number.
    vanishes = exponent.compare("<", -(layout.bias - 1) * coefficients.LOG_2)
    shifted, r = reduce_simply(exponent)
    tail = vanishes.select(x.constant(0.0), power_of_two(shifted) * exp_series(r))
    return x.compare("<", 0.0).select(tail, x.constant(1.0) - tail)


@intrinsic
def exp(typing_context, x):
    """e to the power x; 0 far below zero, inf from about 88.73 (float32) or 709.79 (float64) up."""
    return lanewise(_exp, x)


@intrinsic
def exp_nonpositive(typing_context, x):
    """The same for x that is not above 40, in fewer instructions on targets without AVX-512."""
    return lanewise(_exp_nonpositive, x)


@intrinsic
def log(typing_context, x):
    """Natural logarithm; -inf at zero, NaN below."""
    return lanewise(_log, x)


@intrinsic
def tanh(typing_context, x):
    """Hyperbolic tangent."""
    return lanewise(_tanh, x)


@intrinsic
def sigmoid(typing_context, x):
    """1 / (1 + exp(-x)), exact in its small values too."""
    return lanewise(_sigmoid, x)


@intrinsic
def ndtr(typing_context, x):
    """Distribution function of the standard normal, for the exact gelu: about a unit off at the scale of 1/2 to 1."""
    return lanewise(_ndtr, x)

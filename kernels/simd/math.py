"""exp, log, tanh, sigmoid and erf of vectors, float32 and float64, to about one unit in the last place.

Limits are those of the functions: infinities give theirs, NaN gives NaN, results below the normal range lose digits
gradually. Each function is a few dozen instructions without a branch, written once for all types and lane counts.
Range reductions follow W. J. Cody and W. Waite, Software Manual for the Elementary Functions (1980); the form of log is
that of P. Tang's and K. C. Ng's (fdlibm, e_log.c); the polynomials are our own (coefficients.py).
"""

import math
import struct
from dataclasses import dataclass

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.simd import coefficients, emit
from kernels.simd.arithmetic import lanewise
from kernels.simd.emit import Lanes
from kernels.simd.target import TARGET


@dataclass(frozen=True)
class _Format:
    """An element type's layout and range."""

    mantissa_bits: int
    bias: int
    exp_low: float
    """exp rounds to 0 from here down."""
    exp_high: float
    """exp overflows from here up."""
    tanh_one: float
    """tanh rounds to 1 from here up."""

    @property
    def shifter(self) -> float:
        """Added to a number, it leaves the nearest integer in the low bits of the mantissa."""
        return 1.5 * 2.0**self.mantissa_bits

    def bits(self, number: float) -> int:
        """The bit pattern of a number."""
        layouts = ("<f", "<i") if self.mantissa_bits == 23 else ("<d", "<q")
        return struct.unpack(layouts[1], struct.pack(layouts[0], number))[0]


FORMATS = {
    types.float32: _Format(23, 127, -104.0, 89.0, 9.1),
    types.float64: _Format(52, 1023, -746.0, 710.0, 19.1),
}


def _reduce(x: Lanes) -> tuple[Lanes, Lanes]:
    """(shifted, rest) with exp(x) = 2**n * (1 + rest), where n is the low bits of `shifted`, |rest| below 0.42."""
    return _reduce_twofold(x)[:2]


def _reduce_twofold(x: Lanes) -> tuple[Lanes, Lanes, Lanes]:
    """As _reduce, and third what is missing from `rest` by its own rounding."""
    dtype = x.type.dtype
    shifter = FORMATS[dtype].shifter
    shifted = x.fma(coefficients.LOG2_E, shifter)
    n = shifted - shifter
    r = n.fma(-coefficients.LOG_2_LOW[dtype], n.fma(-coefficients.LOG_2_HIGH[dtype], x))
    square, polynomial = r * r, r.polynomial(coefficients.EXP[dtype])
    rest = square.fma(polynomial, r)
    # Unused results cost nothing: LLVM drops them.
    return shifted, rest, square.fma(polynomial, r - rest)


def power_of_two(shifted: Lanes) -> Lanes:
    """2**n for n in the low bits of `shifted`, when it is a normal number."""
    layout = FORMATS[shifted.type.dtype]
    # The shift drops everything of the shifter itself.
    exponent = (shifted.bits() << layout.mantissa_bits) + (layout.bias << layout.mantissa_bits)
    return exponent.as_float(shifted.type)


def scale(x: Lanes, shifted: Lanes) -> Lanes:
    """x * 2**n for n in the low bits of `shifted`, rounded once, also where the result is subnormal or infinite."""
    vector = x.type
    layout = FORMATS[vector.dtype]
    if TARGET.has_avx512 and vector.lanes * vector.dtype.bitwidth == 512:
        kind = "ps" if vector.dtype == types.float32 else "pd"
        llvm_vector, mask, n = vector.llvm_type(), ir.IntType(vector.lanes), shifted - layout.shifter
        function = emit.declare(
            x.builder,
            f"llvm.x86.avx512.mask.scalef.{kind}.512",
            ir.FunctionType(llvm_vector, [llvm_vector, llvm_vector, llvm_vector, mask, emit.int32]),
        )
        every_lane, rounding = ir.Constant(mask, -1), ir.Constant(emit.int32, 4)
        unused = ir.Constant(llvm_vector, None)
        return x.wrap(x.builder.call(function, [x.value, n.value, unused, every_lane, rounding]))
    # In two steps, because 2**n alone may not be a number: biased exponents half and rest, half + rest = n + 2 * bias.
    both = shifted.bits() - (layout.bits(layout.shifter) - 2 * layout.bias)
    half = both.shift_right(1)
    rest = both - half
    first, second = ((part << layout.mantissa_bits).as_float(vector) for part in (half, rest))
    return x * first * second


def _exp(x: Lanes) -> Lanes:
    layout = FORMATS[x.type.dtype]
    # Zeros are put in at the end: scaling that underflows takes 25 times as long, and masked scores are all -inf.
    is_zero = x.compare("<=", layout.exp_low)
    # In this order of operands NaN passes.
    x = x.constant(layout.exp_high).minimum(is_zero.select(x.constant(0.0), x))
    shifted, rest = _reduce(x)
    return is_zero.select(x.constant(0.0), scale(rest + 1.0, shifted))


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
    bounded = x.constant(FORMATS[x.type.dtype].tanh_one).minimum(x.absolute())
    shifted, rest, rest_low = _reduce_twofold(bounded + bounded)
    power = power_of_two(shifted)
    # t = exp(2|x|) - 1 without cancellation (near zero n is 0 and t is `rest` itself), and what its rounding lost.
    t = power.fma(rest, power - 1.0)
    t_low = power.fma(rest, power - 1.0 - t) + power * rest_low
    # Small: tanh = t / (t + 2), and one step of correction, for which 1 / (t + 2) = (1 - tanh) / 2.
    # Large: tanh = 1 - 2 / (t + 2), whose rounding errors count little.
    is_large = t.compare(">", 16.0)
    divisor = t + 2.0
    divisor_low = t.minimum(2.0) - (divisor - t.maximum(2.0))
    quotient = is_large.select(t.constant(-2.0), t) / divisor
    missing = (-quotient).fma(divisor, t) + (-quotient).fma(divisor_low + t_low, t_low)
    small = missing.fma(quotient.fma(-0.5, 0.5), quotient)
    return is_large.select(quotient + 1.0, small).copysign(x)


def _sigmoid(x: Lanes) -> Lanes:
    # exp of what is never positive cannot overflow, and for x < 0 keeps all digits of small results.
    e = _exp(-x.absolute())
    return x.compare(">=", 0.0).select(x.constant(1.0), e) / (e + 1.0)


def _erf(x: Lanes) -> Lanes:
    dtype = x.type.dtype
    small = x.fma((x * x).polynomial(coefficients.ERF_SMALL[dtype]), x)
    size = x.absolute()
    bounded = x.constant(coefficients.ERF_ONE[dtype]).minimum(size)
    shifted, rest = _reduce(bounded.polynomial(coefficients.ERF_LARGE[dtype]))
    power = power_of_two(shifted)
    large = x.constant(1.0) - power.fma(rest, power)
    return size.compare("<", 1.0).select(small, large.copysign(x))


@intrinsic
def exp(typing_context, x):
    """e to the power x; 0 far below zero, inf from about 88.73 (float32) or 709.79 (float64) up."""
    return lanewise(_exp, x)


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
def erf(typing_context, x):
    """The error function, for the exact gelu."""
    return lanewise(_erf, x)

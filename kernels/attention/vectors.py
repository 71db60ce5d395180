"""The exponential of a softmax: fewer instructions than `kernels.simd.exp`, for arguments that are never positive."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.simd import coefficients, emit
from kernels.simd.arithmetic import lanewise
from kernels.simd.emit import Lanes
from kernels.simd.target import TARGET
from kernels.simd.types import Mask

_LN_2 = 0.6931471805599453

#: 2**r = 1 + r * polynomial(r) for |r| <= 1/2, lowest power first.
_POWER = {
    # Our own minimax fit of the relative error, 2**-28.9.
    types.float32: (
        0.6931472028550478,
        0.24022647913631467,
        0.05550332471153089,
        0.009618437357495258,
        0.0013398874405445556,
        0.00015353361935192372,
    ),
    # exp's own, for r * log(2).
    types.float64: (
        _LN_2,
        *(c * _LN_2 ** (i + 2) for i, c in enumerate(coefficients.EXP[types.float64])),
    ),
}
#: What is added to a number so that the nearest integer stands in its last bits; and from where on down 2**t counts as
#: 0: early enough that products with it are no subnormal numbers, which take a hundred times as long.
_SHIFTER = {types.float32: 1.5 * 2.0**23, types.float64: 1.5 * 2.0**52}
_LOWEST = {types.float32: -100.0, types.float64: -960.0}
_MANTISSA = {types.float32: 23, types.float64: 52}
_BIAS = {types.float32: 127, types.float64: 1023}


def _weight(difference: Lanes, unit: Lanes) -> Lanes:
    dtype = difference.type.dtype
    t = difference * (unit * coefficients.LOG2_E)
    # False for NaN, which passes.
    vanishes = t.compare("<", _LOWEST[dtype])
    if TARGET.has_avx512 and t.type.lanes * dtype.bitwidth == 512:
        n, power = _split(t)
        return _scaled(power, n, ~vanishes)
    n, power = _split(t.constant(_LOWEST[dtype]).maximum(t))
    exponent = ((n + _SHIFTER[dtype]).bits() << _MANTISSA[dtype]) + (_BIAS[dtype] << _MANTISSA[dtype])
    return vanishes.select(t.constant(0.0), power * exponent.as_float(t.type))


def _split(t: Lanes) -> tuple[Lanes, Lanes]:
    """(n, 2**(t - n)) with n the nearest integer."""
    dtype = t.type.dtype
    n = (t + _SHIFTER[dtype]) - _SHIFTER[dtype]
    r = t - n
    return n, r.polynomial(_POWER[dtype]).fma(r, 1.0)


def _scaled(x: Lanes, n: Lanes, where: Lanes) -> Lanes:
    """x * 2**n, 0 outside the mask."""
    vector, builder = x.type, x.builder
    llvm_vector, bits = vector.llvm_type(), ir.IntType(vector.lanes)
    kind = "ps" if vector.dtype == types.float32 else "pd"
    function = emit.declare(
        builder,
        f"llvm.x86.avx512.mask.scalef.{kind}.512",
        ir.FunctionType(llvm_vector, [llvm_vector, llvm_vector, llvm_vector, bits, emit.int32]),
    )
    zero, rounding = ir.Constant(llvm_vector, None), ir.Constant(emit.int32, 4)
    assert isinstance(where.type, Mask)
    mask = builder.bitcast(where.value, bits)
    return x.wrap(builder.call(function, [x.value, n.value, zero, mask, rounding]))


@intrinsic
def weight_of(typing_context, difference, unit):
    """exp(difference * unit) for products not far above 0, to about one unit in the last place of 1; NaN passes.

    The difference is taken before: scores may be as large as they like, where they are near each other it is exact.

    What would be below 2**-100 (float32) or 2**-960 (float64) is 0, and -inf costs no more than others.
    """
    return lanewise(_weight, difference, unit)

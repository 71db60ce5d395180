"""sigmoid and tanh of vectors for recurrent cells: half of math.py's instructions, errors of two or three units.

A cell's functions take the sums of long products, whose own rounding is above this. So the argument is reduced in one
step, and tanh is left without its correction. What stays are the limits (0, 1 and -1 where the functions round to them,
NaN where there is NaN), all digits near zero, and all digits of a large tanh, whose gradient needs them.
"""

from numba import types
from numba.extending import intrinsic

from kernels.simd import coefficients
from kernels.simd.arithmetic import lanewise
from kernels.simd.emit import Lanes
from kernels.simd.math import FORMATS, exp_series, power_of_two, reduce_simply, scale

#: Past it 1 + exp(-x) rounds to 1.
_SIGMOID_ONE = {types.float32: 20.0, types.float64: 40.0}


def _rest(r: Lanes) -> Lanes:
    """exp(r) - 1 for |r| up to log(2) / 2."""
    return (r * r).fma(r.polynomial(coefficients.EXP[r.type.dtype]), r)


def _sigmoid_gate(x: Lanes) -> Lanes:
    layout = FORMATS[x.type.dtype]
    # In this order of operands NaN passes.
    x = x.constant(layout.exp_low).maximum(x.constant(_SIGMOID_ONE[x.type.dtype]).minimum(x))
    shifted, r = reduce_simply(x, -1.0)
    # exp(-x), infinite where the result rounds to 0.
    power = scale(exp_series(r), shifted)
    return x.constant(1.0) / (power + 1.0)


def _tanh_gate(x: Lanes) -> Lanes:
    layout = FORMATS[x.type.dtype]
    # In this order of operands NaN passes.
    bounded = x.constant(layout.tanh_one).minimum(x.absolute())
    shifted, r = reduce_simply(bounded, 2.0)
    rest, power = _rest(r), power_of_two(shifted)
    # exp(2 |x|) - 1 without cancellation: near zero n is 0 and this is `rest` itself.
    t = power.fma(rest, power - 1.0)
    # Small: t / (t + 2). Large: 1 - 2 / (t + 2), in which only the last rounding counts. The gradient needs that: it is
    # 1 - tanh**2, small there, so that each unit by which tanh is off is many of its own.
    is_large = t.compare(">", 2.0)
    quotient = is_large.select(t.constant(-2.0), t) / (t + 2.0)
    return is_large.select(quotient + 1.0, quotient).copysign(x)


@intrinsic
def sigmoid_gate(typing_context, x):
    """1 / (1 + exp(-x)), at most 3 + |x| / 2 units in the last place off; results below the normal range may be 0."""
    return lanewise(_sigmoid_gate, x)


@intrinsic
def tanh_gate(typing_context, x):
    """Hyperbolic tangent, at most 3 units in the last place off, and at most 0.75 from 1.5 up."""
    return lanewise(_tanh_gate, x)

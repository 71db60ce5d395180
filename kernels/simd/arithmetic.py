"""Arithmetic, comparison, choice, shuffles and reductions on vectors.

Operators: + - * / and unary - on Vector, + - * and unary - on IntVector, & | ~ on Mask; < <= > >= == != of Vectors or
IntVectors give a Mask. Wherever two or more operands meet, all but one may be plain numbers: they are converted to the
vector's element type, so `x * 0.5` stays float32.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin

from kernels.simd import emit
from kernels.simd.emit import Lanes
from kernels.simd.memory import as_lanes
from kernels.simd.target import VECTOR_BYTES
from kernels.simd.types import IntVector, Mask, Vector, vector_like


def _common(operands: tuple, allowed: type | tuple) -> Any:
    """The one SIMD type among the operands, when the others are the same or numbers; else None."""
    simd_types = {operand for operand in operands if not isinstance(operand, types.Number)}
    only: Any = simd_types.pop() if len(simd_types) == 1 else None
    return only if isinstance(only, allowed) else None


def lanewise(emit_result: Callable[..., Lanes], *operands: types.Type, allowed: type | tuple = Vector):
    """Signature and code of an operation lane by lane: `emit_result` maps the operands' Lanes to the result's."""
    common = _common(operands, allowed)
    if common is None:
        return None
    given = tuple(common.dtype if isinstance(operand, types.Number) else operand for operand in operands)

    def code(context, builder, signature, arguments):
        lanes = [as_lanes(builder, common, *pair) for pair in zip(given, arguments, strict=True)]
        return emit_result(*lanes).value

    # A comparison gives a mask, everything else what went in; emit_result is only run in `code`.
    result = Mask(common.lanes) if getattr(emit_result, "gives_mask", False) else common
    return result(*given), code


# -- operators --


def _register(operation: Callable, emit_result: Callable[..., Lanes], arity: int, allowed: type | tuple) -> None:
    """Make Numba's `operation` (of the operator module) accept SIMD operands."""

    class Template(AbstractTemplate):
        key = operation

        def generic(self, operands, keywords):
            found = None if keywords or len(operands) != arity else lanewise(emit_result, *operands, allowed=allowed)
            return found and signature(found[0].return_type, *found[0].args)

    infer_global(operation)(Template)

    def code(context, builder, resolved, arguments):
        return lanewise(emit_result, *resolved.args, allowed=allowed)[1](context, builder, resolved, arguments)

    for simd_type in allowed if isinstance(allowed, tuple) else (allowed,):
        patterns = [(simd_type,) * arity]
        if arity == 2:
            patterns += [(simd_type, types.Number), (types.Number, simd_type)]
        for pattern in patterns:
            lower_builtin(operation, *pattern)(code)


def _comparison(symbol: str) -> Callable[[Lanes, Lanes], Lanes]:
    def compare(left, right):
        return left.compare(symbol, right)

    compare.gives_mask = True  # type: ignore[attr-defined]
    return compare


_NUMBERS = (Vector, IntVector)
for _operation, _in_place, _allowed in (
    (operator.add, operator.iadd, _NUMBERS),
    (operator.sub, operator.isub, _NUMBERS),
    (operator.mul, operator.imul, _NUMBERS),
    (operator.truediv, operator.itruediv, Vector),
    (operator.and_, operator.iand, Mask),
    (operator.or_, operator.ior, Mask),
):
    _register(_operation, _operation, 2, _allowed)
    # Vectors are values, so x += y is x = x + y.
    _register(_in_place, _operation, 2, _allowed)
_register(operator.neg, operator.neg, 1, _NUMBERS)
_register(operator.invert, operator.invert, 1, Mask)
for _symbol, _operation in {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}.items():
    _register(_operation, _comparison(_symbol), 2, _NUMBERS)


# -- lane by lane --


@intrinsic
def fma(typing_context, x, y, z):
    """x * y + z with one rounding (two on targets without the instruction)."""
    return lanewise(Lanes.fma, x, y, z)


@intrinsic
def maximum(typing_context, x, y):
    """`x if x > y else y`, one instruction: y where either is NaN, and y of two zeros."""
    return lanewise(Lanes.maximum, x, y, allowed=_NUMBERS)


@intrinsic
def minimum(typing_context, x, y):
    """`x if x < y else y`, one instruction: y where either is NaN, and y of two zeros."""
    return lanewise(Lanes.minimum, x, y, allowed=_NUMBERS)


@intrinsic
def maximum_nan(typing_context, x, y):
    """The larger, NaN where either is NaN (as torch.maximum)."""
    return lanewise(lambda x, y: x.is_nan().select(x, x.maximum(y)), x, y)


@intrinsic
def minimum_nan(typing_context, x, y):
    """The smaller, NaN where either is NaN (as torch.minimum)."""
    return lanewise(lambda x, y: x.is_nan().select(x, x.minimum(y)), x, y)


@intrinsic
def absolute(typing_context, x):
    """|x|."""
    return lanewise(Lanes.absolute, x)


@intrinsic
def copysign(typing_context, x, sign):
    """|x| with the sign of `sign`."""
    return lanewise(Lanes.copysign, x, sign)


@intrinsic
def sqrt(typing_context, x):
    """Square root, rounded right; NaN below zero."""
    return lanewise(Lanes.sqrt, x)


@intrinsic
def floor(typing_context, x):
    """The largest integer that is not above x."""
    return lanewise(Lanes.floor, x)


@intrinsic
def round_even(typing_context, x):
    """The nearest integer, halves to the even one."""
    return lanewise(Lanes.round_even, x)


def _is_nan(x):
    return x.is_nan()


_is_nan.gives_mask = True  # type: ignore[attr-defined]


@intrinsic
def is_nan(typing_context, x):
    """Mask of the lanes that are NaN."""
    return lanewise(_is_nan, x)


@intrinsic
def select(typing_context, mask, if_true, if_false):
    """if_true in the lanes of the mask, if_false in the others; Vector or IntVector, one of them may be a number."""
    common = _common((if_true, if_false), _NUMBERS)
    if common is None or mask != Mask(common.lanes):
        return None
    given = [common.dtype if isinstance(branch, types.Number) else branch for branch in (if_true, if_false)]

    def code(context, builder, signature, arguments):
        mask_value, *branches = arguments
        lanes = [as_lanes(builder, common, *pair) for pair in zip(given, branches, strict=True)]
        return Lanes(builder, mask, mask_value).select(*lanes).value

    return common(mask, *given), code


# -- masks to truth values --


def _truth(mask: types.Type, comparison: str, every_lane: bool):
    if not isinstance(mask, Mask):
        return None

    def code(context, builder, signature, arguments):
        bits = ir.IntType(mask.lanes)
        wanted = ir.Constant(bits, (1 << mask.lanes) - 1 if every_lane else 0)
        return builder.icmp_unsigned(comparison, builder.bitcast(arguments[0], bits), wanted)

    return types.boolean(mask), code


@intrinsic
def any_lane(typing_context, mask):
    """Whether the mask has any lane."""
    return _truth(mask, "!=", every_lane=False)


@intrinsic
def all_lanes(typing_context, mask):
    """Whether the mask has every lane."""
    return _truth(mask, "==", every_lane=True)


# -- shuffles of two vectors: with a = a0 a1 a2 a3, b = b0 b1 b2 b3 --


def _shuffled(choose: Callable[[int], list[int]], a: types.Type, b: types.Type):
    return lanewise(lambda left, right: left.shuffle(choose(left.type.lanes), right), a, b, allowed=_NUMBERS)


@intrinsic
def evens(typing_context, a, b):
    """a0 a2 b0 b2."""
    return _shuffled(lambda lanes: list(range(0, 2 * lanes, 2)), a, b)


@intrinsic
def odds(typing_context, a, b):
    """a1 a3 b1 b3."""
    return _shuffled(lambda lanes: list(range(1, 2 * lanes, 2)), a, b)


def _of_blocks(odd: int) -> Callable[[int], list[int]]:
    """The places, even or odd, of two vectors; the lanes of a block, 16 bytes, from the same block of both."""

    def choose(lanes: int) -> list[int]:
        block = max(lanes * 16 // VECTOR_BYTES, 1)
        return [
            first + lanes * of_second + lane
            for first in range(0, lanes, block)
            for of_second in (0, 1)
            for lane in range(odd, block, 2)
        ]

    return choose


@intrinsic
def block_evens(typing_context, a, b):
    """The lanes of `evens`, in an order that costs one shuffle on x86; `blocks_in_order` sorts them."""
    return _shuffled(_of_blocks(0), a, b)


@intrinsic
def block_odds(typing_context, a, b):
    """The lanes of `odds`, in the order of `block_evens`."""
    return _shuffled(_of_blocks(1), a, b)


@intrinsic
def blocks_in_order(typing_context, x):
    """The lanes of `block_evens` or `block_odds`, or what was made of these lane by lane, in their right order."""
    return lanewise(lambda lanes: lanes.shuffle(_in_order(lanes.type.lanes)), x, allowed=_NUMBERS)


def _in_order(lanes: int) -> list[int]:
    block = max(lanes * 16 // VECTOR_BYTES, 1)
    halves = (range(0, block // 2), range(block // 2, block))
    return [first + lane for half in halves for first in range(0, lanes, block) for lane in half]


@intrinsic
def interleave_low(typing_context, a, b):
    """a0 b0 a1 b1: with interleave_high the inverse of evens and odds."""
    return _shuffled(lambda lanes: [lane // 2 + lanes * (lane % 2) for lane in range(lanes)], a, b)


@intrinsic
def interleave_high(typing_context, a, b):
    """a2 b2 a3 b3."""
    return _shuffled(lambda lanes: [(lanes + lane) // 2 + lanes * (lane % 2) for lane in range(lanes)], a, b)


# -- reductions, always in the same order: halves onto each other --


def _reduced(x: types.Type, combine: Callable[[Lanes, Lanes], Lanes]):
    if not isinstance(x, _NUMBERS):
        return None

    def code(context, builder, signature, arguments):
        return Lanes(builder, x, arguments[0]).reduce(combine)

    return x.dtype(x), code


@intrinsic
def reduce_add(typing_context, x):
    """The sum of the lanes; the order of the additions is fixed, so equal inputs give equal bits."""
    return _reduced(x, operator.add)


@intrinsic
def reduce_max(typing_context, x):
    """The largest lane; unspecified when a lane is NaN."""
    return _reduced(x, Lanes.maximum)


@intrinsic
def reduce_min(typing_context, x):
    """The smallest lane; unspecified when a lane is NaN."""
    return _reduced(x, Lanes.minimum)


# -- integers --


def _integers_like(like: types.Type) -> IntVector | None:
    vector = vector_like(like)
    return None if vector is None else vector.integers


@intrinsic
def iota(typing_context, like, start, step):
    """IntVector of start + step * lane, with the lane count of `like` (pointer, array, Vector or IntVector).

    Integers are int32 beside float32 and wrap around past its range.
    """
    integers = _integers_like(like)
    if integers is None or not all(isinstance(number, types.Integer) for number in (start, step)):
        return None

    def code(context, builder, signature, arguments):
        first, stride = (emit.splat(builder, integers, argument) for argument in arguments[1:])
        return (first + stride * emit.count(builder, integers)).value

    return integers(like, integers.dtype, integers.dtype), code


@intrinsic
def splat_integer(typing_context, like, scalar):
    """IntVector with an integer in each lane."""
    integers = _integers_like(like)
    if integers is None or not isinstance(scalar, types.Integer):
        return None

    def code(context, builder, signature, arguments):
        return emit.splat(builder, integers, arguments[1]).value

    return integers(like, integers.dtype), code

"""Philox4x32-10 on vectors: dropout's factors of 32 neighbouring elements at once, in compiled code."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.simd import emit
from kernels.simd.types import ELEMENTS

BLOCKS = 8
"""Blocks of the generator at a time, one in each 64-bit lane of the widest vectors; narrower machines take several."""
WORDS = 4 * BLOCKS

_LOW = 0xFFFFFFFF
_FACTORS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LANES = ir.VectorType(emit.int64, BLOCKS)


@intrinsic
def store_factors(typing_context, out, at, count, block, threshold, seed, stream, kept):
    """out[at + i] = kept where word i of the blocks from `block` on is at least the threshold, else 0.

    For i in [0, WORDS) with 0 <= at + i < count; other memory is not touched. out: pointer to elements. at, count,
    block, threshold, seed, stream: int64, see kernels.random. kept: a number.
    """
    integers = (at, count, block, threshold, seed, stream)
    if not (
        isinstance(out, types.CPointer)
        and out.dtype in ELEMENTS
        and all(isinstance(number, types.Integer) for number in integers)
        and isinstance(kept, types.Number)
    ):
        return None

    def code(context, builder, signature, arguments):
        out_value, at_value, count_value, block_value, threshold_value, seed_value, stream_value, kept_value = arguments
        words = _words(builder, block_value, seed_value, stream_value)
        element = kept_value.type
        kept_lanes = _splat(builder, kept_value, ir.VectorType(element, BLOCKS))
        zero = ir.Constant(kept_lanes.type, None)
        bound = _splat(builder, threshold_value, _LANES)
        factors = [builder.select(builder.icmp_unsigned(">=", word, bound), kept_lanes, zero) for word in words]
        # Word w of block b comes to place 4 b + w.
        halves = [_interleaved(builder, *factors[:2], 1), _interleaved(builder, *factors[2:], 1)]
        row = _interleaved(builder, *halves, 2)
        _store_inside(builder, row, out_value, at_value, count_value)
        return context.get_dummy_value()

    return types.void(out, *[types.int64] * 6, out.dtype), code


def _splat(builder: ir.IRBuilder, scalar: ir.Value, vector: ir.VectorType) -> ir.Value:
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(emit.int32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(emit.int32, vector.count), None))


def _constant(value: int) -> ir.Constant:
    return ir.Constant(_LANES, [ir.Constant(emit.int64, value)] * BLOCKS)


def _halves(builder: ir.IRBuilder, number: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The low and the high 32 bits of a 64-bit number, each as a 64-bit number."""
    low = builder.and_(number, ir.Constant(emit.int64, _LOW))
    return low, builder.lshr(number, ir.Constant(emit.int64, 32))


def _words(builder: ir.IRBuilder, block: ir.Value, seed: ir.Value, stream: ir.Value) -> list[ir.Value]:
    """The four words of blocks `block`, `block` + 1, ..., each below 2**32 in a 64-bit lane: `random.philox`."""
    low, shift = _constant(_LOW), _constant(32)
    numbers = ir.Constant(_LANES, [ir.Constant(emit.int64, lane) for lane in range(BLOCKS)])
    blocks = builder.add(_splat(builder, block, _LANES), numbers)
    c0, c1 = builder.and_(blocks, low), builder.lshr(blocks, shift)
    c2, c3 = (_splat(builder, half, _LANES) for half in _halves(builder, stream))
    k0, k1 = _halves(builder, seed)
    for _ in range(_ROUNDS):
        # Both factors are below 2**32, which LLVM sees: one instruction for the whole 64-bit product.
        first, second = (builder.mul(c, _constant(f)) for c, f in zip((c0, c2), _FACTORS))
        key0, key1 = _splat(builder, k0, _LANES), _splat(builder, k1, _LANES)
        c0 = builder.xor(builder.xor(builder.lshr(second, shift), c1), key0)
        c2 = builder.xor(builder.xor(builder.lshr(first, shift), c3), key1)
        c1, c3 = builder.and_(second, low), builder.and_(first, low)
        k0, k1 = (
            builder.and_(builder.add(k, ir.Constant(emit.int64, w)), ir.Constant(emit.int64, _LOW))
            for k, w in zip((k0, k1), _WEYL)
        )
    return [c0, c1, c2, c3]


def _interleaved(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, size: int) -> ir.Value:
    """Groups of `size` lanes of a and of b in turn."""
    count = a.type.count
    order = [i + side * count + j for i in range(0, count, size) for side in (0, 1) for j in range(size)]
    picked = ir.Constant(ir.VectorType(emit.int32, 2 * count), [ir.Constant(emit.int32, i) for i in order])
    return builder.shuffle_vector(a, b, picked)


def _store_inside(builder: ir.IRBuilder, row: ir.Value, out: ir.Value, at: ir.Value, count: ir.Value) -> None:
    """Store the lanes i of a row with 0 <= at + i < count at out + at."""
    zero, most = ir.Constant(emit.int64, 0), ir.Constant(emit.int64, WORDS)

    def lane(number: ir.Value) -> ir.Value:
        number = builder.select(builder.icmp_signed(">", number, zero), number, zero)
        number = builder.select(builder.icmp_signed("<", number, most), number, most)
        return _splat(builder, builder.trunc(number, emit.int32), ir.VectorType(emit.int32, WORDS))

    numbers = ir.Constant(ir.VectorType(emit.int32, WORDS), [ir.Constant(emit.int32, i) for i in range(WORDS)])
    first, last = lane(builder.neg(at)), lane(builder.sub(count, at))
    inside = builder.and_(builder.icmp_signed(">=", numbers, first), builder.icmp_signed("<", numbers, last))
    bits = 32 if isinstance(row.type.element, ir.FloatType) else 64
    kind = ir.FunctionType(ir.VoidType(), [row.type, row.type.as_pointer(), emit.int32, inside.type])
    function = emit.declare(builder, f"llvm.masked.store.v{WORDS}f{bits}.p0", kind)
    address = builder.bitcast(emit.element(builder, out, at), row.type.as_pointer())
    builder.call(function, [row, address, ir.Constant(emit.int32, bits // 8), inside])

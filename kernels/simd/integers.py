"""Vectors of integers to and from memory of another width: as int64, and as bytes. Signatures are as in `memory`."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.simd import emit
from kernels.simd.memory import are_integers, is_pointer
from kernels.simd.types import IntVector, Mask, vector_like

# -- as int64 --


def _as_int64(builder: ir.IRBuilder, v: IntVector, value: ir.Value) -> emit.Lanes:
    wide = IntVector(types.int64, v.lanes)
    widened = value if v.dtype == types.int64 else builder.sext(value, wide.llvm_type())
    return emit.Lanes(builder, wide, widened)


def _can_store_int64(p: types.Type, v: types.Type) -> bool:
    return is_pointer(p, (types.int64,)) and isinstance(v, IntVector)


@intrinsic
def store_int64_first(typing_context, p, i, v, n):
    """Store the first n lanes of an IntVector as int64, whatever its own width; p is a pointer to int64."""
    if not (_can_store_int64(p, v) and are_integers(i, n)):
        return None

    def code(context, builder, signature, arguments):
        base, index, value, n = arguments
        lanes = _as_int64(builder, v, value)
        emit.store_first_lanes(n, lanes, emit.element(builder, base, index))
        return context.get_dummy_value()

    return types.void(p, types.int64, v, types.int64), code


@intrinsic
def store_int64_masked(typing_context, p, i, v, mask):
    """Store the lanes of an IntVector in the mask as int64; p is a pointer to int64."""
    if not (_can_store_int64(p, v) and are_integers(i) and mask == Mask(v.lanes)):
        return None

    def code(context, builder, signature, arguments):
        base, index, value, mask_value = arguments
        lanes = _as_int64(builder, v, value)
        emit.store_lanes_masked(emit.Lanes(builder, mask, mask_value), lanes, emit.element(builder, base, index))
        return context.get_dummy_value()

    return types.void(p, types.int64, v, mask), code


# -- as bytes --

_BYTES = types.CPointer(types.uint8)


@intrinsic
def load_bytes_masked(typing_context, like, p, i, mask):
    """IntVector, with the lanes of `like`, of the bytes p[i], p[i + 1], ... in the mask, 0 in the other lanes."""
    vector = vector_like(like)
    if vector is None or p != _BYTES or not are_integers(i) or mask != Mask(vector.lanes):
        return None
    narrow = IntVector(types.uint8, vector.lanes)

    def code(context, builder, signature, arguments):
        _, base, index, mask_value = arguments
        zero = emit.Lanes(builder, narrow, ir.Constant(narrow.llvm_type(), None))
        found = emit.load_lanes_masked(emit.Lanes(builder, mask, mask_value), emit.element(builder, base, index), zero)
        return builder.zext(found.value, vector.integers.llvm_type())

    return vector.integers(like, p, types.int64, mask), code


@intrinsic
def store_bytes_masked(typing_context, p, i, v, mask):
    """Store the lanes of an IntVector in the mask as bytes, their lowest eight bits; p is a pointer to uint8."""
    if p != _BYTES or not isinstance(v, IntVector) or not are_integers(i) or mask != Mask(v.lanes):
        return None
    narrow = IntVector(types.uint8, v.lanes)

    def code(context, builder, signature, arguments):
        base, index, value, mask_value = arguments
        lanes = emit.Lanes(builder, narrow, builder.trunc(value, narrow.llvm_type()))
        emit.store_lanes_masked(emit.Lanes(builder, mask, mask_value), lanes, emit.element(builder, base, index))
        return context.get_dummy_value()

    return types.void(p, types.int64, v, mask), code

"""Pointers, and vectors to and from memory.

A pointer is a bare address with an element type (Numba's CPointer): indices count elements, nothing is checked, and it
keeps no array alive. The caller's arguments live long enough by themselves; for scratch made inside a kernel call
`keep_alive(scratch)` after the last use of its pointers.

In the signatures below `p` is a pointer, `i` an int64 element index, `like` a pointer, array, Vector or IntVector of
the element type that is meant. Vectors have the lane count of one register of the target. Nothing has to be aligned.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.simd import emit
from kernels.simd.target import GROUP, VECTOR_BYTES
from kernels.simd.types import ELEMENTS, POINTEES, IntVector, Mask, SimdType, Vector, vector_like


def is_pointer(p: types.Type, dtypes: tuple = POINTEES) -> bool:
    return isinstance(p, types.CPointer) and p.dtype in dtypes


def are_integers(*numbers: types.Type) -> bool:
    return all(isinstance(number, types.Integer) for number in numbers)


# -- pointers and scalars --


@intrinsic
def pointer(typing_context, array, element_offset=0):
    """The address of an array's first element, plus an offset in elements.

    array: any rank and strides, element type float32, float64, int32, int64 or uint8.
    """
    if not isinstance(array, types.Array) or array.dtype not in POINTEES:
        return None
    if not (element_offset == 0 or are_integers(element_offset)):
        return None

    def code(context, builder, signature, arguments):
        data = context.make_array(array)(context, builder, arguments[0]).data
        return emit.element(builder, data, arguments[1])

    return types.CPointer(array.dtype)(array, types.int64), code


@intrinsic(prefer_literal=True)
def stack_room(typing_context, like, vectors):
    """Pointer to room for a literal number of Vectors of the element type of `like`, contents unspecified.

    It lies on the stack of the function that calls this, and is gone when that returns.
    """
    vector = vector_like(like)
    if vector is None or not isinstance(vectors, types.IntegerLiteral):
        return None
    count = vectors.literal_value

    def code(context, builder, signature, arguments):
        room = cgutils.alloca_once(builder, ir.ArrayType(vector.llvm_type(), count))
        return builder.bitcast(room, ir.PointerType(vector.llvm_type().element))

    return types.CPointer(vector.dtype)(like, vectors), code


@intrinsic
def pointer_at(typing_context, address, like):
    """The pointer to an address, an integer, with the element type of the pointer or array `like`."""
    dtype = getattr(like, "dtype", None)
    if not (are_integers(address) and isinstance(like, types.CPointer | types.Array) and dtype in POINTEES):
        return None
    kind = types.CPointer(dtype)

    def code(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(kind))

    return kind(types.int64, like), code


@intrinsic
def aligned(typing_context, p):
    """The first address from p on that is a multiple of a vector's bytes."""
    if not is_pointer(p):
        return None

    def code(context, builder, signature, arguments):
        above = builder.add(builder.ptrtoint(arguments[0], emit.int64), ir.Constant(emit.int64, VECTOR_BYTES - 1))
        return builder.inttoptr(builder.and_(above, ir.Constant(emit.int64, -VECTOR_BYTES)), arguments[0].type)

    return p(p), code


@intrinsic
def as_integers(typing_context, p):
    """The same address as a pointer to int64: a table in a kernel's working memory."""
    if not is_pointer(p):
        return None

    def code(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], emit.int64.as_pointer())

    return types.CPointer(types.int64)(p), code


@intrinsic
def keep_alive(typing_context, array):
    """Does nothing, but counts as a use: the array lives at least until here."""
    return types.void(array), lambda context, builder, signature, arguments: context.get_dummy_value()


@intrinsic
def advance(typing_context, p, n):
    """The pointer n elements on (n may be negative)."""
    if not (is_pointer(p) and are_integers(n)):
        return None
    return p(p, types.int64), lambda context, builder, signature, arguments: emit.element(builder, *arguments)


@intrinsic
def peek(typing_context, p, i):
    """The scalar p[i]."""
    if not (is_pointer(p) and are_integers(i)):
        return None

    def code(context, builder, signature, arguments):
        return builder.load(emit.element(builder, *arguments))

    return p.dtype(p, types.int64), code


@intrinsic
def poke(typing_context, p, i, value):
    """p[i] = value for a scalar, converted to the pointer's element type."""
    if not (is_pointer(p) and are_integers(i) and isinstance(value, types.Number)):
        return None

    def code(context, builder, signature, arguments):
        base, index, scalar = arguments
        builder.store(scalar, emit.element(builder, base, index))
        return context.get_dummy_value()

    return types.void(p, types.int64, p.dtype), code


@intrinsic
def prefetch(typing_context, p, i):
    """Ask for the cache line of p[i] to be read soon; any address is allowed, a bad one has no effect."""
    if not (is_pointer(p) and are_integers(i)):
        return None

    def code(context, builder, signature, arguments):
        emit.prefetch(builder, emit.element(builder, *arguments))
        return context.get_dummy_value()

    return types.void(p, types.int64), code


@intrinsic
def lanes_of(typing_context, like):
    """How many lanes a vector of this element type has: an integer known to the compiler."""
    vector = like if isinstance(like, SimdType) else vector_like(like)
    if vector is None:
        return None

    def code(context, builder, signature, arguments):
        return ir.Constant(emit.int64, vector.lanes)

    return types.int64(like), code


# -- masks --


@intrinsic
def lane_mask(typing_context, like, first, last):
    """Mask of the lanes l with first <= l < last, for any two integers."""
    vector = vector_like(like)
    if vector is None or not are_integers(first, last):
        return None

    def code(context, builder, signature, arguments):
        _, first, last = arguments
        return (below(builder, vector, last) & ~below(builder, vector, first)).value

    return Mask(vector.lanes)(like, types.int64, types.int64), code


def below(builder: ir.IRBuilder, simd_type: SimdType, n: ir.Value) -> emit.Lanes:
    """Mask of the first n lanes."""
    integers: Any = simd_type.integers if isinstance(simd_type, Vector) else simd_type
    return emit.lanes_below(builder, integers, n)


# -- loads --


@intrinsic
def load(typing_context, p, i):
    """Vector of p[i], p[i + 1], ..."""
    if not (is_pointer(p, ELEMENTS) and are_integers(i)):
        return None
    vector = vector_like(p)

    def code(context, builder, signature, arguments):
        return emit.load_lanes(builder, vector, emit.element(builder, *arguments)).value

    return vector(p, types.int64), code


def _group_of(p: types.Type) -> Vector | None:
    one = vector_like(p) if is_pointer(p, ELEMENTS) else None
    return None if one is None else Vector(one.dtype, one.lanes * GROUP)


@intrinsic
def load_group(typing_context, p, i):
    """Vector of GROUP times as many lanes: each operation on it becomes as many instructions, side by side."""
    vector = _group_of(p)
    if vector is None or not are_integers(i):
        return None

    def code(context, builder, signature, arguments):
        return emit.load_lanes(builder, vector, emit.element(builder, *arguments)).value

    return vector(p, types.int64), code


@intrinsic
def zeros_group(typing_context, p):
    """As many zeros."""
    vector = _group_of(p)
    if vector is None:
        return None

    def code(context, builder, signature, arguments):
        return ir.Constant(vector.llvm_type(), None)

    return vector(p), code


@intrinsic
def sum_of_group(typing_context, group, p):
    """The sum of the vectors in a group, in the order of the first half onto the second, and so on."""
    vector = vector_like(p) if is_pointer(p, ELEMENTS) else None
    if vector is None or group != _group_of(p):
        return None

    def code(context, builder, signature, arguments):
        rest = emit.Lanes(builder, group, arguments[0])
        while rest.type.lanes > vector.lanes:
            half = rest.type.lanes // 2
            rest = rest.shuffle(range(half)) + rest.shuffle(range(half, 2 * half))
        return rest.value

    return vector(group, p), code


@intrinsic
def load_first(typing_context, p, i, n, fill=0.0):
    """The first n lanes from memory, `fill` in the others, which touch no memory.

    n is any integer: below 1 nothing is read, from the lane count on everything is.
    """
    if not (is_pointer(p, ELEMENTS) and are_integers(i, n) and (fill == 0.0 or isinstance(fill, types.Number))):
        return None
    vector = vector_like(p)

    def code(context, builder, signature, arguments):
        base, index, n, fill = arguments
        other = emit.splat(builder, vector, fill)
        return emit.load_lanes_masked(below(builder, vector, n), emit.element(builder, base, index), other).value

    return vector(p, types.int64, types.int64, p.dtype), code


@intrinsic
def load_masked(typing_context, p, i, mask, other):
    """Lanes in the mask from memory, the rest from `other` (Vector or number) without touching memory."""
    vector = vector_like(p) if is_pointer(p, ELEMENTS) else None
    if vector is None or not are_integers(i) or mask != Mask(vector.lanes):
        return None
    other = _operand(other, vector)

    def code(context, builder, signature, arguments):
        base, index, mask_value, other_value = arguments
        mask_lanes = emit.Lanes(builder, mask, mask_value)
        other_lanes = as_lanes(builder, vector, other, other_value)
        return emit.load_lanes_masked(mask_lanes, emit.element(builder, base, index), other_lanes).value

    return vector(p, types.int64, mask, other), code


def _operand(given: types.Type, vector: SimdType) -> types.Type:
    """The type an operand is asked to have: itself for a vector, the element type for any number."""
    return vector.dtype if isinstance(given, types.Number) else given


def as_lanes(builder: ir.IRBuilder, vector: SimdType, given: types.Type, value: ir.Value) -> emit.Lanes:
    """An operand as Lanes of type `vector`, scalars repeated in each lane."""
    return emit.Lanes(builder, vector, value) if given == vector else emit.splat(builder, vector, value)


@intrinsic
def broadcast(typing_context, p, i):
    """The scalar p[i] in each lane."""
    if not (is_pointer(p, ELEMENTS) and are_integers(i)):
        return None
    vector = vector_like(p)

    def code(context, builder, signature, arguments):
        return emit.splat(builder, vector, builder.load(emit.element(builder, *arguments))).value

    return vector(p, types.int64), code


@intrinsic
def splat_like(typing_context, like, scalar):
    """A number in each lane of a Vector; it is converted to the element type of `like`."""
    vector = vector_like(like)
    if vector is None or not isinstance(scalar, types.Number):
        return None

    def code(context, builder, signature, arguments):
        return emit.splat(builder, vector, arguments[1]).value

    return vector(like, vector.dtype), code


full = splat_like


@intrinsic
def zeros_like(typing_context, like):
    """A Vector of zeros."""
    vector = vector_like(like)
    if vector is None:
        return None

    def code(context, builder, signature, arguments):
        return ir.Constant(vector.llvm_type(), None)

    return vector(like), code


# -- stores --


def _can_store(p: Any, v: Any) -> bool:
    return is_pointer(p) and isinstance(v, Vector | IntVector) and p.dtype == v.dtype


@intrinsic
def store(typing_context, p, i, v):
    """p[i], p[i + 1], ... = the lanes of v (a Vector, or an IntVector through a pointer of its element type)."""
    if not (_can_store(p, v) and are_integers(i)):
        return None

    def code(context, builder, signature, arguments):
        base, index, value = arguments
        emit.store_lanes(emit.Lanes(builder, v, value), emit.element(builder, base, index))
        return context.get_dummy_value()

    return types.void(p, types.int64, v), code


@intrinsic
def store_first(typing_context, p, i, v, n):
    """Store the first n lanes (n any integer); memory behind the others is not touched."""
    if not (_can_store(p, v) and are_integers(i, n)):
        return None

    def code(context, builder, signature, arguments):
        base, index, value, n = arguments
        emit.store_first_lanes(n, emit.Lanes(builder, v, value), emit.element(builder, base, index))
        return context.get_dummy_value()

    return types.void(p, types.int64, v, types.int64), code


@intrinsic
def store_masked(typing_context, p, i, v, mask):
    """Store the lanes in the mask; memory behind the others is not touched."""
    if not (_can_store(p, v) and are_integers(i) and mask == Mask(v.lanes)):
        return None

    def code(context, builder, signature, arguments):
        base, index, value, mask_value = arguments
        lanes = emit.Lanes(builder, v, value)
        emit.store_lanes_masked(emit.Lanes(builder, mask, mask_value), lanes, emit.element(builder, base, index))
        return context.get_dummy_value()

    return types.void(p, types.int64, v, mask), code

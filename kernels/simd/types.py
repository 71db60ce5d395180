"""The Numba types of SIMD values. They are ordinary values: locals, arguments, results, members of tuples."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import models, register_model

from kernels.simd.target import VECTOR_BYTES

ELEMENTS: tuple[Any, ...] = (types.float32, types.float64)
"""The element types that have vectors."""
POINTEES: tuple[Any, ...] = (*ELEMENTS, types.int32, types.int64, types.uint8)
"""The element types that have pointers."""

LANE_INTEGERS: dict[Any, Any] = {types.float32: types.int32, types.float64: types.int64}
"""The integer type as wide as a lane."""


class SimdType(types.Type):
    """What the three kinds of SIMD value have in common: `lanes` values side by side in one register."""

    lanes: int
    #: Numba's type of a lane, and (Vector alone) the IntVector beside it. Numba's types carry no types of their own.
    dtype: Any
    integers: Any

    def llvm_type(self) -> ir.VectorType:
        """The LLVM type of such a value."""
        return ir.VectorType(_SCALARS[self.dtype], self.lanes)


class Vector(SimdType):
    """`lanes` numbers of type float32 or float64."""

    def __init__(self, dtype: types.Float, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(f"Vector({dtype}, {lanes})")

    @property
    def integers(self) -> "IntVector":
        """The integer vector with the same lane count and the same bits."""
        return IntVector(LANE_INTEGERS[self.dtype], self.lanes)


class IntVector(SimdType):
    """`lanes` integers: int32 beside a Vector of float32, int64 beside one of float64; as uint8 in memory alone."""

    def __init__(self, dtype: types.Integer, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(f"IntVector({dtype}, {lanes})")


class Mask(SimdType):
    """`lanes` truth values, one for each lane of a Vector or IntVector."""

    dtype = types.boolean

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(f"Mask({lanes})")


_SCALARS = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.int32: ir.IntType(32),
    types.int64: ir.IntType(64),
    types.uint8: ir.IntType(8),
    types.boolean: ir.IntType(1),
}


@register_model(Vector)
@register_model(IntVector)
@register_model(Mask)
class _SimdModel(models.PrimitiveModel):
    def __init__(self, data_model_manager, simd_type: SimdType) -> None:
        super().__init__(data_model_manager, simd_type, simd_type.llvm_type())


def vector_of(dtype: Any) -> Vector:
    """The Vector of `dtype` that fills one register of the target."""
    return Vector(dtype, VECTOR_BYTES * 8 // dtype.bitwidth)


def vector_like(like: types.Type) -> Vector | None:
    """The Vector type that belongs to a Vector, an IntVector, a pointer or an array; None where there is none."""
    if isinstance(like, Vector):
        return like
    if isinstance(like, IntVector):
        return Vector(next(f for f, i in LANE_INTEGERS.items() if i == like.dtype), like.lanes)
    dtype = getattr(like, "dtype", None)
    return vector_of(dtype) if isinstance(like, types.CPointer | types.Array) and dtype in ELEMENTS else None

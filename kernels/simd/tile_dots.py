"""The register tile for dot products: both sides run along memory, and each sum is a vector until its end."""

from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.simd import emit
from kernels.simd.emit import Lanes
from kernels.simd.tile import rows_within
from kernels.simd.types import ELEMENTS, vector_of


@intrinsic(prefer_literal=True)
def dot_tile(typing_context, rows, columns, a, b, b_stride, b_count, taps, out, out_stride, accumulate, ahead):
    """rows x columns dot products, along memory on both sides.

        out[r * out_stride + c] (+)= sum over k of A[r, k] * b[c * b_stride + k]

    rows, columns: literal integers, together one register a product. a: pointer to A by vectors, elements
    [vectors, rows, lanes], the last vector partly filled: one address for all rows. b_count: at least 1; past so many
    columns the last one is taken again. Each lane sums its products in order with fma, the lanes are added by halves;
    memory past `taps` is not read.
    accumulate: not 0 to add to what is in `out`, 0 to overwrite it. ahead: elements after those of b that are soon read
    too, and asked for in time.
    """
    if not (
        isinstance(rows, types.IntegerLiteral)
        and isinstance(columns, types.IntegerLiteral)
        and isinstance(a, types.CPointer)
        and a.dtype in ELEMENTS
        and a == b == out
        and all(isinstance(n, types.Integer) for n in (b_stride, b_count, taps, out_stride, accumulate, ahead))
    ):
        return None
    row_count, column_count = rows.literal_value, columns.literal_value

    def code(context, builder, signature, arguments):
        _emit_dots(builder, a.dtype, row_count, column_count, *arguments[2:])
        return context.get_dummy_value()

    int64 = types.int64
    return types.void(rows, columns, a, a, int64, int64, int64, a, int64, int64, int64), code


def _emit_dots(
    builder: ir.IRBuilder,
    dtype: types.Float,
    rows: int,
    columns: int,
    a: ir.Value,
    b: ir.Value,
    b_stride: ir.Value,
    b_count: ir.Value,
    taps: ir.Value,
    out: ir.Value,
    out_stride: ir.Value,
    accumulate: ir.Value,
    ahead: ir.Value,
) -> None:
    vector = vector_of(dtype)
    lanes = ir.Constant(emit.int64, vector.lanes)
    zero = Lanes(builder, vector, ir.Constant(vector.llvm_type(), None))

    b_columns = rows_within(builder, b, b_stride, columns, b_count)
    sums = [[cgutils.alloca_once(builder, vector.llvm_type()) for _ in range(columns)] for _ in range(rows)]
    for row in sums:
        for slot in row:
            builder.store(zero.value, slot)

    def step(at: ir.Value, load: Callable[[ir.Value], Lanes]) -> None:
        right = [load(emit.element(builder, start, at)) for start in b_columns]
        left_block = emit.element(builder, a, builder.mul(at, ir.Constant(emit.int64, rows)))
        for r, row in enumerate(sums):
            left = load(emit.element(builder, left_block, r * vector.lanes))
            for slot, values in zip(row, right, strict=True):
                builder.store(left.fma(values, Lanes(builder, vector, builder.load(slot))).value, slot)

    whole = builder.sdiv(taps, lanes)
    with cgutils.for_range(builder, whole, intp=emit.int64) as loop:
        at = builder.mul(loop.index, lanes)
        for start in b_columns:
            emit.prefetch(builder, emit.element(builder, start, builder.add(at, ahead)))
        step(at, lambda address: emit.load_lanes(builder, vector, address))
    done = builder.mul(whole, lanes)
    with builder.if_then(builder.icmp_signed("<", done, taps)):
        mask = emit.lanes_below(builder, vector.integers, builder.sub(taps, done))
        step(done, lambda address: emit.load_lanes_masked(mask, address, zero))
    adds = builder.icmp_signed("!=", accumulate, ir.Constant(emit.int64, 0))
    for r, row in enumerate(sums):
        out_row = emit.element(builder, out, builder.mul(out_stride, ir.Constant(emit.int64, r)))
        for c, slot in enumerate(row):
            total = Lanes(builder, vector, builder.load(slot)).reduce(lambda x, y: x + y)
            address = emit.element(builder, out_row, c)
            with builder.if_then(adds):
                builder.store(builder.fadd(builder.load(address), total), address)
            with builder.if_then(builder.not_(adds)):
                builder.store(total, address)

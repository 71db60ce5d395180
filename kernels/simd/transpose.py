"""Transposing through registers: whole matrices, single blocks, and rows that are already vectors."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.runtime.numba_cpu import jit
from kernels.simd import emit
from kernels.simd.emit import Lanes
from kernels.simd.memory import advance, lanes_of
from kernels.simd.target import TILE_ROWS
from kernels.simd.types import ELEMENTS, Vector, vector_of


def _transposed(rows: list[Lanes]) -> list[Lanes]:
    """Column l of `lanes` rows as vector l: blocks of size s off the diagonal change places, s = lanes/2, ..., 2, 1."""
    rows, lanes = list(rows), len(rows)
    size = lanes // 2
    while size:
        low = [lane if not lane & size else lanes + lane - size for lane in range(lanes)]
        high = [lane + size if not lane & size else lanes + lane for lane in range(lanes)]
        for r in range(lanes):
            if not r & size:
                upper, lower = rows[r], rows[r + size]
                rows[r], rows[r + size] = upper.shuffle(low, lower), upper.shuffle(high, lower)
        size //= 2
    return rows


def _loaded_transposed(builder: ir.IRBuilder, vector: Vector, lines: list[ir.Value]) -> list[Lanes]:
    """The columns of `lanes` whole rows in memory.

    The larger half of the exchanges is made by loading: a vector is put together from pieces of 16 bytes, of rows a
    piece's length apart, so that shuffles have only the inside of the pieces left to transpose.
    """
    piece = min(16 // (vector.dtype.bitwidth // 8), vector.lanes)
    narrow = Vector(vector.dtype, piece)
    columns: list[Lanes] = []
    for c in range(0, vector.lanes, piece):
        rows = []
        for r in range(piece):
            parts = [
                emit.load_lanes(builder, narrow, emit.element(builder, lines[at], c))
                for at in range(r, vector.lanes, piece)
            ]
            while len(parts) > 1:
                size = 2 * parts[0].type.lanes
                parts = [low.shuffle(range(size), high) for low, high in zip(parts[::2], parts[1::2], strict=True)]
            rows.append(parts[0])
        columns += _transposed_pieces(rows)
    return columns


def _transposed_pieces(rows: list[Lanes]) -> list[Lanes]:
    """As `_transposed`, of each square of as many lanes as there are rows."""
    rows, lanes = list(rows), rows[0].type.lanes
    size = len(rows) // 2
    while size:
        low = [lane if not lane & size else lanes + lane - size for lane in range(lanes)]
        high = [lane + size if not lane & size else lanes + lane for lane in range(lanes)]
        for r in range(len(rows)):
            if not r & size:
                upper, lower = rows[r], rows[r + size]
                rows[r], rows[r + size] = upper.shuffle(low, lower), upper.shuffle(high, lower)
        size //= 2
    return rows


@intrinsic
def transpose_vectors(typing_context, rows):
    """A tuple of as many Vectors as each has lanes: lane r of the result's vector c is lane c of rows[r]."""
    vector = getattr(rows, "dtype", None)
    if not (isinstance(rows, types.UniTuple) and isinstance(vector, Vector) and rows.count == vector.lanes):
        return None

    def code(context, builder, signature, arguments):
        values = cgutils.unpack_tuple(builder, arguments[0], rows.count)
        columns = _transposed([Lanes(builder, vector, value) for value in values])
        return context.make_tuple(builder, rows, [column.value for column in columns])

    return rows(rows), code


@intrinsic
def transpose_block(typing_context, src, src_stride, rows, columns, dst, dst_stride):
    """dst[c * dst_stride + r] = src[r * src_stride + c] for r < rows and c < columns, both at most the lane count.

    src: elements [rows, columns], rows src_stride apart; dst: elements [columns, rows], rows dst_stride apart, of the
    same type and not overlapping. Memory outside these is not touched.
    """
    integers = (src_stride, rows, columns, dst_stride)
    if not (
        isinstance(src, types.CPointer)
        and src.dtype in ELEMENTS
        and src == dst
        and all(isinstance(number, types.Integer) for number in integers)
    ):
        return None
    vector = vector_of(src.dtype)

    def code(context, builder, signature, arguments):
        _emit_block(builder, vector, *arguments)
        return context.get_dummy_value()

    return types.void(src, types.int64, types.int64, types.int64, src, types.int64), code


def _emit_block(
    builder: ir.IRBuilder,
    vector: Vector,
    src: ir.Value,
    src_stride: ir.Value,
    rows: ir.Value,
    columns: ir.Value,
    dst: ir.Value,
    dst_stride: ir.Value,
) -> None:
    def number(value: int) -> ir.Constant:
        return ir.Constant(emit.int64, value)

    def line(base: ir.Value, stride: ir.Value, index: int) -> ir.Value:
        return emit.element(builder, base, builder.mul(stride, number(index)))

    has_rows = builder.icmp_signed(">=", rows, number(vector.lanes))
    has_columns = builder.icmp_signed(">=", columns, number(vector.lanes))
    with builder.if_else(builder.and_(has_rows, has_columns)) as (whole, partial):
        with whole:
            lines = [line(src, src_stride, r) for r in range(vector.lanes)]
            for c, column in enumerate(_loaded_transposed(builder, vector, lines)):
                emit.store_lanes(column, line(dst, dst_stride, c))
        with partial:
            zero = Lanes(builder, vector, ir.Constant(vector.llvm_type(), None))
            row_mask = emit.lanes_below(builder, vector.integers, rows)
            column_mask = emit.lanes_below(builder, vector.integers, columns)
            none = ir.Constant(column_mask.value.type, None)
            block = []
            for r in range(vector.lanes):
                wanted = builder.select(builder.icmp_signed("<", number(r), rows), column_mask.value, none)
                address = line(src, src_stride, r)
                block.append(emit.load_lanes_masked(column_mask.wrap(wanted), address, zero))
            for c, column in enumerate(_transposed(block)):
                with builder.if_then(builder.icmp_signed("<", number(c), columns)):
                    emit.store_lanes_masked(row_mask, column, line(dst, dst_stride, c))


@intrinsic
def transpose_tile_rows(typing_context, src, src_stride, dst):
    """dst[c * TILE_ROWS + r] = src[r * src_stride + c] for r < TILE_ROWS and c below the lane count.

    A block of as many rows as a register tile has, packed as the tile reads them; else as `transpose_block`.
    """
    if not (
        isinstance(src, types.CPointer)
        and src.dtype in ELEMENTS
        and src == dst
        and isinstance(src_stride, types.Integer)
    ):
        return None
    vector = vector_of(src.dtype)

    def code(context, builder, signature, arguments):
        source, stride, target = arguments
        zero = Lanes(builder, vector, ir.Constant(vector.llvm_type(), None))
        for start in range(0, TILE_ROWS, vector.lanes):
            count = min(vector.lanes, TILE_ROWS - start)
            block = [zero] * vector.lanes
            for r in range(count):
                line = emit.element(builder, source, builder.mul(stride, ir.Constant(emit.int64, start + r)))
                block[r] = emit.load_lanes(builder, vector, line)
            mask = emit.lanes_below(builder, vector.integers, ir.Constant(emit.int64, count))
            for c, column in enumerate(_transposed(block)):
                place = emit.element(builder, target, c * TILE_ROWS + start)
                if count == vector.lanes:
                    emit.store_lanes(column, place)
                else:
                    emit.store_lanes_masked(mask, column, place)
        return context.get_dummy_value()

    return types.void(src, types.int64, src), code


@jit
def transpose(src, src_stride, rows, columns, dst, dst_stride):
    """dst[c * dst_stride + r] = src[r * src_stride + c] for all r < rows, c < columns.

    src: elements [rows, columns], rows src_stride apart; dst: elements [columns, rows], rows dst_stride apart, of the
    same type and not overlapping. Memory outside these is not touched.
    """
    lanes = lanes_of(src)
    for r in range(0, rows, lanes):
        for c in range(0, columns, lanes):
            transpose_block(
                advance(src, r * src_stride + c),
                src_stride,
                rows - r,
                columns - c,
                advance(dst, c * dst_stride + r),
                dst_stride,
            )

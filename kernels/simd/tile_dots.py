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
def dot_tile(
    typing_context,
    rows,
    columns,
    asked,
    a,
    a_row_stride,
    a_step,
    b,
    b_stride,
    b_count,
    taps,
    out,
    out_stride,
    accumulate,
    ahead,
):
    """rows x columns dot products, along memory on both sides.

        out[r * out_stride + c] (+)= sum over v and l of
            a[r * a_row_stride + v * a_step + l] * b[c * b_stride + v * lanes + l]       for v * lanes + l < taps

    rows, columns: literal integers, together one register a product. a: pointer to A by vectors, b: pointer to rows
    along the taps. a_step: elements from a vector of A to the next, `lanes` where its rows run along memory too.
    b_count: at least 1; past so many columns the last one is taken again. Each lane sums its products in order with
    fma, then the lanes are added as `sum_lanes` does, in the same order wherever in a tile; memory past `taps` is not
    read.
    accumulate: not 0 to add to what is in `out`, 0 to overwrite it.
    asked, ahead: a literal integer and a pointer; so many rows of b from there on, b_stride apart, are soon read too,
    and asked for in time.
    """
    if not (
        all(isinstance(number, types.IntegerLiteral) for number in (rows, columns, asked))
        and isinstance(a, types.CPointer)
        and a.dtype in ELEMENTS
        and a == b == out == ahead
        and all(
            isinstance(n, types.Integer)
            for n in (a_row_stride, a_step, b_stride, b_count, taps, out_stride, accumulate)
        )
    ):
        return None
    sizes = rows.literal_value, columns.literal_value, asked.literal_value

    def code(context, builder, signature, arguments):
        _emit_dots(builder, a.dtype, *sizes, *arguments[3:])
        return context.get_dummy_value()

    int64 = types.int64
    return types.void(rows, columns, asked, a, int64, int64, a, int64, int64, int64, a, int64, int64, a), code


def _emit_dots(
    builder: ir.IRBuilder,
    dtype: types.Float,
    rows: int,
    columns: int,
    asked: int,
    a: ir.Value,
    a_row_stride: ir.Value,
    a_step: ir.Value,
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

    def apart(start: ir.Value, stride: ir.Value, count: int) -> list[ir.Value]:
        return [emit.element(builder, start, builder.mul(stride, ir.Constant(emit.int64, i))) for i in range(count)]

    a_rows, b_columns = apart(a, a_row_stride, rows), rows_within(builder, b, b_stride, columns, b_count)
    soon = apart(ahead, b_stride, asked)
    sums = [[cgutils.alloca_once(builder, vector.llvm_type()) for _ in range(columns)] for _ in range(rows)]
    for row in sums:
        for slot in row:
            builder.store(zero.value, slot)

    def step(index: ir.Value, load: Callable[[ir.Value], Lanes]) -> None:
        # What fewer registers hold is read first.
        there = builder.mul(index, a_step)
        left = [(lambda start=start: load(emit.element(builder, start, there))) for start in a_rows]
        at = builder.mul(index, lanes)
        right = [(lambda start=start: load(emit.element(builder, start, at))) for start in b_columns]
        held = [read() for read in (left if rows <= columns else right)]
        for i, read in enumerate(right if rows <= columns else left):
            value = read()
            for j, other in enumerate(held):
                slot = sums[j][i] if rows <= columns else sums[i][j]
                builder.store(value.fma(other, Lanes(builder, vector, builder.load(slot))).value, slot)

    whole = builder.sdiv(taps, lanes)
    with cgutils.for_range(builder, whole, intp=emit.int64) as loop:
        for start in soon:
            emit.prefetch(builder, emit.element(builder, start, builder.mul(loop.index, lanes)))
        step(loop.index, lambda address: emit.load_lanes(builder, vector, address))
    done = builder.mul(whole, lanes)
    with builder.if_then(builder.icmp_signed("<", done, taps)):
        mask = emit.lanes_below(builder, vector.integers, builder.sub(taps, done))
        step(whole, lambda address: emit.load_lanes_masked(mask, address, zero))
    adds = builder.icmp_signed("!=", accumulate, ir.Constant(emit.int64, 0))
    # As many whole rows at a time as a vector holds, or parts of one row.
    width = min(columns, vector.lanes)
    pieces = [row[c : c + width] for row in sums for c in range(0, columns, width)]
    places = [(r, c) for r in range(rows) for c in range(0, columns, width)]
    together = max(vector.lanes // width, 1)
    for i in range(0, len(pieces), together):
        totals = sum_lanes([zero.wrap(builder.load(slot)) for piece in pieces[i : i + together] for slot in piece])
        taken = 0
        for piece, (r, c) in zip(pieces[i : i + together], places[i : i + together], strict=True):
            found = totals.shuffle(range(taken, taken + len(piece)))
            taken += len(piece)
            row = emit.element(builder, out, builder.mul(out_stride, ir.Constant(emit.int64, r)))
            place = emit.element(builder, row, c)
            with builder.if_else(adds) as (then, otherwise):
                with then:
                    emit.store_lanes(emit.load_lanes(builder, found.type, place) + found, place)
                with otherwise:
                    emit.store_lanes(found, place)


def sum_lanes(vectors: list[Lanes]) -> Lanes:
    """The sum of the lanes of vector i in lane i, for up to as many vectors as each has lanes; the other lanes repeat.

    Two vectors become one that holds the sums of both, over half as many lanes each, until one vector is left: a sum
    costs three instructions, alone it would cost three for each halving. The halves of each 16 bytes are added first,
    where shuffles are cheap, then whole pieces of 16 bytes. A vector without a partner is its own.
    """
    lanes = vectors[0].type.lanes
    piece = min(16 * 8 // vectors[0].type.dtype.bitwidth, lanes)
    size = 1
    while size < lanes:
        low: list[int] = []
        high: list[int] = []
        if size < piece:
            # The halves of each piece, in which `size` sums repeat: the first vector's and the second's in turn.
            for start in range(0, lanes, piece):
                for at in range(0, piece, size):
                    half = low if at < piece // 2 else high
                    for source in (start + at, lanes + start + at):
                        half.extend(range(source, source + size))
        else:
            for source in (0, lanes):
                for start in range(0, lanes, lanes * piece // size):
                    half = lanes * piece // size // 2
                    low.extend(range(source + start, source + start + half))
                    high.extend(range(source + start + half, source + start + 2 * half))
        pairs = [(vectors[i], vectors[min(i + 1, len(vectors) - 1)]) for i in range(0, len(vectors), 2)]
        vectors = [first.shuffle(low, second) + first.shuffle(high, second) for first, second in pairs]
        size *= 2
    return vectors[0]

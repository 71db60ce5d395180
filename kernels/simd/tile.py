"""The register tile: a block of outputs that stays in registers while products are added to it.

It is the one multiply-accumulate core under matrix products, convolutions, recurrences and attention. Its left operand
is read through two tables of offsets, which makes it at once a plain matrix (rows apart by a stride), a packed panel, a
transposed matrix, or the shifted pixels of a convolution.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.simd import emit
from kernels.simd.emit import Lanes
from kernels.simd.target import LINE_VECTORS, TARGET
from kernels.simd.types import ELEMENTS, Vector, vector_of

ROWS_AHEAD = 2
"""How many rows' broadcasts may be in flight before the multiply-adds of the first of them are done."""

_OFFSETS = types.CPointer(types.int64)


@intrinsic(prefer_literal=True)
def multiply_tile(
    typing_context,
    rows,
    vectors,
    a,
    row_offsets,
    tap_offsets,
    taps,
    b,
    out,
    out_row_stride,
    out_vector_stride,
    accumulate,
):
    """A tile of rows x (vectors * lanes) outputs, each a sum over `taps` products.

        out[r * out_row_stride + j * out_vector_stride + lane] (+)=
            sum over k of a[row_offsets[r] + tap_offsets[k]] * b[(k * vectors + j) * lanes + lane]

    The sum starts from zero and goes through k in order with fma; the old output is added to it at the end.

    rows, vectors: literal integers (TILE_ROWS and TILE_VECTORS are the largest that stay in registers; global names
        and numbers written out are literals, computed values are not).
    a: pointer to elements, b: pointer to elements [taps, vectors, lanes], out: pointer to elements, all of one type.
    row_offsets [rows], tap_offsets [taps]: pointers to int64, in elements from `a`, of either sign. Only `rows`
        entries and `taps` entries are read; several rows may share an offset.
    taps: int64, 0 and less give zero sums.
    accumulate: not 0 to add to what is in `out`, 0 to overwrite it without reading it.
    """
    integers = (taps, out_row_stride, out_vector_stride, accumulate)
    if not (
        isinstance(rows, types.IntegerLiteral)
        and isinstance(vectors, types.IntegerLiteral)
        and isinstance(a, types.CPointer)
        and a.dtype in ELEMENTS
        and a == b == out
        and row_offsets == tap_offsets == _OFFSETS
        and all(isinstance(number, types.Integer) for number in integers)
    ):
        return None
    row_count, vector_count = rows.literal_value, vectors.literal_value

    def code(context, builder, signature, arguments):
        _emit_tile(builder, a.dtype, row_count, vector_count, *arguments[2:])
        return context.get_dummy_value()

    int64 = types.int64
    return types.void(rows, vectors, a, _OFFSETS, _OFFSETS, int64, a, a, int64, int64, int64), code


@intrinsic(prefer_literal=True)
def multiply_tile_part(
    typing_context,
    rows,
    vectors,
    of_vectors,
    a,
    row_offsets,
    tap_offsets,
    taps,
    b,
    out,
    out_row_stride,
    accumulate,
):
    """As `multiply_tile` with the first `vectors` of the `of_vectors` vectors that B has for each k.

        out[r * out_row_stride + j * lanes + lane] (+)=
            sum over k of a[row_offsets[r] + tap_offsets[k]] * b[(k * of_vectors + j) * lanes + lane]

    of_vectors: a literal integer; b: pointer to elements [taps, of_vectors, lanes].
    """
    integers = (taps, out_row_stride, accumulate)
    if not (
        all(isinstance(number, types.IntegerLiteral) for number in (rows, vectors, of_vectors))
        and isinstance(a, types.CPointer)
        and a.dtype in ELEMENTS
        and a == b == out
        and row_offsets == tap_offsets == _OFFSETS
        and all(isinstance(number, types.Integer) for number in integers)
    ):
        return None
    row_count, vector_count, stride = rows.literal_value, vectors.literal_value, of_vectors.literal_value

    def code(context, builder, signature, arguments):
        a_value, row_table, tap_table, taps_value, b_value, out_value, out_stride, add = arguments[3:]
        vector_stride = ir.Constant(emit.int64, vector_of(a.dtype).lanes)
        tile = (a_value, row_table, tap_table, taps_value, b_value, out_value, out_stride, vector_stride, add)
        _emit_tile(builder, a.dtype, row_count, vector_count, *tile, b_vectors=stride)
        return context.get_dummy_value()

    int64 = types.int64
    return types.void(rows, vectors, of_vectors, a, _OFFSETS, _OFFSETS, int64, a, a, int64, int64), code


@intrinsic(prefer_literal=True)
def multiply_gathered(
    typing_context,
    rows,
    vectors,
    a,
    row_offsets,
    tap_offsets,
    b,
    b_offsets,
    taps,
    out,
    out_offsets,
    out_vector_stride,
    accumulate,
):
    """As `multiply_tile`, with B's and the output's rows anywhere too.

        out[out_offsets[r] + j * out_vector_stride + lane] (+)=
            sum over k of a[row_offsets[r] + tap_offsets[k]] * b[b_offsets[k] + j * lanes + lane]

    b_offsets [taps], out_offsets [rows]: pointers to int64. Rows may share an output only where it is overwritten.
    """
    integers = (taps, out_vector_stride, accumulate)
    if not (
        isinstance(rows, types.IntegerLiteral)
        and isinstance(vectors, types.IntegerLiteral)
        and isinstance(a, types.CPointer)
        and a.dtype in ELEMENTS
        and a == b == out
        and row_offsets == tap_offsets == b_offsets == out_offsets == _OFFSETS
        and all(isinstance(number, types.Integer) for number in integers)
    ):
        return None
    row_count, vector_count = rows.literal_value, vectors.literal_value

    def code(context, builder, signature, arguments):
        a_value, row_table, tap_table, b_value, b_table, taps_value, out_value, out_table, stride, add = arguments[2:]
        tile = (a_value, row_table, tap_table, taps_value, b_value, out_value, None, stride, add)
        _emit_tile(builder, a.dtype, row_count, vector_count, *tile, b_table, out_table)
        return context.get_dummy_value()

    int64 = types.int64
    tables = (_OFFSETS, _OFFSETS)
    return types.void(rows, vectors, a, *tables, a, _OFFSETS, int64, a, _OFFSETS, int64, int64), code


@intrinsic(prefer_literal=True)
def multiply_tile_onto(
    typing_context,
    rows,
    vectors,
    a,
    row_offsets,
    tap_offsets,
    taps,
    b,
    ahead,
    ahead_step,
    old,
    old_row_stride,
    out,
    out_row_stride,
    count,
    accumulate,
    rectify,
):
    """As `multiply_tile`, with the old values elsewhere than the output, and both without the rows past `count`.

        out[r * out_row_stride + n] = (old[r * old_row_stride + n] +) sum over k of
            a[row_offsets[r] + tap_offsets[k]] * b[k * vectors * lanes + n]        for r < count, n < vectors * lanes

    ahead: pointer to elements that are read soon: at tap k as many vectors as are multiplied are asked for from
    ahead[k * ahead_step] on. The processor finds out by itself that a panel is read in order, but too late.
    old, out: pointers to elements, the same place or ones that do not overlap. count: at least 1; the offsets of the
    rows from there on have to be those of row count - 1. accumulate: not 0 to add `old`, 0 to leave it unread. rectify:
    not 0 to write 0 in place of what is below.
    """
    integers = (taps, ahead_step, old_row_stride, out_row_stride, count, accumulate, rectify)
    if not (
        isinstance(rows, types.IntegerLiteral)
        and isinstance(vectors, types.IntegerLiteral)
        and isinstance(a, types.CPointer)
        and a.dtype in ELEMENTS
        and a == b == ahead == old == out
        and row_offsets == tap_offsets == _OFFSETS
        and all(isinstance(number, types.Integer) for number in integers)
    ):
        return None
    row_count, vector_count = rows.literal_value, vectors.literal_value

    def code(context, builder, signature, arguments):
        a_value, row_table, tap_table, taps_value, b_value, ahead_value, step, *rest = arguments[2:]
        old_value, old_stride, out_value, out_stride, count_value, add, rectifies = rest
        none = ir.Constant(emit.int64, 0)
        vector = vector_of(a.dtype)
        sums = _emit_products(
            builder, vector, row_count, vector_count, a_value, row_table, tap_table, taps_value, b_value, None,
            ahead=(ahead_value, step),
        )  # fmt: skip
        old_rows = rows_within(builder, old_value, old_stride, row_count, count_value)
        with builder.if_then(builder.icmp_signed("!=", add, none)):
            # All of it is read before any is written, as rows may be the same one.
            for row, place in zip(sums, old_rows, strict=True):
                for j, slot in enumerate(row):
                    before = emit.load_lanes(builder, vector, emit.element(builder, place, j * vector.lanes))
                    builder.store((before + Lanes(builder, vector, builder.load(slot))).value, slot)
        with builder.if_then(builder.icmp_signed("!=", rectifies, none)):
            for row in sums:
                for slot in row:
                    total = Lanes(builder, vector, builder.load(slot))
                    # As kernels.activation.vectors: NaN and -0.0 pass.
                    builder.store(total.compare("<", 0.0).select(total.constant(0.0), total).value, slot)
        out_rows = rows_within(builder, out_value, out_stride, row_count, count_value)
        for row, place in zip(sums, out_rows, strict=True):
            for j, slot in enumerate(row):
                total = Lanes(builder, vector, builder.load(slot))
                emit.store_lanes(total, emit.element(builder, place, j * vector.lanes))
        return context.get_dummy_value()

    int64 = types.int64
    tables, old_and_out = (_OFFSETS, _OFFSETS, int64), (a, int64, a, int64)
    return types.void(rows, vectors, a, *tables, a, a, int64, *old_and_out, int64, int64, int64), code


def rows_within(builder: ir.IRBuilder, base: ir.Value, stride: ir.Value, rows: int, count: ir.Value) -> list[ir.Value]:
    """Where `rows` rows begin, `stride` elements apart; from row `count` on, where the one before it does.

    Worked out in registers: from a table that has just been written they would have to wait for memory.
    """
    found = [base]
    for r in range(1, rows):
        there = builder.icmp_signed("<", ir.Constant(emit.int64, r), count)
        found.append(builder.select(there, emit.element(builder, found[-1], stride), found[-1]))
    return found


def _emit_products(
    builder: ir.IRBuilder,
    vector: Vector,
    rows: int,
    vectors: int,
    a: ir.Value,
    row_offsets: ir.Value,
    tap_offsets: ir.Value,
    taps: ir.Value,
    b: ir.Value,
    b_offsets: ir.Value | None,
    b_vectors: int | None = None,
    ahead: tuple[ir.Value, ir.Value] | None = None,
) -> list[list[ir.Value]]:
    """The sums of a tile, by row and vector.

    b_vectors: from one row of B to the next, by default `vectors`. ahead: what is asked for, and elements from tap to
    tap.
    """
    llvm_vector, lanes = vector.llvm_type(), vector.lanes
    row_starts = [emit.element(builder, a, builder.load(emit.element(builder, row_offsets, r))) for r in range(rows)]
    # Stack slots that LLVM turns into registers (mem2reg).
    sums = [[cgutils.alloca_once(builder, llvm_vector) for _ in range(vectors)] for _ in range(rows)]
    for row in sums:
        for slot in row:
            builder.store(ir.Constant(llvm_vector, None), slot)

    with cgutils.for_range(builder, taps, intp=emit.int64) as loop:
        tap_offset = builder.load(emit.element(builder, tap_offsets, loop.index))
        if b_offsets is None:
            b_row = emit.element(
                builder, b, builder.mul(loop.index, ir.Constant(emit.int64, (b_vectors or vectors) * lanes))
            )
        else:
            b_row = emit.element(builder, b, builder.load(emit.element(builder, b_offsets, loop.index)))
        values = [emit.load_lanes(builder, vector, emit.element(builder, b_row, j * lanes)) for j in range(vectors)]
        if ahead is not None:
            soon = emit.element(builder, ahead[0], builder.mul(loop.index, ahead[1]))
            for j in range(0, vectors, LINE_VECTORS):
                emit.prefetch(builder, emit.element(builder, soon, j * lanes))
        for r in range(rows):
            if r >= ROWS_AHEAD:
                tap_offset = after(builder, tap_offset, sums[r - ROWS_AHEAD])
            factor = emit.splat(builder, vector, builder.load(emit.element(builder, row_starts[r], tap_offset)))
            for slot, value in zip(sums[r], values, strict=True):
                builder.store(factor.fma(value, Lanes(builder, vector, builder.load(slot))).value, slot)
    return sums


def _emit_tile(
    builder: ir.IRBuilder,
    dtype: types.Float,
    rows: int,
    vectors: int,
    a: ir.Value,
    row_offsets: ir.Value,
    tap_offsets: ir.Value,
    taps: ir.Value,
    b: ir.Value,
    out: ir.Value,
    out_row_stride: ir.Value | None,
    out_vector_stride: ir.Value,
    accumulate: ir.Value,
    b_offsets: ir.Value | None = None,
    out_offsets: ir.Value | None = None,
    b_vectors: int | None = None,
) -> None:
    vector = vector_of(dtype)
    sums = _emit_products(builder, vector, rows, vectors, a, row_offsets, tap_offsets, taps, b, b_offsets, b_vectors)

    def store_all(add_old: bool) -> None:
        for r, row in enumerate(sums):
            if out_offsets is None:
                offset = builder.mul(out_row_stride, ir.Constant(emit.int64, r))
            else:
                offset = builder.load(emit.element(builder, out_offsets, r))
            out_row = emit.element(builder, out, offset)
            for j, slot in enumerate(row):
                offset = builder.mul(out_vector_stride, ir.Constant(emit.int64, j))
                address = emit.element(builder, out_row, offset)
                total = Lanes(builder, vector, builder.load(slot))
                if add_old:
                    total = emit.load_lanes(builder, vector, address) + total
                emit.store_lanes(total, address)

    wanted = builder.icmp_signed("!=", accumulate, ir.Constant(emit.int64, 0))
    with builder.if_else(wanted) as (then, otherwise):
        with then:
            store_all(add_old=True)
        with otherwise:
            store_all(add_old=False)


def after(builder: ir.IRBuilder, offset: ir.Value, slots: list[ir.Value]) -> ir.Value:
    """The same offset, but known only once the sums in `slots` are: an empty piece of assembly takes in all of them.

    Left alone, LLVM moves the broadcasts of all rows to the top of the loop body, runs out of registers and spills:
    half the speed. As the address of a later broadcast now depends on the sums of an earlier row, it cannot.
    """
    register = TARGET.assembly_register
    if register is None:
        return offset
    sums = [builder.load(slot) for slot in slots]
    kinds = [offset.type, *(value.type for value in sums)]
    outputs = ["=r"] + [f"={register}"] * len(sums)
    same_registers = [str(position) for position in range(len(kinds))]
    function = ir.FunctionType(ir.LiteralStructType(kinds), kinds)
    constraints = ",".join(outputs + same_registers)
    result = builder.asm(function, "", constraints, [offset, *sums], side_effect=True)
    for position, slot in enumerate(slots, start=1):
        builder.store(builder.extract_value(result, position), slot)
    return builder.extract_value(result, 0)

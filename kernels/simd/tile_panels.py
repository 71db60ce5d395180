"""The register tile for few rows: several panels of B at once, so that there are sums enough to keep it busy.

One row alone times a panel would wait for each multiply-add before the next one to the same sum.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.simd import emit
from kernels.simd.emit import Lanes
from kernels.simd.target import TILE_VECTORS
from kernels.simd.tile import ROWS_AHEAD, after, rows_within
from kernels.simd.types import ELEMENTS, vector_of


@intrinsic(prefer_literal=True)
def multiply_panels(
    typing_context,
    rows,
    panels,
    a,
    taps,
    b,
    panel_stride,
    count,
    ahead,
    out,
    out_row_stride,
    accumulate,
):
    """A tile of rows x (panels * width) outputs, each a sum over `taps` products; width = TILE_VECTORS * lanes.

        out[r * out_row_stride + p * width + n] (+)=
            sum over k of a[k * rows + r] * b[p * panel_stride + k * width + n]

    The sum starts from zero and goes through k in order with fma; the old output is added to it at the end.

    rows, panels: literal integers; rows * panels * TILE_VECTORS sums have to fit the registers.
    count: at least 1; from panel `count` on the last one is taken again.
    ahead: elements after those of b that are read soon too, and asked for in time.
    accumulate: not 0 to add to what is in `out`, 0 to overwrite it without reading it.
    """
    integers = (taps, panel_stride, count, ahead, out_row_stride, accumulate)
    if not (
        isinstance(rows, types.IntegerLiteral)
        and isinstance(panels, types.IntegerLiteral)
        and isinstance(a, types.CPointer)
        and a.dtype in ELEMENTS
        and a == b == out
        and all(isinstance(number, types.Integer) for number in integers)
    ):
        return None
    row_count, panel_count = rows.literal_value, panels.literal_value

    def code(context, builder, signature, arguments):
        _emit_panels(builder, a.dtype, row_count, panel_count, *arguments[2:])
        return context.get_dummy_value()

    int64 = types.int64
    return types.void(rows, panels, a, int64, a, int64, int64, int64, a, int64, int64), code


def _emit_panels(
    builder: ir.IRBuilder,
    dtype: types.Float,
    rows: int,
    panels: int,
    a: ir.Value,
    taps: ir.Value,
    b: ir.Value,
    panel_stride: ir.Value,
    count: ir.Value,
    ahead: ir.Value,
    out: ir.Value,
    out_row_stride: ir.Value,
    accumulate: ir.Value,
) -> None:
    vector = vector_of(dtype)
    lanes = vector.lanes
    b_panels = rows_within(builder, b, panel_stride, panels, count)
    # Stack slots that LLVM turns into registers (mem2reg).
    wide = panels * TILE_VECTORS
    sums = [[cgutils.alloca_once(builder, vector.llvm_type()) for _ in range(wide)] for _ in range(rows)]
    for row in sums:
        for slot in row:
            builder.store(ir.Constant(vector.llvm_type(), None), slot)
    with cgutils.for_range(builder, taps, intp=emit.int64) as loop:
        at = builder.mul(loop.index, ir.Constant(emit.int64, TILE_VECTORS * lanes))
        right = []
        for start in b_panels:
            here = emit.element(builder, start, at)
            soon = emit.element(builder, here, ahead)
            for j in range(TILE_VECTORS):
                emit.prefetch(builder, emit.element(builder, soon, j * lanes))
                right.append(emit.load_lanes(builder, vector, emit.element(builder, here, j * lanes)))
        tap = builder.mul(loop.index, ir.Constant(emit.int64, rows))
        for r, row in enumerate(sums):
            if r >= ROWS_AHEAD:
                tap = after(builder, tap, sums[r - ROWS_AHEAD])
            place = emit.element(builder, emit.element(builder, a, tap), r)
            factor = emit.splat(builder, vector, builder.load(place))
            for slot, values in zip(row, right, strict=True):
                builder.store(factor.fma(values, Lanes(builder, vector, builder.load(slot))).value, slot)
    adds = builder.icmp_signed("!=", accumulate, ir.Constant(emit.int64, 0))
    for r, row in enumerate(sums):
        place = emit.element(builder, out, builder.mul(out_row_stride, ir.Constant(emit.int64, r)))
        for j, slot in enumerate(row):
            there = emit.element(builder, place, j * lanes)
            with builder.if_then(adds):
                old = emit.load_lanes(builder, vector, there)
                builder.store((old + Lanes(builder, vector, builder.load(slot))).value, slot)
            emit.store_lanes(Lanes(builder, vector, builder.load(slot)), there)

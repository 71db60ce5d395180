"""Products of one vector with rows that lie along memory: the scores of decoding, where lanes are keys."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.simd import emit
from kernels.simd.emit import Lanes
from kernels.simd.types import ELEMENTS, vector_of


def _lane_sums(rows: list[Lanes]) -> Lanes:
    """Lane r is the sum of the lanes of rows[r], as many rows as lanes; in the order of `reduce_add`, by halves."""
    lanes = width = len(rows)
    while width > 1:
        half = width // 2
        low = [start + i for start in range(0, 2 * lanes, width) for i in range(half)]
        high = [lane + half for lane in low]
        rows = [a.shuffle(low, b) + a.shuffle(high, b) for a, b in zip(rows[::2], rows[1::2], strict=True)]
        width = half
    return rows[0]


@intrinsic
def products_of_rows(typing_context, x, rows, stride, width):
    """Vector whose lane r is the sum over e < width of x[e] * rows[r * stride + e].

    x: pointer to `width` elements, zeros up to a multiple of the lanes. rows: pointer to as many rows as lanes; nothing
    past their widths is read.
    """
    if not (
        isinstance(x, types.CPointer)
        and x.dtype in ELEMENTS
        and x == rows
        and all(isinstance(number, types.Integer) for number in (stride, width))
    ):
        return None
    vector = vector_of(x.dtype)

    def code(context, builder, signature, arguments):
        x_start, first, stride, width = arguments
        lanes = ir.Constant(emit.int64, vector.lanes)
        zero = Lanes(builder, vector, ir.Constant(vector.llvm_type(), None))
        starts = [
            emit.element(builder, first, builder.mul(stride, ir.Constant(emit.int64, r))) for r in range(vector.lanes)
        ]
        sums = [cgutils.alloca_once(builder, vector.llvm_type()) for _ in starts]
        for slot in sums:
            builder.store(zero.value, slot)

        def step(at: ir.Value, mask: Lanes | None) -> None:
            left = emit.load_lanes(builder, vector, emit.element(builder, x_start, at))
            for start, slot in zip(starts, sums, strict=True):
                address = emit.element(builder, start, at)
                if mask is None:
                    right = emit.load_lanes(builder, vector, address)
                else:
                    right = emit.load_lanes_masked(mask, address, zero)
                builder.store(left.fma(right, Lanes(builder, vector, builder.load(slot))).value, slot)

        whole = builder.sdiv(width, lanes)
        with cgutils.for_range(builder, whole, intp=emit.int64) as loop:
            step(builder.mul(loop.index, lanes), None)
        done = builder.mul(whole, lanes)
        with builder.if_then(builder.icmp_signed("<", done, width)):
            step(done, emit.lanes_below(builder, vector.integers, builder.sub(width, done)))
        return _lane_sums([Lanes(builder, vector, builder.load(slot)) for slot in sums]).value

    return vector(x, x, types.int64, types.int64), code

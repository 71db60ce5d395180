"""What the kernels of a matrix product share: the last pass over the sums, and how parts are cut."""

from __future__ import annotations

from kernels.activation.vectors import activate
from kernels.runtime.numba_cpu import jit
from kernels.simd.memory import advance, lanes_of, load_first, peek, splat_like, store_first
from kernels.simd.target import TILE_VECTORS


@jit
def finish(p, sums, sums_row_stride, sums_panel_stride, rows, columns, c, before, is_first, is_last, bias):
    """c[rows, columns] (+)= sums, with the bias, the activation and the kept sums of the plan p where is_last.

    sums: row r and column n at r * sums_row_stride + n // full * sums_panel_stride + n % full; full is a tile's width.
    """
    lanes = lanes_of(c)
    full = TILE_VECTORS * lanes
    for r in range(rows):
        for n in range(0, columns, full):
            source = advance(sums, r * sums_row_stride + n // full * sums_panel_stride)
            for j in range(n, min(n + full, columns), lanes):
                left = columns - j
                at = r * p.c_stride + j
                total = load_first(source, j - n, left)
                if not is_first:
                    total = load_first(c, at, left) + total
                if is_last:
                    if p.bias_stride == 1:
                        total = total + load_first(bias, j, left)
                    elif p.bias_stride == 0:
                        total = total + splat_like(c, peek(bias, 0))
                    if p.keeps_sums:
                        store_first(before, at, total, left)
                    if p.activation:
                        total = activate(p.activation, total)
                store_first(c, at, total, left)


@jit
def split(total, parts, part, align):
    """First and end of a part of [0, total), cut at multiples of align."""
    blocks = (total + align - 1) // align
    return blocks * part // parts * align, min(total, blocks * (part + 1) // parts * align)

"""What the kernels of a matrix product share: the last pass over the sums, and how parts are cut."""

from __future__ import annotations

from kernels.activation.vectors import activate
from kernels.runtime.numba_cpu import jit
from kernels.simd.memory import advance, broadcast, lanes_of, load, load_first, store, store_first
from kernels.simd.target import TILE_VECTORS


@jit
def finish(p, sums, sums_row_stride, sums_panel_stride, rows, columns, c, before, is_first, is_last, bias):
    """c[rows, columns] (+)= sums, with the bias, the activation and the kept sums of the plan p where is_last.

    sums: row r and column n at r * sums_row_stride + n // full * sums_panel_stride + n % full; full is a tile's width.
    """
    lanes = lanes_of(c)
    full = TILE_VECTORS * lanes
    whole = columns // lanes * lanes
    left = columns - whole
    for r in range(rows):
        source, out, kept = (
            advance(sums, r * sums_row_stride),
            advance(c, r * p.c_stride),
            advance(before, r * p.c_stride),
        )
        for j in range(0, whole, lanes):
            total = load(source, j // full * sums_panel_stride + j % full)
            if not is_first:
                total = load(out, j) + total
            if is_last:
                if p.bias_stride == 1:
                    total = total + load(bias, j)
                elif p.bias_stride == 0:
                    total = total + broadcast(bias, 0)
                if p.keeps_sums:
                    store(kept, j, total)
                if p.activation:
                    total = activate(p.activation, total)
            store(out, j, total)
        if left:
            total = load_first(source, whole // full * sums_panel_stride + whole % full, left)
            if not is_first:
                total = load_first(out, whole, left) + total
            if is_last:
                if p.bias_stride == 1:
                    total = total + load_first(bias, whole, left)
                elif p.bias_stride == 0:
                    total = total + broadcast(bias, 0)
                if p.keeps_sums:
                    store_first(kept, whole, total, left)
                if p.activation:
                    total = activate(p.activation, total)
            store_first(out, whole, total, left)


@jit
def split(total, parts, part, align):
    """First and end of a part of [0, total), cut at multiples of align."""
    blocks = (total + align - 1) // align
    return blocks * part // parts * align, min(total, blocks * (part + 1) // parts * align)

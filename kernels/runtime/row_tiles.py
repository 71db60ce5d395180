"""Which tile a Triton kernel takes that works on rows by themselves: softmax, cross-entropy, normalization.

An array is seen as (outer, n, inner), and a row is the n elements of one place in outer and inner. A program has a tile
of `rows` rows and `block` of their elements at a time. With inner = 1 the elements of a row are neighbours in memory;
else the rows of a tile are, at consecutive places in inner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kernels.runtime.targets import Target
from kernels.runtime.tuning import asked


@dataclass(frozen=True)
class RowTile:
    """What a program works on at a time.

    Attributes:
        rows: rows of the tile, a power of two.
        block: elements of each row, a power of two.
        whole: the block holds a whole row, which is then read once.
        warps: warps of a program.
    """

    rows: int
    block: int
    whole: bool
    warps: int

    LIMITS: ClassVar = {"rows": (1, 128), "warps": (1, 16)}


#: Elements of a tile that one thread keeps in registers: four vectors of 128 bits of float32. Here and below, of
#: float64 it is half as many.
OF_THREAD = 16
#: The longest row that is kept whole: 32 elements each of 512 threads.
LONGEST = 16384
#: Elements of a row at a time where it is not kept whole.
STEP = 4096
#: Elements of a tile of short rows.
SHORT = 1024
#: Rows side by side in memory: two lines of 128 bytes of float32.
SIDE_BY_SIDE = 64


def power_of_two(n: int) -> int:
    """The least power of two that is at least n, and 1."""
    return 1 << max(n - 1, 0).bit_length()


def row_tile(
    rows: int, n: int, inner: int, target: Target, longest: int = LONGEST, *, float64: bool = False
) -> RowTile:
    """The tile for an array of `rows` rows of n elements.

    Args:
        rows: outer * inner.
        n: elements of a row.
        inner: distance of a row's elements, 1 for neighbours.
        target: the GPU.
        longest: the most elements of a tile; less than `LONGEST` for a kernel that keeps several arrays.
        float64: computed in float64, whose numbers take two registers; else in float32.

    Raises:
        ValueError: a tile was asked for by `use_tile` that cannot hold the rows whole.
    """
    wanted = asked(RowTile)
    if wanted is not None:
        if wanted.whole and wanted.block < n:
            raise ValueError(f"use_tile: tile must hold a whole row of {n} elements, got {wanted}")
        return wanted
    share = 2 if float64 else 1
    longest //= share
    block = power_of_two(n)
    if inner > 1:
        side = min(power_of_two(inner), SIDE_BY_SIDE)
        whole = block * side <= longest // 2
        if not whole:
            block = max(longest // 4 // side, 1)
        return RowTile(side, block, whole, _warps(side * block * share, target))
    if block > longest:
        block = min(STEP, longest)
        return RowTile(1, block, False, _warps(block * share, target))
    # Short rows come several to a program, unless the GPU would then be left with less than two programs each.
    several = max(SHORT // share // block, 1)
    while several > 1 and rows // several < 2 * target.multiprocessors:
        several //= 2
    return RowTile(several, block, True, _warps(several * block * share, target))


def _warps(elements: int, target: Target) -> int:
    """Warps for a tile of float32: one thread for every `OF_THREAD` elements, at most 512 of them."""
    return max(1, min(512 // target.warp, elements // (OF_THREAD * target.warp)))

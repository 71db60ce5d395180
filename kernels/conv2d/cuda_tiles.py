"""Which tile a CUDA convolution takes: pure functions of the sizes, the element type and the GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from kernels.runtime.cupy_gpu import WIDEST
from kernels.runtime.row_tiles import power_of_two
from kernels.runtime.targets import Target


@dataclass(frozen=True)
class ProductTile:
    """What a block works on: a product of (rows, inner) and (inner, columns), `inner` at a time.

    Attributes:
        rows, columns: of the result: pixels and output channels, or in a weight's gradient output channels and taps.
        inner: terms of a sum at a time: 64 bytes of them.
        row_parts, column_parts: warps along each side of the tile with tensor cores, else threads.
        cores: whether tensor cores multiply.
    """

    rows: int
    columns: int
    inner: int
    row_parts: int
    column_parts: int
    cores: bool

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.row_parts * self.column_parts * (32 if self.cores else 1)

    def constants(self) -> dict[str, int]:
        """Those of product.cuh that the tile decides."""
        return {
            "TILE_ROWS": self.rows,
            "TILE_COLUMNS": self.columns,
            "INNER": self.inner,
            "THREADS": self.threads,
            "CORES": int(self.cores),
            "ROW_PARTS": self.row_parts,
            "COLUMN_PARTS": self.column_parts,
        }


#: (rows, columns, row_parts, column_parts) of half precision, on warps of tensor cores, from the largest tile.
OF_CORES = ((128, 128, 2, 4), (128, 64, 2, 2), (64, 64, 2, 2), (64, 32, 2, 1))
#: The same of float32, on threads that keep 8 x 8 or 4 x 4 sums each.
OF_SINGLE = ((128, 128, 16, 16), (128, 64, 16, 8), (64, 64, 16, 16), (64, 32, 16, 8))
#: The same of float64: 4 x 4 sums each.
OF_DOUBLE = OF_SINGLE[2:]
#: Bytes of the inner dimension that a block reads at a time.
INNER_BYTES = 64
#: Steps of a share of a product, at least: with fewer, adding up the shares is the work.
LEAST_STEPS = 8
#: Columns that every tile has a multiple of: those of a block that packs a weight.
LEAST_COLUMNS = 32
#: Most taps whose sums a thread keeps in registers.
MOST_DEPTH = 32
#: Most lines of a packed weight that a block writes.
PACKED_LINES = 32

_override: ContextVar[ProductTile | None] = ContextVar("product_tile", default=None)


@contextmanager
def use_product_tile(tile: ProductTile) -> Iterator[None]:
    """Take this tile for every matrix product of a convolution inside the block; it must be of the element type."""
    token = _override.set(tile)
    try:
        yield
    finally:
        _override.reset(token)


def product_tiles(itemsize: int) -> tuple[ProductTile, ...]:
    """Every tile for elements of so many bytes (2: half precision, 4: float32, 8: float64), from the largest."""
    shapes = {2: OF_CORES, 4: OF_SINGLE, 8: OF_DOUBLE}[itemsize]
    return tuple(ProductTile(r, c, INNER_BYTES // itemsize, rp, cp, itemsize == 2) for r, c, rp, cp in shapes)


def product_tile(rows: int, columns: int, itemsize: int, target: Target) -> ProductTile:
    """The tile of a product with `rows` by `columns` sums.

    The largest that is not half empty along the columns and gives each multiprocessor a block; else the smallest that
    is as wide as the columns need.

    Args:
        rows, columns: of the result; for groups and phases, of all of them together in `rows`.
        itemsize: bytes of an element.
        target: the GPU.
    """
    asked = _override.get()
    if asked is not None:
        return asked
    fitting = [t for t in product_tiles(itemsize) if t.columns // 2 < columns] or [product_tiles(itemsize)[-1]]
    for tile in fitting:
        if -(-rows // tile.rows) * -(-columns // tile.columns) >= target.multiprocessors:
            return tile
    return fitting[-1]


def splits_of_steps(blocks: int, steps: int, groups: int, target: Target) -> int:
    """How many shares the inner dimension of a product is cut into, so that few tiles keep a GPU busy; 1 for none.

    Args:
        blocks: of the product, groups and all.
        steps: along its inner dimension.
        groups: of the convolution; a launch holds 65535 of them, each as often as there are shares.
        target: the GPU.
    """
    return max(1, min(target.multiprocessors // blocks, steps // LEAST_STEPS, 65535 // groups))


def vector_elements(itemsize: int) -> int:
    """Elements of 128 bits."""
    return WIDEST // itemsize


def sum_threads(channels: int, neighbours: bool) -> tuple[int, int]:
    """(channels, pixels) of a block that sums over pixels; neighbours: channels lie side by side, not pixels."""
    if not neighbours:
        return 1, 256
    across = 32
    while across > 1 and across // 2 >= channels:
        across //= 2
    return across, 256 // across


def lines_of_weight(taps: int, of_inner: int, of_column: int, of_taps: Sequence[int]) -> tuple[int, int, bool]:
    """How a block that packs a weight reads it, as it lies: (lines of a tile, `fast`, whether inner places go first).

    `fast` lines of a column are read, then of the next column: see weights.cu.

    Args:
        taps: of the weight.
        of_inner, of_column, of_taps: strides in elements of the inner channels, of the columns, and of the taps.
    """
    if of_column in (0, 1):
        return PACKED_LINES, 1, True
    if of_inner == 1 or taps == 1:
        return PACKED_LINES, PACKED_LINES, True
    if (of_inner == 0 or abs(of_column) < abs(of_inner)) and taps <= PACKED_LINES:
        # The taps of a column, and then those of the next one, lie side by side.
        return PACKED_LINES // taps * taps, taps, False
    return PACKED_LINES, PACKED_LINES, False


def taps_at_once(taps: int) -> tuple[int, int]:
    """(taps whose sums a thread of add_turned_parts has, the constant DEPTH that holds them)."""
    depth = -(-taps // -(-taps // MOST_DEPTH))
    return depth, power_of_two(depth)

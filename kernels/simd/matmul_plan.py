"""How a matrix product is cut into blocks and parts: a pure function of its sizes, strides and threads."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from kernels.simd.target import TILE_ROWS, TILE_VECTORS, VECTOR_BYTES

#: Taps that are packed at a time.
BLOCK_TAPS = 1024
#: Taps of A that are packed together where its rows lie side by side.
PACKED_TAPS = 8
#: Rows of the tile for what is left over by large ones.
SMALL_ROWS = 4
#: Up to so many rows are done by dot products, or, as up to so many taps, by streaming B.
DOT_ROWS = 8
#: Columns of a streamed product between two epilogues, whose sums stay in L1.
STREAM_COLUMNS = 512
#: Columns of a tile of dot products. Each is a stream of its own from memory, and of more the processor loses track.
DOT_TILE_COLUMNS = 2
#: Rows of the tile for several; where there are the registers one of DOT_ROWS takes all of more, and reads B once.
DOT_TILE_ROWS = 4
HAS_ALL_ROWS = TILE_ROWS >= 12
#: Taps whose products a register sums before it is added to scratch: of a panel 16 KiB, or 12 where L1 has 32. Of 256
#: the errors grew beyond those of NumPy's sums.
PASS_TAPS = 128 if HAS_ALL_ROWS else 192
#: Panels whose products with one, two, and up to four or eight rows of a packed product are made together, as many as
#: there are registers for; 0: none.
PANELS_OF_ONE, PANELS_OF_TWO, PANELS_OF_FOUR, PANELS_OF_EIGHT = (4, 4, 2, 1) if HAS_ALL_ROWS else (4, 2, 1, 0)
#: Up to so many rows of a packed product are done that way.
PANEL_ROWS = 8 if PANELS_OF_EIGHT else 4
#: Elements that are asked for before they are read, of these panels together.
PANELS_AHEAD = 4096
#: Columns of dot products between two epilogues.
DOT_COLUMNS = 256
#: More rows than DOT_ROWS, up to so many, which lie in L2, may be done by dot products too. Measured costs, in
#: hundredths of a product of the tiles: of one of theirs, and of a lane of a panel that is one vector wide; and what
#: else counts as so many taps, or rows: the sums over lanes, and packing a panel.
DOT_BLOCK_ROWS = 128
DOT_COST, NARROW_PANEL, DOT_SUM_TAPS, PACKING_ROWS = 110, 72, 30, 14
#: Columns of their tile, which is of three or two rows, and vectors of taps of a run: eight columns of 4 KiB lie in L1.
DOT_BLOCK_TILE_COLUMNS = 8 if HAS_ALL_ROWS else 4
DOT_BLOCK_RUN = 64
#: Columns that a tile asks for in advance.
DOT_ASKED = 2
#: From so many columns on the rows are copied, so that they lie side by side.
DOT_COPY_COLUMNS = 512
#: Bytes of a block of A. About an L2 of 1 MiB, where smaller ones were slower, as B passes by once for each; but with
#: AVX2, whose processors have 256 or 512 KiB, less than half of it. Elements of a block of B, which streams from
#: farther out.
BLOCK_A_BYTES, BLOCK_B = 1 << 20 if HAS_ALL_ROWS else 192 << 10, 2097152
#: From so many columns on it pays to pack A even where its taps lie side by side.
PACKING_COLUMNS = 384
#: Fewer taps than these are never cut into segments.
SEGMENT_TAPS = 2048


class Product(NamedTuple):
    """A planned product; every field an int. Strides and sizes count elements.

    Sizes: A [rows, taps], B [taps, columns], C [rows, columns] with its columns side by side, or, `is_transposed`, its
    rows. `c_stride` is the distance of C's rows then, or of its columns.
    """

    rows: int
    columns: int
    taps: int
    a_row_stride: int
    a_tap_stride: int
    b_tap_stride: int
    b_column_stride: int
    c_stride: int
    is_transposed: int
    #: C is added to.
    accumulates: int
    #: 1 for a bias per feature (a column, or a row when transposed), 0 for one number, -1 for none.
    bias_stride: int
    #: Code of the activation.
    activation: int
    #: The sums before the activation are stored too.
    keeps_sums: int
    is_dot: int
    is_streamed: int
    #: B is given as panels already, and its strides mean nothing.
    is_packed: int
    #: Few rows times several of these panels at once.
    is_few: int
    packs_a: int
    block_rows: int
    block_columns: int
    #: Parts that may run at once: segments of the taps x parts of the rows x parts of the columns.
    segments: int
    row_parts: int
    column_parts: int
    #: Elements of working memory for each part, of which the last are `offsets_size` int64.
    scratch_size: int
    offsets_size: int


FIELDS = len(Product._fields)


def _ceil(size: int, step: int) -> int:
    return -(-size // step) * step


def _pays_dots(rows: int, taps: int, columns: int, full: int) -> bool:
    """Whether dot products are the faster way: few rows, or little to gain from packing.

    The costs are in hundredths of a product: dot products run a tenth slower than tiles, and add lanes up after each
    run of taps; tiles pack one side, and compute whole panels of it.
    """
    if min(rows, columns) <= DOT_ROWS:
        return True
    if min(rows, columns) > DOT_BLOCK_ROWS:
        return False
    packed, passing = (rows, columns) if _swaps_tiles(rows, columns, full) else (columns, rows)
    rest = packed % full
    last = 0 if rest == 0 else NARROW_PANEL * full if rest <= full // TILE_VECTORS else 100 * full
    tiles = (passing + PACKING_ROWS) * (packed // full * full * 100 + last)
    dots = rows * columns * DOT_COST
    return dots * (taps + DOT_SUM_TAPS) <= tiles * taps


def _swaps_tiles(rows: int, columns: int, full: int) -> bool:
    """Whether few rows become the panels, and the columns, many rows along the taps, are read where they lie."""
    return columns > rows and rows <= 2 * full


@lru_cache(4096)
def plan(
    sizes: tuple[int, int, int],
    a_strides: tuple[int, int],
    b_strides: tuple[int, int] | None,
    c_stride: int,
    itemsize: int,
    threads: int = 1,
    accumulates: bool = False,
    bias_stride: int = -1,
    activation: int = 0,
    keeps_sums: bool = False,
) -> Product:
    """How C [m, n] (+)= A [m, k] B [k, n] is computed; pure, so that a choice can be tested and shown.

    Args:
        sizes: (m, k, n); m and n at least 1.
        a_strides: distances of A's rows and of its taps, in elements, of any sign.
        b_strides: distances of B's taps and of its columns; None where B lies in panels, as `pack_columns` makes them.
        c_stride: distance of C's rows; its columns lie side by side.
        itemsize: bytes of an element, 4 or 8.
        threads: how many parts may run at once. The bits of the result do not depend on it.
        accumulates: add to C.
        bias_stride: 1 for a bias [n], 0 for one number, -1 for none.
        activation: its code, see kernels.activation.vectors.
        keeps_sums: store the sums before the activation too.
    """
    rows, taps, columns = sizes
    full = TILE_VECTORS * VECTOR_BYTES // itemsize
    lanes = full // TILE_VECTORS
    is_packed = b_strides is None
    b_strides = b_strides or (0, 0)
    along_taps = a_strides[1] == 1 and b_strides[0] == 1
    is_dot = not is_packed and along_taps and taps >= 4 * lanes and _pays_dots(rows, taps, columns, full)
    is_streamed = not is_dot and not is_packed and b_strides[1] == 1 and min(rows, taps) <= DOT_ROWS
    is_few = is_packed and rows <= PANEL_ROWS
    is_tiled = not (is_dot or is_streamed or is_few)
    # C^T = B^T A^T: of dot products A is the side that fits in cache.
    if is_dot:
        swaps = columns < rows and (columns <= DOT_ROWS or rows > DOT_BLOCK_ROWS)
    else:
        swaps = is_tiled and b_strides[0] == 1 and _swaps_tiles(rows, columns, full)
    if swaps:
        rows, columns = columns, rows
        a_strides, b_strides = (b_strides[1], b_strides[0]), (a_strides[1], a_strides[0])
    block_taps = max(min(taps, BLOCK_TAPS), 1)
    panels, tiles = _ceil(columns, full) // full, _ceil(rows, TILE_ROWS) // TILE_ROWS
    segments = 1
    if is_tiled and panels * tiles < 8 and taps >= 2 * SEGMENT_TAPS:
        segments = min(taps // SEGMENT_TAPS, 16)
        segments = -(-taps // -(-taps // segments))
    row_parts = column_parts = 1
    if threads > 1:
        column_parts = min(threads, panels) if panels >= threads or is_dot or is_few else 1
        row_parts = 1 if is_dot or is_few or column_parts > 1 else min(threads, tiles)
    block_rows = min(
        max(BLOCK_A_BYTES // itemsize // block_taps // TILE_ROWS * TILE_ROWS, TILE_ROWS), 240, _ceil(rows, TILE_ROWS)
    )
    block_columns = min(max(BLOCK_B // block_taps // full * full, 2 * full), 4096, _ceil(columns, full))
    if is_dot:
        packs_a = rows > DOT_ROWS and columns >= DOT_COPY_COLUMNS
    else:
        packs_a = is_tiled and columns > full and (a_strides[1] != 1 or columns >= PACKING_COLUMNS)
    if is_dot and rows > DOT_ROWS:
        scratch = rows * DOT_COLUMNS * (2 if swaps else 1) + (rows * (_ceil(taps, lanes) + lanes) if packs_a else 0)
    elif is_dot:
        scratch = DOT_ROWS * DOT_COLUMNS * (2 if swaps else 1) + (DOT_ROWS * _ceil(taps, lanes) if rows > 1 else 0)
    elif is_streamed:
        scratch = 2 * DOT_ROWS * STREAM_COLUMNS
    elif is_few:
        scratch = DOT_ROWS * (PANELS_OF_ONE * full + taps)
    else:
        sums = block_rows * full
        scratch = sums * (2 if swaps else 1) + (0 if is_packed else block_columns * block_taps)
        scratch += block_rows * block_taps if packs_a else 0
    offsets = _ceil(block_rows + block_taps, 8)
    return Product(
        rows,
        columns,
        taps,
        *a_strides,
        *b_strides,
        c_stride,
        int(swaps),
        int(accumulates),
        bias_stride,
        activation,
        int(keeps_sums),
        int(is_dot),
        int(is_streamed),
        int(is_packed),
        int(is_few),
        int(packs_a),
        block_rows,
        block_columns,
        segments,
        row_parts,
        column_parts,
        _ceil(scratch, 16) + offsets * 8 // itemsize,
        offsets,
    )

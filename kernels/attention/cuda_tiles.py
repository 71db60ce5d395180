"""Which tiles the CUDA C++ kernels of attention take, and how these lie in shared memory: pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from kernels.runtime.row_tiles import power_of_two

#: The widest rows of queries, keys and values that a tile holds whole; wider ones go through it in parts.
WIDEST = 256
#: Queries of a tile where there are no more: tensor cores multiply no less.
LEAST_QUERIES = 16
#: Heads that share keys are taken together where all their queries are no more than this.
PACKED_QUERIES = 64
#: Bytes of one access, and of what the parts of shared memory are aligned to.
LINE, ALIGNMENT = 16, 128


@dataclass(frozen=True)
class CudaTile:
    """What a block works on at a time.

    Attributes:
        queries, keys: the tile of scores, powers of two; 8 threads have a row of it, 16 bytes of computed numbers each.
        warps: warps of a block.
        blocks: blocks that a multiprocessor should hold: the compiler leaves registers for so many.
    """

    queries: int
    keys: int
    warps: int
    blocks: int = 1


_override: ContextVar[CudaTile | None] = ContextVar("cuda_tile", default=None)


@contextmanager
def use_cuda_tile(tile: CudaTile) -> Iterator[None]:
    """Take this tile for every CUDA C++ kernel of attention inside the block."""
    token = _override.set(tile)
    try:
        yield
    finally:
        _override.reset(token)


def width_block(width: int, itemsize: int) -> int:
    """The width of tiles that hold rows of a width, or a part of them: a power of two.

    At most `WIDEST`, and at least what the columns of a warp are: 16 of a tensor core's product, else 8 threads with 16
    bytes each.
    """
    return min(max(power_of_two(width), 16 if itemsize == 2 else 8 * LINE // itemsize), WIDEST)


def parts_of(width: int) -> int:
    """How many parts of tiles the rows of a width go in, each written by a block of its own."""
    return max(-(-width // WIDEST), 1)


#: (the widest width, its tile), narrowest first.
_Widths = tuple[tuple[int, CudaTile], ...]

#: By bytes of an element.
_FORWARD = {
    2: ((64, CudaTile(64, 64, 8, 2)), (128, CudaTile(64, 64, 8, 1)), (256, CudaTile(64, 32, 8, 1))),
    4: ((64, CudaTile(64, 64, 8, 2)), (128, CudaTile(64, 32, 8, 2)), (256, CudaTile(32, 32, 8, 1))),
    8: ((64, CudaTile(32, 32, 8, 1)), (128, CudaTile(32, 16, 8, 1)), (256, CudaTile(16, 16, 8, 1))),
}
_OF_QUERIES = {
    2: ((64, CudaTile(64, 64, 8, 2)), (128, CudaTile(64, 32, 8, 1)), (256, CudaTile(32, 32, 8, 2))),
    4: ((64, CudaTile(64, 32, 8, 2)), (128, CudaTile(32, 32, 8, 2)), (256, CudaTile(16, 32, 8, 1))),
    8: ((64, CudaTile(32, 16, 8, 1)), (128, CudaTile(16, 16, 8, 1)), (256, CudaTile(16, 16, 8, 1))),
}
_OF_KEYS = {
    2: ((64, CudaTile(64, 64, 8, 2)), (128, CudaTile(32, 64, 8, 1)), (256, CudaTile(32, 32, 8, 1))),
    4: ((64, CudaTile(32, 64, 8, 2)), (128, CudaTile(32, 32, 8, 2)), (256, CudaTile(16, 32, 8, 1))),
    8: ((64, CudaTile(16, 32, 8, 1)), (128, CudaTile(16, 16, 8, 1)), (256, CudaTile(16, 16, 8, 1))),
}


def _chosen(table: Mapping[int, _Widths], queries: int, width: int, itemsize: int) -> CudaTile:
    asked = _override.get()
    if asked is not None:
        return asked
    tile = next(tile for widest, tile in table[itemsize] if min(width, WIDEST) <= widest)
    if width > WIDEST:
        # The loops over the parts of the columns take registers that two blocks do not have.
        tile = replace(tile, blocks=1)
    return replace(tile, queries=min(tile.queries, LEAST_QUERIES)) if queries <= LEAST_QUERIES else tile


def forward_tile(queries: int, width: int, itemsize: int) -> CudaTile:
    """The tile of the forward pass.

    Args:
        queries: rows there are: L, or those of all heads that share keys.
        width: the larger of E and Ev.
        itemsize: bytes of an element.
    """
    return _chosen(_FORWARD, queries, width, itemsize)


def query_tile(queries: int, width: int, itemsize: int, extras: bool = False) -> CudaTile:
    """The tile of the gradients of queries and bias. Arguments as of `forward_tile`.

    extras: a score is more than a product. In half precision this takes registers that two blocks do not have.
    """
    tile = _chosen(_OF_QUERIES, queries, width, itemsize)
    return replace(tile, blocks=1) if extras and itemsize == 2 else tile


def key_tile(queries: int, width: int, itemsize: int, extras: bool = False) -> CudaTile:
    """The tile of the gradients of keys and values. Arguments as of `query_tile`."""
    tile = _chosen(_OF_KEYS, queries, width, itemsize)
    return replace(tile, blocks=1) if extras and itemsize == 2 else tile


def pitch(width: int, itemsize: int) -> int:
    """Elements from row to row of a tile: an odd number of 16 bytes, so that 8 rows lie in different banks."""
    lines = -(-width * itemsize // LINE)
    return (lines | 1) * LINE // itemsize


def score_pitch(keys: int, itemsize: int) -> int:
    """The same of a tile of scores, in computed numbers.

    With tensor cores rows have no gaps: their numbers change places instead (`turned` of tile_products.cuh). Else 4
    rows are written at a time, 8 numbers each.
    """
    return keys if itemsize == 2 else keys + 8


def out_pitch(width: int, itemsize: int, result_itemsize: int) -> int:
    """The same of rows that are written: tensor cores leave two numbers of 4 lanes each in 8 rows."""
    return width + 8 if (itemsize, result_itemsize) == (2, 4) else pitch(width, result_itemsize)


@dataclass(frozen=True)
class SharedLayout:
    """Where the parts of a block's shared memory begin.

    Attributes:
        constants: AT_..., in bytes, and PITCH_..., in elements: options of the compiler.
        size: bytes of it all.
    """

    constants: tuple[tuple[str, int], ...]
    size: int


def shared_layout(
    kernel: str, tile: CudaTile, width_e: int, width_v: int, itemsize: int, result_itemsize: int
) -> SharedLayout:
    """The layout for a kernel.

    Args:
        kernel: "attention_forward", "query_gradient", "key_gradients", "bias_gradient" or "shaw".
        tile: its tile.
        width_e, width_v: `width_block` of the widths of queries and values.
        itemsize: bytes of an element.
        result_itemsize: bytes of an element of what the kernel writes; a tile of it takes the place of the others.
    """
    wide = max(itemsize, 4)
    pitches = {
        "PITCH_E": pitch(width_e, itemsize),
        "PITCH_V": pitch(width_v, itemsize),
        "PITCH_SCORES": score_pitch(tile.keys, itemsize),
        "PITCH_WEIGHTS": score_pitch(tile.keys, itemsize) * wide // itemsize,
        "PITCH_OUT": out_pitch(max(width_e, width_v), itemsize, result_itemsize),
    }
    of_scores = tile.queries * pitches["PITCH_SCORES"] * wide
    parts = {
        "AT_QUERY": tile.queries * pitches["PITCH_E"] * itemsize,
        "AT_KEY": tile.keys * pitches["PITCH_E"] * itemsize,
        "AT_VALUE": tile.keys * pitches["PITCH_V"] * itemsize,
        "AT_SCORES": of_scores,
    }
    if kernel != "attention_forward":
        parts |= {"AT_GRAD": tile.queries * pitches["PITCH_V"] * itemsize, "AT_CHANGES": of_scores}
    rows = {"attention_forward": tile.queries, "query_gradient": tile.queries, "key_gradients": tile.keys}
    written = rows.get(kernel, 0) * pitches["PITCH_OUT"] * result_itemsize
    found, end = dict(pitches), 0
    for name, size in parts.items():
        found[name], end = end, end + _aligned(size)
    end = max(end, _aligned(written))
    kept = {"AT_FACTORS": tile.queries * wide, "AT_ODD": 8}
    kept |= {"AT_FLAGS": 4 * max(tile.queries, tile.keys), "AT_ODD_ROW": max(width_e, width_v) * itemsize}
    for name, size in kept.items():
        found[name], end = end, end + _aligned(size)
    return SharedLayout(tuple(found.items()), end)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def packs(queries: int, group: int) -> bool:
    """Whether the queries of all heads that share keys make one tile, so that the keys are read once."""
    return group > 1 and queries * group <= PACKED_QUERIES

"""Which tiles Triton's attention kernels take: pure functions of widths, element type and GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from kernels.runtime.row_tiles import power_of_two
from kernels.runtime.targets import Target
from kernels.runtime.tuning import asked

#: The widest queries, keys and values that a tile holds, by bytes of an element; wider ones are taken in blocks of
#: WIDE_BLOCK columns.
WIDEST = {2: 256, 4: 128, 8: 64}
WIDE_BLOCK = {2: 128, 4: 128, 8: 64}
#: The narrowest side of a tile: tensor cores multiply no less.
LEAST = 16
#: What a score may have beside its product before its registers are most of a kernel's.
MANY_EXTRAS = 4
#: Keys that a split of the keys has at least.
SPLIT_KEYS = 512


@dataclass(frozen=True)
class AttentionTile:
    """What a program works on at a time.

    Attributes:
        queries, keys: the tile of scores, powers of two.
        warps: warps of a program.
        stages: tiles of keys and values (backward: of whatever it goes over) that are on their way at a time.
        registers: that NVIDIA's assembler is told a thread may have; None leaves it to itself. Then it may spill some
            rather than leave no room for another program.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None

    LIMITS: ClassVar = {"queries": (16, 256), "keys": (16, 256), "warps": (1, 8), "stages": (1, 5)}


#: By widths up to 64, 128 and 256, without and with something beside the products: what was fastest among dozens on an
#: H100 and an H200, with whole vectors in half precision. Tensor cores there want 64 queries (or keys that are summed
#: up) for each four warps; eight warps on 64 fall back to the slower instructions of older chips.
_MEASURED_FORWARD = {
    (64, False): AttentionTile(64, 128, 4, 2),
    (64, True): AttentionTile(64, 64, 4, 3),
    (128, False): AttentionTile(64, 64, 4, 3),
    (128, True): AttentionTile(64, 64, 4, 2),
    (256, False): AttentionTile(64, 128, 4, 1),
}
#: The same of backward: for the gradients of queries, and of keys.
_MEASURED_BACKWARD = {
    (64, False): (AttentionTile(64, 64, 4, 3), AttentionTile(64, 64, 4, 2)),
    (64, True): (AttentionTile(64, 32, 4, 2), AttentionTile(64, 64, 4, 2)),
    (128, False): (AttentionTile(64, 64, 4, 2), AttentionTile(64, 64, 4, 2)),
    (128, True): (AttentionTile(64, 64, 4, 2), AttentionTile(32, 64, 4, 2)),
    (256, False): (AttentionTile(64, 32, 4, 1), AttentionTile(32, 32, 4, 1)),
    (256, True): (AttentionTile(64, 32, 4, 1), AttentionTile(32, 32, 4, 1)),
}


def _class(width: int, extras: int) -> tuple[int, bool]:
    """The row of the two tables."""
    return max(width, 64), extras > 0


def width_block(width: int) -> int:
    """The power of two that holds a width, at least `LEAST`."""
    return max(power_of_two(width), LEAST)


def widest(itemsize: int, extras: int, vectors: bool = True) -> int:
    """The widest queries, keys and values that a tile holds; arguments as of `forward_tile`.

    Without tensor cores a thread has whole rows of both factors in registers, 128 numbers each of float32.
    """
    return 64 if itemsize == 4 and (extras > MANY_EXTRAS or not vectors) else WIDEST[itemsize]


def wide_block(itemsize: int, extras: int, vectors: bool = True) -> int:
    """Columns of a block where widths are above `widest`."""
    return min(WIDE_BLOCK[itemsize], widest(itemsize, extras, vectors))


def parts_of(width: int, itemsize: int, extras: int, vectors: bool = True) -> int:
    """How many programs share the columns of a result of this width when it is too wide for one."""
    return max(-(-width // wide_block(itemsize, extras, vectors)), 1)


def _wide_tiles(itemsize: int, target: Target, vectors: bool) -> tuple[AttentionTile, AttentionTile]:
    """(tile for queries, tile for keys) where some width is above `widest`."""
    if itemsize == 2 and vectors and target.name == "sm_90":
        return (AttentionTile(64, 64, 4, 2),) * 2  # 512 columns on an H100: 217 us forward, 32 by 32, one stage: 532
    if itemsize == 4:
        # On sm_90 16 by 16 spills in all three kernels, as do both of these on the other side; elsewhere 32 by 16 does.
        keys = 16 if target.name == "sm_90" or target.amd else 32
        return AttentionTile(16, 32, 8, 1, 255), AttentionTile(32, keys, 8, 1, 255)
    return (AttentionTile(32, 32, 4, 1) if itemsize == 2 else AttentionTile(16, 16, 8, 1, 255),) * 2


def _needs_least(width: int, itemsize: int, extras: int, vectors: bool) -> bool:
    """Whether more than the least tile spills registers: rows that take many, or much beside the products."""
    if itemsize == 8:
        return False
    if not vectors:
        return width > 64 or extras > 0
    return extras > 2 and width > widest(itemsize, extras)


def forward_tile(
    queries: int, width: int, itemsize: int, extras: int, target: Target, vectors: bool = True, *, reaches: bool = True
) -> AttentionTile:
    """The tile of the forward pass.

    Args:
        queries: L.
        width: the larger of E and Ev.
        itemsize: bytes of an element.
        extras: how many things the scores have beside products: mask, bias, relative term, cap and dropout take
            registers too.
        target: the GPU.
        vectors: whether rows are whole vectors. Without, each thread keeps the place of every element that it loads,
            and halves are not copied asynchronously, which is of 32 bits at least.
        reaches: whether every query sees all keys, wherever it stands.
    """
    wanted = asked(AttentionTile)
    if wanted is not None:
        return wanted
    if _needs_least(width, itemsize, extras, vectors):
        return _least_tile(target)
    if width > widest(itemsize, extras):
        return _fitted(_wide_tiles(itemsize, target, vectors)[0], queries, width, target)
    width = width_block(width)
    in_registers = target.products_in_registers and not target.amd
    if itemsize == 2 and vectors and extras <= 2 and target.name == "sm_90":
        measured = width <= 128 or (extras == 0 and reaches)
        tile = _MEASURED_FORWARD[_class(width, extras)] if measured else _long_rows_tile(queries)
        if extras == 2 and queries <= LEAST:
            tile = replace(tile, registers=255)  # left to itself, the assembler spills 9 for a fifth program
        return _fitted(tile, queries, width, target)
    if itemsize == 2:
        if extras > MANY_EXTRAS:
            tile = AttentionTile(64 if width <= 128 else 32, 32, 8, 2, 255)
        elif width <= 64 and extras == 2 and target.name == "sm_100":
            tile = AttentionTile(64, 64, 8, 2)
        elif width <= 64 and (extras > 2 or extras and target.name == "sm_100"):
            tile = AttentionTile(64, 32, 4, 2)
        elif width <= 64 and extras:
            tile = AttentionTile(128, 64, 8, 2)
        elif width <= 64:
            # With a window, four warps spill at 64 columns; the assembler, left to itself, for one program more.
            told = 255 if width <= 32 or queries > 32 else None
            tile = AttentionTile(128, 64, 8 if width > 32 else 4, 3, told)
        elif width <= 128:
            tile = AttentionTile(128, 32 if in_registers or extras and target.amd else 64, 8, 2)
        else:
            tile = AttentionTile(64, 16 if target.name == "sm_90" else 32, 8, 2)
    elif itemsize == 4 and extras > MANY_EXTRAS:
        tile = AttentionTile(32, 16, 8, 2, 255)
    elif itemsize == 4 and width <= 64 and not extras and vectors and target.name == "sm_90":
        tile = AttentionTile(32, 64, 4, 2)
    elif itemsize == 4:
        tile = AttentionTile(32, 32, 4 if width <= 64 else 8, 2, None if vectors else 255)
    else:
        tile = AttentionTile(32, 16, 8, 1, 255 if extras > MANY_EXTRAS else None)
    if itemsize == 2 and not vectors:
        tile = AttentionTile(64, 32, 8, 1, 255)
    return _fitted(tile, queries, width, target)


def _long_rows_tile(queries: int) -> AttentionTile:
    """On sm_90, of more than 128 columns where something is beside the products or hidden: 64 by 128 spills 1800."""
    if queries <= LEAST:
        return AttentionTile(LEAST, 64, 4, 1)
    return AttentionTile(128, 32, 8, 1) if queries > 32 else AttentionTile(32, 16, 4, 1)


def backward_tiles(
    queries: int, width: int, itemsize: int, extras: int, target: Target, vectors: bool = True
) -> tuple[AttentionTile, AttentionTile]:
    """(tile for the gradients of queries and bias, tile for those of keys and values). Arguments as of `forward_tile`.

    Four products of a tile live at a time. Found by compiling: larger ones spill registers somewhere.
    """
    wanted = asked(AttentionTile)
    if wanted is not None:
        return wanted, wanted
    if _needs_least(width, itemsize, extras, vectors):
        return (_least_tile(target),) * 2
    if width > widest(itemsize, extras):
        of_queries, of_keys = _wide_tiles(itemsize, target, vectors)
        return _fitted(of_queries, queries, width, target), _fitted(of_keys, queries, width, target)
    width = width_block(width)
    if itemsize == 2 and vectors and extras <= 2 and target.name == "sm_90":
        of_queries, of_keys = _MEASURED_BACKWARD[_class(width, extras)]
        return _fitted(of_queries, queries, width, target), _fitted(of_keys, queries, width, target)
    if itemsize == 2 and width <= 128 and extras:
        of_queries = of_keys = AttentionTile(64, 32, 4, 2)
        # Where tensor cores read shared memory, the side that is summed up should have 64 places.
        if target.name == "sm_90":
            of_keys = AttentionTile(32, 64, 4 if width <= 64 else 8, 2)
        elif target.name == "sm_100":
            of_keys = AttentionTile(32, 64, 4, 2)
            of_queries = of_queries if width <= 64 else of_keys
        if extras > 2:
            told = 255 if target.name == "sm_100" else None
            of_queries, of_keys = replace(of_queries, warps=8, registers=told), replace(of_keys, warps=8)
            if width > 64 and (target.name == "sm_90" or extras > MANY_EXTRAS):
                of_keys = AttentionTile(32, 32, 8, 2)
            elif width <= 32 and target.products_in_registers:
                of_keys = AttentionTile(32, 32, 8, 2, 255)  # 64 by 32 spilled up to 240 instructions on sm_80
        if extras > MANY_EXTRAS:
            of_queries = AttentionTile(32, 32, 8, 2) if target.products_in_registers else of_queries
            of_queries, of_keys = replace(of_queries, registers=255), replace(of_keys, registers=255)
    elif itemsize == 2 and extras:
        of_queries, of_keys = AttentionTile(32, 16, 8, 1, 255), AttentionTile(16, 32, 8, 1, 255)
        if extras > 2:
            of_queries = of_keys = _least_tile(target)
    elif itemsize == 2:
        of_queries = AttentionTile(64, 64, 4 if width <= 64 else 8, 2) if width <= 128 else AttentionTile(32, 32, 4, 1)
        of_keys = of_queries
        if width > 128:
            of_keys = AttentionTile(32, 32, 8, 1)  # with a window, four warps spill
        if target.amd and width <= 128:
            of_keys = AttentionTile(32, 64, 4, 2)
            of_queries = AttentionTile(64, 32, 4, 1) if width <= 64 else of_keys
    elif itemsize == 4:
        of_queries = AttentionTile(32, 32, 4, 2, 255) if width <= 32 else AttentionTile(32, 32, 8, 2)
        of_keys = replace(of_queries, registers=255) if extras > 0 and width > 64 else of_queries
        if width > 64 and target.name == "sm_90":  # as three products of tf32
            of_queries, of_keys = AttentionTile(16, 32, 4, 2), AttentionTile(16, 16, 4, 2)
        elif width <= 32 and target.name == "sm_90":
            of_keys = AttentionTile(32, 16, 4, 2, 255)
        if extras > MANY_EXTRAS:
            of_queries, of_keys = AttentionTile(32, 16, 4, 2, 255), AttentionTile(16, 16, 8, 2, 255)
        if not vectors:
            of_queries, of_keys = AttentionTile(16, 32, 4, 2), AttentionTile(16, 16, 4, 2)
    else:
        of_queries = of_keys = AttentionTile(16, 16, 8, 1, 255 if extras > MANY_EXTRAS else None)
    if itemsize == 2 and not vectors:
        of_queries = of_keys = AttentionTile(32, 32, 8, 1, 255)
    return _fitted(of_queries, queries, width, target), _fitted(of_keys, queries, width, target)


def selecting_tile(tile: AttentionTile, target: Target, *, told: bool = False) -> AttentionTile:
    """The tile of the second launch, on blocks whose sums are no numbers: a part of `tile`, with five products.

    Args:
        tile: that of the first launch.
        target: the GPU.
        told: the assembler is told its registers. Without it forward and query_gradient spill where float32 is
            multiplied as tf32 (13 and 21 instructions with a mask on sm_90); with it others do (8 of query_gradient in
            float32 on sm_100, 18 of key_gradients in bfloat16 at 128 columns).
    """
    if asked(AttentionTile) is not None:
        return tile
    least = _least_tile(target)
    return least if told else replace(least, registers=None)


def _least_tile(target: Target) -> AttentionTile:
    return AttentionTile(LEAST, LEAST, 4, 1) if target.amd else AttentionTile(LEAST, LEAST, 8, 1, 255)


def _fitted(tile: AttentionTile, queries: int, width: int, target: Target) -> AttentionTile:
    """No more queries than there are; a warp of AMD's has 64 threads, and its local memory holds one stage."""
    tile = replace(tile, queries=min(tile.queries, width_block(queries)))
    scores = tile.queries * tile.keys
    if queries <= LEAST and target.name == "sm_90":
        # Decode of 16384 keys: 257 us, with 8 warps 345, with three stages 352.
        tile = replace(tile, warps=min(tile.warps, 4), stages=min(tile.stages, 2))
    if tile.registers is None and (scores < 1024 or scores < 2048 and width <= 64):
        tile = replace(tile, warps=min(tile.warps, 4))
    if width <= LEAST and tile.registers is None:
        # Left to itself, the assembler spills a few of these small kernels for the sake of one program more.
        tile = replace(tile, registers=255)
    if target.amd:
        tile = replace(tile, warps=min(tile.warps, 4), stages=1, registers=None)
    return tile


def split_count(programs: int, keys: int, target: Target) -> int:
    """Into how many parts the keys are split: enough for two programs a multiprocessor, `SPLIT_KEYS` keys at least."""
    return max(1, min(-(-2 * target.multiprocessors // max(programs, 1)), keys // SPLIT_KEYS))

"""How attention is cut into tiles: pure functions of sizes."""

from __future__ import annotations

#: Keys of a tile: in float32 the scores of a panel take 12 KiB of the first-level cache, 96 values of 64 numbers 24.
BLOCK = 96
#: Keys of a tile of the backward pass. Up to so many keys its softmax is taken anew, which is more exact.
BACKWARD_BLOCK = 192
#: Panels of queries whose shares of the gradients of keys and values are one sum.
BACKWARD_PANELS = 2
#: Up to so many queries a head are decoded: a kernel in which lanes are not queries.
DECODE_QUERIES = 8
#: Keys of a segment of decoding, which a thread can take alone.
SEGMENT_KEYS = 1024


def block_of(keys: int, most: int, rows: int) -> int:
    """Keys of a tile for `keys` keys: blocks of the same size, whole register tiles of `rows`, at most `most` keys."""
    blocks = max(-(-keys // most), 1)
    share = -(-keys // blocks)
    return max(min(-(-share // rows) * rows, most // rows * rows), rows)


def padded(count: int, rows: int, few: int) -> int:
    """Rows that the register tiles over `count` rows may touch."""
    return -(-count // rows) * rows + few


def decode_block(rows: int) -> int:
    """Keys that the rows of a group go over in turn: for one row a long stream, for many what the caches keep."""
    return 512 if rows <= 2 else 128

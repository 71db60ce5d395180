"""Random numbers by counting: Philox4x32-10, the same ones on every backend, in any order, on any number of threads.

J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw, Parallel random numbers: as easy as 1, 2, 3 (2011). A block of
four 32-bit words is a function of a 64-bit seed (the key), a 64-bit stream and a 64-bit block number (the counter), and
of nothing else. Element i of an array in row-major order has word i % 4 of block i // 4; dropout with probability p
keeps it when its word is at least `drop_threshold(p)`. No state is kept, so backward makes the same mask again, and a
kernel makes the part of it that a tile needs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.random_vectors import BLOCKS, WORDS, store_factors
from kernels.runtime.numba_cpu import jit

Array = np.ndarray[Any, Any]

_MASK = 0xFFFFFFFF
_FACTORS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def drop_threshold(p: float) -> int:
    """Words below this are dropped: p in units of 2**-32, so 0 keeps everything and 2**32 drops everything."""
    return round(p * 2.0**32)


def philox(counter: Any, key: Any) -> tuple[Any, Any, Any, Any]:
    """One block of Philox4x32-10.

    Args:
        counter: four numbers in [0, 2**32), the least significant first.
        key: two such numbers.

    Returns:
        four words in [0, 2**32). Numbers are int64 arrays of NumPy or torch, or compiled code's int64: products of two
        of them wrap around, which leaves all 64 bits right.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        first, second = c0 * _FACTORS[0], c2 * _FACTORS[1]
        c0, c1 = ((second >> 32) & _MASK) ^ c1 ^ k0, second & _MASK
        c2, c3 = ((first >> 32) & _MASK) ^ c3 ^ k1, first & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def block_words(block: Any, seed: Any, stream: int) -> tuple[Any, Any, Any, Any]:
    """The four words of a block, or of each of an array of blocks.

    Args:
        block: int64 (an array of NumPy or torch, or compiled code's), at least 0.
        seed: int64, likewise; its 64 bits are the key.
        stream: tells several arrays under one seed apart (a layer's number, say), in [0, 2**63).
    """
    zero = block * 0  # Of the block's shape and kind.
    counter = (block & _MASK, (block >> 32) & _MASK, zero + (stream & _MASK), zero + ((stream >> 32) & _MASK))
    return philox(counter, (zero + (seed & _MASK), zero + ((seed >> 32) & _MASK)))


def keep_mask(shape: tuple[int, ...], p: float, seed: Any, stream: int = 0) -> Array:
    """Which elements of an array dropout with probability p keeps: the reference, in NumPy.

    Args:
        shape: of the array.
        p: the probability of being dropped, in [0, 1].
        seed: int64, an int or a 0-d array.
        stream: see `block_words`.

    Returns:
        bool, of the shape.
    """
    count = int(np.prod(shape, dtype=np.int64))
    blocks = np.arange(-(-count // 4), dtype=np.int64)
    with np.errstate(over="ignore"):
        words = block_words(blocks, np.asarray(seed, np.int64), stream)
    return (np.stack(words, axis=-1).reshape(-1)[:count] >= drop_threshold(p)).reshape(shape)


# Compiled code takes the counter apart by itself; the rounds are the ones above.
philox_compiled = jit(philox)


@jit
def keep_factors(start, count, threshold, seed, stream, kept, out):
    """out[i] = kept where element start + i is kept, else 0, for i in [0, count).

    start: int64 index of the first element, at least 0. threshold: of `drop_threshold`. seed, stream: int64, see
    `block_words`. kept: float, 1 / (1 - p) say. out: pointer to elements.
    """
    block = start >> 2
    at = (block << 2) - start
    while at < count:
        store_factors(out, at, count, block, threshold, seed, stream, kept)
        at += WORDS
        block += BLOCKS

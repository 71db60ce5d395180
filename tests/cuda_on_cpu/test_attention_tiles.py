"""Tiles of attention's CUDA C++ kernels, and how they lie in shared memory."""

from __future__ import annotations

import pytest

from kernels.attention.cuda_tiles import (
    CudaTile,
    forward_tile,
    key_tile,
    out_pitch,
    packs,
    parts_of,
    pitch,
    query_tile,
    score_pitch,
    shared_layout,
    use_cuda_tile,
    width_block,
)
from kernels.runtime.targets import TARGETS

FUNCTIONS = {
    "attention_forward": forward_tile,
    "query_gradient": query_tile,
    "key_gradients": key_tile,
    "bias_gradient": query_tile,
    "shaw": query_tile,
}
#: Bytes of shared memory of a block on the oldest GPU that these kernels are for.
LEAST_SHARED = TARGETS["sm_80"].block_shared


def test_tiles_by_hand():
    assert forward_tile(4096, 64, 2) == CudaTile(64, 64, 8, 2)
    assert forward_tile(16, 64, 2) == CudaTile(16, 64, 8, 2)
    assert forward_tile(17, 65, 4) == CudaTile(64, 32, 8, 2)
    assert query_tile(4096, 256, 8) == CudaTile(16, 16, 8, 1)
    assert key_tile(4096, 128, 2) == CudaTile(32, 64, 8, 1)
    with use_cuda_tile(CudaTile(16, 32, 2)):
        assert forward_tile(4096, 64, 2) == key_tile(1, 200, 4) == CudaTile(16, 32, 2)
    assert [width_block(w, 2) for w in (1, 16, 17, 200)] == [16, 16, 32, 256]
    assert [width_block(1, itemsize) for itemsize in (4, 8)] == [32, 16]


@pytest.mark.parametrize("kernel", FUNCTIONS)
@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_every_tile_fits_shared_memory(kernel: str, itemsize: int):
    for width_e in (1, 64, 65, 128, 129, 256):
        for width_v in (16, 128, 256, 300):
            for queries in (1, 1000):
                tile = FUNCTIONS[kernel](queries, max(width_e, width_v), itemsize)
                blocks = (width_block(width_e, itemsize), width_block(width_v, itemsize))
                layout = shared_layout(kernel, tile, *blocks, itemsize, max(itemsize, 4))
                assert layout.size <= LEAST_SHARED
                assert tile.warps * 32 * tile.blocks <= 1024
                # 8 threads with 16 bytes of computed numbers each have a row, or several steps of it.
                assert tile.keys % (8 * 16 // max(itemsize, 4)) == 0 and tile.queries >= 16


def test_parts_of_shared_memory_do_not_overlap():
    """Float32, 64 x 32, widths 64 and 32: rows of 68 and 36 numbers, scores of 40."""
    layout = shared_layout("query_gradient", CudaTile(64, 32, 8), 64, 32, 4, 4)
    found = dict(layout.constants)
    assert (found["PITCH_E"], found["PITCH_V"], found["PITCH_SCORES"], found["PITCH_WEIGHTS"]) == (68, 36, 40, 40)
    sizes = {
        "AT_QUERY": 64 * 68 * 4, "AT_KEY": 32 * 68 * 4, "AT_VALUE": 32 * 36 * 4, "AT_SCORES": 64 * 40 * 4,
        "AT_GRAD": 64 * 36 * 4, "AT_CHANGES": 64 * 40 * 4, "AT_FACTORS": 64 * 4, "AT_ODD": 8, "AT_FLAGS": 64 * 4,
        "AT_ODD_ROW": 64 * 4,
    }  # fmt: skip
    places = sorted((found[name], size) for name, size in sizes.items())
    assert len(places) == sum(name.startswith("AT_") for name in found)
    for (begin, size), (after, _) in zip(places, [*places[1:], (layout.size, 0)]):
        assert begin % 128 == 0 and begin + size <= after


def test_what_is_written_leaves_the_factors_alone():
    """Rows of 64 numbers of 8 bytes are more than the tiles of 16 x 32 that they take the place of."""
    layout = shared_layout("attention_forward", CudaTile(64, 32, 4), 16, 256, 2, 4)
    found = dict(layout.constants)
    assert found["AT_FACTORS"] >= 64 * found["PITCH_OUT"] * 4


def test_rows_of_tiles_lie_in_different_banks():
    """8 rows of 16 bytes at a time: an odd number of 16 bytes apart; 4 rows of 8 numbers: 8 banks apart."""
    for itemsize in (2, 4, 8):
        for width in (16, 32, 64, 128, 256):
            apart = pitch(width, itemsize) * itemsize
            assert apart % 16 == 0 and apart // 16 % 2 == 1 and 0 <= apart - width * itemsize <= 16
    assert all(score_pitch(keys, 4) % 32 == 8 for keys in (32, 64))


def turned(row: int) -> int:
    """As in tile_products.cuh."""
    return (row & 1) << 2 | row & 2 | row >> 2 & 1


@pytest.mark.parametrize("keys", [32, 64])
def test_rows_of_scores_for_tensor_cores_lie_in_different_banks(keys: int):
    """A lane has row lane / 4 and columns 2 (lane % 4) of 8 x 8 sums, 16 lanes at a time; 8 lanes a row of weights."""
    assert score_pitch(keys, 2) == keys

    def score(row: int, column: int) -> int:
        return 4 * (row * keys + (column // 4 ^ turned(row)) * 4 + column % 4)

    def weight(row: int, column: int) -> int:
        return 2 * (row * 2 * keys + (column // 8 ^ turned(row)) * 8 + column % 8)

    def banks(addresses: list[int], size: int) -> int:
        found = {(a + more) // 4 % 32 for a in addresses for more in range(0, size, 4)}
        return len(found)

    for column in range(0, keys, 8):
        for first in (0, 16):
            lanes = range(first, first + 16)
            assert banks([score(lane // 4, column + 2 * (lane % 4)) for lane in lanes], 8) == 32
        assert banks([weight(row, column) for row in range(8)], 16) == 32
    for row in range(8):
        assert banks([score(row, 4 * lane) for lane in range(8)], 16) == 32
        # What is stored stays in the row's own memory.
        assert {weight(row, c) // (4 * keys) for c in range(0, keys, 8)} == {row}
        assert len({weight(row, c) for c in range(keys)}) == keys
    for row in range(0, 8, 2):
        assert banks([weight(row + lane // 8, 4 * (lane % 8)) for lane in range(16)], 8) == 32


def test_rows_that_are_written_lie_in_different_banks():
    """Float32 sums of tensor cores: 4 rows of 8 numbers at a time."""
    assert all(out_pitch(width, 2, 4) % 16 == 8 for width in (16, 32, 64, 128, 256))
    assert out_pitch(64, 2, 2) == pitch(64, 2) and out_pitch(64, 4, 4) == pitch(64, 4)


def test_parts_of_wide_rows():
    assert [parts_of(w) for w in (0, 1, 256, 257, 512, 513)] == [1, 1, 1, 2, 2, 3]
    assert [width_block(w, 2) for w in (257, 1000)] == [256, 256]
    assert forward_tile(4096, 1000, 2) == forward_tile(4096, 256, 2)
    assert query_tile(4096, 257, 2) == CudaTile(32, 32, 8, 1) and query_tile(4096, 256, 2).blocks == 2


def test_when_heads_are_packed():
    assert packs(1, 8) and packs(16, 4) and not packs(17, 4) and not packs(1, 1)

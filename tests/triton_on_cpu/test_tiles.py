"""Targets and the tiles of row kernels: pure functions."""

from __future__ import annotations

import pytest

from kernels.runtime.row_tiles import LONGEST, RowTile, power_of_two, row_tile
from kernels.runtime.targets import TARGETS, nearest
from kernels.runtime.tuning import use_tile
from tests.triton_on_cpu.helpers import row_tiles

H100 = TARGETS["sm_90"]


CAPABILITIES = [((8, 0), "sm_80"), ((8, 7), "sm_86"), ((9, 0), "sm_90"), ((10, 3), "sm_100")]


@pytest.mark.parametrize("capability, name", CAPABILITIES)
def test_the_newest_target_that_is_not_newer(capability: tuple[int, int], name: str):
    assert nearest(capability).name == name


def test_older_gpus_are_refused():
    with pytest.raises(ValueError, match=r"^compute capability must be at least 8.0, got 7.5$"):
        nearest((7, 5))


@pytest.mark.parametrize(
    "name, registers, shared, threads, expected",
    [
        # By hand from NVIDIA's rules: 64 registers x 256 threads = 16384 of 65536.
        ("sm_90", 64, 0, 256, (4, 0.5, "registers")),
        ("sm_90", 32, 0, 256, (8, 1.0, "registers")),
        ("sm_90", 16, 0, 32, (32, 0.5, "blocks")),
        ("sm_90", 16, 0, 1024, (2, 1.0, "threads")),
        ("sm_90", 32, 100_000, 128, (2, 0.125, "shared memory")),
        ("sm_80", 255, 160_000, 128, (1, 0.0625, "shared memory")),
        ("sm_90", 32, 232_449, 128, (0, 0.0, "does not launch")),
        ("sm_90", 32, 0, 1056, (0, 0.0, "does not launch")),
        ("sm_80", 168, 0, 128, (3, 0.1875, "registers")),
    ],
)
def test_occupancy(name: str, registers: int, shared: int, threads: int, expected: tuple[int, float, str]):
    assert TARGETS[name].occupancy(registers, shared, threads) == expected


@pytest.mark.parametrize(
    "rows, n, inner, expected",
    [
        (8192, 8192, 1, RowTile(1, 8192, True, 16)),
        (8192, 1000, 1, RowTile(1, 1024, True, 2)),
        (100_000, 10, 1, RowTile(64, 16, True, 2)),
        (64, 10, 1, RowTile(1, 16, True, 1)),  # a program a row, so that more of the GPU has work
        (64, 50_000, 1, RowTile(1, 4096, False, 8)),
        (100_000, 21, 4096, RowTile(64, 32, True, 4)),
        (100_000, 1000, 4096, RowTile(64, 64, False, 8)),
        (12, 5, 2, RowTile(2, 8, True, 1)),
    ],
)
def test_row_tiles(rows: int, n: int, inner: int, expected: RowTile):
    assert row_tile(rows, n, inner, H100) == expected


@pytest.mark.parametrize(
    "rows, n, inner, expected",
    [
        (8192, 8192, 1, RowTile(1, 8192, True, 16)),
        (8192, 16384, 1, RowTile(1, 4096, False, 16)),
        (100_000, 10, 1, RowTile(32, 16, True, 2)),
        (100_000, 21, 4096, RowTile(64, 32, True, 8)),
        (100_000, 100, 4096, RowTile(64, 32, False, 8)),
    ],
)
def test_row_tiles_of_float64_are_half_as_large(rows: int, n: int, inner: int, expected: RowTile):
    assert row_tile(rows, n, inner, H100, float64=True) == expected


def test_every_row_tile_is_sound():
    tiles = row_tiles()
    assert len(tiles) > 30
    for tile in tiles:
        assert all(size == power_of_two(size) for size in (tile.rows, tile.block, tile.warps))
        assert tile.rows * tile.block <= LONGEST and 1 <= tile.warps <= 16
        # At most 32 elements of a thread, of which AMD has 64 a warp.
        assert tile.rows * tile.block <= 32 * 64 * tile.warps


def test_an_amd_wavefront_is_two_warps():
    assert row_tile(8192, 8192, 1, TARGETS["gfx942"]).warps == row_tile(8192, 8192, 1, H100).warps // 2


def test_tiles_can_be_asked_for():
    wanted = RowTile(1, 64, False, 4)
    with use_tile(wanted):
        assert row_tile(8, 1000, 1, H100) is wanted
    assert row_tile(8, 1000, 1, H100) != wanted

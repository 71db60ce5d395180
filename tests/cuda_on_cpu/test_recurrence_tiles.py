"""What a block of the recurrences' CUDA kernels works on: which path, how many rows, how its threads stand."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest

from kernels.arrays import ArraySpec
from kernels.recurrence.problem import GruProblem, Layer, LstmProblem, RnnProblem
from kernels.recurrence.tiles_cuda import (
    MOST_AHEAD,
    MOST_SUMS,
    PATHS,
    STREAMED_BYTES,
    Cell,
    StepTile,
    product_tile,
    step_tile,
    stride_for,
    use_step_tile,
)
from kernels.runtime.targets import TARGETS

KINDS = ("rnn_tanh", "lstm", "gru_after", "gru_before", "projection")
NVIDIA = [t for t in TARGETS.values() if not t.amd]


def problem(kind: str, batch: int, units: int, dtype: str = "float32", directions: int = 1) -> Layer:
    """A problem of three steps and eight inputs."""

    def spec(*shape: int) -> ArraySpec:
        return ArraySpec(shape, dtype)

    gates = {"lstm": 4, "projection": 4, "rnn_tanh": 1}.get(kind, 3)
    hidden = units // 2 if kind == "projection" else units
    weights: tuple[Any, ...] = (spec(gates * units, 8), spec(gates * units, hidden), None, None)
    if gates == 4:
        weights += (spec(hidden, units) if kind == "projection" else None,)
    reverse = weights if directions == 2 else (None,) * len(weights)
    given = (spec(3, batch, 8), *weights, *reverse, None)
    if gates == 4:
        return LstmProblem.check(*given, None, None, False, False)
    if gates == 3:
        return GruProblem.check(*given, None, False, False, kind == "gru_after")
    return RnnProblem.check(*given, None, False, False, "tanh")


def seen(tile: StepTile) -> tuple[Any, ...]:
    return (tile.path, tile.rows, tile.threads, tile.unit_tile, tile.first.lanes, tile.first.each)


@pytest.mark.parametrize(
    "kind, batch, units, dtype, target, forward, backward",
    [
        # One row: the weights stay in shared memory, the terms of a sum are shared out.
        ("lstm", 1, 64, "float32", "sm_90", ("held", 1, 256, 64, 64, 4), ("held", 1, 256, 64, 32, 2)),
        ("gru_after", 64, 64, "float32", "sm_90", ("held", 1, 256, 64, 64, 3), ("held", 1, 256, 64, 32, 2)),
        # More rows than multiprocessors.
        ("lstm", 1024, 64, "float32", "sm_90", ("held", 8, 256, 64, 64, 4), ("held", 8, 256, 64, 32, 2)),
        # 256 KiB of weights do not fit, 128 KiB of them do.
        ("lstm", 32, 128, "float32", "sm_90", ("streamed", 1, 512, 128, 128, 4), ("streamed", 1, 512, 128, 32, 4)),
        ("lstm", 32, 128, "float16", "sm_90", ("held", 1, 512, 128, 256, 2), ("held", 1, 512, 128, 64, 2)),
        # A mebibyte is for all of the GPU.
        ("lstm", 32, 256, "float32", "sm_90", ("stepwise", 8, 256, 8, 32, 1), ("stepwise", 8, 256, 8, 8, 1)),
        ("lstm", 32, 1024, "float32", "sm_90", ("stepwise", 8, 512, 32, 32, 4), ("stepwise", 8, 512, 32, 32, 1)),
    ],
)  # fmt: skip
def test_tiles(kind: str, batch: int, units: int, dtype: str, target: str, forward: Any, backward: Any):
    p = problem(kind, batch, units, dtype)
    found = [seen(step_tile(p, TARGETS[target], backward=b)) for b in (False, True)]
    assert found == [forward, backward]


@functools.cache
def _all_tiles() -> list[tuple[Layer, Any, bool, StepTile]]:
    sizes = itertools.product(KINDS, (1, 5, 1000), (2, 17, 64, 150, 700), ("float16", "float32", "float64"))
    return [
        (p, target, backward, step_tile(p, target, backward=backward))
        for kind, batch, units, dtype in sizes for p in (problem(kind, batch, units, dtype),)
        for target in NVIDIA for backward in (False, True)
    ]  # fmt: skip


def test_every_tile_is_sound():
    tiles = _all_tiles()
    assert {t.path for *_, t in tiles} == set(PATHS)
    for p, target, backward, tile in tiles:
        cell = tile.cell
        assert tile.shared_bytes <= target.block_shared
        assert tile.rows & (tile.rows - 1) == 0 and tile.threads % 32 == 0 and tile.threads <= 512
        if tile.path == "stepwise":
            assert tile.unit_tile * cell.itemsize >= 32 and tile.unit_tile == tile.hidden_tile
        else:
            assert (tile.unit_tile, tile.hidden_tile) == (cell.wide(p.units), cell.wide(p.hidden))
            items = -(-tile.rows * tile.unit_tile // tile.threads)
            assert items * cell.gates * cell.computed_size // 4 <= MOST_AHEAD
        for product in (tile.first, tile.second):
            if cell.cores:
                assert product.lanes % 16 == 0 and product.lanes // 16 * product.split * 32 == tile.threads
                assert product.row_stride % 32 == 4 and tile.rows <= 8
            else:
                assert product.lanes * product.split == tile.threads
                assert product.each == 1 or product.each * tile.rows * cell.computed_size // 4 <= MOST_SUMS
        # What lies in shared memory has room there.
        named = dict(tile.constants)
        terms = cell.first_gates * cell.wide(p.units) if backward else cell.wide(p.hidden)
        columns = tile.hidden_tile if backward else cell.first_gates * tile.unit_tile
        assert named["STATE_STRIDE"] >= terms and tile.first.row_stride >= tile.first.split * columns
        assert (named["AT_SUMS"] + tile.rows * tile.first.row_stride) * cell.computed_size <= tile.shared_bytes
        if tile.path == "held":
            assert named["AT_STATE"] * cell.computed_size >= terms * columns * cell.itemsize
            assert all(
                named[name] % (16 // cell.computed_size) == 0 for name in ("AT_WEIGHTS", "AT_SECOND", "AT_STATE")
            )


def test_the_path_is_a_matter_of_the_weights_bytes():
    for p, target, backward, tile in _all_tiles():
        held_elsewhere = [
            step_tile(p, t, backward=backward).path for t in NVIDIA if t.block_shared > target.block_shared
        ]
        if tile.path == "held":
            assert "stepwise" not in held_elsewhere
        elements = p.gates * p.units * p.hidden + (p.units * p.hidden if p.projects else 0)
        if elements * p.x.itemsize > STREAMED_BYTES:
            assert tile.path == "stepwise"


@pytest.mark.parametrize("tile", [8, 16, 24, 32, 56, 64])
@pytest.mark.parametrize("width", [8, 24, 128, 136, 512])
def test_rows_go_on_in_the_banks_where_the_last_one_ended(width: int, tile: int):
    stride = stride_for(width, tile)
    assert width <= stride < width + 32 and stride % 32 == tile % 32


@pytest.mark.parametrize("columns", [8, 24, 32, 48, 96, 224, 256, 1024])
@pytest.mark.parametrize("threads", [128, 256, 512])
def test_sums_of_a_warp_lie_in_different_banks(columns: int, threads: int):
    for rows in (1, 2, 8):
        found = product_tile(columns, 256, rows, threads, columns, Cell("rnn_tanh", columns, columns, False, 4, False))
        lanes = [(i % found.lanes, i // found.lanes) for i in range(32)]
        assert len({(split * columns + lane) % 32 for lane, split in lanes}) == 32


@pytest.mark.parametrize("columns", [16, 48, 256])
def test_tensor_cores_load_and_store_in_different_banks(columns: int):
    """mma.m16n8k16: a lane has pairs of terms of row lane / 4, and sums of rows 2 (lane % 4) in column lane / 4."""
    cell = Cell("lstm", columns, columns, False, 2, True)
    found = product_tile(4 * columns, columns, 8, 256, columns, cell)
    assert len({(2 * (lane % 4) * found.row_stride + lane // 4) % 32 for lane in range(32)}) == 32
    tile = step_tile(problem("lstm", 1, columns, "float16"), TARGETS["sm_90"], backward=False)
    stride = dict(tile.constants)["STATE_STRIDE"]
    assert len({(lane // 4 * stride // 2 + lane % 4) % 32 for lane in range(32)}) == 32


def test_a_path_that_does_not_fit_is_refused():
    with use_step_tile("held"), pytest.raises(ValueError, match="^use_step_tile: path 'held' must fit 101376 bytes"):
        step_tile(problem("lstm", 1, 128), TARGETS["sm_86"], backward=False)


def test_what_is_too_large_for_tensor_cores_is_multiplied_without():
    """Eight rows of the gradients of 4 x 2048 sums are 128 KiB, one row in float32 is 32 KiB."""
    p = problem("lstm", 8, 2048, "bfloat16")
    assert [step_tile(p, TARGETS[t], backward=True).cell.cores for t in ("sm_80", "sm_86")] == [True, False]
    assert step_tile(p, TARGETS["sm_86"], backward=False).cell.cores


def test_states_that_fit_no_block_are_refused():
    message = "^a step's 30000 units and 30000 states do not fit 101376 bytes$"
    with pytest.raises(ValueError, match=message):
        step_tile(problem("lstm", 1, 30000), TARGETS["sm_86"], backward=True)

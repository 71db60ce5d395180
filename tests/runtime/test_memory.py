"""`empty`, `zeros`, `contiguous`: alignment, the hook, and no second compilation for read-only inputs."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from kernels.runtime import numba_cpu
from kernels.runtime.numba_cpu import contiguous, empty, jit, scratch, zeros

SHAPES = [(), 0, 1, 7, (0, 3), (3, 5), (64, 64), (3, 1, 129, 65), numba_cpu.SMALLEST_ALIGNED, (999, 21)]


@pytest.mark.parametrize("make", [empty, zeros])
@pytest.mark.parametrize("dtype", [np.float32, "float64", np.int8, np.dtype(np.int64), np.bool_])
@pytest.mark.parametrize("shape", SHAPES)
def test_arrays_are_aligned(make, shape, dtype):
    kept = [make(shape, dtype) for _ in range(5)]
    for array in kept:
        assert array.shape == (shape if isinstance(shape, tuple) else (shape,))
        assert array.dtype == dtype
        assert array.ctypes.data % 64 == 0 or array.nbytes < numba_cpu.SMALLEST_ALIGNED
        assert array.flags.carray
        if make is zeros:
            assert not array.any()
        array[...] = 1
    assert all((array == 1).all() for array in kept)


def test_float32_is_the_default():
    assert empty(3).dtype == zeros(3).dtype == np.float32


def test_the_hook_sees_every_allocation(monkeypatch):
    seen = []

    def poison(shape, dtype):
        seen.append((shape, dtype))
        array = numba_cpu.fresh(shape, dtype)
        array.fill(np.nan)
        return array

    monkeypatch.setattr(numba_cpu, "_allocator", poison)
    assert np.isnan(empty((2, 3))).all()
    assert not zeros((2, 3), np.float64).any()
    assert contiguous(np.ones((2, 3), np.float32).T).tolist() == [[1, 1]] * 3
    assert seen == [((2, 3), np.float32), ((2, 3), np.float64), ((3, 2), np.float32)]


LARGE = (1 << 18) + 1005


def address(array: np.ndarray) -> int:
    return array.ctypes.data


def test_large_results_lie_where_dead_ones_lay():
    numba_cpu.release_memory()
    first, second = empty(LARGE), empty(LARGE)
    before = address(first)
    assert address(second) != before
    view = first[3:].reshape(2, -1)
    del first
    assert address(empty(LARGE)) != before, "a view of it is still alive"
    del view
    # A little smaller: the same class of sizes.
    assert address(empty(LARGE - 100)) == before
    assert not zeros(LARGE).any()
    numba_cpu.release_memory()


def test_scratch_lies_in_the_smallest_free_block_that_is_large_enough():
    numba_cpu.release_memory()
    sizes = (300_000, 10_000, 90_000)
    alive = [scratch(size) for size in sizes]
    blocks = {size: address(array) for size, array in zip(sizes, alive)}
    assert len(set(blocks.values())) == 3 and all(place % 64 == 0 for place in blocks.values())
    assert [block.size for block in numba_cpu._pool.scratch] == sorted(b.size for b in numba_cpu._pool.scratch)
    del alive
    assert address(scratch(9_000)) == blocks[10_000]
    first, second = scratch(20_000), scratch(20_000)
    assert [address(first), address(second)] == [blocks[90_000], blocks[300_000]]
    assert address(scratch(20_000)) not in blocks.values()
    numba_cpu.release_memory()
    assert numba_cpu._pool.scratch == []


def test_a_tensor_keeps_its_memory():
    numba_cpu.release_memory()
    tensor = torch.from_numpy(empty(LARGE)).fill_(3.0)
    gc.collect()
    others = [empty(LARGE) for _ in range(3)]
    for other in others:
        other.fill(0)
    assert bool((tensor == 3.0).all())
    numba_cpu.release_memory()
    assert bool((tensor == 3.0).all())


def test_what_is_kept_has_a_limit(monkeypatch):
    """Free blocks leave, those used longest ago first; blocks in use stay, and are no longer counted on."""
    numba_cpu.release_memory()
    pool = numba_cpu._pool
    monkeypatch.setattr(numba_cpu, "_RESULTS_BYTES", 10_000_000)
    for count in range(200_000, 2_000_000, 90_000):
        empty(count)
        held = sum(block.size for blocks in pool.results.values() for block in blocks)
        assert held == pool.held <= 10_000_000
    alive = [empty(700_000) for _ in range(6)]  # 16.8 MB, more than may be kept
    assert len({address(a) for a in alive}) == 6
    assert pool.held <= 10_000_000
    numba_cpu.release_memory()
    assert pool.held == 0 and not pool.results


def test_ordinary_array_is_itself():
    for array in (np.ones((2, 3), np.float32), np.ones(()), np.ones((0, 2)), np.ones((4, 4))[1:3]):
        assert contiguous(array) is array


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4).T,
        np.arange(12.0)[::-1],
        np.arange(12.0)[::3],
        np.broadcast_to(np.float32(3), (2, 3)),
        np.arange(12.0).astype(">f8"),
        np.arange(12, dtype=">i4").reshape(3, 4)[:, 1:],
        np.frombuffer(b"\0" + np.arange(12.0).tobytes(), np.float64, offset=1),
    ],
    ids=["transposed", "reversed", "strided", "expanded", "big-endian", "big-endian columns", "unaligned"],
)
def test_other_arrays_are_copied(array):
    result = contiguous(array)
    assert result.flags.carray and result.dtype.isnative
    assert not np.shares_memory(result, array)
    assert result.dtype == array.dtype.newbyteorder("=")
    assert result.tolist() == array.tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_, "V2", [("a", "f4"), ("b", "i2")]])
def test_read_only_array_is_lent(dtype):
    array = np.zeros((3, 4), dtype)
    array.flags.writeable = False
    result = contiguous(array)
    assert result.flags.carray
    assert result.dtype == array.dtype
    assert result.shape == array.shape
    assert result.ctypes.data == array.ctypes.data
    assert not array.flags.writeable


def test_lent_memory_stays_alive():
    class Owner(np.ndarray):
        """Plain arrays take no weak reference that tells the end of their memory's owner."""

    owner = np.arange(1000.0).view(Owner)
    watch = weakref.ref(owner)
    array = np.asarray(owner)
    array.flags.writeable = False
    result = contiguous(array)
    del owner, array
    gc.collect()
    assert watch() is not None or result.base is not None
    assert result.sum() == 499500.0
    del result
    gc.collect()
    assert watch() is None


def test_subclass_comes_as_a_plain_array(tmp_path):
    array = np.memmap(tmp_path / "data", np.float32, "w+", shape=(3, 4))
    result = contiguous(array)
    assert type(result) is np.ndarray
    assert np.shares_memory(result, array)


def test_read_only_input_compiles_nothing_new():
    total: Any = jit(lambda x: x.sum())
    array = np.arange(6, dtype=np.float32)
    assert total(contiguous(array)) == 15.0
    array.flags.writeable = False
    assert total(contiguous(array)) == 15.0
    assert total(contiguous(np.broadcast_to(np.float32(1), 6))) == 6.0
    assert len(total.signatures) == 1

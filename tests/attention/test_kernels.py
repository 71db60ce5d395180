"""The CPU kernels themselves: tilings, threads, memory and its ends, plans, and what is skipped."""

from __future__ import annotations

import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kernels
from kernels.attention.tiles import BACKWARD_BLOCK, BLOCK, DECODE_QUERIES, block_of, padded
from kernels.runtime import numba_cpu
from kernels.simd import TILE_ROWS
from tests.attention.helpers import gradients, inputs, relative_term, threads, tiles
from tests.support import memory

KINDS = ("none", "shaw", "t5", "alibi")


def everything(kind: str, dtype: str = "float32", queries: int = 75, **change: Any) -> list[np.ndarray]:
    """Results and all gradients of a call in which nearly every option is on."""
    q, k, v = inputs(3, 4, queries, 130, 12, 9, kv_heads=2, dtype=dtype)
    rng = np.random.default_rng(0)
    arguments: dict[str, Any] = {
        "query": q, "key": k, "value": v, "causal": "bottom_right", "softcap": 3.0,
        "mask": rng.random((3, 1, queries, 130)) < 0.8, "bias": rng.standard_normal((4, queries, 130)).astype(dtype),
        "lengths": np.array([130, 101, 0]), "return_lse": True,
    }  # fmt: skip
    if queries > DECODE_QUERIES:
        arguments |= {"dropout_p": 0.2, "seed": 5}
    if kind != "none":
        arguments["relative"] = relative_term(kind, 4, 12, dtype)
    results, found = gradients("numba", arguments | change)
    return [*results, *(g for g in found if g is not None)]


def assert_same_bits(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    """Equal to the last bit."""
    for a, b in zip(first, second, strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("queries", [2, 75])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_at_any_number_of_threads(kind: str, dtype: str, queries: int):
    with threads(1):
        alone = everything(kind, dtype, queries)
    for count in (2, 3, 7):
        with threads(count):
            assert_same_bits(alone, everything(kind, dtype, queries))


@pytest.mark.parametrize("kind", KINDS)
def test_any_tiling_gives_the_same_numbers(kind: str):
    expected = everything(kind)
    for block, backward_block in ((12, 12), (24, 60), (36, 24), (192, 192)):
        with tiles(block, backward_block):
            for a, b in zip(everything(kind), expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("queries", [2, 75])
@pytest.mark.parametrize("kind", KINDS)
def test_fresh_memory_is_not_read(kind: str, queries: int):
    expected = everything(kind, queries=queries)
    for byte in (0xFF, 0x7E):
        with memory.allocator(memory.poisoned(byte)):
            assert_same_bits(expected, everything(kind, queries=queries))


GUARDED = """
import numpy as np
import kernels
from tests.attention.helpers import gradients, inputs, relative_term
from tests.support import memory

def guarded(term, where):
    name = "slopes" if hasattr(term, "slopes") else "table"
    return type(term)(**(vars(term) | {name: memory.guarded_copy(getattr(term, name), where)}))

for dtype in ("float32", "float64"):
    for kind in ("shaw", "t5", "alibi"):
        for queries, keys in ((1, 37), (3, 300), (2, 1030), (33, 41), (70, 97)):
            for options in ({}, {"causal": "top_left"}, {"window": (11, 2), "dropout_p": 0.3, "seed": 1}):
                q, k, v = inputs(2, 4, queries, keys, 7, 5, kv_heads=2, dtype=dtype)
                term = relative_term(kind, 4, 7, dtype)
                rng = np.random.default_rng(0)
                given = {"query": q, "key": k, "value": v, "mask": rng.random((queries, keys)) < 0.8}
                given["bias"] = rng.standard_normal((4, 1, keys)).astype(dtype)
                expected = gradients("numba", given | options | {"relative": term})
                for where in ("end", "start"):
                    with memory.allocator(memory.guarded_allocator(where)):
                        close = {n: memory.guarded_copy(a, where) for n, a in given.items()}
                        found = gradients("numba", close | options | {"relative": guarded(term, where)})
                    for a, b in zip([*expected[0], *expected[1]], [*found[0], *found[1]]):
                        assert a is None or np.array_equal(a, b), (dtype, kind, queries, keys, options, where)
print("all ran")
"""


def test_no_step_outside_the_arrays():
    """With relative terms, whose tables the generic test does not know: arrays that end, or begin, at a trap."""
    root = Path(__file__).resolve().parents[2]
    finished = subprocess.run([sys.executable, "-c", GUARDED], cwd=root, capture_output=True, text=True, timeout=900)
    assert finished.stdout.strip() == "all ran", finished.stderr[-2000:]


# ----- memory ------------------------------------------------------------------------------------------------------


class Account:
    """An allocator that counts the bytes alive and their peak."""

    def __init__(self) -> None:
        self.alive = self.peak = 0

    def __call__(self, shape: Any, dtype: np.dtype[Any]) -> np.ndarray:
        array = numba_cpu.fresh(shape, dtype)
        self.alive += array.nbytes
        self.peak = max(self.peak, self.alive)
        # The block behind the array lives as long as any view of it.
        weakref.finalize(array.base, self._free, array.nbytes)
        return array

    def _free(self, nbytes: int) -> None:
        self.alive -= nbytes


def peak_of_training(length: int, heads: int = 8, width: int = 64, **options: Any) -> int:
    """Bytes that a forward and a backward pass have at most at once: results, gradients and scratch."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, heads, length, width), np.float32) for _ in range(3))
    account = Account()
    with memory.allocator(account):
        y, pullback = kernels.vjp("attention", q, k, v, backend="numba", **options)
        pullback(y)
    return account.peak


@pytest.mark.parametrize("kind", KINDS)
def test_memory_grows_with_the_length_not_its_square(kind: str):
    term = None if kind == "none" else relative_term(kind, 8, 64)
    options: dict[str, Any] = {"dropout_p": 0.1, "seed": 1, "causal": "top_left", "relative": term}
    short, long = (peak_of_training(n, **options) for n in (256, 1024))
    # Output, three gradients and a little more; a matrix of scores alone would be 32 MiB.
    assert long < 16 << 20
    assert long < 4.5 * short


@pytest.mark.slow
def test_training_on_8192_positions_takes_less_than_128_megabytes():
    peak = peak_of_training(8192)
    print(f"peak {peak / 2**20:.1f} MiB")
    assert peak < 128e6


def test_a_padding_mask_and_a_bias_by_key_are_not_spread_out():
    rng = np.random.default_rng(0)
    mask = np.broadcast_to(rng.random((1, 1, 1, 1024)) < 0.9, (1, 8, 1024, 1024))
    bias = rng.standard_normal((8, 1, 1024)).astype(np.float32)
    assert peak_of_training(1024, mask=mask, bias=bias) < 16 << 20


# ----- plans -------------------------------------------------------------------------------------------------------


def test_blocks():
    for most in (BLOCK, BACKWARD_BLOCK, 12):
        for keys in (1, 5, 11, 12, 13, 95, 96, 97, 200, 1000):
            block = block_of(keys, most, TILE_ROWS)
            assert block % TILE_ROWS == 0 and TILE_ROWS <= block <= max(most, TILE_ROWS)
            # No more blocks than the largest ones would make.
            assert -(-keys // block) == -(-keys // (most // TILE_ROWS * TILE_ROWS))
    assert padded(13, 12, 4) == 28


def test_explain_says_which_kernel():
    q, k, v = inputs(1, 2, DECODE_QUERIES, 50)
    assert "decoding" in str(kernels.explain("attention", q, k, v))
    q, k, v = inputs(1, 2, DECODE_QUERIES + 1, 50)
    assert "panels of" in str(kernels.explain("attention", q, k, v))
    assert "panels of" in str(kernels.explain("scaled_dot_product_attention", q, k, v))


def test_what_is_hidden_from_all_is_not_computed():
    """Keys whose blocks causality, window, lengths and mask empty are not read: NaN in them costs no second pass.

    Seen by what they would do to the scores of padding lanes, were they read: nothing is NaN but what must be.
    """
    q, k, v = inputs(1, 1, 64, 960)
    seen = np.zeros((64, 960), bool)
    seen[:, 480:500] = True
    for options, keys in (
        ({"mask": seen}, slice(480, 500)),
        ({"window": 10}, slice(0, 74)),
        ({"lengths": np.array([100])}, slice(0, 100)),
    ):
        odd_k, odd_v = np.full_like(k, np.nan), np.full_like(v, np.nan)
        odd_k[:, :, keys], odd_v[:, :, keys] = k[:, :, keys], v[:, :, keys]
        for a, b in zip(
            gradients("numba", {"query": q, "key": odd_k, "value": odd_v, **options})[0],
            gradients("numba", {"query": q, "key": k, "value": v, **options})[0],
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

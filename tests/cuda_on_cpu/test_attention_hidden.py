"""attention in CUDA C++, executed on the CPU: what is hidden, what is no number, and scores as large as they can be."""

from __future__ import annotations

import numpy as np
import pytest

import kernels
from kernels.attention.cuda_tiles import CudaTile, use_cuda_tile
from kernels.runtime.cupy_gpu import numpy_dtype
from tests.attention.helpers import (
    LARGE_SCORES,
    TOLERANCES,
    backward_of_infinite_scores,
    check_gradients_of_large_scores,
    gradients,
    inputs,
)
from tests.cuda_on_cpu import helpers
from tests.cuda_on_cpu.helpers import on_cpu

pytestmark = helpers.needs_harness


def test_keys_behind_the_lengths_are_never_read():
    q, k, v = inputs(2, 2, 9, 40, 8)
    counts = np.array([40, 13])
    k[1, :, 13:], v[1, :, 13:] = np.nan, np.inf
    with on_cpu() as launched:
        found, (dq, dk, dv, *_) = gradients("cupy", {"query": q, "key": k, "value": v, "lengths": counts})
    assert all(np.isfinite(a).all() for a in (found[0], dq, dk, dv))
    assert not dk[1, :, 13:].any() and not dv[1, :, 13:].any()
    # Of keys and values, 40 and 13 places of 2 heads.
    forward = launched.counts[launched.kernels.index("attention_forward")]
    assert forward["unique_loaded"] == q.nbytes + 2 * (40 + 13) * 2 * 8 * 4 + counts.nbytes


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("width", [8, 7])
def test_what_is_no_number_stays_with_those_who_see_it(dtype: str, width: int):
    """NaN and infinities in every array, seen by some of a tile's queries or keys and hidden from others."""
    rng = np.random.default_rng(0)
    q, k, v = (a.astype(numpy_dtype(dtype)) for a in inputs(1, 2, 21, 25, width))
    g = rng.standard_normal(q.shape).astype(q.dtype)
    seen = rng.random((1, 2, 21, 25)) < 0.3
    seen[0, 0, 4], seen[0, 1, :, 6] = False, False
    k[0, 0, 3, 1], k[0, 1, 6], v[0, 0, 5, 2], v[0, 1, 6, 0], v[0, 1, 9, 4] = np.nan, np.nan, np.inf, np.nan, -np.inf
    q[0, 0, 4, 0], q[0, 0, 7, 3], q[0, 1, 2] = np.nan, np.inf, np.nan
    g[0, 0, 4], g[0, 0, 11, 5], g[0, 1, 3, 0] = np.nan, np.nan, np.inf
    answers = []
    for backend, given in (("reference", [a.astype(np.float64) for a in (q, k, v, g)]), ("cupy", [q, k, v, g])):
        with on_cpu():
            result, pullback = kernels.vjp("attention", *given[:3], mask=seen, backend=backend)
            answers.append([result, *pullback(given[3])[:3]])
    tolerance = TOLERANCES[dtype]
    for exact, found in zip(*answers, strict=True):
        assert 0 < np.isfinite(exact).sum() < exact.size
        np.testing.assert_allclose(found.astype(np.float64), exact, rtol=tolerance, atol=tolerance)


def test_scores_of_plus_infinity():
    """Weights of such a query are no numbers, as in the reference; those of the others are."""
    with on_cpu():
        kernels.explain("attention", *inputs(1, 2, 5, 9), backend="cupy")
        exact, found = backward_of_infinite_scores("cupy")
    for a, b in zip(found, exact, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert np.isnan(b).any()
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("queries, size", LARGE_SCORES)
@pytest.mark.parametrize("width", [8, 64, 300])
@pytest.mark.parametrize("maker", ["cupy", "numba", "reference"])
@pytest.mark.parametrize("taker", ["cupy", "numba"])
def test_large_scores_have_finite_gradients(taker: str, maker: str, width: int, queries: int, size: float):
    with on_cpu():
        check_gradients_of_large_scores(taker, maker, width, queries, size)


def test_a_query_that_sees_nothing():
    q, k, v = inputs(1, 1, 6, 9, 8)
    seen = np.ones((6, 9), bool)
    seen[2] = False
    with on_cpu():
        (found, lse), (dq, _, dv, *_) = gradients(
            "cupy", {"query": q, "key": k, "value": v, "mask": seen, "return_lse": True}
        )
    assert not found[0, 0, 2].any() and not dq[0, 0, 2].any()
    assert np.isneginf(lse[0, 0]).tolist() == [False, False, True, False, False, False]
    assert np.isfinite(dv).all()


def test_tiles_without_a_visible_key_are_not_read():
    """Bytes of keys and values, 32 at a time of which the middle ones are hidden from all."""
    tile = CudaTile(16, 32, 4)
    q, k, v = inputs(1, 1, 16, 96, 8)
    seen = np.ones((1, 96), bool)
    seen[:, 32:64] = False
    k[0, 0, 32:64], v[0, 0, 32:64] = np.nan, np.nan
    with on_cpu() as launched, use_cuda_tile(tile):
        (found,), gradient = gradients("cupy", {"query": q, "key": k, "value": v, "mask": seen})
    assert all(np.isfinite(a).all() for a in (found, *gradient[:3]))
    read = launched.counts[0]["unique_loaded"]
    assert read == q.nbytes + 2 * 64 * 8 * 4 + seen.nbytes
    with on_cpu() as launched, use_cuda_tile(tile):
        kernels.attention(q, k, v, window=(0, 0), backend="cupy")
    assert launched.counts[0]["unique_loaded"] == q.nbytes + 2 * 32 * 8 * 4
    with on_cpu() as launched, use_cuda_tile(tile):
        kernels.attention(np.tile(q, (1, 1, 2, 1)), k, v, causal="top_left", backend="cupy")
    assert launched.counts[0]["unique_loaded"] == 2 * q.nbytes + 2 * 32 * 8 * 4

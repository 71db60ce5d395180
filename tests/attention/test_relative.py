"""Relative-position terms: against the papers' formulas in plain torch, trainable tables, every option beside them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels.attention.relative import t5_buckets
from tests.attention.helpers import BACKENDS, gradients, inputs, plain, relative_term

KINDS = ("shaw", "t5", "t5 causal", "alibi")


def published_bucket(distance: torch.Tensor, bidirectional: bool, buckets: int, most: int) -> torch.Tensor:
    """T5's bucket of key minus query, as the published models have it."""
    found = torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        found = found + (distance > 0).long() * buckets
        distance = distance.abs()
    else:
        distance = -torch.minimum(distance, torch.zeros_like(distance))
    exact = buckets // 2
    large = torch.log(distance.float() / exact) / math.log(most / exact) * (buckets - exact)
    large = torch.minimum(exact + large.long(), torch.full_like(distance, buckets - 1))
    return found + torch.where(distance < exact, distance, large)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("buckets, most", [(32, 128), (16, 40), (4, 5), (64, 1000), (32, 20)])
def test_buckets_are_those_of_the_published_models(buckets: int, most: int, bidirectional: bool):
    distances = np.arange(-3000, 3001)
    wanted = published_bucket(torch.from_numpy(distances), bidirectional, buckets, most)
    np.testing.assert_array_equal(t5_buckets(distances, buckets, bidirectional, most), wanted)


def test_slopes_of_the_paper():
    np.testing.assert_allclose(kernels.alibi_slopes(8), [2.0**-n for n in range(1, 9)])
    np.testing.assert_allclose(kernels.alibi_slopes(1), [2.0**-8])
    # Twelve heads: those of eight, then every second one of sixteen.
    more = [2.0 ** (-0.5 * n) for n in (1, 3, 5, 7)]
    np.testing.assert_allclose(kernels.alibi_slopes(12), [*(2.0**-n for n in range(1, 9)), *more])
    with pytest.raises(ValueError, match="^alibi_slopes: heads must be at least 1, got 0$"):
        kernels.alibi_slopes(0)


def term_of(kind: str, table: torch.Tensor, query: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
    """What the term adds, from the formula in its paper: broadcasts to (B, H, L, S)."""
    if kind == "shaw":
        clip = table.shape[0] // 2
        vectors = table[distance.clamp(-clip, clip) + clip]  # (L, S, E)
        return torch.einsum("bhie,ije->bhij", query, vectors) / math.sqrt(query.shape[-1])
    if kind == "alibi":
        return -table[:, None, None] * distance.abs()
    return table[published_bucket(distance, kind == "t5", 16, 40)].permute(2, 0, 1)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"causal": "bottom_right"},
    {"causal": "top_left", "softcap": 1.2},
    {"window": (9, 4)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("queries, keys", [(40, 70), (70, 40), (2, 150)])
def test_the_formula(kind: str, options: dict[str, Any], queries: int, keys: int):
    q, k, v = (
        torch.from_numpy(a).requires_grad_() for a in inputs(2, 4, queries, keys, 6, kv_heads=2, dtype="float64")
    )
    given = relative_term(kind, 4, 6, "float64")
    name = "slopes" if kind == "alibi" else "table"
    table = torch.from_numpy(getattr(given, name)).requires_grad_()
    offset = keys - queries if options.get("causal") == "bottom_right" else 0
    distance = torch.arange(keys) - torch.arange(queries)[:, None] - offset
    theirs = plain(q, k, v, term=term_of(kind, table, q, distance), **options)
    grad = torch.randn(theirs.shape, dtype=theirs.dtype, generator=torch.Generator().manual_seed(0))
    leaves = (q, k, v, table)
    wanted = torch.autograd.grad(theirs, leaves, grad)
    term = type(given)(**{**vars(given), name: table})
    for backend in BACKENDS:
        ours = kernels.attention(q, k, v, relative=term, backend=backend, **options)
        torch.testing.assert_close(ours, theirs)
        for a, b in zip(torch.autograd.grad(ours, leaves, grad), wanted):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str, kind: str):
    q, k, v = (torch.from_numpy(a).requires_grad_() for a in inputs(1, 2, 5, 7, 3, dtype="float64"))
    given = relative_term(kind, 2, 3, "float64", clip=2)
    name = "slopes" if kind == "alibi" else "table"
    table = torch.from_numpy(getattr(given, name)).requires_grad_()

    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table: torch.Tensor) -> Any:
        term = type(given)(**{**vars(given), name: table})
        return kernels.attention(q, k, v, relative=term, return_lse=True, causal="bottom_right", backend=backend)

    assert torch.autograd.gradcheck(function, (q, k, v, table))
    assert torch.autograd.gradgradcheck(function, (q, k, v, table))


@pytest.mark.parametrize("clip", [0, 1, 7, 64, 200])
@pytest.mark.parametrize("queries, keys", [(70, 90), (3, 90)])
def test_any_clip(clip: int, queries: int, keys: int):
    q, k, v = inputs(2, 2, queries, keys)
    term = relative_term("shaw", 2, 8, clip=clip)
    arguments = {"query": q, "key": k, "value": v, "relative": term, "causal": "top_left"}
    ours, theirs = gradients("numba", arguments), gradients("reference", arguments)
    for a, b in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]]):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_beside_everything_else(kind: str):
    """With mask, bias, lengths, cap, window and dropout at once."""
    q, k, v = inputs(3, 4, 75, 110, 8, 5, kv_heads=2)
    rng = np.random.default_rng(0)
    arguments = {
        "query": q, "key": k, "value": v, "relative": relative_term(kind, 4, 8), "causal": "bottom_right",
        "window": (60, 5), "softcap": 3.0, "mask": rng.random((3, 1, 75, 110)) < 0.8, "dropout_p": 0.2, "seed": 5,
        "bias": rng.standard_normal((4, 75, 110)).astype("float32"), "lengths": np.array([110, 90, 3]),
        "return_lse": True,
    }  # fmt: skip
    (y, lse), found = gradients("numba", arguments)
    for backend in ("reference", "torch"):
        (other, other_lse), wanted = gradients(backend, arguments)
        np.testing.assert_allclose(y, other, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(lse, other_lse, rtol=1e-4, atol=1e-5)
        for a, b in zip(found, wanted):
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_a_table_alone_wants_its_gradient():
    q, k, v = map(torch.from_numpy, inputs(1, 2, 9, 12))
    table = torch.randn(32, 2, requires_grad=True)
    (alone,) = torch.autograd.grad(kernels.attention(q, k, v, relative=kernels.RelativeT5(table)).sum(), table)
    q.requires_grad_()
    (again,) = torch.autograd.grad(kernels.attention(q, k, v, relative=kernels.RelativeT5(table)).sum(), table)
    assert alone.any()
    torch.testing.assert_close(alone, again, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_under_torch_compile(kind: str):
    given = relative_term(kind, 2, 8)
    name = "slopes" if kind == "alibi" else "table"
    leaves = [torch.from_numpy(a).requires_grad_() for a in (*inputs(1, 2, 9, 12), getattr(given, name))]

    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        term = type(given)(**{**vars(given), name: table})
        return kernels.attention(q, k, v, relative=term, causal="bottom_right", dropout_p=0.3, seed=2)

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for a, b in zip(
        torch.autograd.grad(compiled(*leaves).sum(), leaves), torch.autograd.grad(function(*leaves).sum(), leaves)
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)

"""Values and gradients against torch's own scaled_dot_product_attention and against the definition in plain torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import kernels
from tests.attention.helpers import BACKENDS, inputs, plain


def tensors(*arrays: Any) -> list[torch.Tensor]:
    """Leaves that want gradients."""
    return [torch.from_numpy(a.copy()).requires_grad_() for a in arrays]


def assert_agrees(ours: Any, theirs: Any, given: list[torch.Tensor]) -> None:
    """The same output and the same gradients of `given`, for one random incoming gradient."""
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn(theirs.shape, dtype=theirs.dtype, generator=torch.Generator().manual_seed(0))
    found, wanted = (torch.autograd.grad(y, given, grad, allow_unused=True, retain_graph=True) for y in (ours, theirs))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


MASKS = {
    "none": None,
    "bool": torch.rand(37, 41, generator=torch.Generator().manual_seed(1)) < 0.7,
    "bool of a batch": torch.rand(2, 1, 37, 41, generator=torch.Generator().manual_seed(2)) < 0.7,
    "padding": torch.rand(2, 1, 1, 41, generator=torch.Generator().manual_seed(3)) < 0.7,
    "of a head": torch.rand(3, 37, 41, generator=torch.Generator().manual_seed(4)) < 0.7,
    "numbers": torch.randn(37, 41, generator=torch.Generator().manual_seed(5)),
    "numbers by head": torch.randn(3, 1, 41, generator=torch.Generator().manual_seed(6)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_masks(backend: str, name: str, dtype: str):
    q, k, v = tensors(*inputs(2, 3, 37, 41, 16, 12, dtype=dtype))
    mask = MASKS[name]
    if mask is not None and mask.is_floating_point():
        mask = mask.to(q.dtype).requires_grad_()
    ours = kernels.scaled_dot_product_attention(q, k, v, mask, backend=backend)
    given = [q, k, v, *([mask] if mask is not None and mask.requires_grad else [])]
    assert_agrees(ours, F.scaled_dot_product_attention(q, k, v, mask), given)


@pytest.mark.parametrize("queries, keys", [(50, 50), (20, 70), (70, 20), (1, 40), (3, 300), (150, 1)])
@pytest.mark.parametrize("scale", [None, 0.0, -0.7])
@pytest.mark.parametrize("backend", BACKENDS)
def test_causal_and_scale(backend: str, scale: float | None, queries: int, keys: int):
    q, k, v = tensors(*inputs(2, 2, queries, keys, 8, dtype="float64"))
    ours = kernels.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, backend=backend)
    # torch's fused kernel multiplies the scores of hidden keys, -inf, by the scale: NaN for 0, and wrong below.
    with sdpa_kernel(SDPBackend.MATH):
        assert_agrees(ours, F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale), [q, k, v])


@pytest.mark.parametrize("shapes", [
    ((7, 8), (9, 8), (9, 5)),
    ((4, 7, 8), (4, 9, 8), (4, 9, 5)),
    ((2, 2, 3, 7, 8), (2, 2, 3, 9, 8), (2, 2, 3, 9, 5)),
    ((2, 3, 7, 8), (1, 3, 9, 8), (2, 1, 9, 5)),
    ((3, 7, 8), (2, 3, 9, 8), (2, 3, 9, 5)),
    ((2, 3, 7, 8), (9, 8), (9, 5)),
])  # fmt: skip
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_leading_dimensions(backend: str, shapes: Any):
    q, k, v = tensors(*(np.random.default_rng(0).standard_normal(s) for s in shapes))
    mask = torch.rand(7, 9, generator=torch.Generator().manual_seed(0)) < 0.8
    for given in (None, mask):
        ours = kernels.scaled_dot_product_attention(q, k, v, given, backend=backend)
        assert_agrees(ours, F.scaled_dot_product_attention(q, k, v, given), [q, k, v])


@pytest.mark.parametrize("shapes", [
    ((2, 6, 7, 8), (2, 3, 9, 8), (2, 3, 9, 5)),
    ((6, 7, 8), (2, 9, 8), (2, 9, 5)),
    ((2, 6, 7, 8), (2, 1, 9, 8), (2, 1, 9, 5)),
    ((2, 2, 4, 7, 8), (2, 2, 2, 9, 8), (2, 2, 2, 9, 5)),
])  # fmt: skip
@pytest.mark.parametrize("backend", BACKENDS)
def test_grouped_heads(backend: str, shapes: Any):
    q, k, v = tensors(*(np.random.default_rng(0).standard_normal(s) for s in shapes))
    ours = kernels.scaled_dot_product_attention(q, k, v, enable_gqa=True, backend=backend)
    assert_agrees(ours, F.scaled_dot_product_attention(q, k, v, enable_gqa=True), [q, k, v])
    if q.ndim == 4:
        assert_agrees(kernels.attention(q, k, v, backend=backend), ours, [q, k, v])


OPTIONS: list[dict[str, Any]] = [
    {},
    {"causal": "top_left"},
    {"causal": "bottom_right"},
    {"window": 5},
    {"window": 0},
    {"window": (3, None)},
    {"window": (None, 2)},
    {"window": (4, 1), "causal": "bottom_right"},
    {"softcap": 0.8},
    {"softcap": 2.0, "causal": "top_left", "scale": 1.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("extra", ["none", "mask", "bias", "both"])
@pytest.mark.parametrize("queries, keys", [(33, 45), (45, 33), (2, 130)])
def test_the_definition(options: dict[str, Any], extra: str, queries: int, keys: int):
    q, k, v = tensors(*inputs(2, 4, queries, keys, 8, 6, kv_heads=2, dtype="float64"))
    rng = np.random.default_rng(3)
    given = [q, k, v]
    arguments = dict(options)
    if extra in ("mask", "both"):
        arguments["mask"] = torch.from_numpy(rng.random((2, 1, queries, keys)) < 0.6)
    if extra in ("bias", "both"):
        bias = torch.from_numpy(rng.standard_normal((1, 4, queries, keys)))
        bias[..., 5] = -torch.inf
        given.append(bias.requires_grad_())
        arguments["bias"] = bias
    theirs = plain(q, k, v, **arguments)
    for backend in BACKENDS:
        assert_agrees(kernels.attention(q, k, v, **arguments, backend=backend), theirs, given)


SHAPES_OF_BIAS = [(34, 29), (29,), (3, 1, 1), (2, 1, 34, 29), (2, 3, 34, 29), (34, 1), (2, 1, 1, 29), ()]


@pytest.mark.parametrize("shape", SHAPES_OF_BIAS)
def test_the_gradient_of_a_bias_of_any_broadcast(shape: tuple[int, ...]):
    q, k, v = tensors(*inputs(2, 3, 34, 29, 8, dtype="float64"))
    bias = torch.from_numpy(np.random.default_rng(0).standard_normal(shape)).requires_grad_()
    for backend in BACKENDS:
        ours = kernels.attention(q, k, v, bias=bias, backend=backend)
        assert_agrees(ours, F.scaled_dot_product_attention(q, k, v, bias), [q, k, v, bias])


def test_an_expanded_bias_and_mask_are_not_copied_out():
    q, k, v = inputs(2, 3, 40, 50)
    rng = np.random.default_rng(0)
    bias, mask = rng.standard_normal((3, 1, 50)).astype("float32"), rng.random((1, 50)) < 0.5
    wide = np.broadcast_to(bias, (2, 3, 40, 50)), np.broadcast_to(mask, (2, 3, 40, 50))
    expected = kernels.attention(q, k, v, bias=bias, mask=mask, backend="numba")
    np.testing.assert_array_equal(kernels.attention(q, k, v, bias=wide[0], mask=wide[1], backend="numba"), expected)
    # Each element of an expanded bias has its own gradient.
    _, narrow = kernels.vjp("attention", q, k, v, bias=bias)
    _, full = kernels.vjp("attention", q, k, v, bias=wide[0])
    grad = rng.standard_normal(expected.shape).astype("float32")
    each = full(grad)[4]
    assert each.shape == (2, 3, 40, 50)
    summed = each.sum((0, 2)).reshape(narrow(grad)[4].shape)
    np.testing.assert_allclose(summed, narrow(grad)[4], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_are_read_where_they_lie(backend: str):
    """(B, L, H, E) seen as (B, H, L, E), as linear projections give them, and gradients that come in like that."""
    q, k, v = (torch.randn(2, n, 3, 16, dtype=torch.float64).transpose(1, 2).requires_grad_() for n in (37, 41, 41))
    ours = kernels.attention(q, k, v, backend=backend).transpose(1, 2)
    theirs = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    assert_agrees(ours, theirs, [q, k, v])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("arguments", [{}, {"causal": "bottom_right", "softcap": 2.0}, {"window": 3}], ids=str)
def test_gradcheck_and_second_derivatives(backend: str, arguments: dict[str, Any]):
    q, k, v = tensors(*inputs(1, 4, 5, 7, 3, 2, kv_heads=2, dtype="float64"))
    bias = torch.randn(4, 1, 7, dtype=torch.float64).requires_grad_()

    def function(*given: torch.Tensor) -> Any:
        return kernels.attention(*given[:3], bias=given[3], return_lse=True, backend=backend, **arguments)

    assert torch.autograd.gradcheck(function, (q, k, v, bias))
    assert torch.autograd.gradgradcheck(function, (q, k, v, bias))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_log_sum_exp_is_differentiable(backend: str):
    q, k, v = tensors(*inputs(2, 2, 34, 45, dtype="float64"))
    _, lse = kernels.attention(q, k, v, return_lse=True, backend=backend)
    assert_agrees(lse, torch.logsumexp(q @ k.mT / 8**0.5, -1), [q, k])
    # Attention over two halves of the keys, joined by their log-sum-exps, is attention over all.
    parts = (slice(20), slice(20, 45))
    halves = [kernels.attention(q, k[:, :, s], v[:, :, s], return_lse=True, backend=backend) for s in parts]
    total = torch.logaddexp(halves[0][1], halves[1][1])
    joined = sum(y * (part - total).exp()[..., None] for y, part in halves)
    assert_agrees(joined, kernels.attention(q, k, v, backend=backend), [q, k, v])


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(backend: str, dtype: torch.dtype):
    if backend == "reference" and dtype == torch.bfloat16:
        pytest.skip("NumPy has no bfloat16")
    q, k, v = (torch.from_numpy(a).to(dtype) for a in inputs(1, 2, 9, 13))
    ours, lse = kernels.attention(q, k, v, return_lse=True, backend=backend)
    assert ours.dtype == dtype and lse.dtype == torch.float32
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(ours.double(), exact, rtol=2e-2, atol=2e-2 if dtype == torch.bfloat16 else 3e-3)

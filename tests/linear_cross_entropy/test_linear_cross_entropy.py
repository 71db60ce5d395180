"""linear_cross_entropy: every option against torch, chunks, memory, errors."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels.linear_cross_entropy import chunks
from kernels.op import OPS

BACKENDS = ["numba", "torch", "reference"]


@pytest.fixture(params=[1, 60], ids=lambda n: f"{n} logits")
def size_of_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """So many logits at a time, or as many as x has elements."""
    monkeypatch.setattr(chunks, "CHUNK", request.param)
    OPS["linear_cross_entropy"].plans.clear()
    return int(request.param)


def tensors(rows: tuple[int, ...] = (11,), features: int = 4, classes: int = 19) -> tuple[torch.Tensor, ...]:
    """x, weight, target, bias in float64, with gradients."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((*rows, features), (classes, features), (classes,))
    )
    return x, weight, torch.randint(0, classes, rows, generator=generator), bias


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
def test_every_option(
    size_of_chunks: int, ignored: bool, weighted: bool, smoothing: float, reduction: str, backend: str
):
    x, weight, target, bias = tensors()
    factors = torch.linspace(0.5, 2, 19, dtype=torch.float64) if weighted else None
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
    options |= {"ignore_index": int(target[3])} if ignored else {}
    found = kernels.linear_cross_entropy(
        x, weight, target, linear_bias=bias, weight=factors, backend=backend, **options
    )
    expected = F.cross_entropy(F.linear(x, weight, bias), target, factors, **options)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    incoming = torch.randn(expected.shape, dtype=expected.dtype)
    wanted = (x, weight, bias)
    pairs = zip(torch.autograd.grad(found, wanted, incoming), torch.autograd.grad(expected, wanted, incoming))
    for gradient, exact in pairs:
        torch.testing.assert_close(gradient, exact, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("soft", [False, True])
def test_inner_dimensions_and_probabilities(size_of_chunks: int, soft: bool, reduction: str, backend: str):
    x, weight, bias = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 4), (7, 3, 2, 4), (7, 3, 2))
    )
    target = torch.randint(0, 7, (5, 3, 2))
    wanted = [x, weight, bias]
    if soft:
        target = torch.rand(5, 7, 3, 2, dtype=torch.float64, requires_grad=True)
        wanted.append(target)
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": 0.1}
    found = kernels.linear_cross_entropy(x, weight, target, linear_bias=bias, backend=backend, **options)
    logits = (torch.einsum("ne,cabe->ncab", x, weight) + bias).contiguous()
    expected = F.cross_entropy(logits, target, **options)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    incoming = torch.randn(expected.shape, dtype=expected.dtype)
    pairs = zip(torch.autograd.grad(found, wanted, incoming), torch.autograd.grad(expected, wanted, incoming))
    for gradient, exact in pairs:
        torch.testing.assert_close(gradient, exact, rtol=1e-11, atol=1e-12)


def test_rows_of_a_chunk(monkeypatch: pytest.MonkeyPatch):
    def rows(n: int, features: int, classes: int) -> int:
        x, weight, target = np.zeros((n, features)), np.zeros((classes, features)), np.zeros(n, np.int64)
        problem: Any = kernels.explain("linear_cross_entropy", x, weight, target).problem
        return chunks.chunk_rows(problem)

    monkeypatch.setattr(chunks, "CHUNK", 600)
    assert rows(10, 4, 30) == 10
    assert rows(100, 4, 30) == 20  # 600 logits
    assert rows(100, 9, 30) == 30  # as many logits as x has elements, 900
    assert rows(100, 4, 1000) == 1
    assert rows(0, 4, 10) == 1


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_logits_are_never_all_in_memory(backend: str, monkeypatch: pytest.MonkeyPatch):
    """4000 x 500 logits take 8 MB; the reference, which has them all, shows that the measure sees it."""
    monkeypatch.setattr(chunks, "CHUNK", 20_000)
    OPS["linear_cross_entropy"].plans.clear()
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal((n, 8)).astype(np.float32) for n in (4000, 500))
    target = rng.integers(0, 500, 4000)

    def run() -> None:
        _, pullback = kernels.vjp("linear_cross_entropy", x, weight, target, backend=backend)
        pullback(np.float32(1))

    run()  # compiles
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (peak < 2_000_000) == (backend == "numba"), peak


@pytest.mark.parametrize("wanted", [w for w in itertools.product([False, True], repeat=3) if any(w)])
def test_gradients_that_nobody_wants_are_not_made(wanted: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch):
    x, weight, target, bias = tensors()
    whole = torch.autograd.grad(kernels.linear_cross_entropy(x, weight, target, linear_bias=bias), (x, weight, bias))
    given = [t.detach().requires_grad_(w) for t, w in zip((x, weight, bias), wanted)]
    kernels.linear_cross_entropy(given[0], given[1], target, linear_bias=given[2]).backward()
    for tensor, gradient, w in zip(given, whole, wanted):
        assert (tensor.grad is not None) == w
        if w:
            torch.testing.assert_close(tensor.grad, gradient, rtol=0, atol=0)


def test_rows_that_are_all_ignored():
    """The mean of nothing is NaN, as in torch, and its gradient zero."""
    x, weight, target, bias = tensors()
    loss = kernels.linear_cross_entropy(x, weight, torch.full_like(target, -100), linear_bias=bias)
    assert loss.isnan()
    for gradient in torch.autograd.grad(loss, (x, weight, bias)):
        assert not gradient.any()


@pytest.mark.parametrize("reduction, expected", [("mean", np.nan), ("sum", 0.0)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows(backend: str, reduction: str, expected: float):
    x, weight = torch.ones(0, 3, requires_grad=True), torch.ones(5, 3, requires_grad=True)
    loss = kernels.linear_cross_entropy(x, weight, torch.ones(0).long(), reduction=reduction, backend=backend)
    np.testing.assert_equal(loss.item(), expected)
    of_x, of_weight = torch.autograd.grad(loss, (x, weight))
    assert of_x.shape == (0, 3) and of_weight.shape == (5, 3) and not of_weight.any()


def zeros(*shape: int, dtype: str = "float32") -> np.ndarray[Any, Any]:
    return np.zeros(shape, dtype)


GOOD = {"input": zeros(6, 3), "linear_weight": zeros(5, 3), "target": zeros(6, dtype="int64")}
WRONG = [
    (
        {"input": zeros(2, 3, 3)},
        ValueError,
        r"input must have shape \(in_features,\) or \(N, in_features\), got 3",
    ),
    ({"linear_weight": zeros(3)}, ValueError, r"linear_weight must have shape \(C, in_features\), or .*, got \(3,\)"),
    ({"linear_weight": zeros(5, 4)}, ValueError, r"linear_weight must have 3 input features, .*, got \(5, 4\)"),
    ({"linear_weight": zeros(0, 3)}, ValueError, r"linear_weight must have at least one class, got \(0, 3\)"),
    (
        {"linear_weight": zeros(5, 3, dtype="float64")},
        TypeError,
        r"linear_weight must have the dtype of input \(float32\)",
    ),
    ({"linear_bias": zeros(4)}, ValueError, r"linear_bias must have shape \(5,\) \(a value for each class\)"),
    ({"weight": zeros(4)}, ValueError, r"weight must have shape \(5,\) \(one value for each class\)"),
    ({"target": zeros(6)}, ValueError, r"target must have shape \(6, 5\) \(probabilities for every class\)"),
    (
        {"target": zeros(6, 5), "ignore_index": -1},
        ValueError,
        r"ignore_index must be None when target holds prob.*, got -1",
    ),
    ({"target": zeros(6, dtype="int16")}, TypeError, r"target must have dtype int64, int32, uint8 \(class indices\)"),
    (
        {"target": zeros(5, dtype="int64")},
        ValueError,
        r"target must have shape \(6,\) \(an index for every row of logits\)",
    ),
    ({"target": np.full(6, 5)}, IndexError, r"target must lie in \[0, 4\] or be ignore_index \(-100\), got 5 at 0"),
    ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must lie in \[0, 1\], got 1.5"),
    ({"reduction": "all"}, ValueError, r"reduction must be one of"),
]


@pytest.mark.parametrize("changed, error, message", WRONG)
def test_errors(changed: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=f"^linear_cross_entropy: {message}"):
        kernels.linear_cross_entropy(**(GOOD | changed))

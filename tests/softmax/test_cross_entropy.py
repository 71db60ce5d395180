"""cross_entropy: every option against torch, limits, errors, both forms of the kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels.softmax import rows
from tests.support import budget

BACKENDS = ["numba", "torch", "reference"]
REDUCTIONS = ["none", "mean", "sum"]
SHAPES = [(7,), (9, 5), (6, 33), (2, 5, 3), (3, 4, 20), (2, 3, 5, 4)]


def labels(shape, generator):
    return (
        torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator) if len(shape) > 1 else torch.tensor(2)
    )


def probabilities(shape, generator):
    return torch.rand(shape, generator=generator, dtype=torch.float64).softmax(0 if len(shape) == 1 else 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_class_indices(shape, ignored, weighted, smoothing, reduction, backend):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    target = labels(shape, generator)
    classes = shape[0] if len(shape) == 1 else shape[1]
    weight = torch.rand(classes, generator=generator, dtype=torch.float64) + 0.5 if weighted else None
    options = {"reduction": reduction, "label_smoothing": smoothing}
    if ignored:
        options["ignore_index"] = int(target.reshape(-1)[0]) if len(shape) > 1 else 0
    check(x, target, weight, options, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_probabilities(shape, weighted, smoothing, reduction, backend):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    target = probabilities(shape, generator).requires_grad_()
    classes = shape[0] if len(shape) == 1 else shape[1]
    weight = torch.rand(classes, generator=generator, dtype=torch.float64) + 0.5 if weighted else None
    check(x, target, weight, {"reduction": reduction, "label_smoothing": smoothing}, backend)


def check(x, target, weight, options, backend):
    found = kernels.cross_entropy(x, target, weight, backend=backend, **options)
    expected = F.cross_entropy(x, target, weight, **options)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    wanted = [x, target] if target.requires_grad else [x]
    incoming = torch.randn(expected.shape, dtype=expected.dtype)
    gradients = torch.autograd.grad(found, wanted, incoming)
    for gradient, exact in zip(gradients, torch.autograd.grad(expected, wanted, incoming)):
        torch.testing.assert_close(gradient, exact, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("shape", [(5, 3), (40, 10), (6, 700), (3, rows.CHUNK + 77), (2, 21, 50)])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_error_budget(shape, scale, smoothing):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) * scale).astype(np.float32)
    target = rng.integers(0, shape[1], (shape[0], *shape[2:]))
    leaf, double = (torch.from_numpy(a).requires_grad_() for a in (x, x.astype(np.float64)))
    options = {"label_smoothing": smoothing, "reduction": "sum"}
    y, exact = (F.cross_entropy(t, torch.from_numpy(target), **options) for t in (leaf, double))
    y.backward()
    exact.backward()
    found, pullback = kernels.vjp("cross_entropy", x, target, **options, backend="numba")
    assert budget.complaint(found, exact.detach().numpy(), y.detach().numpy()) is None
    gradient, none, no_weight = pullback(np.ones((), np.float32))
    assert none is None and no_weight is None
    assert budget.complaint(gradient, double.grad.numpy(), leaf.grad.numpy()) is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_offsets_lose_nothing(backend):
    x = (np.random.default_rng(0).standard_normal((6, 30)) + 1e4).astype(np.float32)
    target = np.arange(6)
    exact = F.cross_entropy(torch.from_numpy(x).double(), torch.from_numpy(target)).numpy()
    found, pullback = kernels.vjp("cross_entropy", x, target, backend=backend)
    np.testing.assert_allclose(found, exact, rtol=1e-6)
    p = torch.from_numpy(x).double().softmax(1).numpy()
    p[np.arange(6), target] -= 1
    np.testing.assert_allclose(pullback(np.ones((), np.float32))[0], p / 6, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 5)])
def test_mean_over_nothing_is_nan_and_its_gradient_zero(shape, smoothing, backend):
    x = torch.randn(shape, requires_grad=True)
    target = torch.full((shape[0], *shape[2:]), -100)
    loss = kernels.cross_entropy(x, target, label_smoothing=smoothing, backend=backend)
    assert loss.isnan()
    loss.backward()
    assert not x.grad.any() and not x.grad.isnan().any()
    assert kernels.cross_entropy(x, target, reduction="sum", backend=backend) == 0


# torch's own gradient of such a row is NaN.
@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("shape", [(4, 6), (2, 6, 18)])
def test_ignored_rows_may_hold_anything(shape, backend):
    x = torch.randn(shape)
    target = torch.randint(0, 6, (shape[0], *shape[2:]))
    target[0] = -100
    x[0] = torch.nan
    x.requires_grad_()
    for smoothing in (0.0, 0.1):
        loss = kernels.cross_entropy(x, target, label_smoothing=smoothing, backend=backend)
        torch.testing.assert_close(loss, F.cross_entropy(x[1:], target[1:], label_smoothing=smoothing))
        (gradient,) = torch.autograd.grad(loss, x)
        assert not gradient[0].any() and not gradient.isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inner", [(), (3,)])
def test_infinite_logits_as_torch(inner, backend):
    x = torch.randn(6, 5, *inner)
    x[0] = -torch.inf
    x[1, 2] = torch.inf
    x[2, 3] = torch.nan
    x[3, 0] = -torch.inf
    x[4, 1] = -torch.inf
    x.requires_grad_()
    target = torch.tensor([0, 1, 2, 0, 3, 4])
    target = target.unsqueeze(1).expand(6, *inner) if inner else target
    found = kernels.cross_entropy(x, target, reduction="none", backend=backend)
    expected = F.cross_entropy(x, target, reduction="none")
    torch.testing.assert_close(found, expected, equal_nan=True)
    gradients = (torch.autograd.grad(y.sum(), x)[0] for y in (found, expected))
    torch.testing.assert_close(*gradients, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0), (0, 3, 4)])
def test_no_rows(shape, soft, reduction, backend):
    x = torch.randn(shape, requires_grad=True)
    target = torch.rand(shape) if soft else torch.zeros((shape[0], *shape[2:]), dtype=torch.int64)
    found = kernels.cross_entropy(x, target, reduction=reduction, backend=backend)
    torch.testing.assert_close(found, F.cross_entropy(x, target, reduction=reduction), equal_nan=True)
    found.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("kind", ["int64", "int32", "uint8"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_index_types(kind, backend):
    x = np.random.default_rng(0).standard_normal((4, 3))
    target = np.array([0, 2, 1, 2])
    found, pullback = kernels.vjp("cross_entropy", x, target.astype(kind), backend=backend)
    np.testing.assert_allclose(found, F.cross_entropy(torch.from_numpy(x), torch.from_numpy(target)).numpy())
    assert pullback(np.ones(()))[1] is None


def test_negative_and_foreign_ignore_index():
    x = torch.randn(4, 3)
    target = torch.tensor([0, 255, 2, 255])
    torch.testing.assert_close(
        kernels.cross_entropy(x, target, ignore_index=255), F.cross_entropy(x, target, ignore_index=255)
    )


# ----- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("as_kind", [np.asarray, torch.as_tensor])
def test_an_index_out_of_range_is_named(as_kind, backend):
    x = as_kind(np.zeros((4, 3)))
    text = r"^cross_entropy: target must lie in \[0, 2\] or be ignore_index \(-100\), got {}$"
    for wrong in (3, -1, 2**40, -(2**63)):
        with pytest.raises(IndexError, match=text.format(f"{wrong} at 2")):
            kernels.cross_entropy(x, as_kind(np.array([0, -100, wrong, 7])), backend=backend)
    with pytest.raises(IndexError, match=text.format(r"9 at \(1, 2\)")):
        images = as_kind(np.zeros((2, 3, 4)))
        kernels.cross_entropy(images, as_kind(np.array([[0, 1, 2, 0], [0, 1, 9, 9]])), backend=backend)
    with pytest.raises(IndexError, match=text.format("5")):
        kernels.cross_entropy(as_kind(np.zeros(3)), as_kind(np.array(5)), backend=backend)


def test_index_out_of_range_in_a_strided_target():
    target = np.array([0, 99, 1, 99, 7, 99])[::2]
    with pytest.raises(IndexError, match="got 7 at 2$"):
        kernels.cross_entropy(np.zeros((3, 3)), target)


X = np.zeros((4, 3))
T = np.zeros(4, np.int64)


@pytest.mark.parametrize(
    "arguments, error, text",
    [
        ({"input": np.zeros(()), "target": T}, ValueError, r"input must have shape \(C,\), \(N, C\) or .*, got 0 dim"),
        ({"input": X.astype(int), "target": T}, TypeError, "input must have dtype float16 or .*, got int64"),
        (
            {"input": X, "target": T[:3]},
            ValueError,
            r"target must have shape \(4,\) \(an index for every row .*got \(3,\)",
        ),
        ({"input": X, "target": X.astype(int)}, ValueError, r"target must have shape \(4,\)"),
        (
            {"input": X, "target": T.astype(np.int16)},
            TypeError,
            "target must have dtype int64, int32, uint8 .*got int16",
        ),
        ({"input": X, "target": X[:, :2]}, ValueError, r"target must have shape \(4, 3\) \(probabilities"),
        (
            {"input": X, "target": X.astype("f4")},
            TypeError,
            r"target must have the dtype of input \(float64\), got float32",
        ),
        (
            {"input": X, "target": X, "ignore_index": 1},
            ValueError,
            "ignore_index must be negative when target holds prob",
        ),
        ({"input": X, "target": T, "weight": np.ones(2)}, ValueError, r"weight must have shape \(3,\) .*, got \(2,\)"),
        ({"input": X, "target": T, "weight": np.ones(3, "f4")}, TypeError, "weight must have the dtype of input"),
        (
            {"input": X, "target": T, "reduction": "max"},
            ValueError,
            "reduction must be one of 'none', 'mean', 'sum', got 'max'",
        ),
        (
            {"input": X, "target": T, "label_smoothing": 1.5},
            ValueError,
            r"label_smoothing must lie in \[0, 1\], got 1.5",
        ),
        ({"input": X, "target": T, "label_smoothing": "a"}, TypeError, "label_smoothing must be a number"),
        ({"input": X, "target": T, "ignore_index": 0.5}, TypeError, "ignore_index must be an int"),
    ],
)
def test_wrong_arguments(arguments, error, text):
    with pytest.raises(error, match=f"^cross_entropy: {text}"):
        kernels.cross_entropy(**arguments)


def test_class_weights_have_no_gradient():
    weight = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="^cross_entropy: weight must not require a gradient"):
        kernels.cross_entropy(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64), weight)
    with torch.no_grad():
        kernels.cross_entropy(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64), weight)


# ----- torch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_second_derivatives(reduction, soft):
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(4, dtype=torch.float64)
    target = torch.rand(3, 4, dtype=torch.float64, requires_grad=True) if soft else torch.tensor([0, -100, 3])

    def loss(*given):
        return kernels.cross_entropy(
            *(given if soft else (*given, target)), weight, reduction=reduction, label_smoothing=0.1
        )

    inputs = (x, target) if soft else (x,)
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


def test_under_compile():
    x = torch.randn(5, 4, requires_grad=True)
    target = torch.tensor([0, 3, -100, 1, 2])
    compiled = torch.compile(kernels.cross_entropy, fullgraph=True, backend="aot_eager")
    loss = compiled(x, target, label_smoothing=0.1)
    torch.testing.assert_close(loss, F.cross_entropy(x, target, label_smoothing=0.1))
    (gradient,) = torch.autograd.grad(loss, x)
    (expected,) = torch.autograd.grad(F.cross_entropy(x, target, label_smoothing=0.1), x)
    torch.testing.assert_close(gradient, expected)
    with pytest.raises(IndexError, match="got 9 at 0"):
        compiled(x, torch.tensor([9, 3, -100, 1, 2]), label_smoothing=0.1)

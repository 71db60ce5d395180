"""layer_norm and rms_norm: numbers worked out by hand, hard rows, every option, errors, the same bits in any parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels.normalization import numba_cpu, rows_cpu
from kernels.normalization.op import EPSILON
from tests.support import budget

BACKENDS = ["numba", "torch", "reference"]
OURS = ["numba", "reference"]
NAMES = ["layer_norm", "rms_norm"]
CALLS = {"layer_norm": (kernels.layer_norm, F.layer_norm), "rms_norm": (kernels.rms_norm, F.rms_norm)}
inf, nan = np.inf, np.nan


# ----- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_layer_norm_by_hand(backend):
    """Mean 2.5, variance 1.25 (not the unbiased 5/3); with eps = 5 the root is 2.5."""
    x = np.array([[1.0, 2.0, 3.0, 4.0]])
    weight, bias = np.array([1.0, 10.0, 100.0, 1000.0]), np.array([0.5, 0.0, -1.0, 0.0])
    found = kernels.layer_norm(x, (4,), weight, bias, 5.0, backend=backend)
    np.testing.assert_allclose(found, [[-0.6 + 0.5, -2, 20 - 1, 600]], rtol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rms_norm_by_hand(backend):
    """Mean square 7.5; with eps = 1.5 the root is 3."""
    x = np.array([[1.0, 2.0, 3.0, -4.0]])
    found = kernels.rms_norm(x, 4, np.array([3.0, 1.5, 1.0, 1.0]), 1.5, backend=backend)
    np.testing.assert_allclose(found, [[1, 1, 1, -4 / 3]], rtol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_by_hand(backend):
    """Two rows of two numbers: h = +-1 / sqrt(1 + eps) whatever they are, so weight and bias alone learn."""
    x = np.array([[5.0, 7.0], [2.0, 0.0]])
    _, pullback = kernels.vjp("layer_norm", x, (2,), np.ones(2), np.zeros(2), 0.0, backend=backend)
    dx, dw, db = pullback(np.array([[1.0, 10.0], [100.0, 1000.0]]))
    np.testing.assert_allclose(dx, np.zeros((2, 2)), atol=1e-10)
    np.testing.assert_allclose(dw, [-1 + 100, 10 - 1000], rtol=1e-14)
    np.testing.assert_allclose(db, [101, 1010], rtol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_default_eps_of_rms_norm_is_torchs(dtype, backend):
    if (dtype == "bfloat16" and backend == "reference") or ("16" in dtype and backend == "numba"):
        pytest.skip(f"{backend} does not take {dtype}")
    x = torch.full((2, 8), 3e-4, dtype=getattr(torch, dtype))
    torch.testing.assert_close(kernels.rms_norm(x, 8, backend=backend), F.rms_norm(x, (8,)))
    assert set(EPSILON) == {"float16", "bfloat16", "float32", "float64"}


# ----- against torch -----------------------------------------------------------------------------------------------

FORMS = [((7,), 1), ((5, 16), 1), ((3, 4, 33), 1), ((2, 3, 5, 7), 2), ((2, 3, 5), 3), ((1, 1), 1), ((40, 64), 1)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("given", ["", "weight", "bias", "weight bias"])
@pytest.mark.parametrize("shape, over", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_every_form_against_torch(name, shape, over, given, backend):
    if name == "rms_norm" and "bias" in given:
        return  # it has none
    generator = torch.Generator().manual_seed(0)
    sizes = shape[-over:]
    arrays = {"x": shape} | dict.fromkeys(given.split(), sizes)
    tensors = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in arrays.items()}
    wanted = list(tensors.values())
    for t in wanted:
        t.requires_grad_()
    mine, theirs = CALLS[name]
    x = tensors.pop("x")
    found = mine(x, sizes, **tensors, eps=1e-3, backend=backend)
    expected = theirs(x, sizes, **tensors, eps=1e-3)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    incoming = torch.randn(shape, generator=generator, dtype=torch.float64)
    gradients = zip(torch.autograd.grad(found, wanted, incoming), torch.autograd.grad(expected, wanted, incoming))
    for gradient, exact in gradients:
        torch.testing.assert_close(gradient, exact, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(300, 3), (64, 100), (7, 1000), (2, 20000)])
def test_error_budget(shape, name):
    rng = np.random.default_rng(0)
    n = shape[-1]
    arrays = [rng.standard_normal(s).astype(np.float32) for s in (shape, n, n)][: 3 if name == "layer_norm" else 2]
    incoming = rng.standard_normal(shape).astype(np.float32)
    theirs = CALLS[name][1]
    answers = []
    for dtype in (np.float64, np.float32):
        leaves = [torch.from_numpy(a.astype(dtype)).requires_grad_() for a in arrays]
        y = theirs(leaves[0], (n,), *leaves[1:], eps=1e-5)
        gradients = torch.autograd.grad(y, leaves, torch.from_numpy(incoming.astype(dtype)))
        answers.append([y.detach().numpy(), *(g.numpy() for g in gradients)])
    value, pullback = kernels.vjp(name, arrays[0], (n,), *arrays[1:], eps=1e-5, backend="numba")
    for found, exact, torchs in zip([value, *pullback(incoming)], *answers, strict=True):
        assert budget.complaint(found, exact, torchs) is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_numpy_lists_ints_and_torch_sizes_name_the_same_dimensions(backend):
    x = np.random.default_rng(0).standard_normal((4, 6))
    expected = kernels.layer_norm(x, (6,), backend=backend)
    for sizes in (6, [6], np.int64(6), torch.Size([6])):
        np.testing.assert_array_equal(kernels.layer_norm(x, sizes, backend=backend), expected)
        np.testing.assert_array_equal(
            kernels.rms_norm(x, sizes, backend=backend), kernels.rms_norm(x, (6,), backend=backend)
        )


# ----- hard rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", OURS)
@pytest.mark.parametrize("n", [5, 16, 100, 1000])
@pytest.mark.parametrize("mean", [1e3, 1e4, -3e5])
def test_a_huge_mean_costs_no_digits(mean, n, backend):
    """E[x^2] - mean^2 would be nothing but rounding here."""
    x = (np.random.default_rng(0).standard_normal((6, n)) + mean).astype(np.float32)
    exact = F.layer_norm(torch.from_numpy(x).double(), (n,)).numpy()
    found = kernels.layer_norm(x, (n,), backend=backend)
    np.testing.assert_allclose(found, exact, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("backend", OURS)
@pytest.mark.parametrize("n", [1, 3, 16, 37, 700])
@pytest.mark.parametrize("value", [0.1, 38.0, 1e6 / 3, -7e-20])
def test_equal_numbers_become_the_bias(value, n, backend):
    """Their deviation is 0: the result has no rounding error of the mean, blown up by 1 / sqrt(eps), in it."""
    x = np.full((2, n), value, np.float32)
    bias = np.linspace(-1, 1, n).astype(np.float32)
    found = kernels.layer_norm(x, (n,), np.full(n, 2, np.float32), bias, backend=backend)
    np.testing.assert_allclose(found, np.broadcast_to(bias, x.shape), atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [2, 10, 16, 17, 70])
def test_special_rows_as_torch(n, name, backend):
    x = np.random.default_rng(0).standard_normal((8, n)).astype(np.float32)
    x[0, 0], x[1, -1], x[2, 0] = nan, inf, -inf
    x[3] = inf
    x[4, 0], x[4, 1] = inf, -inf
    x[5] = 0
    x[6] = 1e-30
    mine, theirs = CALLS[name]
    leaf, other = (torch.from_numpy(x.copy()).requires_grad_() for _ in range(2))
    found, expected = mine(leaf, (n,), backend=backend), theirs(other, (n,))
    np.testing.assert_allclose(found.detach(), expected.detach(), rtol=1e-4, atol=1e-5, equal_nan=True)
    incoming = torch.ones_like(found) * torch.arange(1.0, n + 1)
    found.backward(incoming)
    expected.backward(incoming)
    # The gradients of the last three rows stand on eps alone.
    assert leaf.grad[:5].isnan().numpy().tolist() == other.grad[:5].isnan().numpy().tolist()
    np.testing.assert_allclose(leaf.grad[5:], other.grad[5:], rtol=1e-3, atol=1e-2)
    assert not leaf.grad[7].isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_negative_eps_makes_nan_of_quiet_rows_alone(name, backend):
    x = np.array([[0.1, -0.1, 0.2], [5.0, -5.0, 1.0]])
    found = CALLS[name][0](x, 3, eps=-1.0, backend=backend)
    assert np.isnan(found[0]).all() and np.isfinite(found[1]).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_gives_zero_gradients(name, backend):
    x = torch.empty(0, 4, requires_grad=True)
    weight = torch.ones(4, requires_grad=True)
    y = CALLS[name][0](x, 4, weight, backend=backend)
    assert y.shape == (0, 4)
    y.sum().backward()
    assert x.grad.shape == (0, 4) and weight.grad.tolist() == [0, 0, 0, 0]


# ----- the same bits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("n", [3, 16, 40, 64])
def test_the_same_bits_in_any_parts(n, centred, dtype):
    """Rows and parts of rows one by one, or all at once."""
    rng = np.random.default_rng(0)
    rows, part = 45, 10
    x, grad = (rng.standard_normal(rows * n).astype(dtype) for _ in range(2))
    weight, bias = (rng.standard_normal(n).astype(dtype) for _ in range(2))

    def at(*arrays):
        return [array.ctypes.data for array in arrays]

    def run(step):
        out, back = np.full_like(x, nan), np.full_like(x, nan)
        means, scales = (np.zeros(rows, dtype) for _ in range(2))
        for first in range(0, rows, step):
            last = min(first + step, rows)
            given = (x, *at(x, weight, bias, out, means, scales), n, 1e-5, centred, True, True, True)
            rows_cpu.normalise_rows(first, last, *given)
        sums = [np.full(5 * n, nan, dtype) for _ in range(2)]
        for first in range(0, 5, step):
            given = (x, *at(grad, x, weight, means, scales, back, *sums))
            options = (rows, n, part, centred, True, True, True, True)
            rows_cpu.gradients_of_parts(first, min(first + step, 5), *given, *options)
        totals = [np.full(n, nan, dtype) for _ in range(2)]
        for first in range(0, n, 16 * step):
            rows_cpu.sum_parts(first, min(first + 16 * step, n), x, *at(*sums, *totals), n, 5, True, True)
        return out, means, scales, back, *sums, *totals

    for a, b in zip(run(1), run(100), strict=True):
        assert not np.isnan(a).any()
        np.testing.assert_array_equal(a, b)


def test_parts_follow_from_the_rows_alone():
    assert [numba_cpu._part(rows) for rows in (1, 32, 33, 2048, 2049, 6400)] == [32, 32, 32, 32, 33, 100]
    for rows in (1, 31, 2048, 2049, 5000, 123457):
        assert 1 <= -(-rows // numba_cpu._part(rows)) <= numba_cpu.MOST_PARTS


# ----- errors ------------------------------------------------------------------------------------------------------

X = np.zeros((4, 3, 5))
W = np.ones(5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "arguments, error, text",
    [
        ({"x": X.astype(int)}, TypeError, "x must have dtype float16 or .*, got int64"),
        ({"normalized_shape": ()}, ValueError, r"normalized_shape must name at least one dimension, got \(\)"),
        (
            {"normalized_shape": (3, 4)},
            ValueError,
            r"normalized_shape must be the last dimensions of x \(4, 3, 5\), got \(3, 4\)",
        ),
        ({"normalized_shape": (4, 3)}, ValueError, "normalized_shape must be the last dimensions of x"),
        ({"normalized_shape": (1, 4, 3, 5)}, ValueError, "normalized_shape must be the last dimensions of x"),
        ({"normalized_shape": (-5,)}, ValueError, "normalized_shape must be at least 0, got -5"),
        ({"normalized_shape": 5.0}, TypeError, r"normalized_shape must be an int, got 5.0 \(float\)"),
        ({"normalized_shape": True}, TypeError, "normalized_shape must be an int, got True"),
        ({"normalized_shape": None}, TypeError, "normalized_shape must be an int, got None"),
        ({"weight": np.ones(3)}, ValueError, r"weight must have shape \(5,\) \(normalized_shape\), got \(3,\)"),
        ({"weight": np.ones((1, 5))}, ValueError, r"weight must have shape \(5,\)"),
        ({"weight": W.astype("f4")}, TypeError, r"weight must have the dtype of x \(float64\), got float32"),
        ({"eps": nan}, ValueError, "eps must be finite, got nan"),
        ({"eps": inf}, ValueError, "eps must be finite, got inf"),
        ({"eps": "small"}, TypeError, "eps must be a number, got 'small'"),
        ({"eps": True}, TypeError, "eps must be a number, got True"),
    ],
)
def test_wrong_arguments(arguments, error, text, name):
    with pytest.raises(error, match=f"^{name}: {text}"):
        CALLS[name][0](**({"x": X, "normalized_shape": (5,), "weight": W} | arguments))


def test_wrong_biases():
    with pytest.raises(ValueError, match=r"^layer_norm: bias must have shape \(5,\) \(normalized_shape\), got \(4,\)$"):
        kernels.layer_norm(X, 5, W, np.ones(4))
    with pytest.raises(TypeError, match=r"^layer_norm: bias must have the dtype of x \(float64\), got float32$"):
        kernels.layer_norm(X, 5, W, np.ones(5, "f4"))
    with pytest.raises(TypeError, match="^layer_norm: eps must be a number, got None"):
        kernels.layer_norm(X, 5, eps=None)
    with pytest.raises(ValueError, match=r"^layer_norm: normalized_shape must be the last dimensions of x \(\), got"):
        kernels.layer_norm(np.zeros(()), 1)


# ----- torch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["", "weight", "bias", "weight bias"])
@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives(name, given):
    if name == "rms_norm" and "bias" in given:
        return
    names = given.split()
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(3, 5), *[(5,)] * len(names)]]

    def function(x, *rest):
        return CALLS[name][0](x, 5, **dict(zip(names, rest)))

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("name", NAMES)
def test_under_compile(name):
    x = torch.randn(4, 6, requires_grad=True)
    weight = torch.randn(6, requires_grad=True)
    mine, theirs = CALLS[name]
    compiled = torch.compile(lambda a, b: mine(a, a.shape[-1:], b), fullgraph=True, backend="aot_eager", dynamic=True)
    found, expected = compiled(x, weight), theirs(x, (6,), weight)
    torch.testing.assert_close(found, expected)
    pairs = zip(*(torch.autograd.grad(y.square().sum(), (x, weight)) for y in (found, expected)))
    for gradient, exact in pairs:
        torch.testing.assert_close(gradient, exact)

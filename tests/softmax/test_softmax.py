"""softmax and log_softmax: limits, dimensions, the dtype argument, both forms of every kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import kernels
from kernels.simd import VECTOR_BYTES
from kernels.softmax import rows, softmax_cpu
from tests.support import budget

BACKENDS = ["numba", "torch", "reference"]
NAMES = ["softmax", "log_softmax"]
CALLS = {"softmax": (kernels.softmax, torch.softmax), "log_softmax": (kernels.log_softmax, torch.log_softmax)}
inf, nan = np.inf, np.nan


def special_rows(n, dtype):
    """Rows of n numbers with everything in them that is not ordinary."""
    x = np.random.default_rng(0).standard_normal((12, n)).astype(dtype)
    x[0] = -inf
    x[1, 0] = inf
    x[2, -1] = nan
    x[3, : n // 2] = -inf
    x[4] = nan
    x[5] = inf
    x[6] *= 1e4
    x[7] += 1e4
    x[8] = -1e4
    x[9, :-1] = -inf
    x[10, 0], x[10, 1:] = nan, -inf
    x[11, : n - 1] = -200
    return x


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [2, 10, 16, 17, 65, 130])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_special_rows_as_torch(name, dim, size, dtype, backend):
    mine, theirs = CALLS[name]
    x = special_rows(size, dtype)
    x = x.T.copy() if dim == 0 else x
    found = mine(x, dim, backend=backend)
    expected = theirs(torch.from_numpy(x), dim).numpy()
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    exact = theirs(torch.from_numpy(x).double(), dim).numpy()
    ordinary = ~np.isnan(expected)
    np.testing.assert_allclose(found[ordinary], exact[ordinary], rtol=2e-6 if dtype == "float32" else 1e-14, atol=1e-38)


def test_special_rows_longer_than_a_chunk():
    n = 2 * rows.CHUNK + 5
    x = special_rows(n, "float32")
    x[1, 0], x[1, -1] = 0, inf
    x[2, -1], x[2, 0] = 0, nan
    x[3, : rows.CHUNK + 9] = -inf
    x[10] = -inf
    x[10, rows.CHUNK] = nan
    target = np.full(len(x), n - 1)
    found = kernels.cross_entropy(x, target, reduction="none", backend="numba")
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(x), torch.from_numpy(target), reduction="none")
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 5), (3, 16), (2, 17), (2, 64), (2, 75), (2, 4 * 16 + 3), (3, 9, 7), (2, 5, 40)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_error_budget_forward_and_backward(name, dtype, shape):
    theirs = CALLS[name][1]
    rng = np.random.default_rng(0)
    for dim in range(len(shape)):
        for scale in (1.0, 30.0):
            x = (rng.standard_normal(shape) * scale).astype(dtype)
            incoming = rng.standard_normal(shape).astype(dtype)
            leaf = torch.from_numpy(x).requires_grad_()
            y = theirs(leaf, dim)
            y.backward(torch.from_numpy(incoming))
            exact, exact_gradient = exactly(name, x, incoming, dim)
            found, pullback = kernels.vjp(name, x, dim, backend="numba")
            assert budget.complaint(found, exact, y.detach().numpy()) is None
            assert budget.complaint(pullback(incoming)[0], exact_gradient, leaf.grad.numpy()) is None


def exactly(name, x, incoming, dim):
    """Output and gradient, computed in long double: in float64 torch's own numbers are no yardstick for ours."""
    x, incoming = x.astype(np.longdouble), incoming.astype(np.longdouble)
    log_p = x - x.max(dim, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(dim, keepdims=True))
    p = np.exp(log_p)
    if name == "softmax":
        return p.astype(np.float64), (p * (incoming - (incoming * p).sum(dim, keepdims=True))).astype(np.float64)
    return log_p.astype(np.float64), (incoming - p * incoming.sum(dim, keepdims=True)).astype(np.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_large_offsets_lose_nothing(name, backend):
    """log_softmax of logits around 1e4: subtracting one rounded log-sum-exp would cost four digits (torch#11752)."""
    mine, theirs = CALLS[name]
    x = (np.random.default_rng(0).standard_normal((5, 37)) + 1e4).astype(np.float32)
    exact = theirs(torch.from_numpy(x).double(), -1).numpy()
    np.testing.assert_allclose(mine(x, backend=backend), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "shape, dim", [((), 0), ((), -1), ((4, 1, 3), 1), ((1,), 0), ((4, 0), 1), ((0, 4), 1), ((0, 4), 0), ((2, 0, 3), 1)]
)
def test_sizes_0_and_1_and_no_dimension(shape, dim, name, backend):
    mine, theirs = CALLS[name]
    x = torch.randn(shape, requires_grad=True)
    found = mine(x, dim, backend=backend)
    torch.testing.assert_close(found, theirs(x, dim))
    found.sum().backward()
    assert x.grad.shape == x.shape and not x.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_result_is_contiguous_as_torch(name):
    mine, theirs = CALLS[name]
    x = torch.randn(2, 5, 3, 4).to(memory_format=torch.channels_last)
    for dim in range(4):
        found = mine(x, dim)
        assert found.stride() == theirs(x, dim).stride()
        torch.testing.assert_close(found, theirs(x, dim))


# ----- dtype -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, np.float64, np.dtype("float64"), "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_dtype_converts_first(name, dtype):
    mine, theirs = CALLS[name]
    x = torch.randn(3, 7, requires_grad=True)
    found = mine(x, -1, dtype)
    expected = theirs(x, -1, dtype=torch.float64)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected)
    incoming = torch.randn(3, 7, dtype=torch.float64)
    (grad,) = torch.autograd.grad(found, x, incoming)
    (wanted,) = torch.autograd.grad(expected, x, incoming)
    assert grad.dtype == torch.float32
    torch.testing.assert_close(grad, wanted)
    assert mine(x.detach().numpy(), dtype=dtype).dtype == np.float64


@pytest.mark.parametrize("name", NAMES)
def test_integers_only_with_dtype(name):
    mine, theirs = CALLS[name]
    x = torch.arange(6).reshape(2, 3)
    with pytest.raises(TypeError, match=f"^{name}: x must be floating-point unless dtype is given, got int64$"):
        mine(x)
    torch.testing.assert_close(mine(x, dtype=torch.float32), theirs(x, -1, dtype=torch.float32))
    np.testing.assert_allclose(mine(x.numpy(), dtype="float32"), theirs(x, -1, dtype=torch.float32).numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_arguments(name):
    mine = CALLS[name][0]
    x = np.ones((2, 3))
    with pytest.raises(IndexError, match=rf"^{name}: dim must lie in \[-2, 1\] for 2 dimensions, got 2$"):
        mine(x, 2)
    with pytest.raises(IndexError, match=rf"^{name}: dim must lie in \[-1, 0\] for 0 dimensions, got 1$"):
        mine(np.array(1.0), 1)
    with pytest.raises(TypeError, match=f"^{name}: dim must be an int, got None"):
        mine(x, None)
    with pytest.raises(ValueError, match=f"^{name}: dtype must be None or one of float16, .*, got 'int64'$"):
        mine(x, dtype="int64")
    with pytest.raises(ValueError, match=f"^{name}: dtype must be a dtype that numpy has, got 'bfloat16'$"):
        mine(x, dtype="bfloat16")


# ----- kernels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_log", [False, True])
def test_same_bits_in_any_parts(is_log):
    x = np.random.default_rng(0).standard_normal(11 * 37).astype(np.float32)
    for kernel, total, sizes in (
        (softmax_cpu.softmax_rows, 11, (37,)),
        (softmax_cpu.softmax_columns, -(-37 * 4 // VECTOR_BYTES), (11, 37)),
    ):
        whole, parts = np.full_like(x, nan), np.full_like(x, nan)
        kernel(0, total, x, x.ctypes.data, whole.ctypes.data, *sizes, is_log)
        for first in range(total):
            kernel(first, first + 1, x, x.ctypes.data, parts.ctypes.data, *sizes, is_log)
        assert not np.isnan(whole).any()
        np.testing.assert_array_equal(whole, parts)


def test_describe_names_the_form(capsys):
    x = np.ones((2, 3, 4))
    assert "lanes along dim" in str(kernels.explain("softmax", x))
    assert "lanes across the inner dimensions" in str(kernels.explain("softmax", x, 1))


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives(name):
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    mine = CALLS[name][0]
    assert torch.autograd.gradcheck(lambda t: mine(t, 0), x)
    assert torch.autograd.gradgradcheck(lambda t: mine(t, 0), x)


@pytest.mark.parametrize("name", NAMES)
def test_under_compile(name):
    mine, theirs = CALLS[name]
    x = torch.randn(3, 5, requires_grad=True)
    compiled = torch.compile(lambda t: mine(t, 0, torch.float64), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), theirs(x, 0, dtype=torch.float64))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_rows_have_the_same_bits_in_every_company(name, dtype):
    """Short rows are transposed in blocks, medium ones run four together, columns four vectors together."""
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    rng = np.random.default_rng(0)
    mine = CALLS[name][0]
    for n in (1, 2, lanes, lanes + 1, 2 * lanes, 2 * lanes + 1, rows.MEDIUM * lanes, rows.MEDIUM * lanes + 1):
        x = rng.standard_normal((2 * lanes + 7, n)).astype(dtype)
        whole = mine(x, backend="numba")
        for first, last in ((0, 1), (1, 5), (2, lanes + 3), (lanes + 1, 2 * lanes + 7)):
            np.testing.assert_array_equal(mine(x[first:last], backend="numba"), whole[first:last])
        across = mine(x.T, 0, backend="numba")
        np.testing.assert_allclose(across.T, whole, rtol=1e-5 if dtype == "float32" else 1e-13, atol=1e-37)
        for first, last in ((0, 2), (1, lanes + 2), (3, 2 * lanes + 7)):
            np.testing.assert_array_equal(mine(x.T[:, first:last], 0, backend="numba"), across[:, first:last])
    wide = rng.standard_normal((3, 5, 6 * lanes + 3)).astype(dtype)
    found = mine(wide, 1, backend="numba")
    assert budget.complaint(found, CALLS[name][1](torch.from_numpy(wide).double(), 1).numpy()) is None
    for i in (0, 2 * lanes + 1, 4 * lanes - 1, 6 * lanes + 1):
        np.testing.assert_array_equal(mine(wide[:, :, i : i + 2], 1, backend="numba"), found[..., i : i + 2])

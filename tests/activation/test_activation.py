"""relu, gelu, silu, sigmoid and tanh: limits, layouts, and the vector functions that other kernels apply."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels.activation import functions
from kernels.activation.numba_cpu import activate_range, grad_preactivation, gradient_range
from kernels.activation.vectors import ACTIVATION_CODES, activate, activation_gradient
from kernels.arrays import ArraySpec
from kernels.runtime.numba_cpu import jit
from kernels.simd import lanes_of, load_first, pointer, store_first
from tests.support import budget, layouts

BACKENDS = ["numba", "torch", "reference"]
CALLS = {
    "relu": (kernels.relu, torch.relu, {}),
    "silu": (kernels.silu, F.silu, {}),
    "sigmoid": (kernels.sigmoid, torch.sigmoid, {}),
    "tanh": (kernels.tanh, torch.tanh, {}),
    "gelu": (kernels.gelu, F.gelu, {}),
    "gelu_tanh": (kernels.gelu, F.gelu, {"approximate": "tanh"}),
}
NAMES = list(CALLS)
LIMITS = [np.inf, -np.inf, np.nan, 0.0, -0.0, 1e4, -1e4, 1e-40, -1e-40, 88.0, -88.0, -104.0]


def ours(name, x, backend="numba"):
    function, _, arguments = CALLS[name]
    return function(x, backend=backend, **arguments)


def exactly(name, x, incoming):
    """Output and gradient in float64 by torch."""
    _, function, arguments = CALLS[name]
    leaf = torch.from_numpy(np.asarray(x, np.float64)).requires_grad_()
    y = function(leaf, **arguments)
    y.backward(torch.from_numpy(np.asarray(incoming, np.float64)))
    return y.detach().numpy(), leaf.grad.numpy()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_limits_are_those_of_the_equation(name, dtype, backend):
    x = np.array(LIMITS, dtype)
    with np.errstate(all="ignore"):
        expected = functions.apply(name, x.astype(np.float64)).astype(dtype)
    found = ours(name, x, backend)
    if name in ("gelu", "gelu_tanh") and backend == "torch":
        found, expected = found[1:], expected[1:]  # torch's vectorised gelu makes NaN of inf
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_allclose(found, expected, rtol=3e-6, atol=1e-38)


@pytest.mark.parametrize("name", NAMES)
def test_nan_and_infinity_where_torch_has_them(name):
    x = np.array(LIMITS, np.float32)
    incoming = np.ones_like(x)
    _, theirs = CALLS[name][:2]
    leaf = torch.from_numpy(x).requires_grad_()
    y = theirs(leaf, **CALLS[name][2])
    y.backward(torch.from_numpy(incoming))
    mine = torch.from_numpy(x).requires_grad_()
    z = ours(name, mine)
    z.backward(torch.from_numpy(incoming))
    start = 1 if name.startswith("gelu") else 0  # see above
    torch.testing.assert_close(z[start:], y[start:], equal_nan=True)
    torch.testing.assert_close(mine.grad, leaf.grad, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_relu_keeps_nan_and_passes_gradients_as_torch(backend):
    x = np.array([np.nan, -1, 0, 1, -np.inf, np.inf] * 5, np.float32)
    y, pullback = kernels.vjp("relu", x, backend=backend)
    np.testing.assert_array_equal(y, [np.nan, 0, 0, 1, 0, np.inf] * 5)
    (grad,) = pullback(np.full(x.shape, np.inf, np.float32))
    # Where the output is 0 an infinite gradient gives 0, not 0 * inf.
    np.testing.assert_array_equal(grad, [np.inf, 0, 0, np.inf, 0, np.inf] * 5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_error_budget_over_the_whole_range(name, dtype):
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1.0, 10.0, 200.0):
        x = (rng.standard_normal(5003) * scale).astype(dtype)
        incoming = rng.standard_normal(x.shape).astype(dtype)
        # In long double, because in float64 torch's own numbers are no yardstick for ours.
        long = x.astype(np.longdouble)
        exact = functions.apply(name, long)
        known = exact if name in functions.FROM_OUTPUT else long
        exact_gradient = functions.backward(name, incoming.astype(np.longdouble), known).astype(np.float64)
        exact = exact.astype(np.float64)
        leaf = torch.from_numpy(x).requires_grad_()
        theirs = CALLS[name][1](leaf, **CALLS[name][2])
        theirs.backward(torch.from_numpy(incoming))
        op = "gelu" if name == "gelu_tanh" else name
        found, pullback = kernels.vjp(op, x, **CALLS[name][2], backend="numba")
        assert budget.complaint(found, exact, theirs.detach().numpy()) is None
        assert budget.complaint(pullback(incoming)[0], exact_gradient, leaf.grad.numpy()) is None


LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.permute(3, 1, 0, 2),
    "channels-last": lambda t: t.to(memory_format=torch.channels_last),
    "size 1": lambda t: t[:, :1].permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_dense_layouts_are_kept_as_torch_keeps_them(name, layout, backend):
    x = LAYOUTS[layout](torch.randn(2, 3, 4, 5))
    expected = CALLS[name][1](x, **CALLS[name][2])
    found = ours(name, x, backend)
    assert found.stride() == expected.stride() or layout == "size 1"
    torch.testing.assert_close(found, expected)
    leaf = x.clone().requires_grad_()
    ours(name, leaf, backend).sum().backward()
    assert leaf.grad.stride() == leaf.stride() or layout == "size 1"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("view", [lambda t: t[:, ::2], lambda t: t[:1].expand(6, 8), lambda t: t[1:, 1:]])
def test_others_come_back_contiguous(view, backend):
    x = view(torch.randn(6, 8))
    found = kernels.tanh(x, backend=backend)
    assert found.is_contiguous()
    torch.testing.assert_close(found, torch.tanh(x))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (15,), (16,), (17,), (257,)])
@pytest.mark.parametrize("name", NAMES)
def test_every_length_of_the_last_vector(name, shape):
    x = np.random.default_rng(0).standard_normal(shape)
    incoming = np.random.default_rng(1).standard_normal(shape)
    exact, exact_gradient = exactly(name, x, incoming)
    op = "gelu" if name == "gelu_tanh" else name
    found, pullback = kernels.vjp(op, np.asarray(x), **CALLS[name][2], backend="numba")
    assert found.shape == shape
    np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(pullback(np.asarray(incoming))[0], exact_gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_same_bits_in_any_parts(name):
    """A split at any multiple of the alignment makes no difference: what `threaded` relies on."""
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    code = ACTIVATION_CODES[name]
    whole, parts = np.empty_like(x), np.empty_like(x)
    at, at_whole, at_parts = (a.ctypes.data for a in (x, whole, parts))
    activate_range(0, 1000, code, x, at, at_whole)
    for first in range(0, 1000, 48):
        activate_range(first, min(first + 48, 1000), code, x, at, at_parts)
    np.testing.assert_array_equal(whole, parts)
    gradient_range(0, 1000, code, x, at, at, at_whole)
    for first in range(0, 1000, 48):
        gradient_range(first, min(first + 48, 1000), code, x, at, at, at_parts)
    np.testing.assert_array_equal(whole, parts)


# ----- for other families ------------------------------------------------------------------------------------------


@jit
def _apply_code(code, x, out):
    p, q = pointer(x), pointer(out)
    for i in range(0, x.size, lanes_of(p)):
        store_first(q, i, activate(code, load_first(p, i, x.size - i)), x.size - i)


@jit
def _apply_literals(x, out):
    p, q, n = pointer(x), pointer(out), x.size
    for i in range(0, n, lanes_of(p)):
        v, rest = load_first(p, i, n - i), n - i
        store_first(q, i, activate(0, v), rest)
        store_first(q, n + i, activate(1, v), rest)
        store_first(q, 2 * n + i, activate(2, v), rest)
        store_first(q, 3 * n + i, activate(3, v), rest)
        store_first(q, 4 * n + i, activate(4, v), rest)
        store_first(q, 5 * n + i, activate(5, v), rest)
        store_first(q, 6 * n + i, activate(6, v), rest)
        store_first(q, 7 * n + i, activation_gradient(2, v, v), rest)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_literal_code_and_a_runtime_code_do_the_same(dtype):
    x = np.random.default_rng(0).standard_normal(77).astype(dtype)
    literal = np.empty((8, 77), dtype)
    _apply_literals(x, literal)
    for name, code in ACTIVATION_CODES.items():
        found = np.empty_like(x)
        _apply_code(code, x, found)
        np.testing.assert_array_equal(found, literal[code])
        np.testing.assert_allclose(found, functions.apply(name, x), rtol=1e-5, atol=1e-6)
    gradient = np.empty_like(x)
    gradient_range(0, 77, ACTIVATION_CODES["gelu"], x, x.ctypes.data, x.ctypes.data, gradient.ctypes.data)
    np.testing.assert_array_equal(gradient, literal[7])


def test_an_unknown_code_acts_as_none():
    x = np.arange(20.0)
    found = np.empty_like(x)
    _apply_code(99, x, found)
    np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "channels_last", "sliced", "negative", "read_only"])
@pytest.mark.parametrize("name", NAMES)
def test_grad_preactivation(name, layout):
    rng = np.random.default_rng(0)
    relay = layouts.LAYOUTS.get(layout, layouts.contiguous)
    grad, x = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((2, 3, 4, 5))
    known = functions.apply(name, x) if name in functions.FROM_OUTPUT else x
    expected = functions.backward(name, grad, known)
    found = grad_preactivation(name, relay(grad), relay(known))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    mixed = grad_preactivation(name, relay(grad), known)
    np.testing.assert_allclose(mixed, expected, rtol=1e-12, atol=1e-13)
    assert found.flags.c_contiguous or layout in ("transposed", "channels_last")


# ----- arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["relu", "silu", "sigmoid", "tanh", "gelu"])
def test_integers_are_refused(name):
    with pytest.raises(TypeError, match=f"^{name}: x must have dtype float16 or .*, got int64$"):
        getattr(kernels, name)(np.arange(3))


def test_gelu_form_must_be_known():
    with pytest.raises(ValueError, match="^gelu: approximate must be one of 'none', 'tanh', got 'exact'$"):
        kernels.gelu(np.ones(3), approximate="exact")


@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_under_compile(name):
    function = getattr(kernels, name)
    x = torch.randn(3, 4, 5).permute(2, 0, 1).requires_grad_()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    y = compiled(x)
    torch.testing.assert_close(y, function(x))
    assert y.stride() == x.stride()
    (grad,) = torch.autograd.grad(y.sum(), x)
    (expected,) = torch.autograd.grad(function(x).sum(), x)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize(
    "shape, strides, dense",
    [
        ((2, 3), (3, 1), True),
        ((2, 3), (1, 2), True),
        ((2, 3), (4, 1), False),
        ((2, 3), (0, 1), False),
        ((2, 3), (-3, 1), False),
        ((2, 1, 3), (1, 77, 2), True),
        ((2, 3, 4, 5), (60, 1, 15, 3), True),
        ((2, 2), (1, 1), False),
    ],
)
def test_which_strides_are_dense(shape, strides, dense):
    given = ArraySpec(shape, "float32", "cpu", strides)
    assert given.dense is dense
    assert given.alike().strides == (strides if dense else None)

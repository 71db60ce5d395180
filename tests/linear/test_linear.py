"""linear against torch and the reference: values, gradients, layouts, thread counts, errors; every kind of kernel."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels.activation.functions import FUSED
from kernels.linear import numba_cpu
from kernels.linear.op import LINEAR
from kernels.runtime import threads as thread_policy

DTYPES = ("float32", "float64")


def numbers(shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def budget(exact, stock, dtype):
    """Twice the error of torch's own op, and a few roundings of the largest value."""
    error = np.abs(stock - exact).max(initial=0)
    return 2 * error + 4 * np.finfo(dtype).eps * np.abs(exact).max(initial=0)


def oracle(inputs, activation):
    """Value and pullback in float64; without an activation in a longer type, so that float64 has an oracle too."""
    if activation is not None:
        return kernels.vjp("linear", *inputs, activation=activation, backend="reference")
    x, weight, bias = (a.astype(np.longdouble) for a in inputs)

    def pullback(dy):
        dy = dy.astype(np.longdouble)
        rows = dy.reshape(-1, bias.size if weight.ndim == 2 and bias.ndim else weight.size // x.shape[-1])
        dw = rows.T @ x.reshape(-1, x.shape[-1])
        dx = rows @ weight.reshape(-1, x.shape[-1])
        return dx.reshape(x.shape), dw.reshape(weight.shape), rows.sum(0) if bias.ndim else rows.sum()

    return x @ weight.T + bias, pullback


def check(x, weight, bias, activation=None):
    """Value and gradients within the budget, in both dtypes."""
    for dtype in DTYPES:
        given = [None if a is None else a.astype(dtype) for a in (x, weight, bias)]
        wide = [None if a is None else a.astype(np.float64) for a in given]
        result, pullback = kernels.vjp("linear", *given, activation=activation, backend="numba")
        exact, exact_pullback = oracle(wide, activation)
        stock, stock_pullback = kernels.vjp("linear", *given, activation=activation, backend="torch")
        assert result.dtype == dtype and result.shape == stock.shape and result.flags.c_contiguous
        assert np.abs(result - exact).max(initial=0) <= budget(exact, stock, dtype)
        cotangent = numbers(result.shape, dtype, 5)
        if activation == "relu":  # A sum that rounds to the other side of zero has another gradient.
            cotangent = np.where(np.abs(exact) < 1e-4, 0, cotangent).astype(dtype)
        both = zip(pullback(cotangent), exact_pullback(cotangent.astype(np.float64)), stock_pullback(cotangent))
        for found, gradient, theirs in both:
            assert (found is None) == (gradient is None)
            if found is not None:
                assert found.dtype == dtype and found.shape == gradient.shape
                assert np.abs(found - gradient).max(initial=0) <= budget(gradient, theirs, dtype)


@pytest.mark.parametrize("activation", FUSED)
def test_activations(activation):
    check(numbers((37, 70)), numbers((45, 70), seed=1) / 8, numbers(45, seed=2), activation)
    check(numbers((3, 200)), numbers((45, 200), seed=1) / 8, numbers(45, seed=2), activation)


@pytest.mark.parametrize("leading", [(), (1,), (7,), (2, 3), (2, 1, 3, 2)])
def test_leading_dimensions(leading):
    check(numbers((*leading, 20)), numbers((9, 20), seed=1), numbers(9, seed=2))
    check(numbers((*leading, 20)), numbers(20, seed=1), np.full((), -1.5))
    check(numbers((*leading, 20)), numbers((9, 20), seed=1), np.full((), 0.5))


def test_sizes():
    for batch, inputs, outputs in itertools.product((1, 4, 8, 9, 13, 130), (1, 31, 300), (1, 8, 16, 17, 65, 150)):
        check(numbers((batch, inputs)), numbers((outputs, inputs), seed=1), numbers(outputs, seed=2))


def strided(array, form):
    """The same numbers in another layout."""
    if form == "transposed":
        return np.ascontiguousarray(array.T).T
    if form == "every other":
        wide = np.full((2 * array.shape[0], 3 * array.shape[1]), np.nan, array.dtype)
        wide[::2, ::3] = array
        return wide[::2, ::3]
    if form == "backwards":
        return np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1]
    if form == "read-only":
        array = array.copy()
        array.flags.writeable = False
    return array


FORMS = ("plain", "transposed", "every other", "backwards", "read-only")


@pytest.mark.parametrize("forms", list(itertools.product(FORMS, FORMS)))
@pytest.mark.parametrize("batch", [3, 21, 100])
def test_strides_change_nothing(batch, forms):
    x, weight = numbers((batch, 60), "float32"), numbers((70, 60), "float32", 1)
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    inputs = [strided(array, form) for array, form in zip((x, weight), forms)]
    before = [array.copy() for array in inputs]
    result, pullback = kernels.vjp("linear", *inputs)
    np.testing.assert_allclose(result, exact, atol=1e-4)
    dy = numbers(result.shape, "float32", 3)
    dx, dw, _ = pullback(dy)
    np.testing.assert_allclose(dx, dy.astype(np.float64) @ weight, atol=1e-4)
    np.testing.assert_allclose(dw, dy.T.astype(np.float64) @ x, atol=1e-4)
    for array, old in zip(inputs, before):
        np.testing.assert_array_equal(array, old)


def test_expanded_and_sliced_tensors():
    x = torch.randn(5, 1, 12).expand(5, 3, 12)
    weight = torch.randn(7, 30)[:, 10:22].requires_grad_()
    y = kernels.linear(x, weight)
    torch.testing.assert_close(y, F.linear(x, weight))
    y.sum().backward()  # An incoming gradient of stride 0.
    torch.testing.assert_close(x.sum((0, 1)).expand(7, 12), torch.autograd.grad(F.linear(x, weight).sum(), weight)[0])
    images = torch.randn(2, 6, 5, 4).to(memory_format=torch.channels_last)
    head = torch.randn(3, 4)
    torch.testing.assert_close(kernels.linear(images, head), F.linear(images, head))


def test_no_input_features_and_empties():
    bias = numbers(5, "float32")
    y, pullback = kernels.vjp("linear", np.zeros((4, 0), "f"), np.zeros((5, 0), "f"), bias, activation="tanh")
    np.testing.assert_allclose(y, np.broadcast_to(np.tanh(bias), (4, 5)), rtol=1e-6)
    dx, dw, db = pullback(np.ones_like(y))
    assert dx.shape == (4, 0) and dw.shape == (5, 0)
    np.testing.assert_allclose(db, 4 * (1 - np.tanh(bias) ** 2), rtol=1e-5)
    assert not kernels.linear(np.zeros((4, 0), "f"), np.zeros((5, 0), "f")).any()
    y, pullback = kernels.vjp("linear", np.zeros((0, 3), "f"), np.ones((5, 3), "f"), bias)
    assert y.shape == (0, 5)
    assert all(not gradient.any() for gradient in pullback(y))
    assert kernels.linear(np.zeros((2, 3), "f"), np.zeros((0, 3), "f")).shape == (2, 0)


@pytest.mark.parametrize("batch", [1, 30, 100])
def test_nan_and_infinity_go_where_torch_puts_them(batch):
    x, weight = torch.randn(batch, 40), torch.randn(50, 40)
    x[0, 3], x[-1, 5], weight[7, 3], weight[9, 11] = torch.nan, torch.inf, 0.0, -torch.inf
    for activation in (None, "relu", "sigmoid"):
        stock = F.linear(x, weight)
        stock = stock if activation is None else getattr(torch, activation)(stock)
        torch.testing.assert_close(kernels.linear(x, weight, activation=activation), stock, equal_nan=True)


@pytest.mark.parametrize("lazy", ["x", "weight", "bias"])
def test_lazy_negations_are_carried_out(lazy):
    """What lies in such a tensor's memory is not its values."""
    tensors = {"x": torch.randn(7, 20), "weight": torch.randn(9, 20), "bias": torch.randn(9)}
    tensors[lazy] = torch._neg_view(tensors[lazy])
    assert tensors[lazy].is_neg()
    found = kernels.linear(*tensors.values(), backend="numba")
    torch.testing.assert_close(found, F.linear(*tensors.values()))


def test_tensors_without_memory_are_refused_or_read():
    x, weight = torch.randn(7, 20), torch.randn(9, 20)
    assert torch.equal(kernels.linear(x, weight, backend="numba"), kernels.linear(x, weight, None, backend="numba"))
    with pytest.raises(NotImplementedError, match="linear: torch.func.vmap is not supported"):
        torch.vmap(lambda row: kernels.linear(row, weight, backend="numba"))(x)
    zeros = torch._efficientzerotensor((7, 20))
    torch.testing.assert_close(kernels.linear(zeros, weight, backend="numba"), torch.zeros(7, 9))


def test_tensors_and_arrays_give_the_same_bits():
    """The two ways into the kernel: by address, and by NumPy views."""
    for batch, activation in itertools.product((1, 5, 40), (None, "relu", "gelu")):
        x, weight, bias = torch.randn(batch, 70), torch.randn(33, 70), torch.randn(33)
        given = (x, weight, bias)
        found = kernels.linear(*given, activation=activation, backend="numba")
        views = kernels.linear(*(t.numpy() for t in given), activation=activation)
        recorded = kernels.linear(x, weight, bias.requires_grad_(), activation=activation, backend="numba")
        np.testing.assert_array_equal(found.numpy(), views)
        np.testing.assert_array_equal(recorded.detach().numpy(), views)


@pytest.mark.parametrize("activation", FUSED)
@pytest.mark.parametrize("batch", [2, 9])
def test_first_and_second_derivatives(activation, batch):
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((batch, 6), (5, 6), (5,))]

    def run(*tensors):
        return kernels.linear(*tensors, activation=activation, backend="numba")

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("wanted", list(itertools.product((False, True), repeat=3))[1:])
def test_only_wanted_gradients(wanted):
    inputs = [torch.randn(s, requires_grad=w) for s, w in zip(((20, 30), (40, 30), (40,)), wanted)]
    kernels.linear(*inputs, activation="silu").sum().backward()
    ours = [t.grad for t in inputs]
    for t in inputs:
        t.grad = None
    F.silu(F.linear(*inputs)).sum().backward()
    for found, t in zip(ours, inputs):
        assert (found is None) == (t.grad is None)
        if found is not None:
            torch.testing.assert_close(found, t.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(200, 300, 400), (5, 3000, 500), (2, 5000, 900), (900, 600, 30), (60, 9000, 20)])
def test_same_bits_for_any_threads(shape, monkeypatch):
    batch, inputs, outputs = shape
    x, weight, bias = numbers((batch, inputs), "f"), numbers((outputs, inputs), "f", 1), numbers(outputs, "f", 2)
    found = []
    for count in (1, 2, 3):
        monkeypatch.setattr(numba_cpu, "threads_for", lambda work, grain, count=count: count)
        y, pullback = kernels.vjp("linear", x, weight, bias, activation="gelu")
        found.append((y, *pullback(y)))
    for other in found[1:]:
        for first, second in zip(found[0], other):
            np.testing.assert_array_equal(first, second)
    assert thread_policy.thread_count() >= 1


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (((), (3, 4)), ValueError, r"linear: x must have shape \(\*, in_features\), got 0 dimensions \(\)"),
        (((2, 5), (3, 4)), ValueError, r"linear: weight must have 5 input features, .*, got \(3, 4\)"),
        (((2, 4), (3, 4, 1)), ValueError, r"linear: weight must have shape \(out_features, in_features\) or"),
        (((2, 4), (3, 4), (4,)), ValueError, r"linear: bias must have shape \(3,\) or \(\) .*, got \(4,\)"),
        (((2, 4), (4,), (1,)), ValueError, r"linear: bias must have shape \(\) .*, got \(1,\)"),
    ],
)
def test_errors(arguments, error, text):
    with pytest.raises(error, match=text):
        kernels.linear(*(np.zeros(shape, "f") for shape in arguments))


def test_errors_of_kind():
    x, weight = np.zeros((2, 4), "f"), np.zeros((3, 4), "f")
    with pytest.raises(ValueError, match="linear: activation must be one of None, 'relu'.*, got 'selu'"):
        kernels.linear(x, weight, activation="selu")
    with pytest.raises(TypeError, match=r"linear: weight must have the dtype of x \(float32\), got float64"):
        kernels.linear(x, weight.astype("d"))


def test_explain_says_the_tile(capsys):
    x = np.zeros((100, 50), "f")
    assert kernels.explain("linear", x, np.zeros((60, 50), "f")).chosen == "numba"
    assert "tile" in capsys.readouterr().out
    kernels.explain("linear", x[:1].repeat(2, 1), np.zeros((60, 100), "f"))
    assert "dot products" in capsys.readouterr().out
    assert LINEAR.implementations["numba"].backward is not None

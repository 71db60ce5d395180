"""Packed weights: the values of plain ones, what they are and are not, and what is refused."""

import copy
import gc
import itertools
import pickle
import platform
import threading
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

import kernels
from kernels.activation.functions import FUSED
from kernels.call import call
from kernels.linear import numba_cpu, op, packed_tensors
from tests.support import memory
from tests.support.calls import run_python
from tests.support.targets import TARGETS


def numbers(shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def check(x, weight, bias=None, activation=None):
    """The result is within twice torch's own error, and the same from NumPy and torch, by whatever backend."""
    packed = kernels.pack_linear(weight)
    found = kernels.linear(x, packed, bias, activation=activation)
    wide = [None if a is None else a.astype(np.longdouble) for a in (x, weight, bias)]
    exact = wide[0] @ wide[1].T + (0 if bias is None else wide[2])
    if activation is not None:
        exact = kernels.linear(*(None if a is None else a.astype(np.float64) for a in (x, weight, bias)),
                               activation=activation, backend="reference")  # fmt: skip
    tensors = [None if a is None else torch.from_numpy(np.array(a)) for a in (x, weight, bias)]
    stock = kernels.linear(*tensors, activation=activation, backend="torch").numpy()
    error = 2 * np.abs(stock - exact).max() + 4 * np.finfo(x.dtype).eps * np.abs(exact).max()
    assert found.dtype == x.dtype and found.shape == (*x.shape[:-1], weight.shape[0]) and found.flags.c_contiguous
    assert np.abs(found - exact).max() <= error
    from_tensors = kernels.linear(tensors[0], packed, tensors[2], activation=activation)
    np.testing.assert_array_equal(from_tensors.numpy(), found)
    others = (
        kernels.linear(x, packed, bias, activation=activation, backend="reference"),
        kernels.linear(tensors[0], packed, tensors[2], activation=activation, backend="torch").numpy(),
    )
    for other in others:
        assert np.abs(other - exact).max() <= 2 * error


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sizes(dtype):
    for batch, inputs, outputs in itertools.product((1, 2, 3, 7, 8, 9, 13, 130), (1, 31, 300), (1, 8, 16, 17, 65, 150)):
        check(numbers((batch, inputs), dtype), numbers((outputs, inputs), dtype, 1), numbers(outputs, dtype, 2))
    check(numbers((20, 2100), dtype), numbers((97, 2100), dtype, 1))
    check(numbers((20, 9001), dtype), numbers((19, 9001), dtype, 1), numbers(19, dtype, 2))


@pytest.mark.parametrize("activation", FUSED)
@pytest.mark.parametrize("leading", [(), (3,), (2, 3, 4)])
def test_activations_and_leading_dimensions(activation, leading):
    check(numbers((*leading, 70)), numbers((45, 70), seed=1) / 8, numbers(45, seed=2), activation)
    check(numbers((*leading, 70)), numbers((45, 70), seed=1) / 8, np.full((), 0.5, "f"), activation)


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_any_strides(batch):
    weight, x = numbers((33, 20)), numbers((batch, 20))
    expected = kernels.linear(x, kernels.pack_linear(weight))
    frozen = weight.copy()
    frozen.flags.writeable = False
    wide = np.full((66, 60), np.nan, "f")
    wide[::2, ::3] = weight
    forms = [np.asfortranarray(weight), wide[::2, ::3], weight[::-1, ::-1].copy()[::-1, ::-1], frozen]
    forms += [torch.from_numpy(weight), torch.from_numpy(weight.T.copy()).t()]
    forms += [torch._neg_view(torch.from_numpy(-weight))]
    for form in forms:
        np.testing.assert_array_equal(kernels.linear(x, kernels.pack_linear(form)), expected)
    packed = kernels.pack_linear(weight)
    turned = np.asfortranarray(x)
    np.testing.assert_allclose(kernels.linear(turned, packed), expected, rtol=1e-5, atol=1e-5)
    rows = torch.from_numpy(x[:1]).expand(5, 20)
    np.testing.assert_allclose(kernels.linear(rows, packed), np.repeat(expected[:1], 5, 0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 8, 30])
def test_nan_and_infinity_go_where_torch_puts_them(batch):
    x, weight = torch.randn(batch, 40), torch.randn(50, 40)
    x[0, 3], x[-1, 5], weight[7, 3], weight[9, 11] = torch.nan, torch.inf, 0.0, -torch.inf
    for activation in (None, "relu"):
        stock = F.linear(x, weight)
        stock = stock if activation is None else torch.relu(stock)
        found = kernels.linear(x, kernels.pack_linear(weight), activation=activation)
        torch.testing.assert_close(found, stock, equal_nan=True)


@pytest.mark.parametrize("shape", [(1, 1024, 600), (8, 700, 500), (64, 576, 64), (300, 2100, 200), (60, 9000, 20)])
def test_same_bits_for_any_threads(shape, monkeypatch):
    batch, inputs, outputs = shape
    x, weight, bias = numbers((batch, inputs)), numbers((outputs, inputs), seed=1), numbers(outputs, seed=2)
    found = []
    for count in (1, 2, 3):
        monkeypatch.setattr(numba_cpu, "threads_for", lambda work, grain, count=count: count)
        found.append(kernels.linear(x, kernels.pack_linear(weight), bias, activation="relu"))
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


def test_one_object_for_several_threads():
    packed, x = kernels.pack_linear(numbers((90, 200))), numbers((30, 200), seed=1)
    expected, wrong = kernels.linear(x, packed), []

    def work():
        wrong.extend(1 for _ in range(50) if not np.array_equal(kernels.linear(x, packed), expected))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_it_is_a_snapshot():
    layer = torch.nn.Linear(20, 9)
    x = torch.randn(4, 20)
    with torch.no_grad():
        packed = kernels.pack_linear(layer.weight)
        before = kernels.linear(x, packed, layer.bias)
        torch.testing.assert_close(before, layer(x))
        layer.weight.mul_(2)
        torch.testing.assert_close(kernels.linear(x, packed, layer.bias), before)
        again = kernels.linear(x, kernels.pack_linear(layer.weight), layer.bias)
        torch.testing.assert_close(again, layer(x))


def test_what_it_says_of_itself():
    packed = kernels.pack_linear(numbers((10, 64), "float64"))
    assert isinstance(packed, kernels.PackedLinear)
    assert (packed.shape, packed.out_features, packed.in_features, packed.dtype) == ((10, 64), 10, 64, "float64")
    assert packed.nbytes >= 10 * 64 * 8
    assert repr(packed) == f"PackedLinear(out_features=10, in_features=64, dtype=float64, {packed.nbytes} bytes)"


@pytest.mark.parametrize("shape", [(1, 1), (16, 5), (17, 5), (33, 40), (64, 7), (65, 7)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_unpacked_copied_and_pickled(shape, dtype):
    weight, x = numbers(shape, dtype), numbers((3, shape[1]), dtype, 1)
    packed = kernels.pack_linear(weight)
    np.testing.assert_array_equal(packed.unpack(), weight)
    for other in (copy.deepcopy(packed), copy.copy(packed), pickle.loads(pickle.dumps(packed))):
        np.testing.assert_array_equal(kernels.linear(x, other), kernels.linear(x, packed))
        packed.unpack()[...] = 0  # a copy
        np.testing.assert_array_equal(other.unpack(), weight)


def test_memory_goes_with_it():
    packed = kernels.pack_linear(numbers((500, 300)))
    kernels.linear(torch.zeros(3, 300), packed)  # A tensor of the same memory is kept too.
    there = weakref.ref(packed.panels(np.zeros(0)))
    del packed
    gc.collect()
    assert there() is None


def test_explain_and_other_inputs():
    packed = kernels.pack_linear(numbers((60, 50)))
    told = kernels.explain("linear", numbers((100, 50)), packed)
    assert told.chosen == "numba" and "of packed panels" in str(told)
    assert "few rows times packed panels" in str(kernels.explain("linear", numbers((2, 50)), packed))
    # So small that a plain weight would be left to torch.
    assert kernels.explain("linear", torch.zeros(1, 50), packed).chosen == "numba"
    assert kernels.linear(numbers((0, 50)), packed).shape == (0, 60)


def called(monkeypatch):
    """How often a call of linear takes the long way from here on, as a list that grows."""
    calls = []

    def spy(*arguments):
        calls.append(arguments)
        return call(*arguments)

    monkeypatch.setattr(op, "call", spy)
    return calls


def test_plain_tensors_go_the_short_way(monkeypatch):
    packed, calls = kernels.pack_linear(numbers((30, 20))), called(monkeypatch)
    for rows, bias, activation in itertools.product((1, 9), (None, torch.randn(30), torch.tensor(2.0)), (None, "silu")):
        x = torch.randn(rows, 20)
        found = kernels.linear(x, packed, bias, activation=activation)
        assert not calls
        expected = kernels.linear(x.numpy(), packed, None if bias is None else bias.numpy(), activation=activation)
        np.testing.assert_array_equal(found.numpy(), expected)
        calls.clear()
    kernels.linear(torch.nn.Parameter(torch.randn(3, 20), requires_grad=False), packed)
    with torch.no_grad():
        kernels.linear(torch.randn(3, 20, requires_grad=True), packed, torch.randn(30, requires_grad=True))
    assert not calls


def test_others_go_the_long_way(monkeypatch):
    weight = torch.randn(30, 20)
    packed, calls = kernels.pack_linear(weight), called(monkeypatch)
    x, bias = torch.randn(4, 20), torch.randn(30)
    expected = F.linear(x, weight, bias)
    given = {
        "strides": (x.t().contiguous().t(), bias), "negative x": (torch._neg_view(-x), bias),
        "negative bias": (x, torch._neg_view(-bias)), "bias apart": (x, torch.stack((bias, bias), 1)[:, 0]),
    }  # fmt: skip
    for count, (name, inputs) in enumerate(given.items(), 1):
        torch.testing.assert_close(kernels.linear(inputs[0], packed, inputs[1]), expected, msg=name)
        assert len(calls) == count, name
    for named in ({"backend": "numba"}, {"device": "cpu"}):
        calls.clear()
        torch.testing.assert_close(kernels.linear(x, packed, bias, **named), expected)
        assert len(calls) == 1
    calls.clear()
    with kernels.use_backend("torch"):
        torch.testing.assert_close(kernels.linear(x, packed, bias), expected)
    zeros = torch._efficientzerotensor((4, 20))
    torch.testing.assert_close(kernels.linear(zeros, packed, bias), bias.expand(4, 30))
    assert len(calls) == 2
    with pytest.raises(NotImplementedError, match="linear: torch.func.vmap is not supported"):
        torch.vmap(lambda row: kernels.linear(row, packed))(x)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="linear: forward-mode derivatives"):
        kernels.linear(forward_ad.make_dual(x, x), packed)
    with pytest.raises(ValueError, match="linear: activation must be one of None, 'relu'.*, got 'selu'"):
        kernels.linear(x, packed, activation="selu")
    with pytest.raises(ValueError, match=r"linear: activation must be one of .*, got \['relu'\]"):
        kernels.linear(x, packed, activation=["relu"])


def test_nothing_is_packed_inside_a_transform():
    weight, x = torch.randn(5, 4), torch.randn(2, 4)

    def run(weight):
        return kernels.linear(x, kernels.pack_linear(weight))

    for transformed in (lambda: torch.vmap(run)(weight[None]), lambda: torch.func.grad(lambda _: run(weight).sum())(x)):
        with pytest.raises(NotImplementedError, match="pack_linear: weight must be packed outside of .* inside of one"):
            transformed()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="pack_linear: weight must be .* a tangent"):
        run(forward_ad.make_dual(weight, weight))
    with pytest.raises(ValueError, match="pack_linear: weight must not require a gradient"):
        torch.func.grad(lambda w: run(w).sum())(weight)
    packed = kernels.pack_linear(weight)
    with pytest.raises(ValueError, match="linear: weight must be a plain one where .* .here that of x"):
        torch.func.grad(lambda a: kernels.linear(a, packed).sum())(x)
    assert torch.func.grad(lambda a: (a * kernels.linear(x, packed).sum()).sum())(x).shape == (2, 4)


def test_forms_of_calls_are_not_kept_without_end(monkeypatch):
    packed = kernels.pack_linear(numbers((5, 4)))
    monkeypatch.setattr(packed_tensors, "MAX_FORMS", 3)
    for rows in range(1, 9):
        assert kernels.linear(torch.ones(rows, 4), packed).shape == (rows, 5)
        assert 1 <= len(packed.runs) <= 3


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic):
    packed, bias = kernels.pack_linear(numbers((30, 20))), torch.randn(30)

    def function(x):
        return kernels.linear(x, packed, bias, activation="relu") + 1

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows in (3, 50):
        x = torch.randn(rows, 20)
        torch.testing.assert_close(compiled(x), function(x))


@pytest.mark.parametrize(
    ("weight", "error", "text"),
    [
        ([[1.0]], TypeError, "pack_linear: weight must be a NumPy array or a torch tensor, got list"),
        (np.zeros(4, "f"), ValueError, r"pack_linear: weight must have shape \(out_features, in_features\), got 1 dim"),
        (np.zeros((4, 3), "e"), TypeError, "pack_linear: weight must have dtype float32 or float64, got float16"),
        (np.zeros((4, 3), ">f4"), TypeError, "pack_linear: weight must be in native byte order, got >f4"),
        (np.zeros((0, 3), "f"), ValueError, r"pack_linear: weight must not have a dimension of size 0.*got \(0, 3\)"),
        (torch.zeros(4, 3, device="meta"), TypeError, "pack_linear: weight must have values to pack, got a fake"),
        (torch.nn.Linear(3, 4).weight, ValueError, r"must not require a gradient \(pack weight.detach\(\)\), got req"),
    ],
)
def test_what_cannot_be_packed(weight, error, text):
    with pytest.raises(error, match=text):
        kernels.pack_linear(weight)


def test_what_a_packed_weight_refuses():
    weight = numbers((9, 20))
    packed, x = kernels.pack_linear(weight), numbers((4, 20))
    with pytest.raises(ValueError, match=r"linear: weight must have 19 input features, .* of shape \(9, 20\)"):
        kernels.linear(x[:, 1:], packed)
    with pytest.raises(ValueError, match=r"linear: bias must have shape \(9,\) or \(\) .*, got \(8,\)"):
        kernels.linear(x, packed, np.zeros(8, "f"))
    with pytest.raises(TypeError, match=r"linear: weight must have the dtype of x \(float64\), got float32"):
        kernels.linear(x.astype("d"), packed)
    with pytest.raises(ValueError, match="linear: device must be 'cpu' for a packed weight, got 'cuda'"):
        kernels.linear(x, packed, device="cuda")
    with pytest.raises(kernels.BackendError, match="backend 'triton' cannot run .*packed"):
        kernels.linear(x, packed, backend="triton")
    with pytest.raises(TypeError, match="linear: x must be a NumPy, torch or CuPy array, got PackedLinear"):
        kernels.linear(packed, weight)


def test_no_gradient_goes_unnoticed():
    packed, x, bias = kernels.pack_linear(numbers((9, 20))), torch.randn(4, 20), torch.randn(9)
    for name, tensor in (("x", x), ("bias", bias)):
        tensor.requires_grad_()
        text = f"linear: weight must be a plain one where gradients are recorded .here that of {name}., got one packed"
        with pytest.raises(ValueError, match=text):
            kernels.linear(x, packed, bias)
        with pytest.raises(ValueError, match=text):
            torch.compile(lambda a, b: kernels.linear(a, packed, b), backend="eager")(x, bias)
        with torch.no_grad():
            assert not kernels.linear(x, packed, bias).requires_grad
        tensor.requires_grad_(False)
    with pytest.raises(ValueError, match="linear: weight must be a plain one"):
        kernels.vjp("linear", x.numpy(), packed)


@pytest.mark.parametrize("byte", [0xFF, 0x7E])
def test_poisoned_memory_changes_no_bit(byte):
    for batch, inputs, outputs in itertools.product((1, 3, 6, 20), (5, 300), (3, 40, 70)):
        x, weight = numbers((batch, inputs)), numbers((outputs, inputs), seed=1)
        expected = kernels.linear(x, kernels.pack_linear(weight))
        with memory.allocator(memory.poisoned(byte)):
            np.testing.assert_array_equal(kernels.linear(x, kernels.pack_linear(weight)), expected)


GUARDED = """
import faulthandler
import itertools
import numpy as np
import kernels
from tests.support import memory
faulthandler.enable()
for where, dtype in itertools.product(("end", "start"), ("f", "d")):
    for batch, inputs, outputs in itertools.product((1, 2, 3, 5, 12, 70), (1, 37, 1030), (1, 16, 35, 130)):
        rng = np.random.default_rng(0)
        x, w, b = (rng.standard_normal(s).astype(dtype) for s in ((batch, inputs), (outputs, inputs), (outputs,)))
        expected, plain = kernels.linear(x, kernels.pack_linear(w), b), kernels.linear(x, w, b)
        x, w, b = (memory.guarded_copy(a, where) for a in (x, w, b))
        with memory.allocator(memory.guarded_allocator(where)):
            assert (kernels.linear(x, kernels.pack_linear(w), b) == expected).all()
            assert (kernels.linear(x, w, b) == plain).all()
print("done")
"""


def test_nothing_is_touched_outside_the_arrays():
    finished = run_python(GUARDED)
    assert finished.stdout == "done\n", f"exit {finished.returncode}: {finished.stderr[-2000:]}"


SHORTER_VECTORS = """
import itertools
import numpy as np
import kernels
from kernels.simd import VECTOR_BYTES
for dtype, tolerance in (("f", 1e-4), ("d", 1e-12)):
    for batch, inputs, outputs in itertools.product((1, 2, 3, 5, 8, 40), (1, 300), (1, 8, 17, 70)):
        rng = np.random.default_rng(0)
        x, w, b = (rng.standard_normal(s).astype(dtype) for s in ((batch, inputs), (outputs, inputs), (outputs,)))
        packed = kernels.pack_linear(w)
        assert (packed.unpack() == w).all()
        found = kernels.linear(x, packed, b)
        np.testing.assert_allclose(found, x.astype("d") @ w.T.astype("d") + b, rtol=0, atol=tolerance)
print(VECTOR_BYTES)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="AVX2 and SSE are of x86-64 processors")
@pytest.mark.parametrize("vector_bytes", TARGETS)
def test_shorter_vectors(vector_bytes):
    """Fewer registers: other groups of panels, and none for more than four rows."""
    finished = run_python(SHORTER_VECTORS, **TARGETS[vector_bytes])
    assert finished.stdout == f"{vector_bytes}\n", finished.stderr[-2000:]

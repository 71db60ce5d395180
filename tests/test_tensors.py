"""torch: parameters, subclasses, fake and meta tensors, and what is no plain memory."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch

import kernels
from kernels import torch_library
from kernels.case import Case
from kernels.op import OPS
from tests.support import matrix
from tests.support.torch_calls import (
    CASES,
    OP_NAMES,
    SIMPLE,
    SIMPLE_BACKEND,
    assert_equal,
    registered_arguments,
)


@pytest.mark.parametrize("case, backend", SIMPLE_BACKEND)
def test_parameters_and_copies(case: Case, backend: str):
    tensors = matrix.as_tensors(case.build("float32"), case.op, requires_grad=True)
    names = matrix.differentiable_names(case.op, tensors)
    results = matrix.results_of(matrix.public(case.op)(**tensors, backend=backend))
    results[0].sum().backward()
    changed = dict(tensors)
    for n in names:
        changed[n] = copy.deepcopy(torch.nn.Parameter(tensors[n].detach()))
    again = matrix.results_of(matrix.public(case.op)(**changed, backend=backend))
    assert_equal(tuple(r.detach() for r in again), tuple(r.detach() for r in results))
    assert type(again[0]) is torch.Tensor
    again[0].sum().backward()
    for n in names:
        assert_equal(changed[n].grad, tensors[n].grad)


class Labelled(torch.Tensor):
    """A tensor that does nothing but remember its class."""


@pytest.mark.parametrize("case, backend", SIMPLE_BACKEND)
def test_a_subclass_of_tensor(case: Case, backend: str):
    tensors = matrix.as_tensors(case.build("float32"), case.op, requires_grad=True)
    expected = matrix.results_of(matrix.public(case.op)(**tensors, backend=backend))
    name = OPS[case.op].inputs[0]
    marked = tensors | {name: tensors[name].detach().as_subclass(Labelled).requires_grad_()}
    for _ in range(2):
        found = matrix.results_of(matrix.public(case.op)(**marked, backend=backend))
        for a, b in zip(expected, found, strict=True):
            # On every backend the same, whatever torch's own functions make of the class.
            assert type(b) is torch.Tensor
            np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())
    found[0].sum().backward()
    expected[0].sum().backward()
    np.testing.assert_array_equal(marked[name].grad.as_subclass(torch.Tensor).numpy(), tensors[name].grad.numpy())


class Held(torch.Tensor):
    """A tensor without memory of its own, which does torch's operations on one that it holds."""

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Held:
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)  # type: ignore[attr-defined]

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        out = function(*[a.held if isinstance(a, Held) else a for a in args], **(kwargs or {}))
        return Held(out) if isinstance(out, torch.Tensor) else out


def test_a_tensor_without_memory_of_its_own():
    x = torch.randn(3, 4)
    rule = r"must be a plain tensor on backend '{}' \(backend='torch' takes others\), got a Held, which has a"
    for backend in ("numba", "reference"):
        kernels.softmax(x, backend=backend)  # A call of the same form before makes no difference.
        with pytest.raises(TypeError, match=f"^softmax: x {rule.format(backend)} __torch_dispatch__$"):
            kernels.softmax(Held(x), backend=backend)
        with pytest.raises(TypeError, match=f"^linear: weight {rule.format(backend)} __torch_dispatch__$"):
            kernels.linear(x, Held(x), backend=backend)
    found = kernels.softmax(Held(x), backend="torch")
    np.testing.assert_array_equal(found.held.numpy(), torch.softmax(x, -1).numpy())


@pytest.mark.parametrize("case", CASES)
def test_fake_tensors(case: Case):
    """Shape, dtype and layout without computing, as torch's tools ask for."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    arguments = registered_arguments(case, matrix.as_tensors(case.build("float32")), True)
    call = torch_library._registered[case.op].call
    real = matrix.results_of(call(*arguments))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if torch.is_tensor(a) else a for a in arguments]
        found = matrix.results_of(call(*fakes))
    for a, b in zip(real, found, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
        if a.numel():
            strides = [[s for s, n in zip(t.stride(), t.shape) if n > 1] for t in (a, b)]
            assert strides[0] == strides[1]


@pytest.mark.parametrize("case", SIMPLE)
def test_the_public_function_on_fake_tensors(case: Case):
    """Fake tensors outside of torch.compile: the result's form, or an error in words; never a wrong number."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    tensors = matrix.as_tensors(case.build("float32"))
    real = matrix.results_of(matrix.public(case.op)(**tensors))
    with FakeTensorMode() as mode:
        fakes = {n: mode.from_tensor(a) if torch.is_tensor(a) else a for n, a in tensors.items()}
        found = matrix.results_of(matrix.public(case.op)(**fakes))
    for a, b in zip(real, found, strict=True):
        assert isinstance(b, FakeTensor)
        assert a.shape == b.shape and a.dtype == b.dtype


@pytest.mark.parametrize("case", SIMPLE)
def test_meta_tensors(case: Case):
    """Tensors without memory: the result's form, as of torch's own ops, or one clear line."""
    tensors = matrix.as_tensors(case.build("float32"))
    meta = {n: a.to("meta") if torch.is_tensor(a) else a for n, a in tensors.items()}
    real = matrix.results_of(matrix.public(case.op)(**tensors))
    found = matrix.results_of(matrix.public(case.op)(**meta))
    for a, b in zip(real, found, strict=True):
        assert b.is_meta and a.shape == b.shape and a.dtype == b.dtype


@pytest.mark.parametrize("layout", ["sparse", "quantized", "nested", "conjugate"])
@pytest.mark.parametrize("op", OP_NAMES)
def test_tensors_that_are_no_plain_memory(op: str, layout: str):
    """Refused in words, never read as if they were dense floats."""
    tensors = matrix.as_tensors(matrix.cases_of(op, "ci")[0].build("float32"))
    name = OPS[op].inputs[0]
    x = tensors[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        odd = {
            "sparse": lambda: x.to_sparse(),
            "quantized": lambda: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
            "nested": lambda: torch.nested.nested_tensor([x, x], layout=torch.jagged),
            "conjugate": lambda: torch.complex(x, x).conj(),
        }[layout]()
    with pytest.raises((TypeError, ValueError, RuntimeError, NotImplementedError)) as caught:
        matrix.public(op)(**(tensors | {name: odd}))
    assert "\n" not in str(caught.value).strip() or layout == "nested"

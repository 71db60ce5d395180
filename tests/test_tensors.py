"""torch: parameters, subclasses, fake and meta tensors, and what is no plain memory."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch

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
            np.testing.assert_array_equal(a.detach().numpy(), b.detach().as_subclass(torch.Tensor).numpy())
    found[0].sum().backward()
    expected[0].sum().backward()
    np.testing.assert_array_equal(marked[name].grad.as_subclass(torch.Tensor).numpy(), tensors[name].grad.numpy())


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

"""device= and the kinds of array that the public functions take."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels.case import Case
from kernels.op import OPS
from tests.support import matrix
from tests.support.calls import simple_case
from tests.support.matrix import OP_NAMES


@pytest.mark.parametrize("op", OP_NAMES)
def test_device_cpu_changes_nothing(op: str):
    arguments = simple_case(op).build()
    for kind in (arguments, matrix.as_tensors(arguments)):
        plain = matrix.results_of(matrix.public(op)(**kind))
        for a, b in zip(plain, matrix.results_of(matrix.public(op)(**kind, device="cpu"))):
            np.testing.assert_array_equal(matrix.to_numpy(a), matrix.to_numpy(b))
    found = matrix.results_of(matrix.public(op)(**matrix.as_tensors(arguments), device=torch.device("cpu")))
    assert torch.is_tensor(found[0])


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:x", "", 0, "cuda:-1", "mps"])
@pytest.mark.parametrize("op", OP_NAMES)
def test_unknown_devices(op: str, device: object):
    message = rf"^{op}: device must be 'cpu', 'cuda' or 'cuda:N', got {re.escape(repr(str(device)))}$"
    with pytest.raises(ValueError, match=message):
        matrix.public(op)(**simple_case(op).build(), device=device)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
@pytest.mark.parametrize("op", OP_NAMES)
def test_tensors_say_their_device_themselves(op: str, device: str):
    tensors = matrix.as_tensors(simple_case(op).build())
    message = rf"^{op}: device must agree with that of the arrays \(cpu\), got '{device}'$"
    with pytest.raises(ValueError, match=message):
        matrix.public(op)(**tensors, device=device)


def _with_two_arrays() -> list[Any]:
    found = []
    for op in OP_NAMES:
        case = next((c for c in matrix.cases_of(op) if len(matrix.array_names(c.build())) > 1), None)
        if case is not None:
            found.append(pytest.param(case, id=op))
    return found


@pytest.mark.parametrize("case", _with_two_arrays())
def test_kinds_do_not_mix(case: Case):
    arguments = case.build()
    first, second, *_ = matrix.array_names(arguments)
    tensors = matrix.as_tensors(arguments)
    message = f"^{case.op}: {second} must be a %s array, as {first} is, got a %s array$"
    with pytest.raises(TypeError, match=message % ("numpy", "torch")):
        matrix.public(case.op)(**(arguments | {second: tensors[second]}))
    with pytest.raises(TypeError, match=message % ("torch", "numpy")):
        matrix.public(case.op)(**(tensors | {second: arguments[second]}))


@pytest.mark.parametrize("case", _with_two_arrays())
def test_devices_do_not_mix(case: Case):
    tensors = matrix.as_tensors(case.build())
    first, second, *_ = matrix.array_names(tensors)
    tensors[second] = tensors[second].to("meta")
    message = rf"^{case.op}: {second} must be on the device of {first} \(cpu\), got meta$"
    with pytest.raises(ValueError, match=message):
        matrix.public(case.op)(**tensors)


@pytest.mark.parametrize("case", _with_two_arrays())
def test_dtypes_do_not_mix(case: Case):
    arguments = case.build("float32")
    floating = [n for n in matrix.array_names(arguments) if arguments[n].dtype.kind == "f"]
    for name in floating[1:]:
        mixed = arguments | {name: arguments[name].astype("float64")}
        message = rf"^{case.op}: {name} must have the dtype of {floating[0]} \(float32\), got float64$"
        with pytest.raises(TypeError, match=message):
            matrix.public(case.op)(**mixed)


@pytest.mark.parametrize("wrong", [[[1.0]], 3, "array", None, object()], ids=["list", "int", "str", "None", "object"])
@pytest.mark.parametrize("op", OP_NAMES)
def test_what_is_no_array_is_refused(op: str, wrong: object):
    arguments = simple_case(op).build()
    name = OPS[op].inputs[0]
    shown = "None" if wrong is None else type(wrong).__name__
    with pytest.raises(TypeError, match=f"^{op}: {name} must be a NumPy, torch or CuPy array, got {shown}$"):
        matrix.public(op)(**(arguments | {name: wrong}))


class Stubborn(np.ndarray):
    """An array that refuses NumPy's arithmetic."""

    def __array_ufunc__(self, ufunc: Any, method: str, *_: Any, **__: Any) -> Any:
        raise AssertionError(f"the subclass was asked for {ufunc.__name__}")


@pytest.mark.parametrize("backend", ["numba", "torch", "reference"])
@pytest.mark.parametrize("op", OP_NAMES)
def test_subclasses_of_numpys_arrays(op: str, backend: str):
    """They count as the plain arrays that they lie in: neither their arithmetic nor their class gets into a result."""
    if backend not in matrix.backends_of(op):
        pytest.skip(f"{op} has no {backend} kernel")
    case = simple_case(op)
    arguments = case.build()
    expected = matrix.results_of(matrix.public(op)(**arguments, backend=backend))
    incoming = [np.ones_like(r) for r in expected[: OPS[op].differentiable_results]]
    gradients = kernels.vjp(op, **arguments, backend=backend)[1](*incoming)
    for name in matrix.array_names(arguments):
        array = np.ascontiguousarray(arguments[name]).reshape(arguments[name].shape)
        for kind in (Stubborn, np.recarray, *[np.matrix] * (array.ndim == 2)):
            changed = arguments | {name: array.view(kind)}
            found = matrix.results_of(matrix.public(op)(**changed, backend=backend))
            value, pullback = kernels.vjp(op, **changed, backend=backend)
            for a, b in zip(
                (*expected, *expected, *gradients),
                (*found, *matrix.results_of(value), *pullback(*[g.view(Stubborn) for g in incoming])),
                strict=True,
            ):
                assert (a is None and b is None) or type(b) is np.ndarray, f"{name} of {kind.__name__}"
                np.testing.assert_array_equal(a, b, f"{name} of {kind.__name__}")

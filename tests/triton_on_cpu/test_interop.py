"""The Triton backend among other libraries: CuPy's arrays, several devices, torch.compile; what needs no GPU."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import kernels
from kernels.runtime import triton_gpu
from tests.support import matrix, oracle
from tests.support.triton_interpreter import on_cpu
from tests.triton_on_cpu import helpers


class FakeArray:
    """As much of a CuPy array as a call looks at, on memory of the host."""

    def __init__(self, host: np.ndarray[Any, Any]) -> None:
        self.host = host
        self.shape, self.strides, self.dtype, self.flags = host.shape, host.strides, host.dtype, host.flags
        self.itemsize, self.ndim, self.size = host.itemsize, host.ndim, host.size
        self.device = types.SimpleNamespace(id=0)

    def __array__(self, *_: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def astype(self, dtype: Any, copy: bool = True) -> FakeArray:
        return FakeArray(self.host.astype(dtype, copy=copy))

    def reshape(self, *shape: Any) -> FakeArray:
        return FakeArray(self.host.reshape(*shape))

    def __getitem__(self, key: Any) -> FakeArray:
        return FakeArray(self.host[key])

    def copy(self) -> FakeArray:
        return FakeArray(self.host.copy())

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.host.__dlpack__()

    def __dlpack_device__(self) -> Any:
        return self.host.__dlpack_device__()


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module in CuPy's place."""
    module = types.ModuleType("cupy")
    module.__spec__ = types.SimpleNamespace(name="cupy")  # type: ignore[assignment]
    module.ndarray = FakeArray  # type: ignore[attr-defined]
    module.from_dlpack = lambda tensor: FakeArray(np.from_dlpack(tensor))  # type: ignore[attr-defined]
    module.cuda = types.SimpleNamespace(is_available=lambda: False)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def test_cupys_arrays_are_taken_without_a_copy(cupy: Any, monkeypatch: pytest.MonkeyPatch):
    x = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    seen: list[int] = []
    from_dlpack = torch.from_dlpack

    def watch(array: Any) -> torch.Tensor:
        tensor = from_dlpack(array)
        seen.append(tensor.data_ptr())
        return tensor

    monkeypatch.setattr(torch, "from_dlpack", watch)
    with on_cpu() as launched:
        found = kernels.softmax(cupy.ndarray(x), backend="triton")
        turned = kernels.softmax(cupy.ndarray(x[:, ::-1]), backend="triton")
        both = kernels.max_pool2d(cupy.ndarray(x.reshape(1, 1, 10, 15)), 2, return_indices=True, backend="triton")
    assert isinstance(found, FakeArray) and seen[0] == x.ctypes.data
    assert launched == ["softmax_rows", "softmax_rows", "max_of_windows"]
    expected = kernels.softmax(x, backend="reference")
    np.testing.assert_allclose(found.host, expected, rtol=1e-5)
    np.testing.assert_allclose(turned.host, expected[:, ::-1], rtol=1e-5)
    np.testing.assert_array_equal(both[1].host, kernels.max_pool2d(x.reshape(1, 1, 10, 15), 2, return_indices=True)[1])


@pytest.mark.parametrize("op", matrix.OP_NAMES)
def test_gradients_of_cupys_arrays(op: str, cupy: Any):
    """`vjp`: results and gradients are CuPy's, by Triton's kernels, of everything that backward has saved."""
    expected = oracle.expect_case(matrix.cases_of(op, "ci")[0], "float32")
    pairs = expected.arguments.items()
    arguments = {n: cupy.ndarray(a) if isinstance(a, np.ndarray) else a for n, a in pairs}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), on_cpu() as launched:
        value, pullback = kernels.vjp(op, **arguments, backend="triton")
        found = dict(zip(matrix.OPS[op].inputs, pullback(*map(cupy.ndarray, expected.incoming))))
    results = matrix.results_of(value)
    wanted = matrix.differentiable_names(op, expected.arguments)
    assert launched or op == "linear"  # which is torch's product
    assert all(isinstance(a, FakeArray) for a in (*results, *(found[n] for n in wanted)))
    gradients = {n: found[n].host.reshape(expected.arguments[n].shape) for n in wanted}
    helpers.report(expected.complaints(oracle.Answer(tuple(r.host for r in results), gradients)))


def test_values_of_cupys_arrays_are_checked(cupy: Any):
    x, target = (cupy.ndarray(a) for a in (np.zeros((2, 3), np.float32), np.array([0, 3])))
    with on_cpu():
        found = kernels.cross_entropy(x, target, backend="triton")
        with pytest.raises(IndexError, match=r"^cross_entropy: target must lie in \[0, 2\] .*, got 3 at 1 \(in an e"):
            kernels.cross_entropy(x, target, backend="triton")
    assert np.isnan(found.host)


def test_a_kernel_is_launched_on_its_tensors_device(monkeypatch: pytest.MonkeyPatch):
    """The current device is left as it was; another one becomes current for the launch alone."""
    current = [0]
    seen: list[tuple[Any, int]] = []

    @contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        before, current[0] = current[0], wanted.index
        yield
        current[0] = before

    class Kernel:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *arguments, **options: seen.append((grid, current[0]))

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", device)
    with FakeTensorMode():
        tensors = [torch.empty(3, device=f"cuda:{n}") for n in range(2)]
    for tensor in (*tensors, tensors[0]):
        triton_gpu.launch(Kernel(), (2,), 7, tensor)
    triton_gpu.launch(Kernel(), (0, 3), tensors[1])
    assert seen == [((2,), 0), ((2,), 1), ((2,), 0)] and current == [0]


@pytest.mark.parametrize("training", [False, True])
def test_compiled_graphs_run_the_kernels(training: bool):
    """torch.compile sees one node, which the kernels fill in when the graph runs."""

    def function(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return kernels.layer_norm(kernels.softmax(x, backend="triton") * 2, (40,), weight, backend="triton")

    x, weight = torch.randn(3, 40, requires_grad=training), torch.randn(40, requires_grad=training)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with on_cpu() as launched:
        found = compiled(x, weight)
        gradients = torch.autograd.grad(found.sum(), (x, weight)) if training else ()
        expected = function(x, weight)
        theirs = torch.autograd.grad(expected.sum(), (x, weight)) if training else ()
    for a, b in zip((found, *gradients), (expected, *theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    half = launched[: len(launched) // 2]
    assert half[:2] == ["softmax_rows", "normalise_rows"] and launched == half * 2

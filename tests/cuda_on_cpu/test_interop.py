"""Arrays of every kind on the backend "cupy": CuPy's, NumPy's that are copied over and back, torch's without a copy.

There is no GPU here: a fake CuPy (tests/support/fake_cupy.py) takes its place, whose kernels run on this processor.
What only hardware shows is marked `gpu`.
"""

from __future__ import annotations

import types
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels import arrays, backends
from kernels.backends import BackendError
from kernels.runtime import cupy_arrays
from kernels.runtime.cupy_gpu import numpy_dtype
from tests.cuda_on_cpu import helpers
from tests.support import fake_cupy, layouts, matrix, oracle

pytestmark = helpers.needs_harness

Array = np.ndarray[Any, Any]
#: Ops of which every first case is called with every kind of array: all of them.
OPS = tuple(n for n, op in matrix.OPS.items() if backends.load(op.family, backends.BACKENDS["cupy"]))


def as_cupy(arguments: dict[str, Any], device: int = 0) -> dict[str, Any]:
    """The same arguments with arrays on a device."""
    pairs = arguments.items()
    return {n: fake_cupy.on_device(a, device) if isinstance(a, np.ndarray) else a for n, a in pairs}


# ----- CuPy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
def test_cupy_in_cupy_out(op: str):
    """Results and gradients, on the arrays' own device, nothing copied to the host."""
    expected = oracle.expect_case(matrix.cases_of(op, "ci")[0], "float32")
    with fake_cupy.installed() as gpu:
        arguments = as_cupy(expected.arguments, 1)
        value, pullback = kernels.vjp(op, **arguments)
        found = pullback(*(fake_cupy.on_device(g, 1) for g in expected.incoming))
    results = matrix.results_of(value)
    assert gpu.launches and {(launch.device, launch.stream) for launch in gpu.launches} == {(1, 0)}
    assert gpu.copied["back"] == 0 and gpu.copied["over"] == (op == "dropout") * 0
    assert all(
        isinstance(r, fake_cupy.ndarray) and r.device.id == 1 for r in (*results, *(g for g in found if g is not None))
    )
    named = dict(zip(matrix.OPS[op].inputs, found))
    wanted = matrix.differentiable_names(op, expected.arguments)
    gradients = {n: named[n].get().reshape(expected.arguments[n].shape) for n in wanted}
    helpers.report(expected.complaints(oracle.Answer(tuple(r.get() for r in results), gradients)))


def test_strided_and_empty_arrays_of_cupy():
    x = helpers.numbers(8, 6)
    with fake_cupy.installed():
        for view in (x.T, x[::2, ::-1], layouts.padded_rows(x), x[:0]):
            found = kernels.softmax(fake_cupy.on_device(view), 0)
            assert isinstance(found, fake_cupy.ndarray) and found.shape == view.shape
            expected = kernels.softmax(np.ascontiguousarray(view), 0, backend="reference")
            np.testing.assert_allclose(found.get(), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes_of_cupy(dtype: str):
    x = helpers.numbers(4, 40).astype(numpy_dtype(dtype))
    with fake_cupy.installed():
        found = kernels.layer_norm(fake_cupy.on_device(x), (40,))
        assert kernels.explain("layer_norm", fake_cupy.on_device(x), (40,)).chosen == "cupy"
    expected = kernels.layer_norm(x.astype(np.float64), (40,), backend="reference")
    assert found.dtype == x.dtype
    np.testing.assert_allclose(found.get().astype(np.float64), expected, atol=0.02 if dtype != "float64" else 1e-12)


def test_seeds_go_to_the_device_of_the_array():
    x = helpers.numbers(50, 40)
    with fake_cupy.installed() as gpu:
        found = kernels.dropout(fake_cupy.on_device(x, 1), 0.5, seed=3)
        drawn = kernels.dropout(fake_cupy.on_device(x, 1), 0.5)
    assert found.device.id == 1 and gpu.copied == {"over": 2, "back": 0}
    np.testing.assert_array_equal(found.get(), kernels.dropout(x, 0.5, seed=3, backend="numba"))
    assert 0.4 < (drawn.get() != 0).mean() < 0.6


def test_mixtures_are_refused():
    with fake_cupy.installed():
        x = fake_cupy.on_device(helpers.numbers(3, 4))
        weight = helpers.numbers(4)
        with pytest.raises(TypeError, match="^layer_norm: weight must be a cupy array, as x is, got a numpy array$"):
            kernels.layer_norm(x, (4,), weight)
        with pytest.raises(ValueError, match=r"^layer_norm: weight must be on the device of x \(cuda:0\), got cuda:1$"):
            kernels.layer_norm(x, (4,), fake_cupy.on_device(weight, 1))
        with pytest.raises(
            ValueError, match=r"^softmax: device must agree with that of the arrays \(cuda:0\), got 'cpu'$"
        ):
            kernels.softmax(x, device="cpu")
        with pytest.raises(BackendError, match="backend 'numba' cannot run .*: it runs on cpu, this call is on cuda"):
            kernels.softmax(x, backend="numba")


# ----- other libraries' --------------------------------------------------------------------------------------------


def test_arrays_of_any_library_with_dlpack():
    """They are seen as CuPy's, nothing copied; test_without_torch.py has every op, here are functions made of ops."""
    image, weight = helpers.numbers(3, 6, 6), helpers.numbers(4, 3, 3, 3)
    x, h, c = helpers.numbers(5, 2, 3), helpers.numbers(1, 2, 4), helpers.numbers(1, 2, 4)
    w_ih, w_hh, lengths = helpers.numbers(16, 3), helpers.numbers(16, 4), np.array([3, 5])
    query, bias = helpers.numbers(7, 8), helpers.numbers(7, 7)

    def calls(give: Any, **where: Any) -> list[Any]:
        layer = [(give(w_ih), give(w_hh), None, None)]
        return [
            kernels.conv2d(give(image), give(weight), **where),
            *kernels.lstm(give(x), layer, (give(h), give(c)), lengths=give(lengths), **where)[1],
            *kernels.lstm_cell(give(x[0]), (give(h[0]), give(c[0])), give(w_ih), give(w_hh), **where),
            kernels.scaled_dot_product_attention(*[give(query)] * 3, give(bias > 0), **where),
            kernels.attention(*[give(query)] * 3, mask=give(bias > 0), bias=give(bias), **where),
        ]

    with fake_cupy.installed() as gpu:
        found = calls(fake_cupy.Foreign)
        assert gpu.copied == {"over": 0, "back": 0}
        assert all(isinstance(a, fake_cupy.ndarray) for a in found)
    for mine, exact in zip(found, calls(lambda a: a, backend="reference"), strict=True):
        np.testing.assert_allclose(mine.get(), exact, rtol=1e-5, atol=1e-5)


def test_arrays_of_any_library_on_the_cpu_are_seen_as_numpys():
    class Foreign(fake_cupy.Foreign):
        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

    x = helpers.numbers(3, 40)
    found = kernels.softmax(Foreign(x))
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, kernels.softmax(x))


def test_arrays_of_other_devices_are_refused():
    class Foreign(fake_cupy.Foreign):
        def __dlpack_device__(self) -> tuple[int, int]:
            return 8, 0  # Metal's

    with pytest.raises(TypeError, match="^softmax: x must be a NumPy, torch or CuPy array, got Foreign$"):
        kernels.softmax(Foreign(helpers.numbers(3, 4)))


# ----- NumPy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("device, index", [("cuda", 0), ("cuda:1", 1)])
def test_numpy_arrays_are_copied_over_and_back(op: str, device: str, index: int):
    expected = oracle.expect_case(matrix.cases_of(op, "ci")[0], "float32")
    with fake_cupy.installed() as gpu:
        value, pullback = kernels.vjp(op, **expected.arguments, device=device, backend="cupy")
        found = dict(zip(matrix.OPS[op].inputs, pullback(*expected.incoming)))
    assert {launch.device for launch in gpu.launches} == {index} and gpu.copied["back"] > 0
    wanted = matrix.differentiable_names(op, expected.arguments)
    gradients = {n: found[n].reshape(expected.arguments[n].shape) for n in wanted}
    assert all(isinstance(a, np.ndarray) for a in (*matrix.results_of(value), *gradients.values()))
    helpers.report(expected.complaints(oracle.Answer(matrix.results_of(value), gradients)))
    with fake_cupy.installed():
        again = matrix.results_of(matrix.public(op)(**expected.arguments, device=device))
    np.testing.assert_array_equal(again[0], matrix.results_of(value)[0])


def test_a_device_that_is_not_there():
    with fake_cupy.installed(devices=2):
        with pytest.raises(ValueError, match="^device must be below cuda:2, as many as CuPy finds, got 'cuda:2'$"):
            kernels.softmax(helpers.numbers(2, 3), device="cuda:2", backend="cupy")


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_layouts_survive_the_way_over_and_back(layout: str):
    a = layouts.LAYOUTS[layout](helpers.numbers(2, 3, 4, 5))
    with fake_cupy.installed():
        there = cupy_arrays.from_numpy(a)
        back = cupy_arrays.to_numpy(there)
    np.testing.assert_array_equal(back, a)
    assert arrays.spec(there._host).dense and arrays.spec(back).channels_last == arrays.spec(a).channels_last
    if layout in ("channels_last", "contiguous", "transposed"):
        assert back.strides == a.strides


# ----- torch -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tensors(monkeypatch: pytest.MonkeyPatch):
    """CPU tensors stand for CUDA tensors: the backend takes them, and torch has a stream."""
    stream = types.SimpleNamespace(cuda_stream=77)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    with fake_cupy.installed() as gpu:
        real = backends.BACKENDS["cupy"]
        backends.BACKENDS["cupy"] = replace(real, devices=("cpu", "cuda"))
        try:
            yield gpu
        finally:
            backends.BACKENDS["cupy"] = real


@pytest.mark.parametrize("op", OPS)
def test_tensors_run_without_a_copy_on_torchs_stream(op: str, tensors: fake_cupy.Gpu):
    expected = oracle.expect_case(matrix.cases_of(op, "ci")[0], "float32")
    found = oracle.with_autograd(op, expected.arguments, expected.incoming, "cupy")
    helpers.report(expected.complaints(found))
    assert tensors.launches and {launch.stream for launch in tensors.launches} == {77}
    assert tensors.copied == {"over": 0, "back": 0} and tensors.stream == 0


def test_memory_is_shared_and_results_are_torchs_own(tensors: fake_cupy.Gpu, monkeypatch: pytest.MonkeyPatch):
    x = torch.randn(3, 40)
    assert cupy_arrays.from_torch(x.requires_grad_()).data.ptr == x.data_ptr()
    there = fake_cupy.on_device(helpers.numbers(3, 4))
    assert cupy_arrays.to_torch(there).data_ptr() == there.data.ptr
    made: list[int] = []
    real = torch.empty

    def watched(*shape: Any, **options: Any) -> torch.Tensor:
        made.append(real(*shape, **options))
        return made[-1]

    monkeypatch.setattr(torch, "empty", watched)
    found = kernels.softmax(x.detach(), backend="cupy")
    assert any(found.data_ptr() == t.data_ptr() for t in made)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tensors(dtype: torch.dtype, tensors: fake_cupy.Gpu):
    x = torch.randn(5, 64).to(dtype).requires_grad_()
    y = kernels.rms_norm(x, (64,), backend="cupy")
    (gradient,) = torch.autograd.grad(y.float().square().sum(), [x])
    assert y.dtype == gradient.dtype == dtype
    expected = torch.nn.functional.rms_norm(x.double(), (64,))
    torch.testing.assert_close(y.double(), expected, atol=0.02, rtol=0.02)


def test_tangents_are_refused(tensors: fake_cupy.Gpu):
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(torch.randn(3), torch.ones(3))
        with pytest.raises(NotImplementedError, match=r"^softmax: forward-mode derivatives \(jvp\) are not supported$"):
            kernels.softmax(x, backend="cupy")


# ----- a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("op", OPS)
def test_every_kind_of_array_on_a_gpu(op: str):
    """The same answers from CuPy's arrays, NumPy's and tensors, within float32's rounding of those on the CPU."""
    if (reason := backends.BACKENDS["cupy"].missing()) is not None:
        pytest.skip(f"cupy: {reason}")
    import cupy

    case = matrix.cases_of(op, "ci")[0]
    arguments = case.build("float32")
    expected = matrix.results_of(matrix.public(op)(**arguments, backend="reference"))[0]
    there = {n: cupy.asarray(a) if isinstance(a, np.ndarray) else a for n, a in arguments.items()}
    found = [cupy.asnumpy(matrix.results_of(matrix.public(op)(**there, backend="cupy"))[0])]
    found.append(matrix.results_of(matrix.public(op)(**arguments, device="cuda", backend="cupy"))[0])
    if torch.cuda.is_available():
        given = {n: a.cuda() if isinstance(a, torch.Tensor) else a for n, a in matrix.as_tensors(arguments).items()}
        found.append(matrix.results_of(matrix.public(op)(**given, backend="cupy"))[0].cpu().numpy())
    for each in found:
        np.testing.assert_allclose(each, expected, rtol=1e-5, atol=1e-5)

"""The same cases on a real GPU: ``pytest -m gpu``."""

from __future__ import annotations

import pytest
import torch

import kernels
from kernels.case import Case
from tests.support import matrix
from tests.support.triton_interpreter import on_cpu
from tests.triton_on_cpu import helpers

OPS = ("softmax", "log_softmax", "cross_entropy", "layer_norm", "rms_norm", "attention", "scaled_dot_product_attention")
OPS += ("relu", "gelu", "silu", "sigmoid", "tanh", "dropout", "embedding", "linear", "conv2d", "conv_transpose2d")
OPS += ("rnn_layer", "lstm_layer", "gru_layer")
OPS += ("linear_cross_entropy", "max_pool2d", "avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d", "lp_pool2d")
CASES = helpers.small_cases(*OPS)
DTYPES = (torch.float32, torch.float64, *helpers.HALVES)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that torch can use"),
]


@pytest.fixture(autouse=True)
def ieee():
    """torch takes tf32 for float32 convolutions unless it is told not to; the budget is float32's."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_cases(case: Case, dtype: torch.dtype):
    complaints = helpers.tensor_complaints(case, dtype, "cuda")
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)


@pytest.mark.parametrize("op", OPS)
def test_a_gpu_finds_what_the_interpreter_finds(op: str):
    case = matrix.cases_of(op, "ci")[0]
    arguments = matrix.as_tensors(case.build("float32"))
    with on_cpu():
        here = matrix.results_of(matrix.public(op)(**arguments, backend="triton"))
    on_gpu = {n: v.cuda() if isinstance(v, torch.Tensor) else v for n, v in arguments.items()}
    there = matrix.results_of(matrix.public(op)(**on_gpu, backend="triton"))
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_calls_can_be_captured(op: str):
    case = matrix.cases_of(op, "ci")[0]
    arguments = {n: v.cuda() if isinstance(v, torch.Tensor) else v for n, v in matrix.as_tensors(case.build()).items()}
    function = matrix.public(op)
    expected = function(**arguments, backend="triton")  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = function(**arguments, backend="triton")
    graph.replay()
    torch.testing.assert_close(captured, expected, rtol=0, atol=0)


def test_wrong_values_are_told_by_a_later_call():
    """The GPU writes to the host's memory, and no call waits for it."""
    weight, indices = torch.ones(5, 8, device="cuda"), torch.zeros(3000, dtype=torch.int64, device="cuda")
    for _ in range(3):
        kernels.embedding(indices, weight, backend="triton")
    kernels.check_device_errors()
    indices[1234], indices[2345] = 9, 8
    found = kernels.embedding(indices, weight, backend="triton")
    assert found[1234].isnan().all() and found[0].eq(1).all()  # which waits
    with pytest.raises(IndexError, match=r"got 9 at 1234 \(in an earlier call"):
        kernels.embedding(indices[:5], weight, backend="triton")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            kernels.embedding(indices[:5], weight, backend="triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    kernels.check_device_errors()


def test_numpy_arrays_are_copied_over_and_back():
    x = helpers.numbers(5, 33)
    found = kernels.softmax(x, device="cuda", backend="triton")
    assert isinstance(found, type(x))
    assert abs(found - kernels.softmax(x, backend="reference")).max() < 1e-6


def test_compiled_graphs():
    def function(x: torch.Tensor) -> torch.Tensor:
        return kernels.softmax(x, backend="triton").exp()

    x = torch.randn(5, 40, device="cuda", requires_grad=True)
    found = torch.compile(function, fullgraph=True)(x)
    torch.testing.assert_close(found, function(x))
    torch.testing.assert_close(torch.autograd.grad(found.sum(), x), torch.autograd.grad(function(x).sum(), x))


def test_another_device_than_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("this machine has one GPU")
    x = torch.randn(5, 40)
    found = kernels.softmax(x.to("cuda:1"), backend="triton")
    assert found.device == torch.device("cuda:1") and torch.cuda.current_device() == 0
    torch.testing.assert_close(found.cpu(), torch.softmax(x, 1))


def test_cupys_arrays():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    x = cupy.random.standard_normal((5, 40), dtype=cupy.float32)
    found = kernels.softmax(x, backend="triton")
    assert isinstance(found, cupy.ndarray)
    assert abs(found.get() - kernels.softmax(x.get(), backend="reference")).max() < 1e-6


def test_tuned_tiles_give_the_same_results():
    query, key, value = torch.randn(3, 2, 4, 200, 64, device="cuda", dtype=torch.float16).unbind()
    before = kernels.attention(query, key, value, causal="top_left", backend="triton")
    found = kernels.tune("attention", query, key, value, causal="top_left")
    assert [t.kernel.split()[1] for t in found] == ["attention_forward", "query_gradient", "key_gradients"]
    assert all(0 < t.seconds <= t.default_seconds for t in found)
    torch.testing.assert_close(kernels.attention(query, key, value, causal="top_left", backend="triton"), before)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_is_hidden_does_not_leak(odd: float):
    """The kernels' second launch, on tensor cores."""
    query, key, value = torch.randn(3, 1, 2, 150, 64, device="cuda", dtype=torch.float16).unbind()
    clean = kernels.attention(query, key, value, causal="top_left", backend="triton")
    key[:, :, 140], value[:, :, 140] = odd, odd
    given = [t.requires_grad_() for t in (query, key, value)]
    found = kernels.attention(*given, causal="top_left", backend="triton")
    torch.testing.assert_close(found[:, :, :140], clean[:, :, :140], rtol=1e-3, atol=1e-3)
    assert not torch.isfinite(found[:, :, 140:]).any()
    gradients = torch.autograd.grad(found[:, :, :140].float().sum(), given)
    assert torch.isfinite(gradients[0][:, :, :140]).all()

"""The same cases on a real GPU: ``pytest -m gpu``. Until somebody runs this, no kernel has been seen on one."""

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
OPS += ("max_pool2d", "avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d", "lp_pool2d")
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


def test_numpy_arrays_are_copied_over_and_back():
    x = helpers.numbers(5, 33)
    found = kernels.softmax(x, device="cuda", backend="triton")
    assert isinstance(found, type(x))
    assert abs(found - kernels.softmax(x, backend="reference")).max() < 1e-6

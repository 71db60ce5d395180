"""linear and the activations of the backend "cupy": NumPy multiplies in cuBLAS's place, CUDA C++ runs on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

import kernels
from kernels.activation.cuda_codes import CODES, code_of
from kernels.activation.functions import FUSED
from kernels.runtime.cupy_gpu import numpy_dtype
from tests.cuda_on_cpu import helpers
from tests.cuda_on_cpu.helpers import on_cpu

ACTIVATIONS = ("relu", "gelu", "silu", "sigmoid", "tanh")
VECTORS = {"float32": 4, "float64": 2, "float16": 8, "bfloat16": 8}
pytestmark = helpers.needs_harness


@pytest.mark.parametrize("dtype", VECTORS)
def test_whole_vectors_are_read_at_once(dtype: str):
    """128 bits a thread, every byte once; the bias and the activation in one pass over the product."""
    vector = VECTORS[dtype]
    x, weight = (helpers.numbers(*s).astype(numpy_dtype(dtype)) for s in ((16, 24), (4 * vector, 24)))
    bias = helpers.numbers(4 * vector).astype(numpy_dtype(dtype))
    with on_cpu("prof") as launched:
        y = kernels.linear(x, weight, bias, activation="silu", backend="cupy")
        z, pullback = kernels.vjp("gelu", y, backend="cupy")
        pullback(z)
    assert launched.kernels == ["add_bias_and_activate", "activate_elements", "activation_gradient_elements"]
    assert [dict(s.constants)["VECTOR"] for s in launched.sources] == [vector] * 3
    read = [c["unique_loaded"] for c in launched.counts]
    assert read == [y.nbytes + bias.nbytes, y.nbytes, 2 * y.nbytes]
    for counts in launched.counts:
        assert counts["load_sectors"] * 32 <= counts["global_loaded"]
        assert counts["store_sectors"] * 32 <= counts["global_stored"]


def test_the_kernels_that_run_are_these():
    x, weight = helpers.numbers(5, 6), helpers.numbers(7, 6)
    names = {}
    for activation in (None, "tanh"):
        with on_cpu() as launched:
            bias = np.ones(7, np.float32)
            y, pullback = kernels.vjp("linear", x, weight, bias, activation=activation, backend="cupy")
            pullback(y)
        names[activation] = launched.kernels
    sums = ["sums_of_pixels", "add_parts"]
    assert names[None] == ["add_bias_and_activate", *sums]
    assert names["tanh"] == ["add_bias_and_activate", "activation_gradient_elements", *sums]


@pytest.mark.parametrize("op", ["gelu", "linear"])
def test_offsets_beyond_32_bits(op: str):
    """Rows 2**30 elements apart; the memory between them is never touched."""
    stride, n = 2**30 + 64, 33
    base = np.empty(2 * stride + n, np.float16)
    x = np.lib.stride_tricks.as_strided(base, (3, n), (stride * 2, 2))
    x[...] = helpers.numbers(3, n)
    answers = []
    with on_cpu():
        for given in (np.ascontiguousarray(x), x):
            arguments = (given,) if op == "gelu" else (given, helpers.numbers(4, n).astype(np.float16))
            y, pullback = kernels.vjp(op, *arguments, backend="cupy")
            answers.append((y, pullback(y)[0]))
    for a, b in zip(*answers, strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_activation_has_a_number():
    assert sorted(filter(None, map(code_of, FUSED))) == [1, 2, 3, 4, 5]
    assert code_of(None) == 0 and code_of("gelu_tanh") == CODES["gelu_tanh"] == 6


def test_explain_names_the_product(capsys: pytest.CaptureFixture[str]):
    x, weight, bias = helpers.numbers(5, 6), helpers.numbers(7, 6), helpers.numbers(7)
    with on_cpu():
        kernels.explain("linear", x, weight)
        kernels.explain("linear", x, weight, bias, activation="gelu")
    shown = capsys.readouterr().out
    assert "cuBLAS <- chosen" in shown and "cuBLAS, then the bias and gelu in one pass <- chosen" in shown

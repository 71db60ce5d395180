"""linear on GPUs through CuPy: cuBLAS multiplies, and one kernel adds the bias and applies the activation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kernels.activation.cuda_codes import code_of
from kernels.activation.cupy_gpu import gradient as activation_gradient
from kernels.activation.cupy_gpu import launch_elements
from kernels.activation.functions import FROM_OUTPUT
from kernels.conv2d.cupy_sums import sums_over_pixels
from kernels.linear.op import LINEAR, LinearProblem
from kernels.op import Implementation
from kernels.runtime.cupy_gpu import (
    DTYPES,
    WIDEST,
    contiguous,
    dtype_name,
    empty,
    empty_results,
    full,
    has_vectors,
    zero_gradients,
)
from kernels.runtime.cupy_products import matrix_product

Array = Any


def _product(a: Array, b: Array, dtype: str) -> Array:
    """a (M, K) @ b (K, N), in which K may be 0."""
    shape = (a.shape[0], b.shape[1])
    if 0 in (*shape, a.shape[1]):
        return full(shape, dtype, 0)
    return matrix_product(a, b, empty(shape, dtype))


def linear(p: LinearProblem, x: Array, weight: Array, bias: Array | None) -> tuple[Array | None, ...]:
    """output, sums before the activation."""
    if p.empty:
        return empty_results(p)
    form, kept = p.results()
    assert form is not None
    rows, filters = x.reshape(p.batch, p.in_features), weight.reshape(p.out_features, p.in_features)
    sums = _product(rows, filters.transpose(), p.x.dtype)
    out = sums
    if bias is not None or p.activation is not None:
        out = sums if p.activation is None else empty(sums.shape, p.x.dtype)
        finish_sums(sums, bias, p.activation, None if out is sums else out)
    return out.reshape(form.shape), None if kept is None else sums.reshape(form.shape)


def finish_sums(sums: Array, bias: Array | None, activation: str | None = None, out: Array | None = None) -> None:
    """sums += bias, then out = act(sums); sums and out are (rows, outputs), contiguous."""
    outputs, dtype = sums.shape[1], dtype_name(sums)
    step = 0 if bias is None or bias.ndim == 0 else 1
    bias = contiguous(bias) if step else bias
    vector = WIDEST // sums.dtype.itemsize
    if outputs % vector or (step and not has_vectors(bias, 0, vector)):
        vector = 1
    launch_elements(
        "add_bias_and_activate", dtype, sums.size // vector, vector, (sums, bias, out), outputs, step,
        code_of(activation),
    )  # fmt: skip


def linear_backward(
    p: LinearProblem,
    grad_output: Array,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    output: Array | None = None,
    preactivation: Array | None = None,
) -> tuple[Array | None, ...]:
    """Gradients of x, weight, bias."""
    if p.empty:
        return zero_gradients(p)
    form, dtype = p.results()[0], p.x.dtype
    assert form is not None
    if p.activation is not None:
        known = output if p.activation in FROM_OUTPUT else preactivation
        assert known is not None
        grad_output = activation_gradient(p.activation, form, grad_output, known)
    rows = grad_output.reshape(p.batch, p.out_features)
    wants_x, wants_weight, wants_bias = p.needs_grad
    of_x = of_weight = of_bias = None
    if wants_x:
        of_x = _product(rows, weight.reshape(p.out_features, p.in_features), dtype).reshape(p.x.shape)
    if wants_weight:
        of_weight = _product(rows.transpose(), x.reshape(p.batch, p.in_features), dtype).reshape(p.weight.shape)
    if wants_bias:
        assert p.bias is not None
        # Rows as the pixels of one image, whose channels are the outputs; for one bias of all, outputs as pixels too.
        seen = rows if p.bias.ndim else contiguous(rows).reshape(-1, 1)
        image = seen.transpose()[None, :, None, :]
        of_bias = sums_over_pixels(image, replace(p.bias, shape=seen.shape[1:], strides=None)).reshape(p.bias.shape)
    return of_x, of_weight, of_bias


def _describe(p: LinearProblem) -> str:
    done = ["the bias"] * (p.bias is not None) + [str(p.activation)] * (p.activation is not None)
    return "cuBLAS" + (f", then {' and '.join(done)} in one pass" if done else "")


Implementation(LINEAR, "cupy", linear, linear_backward, dtypes=DTYPES, describe=_describe)

"""conv2d_max_pool2d in CUDA C++: conv2d's kernels, then the windows of its result, whose winners alone are kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kernels.activation.cupy_gpu import gradient as activation_gradient
from kernels.activation.functions import FROM_OUTPUT
from kernels.arrays import ArraySpec
from kernels.conv2d import cupy_gpu as convolutions
from kernels.conv2d_max_pool2d.op import CONV2D_MAX_POOL2D, Conv2dMaxPool2dProblem
from kernels.op import Implementation
from kernels.runtime.cuda_tiles import FLAT_THREADS, flat_block
from kernels.runtime.cupy_gpu import (
    DTYPES,
    WIDEST,
    contiguous,
    element_strides,
    empty_like_form,
    empty_results,
    has_vectors,
    index_type,
    launch,
    storage,
    target_of,
    types,
    zero_gradients,
)

Array = Any


def _launch(
    kernel: str, p: Conv2dMaxPool2dProblem, form: ArraySpec, winners: str, arrays: tuple[Array | None, ...],
    images: tuple[Array, ...], strides: tuple[int, ...] = (),
) -> None:  # fmt: skip
    """Run a kernel of windows.cu whose result is of `form`; images: those of `arrays` that threads read in vectors."""
    last = p.convolution.channels_last
    vector = WIDEST // form.itemsize
    if not last or not all(has_vectors(a, 1, vector) for a in images):
        vector = 1
    items = form.size // vector
    block = flat_block(items, target_of(images[0]))
    constants = types(p.x.dtype) | {
        "WINNER": storage(winners),
        "INDEX": index_type(*arrays),
        "THREADS": FLAT_THREADS,
        "VECTOR": vector,
    }
    launch(
        "conv2d_max_pool2d/windows.cu", kernel, (-(-items // block),), (block,), *arrays, items, form.shape[1],
        *p.pooling.x.shape[2:], *p.output_shape[2:], int(last), *strides, *p.pool_kernel_size, *p.pool_stride,
        *p.pool_padding, constants=constants,
    )  # fmt: skip


def conv2d_max_pool2d(
    p: Conv2dMaxPool2dProblem, x: Array, weight: Array, bias: Array | None
) -> tuple[Array | None, ...]:
    """x (N, C_in, H, W), weight (C_out, C_in / G, kh, kw), bias (C_out,) -> output, winners, sums of the winners."""
    if p.empty:
        return empty_results(p)
    y, sums = convolutions.conv2d(p.convolution, x, weight, bias)
    form, of_winners, of_sums = p.results()
    assert form is not None
    out = empty_like_form(form)
    winners = None if of_winners is None else empty_like_form(of_winners)
    kept = None if of_sums is None else empty_like_form(of_sums)
    dtype = "uint8" if of_winners is None else of_winners.dtype
    arrays = (y, None if kept is None else sums, out, winners, kept)
    _launch("largest_of_windows", p, form, dtype, arrays, (y, out))
    return out, winners, kept


def conv2d_max_pool2d_backward(
    p: Conv2dMaxPool2dProblem,
    grad_output: Array,
    x: Array,
    weight: Array,
    winners: Array,
    bias: Array | None = None,
    output: Array | None = None,
    preactivation: Array | None = None,
) -> tuple[Array | None, ...]:
    """grad_output (N, C_out, PH, PW) -> gradients of x, weight, bias."""
    if p.empty:
        return zero_gradients(p)
    form, of_winners, _ = p.results()
    assert form is not None and of_winners is not None
    if p.activation is not None:
        known = output if p.activation in FROM_OUTPUT else preactivation
        assert known is not None
        grad_output = activation_gradient(p.activation, form, grad_output, known)
    spread = empty_like_form(p.pooling.x)
    # As they are declared; another backend's may lie otherwise.
    taps = contiguous(winners.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    arrays = (grad_output, taps, spread)
    strides = element_strides(grad_output)
    _launch("spread_to_winners", p, p.pooling.x, of_winners.dtype, arrays, (grad_output, spread), strides)
    return convolutions.conv2d_backward(replace(p.convolution, activation=None), spread, x, weight)


def _describe(p: Conv2dMaxPool2dProblem) -> str:
    return f"{convolutions.describe(p.convolution)}; then the windows of the result"


def _reasons(p: Conv2dMaxPool2dProblem) -> list[str]:
    return convolutions.reasons(p.convolution)


Implementation(
    CONV2D_MAX_POOL2D, "cupy", conv2d_max_pool2d, conv2d_max_pool2d_backward,
    reasons=_reasons, dtypes=DTYPES, describe=_describe,
)  # fmt: skip

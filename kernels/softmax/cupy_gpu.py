"""softmax and log_softmax in CUDA C++: which kernel runs, in which blocks."""

from __future__ import annotations

from typing import Any

from kernels.op import Implementation
from kernels.runtime.cupy_gpu import (
    DTYPES,
    as_rows,
    computed_dtype,
    dtype_name,
    empty,
    empty_results,
    launch,
    numpy_dtype,
    target_of,
    types,
    vector_of,
    zero_gradients,
)
from kernels.runtime.row_blocks import RowBlock, row_block
from kernels.softmax.op import LOG_SOFTMAX, SOFTMAX, SoftmaxProblem

Array = Any
FILE = "softmax/softmax.cu"


def _block(extents: tuple[int, int, int], *arrays: Array) -> RowBlock:
    """The block for arrays seen as (outer, n, inner)."""
    outer, n, inner = extents
    if inner == 1:
        vector = vector_of(n, *(a[:, :, 0] for a in arrays))
    else:
        vector = vector_of(inner, *arrays)
    return row_block(outer, n, inner, vector, target_of(arrays[0]))


def _launch(
    kernel: str, block: RowBlock, p: SoftmaxProblem, out: Array, *arrays: tuple[Array, tuple[int, ...]]
) -> None:
    """Run a kernel `..._rows` or `..._columns` on (array, strides) pairs."""
    outer, n, inner = p.extents
    dtype, is_log = dtype_name(out), p.op == "log_softmax"
    pointers = (*(a for a, _ in arrays), out)
    if inner == 1:
        strides = (step for _, steps in arrays for step in steps[:2])
        rest = (outer, n, *strides, block.group, is_log)
    else:
        rest = (n, inner, *(step for _, steps in arrays for step in steps), is_log)
    shared = block.scratch_bytes(numpy_dtype(computed_dtype(dtype)).itemsize, inner)
    launch(
        FILE, kernel + ("_rows" if inner == 1 else "_columns"), block.grid(outer, inner), block.shape, *pointers, *rest,
        constants=types(dtype) | block.constants, shared_bytes=shared,
    )  # fmt: skip


def softmax(p: SoftmaxProblem, x: Array) -> tuple[Array | None, ...]:
    """softmax or log_softmax, contiguous."""
    if p.empty:
        return empty_results(p)
    out = empty(p.x.shape, p.x.dtype)
    seen, strides = as_rows(x, p.extents)
    _launch("softmax", _block(p.extents, seen, out.reshape(p.extents)), p, out, (seen, strides))
    return (out,)


def softmax_backward(p: SoftmaxProblem, grad_output: Array, output: Array) -> tuple[Array | None, ...]:
    """The gradient of x, contiguous."""
    if p.empty:
        return zero_gradients(p)
    out = empty(p.x.shape, p.x.dtype)
    grad, y = as_rows(grad_output, p.extents), as_rows(output, p.extents)
    block = _block(p.extents, grad[0], y[0], out.reshape(p.extents))
    _launch("softmax_gradient", block, p, out, grad, y)
    return (out,)


def _describe(p: SoftmaxProblem) -> str:
    outer, n, inner = p.extents
    where = "along the rows" if inner == 1 else "across the inner dimensions"
    return f"{outer * inner} rows of {n}, threads {where}"


Implementation(SOFTMAX, "cupy", softmax, softmax_backward, dtypes=DTYPES, describe=_describe)
Implementation(LOG_SOFTMAX, "cupy", softmax, softmax_backward, dtypes=DTYPES, describe=_describe)

"""embedding in CUDA C++. The gradient sorts the places by their rows (CuPy's stable sort), then adds up each row's own:
no atomics, so that the sums have the same bits every time."""

from __future__ import annotations

from typing import Any

from kernels.embedding.gpu_speeds import measured
from kernels.embedding.op import EMBEDDING, EmbeddingProblem
from kernels.op import Implementation
from kernels.runtime.cuda_tiles import FLAT_THREADS
from kernels.runtime.cupy_gpu import (
    DTYPES,
    as_rows,
    computed_dtype,
    contiguous,
    element_strides,
    empty,
    launch,
    numpy_dtype,
    storage,
    target_of,
    types,
    vector_of,
    zero_gradients,
)
from kernels.runtime.row_blocks import column_block, row_block

Array = Any
FILE = "embedding/embedding.cu"

#: Places of a row whose gradients a block reads at a time.
PLACES_AT_ONCE = 4


def _constants(p: EmbeddingProblem, vector: int) -> dict[str, int | str]:
    return types(p.weight.dtype) | {"VECTOR": vector, "NAMED": storage(p.input.dtype)}


def forward(p: EmbeddingProblem, weight: Array, input: Array) -> tuple[Array]:
    """The rows."""
    n, places, rows = p.features, p.input.size, p.weight.shape[0]
    out = empty((*p.input.shape, n), p.weight.dtype)
    if out.size == 0:
        return (out,)
    indices = contiguous(input.reshape(-1))
    vector = vector_of(n, weight)
    constants = _constants(p, vector)
    strides = element_strides(weight)
    factors = None
    if p.max_norm is not None:
        factors = empty((places,), computed_dtype(p.weight.dtype))
        block = row_block(places, n, 1, vector, target_of(weight), 0)
        launch(
            FILE, "factors_of_rows", block.grid(places, 1), block.shape, weight, indices, factors, places, rows, n,
            *strides, p.max_norm, p.norm_type, block.group, constants=constants,
        )  # fmt: skip
    items = places * (n // vector)
    launch(
        FILE, "gather_rows", (-(-items // FLAT_THREADS),), (FLAT_THREADS,), weight, indices, factors, out, places, rows,
        n, *strides, constants=constants,
    )  # fmt: skip
    return (out,)


def backward(p: EmbeddingProblem, grad_output: Array, input: Array) -> tuple[Array | None, ...]:
    """The gradient of weight."""
    (rows, n), places = p.weight.shape, p.input.size
    if places == 0 or rows * n == 0:
        return zero_gradients(p)
    indices = contiguous(input.reshape(-1))
    order = indices.argsort(kind="stable")
    bounds = empty((rows + 1,), "int64")
    out = empty((rows, n), p.weight.dtype)
    grad, strides = as_rows(grad_output, (places, n))
    vector = vector_of(n, grad)
    constants = _constants(p, vector)
    blocks = -(-(rows + 1) // FLAT_THREADS)
    launch(
        FILE, "bounds_of_rows", (blocks,), (FLAT_THREADS,), indices, order, bounds, places, rows, constants=constants
    )
    side, depth = column_block(n, vector, PLACES_AT_ONCE)
    launch(
        FILE, "add_rows", (rows * -(-n // (side * vector)),), (side, depth), grad, order, bounds, out, n, *strides,
        -1 if p.padding_idx is None else p.padding_idx, p.scale_grad_by_freq, constants=constants,
        shared_bytes=side * depth * vector * numpy_dtype(computed_dtype(p.weight.dtype)).itemsize,
    )  # fmt: skip
    return out, None


def _describe(p: EmbeddingProblem) -> str:
    return f"{p.input.size} rows of {p.features} copied"


Implementation(EMBEDDING, "cupy", forward, backward, dtypes=DTYPES, describe=_describe, measured=measured)

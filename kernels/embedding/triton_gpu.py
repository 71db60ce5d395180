"""embedding in Triton. The gradient sorts the places by their rows (torch's stable sort), then adds up each row's own:
no atomics, so that the sums have the same bits every time."""

from __future__ import annotations

import torch
import triton

from kernels.embedding import embedding_triton
from kernels.embedding.gpu_speeds import measured
from kernels.embedding.op import EMBEDDING, EmbeddingProblem
from kernels.op import Implementation
from kernels.runtime.row_tiles import power_of_two
from kernels.runtime.triton_gpu import DTYPES, as_rows, computed, computed_dtype, empty, launch, zero_gradients

Tensor = torch.Tensor

#: Elements of a tile, half as many of float64, and the most of them that are columns.
TILE, MOST_COLUMNS = 2048, 1024
#: Places whose gradients are read at a time, so that a frequent row does not wait for each one alone.
PLACES_AT_ONCE = 4


def _tile(n: int, itemsize: int) -> tuple[int, int]:
    """(rows, columns) of a tile."""
    block = min(power_of_two(n), MOST_COLUMNS)
    return max(min(TILE // max(itemsize // 4, 1) // block, 32), 1), block


def forward(p: EmbeddingProblem, weight: Tensor, input: Tensor) -> tuple[Tensor]:
    """The rows."""
    n, places, rows = p.features, p.input.size, p.weight.shape[0]
    out = empty((*p.input.shape, n), weight.dtype, weight.device)
    if out.numel() == 0:
        return (out,)
    at_once, block = _tile(n, weight.element_size())
    indices = input.reshape(-1).contiguous()
    options = {"ROWS": at_once, "BLOCK": block, "COMPUTED": computed(weight.dtype), "num_warps": 4}
    factors = None
    if p.max_norm is not None:
        factors = empty((places,), computed_dtype(weight.dtype), weight.device)
        launch(
            embedding_triton.factors_of_rows, (triton.cdiv(places, at_once),), weight, indices, factors, places, rows,
            n, *weight.stride(), LARGEST=p.max_norm, KIND=p.norm_type, **options,
        )  # fmt: skip
    launch(
        embedding_triton.gather_rows, (triton.cdiv(n, block) * triton.cdiv(places, at_once),), weight, indices,
        factors, out, places, rows, n, *weight.stride(), SHORTENS=factors is not None, **options,
    )  # fmt: skip
    return (out,)


def backward(p: EmbeddingProblem, grad_output: Tensor, input: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient of weight."""
    (rows, n), places = p.weight.shape, p.input.size
    if places == 0 or rows * n == 0:
        return zero_gradients(p, grad_output.device)
    named, order = torch.sort(input.reshape(-1), stable=True)
    edges = torch.arange(rows + 1, dtype=named.dtype, device=named.device)
    bounds = torch.searchsorted(named, edges)
    out = empty((rows, n), grad_output.dtype, grad_output.device)
    grad, strides = as_rows(grad_output, (places, n))
    block = min(power_of_two(n), 512)
    launch(
        embedding_triton.add_rows, (rows * triton.cdiv(n, block),), grad, order, bounds, out, n, *strides,
        -1 if p.padding_idx is None else p.padding_idx, BY_COUNT=p.scale_grad_by_freq, ROWS=PLACES_AT_ONCE,
        BLOCK=block, COMPUTED=computed(grad.dtype), num_warps=max(1, block // 128),
    )  # fmt: skip
    return out, None


def _describe(p: EmbeddingProblem) -> str:
    return f"{p.input.size} rows of {p.features} copied"


Implementation(EMBEDDING, "triton", forward, backward, dtypes=DTYPES, describe=_describe, measured=measured)

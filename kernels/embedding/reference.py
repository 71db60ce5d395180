"""embedding as NumPy equations: the oracle that every kernel is held to."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.embedding.op import EMBEDDING, EmbeddingProblem
from kernels.op import Implementation

Array = np.ndarray[Any, Any]


def forward(p: EmbeddingProblem, weight: Array, input: Array) -> tuple[Array]:
    """weight[input], each row times min(1, max_norm / norm)."""
    rows = weight[input]
    if p.max_norm is not None:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            norm = np.linalg.norm(rows, p.norm_type, axis=-1, keepdims=True)
            factor = np.where(norm > p.max_norm, p.max_norm / (norm + 1e-7), 1)
            rows = rows * factor.astype(rows.dtype)
    return (np.ascontiguousarray(rows),)


def backward(p: EmbeddingProblem, grad_output: Array, input: Array) -> tuple[Array | None, None]:
    """Row k of the gradient of weight: the sum of the gradients at the places where input is k."""
    exact = np.result_type(grad_output.dtype, np.float32)
    found = np.zeros(p.weight.shape, exact)
    np.add.at(found, input.reshape(-1), grad_output.reshape(-1, p.features).astype(exact))
    if p.scale_grad_by_freq:
        counts = np.bincount(input.reshape(-1), minlength=p.weight.shape[0])
        found = found / np.maximum(counts, 1)[:, None]
    if p.padding_idx is not None:
        found[p.padding_idx] = 0
    return found.astype(grad_output.dtype), None


Implementation(EMBEDDING, "reference", forward, backward, dtypes=("float16", "float32", "float64"))

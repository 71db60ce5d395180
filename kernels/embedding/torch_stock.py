"""torch's own embedding; its backward is differentiable once more."""

from __future__ import annotations

import torch

from kernels.embedding.op import EMBEDDING, EmbeddingProblem
from kernels.op import Implementation

Tensor = torch.Tensor


def _padding(p: EmbeddingProblem) -> int:
    """As torch's functions underneath take it: -1 is none."""
    return -1 if p.padding_idx is None else p.padding_idx


def forward(p: EmbeddingProblem, weight: Tensor, input: Tensor) -> tuple[Tensor]:
    """The rows. Where there is a largest norm, torch shortens a copy of weight, not weight itself."""
    # The second derivative of torch's embedding takes no empty indices; on a GPU its first one reads wrong addresses
    # where there are no features (torch 2.11).
    if not input.numel() or not p.features:
        return (weight.index_select(0, input.reshape(-1)).reshape(*input.shape, p.features),)
    if p.max_norm is not None:
        weight = weight.clone(memory_format=torch.contiguous_format)
        with torch.no_grad():
            torch.embedding_renorm_(weight, input.contiguous(), p.max_norm, p.norm_type)
    return (torch.embedding(weight, input, _padding(p), p.scale_grad_by_freq, False).contiguous(),)


def backward(p: EmbeddingProblem, grad_output: Tensor, input: Tensor) -> tuple[Tensor | None, None]:
    """The gradient of weight."""
    rows = p.weight.shape[0]
    if not input.numel() or not p.features:
        return grad_output.sum() * grad_output.new_zeros(p.weight.shape), None
    found = torch.ops.aten.embedding_dense_backward(grad_output, input, rows, _padding(p), p.scale_grad_by_freq)
    return found, None


Implementation(EMBEDDING, "torch", forward, backward, dtypes=("float16", "bfloat16", "float32", "float64"))

"""dropout in torch's own ops, with the house's mask; torch's own generator gives different ones on every device."""

from __future__ import annotations

import torch

from kernels.dropout.op import DROPOUT, DropoutProblem
from kernels.op import Implementation
from kernels.random import block_words, drop_threshold

Tensor = torch.Tensor


def keep_mask(p: DropoutProblem, seed: Tensor) -> Tensor:
    """Which elements of x are kept, bool of x's shape, on the device of the seed."""
    count = p.x.size
    blocks = torch.arange(-(-count // 4), dtype=torch.int64, device=seed.device)
    words = torch.stack(block_words(blocks, seed, p.stream), -1).reshape(-1)[:count]
    return (words >= drop_threshold(p.p)).reshape(p.x.shape)


def dropout(p: DropoutProblem, x: Tensor, seed: Tensor) -> tuple[Tensor | None, ...]:
    """output."""
    return (torch.where(keep_mask(p, seed), x * p.kept, 0.0).contiguous(),)


def dropout_backward(p: DropoutProblem, grad_output: Tensor, seed: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of x and seed."""
    return (*dropout(p, grad_output, seed), None)


Implementation(DROPOUT, "torch", dropout, dropout_backward, dtypes=("float16", "bfloat16", "float32", "float64"))

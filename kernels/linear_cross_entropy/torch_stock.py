"""linear_cross_entropy in torch's own ops, a chunk at a time; its backward is differentiable once more.

torch differentiates the forward pass by itself: under a checkpoint, so that it makes the logits of a chunk again in
place of keeping them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from kernels.linear import torch_stock as linear
from kernels.linear_cross_entropy.chunks import Parts, describe, in_chunks
from kernels.linear_cross_entropy.op import LINEAR_CROSS_ENTROPY
from kernels.op import Implementation
from kernels.softmax import torch_stock as softmax

DTYPES = ("float16", "bfloat16", "float32", "float64")


def cast(array: torch.Tensor, dtype: str) -> torch.Tensor:
    """A tensor in another element type, named as NumPy does."""
    return array.to(getattr(torch, dtype))


def concatenate(arrays: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors one after the other."""
    return arrays[0] if len(arrays) == 1 else torch.cat(list(arrays))


def full(like: torch.Tensor, shape: tuple[int, ...], number: float, dtype: str) -> torch.Tensor:
    """A fresh tensor on the device of another one."""
    return torch.full(shape, number, dtype=getattr(torch, dtype), device=like.device)


def expand(number: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A number seen everywhere."""
    return number.expand(shape)


def _run(function: Callable[..., Any], *arguments: Any) -> Any:
    if not (torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in arguments)):
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


_PARTS = Parts(
    linear.linear, linear.linear_backward, softmax.cross_entropy, softmax.cross_entropy_backward,
    cast, concatenate, expand, full, operator.add, _run,
)  # fmt: skip
Implementation(LINEAR_CROSS_ENTROPY, "torch", *in_chunks(_PARTS), dtypes=DTYPES, describe=describe)

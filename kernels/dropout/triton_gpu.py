"""dropout in Triton: one pass, the mask made again in backward."""

from __future__ import annotations

import torch
import triton

from kernels.dropout import dropout_triton
from kernels.dropout.op import DROPOUT, DropoutProblem
from kernels.op import Implementation
from kernels.random import drop_threshold
from kernels.runtime.elementwise_triton import flat_tile, places_of
from kernels.runtime.triton_gpu import DTYPES, computed, empty, launch, target_of

Tensor = torch.Tensor


def dropout(p: DropoutProblem, x: Tensor, seed: Tensor) -> tuple[Tensor | None, ...]:
    """output."""
    out = empty(p.x.shape, x.dtype, x.device)
    same, numbers, (source,) = places_of(tuple(range(x.ndim)), x)
    tile = flat_tile(p.x.size, target_of(x))
    launch(
        dropout_triton.drop_elements, (triton.cdiv(p.x.size, tile["BLOCK"]),), source, seed, out, p.x.size,
        drop_threshold(p.p), p.stream & 0xFFFFFFFF, p.stream >> 32, *numbers,
        KEPT=p.kept, SAME=same, COMPUTED=computed(x.dtype), **tile,
    )  # fmt: skip
    return (out,)


def dropout_backward(p: DropoutProblem, grad_output: Tensor, seed: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of x and seed."""
    return (*dropout(p, grad_output, seed), None)


def _describe(p: DropoutProblem) -> str:
    return f"{p.x.size} elements in one pass"


Implementation(DROPOUT, "triton", dropout, dropout_backward, dtypes=DTYPES, describe=_describe)

"""torch's fused attention (cuDNN's, FlashAttention) for calls on a GPU of which it computes the same.

Its gradient has no derivative. Where one is asked for (create_graph=True) the formulas of torch_stock.py give the
gradient anew: two identities, behind the fused function and in front of it, carry what came in to where it goes out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from kernels.attention.gpu_speeds import is_torchs
from kernels.attention.problem import AttentionProblem

Tensor = torch.Tensor
Gradients = Callable[..., tuple[Tensor | None, ...]]


class _Behind(torch.autograd.Function):
    """The output as it is; its gradient is left in `cell` when it will be differentiated."""

    @staticmethod
    def forward(ctx: Any, cell: list[Tensor], output: Tensor) -> Tensor:
        ctx.cell = cell
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        if torch.is_grad_enabled():
            ctx.cell[:] = [gradient]
        return None, gradient


class _InFront(torch.autograd.Function):
    """The inputs as they are; their gradients are the fused function's, or made anew of what lies in `cell`."""

    @staticmethod
    def forward(ctx: Any, again: Gradients, cell: list[Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.again, ctx.cell = again, cell
        ctx.save_for_backward(*inputs)
        found = tuple(t.view_as(t) for t in inputs)
        ctx.mark_non_differentiable(*[t for t, wanted in zip(found, ctx.needs_input_grad[2:]) if not wanted])
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        if torch.is_grad_enabled():
            gradients = ctx.again(ctx.cell.pop(), *ctx.saved_tensors)[:3]
        return None, None, *gradients


def fused(p: AttentionProblem, backward: Gradients, device: str) -> Callable[..., Tensor] | None:
    """torch's function of (query, key, value, ...), whose output is contiguous, or None.

    Not on the CPU: there our kernels are the faster ones, but in small calls, most of whose time is taken before a
    kernel begins, and which were not faster left to torch's.

    Args:
        p: the call.
        backward: ``attention_backward`` of torch_stock.py.
        device: the call's: "cuda:0".
    """
    if not device.startswith("cuda") or not is_torchs(p):
        return None
    options: dict[str, Any] = {"is_causal": p.causal is not None, "scale": p.scale, "enable_gqa": p.group > 1}

    def run(query: Tensor, key: Tensor, value: Tensor, *_: None) -> Tensor:
        # What FlashAttention makes lies in memory as (B, L, H, Ev).
        return F.scaled_dot_product_attention(query, key, value, **options).contiguous()

    if not p.trains:
        return run

    def again(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor | None, ...]:
        return backward(p, gradient, None, query=query, key=key, value=value, output=gradient)

    def run_differentiable(query: Tensor, key: Tensor, value: Tensor, *_: None) -> Tensor:
        if torch._C._are_functorch_transforms_active():
            return run(query, key, value)
        cell: list[Tensor] = []
        output = run(*_InFront.apply(again, cell, query, key, value))
        found: Tensor = _Behind.apply(cell, output)
        return found

    return run_differentiable

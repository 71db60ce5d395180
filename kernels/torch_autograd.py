"""The two autograd Functions that any op runs in, outside and inside torch.func's transforms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from kernels.torch_binding import Bound, Tensors

NO_VMAP = "torch.func.vmap is not supported; the op takes a whole batch"
NO_TANGENTS = "forward-mode derivatives (jvp) are not supported"
_is_grad_enabled = torch.is_grad_enabled


class Apply(torch.autograd.Function):
    """Any op under autograd. `bound` carries everything that is known before the values are."""

    @staticmethod
    def forward(ctx: Any, bound: Bound, *inputs: torch.Tensor | None) -> Any:
        by_address = bound.by_address
        results = None if by_address is None else by_address(inputs)
        if results is None:
            results = bound.forward_carefully(inputs)
        ctx.bound = bound
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*bound.saved_of((*inputs, *results)))
        if bound.returned == 1:
            return results[0]
        if bound.returned > bound.incoming:
            ctx.mark_non_differentiable(*[r for r in results[bound.incoming : bound.returned] if r is not None])
        return results[: bound.returned]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        bound: Bound = ctx.bound
        by_address = bound.backward_by_address
        if by_address is not None and not _is_grad_enabled():
            found = by_address(gradients, ctx.saved_tensors)
            if found is not None:
                return found
        return bound.backward_of(gradients, ctx)


# torch calls this for a node that backward comes to, and has a function there that looks for the one above each time.
Apply._backward_cls.apply = Apply.backward

#: Function.apply in C: what Function's own adds in Python is for torch.func's transforms.
apply: Any = super(torch.autograd.Function, Apply).apply


class Transformed(torch.autograd.Function):
    """The same inside torch.func's grad and vjp, whose forward must return all that backward needs."""

    @staticmethod
    def forward(bound: Bound, *inputs: torch.Tensor | None) -> Any:
        return bound.forward(inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        bound, *given = inputs
        ctx.bound = bound
        ctx.set_materialize_grads(False)
        known = (*given, *output)
        ctx.save_for_backward(*bound.saved_of(known))
        ctx.mark_non_differentiable(*[r for r in output[bound.op.differentiable_results :] if r is not None])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        return ctx.bound.backward_of(gradients, ctx)

    @staticmethod
    def vmap(info: Any, in_dims: Any, bound: Bound, *inputs: Any) -> Any:
        raise NotImplementedError(f"{bound.op.name}: {NO_VMAP}")

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(f"{ctx.bound.op.name}: {NO_TANGENTS}")

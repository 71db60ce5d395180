"""linear with a packed weight on plain tensors, every step written out: in a small call they are most of its time.

It does what `kernels.call` and `kernels.torch_binding` do for such a call, and leaves every other one to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import forward_ad

from kernels import dispatch
from kernels.backends import BackendError
from kernels.call import make_plan
from kernels.runtime import by_address
from kernels.runtime.numba_cpu import address

if TYPE_CHECKING:
    from collections.abc import Callable

    from kernels.linear.packed import PackedLinear
    from kernels.op import Op

#: Forms of call kept for each packed weight; past it they are found anew.
MAX_FORMS = 256

_PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)
_from_numpy = torch.from_numpy
_is_grad_enabled = torch.is_grad_enabled
_is_compiling = torch.compiler.is_compiling
_override = dispatch.current_override.get


def quick_call(op: Op, packed: PackedLinear, x: Any, bias: Any, activation: Any) -> torch.Tensor | None:
    """The result of a call without `device` and `backend`; None: let `call` look at it.

    Only contiguous tensors on the CPU of the weight's dtype, of which no gradient or tangent is wanted, and no block
    that asks for a backend.
    """
    if (
        _is_compiling()
        or type(x) not in _PLAIN_TYPES
        or x.dtype is not packed.tensor_dtype
        or not x.is_cpu
        or not x.is_contiguous()
        or x.is_neg()
        or (x.requires_grad and _is_grad_enabled())
        or forward_ad._current_level >= 0
        or _override() is not None
    ):
        return None
    shape = None
    if bias is not None:
        if (
            type(bias) not in _PLAIN_TYPES
            or bias.dtype is not packed.tensor_dtype
            or not bias.is_cpu
            or not bias.is_contiguous()
            or bias.is_neg()
            or (bias.requires_grad and _is_grad_enabled())
        ):
            return None
        shape = bias.shape
    try:
        key = (x.shape, shape, activation)
        run = packed.runs.get(key)
        if run is None:
            run = _plan(op, packed, x, bias, activation)
            if len(packed.runs) >= MAX_FORMS:
                packed.runs.clear()
            packed.runs[key] = run
        place, beside = x.data_ptr(), None if bias is None else bias.data_ptr()
    except (RuntimeError, TypeError):  # A tensor without memory of its own; an activation that cannot be a key.
        return None
    # A zero tensor of forward-mode differentiation lies nowhere.
    return run(place, packed.address, beside) if place and beside != 0 else None


def values_of(weight: torch.Tensor) -> Any:
    """A weight on the CPU as a NumPy array, of the same memory where it can be."""
    rule = "must be packed outside of torch.func's transforms (grad, vmap, jvp)"
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(weight).tangent is not None:
        raise NotImplementedError(f"pack_linear: weight {rule}, got one with a tangent")
    try:
        return weight.numpy(force=True)
    except RuntimeError:
        raise NotImplementedError(f"pack_linear: weight {rule}, got one inside of one") from None


def _plan(op: Op, packed: PackedLinear, x: Any, bias: Any, activation: Any) -> Callable[..., Any]:
    """What runs calls of this form; one that is wrong or of another backend is left to `call`."""
    try:
        plan = make_plan(op, (x, packed.panels(x), bias), (activation, packed.form), None, None)
    except (TypeError, ValueError, BackendError):
        return _left_to_call
    problem = plan.problem
    launch, made = None if problem.empty else plan.forward.by_address(problem), by_address.maker(problem.results()[0])
    if launch is None or made is None:
        return _left_to_call
    allocate, shape, dtype = made

    def run(x: int, panels: int, bias: int | None) -> torch.Tensor:
        out = allocate(shape, dtype)
        launch(x, panels, bias or 0, address(out), 0)
        return _from_numpy(out)

    return run


def _left_to_call(*places: Any) -> None:
    return None

"""Whether tensors are as earlier ones were, asked of torch in one call; and what else torch.compile does in C++.

From Python each question about a tensor (its shape, strides, element type, device, whether it is negated when it is
read) takes 40 to 80 ns, and a training step of an LSTM has 13 tensors to ask. The guards of torch.compile ask all of
them of all tensors in C++, in 30 ns each. They are no public interface: this is the one place that knows them, and
where a torch lacks them the same is asked one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from kernels.arrays import ArraySpec

_of_compile = getattr(getattr(torch._C, "_dynamo", None), "guards", None)
_Guards: Any = getattr(_of_compile, "TensorGuards", None)
#: torch.empty_strided on the CPU in half the time, ``(shape, strides, dtype)``; None where torch has no such function.
empty_strided: Any = getattr(_of_compile, "_empty_strided_cpu", None)


def alike(tensors: Sequence[torch.Tensor]) -> Callable[..., bool] | None:
    """``fits(*tensors)``: whether tensors are of the same types, shapes, strides, element types and devices as these.

    They must also require gradients where these do, be different from each other, and be under the same transforms of
    torch.func, autocast and inference mode. It keeps none alive. None where torch has no such guards, or a tensor
    comes twice.

    Of a nested tensor of strided layout torch's guards ask the strides, which ends the process: whoever may have one
    asks `is_nested` first.
    """
    if _Guards is None or len({*map(id, tensors)}) < len(tensors):
        return None
    # The stride of a single element says nothing, of a contiguous tensor.
    strides = [
        [None if size == 1 and t.is_contiguous() else step for size, step in zip(t.shape, t.stride(), strict=True)]
        for t in tensors
    ]
    found: Callable[..., bool] = _Guards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=strides).check
    return found


def _is_as(tensor: torch.Tensor, form: ArraySpec, dtype: torch.dtype) -> bool:
    if tensor.shape != form.shape or tensor.dtype is not dtype or not tensor.is_cpu or tensor.is_neg():
        return False
    return tensor.is_contiguous() if form.strides is None else tensor.stride() == form.strides


def never(*_: Any) -> bool:
    """What fits before any tensor has been seen."""
    return False


def admission(forms: Sequence[ArraySpec]) -> Callable[..., Callable[..., bool] | None]:
    """``admit(*tensors)``: a function as of `alike` where the tensors lie as declared, on the CPU; else None."""
    dtypes = [getattr(torch, form.dtype) for form in forms]

    def one_by_one(*tensors: torch.Tensor) -> bool:
        return all(map(_is_as, tensors, forms, dtypes))

    def admit(*tensors: torch.Tensor) -> Callable[..., bool] | None:
        return (alike(tensors) or one_by_one) if one_by_one(*tensors) else None

    return admit

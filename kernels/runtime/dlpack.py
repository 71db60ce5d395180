"""CuPy's arrays as torch's tensors and back, without a copy, for the backends that take tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch


def as_tensor(array: Any) -> torch.Tensor | None:
    """A CuPy array seen as a tensor: the same memory, on torch's current stream. Negative strides, which torch has not,
    are copied into positive ones. None stays None."""
    if array is None:
        return None
    if any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_dlpack(array)


def as_cupy(tensor: torch.Tensor | None) -> Any:
    """A tensor seen as a CuPy array."""
    return None if tensor is None else sys.modules["cupy"].from_dlpack(tensor.detach())


def captured(tensors: Sequence[torch.Tensor | None]) -> bool:
    """Whether a call becomes part of a CUDA graph, when no value can be looked at."""
    return any(t is not None and t.is_cuda for t in tensors) and torch.cuda.is_current_stream_capturing()


def on_cupy(
    function: Callable[..., Sequence[torch.Tensor | None]],
    problem: Any,
    inputs: Sequence[Any],
    keywords: dict[str, Any],
    check: Callable[[Sequence[Any]], None] | None = None,
) -> tuple[Any, ...]:
    """``function(problem, *inputs, **keywords)`` of tensors, called with CuPy's arrays, behind `check` of the inputs;
    not in a captured graph."""
    tensors = [as_tensor(array) for array in inputs]
    if check is not None and not captured(tensors):
        check(tensors)
    with torch.no_grad():
        found = function(problem, *tensors, **{name: as_tensor(array) for name, array in keywords.items()})
        return tuple(map(as_cupy, found))

"""torch's own poolings, to compare with and as a last resort; their backward is differentiable once more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from kernels.arrays import ArraySpec
from kernels.op import Implementation
from kernels.pool2d.adaptive import (
    ADAPTIVE_AVG_POOL2D,
    ADAPTIVE_MAX_POOL2D,
    AdaptiveAvgPool2dProblem,
    AdaptiveMaxPool2dProblem,
)
from kernels.pool2d.op import (
    AVG_POOL2D,
    INTEGERS,
    LP_POOL2D,
    MAX_POOL2D,
    AvgPool2dProblem,
    LpPool2dProblem,
    MaxPool2dProblem,
)
from kernels.pool2d.pooling import Extremum, Pooling

Tensor = torch.Tensor
DTYPES = ("float16", "bfloat16", "float32", "float64")


def laid_out(found: Tensor, form: ArraySpec) -> Tensor:
    """In the layout that `form` declares; torch chooses another in a few cases (one channel, one pixel)."""
    return found.contiguous(memory_format=torch.channels_last if form.channels_last else torch.contiguous_format)


def _results(p: Pooling, *found: Tensor | None) -> tuple[Tensor | None, ...]:
    forms = p.results()
    return tuple(None if f is None or t is None else laid_out(t, f) for t, f in zip(found, forms, strict=True))


def _nothing(p: Pooling, x: Tensor) -> Tensor:
    """An empty output that depends on x: torch's own adaptive poolings refuse an empty gradient."""
    return x.new_empty(p.output_shape) + x.flatten()[:0].sum()


def max_pool2d(p: MaxPool2dProblem, x: Tensor) -> tuple[Tensor | None, ...]:
    """output, indices."""
    arguments: Any = (p.kernel_size, p.stride, p.padding, p.dilation, p.ceil_mode)
    return _results(p, *F.max_pool2d(x, *arguments, return_indices=True))


def direct_max_pool2d(p: MaxPool2dProblem) -> Callable[[Tensor], Tensor] | None:
    """torch's function where its output is contiguous."""
    arguments: Any = (p.kernel_size, p.stride, p.padding, p.dilation, p.ceil_mode)
    return (lambda x: torch.max_pool2d(x, *arguments)) if p.x.strides is None else None


def adaptive_max_pool2d(p: AdaptiveMaxPool2dProblem, x: Tensor) -> tuple[Tensor | None, ...]:
    """output, indices."""
    if p.empty:
        return _results(p, _nothing(p, x), x.new_empty(p.output_shape, dtype=torch.int64))
    size: Any = p.output_size
    return _results(p, *F.adaptive_max_pool2d(x, size, return_indices=True))


def to_indices(grad_output: Tensor, indices: Tensor, plane: tuple[int, ...]) -> Tensor:
    """Each gradient added at its index of the plane; 16-bit ones are added in float32."""
    n, c = grad_output.shape[:2]
    wide = grad_output.float() if grad_output.dtype in (torch.float16, torch.bfloat16) else grad_output
    zeros = wide.new_zeros(n, c, plane[0] * plane[1])
    return zeros.scatter_add(2, indices.flatten(2), wide.flatten(2)).to(grad_output.dtype).view(n, c, *plane)


def max_backward(p: Extremum, grad_output: Tensor, indices: Tensor) -> tuple[Tensor | None, ...]:
    """Gradient of x."""
    return (laid_out(to_indices(grad_output, indices, p.x.shape[2:]), p.x),)


def avg_pool2d(p: AvgPool2dProblem, x: Tensor) -> tuple[Tensor | None, ...]:
    """output."""
    arguments: Any = (p.kernel_size, p.stride, p.padding, p.ceil_mode, p.count_include_pad, p.divisor_override)
    return _results(p, F.avg_pool2d(x, *arguments))


def direct_avg_pool2d(p: AvgPool2dProblem) -> Callable[[Tensor], Tensor] | None:
    """torch's function where its output is contiguous."""
    arguments: Any = (p.kernel_size, p.stride, p.padding, p.ceil_mode, p.count_include_pad, p.divisor_override)
    return (lambda x: F.avg_pool2d(x, *arguments)) if p.x.strides is None else None


def _in_place_of_x(p: Pooling, grad_output: Tensor) -> Tensor:
    """What torch's backward reads x's shape and layout from; its values do not matter."""
    layout = torch.channels_last if p.x.channels_last else torch.contiguous_format
    return grad_output.new_empty(p.x.shape).contiguous(memory_format=layout)


def avg_pool2d_backward(p: AvgPool2dProblem, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """Gradient of x."""
    found = torch.ops.aten.avg_pool2d_backward(
        grad_output,
        _in_place_of_x(p, grad_output),
        list(p.kernel_size),
        list(p.stride),
        list(p.padding),
        p.ceil_mode,
        p.count_include_pad,
        p.divisor_override,
    )
    return (laid_out(found, p.x),)


def adaptive_avg_pool2d(p: AdaptiveAvgPool2dProblem, x: Tensor) -> tuple[Tensor | None, ...]:
    """output."""
    if p.empty:
        return _results(p, _nothing(p, x))
    size: Any = p.output_size
    return _results(p, F.adaptive_avg_pool2d(x, size))


def direct_adaptive_avg_pool2d(p: AdaptiveAvgPool2dProblem) -> Callable[[Tensor], Tensor] | None:
    """torch's function where its output is contiguous."""
    size: Any = p.output_size
    return (lambda x: F.adaptive_avg_pool2d(x, size)) if p.x.strides is None else None


def adaptive_avg_pool2d_backward(p: AdaptiveAvgPool2dProblem, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """Gradient of x."""
    if p.empty:
        return (laid_out(grad_output.new_zeros(p.x.shape), p.x),)
    found = torch.ops.aten._adaptive_avg_pool2d_backward(grad_output, _in_place_of_x(p, grad_output))
    return (laid_out(found, p.x),)


def lp_pool2d(p: LpPool2dProblem, x: Tensor) -> tuple[Tensor | None, ...]:
    """output, indices of the extrema."""
    indices = None
    if p.keeps_indices:
        size = x.abs() if p.norm_type > 0 else -x.abs()
        arguments: Any = (p.kernel_size, p.stride, 0, 1, p.ceil_mode)
        indices = F.max_pool2d(size, *arguments, return_indices=True)[1]
    return _results(p, _lp(p, x), indices)


def _lp(p: LpPool2dProblem, x: Tensor) -> Tensor:
    arguments: Any = (p.norm_type, p.kernel_size, p.stride, p.ceil_mode)
    return F.lp_pool2d(x, *arguments)


def lp_pool2d_backward(
    p: LpPool2dProblem, grad_output: Tensor, x: Tensor, output: Tensor | None = None, indices: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Gradient of x: torch's own derivative of its formula, recorded where second derivatives are wanted."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        source = x if x.requires_grad else x.detach().requires_grad_()
        (found,) = torch.autograd.grad(_lp(p, source), source, grad_output, create_graph=again)
    return (laid_out(found, p.x),)


Implementation(MAX_POOL2D, "torch", max_pool2d, max_backward, dtypes=(*DTYPES, *INTEGERS), direct=direct_max_pool2d)
Implementation(ADAPTIVE_MAX_POOL2D, "torch", adaptive_max_pool2d, max_backward, dtypes=DTYPES)
Implementation(
    AVG_POOL2D, "torch", avg_pool2d, avg_pool2d_backward, dtypes=(*DTYPES, "int64"), direct=direct_avg_pool2d
)
Implementation(
    ADAPTIVE_AVG_POOL2D,
    "torch",
    adaptive_avg_pool2d,
    adaptive_avg_pool2d_backward,
    dtypes=DTYPES,
    direct=direct_adaptive_avg_pool2d,
)
Implementation(LP_POOL2D, "torch", lp_pool2d, lp_pool2d_backward, dtypes=DTYPES)

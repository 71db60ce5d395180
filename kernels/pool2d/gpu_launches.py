"""What the GPU backends of the poolings have in common: where windows lie, what is taken, which op runs what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kernels.op import Implementation
from kernels.pool2d.adaptive import (
    ADAPTIVE_AVG_POOL2D,
    ADAPTIVE_MAX_POOL2D,
    AdaptiveAvgPool2dProblem,
    AdaptiveMaxPool2dProblem,
)
from kernels.pool2d.gpu_speeds import measured
from kernels.pool2d.op import (
    AVG_POOL2D,
    INTEGERS,
    LP_POOL2D,
    MAX_POOL2D,
    AvgPool2dProblem,
    LpPool2dProblem,
    MaxPool2dProblem,
)
from kernels.pool2d.pooling import Pooling

Function = Callable[..., tuple[Any, ...]]
#: The problems whose windows follow from the sizes.
Adaptive = AdaptiveMaxPool2dProblem | AdaptiveAvgPool2dProblem


@dataclass(frozen=True)
class Windows:
    """Windows that slide, each number (vertical, horizontal); of no meaning for adaptive ones."""

    kernel: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)


def windows_of(p: Pooling) -> Windows:
    """The windows of a call."""
    if isinstance(p, Adaptive):
        return Windows()
    assert isinstance(p, (MaxPool2dProblem, AvgPool2dProblem, LpPool2dProblem))
    dilation = p.dilation if isinstance(p, MaxPool2dProblem) else (1, 1)
    return Windows(p.kernel_size, p.stride, p.padding, dilation)


def implement(
    backend: str,
    dtypes: tuple[str, ...],
    *,
    maxima: tuple[Function, Function],
    means: tuple[Function, Function],
    powers: tuple[Function, Function],
) -> None:
    """Register a backend's (forward, backward) of the poolings that take maxima, means and power means."""

    def reasons(p: Pooling) -> list[str]:
        return [f"x has dtype {p.x.dtype}; it takes {', '.join(dtypes)}"] if p.x.dtype in INTEGERS else []

    pairs = (
        (MAX_POOL2D, maxima), (ADAPTIVE_MAX_POOL2D, maxima), (AVG_POOL2D, means), (ADAPTIVE_AVG_POOL2D, means),
        (LP_POOL2D, powers),
    )  # fmt: skip
    for op, passes in pairs:
        Implementation(op, backend, *passes, reasons=reasons, dtypes=dtypes, describe=_describe, measured=measured)


def _describe(p: Pooling) -> str:
    order = "channels" if p.x.channels_last else "columns"
    return f"threads along the {order}; backward collects from the windows that cover a place"

"""What a GPU measured of poolings (docs/gpu_times.md): those of which Triton's kernels are not always the fastest."""

from __future__ import annotations

from kernels.op import Measured
from kernels.pool2d.adaptive import AdaptiveAvgPool2dProblem
from kernels.pool2d.op import MaxPool2dProblem
from kernels.pool2d.pooling import Pooling

_MAXIMA = Measured("max_pool2d of (N, C, H, W) in float32", (1.62, 2.69), (1.06, 0.82))
_ADAPTIVE = Measured("channels-last adaptive_avg_pool2d in float32", (5.95, 4.23), (7.99, 3.22))


def measured(p: Pooling) -> Measured | None:
    """The class of a pooling."""
    if p.x.dtype != "float32":
        return None
    if isinstance(p, MaxPool2dProblem):
        return _MAXIMA if p.x.strides is None else None
    return _ADAPTIVE if isinstance(p, AdaptiveAvgPool2dProblem) and p.x.channels_last else None

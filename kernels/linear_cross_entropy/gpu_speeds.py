"""What a GPU measured of linear_cross_entropy (docs/gpu_times.md), beside torch's linear and cross_entropy."""

from __future__ import annotations

from kernels.linear_cross_entropy.op import LinearCrossEntropyProblem
from kernels.op import Measured

#: The most features with which Triton's losses are fused with the product. A logit costs 2 * features operations,
#: which for 1024 are 2.8 ps of a whole H100 at three quarters of its peak; in chunks it also goes to the L2 cache and
#: back, 4 bytes, at 5.5 TB/s 0.7 ps: a fourth, about what a product by Triton may be slower than cuBLAS's.
#: Arithmetic, not measured.
MOST_FEATURES = 1024

_HALF = Measured("linear_cross_entropy of up to 1024 features in half precision", (8.18, 7.94), (5.19, 10.64))


def measured(p: LinearCrossEntropyProblem) -> Measured | None:
    """The class of a call."""
    return _HALF if p.input.itemsize == 2 and p.linear_weight.shape[1] <= MOST_FEATURES else None

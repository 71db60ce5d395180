"""Declaration of adaptive_max_pool2d and adaptive_avg_pool2d: windows follow from the output's size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from kernels import checks
from kernels.arrays import ArraySpec
from kernels.op import Op
from kernels.pool2d.pooling import Extremum, Pooling, call_pooling, check_image


def _adaptive_size(op: str, output_size: Any, x: ArraySpec) -> tuple[int, ...]:
    """`output_size` as (H_out, W_out); None in a pair is x's own size there."""
    own = (x.shape[2], x.shape[3])
    if not isinstance(output_size, (tuple, list)) or len(output_size) not in (1, 2):
        return checks.pair(op, "output_size", output_size, 0)
    wanted = (output_size[0], output_size[-1])
    return tuple(own[d] if wanted[d] is None else checks.integer(op, "output_size", wanted[d], 0) for d in (0, 1))


@dataclass(frozen=True)
class AdaptiveMaxPool2dProblem(Extremum):
    """adaptive_max_pool2d, checked."""

    output_size: tuple[int, ...]
    return_indices: bool

    @classmethod
    def check(cls, x: ArraySpec, output_size: Any, return_indices: Any) -> AdaptiveMaxPool2dProblem:
        """See :func:`adaptive_max_pool2d` for the rules."""
        op = "adaptive_max_pool2d"
        check_image(op, x)
        return cls(x, _adaptive_size(op, output_size, x), checks.boolean(op, "return_indices", return_indices))

    @property
    def output_plane(self) -> tuple[int, ...]:
        """(H_out, W_out)."""
        return self.output_size

    @property
    def keeps_indices(self) -> bool:
        """The caller or backward wants them."""
        return self.return_indices or self.trains

    @property
    def returned(self) -> int:
        """The output, and the indices where asked for."""
        return 2 if self.return_indices else 1

    def flops(self) -> int:
        """One comparison for every input."""
        return self.x.size


ADAPTIVE_MAX_POOL2D = Op(
    "adaptive_max_pool2d", AdaptiveMaxPool2dProblem, family=__package__, results=("output", "indices")
)


def adaptive_max_pool2d(
    x: Any, output_size: Any, return_indices: bool = False, *, device: Any = None, backend: str | None = None
) -> Any:
    """The largest value in each of H_out x W_out windows that cover the image.

    Window i of a dimension of size n goes from floor(i * n / out) to ceil((i + 1) * n / out); windows may overlap and
    differ in size. NaN and equal values as in :func:`max_pool2d`.

    Args:
        x: images (N, C, H, W), or one image (C, H, W), floating point. Any strides; channels-last comes back so.
        output_size: int or (H_out, W_out), at least 0; None in the pair keeps x's size there.
        return_indices: also return where each maximum was, flat in its H * W plane.
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        (N, C, H_out, W_out) (or without N) of x's kind and dtype; with return_indices a pair with the int64 indices.

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above.
        BackendError: the wanted backend cannot run this call.
    """
    return call_pooling(ADAPTIVE_MAX_POOL2D, x, (output_size, return_indices), device, backend)


@dataclass(frozen=True)
class AdaptiveAvgPool2dProblem(Pooling):
    """adaptive_avg_pool2d, checked."""

    output_size: tuple[int, ...]

    @classmethod
    def check(cls, x: ArraySpec, output_size: Any) -> AdaptiveAvgPool2dProblem:
        """See :func:`adaptive_avg_pool2d` for the rules."""
        op = "adaptive_avg_pool2d"
        check_image(op, x, may_be_empty=(0, 1))
        return cls(x, _adaptive_size(op, output_size, x))

    @property
    def output_plane(self) -> tuple[int, ...]:
        """(H_out, W_out)."""
        return self.output_size

    def flops(self) -> int:
        """One addition for every input, one division for every output."""
        return self.x.size + math.prod(self.output_shape)


ADAPTIVE_AVG_POOL2D = Op("adaptive_avg_pool2d", AdaptiveAvgPool2dProblem, family=__package__)


def adaptive_avg_pool2d(x: Any, output_size: Any, *, device: Any = None, backend: str | None = None) -> Any:
    """The mean of each of H_out x W_out windows that cover the image; the windows of :func:`adaptive_max_pool2d`.

    Args:
        x: images (N, C, H, W), or one image (C, H, W), floating point. Any strides; channels-last comes back so.
        output_size: int or (H_out, W_out), at least 0; None in the pair keeps x's size there.
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        (N, C, H_out, W_out) (or without N), x's kind of array and dtype. 16-bit numbers are summed in float32.

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above.
        BackendError: the wanted backend cannot run this call.
    """
    return call_pooling(ADAPTIVE_AVG_POOL2D, x, (output_size,), device, backend)

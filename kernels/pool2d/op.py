"""Declaration of max_pool2d, avg_pool2d and lp_pool2d: arguments, rules, shapes, costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from kernels import checks
from kernels.arrays import ArraySpec
from kernels.op import Op
from kernels.pool2d import windows
from kernels.pool2d.pooling import Extremum, Pooling, call_pooling, check_image

INTEGERS = ("uint8", "int8", "int16", "int32", "int64")


def _stride(op: str, stride: Any, kernel: checks.Pair, prefix: str = "") -> checks.Pair:
    """`stride` as a pair; None and the empty sequence are the kernel's size."""
    if stride is None or (isinstance(stride, (tuple, list)) and len(stride) == 0):
        return kernel
    return checks.pair(op, f"{prefix}stride", stride, 1)


def _check_padding(op: str, padding: checks.Pair, kernel: checks.Pair, prefix: str = "") -> None:
    """So no window lies in the padding alone."""
    if padding[0] > kernel[0] // 2 or padding[1] > kernel[1] // 2:
        checks.fail(op, f"{prefix}padding", f"must be at most half of {prefix}kernel_size {kernel}", padding)


def _output_plane(p: Any, dilation: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(
        windows.output_size(p.x.shape[2 + d], p.kernel_size[d], p.stride[d], p.padding[d], dilation[d], p.ceil_mode)
        for d in (0, 1)
    )


def _check_fits(op: str, p: Pooling, prefix: str = "", image: str = "x") -> None:
    height, width = p.output_plane
    if height < 1 or width < 1:
        rule = f"must fit into the padded {image} {p.x.shape} and leave an output of at least 1 x 1"
        checks.fail(op, f"{prefix}kernel_size", rule, f"an output of {height} x {width}")


# ----- maximum -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaxPool2dProblem(Extremum):
    """max_pool2d, checked."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool
    return_indices: bool

    @classmethod
    def check(
        cls,
        x: ArraySpec,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        ceil_mode: Any,
        return_indices: Any,
    ) -> MaxPool2dProblem:
        """See :func:`max_pool2d` for the rules."""
        op = "max_pool2d"
        check_image(op, x, (*checks.FLOATING, *INTEGERS))
        dilation = checks.pair(op, "dilation", dilation, 1)
        return_indices = checks.boolean(op, "return_indices", return_indices)
        return cls.check_for(op, "", "x", x, kernel_size, stride, padding, ceil_mode, dilation, return_indices)

    @classmethod
    def check_for(
        cls,
        op: str,
        prefix: str,
        image: str,
        x: ArraySpec,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        ceil_mode: Any,
        dilation: checks.Pair = (1, 1),
        return_indices: bool = False,
    ) -> MaxPool2dProblem:
        """As `check` of images `x`, with the messages of `op`, which calls them `image` and has the windows' arguments
        with a prefix to their names."""
        kernel = checks.pair(op, f"{prefix}kernel_size", kernel_size, 1)
        stride = _stride(op, stride, kernel, prefix)
        padding = checks.pair(op, f"{prefix}padding", padding, 0)
        ceil_mode = checks.boolean(op, f"{prefix}ceil_mode", ceil_mode)
        _check_padding(op, padding, kernel, prefix)
        problem = cls(x, kernel, stride, padding, dilation, ceil_mode, return_indices)
        _check_fits(op, problem, prefix, image)
        return problem

    @property
    def output_plane(self) -> tuple[int, ...]:
        """(H_out, W_out)."""
        return _output_plane(self, self.dilation)

    @property
    def keeps_indices(self) -> bool:
        """The caller or backward wants them."""
        return self.return_indices or self.trains

    @property
    def returned(self) -> int:
        """The output, and the indices where asked for."""
        return 2 if self.return_indices else 1

    def flops(self) -> int:
        """One comparison for every tap."""
        return math.prod(self.output_shape) * self.kernel_size[0] * self.kernel_size[1]


MAX_POOL2D = Op("max_pool2d", MaxPool2dProblem, family=__package__, results=("output", "indices"))


def max_pool2d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    device: Any = None,
    backend: str | None = None,
) -> Any:
    """The largest value in each window that slides over each channel.

    ``y[n, c, i, j] = max_{r, s} x[n, c, i*stride + r*dilation - padding, j*stride + s*dilation - padding]``

    Padding never wins (it counts as -inf, or as the least integer); NaN in a window always does. Of equal values the
    first in row-major order is the one whose index is returned and that gets the gradient; of several NaN the last.

    Args:
        x: images (N, C, H, W), or one image (C, H, W). Floating point; integers on backends torch and reference. Any
            strides; channels-last comes back channels-last.
        kernel_size: int or (vertical, horizontal): size of the window.
        stride: int or (vertical, horizontal), at least 1; None or () is kernel_size.
        padding: int or (vertical, horizontal) on both sides, at most half of kernel_size.
        dilation: int or (vertical, horizontal), at least 1: distance between the taps of a window.
        ceil_mode: round the number of windows up, not down; a window that would start behind the image is dropped.
        return_indices: also return where each maximum was, flat in its H * W plane.
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        (N, C, H_out, W_out) (or without N) of x's kind and dtype; with return_indices a pair with the int64 indices.

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above.
        BackendError: the wanted backend cannot run this call.
    """
    attributes = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return call_pooling(MAX_POOL2D, x, attributes, device, backend)


# ----- average -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AvgPool2dProblem(Pooling):
    """avg_pool2d, checked."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    ceil_mode: bool
    count_include_pad: bool
    divisor_override: int | None

    @classmethod
    def check(
        cls,
        x: ArraySpec,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        ceil_mode: Any,
        count_include_pad: Any,
        divisor_override: Any,
    ) -> AvgPool2dProblem:
        """See :func:`avg_pool2d` for the rules."""
        op = "avg_pool2d"
        check_image(op, x, (*checks.FLOATING, "int64"))
        kernel = checks.pair(op, "kernel_size", kernel_size, 1)
        stride = _stride(op, stride, kernel)
        padding = checks.pair(op, "padding", padding, 0)
        ceil_mode = checks.boolean(op, "ceil_mode", ceil_mode)
        count_include_pad = checks.boolean(op, "count_include_pad", count_include_pad)
        if divisor_override is not None:
            divisor_override = checks.integer(op, "divisor_override", divisor_override)
            if divisor_override == 0:
                checks.fail(op, "divisor_override", "must not be 0", divisor_override)
        _check_padding(op, padding, kernel)
        problem = cls(x, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
        _check_fits(op, problem)
        return problem

    @property
    def output_plane(self) -> tuple[int, ...]:
        """(H_out, W_out)."""
        return _output_plane(self, (1, 1))

    def flops(self) -> int:
        """One addition for every tap, one division for every output."""
        return math.prod(self.output_shape) * (self.kernel_size[0] * self.kernel_size[1] + 1)


AVG_POOL2D = Op("avg_pool2d", AvgPool2dProblem, family=__package__)


def avg_pool2d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    device: Any = None,
    backend: str | None = None,
) -> Any:
    """The mean of each window that slides over each channel.

    ``y[n, c, i, j] = sum_{r, s} x[n, c, i*stride + r - padding, j*stride + s - padding] / divisor``

    Args:
        x: images (N, C, H, W), or one image (C, H, W). Floating point; int64 (rounded towards 0) on backends torch
            and reference. Any strides; channels-last comes back channels-last.
        kernel_size: int or (vertical, horizontal): size of the window.
        stride: int or (vertical, horizontal), at least 1; None or () is kernel_size.
        padding: int or (vertical, horizontal): zeros on both sides, at most half of kernel_size.
        ceil_mode: round the number of windows up, not down; a window that would start behind the image is dropped.
        count_include_pad: the divisor counts the padding; what ceil_mode adds behind it never counts.
        divisor_override: the divisor, whatever the window; not 0.
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        (N, C, H_out, W_out) (or without N), x's kind of array and dtype. 16-bit numbers are summed in float32.

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above.
        BackendError: the wanted backend cannot run this call.
    """
    attributes = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return call_pooling(AVG_POOL2D, x, attributes, device, backend)


# ----- power average -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LpPool2dProblem(Extremum):
    """lp_pool2d, checked."""

    norm_type: float
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    ceil_mode: bool

    @classmethod
    def check(cls, x: ArraySpec, norm_type: Any, kernel_size: Any, stride: Any, ceil_mode: Any) -> LpPool2dProblem:
        """See :func:`lp_pool2d` for the rules."""
        op = "lp_pool2d"
        check_image(op, x)
        # An int by way of `integer`, which torch.compile can trace for a symbolic one.
        whole = isinstance(norm_type, int) and not isinstance(norm_type, bool)
        norm = float(checks.integer(op, "norm_type", norm_type)) if whole else checks.number(op, "norm_type", norm_type)
        if norm == 0:
            checks.fail(op, "norm_type", "must not be 0", norm_type)
        kernel = checks.pair(op, "kernel_size", kernel_size, 1)
        problem = cls(x, norm, kernel, _stride(op, stride, kernel), checks.boolean(op, "ceil_mode", ceil_mode))
        _check_fits(op, problem)
        return problem

    @property
    def padding(self) -> tuple[int, int]:
        """None."""
        return 0, 0

    @property
    def is_extremum(self) -> bool:
        """norm_type is infinite: the largest |x| for inf, the smallest for -inf."""
        return math.isinf(self.norm_type)

    @property
    def output_plane(self) -> tuple[int, ...]:
        """(H_out, W_out)."""
        return _output_plane(self, (1, 1))

    @property
    def keeps_indices(self) -> bool:
        """Backward of an extremum wants them."""
        return self.trains and self.is_extremum

    def saved(self) -> tuple[str, ...]:
        """x and the output, or where the extrema were."""
        return ("x", "indices") if self.is_extremum else ("x", "output")

    def flops(self) -> int:
        """A power and an addition for every tap, a root for every output."""
        return math.prod(self.output_shape) * (2 * self.kernel_size[0] * self.kernel_size[1] + 1)


LP_POOL2D = Op("lp_pool2d", LpPool2dProblem, family=__package__, results=("output", "indices"))


def lp_pool2d(
    x: Any,
    norm_type: float,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
    *,
    device: Any = None,
    backend: str | None = None,
) -> Any:
    """The power average of each window that slides over each channel.

    ``y[n, c, i, j] = (sum_{r, s} x[n, c, i*stride + r, j*stride + s] ** p) ** (1 / p)``

    As torch computes it: x ** p keeps x's sign where p is odd (a negative sum then has no root: NaN, except for p = 1),
    and is NaN for a negative x where p is no integer. A window that ceil_mode cuts off at the border counts as its mean
    times the full window's size. A window whose powers sum to 0 passes no gradient. p = inf is the largest |x|, and
    p = -inf the smallest. (Sermanet, Chintala and LeCun, Convolutional neural networks applied to house numbers digit
    classification, 2012.)

    Args:
        x: images (N, C, H, W), or one image (C, H, W), floating point. Any strides; channels-last comes back so.
        norm_type: p, any number but 0.
        kernel_size: int or (vertical, horizontal): size of the window.
        stride: int or (vertical, horizontal), at least 1; None or () is kernel_size.
        ceil_mode: round the number of windows up, not down; a window that would start behind the image is dropped.
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        (N, C, H_out, W_out) (or without N), x's kind of array and dtype.

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above.
        BackendError: the wanted backend cannot run this call.
    """
    return call_pooling(LP_POOL2D, x, (norm_type, kernel_size, stride, ceil_mode), device, backend)

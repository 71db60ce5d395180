"""Declaration of conv2d_max_pool2d: arguments, rules, shapes, costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kernels import arrays
from kernels.activation.functions import FROM_OUTPUT
from kernels.arrays import ArraySpec
from kernels.call import call
from kernels.conv2d.op import Conv2dProblem
from kernels.op import Op, Problem
from kernels.pool2d.op import MaxPool2dProblem

#: Taps of a window that a byte can number.
BYTE_TAPS = 256


@dataclass(frozen=True)
class Conv2dMaxPool2dProblem(Problem):
    """conv2d_max_pool2d, checked: padding is (top, bottom, left, right), pool_padding (vertical, horizontal)."""

    x: ArraySpec
    weight: ArraySpec
    bias: ArraySpec | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    activation: str | None
    pool_kernel_size: tuple[int, ...]
    pool_stride: tuple[int, ...]
    pool_padding: tuple[int, ...]
    pool_ceil_mode: bool

    @classmethod
    def check(
        cls,
        x: ArraySpec,
        weight: ArraySpec,
        bias: ArraySpec | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: Any,
        activation: Any,
        pool_kernel_size: Any,
        pool_stride: Any,
        pool_padding: Any,
        pool_ceil_mode: Any,
    ) -> Conv2dMaxPool2dProblem:
        """See :func:`conv2d_max_pool2d` for the rules."""
        op = "conv2d_max_pool2d"
        c = Conv2dProblem.check_for(op, x, weight, bias, stride, padding, dilation, groups, activation)
        image = c.x.like(c.find_output_shape())
        windows = (pool_kernel_size, pool_stride, pool_padding, pool_ceil_mode)
        m = MaxPool2dProblem.check_for(op, "pool_", "convolution", image, *windows)
        pool = (m.kernel_size, m.stride, m.padding, m.ceil_mode)
        return cls(x, weight, bias, c.stride, c.padding, c.dilation, c.groups, c.activation, *pool)

    @cached_property
    def convolution(self) -> Conv2dProblem:
        """The conv2d inside."""
        return Conv2dProblem(
            self.x,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.activation,
            needs_grad=self.needs_grad,
        )

    @cached_property
    def pooling(self) -> MaxPool2dProblem:
        """The max_pool2d of its result."""
        c = self.convolution
        image = self.x.like(c.output_shape, channels_last=c.channels_last)
        windows = (self.pool_kernel_size, self.pool_stride, self.pool_padding, (1, 1), self.pool_ceil_mode)
        return MaxPool2dProblem(image, *windows, False, needs_grad=(self.trains,))

    @cached_property
    def seen(self) -> tuple[int, int, int, int]:
        """(N, C_out, H, W) of the part of the convolution that the windows see: it may end before the whole does."""
        n, channels, *plane = self.convolution.output_shape
        height, width = (
            min(
                plane[d],
                (self.pooling.output_plane[d] - 1) * self.pool_stride[d]
                - self.pool_padding[d]
                + self.pool_kernel_size[d],
            )
            for d in (0, 1)
        )
        return n, channels, height, width

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """(N, C_out, PH, PW)."""
        return self.pooling.output_shape

    @property
    def keeps_sums(self) -> bool:
        """Whether the activation's derivative reads the sums before it."""
        return self.trains and self.activation is not None and self.activation not in FROM_OUTPUT

    def results(self) -> tuple[ArraySpec | None, ...]:
        """The output; which tap of its window each element of it is, numbered by rows, always channels-last; and the
        sum before the activation there, where its derivative reads that."""
        shape, last = self.output_shape, self.convolution.channels_last
        form = self.x.like(shape, channels_last=last)
        taps = self.pool_kernel_size[0] * self.pool_kernel_size[1]
        dtype = "uint8" if taps <= BYTE_TAPS else "int64"
        winners = self.x.like(shape, dtype=dtype, channels_last=True) if self.trains else None
        return form, winners, form if self.keeps_sums else None

    def saved(self) -> tuple[str, ...]:
        """x, weight and the winners; the bias, and the output or the sums, where the activation's derivative reads
        them."""
        if self.activation is None:
            return "x", "weight", "winners"
        return "x", "weight", "bias", "winners", "output" if self.activation in FROM_OUTPUT else "preactivation"

    def gradients(self) -> tuple[ArraySpec | None, ...]:
        """As conv2d's."""
        return self.convolution.gradients()

    def flops(self) -> int:
        """Of conv2d and of max_pool2d."""
        return self.convolution.flops() + self.pooling.flops()


CONV2D_MAX_POOL2D = Op(
    "conv2d_max_pool2d", Conv2dMaxPool2dProblem, family=__package__, results=("output", "winners", "preactivation")
)


def conv2d_max_pool2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    pool_kernel_size: Any,
    pool_stride: Any = None,
    pool_padding: Any = 0,
    pool_ceil_mode: bool = False,
    device: Any = None,
    backend: str | None = None,
) -> Any:
    """`conv2d`, its activation and `max_pool2d` in one pass: what is between them is never in memory as a whole.

    The same as ``max_pool2d(conv2d(x, ...), pool_kernel_size, pool_stride, pool_padding, ceil_mode=pool_ceil_mode)``,
    in every detail: padding of the windows never wins, NaN always does, and of equal values the first in row-major
    order gets the gradient. Training keeps one byte for each element of the output, beside the output itself.

    Args:
        x: images (N, C_in, H, W), or one image (C_in, H, W). Any strides; channels-last comes back channels-last.
        weight: filters (C_out, C_in / groups, kh, kw).
        bias: (C_out,) or None.
        stride, padding, dilation, groups: of the convolution, as `conv2d` takes them.
        activation: None, "relu", "gelu" (exact), "silu", "tanh" or "sigmoid", between the convolution and the windows.
        pool_kernel_size: int or (vertical, horizontal): size of the windows.
        pool_stride: int or (vertical, horizontal), at least 1; None or () is pool_kernel_size.
        pool_padding: int or (vertical, horizontal) on both sides, at most half of pool_kernel_size.
        pool_ceil_mode: round the number of windows up, not down; a window that would start behind the convolution is
            dropped.
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        (N, C_out, PH, PW), or (C_out, PH, PW) for one image; x's kind of array and dtype. An empty batch gives an empty
        result and zero gradients.

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above.
        BackendError: the wanted backend cannot run this call.
    """
    windows = (pool_kernel_size, pool_stride, pool_padding, pool_ceil_mode)
    attributes = (stride, padding, dilation, groups, activation, *windows)
    rank = getattr(x, "ndim", None)
    if rank is None:
        x = arrays.from_dlpack(x)
        rank = getattr(x, "ndim", None)
    if rank == 3:
        return call(CONV2D_MAX_POOL2D, (x[None], weight, bias), attributes, device, backend)[0]
    return call(CONV2D_MAX_POOL2D, (x, weight, bias), attributes, device, backend)

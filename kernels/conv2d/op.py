"""Declaration of conv2d and conv_transpose2d: arguments, rules, shapes, costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kernels import arrays, checks
from kernels.activation.functions import FROM_OUTPUT, FUSED
from kernels.arrays import ArraySpec
from kernels.call import call
from kernels.op import Op, Problem

Padding = tuple[int, int, int, int]


def output_size(size: int, before: int, after: int, kernel: int, stride: int, dilation: int) -> int:
    """Outputs of a convolution along one dimension; 0 or less when the kernel does not fit."""
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


def _same(size: int, kernel: int, stride: int, dilation: int, *, extra_after: bool) -> tuple[int, int]:
    """Padding (before, after) for ceil(size / stride) outputs: ONNX's SAME_UPPER and SAME_LOWER, TensorFlow's SAME."""
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return (total // 2, total - total // 2) if extra_after else (total - total // 2, total // 2)


def resolve_padding(
    op: str, padding: Any, image: tuple[int, int], kernel: checks.Pair, stride: checks.Pair, dilation: checks.Pair
) -> Padding:
    """Every form of `padding` as (top, bottom, left, right)."""
    if isinstance(padding, str):
        if padding == "valid":
            return 0, 0, 0, 0
        if padding == "same":
            if stride != (1, 1):
                checks.fail(
                    op, "padding", "'same' needs stride 1 (use 'same_upper' or 'same_lower')", f"stride {stride}"
                )
            totals = [dilation[d] * (kernel[d] - 1) for d in (0, 1)]
            return totals[0] // 2, totals[0] - totals[0] // 2, totals[1] // 2, totals[1] - totals[1] // 2
        if padding in ("same_upper", "same_lower"):
            sides = [
                _same(image[d], kernel[d], stride[d], dilation[d], extra_after=padding == "same_upper") for d in (0, 1)
            ]
            return *sides[0], *sides[1]
        checks.fail(op, "padding", "must be 'valid', 'same', 'same_upper' or 'same_lower' when a string", repr(padding))
    if isinstance(padding, (tuple, list)) and any(isinstance(side, (tuple, list)) for side in padding):
        rule = "must be an int, a pair, ((top, bottom), (left, right)) or a string"
        if len(padding) != 2 or not all(isinstance(side, (tuple, list)) and len(side) == 2 for side in padding):
            checks.fail(op, "padding", rule, padding)
        (top, bottom), (left, right) = (checks.pair(op, "padding", side, 0) for side in padding)
        return top, bottom, left, right
    vertical, horizontal = checks.pair(op, "padding", padding, 0)
    return vertical, vertical, horizontal, horizontal


@dataclass(frozen=True)
class _Convolution(Problem):
    """What both convolutions share: their arguments, normalised."""

    x: ArraySpec
    weight: ArraySpec
    bias: ArraySpec | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def kernel(self) -> tuple[int, int]:
        """(kernel height, kernel width)."""
        return self.weight.shape[2], self.weight.shape[3]

    @cached_property
    def channels_last(self) -> bool:
        """Whether the result is laid out channels-last: when either the image or the weight is, as in torch."""
        return self.x.channels_last or self.weight.channels_last

    def _taps(self) -> int:
        """Multiply-adds of one group's filter: C_in / groups * kh * kw for conv2d."""
        return self.weight.size // max(self.weight.shape[0], 1)

    def gradients(self) -> tuple[ArraySpec | None, ...]:
        """Gradients of x and weight in the result's layout, of bias contiguous."""
        last = self.channels_last
        return (
            self.x.like(self.x.shape, channels_last=last),
            self.weight.like(self.weight.shape, channels_last=last),
            None if self.bias is None else self.bias.like(self.bias.shape),
        )


def _check_inputs(op: str, x: ArraySpec, weight: ArraySpec, bias: ArraySpec | None, weight_shape: str) -> None:
    checks.rank(op, "x", x, (4,), "(N, C, H, W) or (C, H, W)")
    checks.rank(op, "weight", weight, (4,), weight_shape)
    checks.dtype(op, "x", x)
    checks.same_dtype(op, ("x", x), ("weight", weight), ("bias", bias))
    checks.no_zero_size(op, "x", x, (1, 2, 3))
    checks.no_zero_size(op, "weight", weight, (0, 1, 2, 3))


@dataclass(frozen=True)
class Conv2dProblem(_Convolution):
    """conv2d, checked: padding is (top, bottom, left, right)."""

    activation: str | None

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
    ) -> Conv2dProblem:
        """See :func:`conv2d` for the rules."""
        return cls.check_for("conv2d", x, weight, bias, stride, padding, dilation, groups, activation)

    @classmethod
    def check_for(
        cls,
        op: str,
        x: ArraySpec,
        weight: ArraySpec,
        bias: ArraySpec | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: Any,
        activation: Any,
    ) -> Conv2dProblem:
        """As `check`, with the messages of `op`, which has a convolution inside."""
        _check_inputs(op, x, weight, bias, "(C_out, C_in / groups, kh, kw)")
        stride = checks.pair(op, "stride", stride, 1)
        dilation = checks.pair(op, "dilation", dilation, 1)
        groups = checks.integer(op, "groups", groups, 1)
        checks.one_of(op, "activation", activation, FUSED)
        channels, outputs = x.shape[1], weight.shape[0]
        if channels % groups:
            checks.fail(op, "groups", f"must divide the {channels} channels of x", groups)
        if outputs % groups:
            checks.fail(op, "groups", f"must divide the {outputs} output channels of weight", groups)
        if weight.shape[1] != channels // groups:
            rule = f"must have {channels // groups} input channels (x has {channels} in {groups} groups)"
            checks.fail(op, "weight", rule, weight.shape)
        if bias is not None:
            checks.shape(op, "bias", bias, (outputs,), "(one value for each output channel of weight)")
        kernel = (weight.shape[2], weight.shape[3])
        image = (x.shape[2], x.shape[3])
        sides = resolve_padding(op, padding, image, kernel, stride, dilation)
        for d, name in enumerate(("height", "width")):
            reach = dilation[d] * (kernel[d] - 1) + 1
            padded = image[d] + sides[2 * d] + sides[2 * d + 1]
            if reach > padded:
                checks.fail(op, "weight", f"(dilated {name} {reach}) must not exceed the padded {name} of x", padded)
        return cls(x, weight, bias, stride, sides, dilation, groups, activation)

    @cached_property
    def output_shape(self) -> tuple[int, int, int, int]:
        """(N, C_out, H_out, W_out)."""
        return self.find_output_shape()

    def find_output_shape(self) -> tuple[int, int, int, int]:
        """output_shape, for where torch.compile looks on: it cannot follow the lock of a cached property."""
        top, bottom, left, right = self.padding
        height = output_size(self.x.shape[2], top, bottom, self.kernel[0], self.stride[0], self.dilation[0])
        width = output_size(self.x.shape[3], left, right, self.kernel[1], self.stride[1], self.dilation[1])
        return self.x.shape[0], self.weight.shape[0], height, width

    def results(self) -> tuple[ArraySpec | None, ...]:
        """The output, and the sums before the activation where its derivative needs them."""
        form = self.x.like(self.output_shape, channels_last=self.channels_last)
        return form, form if self.keeps_sums else None

    @cached_property
    def keeps_sums(self) -> bool:
        """Whether backward needs the sums before the activation."""
        return self.trains and self.activation is not None and self.activation not in FROM_OUTPUT

    def saved(self) -> tuple[str, ...]:
        """x and weight; the bias, and the output or the sums, where the activation's derivative reads them."""
        if self.activation is None:
            return "x", "weight"
        return "x", "weight", "bias", "output" if self.activation in FROM_OUTPUT else "preactivation"

    def flops(self) -> int:
        """Two for every multiply-add."""
        n, outputs, height, width = self.output_shape
        return 2 * n * outputs * height * width * self._taps()


CONV2D = Op("conv2d", Conv2dProblem, family=__package__, results=("output", "preactivation"))


def conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    device: Any = None,
    backend: str | None = None,
) -> Any:
    """Two-dimensional convolution (cross-correlation, as everywhere in deep learning), with bias and activation.

    ``y[n, k, i, j] = act(bias[k] + sum over (c, r, s) of weight[k, c, r, s] * x[n, g(k) + c, i'(r), j'(s)])`` with
    ``i'(r) = i * stride + r * dilation - padding`` and g(k) the first channel of k's group.

    Args:
        x: images (N, C_in, H, W), or one image (C_in, H, W). Any strides; channels-last comes back channels-last.
        weight: filters (C_out, C_in / groups, kh, kw).
        bias: (C_out,) or None.
        stride: int or (vertical, horizontal), at least 1.
        padding: zeros around the image: int, (vertical, horizontal), ((top, bottom), (left, right)), "valid" (none),
            "same" (torch's: stride 1 only), "same_upper" or "same_lower" (ONNX's and TensorFlow's: ceil(size / stride)
            outputs for any stride, an odd row of padding at the end or at the start).
        dilation: int or (vertical, horizontal), at least 1: distance between the taps of a filter.
        groups: the channels fall into this many groups that do not mix; C_in is a depthwise convolution.
        activation: None, "relu", "gelu" (exact), "silu", "tanh" or "sigmoid", applied in the same pass; differentiable.
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        (N, C_out, H_out, W_out), or (C_out, H_out, W_out) for one image; x's kind of array and dtype. An empty batch
        gives an empty result and zero gradients.

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above.
        BackendError: the wanted backend cannot run this call.
    """
    rank = getattr(x, "ndim", None)
    if rank is None:
        x = arrays.from_dlpack(x)
        rank = getattr(x, "ndim", None)
    if rank == 3:
        batch = (x[None], weight, bias)
        return call(CONV2D, batch, (stride, padding, dilation, groups, activation), device, backend)[0]
    return call(CONV2D, (x, weight, bias), (stride, padding, dilation, groups, activation), device, backend)


@dataclass(frozen=True)
class ConvTranspose2dProblem(_Convolution):
    """conv_transpose2d, checked: padding is (top, bottom, left, right) of the forward convolution it transposes."""

    output_padding: tuple[int, ...]

    @classmethod
    def check(
        cls,
        x: ArraySpec,
        weight: ArraySpec,
        bias: ArraySpec | None,
        stride: Any,
        padding: Any,
        output_padding: Any,
        groups: Any,
        dilation: Any,
    ) -> ConvTranspose2dProblem:
        """See :func:`conv_transpose2d` for the rules."""
        op = "conv_transpose2d"
        _check_inputs(op, x, weight, bias, "(C_in, C_out / groups, kh, kw)")
        stride = checks.pair(op, "stride", stride, 1)
        dilation = checks.pair(op, "dilation", dilation, 1)
        groups = checks.integer(op, "groups", groups, 1)
        vertical, horizontal = checks.pair(op, "padding", padding, 0)
        extra = checks.pair(op, "output_padding", output_padding, 0)
        channels = x.shape[1]
        if channels % groups:
            checks.fail(op, "groups", f"must divide the {channels} channels of x", groups)
        if weight.shape[0] != channels:
            checks.fail(
                op, "weight", f"must have x's {channels} channels first, (C_in, C_out / groups, kh, kw)", weight.shape
            )
        outputs = weight.shape[1] * groups
        if bias is not None:
            checks.shape(op, "bias", bias, (outputs,), "(one value for each output channel of weight)")
        for d in (0, 1):
            if extra[d] >= max(stride[d], dilation[d]):
                rule = f"must be smaller than stride {stride} or dilation {dilation}"
                checks.fail(op, "output_padding", rule, extra)
        sides = (vertical, vertical, horizontal, horizontal)
        problem = cls(x, weight, bias, stride, sides, dilation, groups, extra)
        if min(problem.output_shape[2:]) < 1:
            checks.fail(
                op, "padding", "must leave an output of at least 1 x 1", f"an output of {problem.output_shape[2:]}"
            )
        return problem

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """(N, C_out, H_out, W_out)."""
        size = [
            (self.x.shape[2 + d] - 1) * self.stride[d]
            - self.padding[2 * d]
            - self.padding[2 * d + 1]
            + self.dilation[d] * (self.kernel[d] - 1)
            + self.output_padding[d]
            + 1
            for d in (0, 1)
        ]
        return self.x.shape[0], self.weight.shape[1] * self.groups, size[0], size[1]

    def results(self) -> tuple[ArraySpec | None, ...]:
        """The output."""
        return (self.x.like(self.output_shape, channels_last=self.channels_last),)

    def saved(self) -> tuple[str, ...]:
        """x and weight."""
        return "x", "weight"

    def flops(self) -> int:
        """Two for every multiply-add."""
        return 2 * self.x.size * self._taps()


CONV_TRANSPOSE2D = Op("conv_transpose2d", ConvTranspose2dProblem, family=__package__)


def conv_transpose2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    device: Any = None,
    backend: str | None = None,
) -> Any:
    """Transpose of a two-dimensional convolution: the map that takes conv2d's output gradient to its input gradient.

    Args:
        x: (N, C_in, H, W) or (C_in, H, W). Any strides; channels-last comes back channels-last.
        weight: (C_in, C_out / groups, kh, kw).
        bias: (C_out,) or None.
        stride: int or (vertical, horizontal), at least 1: distance between the outputs of neighbouring inputs.
        padding: int or (vertical, horizontal): rows and columns cut from each side of the output.
        output_padding: int or (vertical, horizontal), smaller than stride or dilation: rows and columns added at the
            end.
        groups: the channels fall into this many groups that do not mix.
        dilation: int or (vertical, horizontal), at least 1.
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        (N, C_out, H_out, W_out) with H_out = (H - 1) * stride - 2 * padding + dilation * (kh - 1) + output_padding + 1.

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above.
        BackendError: the wanted backend cannot run this call.
    """
    attributes = (stride, padding, output_padding, groups, dilation)
    rank = getattr(x, "ndim", None)
    if rank is None:
        x = arrays.from_dlpack(x)
        rank = getattr(x, "ndim", None)
    if rank == 3:
        return call(CONV_TRANSPOSE2D, (x[None], weight, bias), attributes, device, backend)[0]
    return call(CONV_TRANSPOSE2D, (x, weight, bias), attributes, device, backend)

"""Declaration of linear_cross_entropy: arguments, rules, shapes, costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, ClassVar

from kernels import arrays, checks
from kernels.arrays import ArraySpec
from kernels.call import call
from kernels.op import Op, Problem
from kernels.softmax.op import INDICES, ClassIndices, CrossEntropyProblem

OP = "linear_cross_entropy"


@dataclass(frozen=True)
class LinearCrossEntropyProblem(ClassIndices, Problem):
    """linear_cross_entropy, checked. The logits are (N, C, d1, ...) or (C,), as in cross_entropy."""

    input: ArraySpec
    linear_weight: ArraySpec
    target: ArraySpec
    linear_bias: ArraySpec | None
    weight: ArraySpec | None
    ignore_index: int
    reduction: str
    label_smoothing: float

    #: Name of the op.
    op: ClassVar[str] = OP

    @classmethod
    def check(
        cls,
        input: ArraySpec,
        linear_weight: ArraySpec,
        target: ArraySpec,
        linear_bias: ArraySpec | None,
        weight: ArraySpec | None,
        ignore_index: Any,
        reduction: Any,
        label_smoothing: Any,
    ) -> LinearCrossEntropyProblem:
        """See :func:`linear_cross_entropy` for the rules."""
        checks.rank(OP, "input", input, (1, 2), "(in_features,) or (N, in_features)")
        checks.dtype(OP, "input", input)
        if linear_weight.ndim < 2 or (input.ndim == 1 and linear_weight.ndim > 2):
            rule = "must have shape (C, in_features), or (C, d1, ..., in_features) for input (N, in_features)"
            checks.fail(OP, "linear_weight", rule, linear_weight.shape)
        pairs = (("linear_weight", linear_weight), ("linear_bias", linear_bias), ("weight", weight))
        checks.same_dtype(OP, ("input", input), *pairs)
        if linear_weight.shape[-1] != input.shape[-1]:
            rule = f"must have {input.shape[-1]} input features, the last dimension of input"
            checks.fail(OP, "linear_weight", rule, linear_weight.shape)
        if 0 in linear_weight.shape[:-1]:
            checks.fail(OP, "linear_weight", "must have at least one class", linear_weight.shape)
        if linear_bias is not None:
            checks.shape(OP, "linear_bias", linear_bias, linear_weight.shape[:-1], "(a value for each class)")
        classes, outer = linear_weight.shape[0], linear_weight.shape[1:-1]
        if weight is not None:
            checks.shape(OP, "weight", weight, (classes,), "(one value for each class)")
        rows = (*input.shape[:-1], *outer)
        if target.floating:
            checks.same_dtype(OP, ("input", input), ("target", target))
            checks.shape(OP, "target", target, (*input.shape[:-1], classes, *outer), "(probabilities for every class)")
            if ignore_index is not None:
                checks.fail(OP, "ignore_index", "must be None when target holds probabilities", ignore_index)
        else:
            if target.dtype not in INDICES:
                rule = f"must have dtype {', '.join(INDICES)} (class indices) or that of input (probabilities)"
                checks.fail_type_name(OP, "target", rule, target.dtype)
            checks.shape(OP, "target", target, rows, "(an index for every row of logits)")
        ignored = -100 if ignore_index is None else checks.integer(OP, "ignore_index", ignore_index)
        checks.one_of(OP, "reduction", reduction, ("none", "mean", "sum"))
        smoothing = checks.number(OP, "label_smoothing", label_smoothing)
        if not 0 <= smoothing <= 1:
            checks.fail(OP, "label_smoothing", "must lie in [0, 1]", label_smoothing)
        return cls(input, linear_weight, target, linear_bias, weight, ignored, reduction, smoothing)

    @property
    def rows(self) -> int:
        """N, or 1."""
        return self.input.shape[0] if self.input.ndim == 2 else 1

    @property
    def in_features(self) -> int:
        """Size of the last dimension of input and linear_weight."""
        return self.input.shape[-1]

    @property
    def classes(self) -> int:
        """How many classes there are: C."""
        return self.linear_weight.shape[0]

    @property
    def inner(self) -> int:
        """d1 * d2 * ...: rows of logits that a row of input has."""
        return prod(self.linear_weight.shape[1:-1])

    @cached_property
    def losses_shape(self) -> tuple[int, ...]:
        """The shape of the logits without their classes."""
        return (*self.input.shape[:-1], *self.linear_weight.shape[1:-1])

    @property
    def indexed(self) -> bool:
        """Whether target holds class indices, not probabilities."""
        return not self.target.floating

    def loss_of(self, rows: int, reduction: str) -> CrossEntropyProblem:
        """The call of cross_entropy for some of the rows, with logits (rows, C, d1 * d2 * ...)."""
        logits = self.input.like((rows, self.classes, self.inner))
        target = self.target.like((rows, self.inner) if self.indexed else logits.shape)
        keeps = (True, self.needs_grad[2], False) if self.trains else ()
        return CrossEntropyProblem(
            logits, target, self.weight, self.ignore_index, reduction, self.label_smoothing, needs_grad=keeps
        )

    def results(self) -> tuple[ArraySpec | None, ...]:
        """The loss; for backward every row's maximum and log(sum(exp(row - maximum))), and the mean's divisor."""
        wide = arrays.sum_dtype(self.input.dtype)
        of_rows = self.input.like(self.losses_shape, dtype=wide) if self.trains else None
        loss = self.input.like(self.losses_shape if self.reduction == "none" else ())
        divisor = self.input.like((), dtype=wide) if self.trains and self.reduction == "mean" else None
        return loss, of_rows, of_rows, divisor

    def saved(self) -> tuple[str, ...]:
        """The inputs, and the residuals: backward makes the logits again, a chunk at a time."""
        names = ("input", "linear_weight", "target", "linear_bias", "weight", "maximum", "log_sum")
        return (*names, "divisor") if self.reduction == "mean" else names

    def gradients(self) -> tuple[ArraySpec | None, ...]:
        """Contiguous, whatever the layout of the inputs; class weights and indices have none."""
        target = self.target if self.target.floating else None
        given = (self.input, self.linear_weight, target, self.linear_bias, None)
        return tuple(None if s is None else s.like(s.shape) for s in given)

    def flops(self) -> int:
        """Two for every multiply-add of the logits, and what cross_entropy does with them."""
        return self.rows * self.classes * self.inner * (2 * self.in_features + 4)


LINEAR_CROSS_ENTROPY = Op(
    OP,
    LinearCrossEntropyProblem,
    family=__package__,
    results=("loss", "maximum", "log_sum", "divisor"),
    differentiable=("input", "linear_weight", "target", "linear_bias"),
)


def linear_cross_entropy(
    input: Any,
    linear_weight: Any,
    target: Any,
    *,
    linear_bias: Any = None,
    weight: Any = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    device: Any = None,
    backend: str | None = None,
) -> Any:
    """``cross_entropy(linear(input, linear_weight, linear_bias), target)`` with few of the logits in memory at a time.

    For the last layer of a language model, whose logits are many times its other arrays. The rows are taken in chunks
    whose logits are as many as input has elements, or 4 million; backward makes them again, chunk by chunk (Hsu et al.,
    Liger Kernel, 2024, has the chunks). In half precision logits are rounded as those of `linear` are, and the
    gradients of linear_weight and linear_bias are summed over the chunks in float32. torch has the function from 2.13
    on; its `options` say how it cuts chunks, which is not asked here.

    Args:
        input: (in_features,) or (N, in_features), any strides.
        linear_weight: (C, in_features), or (C, d1, ..., in_features) for logits (N, C, d1, ...); any strides.
        target: class indices (), (N,) or (N, d1, ...), int64, int32 or uint8, each in [0, C) or `ignore_index`; or
            probabilities in the logits' shape and input's dtype, which get a gradient too.
        linear_bias: (C,), or (C, d1, ...), or None.
        weight: (C,) a factor for each class, input's dtype; None is all ones. It has no gradient.
        reduction: "none", "sum", or "mean", as in `cross_entropy`. With nothing to average the mean is NaN, as in
            torch, and its gradient zero.
        ignore_index: rows with this class index count nothing, in the mean's divisor neither; None is -100, and what it
            must be beside probabilities.
        label_smoothing: share of the uniform distribution in the targets, in [0, 1].
        device: "cpu", "cuda" or "cuda:N"; by default where input is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        input's kind of array and dtype: 0-d, or with reduction="none" a loss for every row, (), (N,) or (N, d1, ...).

    Raises:
        IndexError: a class index is out of range; the message has the first one's value and position. Of indices on a
            GPU a later call raises it, or `check_device_errors`, and this call's results have NaN in their place.
        TypeError, ValueError: an argument breaks one of the other rules above.
        BackendError: the wanted backend cannot run this call.
    """
    if weight is not None and arrays.wants_grad(weight):
        checks.fail(OP, "weight", "must not require a gradient (detach it)", "requires_grad=True")
    attributes = (ignore_index, reduction, label_smoothing)
    return call(LINEAR_CROSS_ENTROPY, (input, linear_weight, target, linear_bias, weight), attributes, device, backend)

"""Declaration of softmax, log_softmax and cross_entropy: arguments, rules, shapes, costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from kernels import arrays, checks
from kernels.arrays import ArraySpec
from kernels.call import call
from kernels.op import Op, Problem, ValueRange

REDUCTIONS = ("none", "mean", "sum")
#: Element types of class indices.
INDICES = ("int64", "int32", "uint8")


def _product(sizes: tuple[int, ...]) -> int:
    total = 1
    for size in sizes:
        total = total * size
    return total


class ClassIndices:
    """The rule for class indices, of the declarations that have them: each in [0, classes) or `ignore_index`."""

    @cached_property
    def value_range(self: Any) -> ValueRange | None:
        """Every class index must be one of the classes or `ignore_index`."""
        return ValueRange("target", 0, self.classes - 1, self.ignore_index) if self.indexed else None

    def value_error(self: Any, value: int, where: str) -> Exception:
        """An IndexError."""
        rule = f"must lie in [0, {self.classes - 1}] or be ignore_index ({self.ignore_index})"
        return IndexError(f"{self.op}: target {rule}, got {value}{where}")


@dataclass(frozen=True)
class SoftmaxProblem(Problem):
    """softmax, checked: dim is counted from the front."""

    x: ArraySpec
    dim: int

    #: Name of the op.
    op: ClassVar[str] = "softmax"

    @classmethod
    def check(cls, x: ArraySpec, dim: Any) -> SoftmaxProblem:
        """See :func:`softmax` for the rules."""
        if not x.floating:
            checks.fail_type_name(cls.op, "x", "must be floating-point unless dtype is given", x.dtype)
        checks.dtype(cls.op, "x", x)
        return cls(x, checks.dimension(cls.op, "dim", dim, x.ndim))

    @cached_property
    def extents(self) -> tuple[int, int, int]:
        """(elements before dim, of dim, after dim): x is seen as an array of this shape. A 0-d x is (1, 1, 1)."""
        shape = self.x.shape or (1,)
        return _product(shape[: self.dim]), shape[self.dim], _product(shape[self.dim + 1 :])

    def results(self) -> tuple[ArraySpec | None, ...]:
        """The output, contiguous."""
        return (self.x.like(self.x.shape),)

    def gradients(self) -> tuple[ArraySpec | None, ...]:
        """Contiguous."""
        return (self.x.like(self.x.shape),)

    def saved(self) -> tuple[str, ...]:
        """The output."""
        return ("output",)

    def flops(self) -> int:
        """Maximum, difference, exponential, sum and division: five for every element."""
        return 5 * self.x.size


class LogSoftmaxProblem(SoftmaxProblem):
    """log_softmax, checked: dim is counted from the front."""

    op = "log_softmax"


SOFTMAX = Op("softmax", SoftmaxProblem, family=__package__)
LOG_SOFTMAX = Op("log_softmax", LogSoftmaxProblem, family=__package__)


def _converted(op: str, x: Any, dtype: Any) -> Any:
    """x in the element type that the argument `dtype` names: a torch or NumPy dtype, or its name."""
    if dtype is None:
        return x
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", None) or str(dtype)
    name = name.removeprefix("torch.")
    if name not in checks.FLOATING:
        checks.fail(op, "dtype", f"must be None or one of {', '.join(checks.FLOATING)}", repr(dtype))
    kind = arrays.kind(x)
    if kind == "torch":
        import torch

        return x.to(getattr(torch, name))
    if kind is None:
        return x  # The call says what is wrong with it.
    if name == "bfloat16":
        checks.fail(op, "dtype", f"must be a dtype that {kind} has", repr(dtype))
    return x.astype(name, copy=False)


def softmax(x: Any, dim: int = -1, dtype: Any = None, *, device: Any = None, backend: str | None = None) -> Any:
    """exp(x) / sum(exp(x)) along one dimension, without overflow for any finite x.

    A slice with NaN or +inf in it, or of nothing but -inf, becomes NaN, as in torch.

    Args:
        x: floating-point array of any shape and strides, 0-d and empty ones included; integers only with `dtype`.
        dim: the dimension along which the results sum to 1, in [-ndim, ndim).
        dtype: float16, bfloat16, float32 or float64 (a torch or NumPy dtype, or its name) that x is converted to first;
            None leaves it. (For NumPy `vjp` gives the gradient of the converted x.)
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        x's kind of array and shape, contiguous, of x's dtype or `dtype`.

    Raises:
        IndexError: there is no such dimension.
        TypeError, ValueError: an argument breaks one of the other rules above.
        BackendError: the wanted backend cannot run this call.
    """
    return call(SOFTMAX, (_converted("softmax", x, dtype),), (dim,), device, backend)


def log_softmax(x: Any, dim: int = -1, dtype: Any = None, *, device: Any = None, backend: str | None = None) -> Any:
    """x - log(sum(exp(x))) along one dimension: log(softmax(x)) that neither overflows nor loses small probabilities.

    Args:
        x: floating-point array of any shape and strides, 0-d and empty ones included; integers only with `dtype`.
        dim: the dimension whose probabilities sum to 1, in [-ndim, ndim).
        dtype: float16, bfloat16, float32 or float64 (a torch or NumPy dtype, or its name) that x is converted to first;
            None leaves it. (For NumPy `vjp` gives the gradient of the converted x.)
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        x's kind of array and shape, contiguous, of x's dtype or `dtype`.

    Raises:
        IndexError: there is no such dimension.
        TypeError, ValueError: an argument breaks one of the other rules above.
        BackendError: the wanted backend cannot run this call.
    """
    return call(LOG_SOFTMAX, (_converted("log_softmax", x, dtype),), (dim,), device, backend)


@dataclass(frozen=True)
class CrossEntropyProblem(ClassIndices, Problem):
    """cross_entropy, checked."""

    input: ArraySpec
    target: ArraySpec
    weight: ArraySpec | None
    ignore_index: int
    reduction: str
    label_smoothing: float

    #: Name of the op.
    op: ClassVar[str] = "cross_entropy"

    @classmethod
    def check(
        cls,
        input: ArraySpec,
        target: ArraySpec,
        weight: ArraySpec | None,
        ignore_index: Any,
        reduction: Any,
        label_smoothing: Any,
    ) -> CrossEntropyProblem:
        """See :func:`cross_entropy` for the rules."""
        op = "cross_entropy"
        if input.ndim < 1:
            checks.fail(op, "input", "must have shape (C,), (N, C) or (N, C, d1, ...)", "0 dimensions ()")
        checks.dtype(op, "input", input)
        ignore_index = checks.integer(op, "ignore_index", ignore_index)
        checks.one_of(op, "reduction", reduction, REDUCTIONS)
        smoothing = checks.number(op, "label_smoothing", label_smoothing)
        if not 0 <= smoothing <= 1:
            checks.fail(op, "label_smoothing", "must lie in [0, 1]", label_smoothing)
        if target.floating:
            checks.same_dtype(op, ("input", input), ("target", target))
            checks.shape(op, "target", target, input.shape, "(probabilities for every class of input)")
            if ignore_index >= 0:
                checks.fail(op, "ignore_index", "must be negative when target holds probabilities", ignore_index)
        else:
            if target.dtype not in INDICES:
                rule = f"must have dtype {', '.join(INDICES)} (class indices) or that of input (probabilities)"
                checks.fail_type_name(op, "target", rule, target.dtype)
            expected = (*input.shape[:1], *input.shape[2:]) if input.ndim > 1 else ()
            checks.shape(op, "target", target, expected, "(an index for every row of input)")
        problem = cls(input, target, weight, ignore_index, reduction, smoothing)
        if weight is not None:
            checks.same_dtype(op, ("input", input), ("weight", weight))
            checks.shape(op, "weight", weight, (problem.classes,), "(one value for each class of input)")
        return problem

    @property
    def class_dimension(self) -> int:
        """The dimension of input that holds the classes."""
        return 0 if self.input.ndim == 1 else 1

    @property
    def classes(self) -> int:
        """How many classes there are: C."""
        return self.input.shape[self.class_dimension]

    @cached_property
    def extents(self) -> tuple[int, int, int]:
        """(N, C, d1 * d2 * ...): input is seen as an array of this shape."""
        shape = self.input.shape
        return _product(shape[: self.class_dimension]), self.classes, _product(shape[self.class_dimension + 1 :])

    @cached_property
    def rows_shape(self) -> tuple[int, ...]:
        """The shape of input without its classes: (), (N,) or (N, d1, ...)."""
        dimension = self.class_dimension
        return (*self.input.shape[:dimension], *self.input.shape[dimension + 1 :])

    @property
    def indexed(self) -> bool:
        """Whether target holds class indices, not probabilities."""
        return not self.target.floating

    def results(self) -> tuple[ArraySpec | None, ...]:
        """The loss; and for backward every row's maximum and log(sum(exp(row - maximum))), and the mean's divisor.

        The two together are the row's log-sum-exp. Their sum would lose the second one's digits beside large logits.
        They and the divisor are never less than float32.
        """
        wide = arrays.sum_dtype(self.input.dtype)
        of_rows = self.input.like(self.rows_shape, dtype=wide) if self.trains else None
        loss = self.input.like(self.rows_shape if self.reduction == "none" else ())
        divisor = self.input.like((), dtype=wide) if self.trains and self.reduction == "mean" else None
        return loss, of_rows, of_rows, divisor

    def saved(self) -> tuple[str, ...]:
        """The inputs, and the residuals."""
        names = ("input", "target", "weight", "maximum", "log_sum")
        return (*names, "divisor") if self.reduction == "mean" else names

    def gradients(self) -> tuple[ArraySpec | None, ...]:
        """Contiguous, of input and of target probabilities; class weights and indices have none."""
        return (
            self.input.like(self.input.shape),
            self.target.like(self.target.shape) if self.target.floating else None,
            None,
        )

    def flops(self) -> int:
        """Maximum, difference, exponential and sum: four for every logit."""
        return 4 * self.input.size


CROSS_ENTROPY = Op(
    "cross_entropy",
    CrossEntropyProblem,
    family=__package__,
    results=("loss", "maximum", "log_sum", "divisor"),
    differentiable=("input", "target"),
)


def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    device: Any = None,
    backend: str | None = None,
) -> Any:
    """Cross-entropy between logits and class labels, or class probabilities, in one pass over the logits.

    With ``l = input - logsumexp(input)`` and t a row's class, the loss of the row is
    ``-(1 - s) * weight[t] * l[t] - s / C * sum_c weight[c] * l[c]`` for label smoothing s (Szegedy et al., Rethinking
    the Inception Architecture, 2016), and for probabilities
    ``-sum_c weight[c] * ((1 - s) * target[c] + s / C) * l[c]``.

    Args:
        input: logits (C,), (N, C) or (N, C, d1, d2, ...), floating-point, any strides.
        target: class indices (), (N,) or (N, d1, d2, ...), int64, int32 or uint8, each in [0, C) or `ignore_index`; or
            probabilities in input's shape and dtype, which get a gradient too.
        weight: (C,) a factor for each class, input's dtype; None is all ones. It has no gradient.
        ignore_index: rows with this class index count nothing, in the mean's divisor neither. With probabilities it
            must stay negative.
        reduction: "none", "sum", or "mean": the sum divided by the sum of weight[t] over the rows that are not ignored,
            and for probabilities by the number of rows. With nothing to average the mean is NaN, as in torch, and its
            gradient zero.
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
        checks.fail("cross_entropy", "weight", "must not require a gradient (detach it)", "requires_grad=True")
    attributes = (ignore_index, reduction, label_smoothing)
    return call(CROSS_ENTROPY, (input, target, weight), attributes, device, backend)

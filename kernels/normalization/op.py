"""Declaration of layer_norm and rms_norm: arguments, rules, shapes, costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from kernels import arrays, checks
from kernels.arrays import ArraySpec
from kernels.call import call
from kernels.op import Op, Problem, input_names

#: rms_norm's eps by default: the distance from 1 to the next number of the type that torch computes in.
EPSILON = {"float16": 2.0**-23, "bfloat16": 2.0**-23, "float32": 2.0**-23, "float64": 2.0**-52}


def _product(sizes: tuple[int, ...]) -> int:
    total = 1
    for size in sizes:
        total = total * size
    return total


def _sizes(op: str, x: ArraySpec, value: Any) -> tuple[int, ...]:
    """`normalized_shape` as a tuple: the last dimensions of x."""
    if isinstance(value, (tuple, list)):
        found = tuple(checks.integer(op, "normalized_shape", size, 0) for size in value)
    else:
        found = (checks.integer(op, "normalized_shape", value, 0),)
    if not found:
        checks.fail(op, "normalized_shape", "must name at least one dimension", "()")
    if x.shape[-len(found) :] != found:
        checks.fail(op, "normalized_shape", f"must be the last dimensions of x {x.shape}", found)
    return found


def _epsilon(op: str, value: Any) -> float:
    """`eps` as a finite number. It may be negative, as in torch: then some rows are NaN."""
    number = checks.number(op, "eps", value)
    if not -math.inf < number < math.inf:  # as torch.compile can follow it
        checks.fail(op, "eps", "must be finite", value)
    return number


class NormProblem(Problem):
    """What the two declarations share: x seen as rows, each of which is normalised by itself."""

    if TYPE_CHECKING:
        x: ArraySpec
        weight: ArraySpec | None
        normalized_shape: tuple[int, ...]
        eps: float

    @property
    def rows_shape(self) -> tuple[int, ...]:
        """The dimensions of x before those that are normalised."""
        return self.x.shape[: self.x.ndim - len(self.normalized_shape)]

    @cached_property
    def extents(self) -> tuple[int, int]:
        """(rows, elements of a row): x is seen as an array of this shape."""
        return _product(self.rows_shape), _product(self.normalized_shape)

    def empty_results(self) -> tuple[Any, ...]:
        """As declared; rows without elements have 0 for a mean and what else is kept of them."""
        return tuple(None if form is None else arrays.empty_numpy(form, 0.0) for form in self.results())

    @property
    def of_rows(self) -> ArraySpec:
        """Spec of one number for every row, never less than float32."""
        return self.x.like(self.rows_shape, dtype=arrays.sum_dtype(self.x.dtype))

    def gradients(self) -> tuple[ArraySpec | None, ...]:
        """Contiguous."""
        specs = (getattr(self, name) for name in input_names(type(self)))
        return tuple(None if s is None else s.like(s.shape) for s in specs)


@dataclass(frozen=True)
class LayerNormProblem(NormProblem):
    """layer_norm, checked."""

    x: ArraySpec
    weight: ArraySpec | None
    bias: ArraySpec | None
    normalized_shape: tuple[int, ...]
    eps: float

    #: Name of the op.
    op: ClassVar[str] = "layer_norm"

    @classmethod
    def check(
        cls, x: ArraySpec, weight: ArraySpec | None, bias: ArraySpec | None, normalized_shape: Any, eps: Any
    ) -> LayerNormProblem:
        """See :func:`layer_norm` for the rules."""
        checks.dtype(cls.op, "x", x)
        checks.same_dtype(cls.op, ("x", x), ("weight", weight), ("bias", bias))
        sizes = _sizes(cls.op, x, normalized_shape)
        for name, spec in (("weight", weight), ("bias", bias)):
            if spec is not None:
                checks.shape(cls.op, name, spec, sizes, "(normalized_shape)")
        return cls(x, weight, bias, sizes, _epsilon(cls.op, eps))

    def results(self) -> tuple[ArraySpec | None, ...]:
        """The output, contiguous; for backward every row's mean and 1 / sqrt(variance + eps)."""
        of_rows = self.of_rows if self.trains else None
        return self.x.like(self.x.shape), of_rows, of_rows

    def saved(self) -> tuple[str, ...]:
        """x, weight, and the residuals."""
        return "x", "weight", "mean", "rstd"

    def flops(self) -> int:
        """Two for the mean's sum and the result, three for the variance, one each for weight and bias."""
        return (7 + (self.weight is not None) + (self.bias is not None)) * self.x.size


LAYER_NORM = Op("layer_norm", LayerNormProblem, family=__package__, results=("output", "mean", "rstd"))


def layer_norm(
    x: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *,
    device: Any = None,
    backend: str | None = None,
) -> Any:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimensions (Ba et al., 2016).

    The variance is the mean of (x - mean) squared, not the unbiased one. It is taken from the differences, so that a
    large mean costs no digits. A row with NaN or an infinity in it becomes NaN, as in torch.

    Args:
        x: floating-point array (*, *normalized_shape), any strides, any number of leading dimensions.
        normalized_shape: sizes of the dimensions that a mean is taken over, the last ones of x: a tuple, or an int for
            one dimension.
        weight: array of shape normalized_shape in x's dtype; None is all ones.
        bias: array of shape normalized_shape in x's dtype; None is all zeros.
        eps: finite number added to the variance. Where the sum is negative the row is NaN.
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        x's kind of array, shape and dtype, contiguous. An empty batch gives an empty result, and zero gradients of
        weight and bias.

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above.
        BackendError: the wanted backend cannot run this call.
    """
    if isinstance(normalized_shape, list):
        normalized_shape = tuple(normalized_shape)  # hashable, so that the call is planned once
    return call(LAYER_NORM, (x, weight, bias), (normalized_shape, eps), device, backend)


@dataclass(frozen=True)
class RMSNormProblem(NormProblem):
    """rms_norm, checked: eps is a number."""

    x: ArraySpec
    weight: ArraySpec | None
    normalized_shape: tuple[int, ...]
    eps: float

    #: Name of the op.
    op: ClassVar[str] = "rms_norm"

    @classmethod
    def check(cls, x: ArraySpec, weight: ArraySpec | None, normalized_shape: Any, eps: Any) -> RMSNormProblem:
        """See :func:`rms_norm` for the rules."""
        checks.dtype(cls.op, "x", x)
        checks.same_dtype(cls.op, ("x", x), ("weight", weight))
        sizes = _sizes(cls.op, x, normalized_shape)
        if weight is not None:
            checks.shape(cls.op, "weight", weight, sizes, "(normalized_shape)")
        return cls(x, weight, sizes, EPSILON[x.dtype] if eps is None else _epsilon(cls.op, eps))

    def results(self) -> tuple[ArraySpec | None, ...]:
        """The output, contiguous; for backward every row's 1 / sqrt(mean(x^2) + eps)."""
        return self.x.like(self.x.shape), self.of_rows if self.trains else None

    def saved(self) -> tuple[str, ...]:
        """x, weight, and the residual."""
        return "x", "weight", "rstd"

    def flops(self) -> int:
        """Two for the mean square, one for the result, one for weight."""
        return (3 + (self.weight is not None)) * self.x.size


RMS_NORM = Op("rms_norm", RMSNormProblem, family=__package__, results=("output", "rstd"))


def rms_norm(
    x: Any,
    normalized_shape: Any,
    weight: Any = None,
    eps: float | None = None,
    *,
    device: Any = None,
    backend: str | None = None,
) -> Any:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimensions (Zhang and Sennrich, 2019).

    Args:
        x: floating-point array (*, *normalized_shape), any strides, any number of leading dimensions.
        normalized_shape: sizes of the dimensions that the mean is taken over, the last ones of x: a tuple, or an int
            for one dimension.
        weight: array of shape normalized_shape in x's dtype; None is all ones.
        eps: finite number added to the mean square; None is the distance from 1 to the next number of x's dtype, 2**-52
            for float64, and 2**-23 for float32 and, as in torch, for half precision. Where the sum is negative the row
            is NaN.
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        x's kind of array, shape and dtype, contiguous. An empty batch gives an empty result, and a zero gradient of
        weight.

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above.
        BackendError: the wanted backend cannot run this call.
    """
    if isinstance(normalized_shape, list):
        normalized_shape = tuple(normalized_shape)  # hashable, so that the call is planned once
    return call(RMS_NORM, (x, weight), (normalized_shape, eps), device, backend)

"""Declaration of embedding: arguments, rules, shapes, costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kernels import checks
from kernels.arrays import ArraySpec
from kernels.call import call
from kernels.op import Op, Problem, ValueRange

#: Element types of the indices.
INDICES = ("int64", "int32")


def _padding(value: Any, rows: int) -> int | None:
    """`padding_idx` counted from the front."""
    if value is None:
        return None
    index = checks.integer("embedding", "padding_idx", value)
    if not -rows <= index < rows:
        rule = f"must lie in [{-rows}, {rows - 1}] (the rows of weight)" if rows else "must be None: weight has no rows"
        checks.fail("embedding", "padding_idx", rule, value)
    return index + rows if index < 0 else index


@dataclass(frozen=True)
class EmbeddingProblem(Problem):
    """embedding, checked: padding_idx is counted from the front. The weight, which has a gradient, comes first."""

    weight: ArraySpec
    input: ArraySpec
    padding_idx: int | None
    max_norm: float | None
    norm_type: float
    scale_grad_by_freq: bool
    sparse: bool

    @classmethod
    def check(
        cls,
        weight: ArraySpec,
        input: ArraySpec,
        padding_idx: Any,
        max_norm: Any,
        norm_type: Any,
        scale_grad_by_freq: Any,
        sparse: Any,
    ) -> EmbeddingProblem:
        """See :func:`embedding` for the rules."""
        op = "embedding"
        checks.dtype(op, "input", input, INDICES)
        checks.dtype(op, "weight", weight)
        checks.rank(op, "weight", weight, (2,), "(rows, features)")
        padding = _padding(padding_idx, weight.shape[0])
        if max_norm is not None:
            max_norm = checks.number(op, "max_norm", max_norm)
            if not max_norm >= 0:
                checks.fail(op, "max_norm", "must be at least 0", max_norm)
        norm_type = checks.number(op, "norm_type", norm_type)
        if not norm_type > 0:
            checks.fail(op, "norm_type", "must be above 0", norm_type)
        checks.boolean(op, "scale_grad_by_freq", scale_grad_by_freq)
        if checks.boolean(op, "sparse", sparse):
            checks.fail(op, "sparse", "must be False: gradients are dense only", sparse)
        return cls(weight, input, padding, max_norm, norm_type, scale_grad_by_freq, sparse)

    @property
    def features(self) -> int:
        """Elements of a row of weight."""
        return self.weight.shape[1]

    def results(self) -> tuple[ArraySpec | None, ...]:
        """The rows, contiguous."""
        return (self.weight.like((*self.input.shape, self.features)),)

    def saved(self) -> tuple[str, ...]:
        """The indices."""
        return ("input",)

    def gradients(self) -> tuple[ArraySpec | None, ...]:
        """Contiguous, of weight; indices have none."""
        return self.weight.like(self.weight.shape), None

    def bytes_moved(self) -> int:
        """The indices and the rows that they name, read; the rows written."""
        (rows,) = self.results()
        assert rows is not None
        return self.input.nbytes + 2 * rows.nbytes

    @cached_property
    def value_range(self) -> ValueRange | None:
        """Every index must be a row of weight."""
        return ValueRange("input", 0, self.weight.shape[0] - 1)

    def value_error(self, value: int, where: str) -> Exception:
        """An IndexError."""
        rows = self.weight.shape[0]
        rule = f"lie in [0, {rows - 1}] (the rows of weight)" if rows else "be empty: weight has no rows"
        return IndexError(f"embedding: input must {rule}, got {value}{where}")


EMBEDDING = Op("embedding", EmbeddingProblem, family=__package__, differentiable=("weight",))


def embedding(
    input: Any,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
    *,
    device: Any = None,
    backend: str | None = None,
) -> Any:
    """The rows of weight that the indices name: ``weight[input]``, with torch's options.

    The gradient of a row is the sum over the places that name it, taken in the order of the indices at any number of
    threads. (`vjp` returns the gradient of weight first, then None for input.)

    Args:
        input: int64 or int32 indices of any shape and strides, each in [0, rows).
        weight: floating-point array (rows, features), any strides.
        padding_idx: a row, in [-rows, rows), whose gradient stays 0; it is looked up like any other. None: no row.
        max_norm: rows with a norm above it are shortened to it in the result, by the factor max_norm / (norm + 1e-7).
            Unlike torch, which also overwrites these rows in weight, weight stays as it is. The gradient is torch's: it
            goes to weight as if the rows had been looked up without shortening. None: no limit. At least 0.
        norm_type: which norm, the p of the p-norm, above 0; infinity is the largest magnitude.
        scale_grad_by_freq: divide the gradient of each row by the number of places in input that name it.
        sparse: must be False: gradients are dense.
        device: "cpu", "cuda" or "cuda:N"; by default where weight is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        weight's kind of array and dtype, shape (*input.shape, features), contiguous.

    Raises:
        IndexError: an index is out of range; the message has the first one's value and position. Of indices on a
            GPU a later call raises it, or `check_device_errors`, and this call's results have NaN in their place.
        TypeError, ValueError: an argument breaks one of the other rules above.
        BackendError: the wanted backend cannot run this call.
    """
    attributes = (padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    return call(EMBEDDING, (weight, input), attributes, device, backend)

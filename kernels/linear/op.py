"""Declaration of linear: arguments, rules, shapes, costs."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from kernels import checks
from kernels.activation.functions import FROM_OUTPUT, FUSED
from kernels.arrays import ArraySpec
from kernels.call import call
from kernels.linear.packed import PackedLinear, check_form, unpacked
from kernels.op import Op, Problem


@dataclass(frozen=True)
class LinearProblem(Problem):
    """linear, checked."""

    x: ArraySpec
    weight: ArraySpec
    bias: ArraySpec | None
    activation: str | None
    #: Of a weight packed by `pack_linear`, which is one-dimensional here: out_features, width of a panel, of the last.
    packed: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.packed is not None and any(self.needs_grad):
            name = next(n for n, wanted in zip(("x", "weight", "bias"), self.needs_grad) if wanted)
            rule = f"must be a plain one where gradients are recorded (here that of {name})"
            checks.fail("linear", "weight", rule, "one packed by pack_linear")

    @classmethod
    def check(
        cls, x: ArraySpec, weight: ArraySpec, bias: ArraySpec | None, activation: Any, packed: Any = None
    ) -> LinearProblem:
        """See :func:`linear` for the rules."""
        op = "linear"
        if x.ndim == 0:
            checks.fail(op, "x", "must have shape (*, in_features)", "0 dimensions ()")
        if packed is None:
            checks.rank(op, "weight", weight, (1, 2), "(out_features, in_features) or (in_features,)")
        checks.dtype(op, "x", x)
        checks.same_dtype(op, ("x", x), ("weight", weight), ("bias", bias))
        checks.one_of(op, "activation", activation, FUSED)
        if packed is not None:
            check_form(x, weight, packed)
        elif weight.shape[-1] != x.shape[-1]:
            rule = f"must have {x.shape[-1]} input features, the last dimension of x"
            checks.fail(op, "weight", rule, weight.shape)
        outputs = weight.shape[:-1] if packed is None else packed[:1]
        if bias is not None and bias.ndim > 0 and bias.shape != outputs:
            either = f"{outputs} or ()" if outputs else "()"
            rule = f"must have shape {either} (one value for each output feature of weight)"
            checks.fail(op, "bias", rule, bias.shape)
        return cls(x, weight, bias, activation, packed)

    @property
    def batch(self) -> int:
        """Product of the leading dimensions of x: rows of the matrix product."""
        return prod(self.x.shape[:-1])

    @property
    def in_features(self) -> int:
        """Size of the last dimension of x and weight."""
        return self.x.shape[-1]

    @property
    def out_features(self) -> int:
        """Columns of the matrix product; 1 for a weight of one dimension."""
        if self.packed is not None:
            return self.packed[0]
        return self.weight.shape[0] if self.weight.ndim == 2 else 1

    def results(self) -> tuple[ArraySpec | None, ...]:
        """The output, and the sums before the activation where its derivative needs them."""
        outputs = self.weight.shape[:-1] if self.packed is None else self.packed[:1]
        form = self.x.like((*self.x.shape[:-1], *outputs))
        keeps = self.trains and self.activation is not None and self.activation not in FROM_OUTPUT
        return form, form if keeps else None

    def plain_weight(self, weight: Any) -> Any:
        """The weight as a matrix or a vector, in NumPy or torch, for backends that take no packed one."""
        return weight if self.packed is None else unpacked(weight, self.in_features, self.packed)

    def saved(self) -> tuple[str, ...]:
        """x and weight; the bias, and the output or the sums, where the activation's derivative reads them."""
        if self.activation is None:
            return "x", "weight"
        return "x", "weight", "bias", "output" if self.activation in FROM_OUTPUT else "preactivation"

    def gradients(self) -> tuple[ArraySpec | None, ...]:
        """Contiguous, whatever the layout of the inputs."""
        return tuple(None if s is None else s.like(s.shape) for s in (self.x, self.weight, self.bias))

    def flops(self) -> int:
        """Two for every multiply-add."""
        return 2 * self.batch * self.in_features * self.out_features


LINEAR = Op("linear", LinearProblem, family=__package__, results=("output", "preactivation"))


def linear(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    activation: str | None = None,
    device: Any = None,
    backend: str | None = None,
) -> Any:
    """An affine map of the last dimension, with an activation in the same pass: ``act(x weight^T + bias)``.

    ``y[..., j] = act(bias[j] + sum_i x[..., i] * weight[j, i])``

    Args:
        x: (*, in_features), any number of leading dimensions, none included. Any strides.
        weight: (out_features, in_features), or (in_features,) for one output without a dimension of its own. Any
            strides: a transposed weight is read where it lies. Or what `pack_linear` makes of one, on the CPU and where
            no gradient is recorded.
        bias: (out_features,), or () for the same number everywhere, or None.
        activation: None, "relu", "gelu" (exact), "silu", "tanh" or "sigmoid"; differentiable.
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        (*, out_features), contiguous, or (*) for a weight of one dimension; x's kind of array and dtype. With
        in_features = 0 every sum is 0, so that the result is act(bias). Empty when the batch or out_features is 0;
        then the gradients are zeros.

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above.
        BackendError: the wanted backend cannot run this call.
    """
    if type(weight) is PackedLinear:
        if device is not None and str(device) != "cpu":
            checks.fail("linear", "device", "must be 'cpu' for a packed weight", repr(device))
        return call(LINEAR, (x, weight.panels(x), bias), (activation, weight.form), device, backend)
    return call(LINEAR, (x, weight, bias), (activation, None), device, backend)

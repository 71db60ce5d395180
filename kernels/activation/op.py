"""Declaration of relu, gelu, silu, sigmoid and tanh: elementwise, any shape, layouts kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from kernels import checks
from kernels.activation.functions import FROM_OUTPUT
from kernels.arrays import ArraySpec
from kernels.call import call
from kernels.op import Op, Problem


@dataclass(frozen=True)
class ActivationProblem(Problem):
    """An elementwise activation, checked."""

    x: ArraySpec

    #: Name of the op.
    op: ClassVar[str]

    @property
    def function(self) -> str:
        """Name of the activation in functions.py."""
        return self.op

    @classmethod
    def check(cls, x: ArraySpec) -> ActivationProblem:
        """x has a floating-point dtype."""
        checks.dtype(cls.op, "x", x)
        return cls(x)

    @cached_property
    def layout(self) -> ArraySpec:
        """Spec of the output and of the gradient: x's shape, and its strides where they are dense."""
        return self.x.alike()

    def results(self) -> tuple[ArraySpec | None, ...]:
        """The output."""
        return (self.layout,)

    def gradients(self) -> tuple[ArraySpec | None, ...]:
        """As the output."""
        return self.results()

    def saved(self) -> tuple[str, ...]:
        """The output where the derivative is a function of it, else x."""
        return ("output",) if self.function in FROM_OUTPUT else ("x",)

    def flops(self) -> int:
        """One for every element."""
        return self.x.size


class ReluProblem(ActivationProblem):
    """relu, checked."""

    op = "relu"


class SiluProblem(ActivationProblem):
    """silu, checked."""

    op = "silu"


class SigmoidProblem(ActivationProblem):
    """sigmoid, checked."""

    op = "sigmoid"


class TanhProblem(ActivationProblem):
    """tanh, checked."""

    op = "tanh"


@dataclass(frozen=True)
class GeluProblem(ActivationProblem):
    """gelu, checked."""

    approximate: str

    op = "gelu"

    @property
    def function(self) -> str:
        """Name of the activation in functions.py."""
        return "gelu_tanh" if self.approximate == "tanh" else "gelu"

    @classmethod
    def check(cls, x: ArraySpec, approximate: Any) -> GeluProblem:  # type: ignore[override]
        """x has a floating-point dtype; approximate is "none" or "tanh"."""
        checks.dtype(cls.op, "x", x)
        checks.one_of(cls.op, "approximate", approximate, ("none", "tanh"))
        return cls(x, approximate)


RELU = Op("relu", ReluProblem, family=__package__)
GELU = Op("gelu", GeluProblem, family=__package__)
SILU = Op("silu", SiluProblem, family=__package__)
SIGMOID = Op("sigmoid", SigmoidProblem, family=__package__)
TANH = Op("tanh", TanhProblem, family=__package__)

#: The ops of this family.
OPS = (RELU, GELU, SILU, SIGMOID, TANH)


def relu(x: Any, *, device: Any = None, backend: str | None = None) -> Any:
    """max(x, 0), elementwise; NaN stays NaN.

    Its derivative at 0 is 0, and NaN passes gradients on, as in torch.

    Args:
        x: floating-point array of any shape and strides.
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        x's kind of array, shape and dtype; its strides too when they are dense (channels-last, a transpose), else
        contiguous.

    Raises:
        TypeError: x has no floating-point dtype.
        BackendError: the wanted backend cannot run this call.
    """
    return call(RELU, (x,), (), device, backend)


def gelu(x: Any, approximate: str = "none", *, device: Any = None, backend: str | None = None) -> Any:
    """x times the standard normal distribution function of x, elementwise.

    ``x * (1 + erf(x / sqrt(2))) / 2``, or with approximate="tanh"
    ``x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x**3))) / 2``
    (Hendrycks and Gimpel, Gaussian Error Linear Units, 2016).

    Args:
        x: floating-point array of any shape and strides.
        approximate: "none" (exact) or "tanh".
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        x's kind of array, shape and dtype; its strides too when they are dense, else contiguous.

    Raises:
        TypeError: x has no floating-point dtype.
        ValueError: approximate is neither "none" nor "tanh".
        BackendError: the wanted backend cannot run this call.
    """
    return call(GELU, (x,), (approximate,), device, backend)


def silu(x: Any, *, device: Any = None, backend: str | None = None) -> Any:
    """x * sigmoid(x), elementwise, also called swish (Elfwing, Uchibe and Doya, 2017).

    Args:
        x: floating-point array of any shape and strides.
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        x's kind of array, shape and dtype; its strides too when they are dense, else contiguous.

    Raises:
        TypeError: x has no floating-point dtype.
        BackendError: the wanted backend cannot run this call.
    """
    return call(SILU, (x,), (), device, backend)


def sigmoid(x: Any, *, device: Any = None, backend: str | None = None) -> Any:
    """1 / (1 + exp(-x)), elementwise, finite for every finite x.

    Args:
        x: floating-point array of any shape and strides.
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        x's kind of array, shape and dtype; its strides too when they are dense, else contiguous.

    Raises:
        TypeError: x has no floating-point dtype.
        BackendError: the wanted backend cannot run this call.
    """
    return call(SIGMOID, (x,), (), device, backend)


def tanh(x: Any, *, device: Any = None, backend: str | None = None) -> Any:
    """Hyperbolic tangent, elementwise.

    Args:
        x: floating-point array of any shape and strides.
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        x's kind of array, shape and dtype; its strides too when they are dense, else contiguous.

    Raises:
        TypeError: x has no floating-point dtype.
        BackendError: the wanted backend cannot run this call.
    """
    return call(TANH, (x,), (), device, backend)

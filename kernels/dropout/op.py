"""Declaration of dropout: arguments, rules, shapes, costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels import arrays, checks
from kernels.arrays import ArraySpec
from kernels.call import call
from kernels.op import Op, Problem


@dataclass(frozen=True)
class DropoutProblem(Problem):
    """dropout, checked."""

    x: ArraySpec
    seed: ArraySpec
    p: float
    stream: int

    @classmethod
    def check(cls, x: ArraySpec, seed: ArraySpec, p: Any, stream: Any) -> DropoutProblem:
        """See :func:`dropout` for the rules."""
        op = "dropout"
        checks.dtype(op, "x", x)
        checks.dtype(op, "seed", seed, ("int64",))
        checks.shape(op, "seed", seed, (), "(one number)")
        return cls(x, seed, probability(op, "p", p), checks.integer(op, "stream", stream, 0))

    def results(self) -> tuple[ArraySpec | None, ...]:
        """The output, contiguous."""
        return (self.x.like(self.x.shape),)

    def gradients(self) -> tuple[ArraySpec | None, ...]:
        """Of x, contiguous."""
        return self.x.like(self.x.shape), None

    def saved(self) -> tuple[str, ...]:
        """The seed: the mask is made again."""
        return ("seed",)

    @property
    def kept(self) -> float:
        """What a kept element is multiplied with: 1 / (1 - p)."""
        return 1 / (1 - self.p) if self.p < 1 else 0.0

    def flops(self) -> int:
        """One multiplication an element."""
        return self.x.size


DROPOUT = Op("dropout", DropoutProblem, family=__package__, differentiable=("x",))


def probability(op: str, argument: str, value: Any) -> float:
    """`value` as a float in [0, 1]."""
    # A float is not asked for more: under torch.compile it may be a symbol, which has no attributes to look at.
    found = float(value) if isinstance(value, float) else checks.number(op, argument, value)
    if not 0 <= found <= 1:
        checks.fail(op, argument, "must lie in [0, 1]", value)
    return found


def fresh_seed(beside: Any) -> Any:
    """A 0-d int64 array of the kind of `beside`: a random number of torch's or NumPy's (for CuPy too) generator."""
    high = 2**63 - 1
    if arrays.kind(beside) == "torch":
        torch = arrays.loaded_torch()
        return torch.randint(high, (), dtype=torch.int64, device=beside.device)
    return _number(np.random.randint(high, dtype=np.int64), beside)


def _number(number: Any, beside: Any) -> Any:
    """A 0-d int64 array, NumPy's or CuPy's."""
    host = np.asarray(number, np.int64)
    if arrays.kind(beside) != "cupy":
        return host
    from kernels.runtime.cupy_gpu import from_host

    return from_host(host, beside)


def as_seed(op: str, seed: Any, beside: Any) -> Any:
    """`seed` as a 0-d int64 array of the kind of `beside`; None draws one, an array is taken as it is."""
    if arrays.kind(beside) is None:
        beside = arrays.from_dlpack(beside)
    if seed is None:
        return fresh_seed(beside)
    # A number needs no question of its kind, for which torch.compile, which runs through this, would look through all
    # modules, and trips over them while they change.
    if not isinstance(seed, int) and (arrays.kind(seed) is not None or hasattr(seed, "__dlpack_device__")):
        return seed
    number = checks.integer(op, "seed", seed)
    if not -(2**63) <= number < 2**63:
        checks.fail(op, "seed", "must fit into 64 bits", seed)
    if arrays.kind(beside) == "torch":
        torch = arrays.loaded_torch()
        return torch.full((), number, dtype=torch.int64, device=beside.device)
    return _number(number, beside)


def dropout(
    x: Any,
    p: float = 0.5,
    training: bool = True,
    *,
    seed: Any = None,
    stream: int = 0,
    device: Any = None,
    backend: str | None = None,
) -> Any:
    """Zero each element with probability p and scale the others by 1 / (1 - p) (Srivastava et al., 2014).

    Which elements are kept depends on the seed, the stream and an element's row-major index alone (see kernels.random),
    so every backend makes the same mask, and backward makes it again instead of keeping it. Unlike a multiplication by
    a mask, a dropped NaN or infinity is 0.

    Args:
        x: floating-point array of any shape and strides.
        p: the probability of being dropped, in [0, 1]; 1 gives zeros.
        training: False returns x itself.
        seed: int of 64 bits, or a 0-d int64 array of x's kind; None draws one from torch's global generator for
            tensors (``torch.manual_seed``), else from NumPy's.
        stream: at least 0: different masks under one seed.
        device: "cpu", "cuda" or "cuda:N"; by default where x is.
        backend: "auto", "numba", "cupy", "triton", "torch" or "reference"; by default what `use_backend` says.

    Returns:
        x's kind of array, shape and dtype; contiguous.

    Raises:
        TypeError, ValueError: an argument breaks one of the rules above.
        BackendError: the wanted backend cannot run this call.
    """
    if not checks.boolean("dropout", "training", training):
        probability("dropout", "p", p)
        return x
    return call(DROPOUT, (x, as_seed("dropout", seed, x)), (p, stream), device, backend)

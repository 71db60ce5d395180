"""What an op is: its declaration (`Problem`), the op itself (`Op`), and one way to run it (`Implementation`).

An op is declared once, in its family's ``op.py``: a frozen dataclass derived from :class:`Problem` whose fields are the
op's inputs (annotated ``ArraySpec``, or ``ArraySpec | None`` for an optional one) followed by its normalised
attributes. Everything else is derived from it: validation, dispatch, the torch schema, the fake kernels, autograd,
`explain`, tests and benchmarks.
"""

from __future__ import annotations

import inspect
import typing
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels import arrays, checks
from kernels.arrays import ArraySpec

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class ValueRange:
    """Which values the elements of an input may have, as its dtype does not say.

    Attributes:
        input: name of an input of integers.
        least, greatest: the first and the last value that is permitted.
        ignored: one more value that is, or None.
    """

    input: str
    least: int
    greatest: int
    ignored: int | None = None

    def wrong(self, values: Any) -> Any:
        """Where an array of any kind has other values, as an array of bool."""
        outside = (values < self.least) | (values > self.greatest)
        return outside if self.ignored is None else outside & (values != self.ignored)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The arguments of one call, checked and normalised; hashable.

    Subclasses add input specs, then attributes of types int, float, bool, str, tuples of ints or floats (or None), and
    define :meth:`check` and :meth:`results`.
    """

    #: For each input in order: whether its gradient is wanted.
    needs_grad: tuple[bool, ...] = field(default=())

    @classmethod
    def check(cls, *arguments: Any) -> Problem:
        """Build the problem from specs of the inputs and the user's attributes, or raise one clear error."""
        raise NotImplementedError

    def results(self) -> tuple[ArraySpec | None, ...]:
        """Spec of each of the op's results (outputs first, then residuals for backward); None for an absent one."""
        raise NotImplementedError

    @property
    def returned(self) -> int:
        """How many of the results the caller gets; the rest are residuals."""
        return 1

    def saved(self) -> tuple[str, ...]:
        """Names of the inputs and results that backward reads; by default every input."""
        return input_names(type(self))

    def gradients(self) -> tuple[ArraySpec | None, ...]:
        """Spec of the gradient of each input, in that input's layout where it has one of its own."""
        specs = (getattr(self, name) for name in input_names(type(self)))
        return tuple(None if s is None else s.like(s.shape, channels_last=s.channels_last) for s in specs)

    @cached_property
    def value_range(self) -> ValueRange | None:
        """The rule for values, not shapes (indices, lengths); None where there is none for this problem."""
        return None

    def value_error(self, value: int, where: str) -> Exception:
        """What to raise of a value against `value_range`; `where` is "" for the only one, else " at " its place."""
        raise NotImplementedError

    def check_values(self, *inputs: Any) -> None:
        """Raise what `value_error` says where a value is wrong, of arrays of any kind. On a GPU this waits for it."""
        rule = self.value_range
        if rule is None:
            return
        # What is wrong in an expanded array is so at its first element too.
        values = arrays.unexpanded(inputs[input_names(type(self)).index(rule.input)])
        if isinstance(values, np.ndarray) and rule.least == 0:
            # In one reduction: as unsigned numbers, negative ones are large.
            if values.size == 0 or values.view(f"u{values.itemsize}").max() <= rule.greatest:
                return
        wrong = rule.wrong(values)
        if wrong.any():
            position = arrays.first_true(wrong)
            raise self.value_error(int(values[position]), checks.place(position))

    @property
    def checks_values(self) -> bool:
        """Whether this problem's values can be wrong at all, so that `check_values` must be asked."""
        return self.value_range is not None

    def flops(self) -> int:
        """Floating-point operations of the forward pass, a multiply-add counted as two."""
        return 0

    def bytes_moved(self) -> int:
        """Bytes that the forward pass must read and write at least."""
        specs = [getattr(self, name) for name in input_names(type(self))]
        return sum(s.nbytes for s in (*specs, *self.results()) if s is not None)

    @cached_property
    def trains(self) -> bool:
        """Whether any gradient is wanted, so that residuals must be kept."""
        return any(self.needs_grad)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compute: the first result has no element (an empty batch)."""
        first = self.results()[0]
        return first is not None and first.size == 0

    def public(self, results: tuple[Any, ...]) -> Any:
        """What the caller gets of the op's results: the first one, or a tuple of the first few."""
        return results[0] if self.returned == 1 else tuple(results[: self.returned])

    def lay_out(self, found: tuple[Any, ...], forms: tuple[ArraySpec | None, ...]) -> tuple[Any, ...]:
        """NumPy arrays in the declared layouts (channels-last where declared so); None stays None."""
        return tuple(None if a is None else arrays.laid_out(a, form) for a, form in zip(found, forms, strict=True))

    def empty_results(self) -> tuple[Any, ...]:
        """The results when there is nothing to compute, as NumPy arrays."""
        return tuple(None if form is None else arrays.empty_numpy(form) for form in self.results())

    def zero_gradients(self) -> tuple[Any, ...]:
        """The gradients when there is nothing to compute, as NumPy arrays: zeros where one is wanted."""
        return tuple(
            arrays.empty_numpy(form, 0.0) if form is not None and wanted else None
            for form, wanted in zip(self.gradients(), self.needs_grad, strict=True)
        )


def _is_input(hint: Any) -> bool:
    return hint is ArraySpec or ArraySpec in typing.get_args(hint)


_fields: dict[Any, dict[str, Any]] = {}


def _hints(problem: Any) -> dict[str, Any]:
    """Type hint of each field of a declaration but `needs_grad`, in order."""
    found = _fields.get(problem)
    if found is None:
        hints = typing.get_type_hints(problem)
        found = _fields[problem] = {f.name: hints[f.name] for f in fields(problem) if f.name != "needs_grad"}
    return found


_inputs: dict[Any, tuple[str, ...]] = {}


def input_names(problem: Any) -> tuple[str, ...]:
    """Names of the declaration's input arrays, in order."""
    found = _inputs.get(problem)
    if found is None:
        found = _inputs[problem] = tuple(name for name, hint in _hints(problem).items() if _is_input(hint))
    return found


class Op:
    """An op: its declaration, its implementations, and the call.

    Args:
        name: name of the public function.
        problem: the declaration.
        results: names of the results, in the order of ``Problem.results()``.
        differentiable: names of the inputs that have gradients; by default all of them.
        differentiable_results: how many of the first results carry gradients.
        family: the package that holds the backends' files, normally ``__package__``.
    """

    def __init__(
        self,
        name: str,
        problem: type[Problem],
        *,
        family: str,
        results: tuple[str, ...] = ("output",),
        differentiable: tuple[str, ...] | None = None,
        differentiable_results: int = 1,
    ) -> None:
        self.name = name
        self.problem = problem
        self.family = family
        self.inputs = input_names(problem)
        hints = _hints(problem)
        #: Names of the inputs that may be None.
        self.optional = frozenset(name for name in self.inputs if hints[name] is not ArraySpec)
        #: Type hint of each attribute (normalised argument that is no array), in order.
        self.attributes = {name: hint for name, hint in hints.items() if not _is_input(hint)}
        self.results = results
        self.differentiable = self.inputs if differentiable is None else differentiable
        self.differentiable_results = differentiable_results
        self.implementations: dict[str, Implementation] = {}
        #: Plans of calls seen before, kept by dispatch.
        self.plans: dict[Any, Any] = {}
        if name in OPS:
            raise ValueError(f"op {name!r} is declared twice")
        OPS[name] = self

    def __repr__(self) -> str:
        return f"<Op {self.name}>"


#: Every declared op by name.
OPS: dict[str, Op] = {}


def named(
    function: Callable[..., Any], required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Callable[..., Any]:
    """`function` with the signature that the house asks of an implementation: its arguments by name."""

    def implementation(problem: Any, *arguments: Any, **more: Any) -> Any:
        return function(problem, *arguments, **more)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    given = [inspect.Parameter(name, kind) for name in ("problem", *required)]
    given += [inspect.Parameter(name, kind, default=None) for name in optional]
    implementation.__signature__ = inspect.Signature(given)  # type: ignore[attr-defined]
    implementation.__doc__ = function.__doc__
    return implementation


def _no_reasons(_: Any) -> list[str]:
    return []


def _no_words(_: Any) -> str:
    return ""


def _no_operations(_: Any) -> int:
    return 0


def limits(without: int, gradients: int) -> Callable[[Any], int]:
    """A `torch_below` of one limit for calls without gradients, and one for calls with them."""
    return lambda problem: gradients if problem.trains else without


def _no_function(_: Any) -> None:
    return None


@dataclass(frozen=True)
class Measured:
    """How many times as fast as torch's backend the GPU kernels ran one class of calls (docs/gpu_times.md).

    Attributes:
        calls: the class in words, as `explain` shows it.
        triton, cupy: of calls without gradients, and of calls with them, both passes; None where there is no time.
        gpu: name of the target in `kernels.runtime.targets.TARGETS` that it was measured on.
    """

    calls: str
    triton: tuple[float | None, float | None]
    cupy: tuple[float | None, float | None]
    gpu: str = "sm_90"

    def speed(self, backend: str, trains: bool) -> float | None:
        """That of a backend on a GPU: 1 for torch."""
        if backend == "torch":
            return 1.0
        return (self.triton if backend == "triton" else self.cupy)[trains]


@dataclass(frozen=True)
class Implementation:
    """One backend's way to run an op. Constructing it registers it: this is the one line that adds a backend to an op.

    Attributes:
        op: the op.
        backend: name of the backend.
        forward: ``forward(problem, *inputs) -> results``: native arrays in (None for an absent optional one), a tuple
            with one array for every spec of ``problem.results()`` out (None where the spec is None).
        backward: ``backward(problem, *gradients, **saved) -> gradients of the inputs``: one incoming gradient for each
            differentiable result (None where nothing flows in), what ``problem.saved()`` names by keyword; a tuple with
            one array per input out, None where ``problem.needs_grad`` says it is not wanted. None: it has no backward,
            and the next backend that has one takes over.
        reasons: ``reasons(problem)`` lists why this implementation cannot run the problem.
        dtypes: element types of the differentiable inputs that it takes.
        describe: ``describe(problem)`` says in a few words which kernel will run, for `explain`.
        checks_values: ``forward`` asks `Problem.check_values` itself where a look at the values, in compiled code,
            found something wrong; the call need not ask it first.
        torch_below: ``torch_below(problem)``: automatic choice leaves calls on CPU tensors of fewer operations
            (`Problem.flops`) than this to torch's own function, which was measured to be faster there, call and all.
            ``python -m bench auto`` measures it anew.
        measured: of a backend on a GPU: ``measured(problem)`` is what was measured of such calls, beside the backend
            "torch" as it runs them; automatic choice leaves them to a faster backend. None where nothing was.
        by_address: of a backend that takes NumPy's arrays: ``by_address(problem)`` is a function that does what
            ``forward`` does when it is told where the inputs and the results lie, at the cost of no array; None where
            there is no such function. See kernels.runtime.by_address.
        backward_by_address: the same of ``backward``: the gradients, what is saved, the gradients of the inputs.
        direct: of a backend that torch differentiates: ``direct(problem)`` is torch's own function that takes the
            inputs and returns the output, nothing more, or None where there is no such function. It does without the
            residuals of ``forward``, and only where it exists is `torch_below` heeded.
    """

    op: Op
    backend: str
    forward: Callable[..., tuple[Any, ...]]
    backward: Callable[..., tuple[Any, ...]] | None = None
    reasons: Callable[[Any], list[str]] = _no_reasons
    dtypes: tuple[str, ...] = ("float32", "float64")
    describe: Callable[[Any], str] = _no_words
    checks_values: bool = False
    torch_below: Callable[[Any], int] = _no_operations
    measured: Callable[[Any], Measured | None] = _no_function
    by_address: Callable[[Any], Callable[..., Any] | None] = _no_function
    backward_by_address: Callable[[Any], Callable[..., Any] | None] = _no_function
    direct: Callable[[Any], Callable[..., Any] | None] = _no_function

    def __post_init__(self) -> None:
        self.op.implementations[self.backend] = self

    def why_not(self, problem: Problem) -> list[str]:
        """Every reason against running `problem` here; empty when it can."""
        found = []
        for name in self.op.differentiable:
            given: ArraySpec | None = getattr(problem, name)
            # An input that may be integers or numbers (class labels or probabilities) is as its declaration says.
            if given is not None and given.floating and given.dtype not in self.dtypes:
                found.append(f"{name} has dtype {given.dtype}; it takes {', '.join(self.dtypes)}")
                break
        return found + self.reasons(problem)

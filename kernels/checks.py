"""One way to validate an argument, one style of message.

Every check raises before anything is computed, with one line that names the op, the argument, the rule and the value
received: ``conv2d: stride must be at least 1, got 0``. A wrong kind of value is a ``TypeError``, a wrong value a
``ValueError``.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kernels.arrays import ArraySpec

Pair = tuple[int, int]
#: Of windows, strides and the like: torch's own limit, and products of a few stay small.
LARGEST_EXTENT = 2**31 - 1
#: Bytes that a processor can address.
ADDRESSABLE = 2**47
#: Bytes from which on it is tried whether there is memory for what a call makes, before anything is computed.
LEAST_TRIED = 2**30
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
#: Characters of a value that a message shows.
LONGEST_SHOWN = 200
FLOATING = ("float16", "bfloat16", "float32", "float64")


def shown(text: str) -> str:
    """A value's text in a message: on one line, and no more than its beginning where it is long, as an array's is."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_SHOWN else f"{line[:LONGEST_SHOWN]}..."


def fail(op: str, argument: str, rule: str, got: object) -> NoReturn:
    """Raise ``ValueError`` with the house's one-line message."""
    raise ValueError(f"{op}: {argument} {rule}, got {shown(str(got))}")


def fail_type(op: str, argument: str, rule: str, got: object) -> NoReturn:
    """Raise ``TypeError`` with the house's one-line message; `got` is shown with its type."""
    raise TypeError(f"{op}: {argument} {rule}, got {shown(repr(got))} ({type(got).__name__})")


def place(position: tuple[int, ...]) -> str:
    """Where an element of an array is, at the end of a message: " at 3", " at (1, 2)"; "" in an array of one number."""
    return f" at {position if len(position) != 1 else position[0]}" if position else ""


def integer(op: str, argument: str, value: Any, minimum: int | None = None) -> int:
    """`value` as an int of 64 bits and of at least `minimum`. Accepts NumPy integers; refuses bools and floats."""
    if isinstance(value, bool):
        fail_type(op, argument, "must be an int", value)
    try:
        number = operator.index(value)
    except (TypeError, RuntimeError):  # the latter of tensors without values
        fail_type(op, argument, "must be an int", value)
    if minimum is not None and number < minimum:
        fail(op, argument, f"must be at least {minimum}", value)
    if not -(2**63) <= number < 2**63:
        fail(op, argument, "must fit into 64 bits", value)
    return number


def pair(op: str, argument: str, value: Any, minimum: int) -> Pair:
    """`value` as (vertical, horizontal): an int for both, or a sequence of one or two ints, each at least `minimum`."""
    if isinstance(value, (tuple, list)):
        if len(value) not in (1, 2):
            fail(op, argument, "must be an int or a pair of ints", value)
    elif isinstance(value, str) or value is None:
        fail_type(op, argument, "must be an int or a pair of ints", value)
    numbers = [integer(op, argument, v) for v in (value if isinstance(value, (tuple, list)) else (value,))]
    if any(v < minimum for v in numbers):
        fail(op, argument, f"must be at least {minimum}", value)
    if any(v > LARGEST_EXTENT for v in numbers):
        fail(op, argument, f"must be at most {LARGEST_EXTENT}", value)
    return numbers[0], numbers[-1]


def number(op: str, argument: str, value: Any) -> float:
    """`value` as a Python float; refuses bools, complex numbers, strings, arrays, and tensors that want a gradient."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if isinstance(value, int) and not -(2**1023) <= value <= 2**1023:
            fail(op, argument, "must fit into a float", value)
        return float(value)  # first, and all that torch.compile has to follow
    other = isinstance(value, (bool, np.bool_, np.complexfloating, str, type))
    if other or not hasattr(value, "__float__") or getattr(value, "ndim", 0) != 0:
        fail_type(op, argument, "must be a number", value)
    if getattr(value, "requires_grad", False):
        fail_type(op, argument, "must be a number, which has no gradient (detach it)", value)
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # what is none, or a tensor without a value
        fail_type(op, argument, "must be a number", value)


def finite(op: str, argument: str, value: Any) -> float:
    """`value` as a Python float that is neither NaN nor infinite."""
    found = number(op, argument, value)
    if not -math.inf < found < math.inf:
        fail(op, argument, "must be finite", value)
    return found


def boolean(op: str, argument: str, value: Any) -> bool:
    """`value` as a bool; refuses everything that is not one."""
    if not isinstance(value, bool):
        fail_type(op, argument, "must be True or False", value)
    return value


def one_of(op: str, argument: str, value: Any, allowed: Sequence[Any]) -> Any:
    """`value`, when it is one of `allowed`."""
    if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in allowed):
        fail(op, argument, f"must be one of {', '.join(map(repr, allowed))}", repr(value))
    return value


def dimension(op: str, argument: str, value: Any, ndim: int) -> int:
    """`value` as a dimension index in [0, ndim), counted from the end when negative. A 0-d array counts as 1-d."""
    index = integer(op, argument, value)
    bound = max(ndim, 1)
    if not -bound <= index < bound:
        raise IndexError(f"{op}: {argument} must lie in [{-bound}, {bound - 1}] for {ndim} dimensions, got {index}")
    return index % bound


def rank(op: str, argument: str, spec: ArraySpec, allowed: tuple[int, ...], shape: str) -> None:
    """`spec` has one of the `allowed` numbers of dimensions; `shape` names them in the message: "(N, C, H, W)"."""
    if spec.ndim not in allowed:
        fail(op, argument, f"must have shape {shape}", f"{spec.ndim} dimensions {spec.shape}")


def shape(op: str, argument: str, spec: ArraySpec, expected: tuple[int, ...], why: str) -> None:
    """`spec` has exactly the `expected` shape; `why` says where it comes from."""
    if spec.shape != expected:
        fail(op, argument, f"must have shape {expected} {why}", spec.shape)


def dtype(op: str, argument: str, spec: ArraySpec, allowed: Sequence[str] = FLOATING) -> None:
    """`spec` has one of the `allowed` element types."""
    if spec.dtype not in allowed:
        fail_type_name(op, argument, f"must have dtype {' or '.join(allowed)}", spec.dtype)


def fail_type_name(op: str, argument: str, rule: str, got: str) -> NoReturn:
    """Raise ``TypeError`` for a wrong element type or kind of array, named by `got`."""
    raise TypeError(f"{op}: {argument} {rule}, got {got}")


def same_dtype(op: str, first: tuple[str, ArraySpec], *others: tuple[str, ArraySpec | None]) -> None:
    """Every other array has the element type of the first; ``None`` is skipped."""
    name, spec = first
    for argument, other in others:
        if other is not None and other.dtype != spec.dtype:
            fail_type_name(op, argument, f"must have the dtype of {name} ({spec.dtype})", other.dtype)


def addressable(op: str, argument: str, spec: ArraySpec) -> None:
    """`spec` is no larger than memory can be: an expanded array may say anything of its size, and kernels count in 64
    bits."""
    if spec.nbytes >= ADDRESSABLE:
        fail(op, argument, "must take less than 2^47 bytes", f"{amount(spec.nbytes)}, shape {spec.shape}")


def memory(
    op: str, what: str, specs: Sequence[ArraySpec | None], of: str | Callable[[], str], *, is_tried: bool = True
) -> None:
    """There is memory for all of `specs` together, which are not made yet.

    Args:
        op: name of the op.
        what: what they are: "results", "the gradient of x".
        specs: their specs.
        of: the call in words, which the message ends with, or what makes them.
        is_tried: whether they would lie in this machine's memory, so that it can be asked.

    Raises:
        MemoryError: as it would come of making them, later and in other words.
    """
    found = [spec for spec in specs if spec is not None]
    size = sum(spec.nbytes for spec in found)
    if size < LEAST_TRIED:
        return
    fits = size < ADDRESSABLE
    if fits and is_tried:
        try:
            np.empty(size, np.uint8)  # It is given back untouched.
        except MemoryError:
            fits = False
    if not fits:
        shape = max(found, key=lambda spec: spec.nbytes).shape
        words = of if isinstance(of, str) else of()
        raise MemoryError(f"{op}: {what} must fit into memory, got {amount(size)}, shape {shape}, of {words}")


def amount(size: int) -> str:
    """A number of bytes in words: "1.50 GiB"."""
    unit = next((n for n in range(len(UNITS) - 1) if size < 1024 ** (n + 1)), len(UNITS) - 1)
    return f"{size / 1024**unit:.3g} {UNITS[unit]}"


def no_zero_size(op: str, argument: str, spec: ArraySpec, dimensions: Sequence[int]) -> None:
    """None of the given `dimensions` has size 0."""
    if any(spec.shape[d] == 0 for d in dimensions):
        fail(op, argument, "must not have a dimension of size 0 (only the batch may be empty)", spec.shape)

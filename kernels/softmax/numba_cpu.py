"""softmax, log_softmax and cross_entropy on the CPU: which kernel runs, on which arrays, in how many threads."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.op import Implementation
from kernels.runtime.by_address import LIKE, Run, array_from, backward_through, forward_through, if_plain
from kernels.runtime.indices import any_outside_at
from kernels.runtime.numba_cpu import SMALLEST_ALIGNED, Threaded, address, scratch, small, threaded, threads_for
from kernels.simd import VECTOR_BYTES
from kernels.softmax import cross_entropy_cpu, softmax_cpu
from kernels.softmax.cross_entropy_cpu import loss_of_rows, reduce_losses
from kernels.softmax.op import CROSS_ENTROPY, LOG_SOFTMAX, SOFTMAX, CrossEntropyProblem, SoftmaxProblem

Array = np.ndarray[Any, Any]

#: Elements a thread, below which another one does not pay.
GRAIN = 16384

_rows = threaded(softmax_cpu.softmax_rows)
_columns = threaded(softmax_cpu.softmax_columns)
_rows_backward = threaded(softmax_cpu.softmax_rows_backward)
_columns_backward = threaded(softmax_cpu.softmax_columns_backward)
_losses_of_rows = threaded(cross_entropy_cpu.losses_of_rows)
_losses_of_columns = threaded(cross_entropy_cpu.losses_of_columns)
_gradient_of_rows = threaded(cross_entropy_cpu.gradient_of_rows)
_gradient_of_columns = threaded(cross_entropy_cpu.gradient_of_columns)


def _vectors(outer: int, inner: int, itemsize: int) -> int:
    """How many vectors of columns an array (outer, classes, inner) has."""
    lanes = VECTOR_BYTES // itemsize
    return outer * -(-inner // lanes)


def _over_classes(p: SoftmaxProblem, rows: Threaded, columns: Threaded) -> Run:
    """A run of one kernel for rows along the last dimension, or of another for columns; contiguous arrays."""
    outer, n, inner = p.extents
    size, is_log, like = p.x.size, p.op == "log_softmax", LIKE[p.x.dtype]
    if inner == 1:
        return lambda *places: rows(outer, threads_for(size, GRAIN), like, *places, n, is_log)
    vectors = _vectors(outer, inner, p.x.itemsize)
    return lambda *places: columns(vectors, threads_for(size, GRAIN), like, *places, n, inner, is_log)


def softmax_by_address(p: SoftmaxProblem) -> Run:
    """x -> softmax or log_softmax."""
    return _over_classes(p, _rows, _columns)


def softmax_backward_by_address(p: SoftmaxProblem) -> Run:
    """grad_output, output -> gradient of x."""
    return _over_classes(p, _rows_backward, _columns_backward)


def _takes_targets(p: CrossEntropyProblem) -> bool:
    """Whether the kernels take the targets as they are: probabilities, or class indices in int64."""
    return not p.indexed or p.target.dtype == "int64"


def _in_int64(p: CrossEntropyProblem, target: int) -> Array:
    """The class indices at an address."""
    return array_from(target, p.target.shape, np.dtype(p.target.dtype)).astype(np.int64)


def cross_entropy_by_address(p: CrossEntropyProblem) -> Run:
    """input, target, weight -> loss, maximum, log_sum, divisor."""
    outer, classes, inner = p.extents
    rows, size, dtype = outer * inner, p.input.size, np.dtype(p.input.dtype)
    like, int64, step = LIKE[p.input.dtype], LIKE["int64"], rows * dtype.itemsize
    options = (p.ignore_index, p.indexed, p.weight is not None)
    smooth = (1.0 - p.label_smoothing, p.label_smoothing / max(classes, 1))
    each, mean = p.reduction == "none", p.reduction == "mean"
    vectors, as_given = _vectors(outer, inner, dtype.itemsize), _takes_targets(p)
    allocate = small if 3 * step < SMALLEST_ALIGNED else scratch

    def run(input: int, target: int, weight: int, loss: int, maximum: int, log_sum: int, divisor: int) -> bool:
        room = allocate(3 * rows, dtype)
        at = address(room)
        threads = threads_for(size, GRAIN)
        if not as_given:
            wide = _in_int64(p, target)  # Its name keeps it alive to the end.
            target = address(wide)
        if inner == 1 and threads == 1 and not each:
            return not loss_of_rows(
                like, int64, input, target, weight, at, loss, maximum, log_sum, divisor, rows, classes, *options,
                *smooth, mean,
            )  # fmt: skip
        if each and p.indexed and any_outside_at(target, rows, int64, classes, p.ignore_index):
            return False
        losses = loss if each else at
        made = (losses, maximum or at + step, log_sum or at + 2 * step, rows, classes)
        if inner == 1:
            _losses_of_rows(rows, threads, like, int64, input, target, weight, *made, *options, *smooth)
        elif rows:
            _losses_of_columns(vectors, threads, like, int64, input, target, weight, *made, inner, *options, *smooth)
        return each or not reduce_losses(
            like, int64, losses, target, weight, loss, divisor, rows, classes, *options, mean
        )

    return run


def reduction_by_address(p: CrossEntropyProblem) -> Run:
    """losses, target, weight -> loss, divisor, of losses one for each row."""
    outer, classes, inner = p.extents
    like, int64, as_given = LIKE[p.input.dtype], LIKE["int64"], _takes_targets(p)
    options = (classes, p.ignore_index, p.indexed, p.weight is not None, p.reduction == "mean")

    def run(losses: int, target: int, weight: int, loss: int, divisor: int) -> None:
        if not as_given:
            wide = _in_int64(p, target)  # Its name keeps it alive to the end.
            target = address(wide)
        reduce_losses(like, int64, losses, target, weight, loss, divisor, outer * inner, *options)

    return run


def cross_entropy_backward_by_address(p: CrossEntropyProblem) -> Run:
    """grad_loss, input, target, weight, maximum, log_sum (divisor) -> gradients of input and target probabilities."""
    outer, classes, inner = p.extents
    rows, size, dtype = outer * inner, p.input.size, np.dtype(p.input.dtype)
    like, int64, mean = LIKE[p.input.dtype], LIKE["int64"], p.reduction == "mean"
    options = (
        p.ignore_index, p.indexed, p.weight is not None, 1.0 - p.label_smoothing,
        p.label_smoothing / max(classes, 1), p.reduction == "none", mean,
    )  # fmt: skip
    vectors, as_given = _vectors(outer, inner, dtype.itemsize), _takes_targets(p)

    def run(*places: int) -> None:
        grad, input, target, weight, maximum, log_sum, *rest = places
        divisor, grad_input, grad_target = (rest if mean else (0, *rest))[:3]
        if not as_given:
            wide = _in_int64(p, target)  # Its name keeps it alive to the end.
            target = address(wide)
        threads = threads_for(size, GRAIN)
        arrays = (grad, input, target, weight, maximum, log_sum, divisor, grad_input, grad_target)
        if inner == 1:
            _gradient_of_rows(outer, threads, like, int64, *arrays, rows, classes, *options)
        elif rows:
            room = scratch(2 * rows, dtype)
            _gradient_of_columns(
                vectors, threads, like, int64, *arrays, address(room), rows, classes, inner, *options
            )

    return run


def _describe_softmax(p: SoftmaxProblem) -> str:
    return "lanes along dim" if p.extents[2] == 1 else "lanes across the inner dimensions"


def _describe_cross_entropy(p: CrossEntropyProblem) -> str:
    return "lanes along the classes" if p.extents[2] == 1 else "lanes across the inner dimensions"


def _torch_below(p: SoftmaxProblem) -> int:
    """Operations below which torch's own function is faster. It takes short rows number by number."""
    _, n, inner = p.extents
    if inner > 1 or n < 16:
        return 3500 if p.trains else 800 if inner == 1 else 3100
    if p.x.dtype == "float32":
        return 160_000 if p.trains else 11_000
    return 25_000 if p.trains else 3000


for _op in (SOFTMAX, LOG_SOFTMAX):
    Implementation(
        _op, "numba", forward_through(_op, softmax_by_address), backward_through(_op, softmax_backward_by_address),
        describe=_describe_softmax, torch_below=_torch_below, by_address=if_plain(softmax_by_address),
        backward_by_address=if_plain(softmax_backward_by_address),
    )  # fmt: skip
Implementation(
    CROSS_ENTROPY, "numba", forward_through(CROSS_ENTROPY, cross_entropy_by_address),
    backward_through(CROSS_ENTROPY, cross_entropy_backward_by_address),
    describe=_describe_cross_entropy, checks_values=True, by_address=if_plain(cross_entropy_by_address),
    backward_by_address=if_plain(cross_entropy_backward_by_address),
)  # fmt: skip

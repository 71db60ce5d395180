"""softmax, log_softmax and cross_entropy on the CPU: which kernel runs, on which arrays, in how many threads."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.op import Implementation
from kernels.runtime.by_address import LIKE, Run, backward_through, forward_through, if_plain
from kernels.runtime.indices import any_outside
from kernels.runtime.numba_cpu import Threaded, contiguous, empty, threaded, threads_for
from kernels.simd import VECTOR_BYTES
from kernels.softmax import cross_entropy_cpu, softmax_cpu
from kernels.softmax.cross_entropy_cpu import loss_at
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


def _operands(
    p: CrossEntropyProblem, input: Array, target: Array, weight: Array | None
) -> tuple[Array, Array, Array, Array]:
    """(x, indices, soft, weight) as the kernels take them: 1-d, and something empty for what is not used."""
    unused = LIKE[p.input.dtype]
    if p.indexed:
        target = target if p.target.dtype == "int64" else target.astype(np.int64)
        indices, soft = contiguous(target).reshape(-1), unused
    else:
        indices, soft = LIKE["int64"], contiguous(target).reshape(-1)
    return contiguous(input).reshape(-1), indices, soft, unused if weight is None else contiguous(weight)


def _room_for_rows(p: CrossEntropyProblem, rows: int, dtype: Any) -> tuple[Array, Array, Array]:
    """(losses, maximum, log_sum), one number for each row; one block of scratch where none of them is a result."""
    if p.trains or p.reduction == "none":
        return empty(rows, dtype), empty(rows, dtype), empty(rows, dtype)
    scratch = empty(3 * rows, dtype)
    return scratch[:rows], scratch[rows : 2 * rows], scratch[2 * rows :]


def cross_entropy(
    p: CrossEntropyProblem, input: Array, target: Array, weight: Array | None
) -> tuple[Array | None, ...]:
    """loss, maximum, log_sum, divisor."""
    outer, classes, inner = p.extents
    x, indices, soft, factors = _operands(p, input, target, weight)
    if p.indexed and any_outside(indices, classes, p.ignore_index):
        p.check_values(input, target, weight)
    rows = outer * inner
    losses, maximum, log_sum = _room_for_rows(p, rows, x.dtype)
    hard, even = 1 - p.label_smoothing, p.label_smoothing / max(classes, 1)
    threads = threads_for(x.size, GRAIN)
    arrays = (x, indices, soft, factors, losses, maximum, log_sum)
    options = (p.ignore_index, p.indexed, weight is not None)
    if inner == 1:
        _losses_of_rows(rows, threads, *arrays, classes, *options, hard, even)
    elif rows:
        vectors = _vectors(outer, inner, x.itemsize)
        _losses_of_columns(vectors, threads, *arrays, classes, inner, *options, hard, even)
    divisor = None
    if p.reduction == "none":
        loss = losses.reshape(p.rows_shape)
    else:
        mean = p.reduction == "mean"
        loss = empty((), x.dtype)
        divisor = empty((), x.dtype) if mean else loss
        summed = loss.reshape(1), divisor.reshape(1)
        cross_entropy_cpu.reduce_losses(losses, indices, factors, *summed, classes, *options, mean)
        divisor = divisor if mean else None
    if not p.trains:
        return loss, None, None, None
    return loss, maximum.reshape(p.rows_shape), log_sum.reshape(p.rows_shape), divisor


def loss_by_address(p: CrossEntropyProblem) -> Run | None:
    """The reduced loss of rows of contiguous logits and int64 classes, in one thread."""
    rows, classes, inner = p.extents
    plain = p.indexed and p.target.dtype == "int64" and p.weight is None and inner == 1 and p.reduction != "none"
    if not plain or p.trains or p.input.strides or p.target.strides or not 0 < rows * classes < 2 * GRAIN:
        return None
    hard, even = 1 - p.label_smoothing, p.label_smoothing / classes
    dtype, like, ignored, mean = np.dtype(p.input.dtype), LIKE["int64"], p.ignore_index, p.reduction == "mean"

    def run(input: int, target: int, weight: int, loss: int, *_: int) -> bool:
        room = empty(3 * rows, dtype)
        return not loss_at(input, target, like, room, loss, rows, classes, ignored, hard, even, mean)

    return run


def cross_entropy_backward(
    p: CrossEntropyProblem,
    grad_loss: Array,
    input: Array,
    target: Array,
    weight: Array | None,
    maximum: Array,
    log_sum: Array,
    divisor: Array | None = None,
) -> tuple[Array | None, ...]:
    """Gradients of input and of target probabilities."""
    outer, classes, inner = p.extents
    x, indices, soft, factors = _operands(p, input, target, weight)
    wants_x, wants_soft = p.needs_grad[0], p.needs_grad[1] and not p.indexed
    unused = LIKE[p.input.dtype]
    grad_x = empty(p.input.shape, x.dtype) if wants_x else None
    grad_soft = empty(p.input.shape, x.dtype) if wants_soft else None
    hard, even = 1 - p.label_smoothing, p.label_smoothing / max(classes, 1)
    each, mean = p.reduction == "none", divisor is not None
    arrays = (
        contiguous(grad_loss).reshape(-1),
        x,
        indices,
        soft,
        factors,
        contiguous(maximum).reshape(-1),
        contiguous(log_sum).reshape(-1),
        unused if divisor is None else contiguous(divisor).reshape(-1),
        unused if grad_x is None else grad_x.reshape(-1),
        unused if grad_soft is None else grad_soft.reshape(-1),
    )
    options = (p.ignore_index, p.indexed, weight is not None, hard, even, each, mean, wants_x, wants_soft)
    threads = threads_for(x.size, GRAIN)
    if wants_x or wants_soft:
        if inner == 1:
            _gradient_of_rows(outer, threads, *arrays, classes, *options)
        elif outer * inner:
            scratch = (empty(outer * inner, x.dtype), empty(outer * inner, x.dtype))
            vectors = _vectors(outer, inner, x.itemsize)
            _gradient_of_columns(vectors, threads, *arrays, *scratch, classes, inner, *options)
    return grad_x, grad_soft, None


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
    CROSS_ENTROPY, "numba", cross_entropy, cross_entropy_backward,
    describe=_describe_cross_entropy, checks_values=True, by_address=loss_by_address,
)  # fmt: skip

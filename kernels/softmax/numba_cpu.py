"""softmax, log_softmax and cross_entropy on the CPU: which kernel runs, on which arrays, in how many threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.op import Implementation
from kernels.runtime.indices import any_outside
from kernels.runtime.numba_cpu import contiguous, empty, threaded, threads_for
from kernels.simd import VECTOR_BYTES
from kernels.softmax import cross_entropy_cpu, softmax_cpu
from kernels.softmax.op import CROSS_ENTROPY, LOG_SOFTMAX, SOFTMAX, CrossEntropyProblem, SoftmaxProblem

Array = np.ndarray[Any, Any]

#: Elements a thread, below which another one does not pay.
GRAIN = 16384

_rows = threaded(softmax_cpu.softmax_rows)
_rows_at = threaded(softmax_cpu.softmax_rows_at)
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


def softmax(p: SoftmaxProblem, x: Array) -> tuple[Array]:
    """softmax or log_softmax, contiguous."""
    outer, size, inner = p.extents
    x = contiguous(x)
    out = empty(x.shape, x.dtype)
    threads = threads_for(x.size, GRAIN)
    is_log = p.op == "log_softmax"
    if inner == 1:
        _rows(outer, threads, x.reshape(-1), out.reshape(-1), size, is_log)
    else:
        _columns(_vectors(outer, inner, x.itemsize), threads, x.reshape(-1), out.reshape(-1), size, inner, is_log)
    return (out,)


def softmax_by_address(p: SoftmaxProblem) -> Callable[..., Array] | None:
    """softmax along the last dimension of a contiguous x."""
    outer, n, inner = p.extents
    if p.x.strides is not None or inner != 1:
        return None
    size, shape, dtype, is_log = p.x.size, p.x.shape, np.dtype(p.x.dtype), p.op == "log_softmax"

    def run(x: Array | int) -> Array:
        out = empty(size, dtype)
        _rows_at(outer, threads_for(size, GRAIN), x, out, n, is_log)
        return out.reshape(shape)

    return run


def softmax_backward(p: SoftmaxProblem, grad_output: Array, output: Array) -> tuple[Array]:
    """The gradient of x, contiguous."""
    outer, size, inner = p.extents
    grad, y = contiguous(grad_output).reshape(-1), contiguous(output).reshape(-1)
    found = empty(p.x.shape, y.dtype)
    threads = threads_for(y.size, GRAIN)
    is_log = p.op == "log_softmax"
    if inner == 1:
        _rows_backward(outer, threads, grad, y, found.reshape(-1), size, is_log)
    else:
        vectors = _vectors(outer, inner, y.itemsize)
        _columns_backward(vectors, threads, grad, y, found.reshape(-1), size, inner, is_log)
    return (found,)


#: What stands in for an array that a kernel does not use, by element type.
_UNUSED = {name: np.empty(0, name) for name in ("int64", "float32", "float64")}


def _operands(
    p: CrossEntropyProblem, input: Array, target: Array, weight: Array | None
) -> tuple[Array, Array, Array, Array]:
    """(x, indices, soft, weight) as the kernels take them: 1-d, and something empty for what is not used."""
    unused = _UNUSED[p.input.dtype]
    if p.indexed:
        target = target if p.target.dtype == "int64" else target.astype(np.int64)
        indices, soft = contiguous(target).reshape(-1), unused
    else:
        indices, soft = _UNUSED["int64"], contiguous(target).reshape(-1)
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
        cross_entropy_cpu.reduce_losses(losses, indices, factors, loss, divisor, classes, *options, mean)
        divisor = divisor if mean else None
    if not p.trains:
        return loss, None, None, None
    return loss, maximum.reshape(p.rows_shape), log_sum.reshape(p.rows_shape), divisor


def loss_by_address(p: CrossEntropyProblem) -> Callable[..., Array | None] | None:
    """The reduced loss of rows of contiguous logits and int64 classes, in one thread; None where a class is wrong."""
    rows, classes, inner = p.extents
    plain = p.indexed and p.target.dtype == "int64" and p.weight is None and inner == 1 and p.reduction != "none"
    if not plain or p.trains or p.input.strides or p.target.strides or not 0 < rows * classes < 2 * GRAIN:
        return None
    hard, even = 1 - p.label_smoothing, p.label_smoothing / classes
    dtype, unused, ignored, mean = np.dtype(p.input.dtype), _UNUSED["int64"], p.ignore_index, p.reduction == "mean"

    def run(input: Array | int, target: Array | int, weight: None) -> Array | None:
        room, loss = empty(3 * rows, dtype), empty((), dtype)
        if cross_entropy_cpu.loss_at(input, target, unused, room, loss, rows, classes, ignored, hard, even, mean):
            return None
        return loss

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
    unused = _UNUSED[p.input.dtype]
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
        _op, "numba", softmax, softmax_backward,
        describe=_describe_softmax, torch_below=_torch_below, by_address=softmax_by_address,
    )  # fmt: skip
Implementation(
    CROSS_ENTROPY, "numba", cross_entropy, cross_entropy_backward,
    describe=_describe_cross_entropy, checks_values=True, by_address=loss_by_address,
)  # fmt: skip

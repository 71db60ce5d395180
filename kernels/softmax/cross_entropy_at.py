"""cross_entropy's kernels from addresses, which is how Python calls them.

like, int64: any arrays of the element type and of int64. x, target, weight and what is made are addresses, any number
for what is not used; everything else is as in cross_entropy_cpu.py. target: of the indices, or of the probabilities.
"""

from __future__ import annotations

from kernels.runtime.indices import any_outside
from kernels.runtime.numba_cpu import jit
from kernels.simd import array_at
from kernels.softmax.cross_entropy_cpu import (
    gradient_of_columns,
    gradient_of_rows,
    losses_of_columns,
    losses_of_rows,
    reduce_losses,
)


@jit(inner=True)
def _operands_at(like, int64, x, target, weight, rows, classes):
    """x, indices, soft and weight as arrays."""
    size = rows * classes
    return (
        array_at(like, x, size),
        array_at(int64, target, rows),
        array_at(like, target, size),
        array_at(like, weight, classes),
    )


@jit
def losses_of_rows_at(
    first, last, like, int64, x, target, weight, losses, maxima, logs, rows, classes, ignore_index, indexed, weighted,
    hard, even
):  # fmt: skip
    """losses_of_rows."""
    x, indices, soft, weight = _operands_at(like, int64, x, target, weight, rows, classes)
    losses, maxima, logs = array_at(like, losses, rows), array_at(like, maxima, rows), array_at(like, logs, rows)
    losses_of_rows(
        first, last, x, indices, soft, weight, losses, maxima, logs, classes, ignore_index, indexed, weighted, hard,
        even,
    )  # fmt: skip


@jit
def losses_of_columns_at(
    first, last, like, int64, x, target, weight, losses, maxima, logs, rows, classes, inner, ignore_index, indexed,
    weighted, hard, even
):  # fmt: skip
    """losses_of_columns."""
    x, indices, soft, weight = _operands_at(like, int64, x, target, weight, rows, classes)
    losses, maxima, logs = array_at(like, losses, rows), array_at(like, maxima, rows), array_at(like, logs, rows)
    losses_of_columns(
        first, last, x, indices, soft, weight, losses, maxima, logs, classes, inner, ignore_index, indexed, weighted,
        hard, even,
    )  # fmt: skip


@jit
def reduce_losses_at(
    like, int64, losses, target, weight, loss, divisor, rows, classes, ignore_index, indexed, weighted, mean
):
    """reduce_losses; a divisor that nobody wants goes where the loss will be. True where a class is wrong."""
    indices = array_at(int64, target, rows)
    if indexed and any_outside(indices, classes, ignore_index):
        return True
    reduce_losses(
        array_at(like, losses, rows), indices, array_at(like, weight, classes), array_at(like, loss, 1),
        array_at(like, divisor if divisor else loss, 1), classes, ignore_index, indexed, weighted, mean,
    )  # fmt: skip
    return False


@jit
def loss_of_rows_at(
    like, int64, x, target, weight, room, loss, maxima, logs, divisor, rows, classes, ignore_index, indexed, weighted,
    hard, even, mean
):  # fmt: skip
    """The reduced loss of all rows in one call, inner being 1; True where a class is wrong.

    room: 3 numbers for each row, of which all are used where maxima and logs are 0.
    """
    step = rows * like.itemsize
    if not maxima:
        maxima, logs = room + step, room + 2 * step
    losses_of_rows_at(
        0, rows, like, int64, x, target, weight, room, maxima, logs, rows, classes, ignore_index, indexed, weighted,
        hard, even,
    )  # fmt: skip
    return reduce_losses_at(
        like, int64, room, target, weight, loss, divisor, rows, classes, ignore_index, indexed, weighted, mean
    )


@jit
def gradient_of_rows_at(
    first, last, like, int64, grad, x, target, weight, maxima, logs, divisor, grad_x, grad_soft, rows, classes,
    ignore_index, indexed, weighted, hard, even, each, mean
):  # fmt: skip
    """gradient_of_rows, of what has an address to be written to."""
    size = rows * classes
    x, indices, soft, weight = _operands_at(like, int64, x, target, weight, rows, classes)
    gradient_of_rows(
        first, last, array_at(like, grad, rows), x, indices, soft, weight, array_at(like, maxima, rows),
        array_at(like, logs, rows), array_at(like, divisor, 1), array_at(like, grad_x, size),
        array_at(like, grad_soft, size), classes, ignore_index, indexed, weighted, hard, even, each, mean,
        grad_x != 0, grad_soft != 0,
    )  # fmt: skip


@jit
def gradient_of_columns_at(
    first, last, like, int64, grad, x, target, weight, maxima, logs, divisor, grad_x, grad_soft, room, rows, classes,
    inner, ignore_index, indexed, weighted, hard, even, each, mean
):  # fmt: skip
    """gradient_of_columns, likewise. room: scratch, 2 numbers for each row."""
    size = rows * classes
    x, indices, soft, weight = _operands_at(like, int64, x, target, weight, rows, classes)
    gradient_of_columns(
        first, last, array_at(like, grad, rows), x, indices, soft, weight, array_at(like, maxima, rows),
        array_at(like, logs, rows), array_at(like, divisor, 1), array_at(like, grad_x, size),
        array_at(like, grad_soft, size), array_at(like, room, rows),
        array_at(like, room + rows * like.itemsize, rows), classes, inner, ignore_index, indexed, weighted, hard,
        even, each, mean, grad_x != 0, grad_soft != 0,
    )  # fmt: skip

"""linear_cross_entropy on GPUs through CuPy: cuBLAS and the kernels of cross_entropy, on some rows at a time.

Every chunk's logits, and their gradients, take the place of the chunk's before; the results and the sums over the
chunks are written where they stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kernels.arrays import ArraySpec
from kernels.conv2d.cupy_sums import Order, sum_of_parts
from kernels.linear.cupy_gpu import finish_sums
from kernels.linear_cross_entropy.chunks import chunk_rows, describe
from kernels.linear_cross_entropy.gpu_speeds import measured
from kernels.linear_cross_entropy.op import LINEAR_CROSS_ENTROPY, LinearCrossEntropyProblem
from kernels.op import Implementation
from kernels.runtime.cupy_gpu import DTYPES, computed_dtype, contiguous, empty, full, zero_gradients
from kernels.runtime.cupy_products import matrix_product, operand
from kernels.softmax.cupy_gpu import nothing_to_average, reduced, write_gradients, write_losses

Array = Any


class _Chunks:
    """The arrays of a call as matrices, and room for a chunk's logits."""

    def __init__(
        self, p: LinearCrossEntropyProblem, input: Array, linear_weight: Array, target: Array, linear_bias: Array | None
    ) -> None:
        self.outputs, self.rows, self.most = p.classes * p.inner, p.rows, min(chunk_rows(p), p.rows)
        x, matrix = input.reshape(p.rows, p.in_features), linear_weight.reshape(self.outputs, p.in_features)
        # What cuBLAS would copy, it would copy for every chunk.
        self.x, self.matrix = operand(x).array, operand(matrix).array
        self.target = target.reshape((p.rows, p.inner) if p.indexed else (p.rows, p.classes, p.inner))
        self.bias = None if linear_bias is None else linear_bias.reshape(self.outputs)
        self.dtype = p.input.dtype
        self.room = self.fresh()

    def parts(self) -> Iterator[slice]:
        """The rows of each chunk in turn."""
        return (slice(n, min(n + self.most, self.rows)) for n in range(0, self.rows, self.most))

    def fresh(self) -> Array:
        """Room for numbers of as many logits as a chunk has, (rows, C * d1 * ...)."""
        return empty((self.most, self.outputs), self.dtype)

    def logits(self, part: slice) -> Array:
        """Of some rows."""
        found = matrix_product(self.x[part], self.matrix.transpose(), self.room[: part.stop - part.start])
        if self.bias is not None:
            finish_sums(found, self.bias)
        return found


def linear_cross_entropy(
    p: LinearCrossEntropyProblem,
    input: Array,
    linear_weight: Array,
    target: Array,
    linear_bias: Array | None,
    weight: Array | None,
) -> tuple[Array | None, ...]:
    """loss, maximum, log_sum, divisor."""
    if p.rows * p.inner == 0:
        return nothing_to_average(p, p.reduction)
    call = _Chunks(p, input, linear_weight, target, linear_bias)
    dtype, wide, rows = p.input.dtype, computed_dtype(p.input.dtype), (p.rows, p.inner)
    each = empty(p.losses_shape, dtype) if p.reduction == "none" else None
    losses = empty(rows, wide) if each is None else None
    kept = (empty(p.losses_shape, wide), empty(p.losses_shape, wide)) if p.trains else (None, None)
    written = [None if a is None else a.reshape(rows) for a in (each, losses, *kept)]
    weights = None if weight is None else contiguous(weight)
    for part in call.parts():
        problem = p.loss_of(part.stop - part.start, p.reduction)
        of_part = (None if a is None else a[part] for a in written)
        write_losses(problem, call.logits(part), call.target[part], weights, *of_part)
    if each is not None:
        return each, *kept, None
    loss, divisor = reduced(p.loss_of(p.rows, p.reduction), losses, call.target, weights)
    return loss, *kept, divisor


def linear_cross_entropy_backward(
    p: LinearCrossEntropyProblem,
    grad_loss: Array,
    input: Array,
    linear_weight: Array,
    target: Array,
    linear_bias: Array | None,
    weight: Array | None,
    maximum: Array,
    log_sum: Array,
    divisor: Array | None = None,
) -> tuple[Array | None, ...]:
    """Gradients of input, linear_weight, target, linear_bias, weight."""
    if p.rows * p.inner == 0:
        return zero_gradients(p)
    call = _Chunks(p, input, linear_weight, target, linear_bias)
    dtype, rows = p.input.dtype, (p.rows, p.inner)
    wants_x, wants_matrix, wants_target, wants_bias, _ = p.needs_grad
    of_x = empty(p.input.shape, dtype) if wants_x else None
    of_target = empty(p.target.shape, p.target.dtype) if wants_target and not p.indexed else None
    # Of a single chunk nothing is summed that would have to be rounded afterwards.
    summed = dtype if call.most == p.rows else computed_dtype(dtype)
    of_matrix = empty((call.outputs, p.in_features), summed) if wants_matrix else None
    of_bias = empty((1, call.outputs), summed) if wants_bias else None
    room = call.fresh() if wants_x or wants_matrix or wants_bias else None
    ones: Any = full((1, call.most), dtype, 1) if wants_bias else None
    grad = grad_loss.reshape(rows) if p.reduction == "none" else grad_loss
    maximum, log_sum = contiguous(maximum).reshape(rows), contiguous(log_sum).reshape(rows)
    weights = None if weight is None else contiguous(weight)
    for part in call.parts():
        count = part.stop - part.start
        problem, later = p.loss_of(count, p.reduction), part.start > 0
        gradients: Any = None if room is None else room[:count]
        of_labels = None if of_target is None else of_target.reshape(call.target.shape)[part]
        write_gradients(
            problem, grad[part] if p.reduction == "none" else grad, call.logits(part), call.target[part], weights,
            maximum[part], log_sum[part], divisor, gradients, of_labels,
        )  # fmt: skip
        if of_x is not None:
            matrix_product(gradients, call.matrix, of_x.reshape(call.x.shape)[part])
        if of_matrix is not None:
            matrix_product(gradients.transpose(), call.x[part], of_matrix, add=later)
        if of_bias is not None:
            matrix_product(ones[:, :count], gradients, of_bias, add=later)
    forms = p.gradients()
    return of_x, _rounded(of_matrix, forms[1]), of_target, _rounded(of_bias, forms[3]), None


def _rounded(sums: Array | None, form: ArraySpec | None) -> Array | None:
    """Sums in the shape and dtype of a gradient; None stays None."""
    if sums is None or form is None:
        return None
    if sums.dtype.name != form.dtype and sums.size:
        sums = sum_of_parts(sums.reshape(1, -1), form.like((sums.size,)), Order.OUTPUTS)
    return sums.reshape(form.shape)


Implementation(
    LINEAR_CROSS_ENTROPY, "cupy", linear_cross_entropy, linear_cross_entropy_backward, dtypes=DTYPES, describe=describe,
    measured=measured,
)  # fmt: skip

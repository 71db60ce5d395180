"""linear_cross_entropy on the CPU: the kernels of linear and cross_entropy by address, some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import memset
from dataclasses import replace
from typing import Any

import numpy as np

from kernels.arrays import ArraySpec
from kernels.linear import numba_cpu as linear
from kernels.linear.op import LinearProblem
from kernels.linear_cross_entropy.chunks import chunks_of, describe, problems_of
from kernels.linear_cross_entropy.op import LINEAR_CROSS_ENTROPY, LinearCrossEntropyProblem
from kernels.op import Implementation, named
from kernels.runtime.by_address import Run, array_from, gradient_forms
from kernels.runtime.numba_cpu import address, contiguous, empty, scratch
from kernels.softmax import numba_cpu as softmax
from kernels.softmax.op import CrossEntropyProblem

Array = np.ndarray[Any, Any]


class _Chunks:
    """The rows of a problem in chunks, and where each begins in the arrays, in bytes.

    x, matrix: how input and linear_weight lie as matrices, of any strides.
    """

    def __init__(self, p: LinearCrossEntropyProblem, x: ArraySpec, matrix: ArraySpec) -> None:
        self.dtype = np.dtype(p.input.dtype)
        item, logits = self.dtype.itemsize, p.classes * p.inner
        step = p.in_features if x.strides is None else x.strides[0]
        of_targets = (p.inner if p.indexed else logits) * p.target.itemsize
        self.starts = [part.start for part in chunks_of(p)]
        self.counts = [part.stop - part.start for part in chunks_of(p)]
        self.is_one = len(self.counts) == 1
        #: Of the logits of the largest one.
        self.size = max(self.counts, default=0) * logits
        self.in_x = [start * step * item for start in self.starts]
        self.in_gradient = [start * p.in_features * item for start in self.starts]
        self.in_target = [start * of_targets for start in self.starts]
        self.in_losses = [start * p.inner * item for start in self.starts]
        self._problem, self._x, self._matrix = p, x, matrix

    def runs(self, prepare: Callable[[LinearProblem, CrossEntropyProblem], Any], reduction: str) -> list[Any]:
        """What `prepare` makes of the two calls of each chunk; of equal ones once."""
        known: dict[int, Any] = {}
        for count in self.counts:
            if count not in known:
                product, losses = problems_of(self._problem, count)
                x = replace(self._x, shape=(count, self._problem.in_features))
                known[count] = prepare(
                    replace(product, x=x, weight=self._matrix), replace(losses, reduction=reduction)
                )
        return [known[count] for count in self.counts]


def _forward_run(p: LinearCrossEntropyProblem, x: ArraySpec, matrix: ArraySpec) -> Run:
    """input, linear_weight, target, linear_bias, weight -> loss, maximum, log_sum, divisor."""
    chunks, each = _Chunks(p, x, matrix), p.reduction == "none"
    dtype, rows = chunks.dtype, p.rows * p.inner

    def both(product: LinearProblem, losses: CrossEntropyProblem) -> tuple[Run, Run]:
        to_logits = linear.by_address(product)
        assert to_logits is not None
        return to_logits, softmax.cross_entropy_by_address(losses)

    if chunks.is_one:
        ((to_logits, to_loss),) = chunks.runs(both, p.reduction)

        def run_once(input: int, matrix: int, target: int, bias: int, *rest: int) -> Any:
            logits = scratch(chunks.size, dtype)
            to_logits(input, matrix, bias, address(logits), 0)
            return to_loss(address(logits), target, *rest)

        return run_once
    runs, reduce = chunks.runs(both, "none"), softmax.reduction_by_address(p.loss_of(p.rows, p.reduction))

    def run(
        input: int, matrix: int, target: int, bias: int, weight: int, loss: int, maximum: int, log_sum: int,
        divisor: int,
    ) -> Any:  # fmt: skip
        logits, losses = scratch(chunks.size, dtype), loss
        if not each:
            all_losses = scratch(rows, dtype)  # Its name keeps it alive to the end.
            losses = address(all_losses)
        places = zip(runs, chunks.in_x, chunks.in_target, chunks.in_losses)
        for (to_logits, to_losses), in_x, in_target, in_losses in places:
            to_logits(input + in_x, matrix, bias, address(logits), 0)
            kept = (maximum + in_losses, log_sum + in_losses) if maximum else (0, 0)
            if to_losses(address(logits), target + in_target, weight, losses + in_losses, *kept, 0) is False:
                return False
        if not each:
            reduce(losses, target, weight, loss, divisor)
        return True

    return run


def _backward_run(p: LinearCrossEntropyProblem, x: ArraySpec, matrix: ArraySpec) -> Run:
    """grad_loss, the inputs, maximum, log_sum (divisor) -> gradients of the inputs."""
    chunks, each, mean = _Chunks(p, x, matrix), p.reduction == "none", p.reduction == "mean"
    dtype, wants_linear = chunks.dtype, p.needs_grad[0] or p.needs_grad[1] or p.needs_grad[3]
    of_weight, of_bias = (0 if form is None else form.size for form in (gradient_forms(p)[i] for i in (1, 3)))

    def all_three(product: LinearProblem, losses: CrossEntropyProblem) -> tuple[Run, Run, Run | None]:
        to_logits, back = linear.by_address(product), None
        assert to_logits is not None
        if wants_linear:
            # The gradient of the logits is contiguous, as these are.
            back = linear.backward_by_address(product)
            assert back is not None
        return to_logits, softmax.cross_entropy_backward_by_address(losses), back

    runs = chunks.runs(all_three, p.reduction)

    def run(grad: int, input: int, matrix: int, target: int, bias: int, *rest: int) -> None:
        weight, maximum, log_sum, *more = rest
        divisor, made = (more[:1], more[1:]) if mean else ([], more)
        dx, dw, d_target, db, _ = made
        logits = scratch(chunks.size, dtype)
        at = address(logits)
        # The first chunk writes the sums of the chunks' shares, the others add to them.
        shares = scratch(0 if chunks.is_one else of_weight + of_bias, dtype)
        if not runs:
            for place, size in ((dw, of_weight), (db, of_bias)):
                if place:
                    memset(place, 0, size * dtype.itemsize)
        for n, (to_logits, to_gradient, back) in enumerate(runs):
            of_rows = chunks.in_losses[n]
            to_logits(input + chunks.in_x[n], matrix, bias, at, 0)
            to_gradient(
                grad + of_rows if each else grad, at, target + chunks.in_target[n], weight, maximum + of_rows,
                log_sum + of_rows, *divisor, at if back is not None else 0,
                d_target + chunks.in_target[n] if d_target else 0, 0,
            )  # fmt: skip
            if back is None:
                continue
            to = dw, db
            if n:
                to = address(shares) if dw else 0, address(shares) + of_weight * dtype.itemsize if db else 0
            back(at, input + chunks.in_x[n], matrix, dx + chunks.in_gradient[n] if dx else 0, *to)
            if n and dw:
                array_from(dw, (of_weight,), dtype)[...] += shares[:of_weight]
            if n and db:
                array_from(db, (of_bias,), dtype)[...] += shares[of_weight:]

    return run


def _seen(form: ArraySpec, rows: int, columns: int) -> ArraySpec | None:
    """The spec of an input as a matrix; None where it is none without a copy."""
    if form.strides is None:
        return form.like((rows, columns))
    return form if form.ndim == 2 else None


def _by_address(
    p: LinearCrossEntropyProblem, prepare: Callable[[LinearCrossEntropyProblem, ArraySpec, ArraySpec], Run]
) -> Run | None:
    """A run where input and linear_weight are contiguous or matrices, of any strides, and all else is contiguous."""
    x = _seen(p.input, p.rows, p.in_features)
    matrix = _seen(p.linear_weight, p.classes * p.inner, p.in_features)
    others = (p.target, p.linear_bias, p.weight)
    if x is None or matrix is None or any(form is not None and form.strides is not None for form in others):
        return None
    return prepare(p, x, matrix)


def by_address(p: LinearCrossEntropyProblem) -> Run | None:
    """input, linear_weight, target, linear_bias, weight -> loss, maximum, log_sum, divisor."""
    return _by_address(p, _forward_run)


def backward_by_address(p: LinearCrossEntropyProblem) -> Run | None:
    """grad_loss, the inputs, maximum, log_sum (divisor) -> gradients of the inputs."""
    return _by_address(p, _backward_run)


def _matrix(array: Array, rows: int, columns: int) -> tuple[Array, ArraySpec]:
    """An array as a matrix that the kernels take: itself, whatever its strides, where it is one; else contiguous."""
    if array.ndim != 2 or not array.flags.aligned or not array.dtype.isnative:
        array = contiguous(array)
    if array.flags.c_contiguous:
        return array, ArraySpec((rows, columns), array.dtype.name)
    return array, ArraySpec(array.shape, array.dtype.name, "cpu", tuple(n // array.itemsize for n in array.strides))


def _on_arrays(
    p: LinearCrossEntropyProblem, way: str, prepare: Any, arrays: Sequence[Array | None], first: int,
    forms: Sequence[ArraySpec | None],
) -> tuple[Array | None, ...]:  # fmt: skip
    """New arrays of these specs, from a run on others, of which the one number `first` is input."""
    alive = [None if a is None else contiguous(a) for a in arrays[:first]]
    input, linear_weight, *rest = arrays[first:]
    assert input is not None and linear_weight is not None
    x, of_x = _matrix(input, p.rows, p.in_features)
    matrix, of_matrix = _matrix(linear_weight, p.classes * p.inner, p.in_features)
    alive += [x, matrix, *[None if a is None else contiguous(a) for a in rest]]
    # Kept on the problem itself, which lives as long as the plan of a call.
    known = p.__dict__.setdefault(way, {})
    run = known.get((of_x, of_matrix))
    if run is None:
        run = known[of_x, of_matrix] = prepare(p, of_x, of_matrix)
    made = [None if form is None else empty(form.shape, form.dtype) for form in forms]
    if run(*[0 if a is None or not a.size else a.ctypes.data for a in (*alive, *made)]) is False:
        p.check_values(*arrays)
    return tuple(made)


def _forward(p: LinearCrossEntropyProblem, *inputs: Array | None) -> tuple[Array | None, ...]:
    """loss, maximum, log_sum, divisor."""
    return _on_arrays(p, "_forward_runs", _forward_run, inputs, 0, p.results())


def _backward(p: LinearCrossEntropyProblem, grad_loss: Array, **saved: Array | None) -> tuple[Array | None, ...]:
    """Gradients of the inputs."""
    arrays = (grad_loss, *[saved[name] for name in p.saved()])
    return _on_arrays(p, "_backward_runs", _backward_run, arrays, 1, gradient_forms(p))


_op = LINEAR_CROSS_ENTROPY
Implementation(
    _op, "numba", named(_forward, _op.inputs), named(_backward, ("grad_loss",), (*_op.inputs, *_op.results)),
    describe=describe, checks_values=True, by_address=by_address, backward_by_address=backward_by_address,
)  # fmt: skip

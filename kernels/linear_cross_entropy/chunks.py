"""How linear_cross_entropy is run: a backend's own linear and cross_entropy, on some rows at a time.

A backend may have a kernel of its own for the losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from kernels.arrays import sum_dtype
from kernels.linear.op import LinearProblem
from kernels.linear_cross_entropy.op import LinearCrossEntropyProblem
from kernels.softmax.op import CrossEntropyProblem

Function = Callable[..., tuple[Any, ...]]

#: Logits of a chunk, where input has fewer elements than that.
CHUNK = 1 << 22
#: Rows of a tile of a GPU's product; of 131 rows it would take two.
TILE = 128


@dataclass(frozen=True)
class Parts:
    """What a backend puts in.

    Attributes:
        linear, linear_backward, cross_entropy, cross_entropy_backward: as its `Implementation` has them.
        cast: ``cast(array, dtype)``.
        concatenate: arrays one after the other.
        expand: ``expand(array of no dimension, shape)``.
        full: ``full(array like which it is, shape, number, dtype)``.
        add: the sum of two arrays; it may be made in the first one.
        run: ``run(function, *arguments)``, for a chunk of the forward pass.
        losses: ``losses(problem, x, matrix, target, bias, weight)``: loss, maximum, log_sum of all rows at once, or
            None where chunks are better.
    """

    linear: Function
    linear_backward: Function
    cross_entropy: Function
    cross_entropy_backward: Function
    cast: Callable[[Any, str], Any]
    concatenate: Callable[[Sequence[Any]], Any]
    expand: Callable[[Any, tuple[int, ...]], Any]
    full: Callable[[Any, tuple[int, ...], float, str], Any]
    add: Callable[[Any, Any], Any]
    run: Callable[..., Any] = lambda function, *arguments: function(*arguments)
    losses: Callable[..., tuple[Any, ...] | None] = lambda *arguments: None


def chunk_rows(p: LinearCrossEntropyProblem) -> int:
    """Rows of a chunk: its logits are as many as input has elements, or `CHUNK`; whole tiles of a GPU's product."""
    rows = max(p.input.size, CHUNK) // (p.classes * p.inner)
    return max(min(rows - rows % TILE if rows > TILE else rows, p.rows), 1)


def chunks_of(p: LinearCrossEntropyProblem) -> Iterator[slice]:
    """The rows of each chunk in turn."""
    step = chunk_rows(p)
    return (slice(first, min(first + step, p.rows)) for first in range(0, p.rows, step))


@lru_cache(maxsize=1024)
def problems_of(p: LinearCrossEntropyProblem, rows: int) -> tuple[LinearProblem, CrossEntropyProblem]:
    """The two calls of a chunk."""
    outputs = p.classes * p.inner
    bias = None if p.linear_bias is None else p.linear_bias.like((outputs,))
    wanted = (p.needs_grad[0], p.needs_grad[1], p.needs_grad[3]) if p.trains else ()
    x, weight = p.input.like((rows, p.in_features)), p.linear_weight.like((outputs, p.in_features))
    return LinearProblem(x, weight, bias, None, needs_grad=wanted), p.loss_of(rows, "none")


def _logits(parts: Parts, problems: tuple[LinearProblem, CrossEntropyProblem], x: Any, matrix: Any, bias: Any) -> Any:
    return parts.linear(problems[0], x, matrix, bias)[0].reshape(problems[1].input.shape)


def _losses(
    parts: Parts, problems: tuple[LinearProblem, CrossEntropyProblem], x: Any, matrix: Any, target: Any, bias: Any,
    weight: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """loss, maximum, log_sum of each row of logits of a chunk."""
    return parts.cross_entropy(problems[1], _logits(parts, problems, x, matrix, bias), target, weight)[:3]


def _seen(
    p: LinearCrossEntropyProblem, input: Any, linear_weight: Any, target: Any, linear_bias: Any
) -> tuple[Any, ...]:
    """The arrays as `linear` and cross_entropy take them."""
    outputs = p.classes * p.inner
    shape = (p.rows, p.inner) if p.indexed else (p.rows, p.classes, p.inner)
    return (
        input.reshape(p.rows, p.in_features),
        linear_weight.reshape(outputs, p.in_features),
        target.reshape(shape),
        None if linear_bias is None else linear_bias.reshape(outputs),
    )


def _count(p: LinearCrossEntropyProblem, parts: Parts, target: Any, weight: Any) -> Any:
    """What the mean divides by, of class indices."""
    # As int64, since the index need not be one of a narrower type.
    target = parts.cast(target, "int64")
    kept = target != p.ignore_index
    if weight is None:
        return kept.sum()
    return (parts.cast(weight, sum_dtype(p.input.dtype))[target * kept] * kept).sum()


def in_chunks(parts: Parts) -> tuple[Function, Function]:
    """A backend's forward and backward."""

    def forward(
        p: LinearCrossEntropyProblem, input: Any, linear_weight: Any, target: Any, linear_bias: Any, weight: Any
    ) -> tuple[Any, ...]:
        """loss, maximum, log_sum, divisor."""
        wide, dtype, shape = sum_dtype(p.input.dtype), p.input.dtype, p.losses_shape
        x, matrix, labels, bias = _seen(p, input, linear_weight, target, linear_bias)
        whole = parts.losses(p, x, matrix, labels, bias, weight)
        chunks = [] if whole is None else [whole]
        for part in chunks_of(p) if whole is None else ():
            problems = problems_of(p, part.stop - part.start)
            chunks.append(parts.run(_losses, parts, problems, x[part], matrix, labels[part], bias, weight))
        if chunks:
            losses, maximum, log_sum = (None if kept[0] is None else parts.concatenate(kept) for kept in zip(*chunks))
        else:
            sums = x @ matrix.T
            losses = (sums if bias is None else sums + bias).sum(1)
            maximum = log_sum = parts.full(input, (0,), 0.0, wide)
        divisor = None
        if p.reduction == "none":
            loss = parts.cast(losses, dtype).reshape(shape)
        else:
            loss = parts.cast(losses, wide).sum()
            if p.reduction == "mean":
                rows = parts.full(input, (), float(p.rows * p.inner), wide)
                divisor = parts.cast(_count(p, parts, labels, weight), wide) if p.indexed else rows
                loss = loss / divisor
            loss = parts.cast(loss, dtype)
        if maximum is None or log_sum is None or not p.trains:
            return loss, None, None, None
        return loss, maximum.reshape(shape), log_sum.reshape(shape), divisor

    def backward(
        p: LinearCrossEntropyProblem,
        grad_loss: Any,
        input: Any,
        linear_weight: Any,
        target: Any,
        linear_bias: Any,
        weight: Any,
        maximum: Any,
        log_sum: Any,
        divisor: Any = None,
    ) -> tuple[Any, ...]:
        """Gradients of input, linear_weight, target, linear_bias, weight."""
        wide, dtype, rows = sum_dtype(p.input.dtype), p.input.dtype, (p.rows, p.inner)
        x, matrix, labels, bias = _seen(p, input, linear_weight, target, linear_bias)
        grad = grad_loss.reshape(rows) if p.reduction == "none" else parts.cast(grad_loss, wide)
        if divisor is not None:
            grad = grad / divisor
        maximum, log_sum = maximum.reshape(rows), log_sum.reshape(rows)
        wants_linear = p.needs_grad[0] or p.needs_grad[1] or p.needs_grad[3]
        of_x: list[Any] = []
        of_target: list[Any] = []
        sums: list[Any] = [None, None]
        for part in chunks_of(p):
            count = part.stop - part.start
            problems = problems_of(p, count)
            logits = _logits(parts, problems, x[part], matrix, bias)
            each = grad[part] if p.reduction == "none" else parts.expand(grad, (count, p.inner))
            of_logits, of_labels, _ = parts.cross_entropy_backward(
                problems[1], each, logits, labels[part], weight, maximum[part], log_sum[part]
            )
            of_target.append(of_labels)
            if not wants_linear:
                continue
            of_logits = parts.cast(of_logits.reshape(count, p.classes * p.inner), dtype)
            dx, *rest = parts.linear_backward(problems[0], of_logits, x=x[part], weight=matrix)
            of_x.append(dx)
            for n, share in enumerate(rest):
                if share is not None:
                    share = parts.cast(share, wide)
                    sums[n] = share if sums[n] is None else parts.add(sums[n], share)
        of_arrays = (of_x, [sums[0]], of_target, [sums[1]], [None])
        found: list[Any] = []
        for shares, form, wanted in zip(of_arrays, p.gradients(), p.needs_grad, strict=True):
            if form is None or not wanted:
                found.append(None)
            elif not shares or shares[0] is None:
                found.append(parts.full(input, form.shape, 0.0, form.dtype))
            else:
                found.append(parts.cast(parts.concatenate(shares), form.dtype).reshape(form.shape))
        return tuple(found)

    return forward, backward


def describe(p: LinearCrossEntropyProblem) -> str:
    """How many rows are taken at a time."""
    return f"{min(chunk_rows(p), p.rows)} of {p.rows} rows at a time"

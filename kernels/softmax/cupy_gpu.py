"""softmax, log_softmax and cross_entropy in CUDA C++: which kernels run, in which blocks."""

from __future__ import annotations

from typing import Any

from kernels.op import Implementation, Problem
from kernels.runtime.cupy_gpu import (
    DTYPES,
    as_rows,
    computed_dtype,
    contiguous,
    dtype_name,
    empty,
    empty_results,
    full,
    launch,
    numpy_dtype,
    storage,
    target_of,
    types,
    vector_of,
    zero_gradients,
)
from kernels.runtime.row_blocks import MOST_KEPT, RowBlock, row_block
from kernels.softmax.op import CROSS_ENTROPY, LOG_SOFTMAX, SOFTMAX, CrossEntropyProblem, SoftmaxProblem

Array = Any
Extents = tuple[int, int, int]
FILE = "softmax/softmax.cu"
LOSS_FILE, LOSS_COLUMNS_FILE = "softmax/cross_entropy.cu", "softmax/cross_entropy_columns.cu"

#: The losses of so many rows at least are summed by a block, and by so many blocks at most: finish_loss has as many
#: threads.
LEAST_ROWS, MOST_PARTS = 4096, 256


def _block(extents: Extents, keeps: bool, *arrays: Array) -> RowBlock:
    """The block for arrays seen as (outer, n, inner); a kernel keeps rows that are short enough, or none."""
    outer, n, inner = extents
    if inner == 1:
        vector = vector_of(n, *(a[:, :, 0] for a in arrays))
    else:
        vector = vector_of(inner, *arrays)
    most_kept = MOST_KEPT[computed_dtype(dtype_name(arrays[0]))] if keeps else 0
    return row_block(outer, n, inner, vector, target_of(arrays[0]), most_kept)


def _scratch(block: RowBlock, extents: Extents, dtype: str) -> int:
    """Bytes of dynamic shared memory."""
    return block.scratch_bytes(numpy_dtype(computed_dtype(dtype)).itemsize, extents[2])


def _loss_scratch(block: RowBlock, extents: Extents, dtype: str) -> int:
    """The same of the losses; across rows also for `RowNumbers`: five numbers of each row, in the banks' order."""
    itemsize = numpy_dtype(computed_dtype(dtype)).itemsize
    return _scratch(block, extents, dtype) + (5 * (32 * block.vector * itemsize + 128) if extents[2] > 1 else 0)


def _launch(
    kernel: str, block: RowBlock, p: SoftmaxProblem, out: Array, *arrays: tuple[Array, tuple[int, ...]]
) -> None:
    """Run a kernel `..._rows` or `..._columns` on (array, strides) pairs."""
    outer, n, inner = p.extents
    dtype, is_log = dtype_name(out), p.op == "log_softmax"
    pointers = (*(a for a, _ in arrays), out)
    if inner == 1:
        strides = (step for _, steps in arrays for step in steps[:2])
        rest = (outer, n, *strides, block.group, is_log)
    else:
        rest = (n, inner, *(step for _, steps in arrays for step in steps), is_log)
    launch(
        FILE, kernel + ("_rows" if inner == 1 else "_columns"), block.grid(outer, inner), block.shape, *pointers, *rest,
        constants=types(dtype) | block.constants, shared_bytes=_scratch(block, p.extents, dtype),
    )  # fmt: skip


def softmax(p: SoftmaxProblem, x: Array) -> tuple[Array | None, ...]:
    """softmax or log_softmax, contiguous."""
    if p.empty:
        return empty_results(p)
    out = empty(p.x.shape, p.x.dtype)
    seen, strides = as_rows(x, p.extents)
    _launch("softmax", _block(p.extents, True, seen, out.reshape(p.extents)), p, out, (seen, strides))
    return (out,)


def softmax_backward(p: SoftmaxProblem, grad_output: Array, output: Array) -> tuple[Array | None, ...]:
    """The gradient of x, contiguous."""
    if p.empty:
        return zero_gradients(p)
    out = empty(p.x.shape, p.x.dtype)
    grad, y = as_rows(grad_output, p.extents), as_rows(output, p.extents)
    block = _block(p.extents, True, grad[0], y[0], out.reshape(p.extents))
    _launch("softmax_gradient", block, p, out, grad, y)
    return (out,)


def _target(p: CrossEntropyProblem, target: Array) -> tuple[Array, tuple[int, int, int]]:
    """(target, its strides in outer, n and inner), 0 in n for class indices."""
    outer, n, inner = p.extents
    if not p.indexed:
        seen, (of_outer, of_n, of_inner) = as_rows(target, (outer, n, inner))
        return seen, (of_outer, of_n, of_inner)
    seen, (of_outer, of_inner) = as_rows(target, (outer, inner))
    return seen, (of_outer, 0, of_inner)


def _constants(p: CrossEntropyProblem, vector: int) -> dict[str, int | str]:
    return types(p.input.dtype) | {"VECTOR": vector, "TARGET": storage(p.target.dtype), "INDEXED": int(p.indexed)}


def cross_entropy(
    p: CrossEntropyProblem, input: Array, target: Array, weight: Array | None
) -> tuple[Array | None, ...]:
    """loss, maximum, log_sum, divisor."""
    outer, n, inner = p.extents
    if n == 0 or outer * inner == 0:
        return nothing_to_average(p, p.reduction)
    wide = computed_dtype(p.input.dtype)
    each = empty(p.rows_shape, p.input.dtype) if p.reduction == "none" else None
    losses = empty(p.rows_shape, wide) if each is None else None
    kept = (empty(p.rows_shape, wide), empty(p.rows_shape, wide)) if p.trains else (None, None)
    weights = None if weight is None else contiguous(weight)
    write_losses(p, input, target, weights, each, losses, *kept)
    loss, divisor = (each, None) if each is not None else reduced(p, losses, target, weights)
    return loss, *kept, divisor


def write_losses(
    p: CrossEntropyProblem,
    input: Array,
    target: Array,
    weight: Array | None,
    each: Array | None,
    losses: Array | None,
    maxima: Array | None,
    log_sums: Array | None,
) -> None:
    """The loss of every row in `each` or (not rounded) in `losses`, what backward needs in the others where they are.

    All of them have a number for every row and are contiguous, as weight is.
    """
    outer, n, inner = p.extents
    (x, x_strides), (t, t_strides) = as_rows(input, p.extents), _target(p, target)
    block = _block(p.extents, False, x, *(() if p.indexed else (t,)))
    pointers = (x, t, weight, each, losses, maxima, log_sums)
    tail = (p.ignore_index, p.label_smoothing)
    if inner == 1:
        file, name = LOSS_FILE, "losses_of_rows"
        rest: tuple[Any, ...] = (outer, n, *x_strides[:2], *t_strides[:2], *tail, block.group)
    else:
        file, name = LOSS_COLUMNS_FILE, "losses_of_columns"
        rest = (n, inner, *x_strides, *t_strides, *tail)
    launch(
        file, name, block.grid(outer, inner), block.shape, *pointers, *rest,
        constants=_constants(p, block.vector), shared_bytes=_loss_scratch(block, p.extents, p.input.dtype),
    )  # fmt: skip


def reduced(p: CrossEntropyProblem, losses: Array, target: Array, weight: Array | None) -> tuple[Array, Array | None]:
    """(loss, divisor), 0-d, of the losses of every row."""
    (seen, (of_outer, _, of_inner)) = _target(p, target)
    rows, mean, wide = losses.size, p.reduction == "mean", computed_dtype(p.input.dtype)
    of_part = max(LEAST_ROWS, -(-rows // MOST_PARTS))
    parts = -(-rows // of_part)
    sums = empty((parts,), wide)
    counts = empty((parts,), wide) if mean else None
    loss = empty((), p.input.dtype)
    divisor = empty((), wide) if mean and p.trains else None
    constants = _constants(p, 1)
    launch(
        LOSS_FILE, "sum_losses", (parts,), (256,), losses, seen, weight, sums, counts, rows, *p.extents[1:],
        of_outer, of_inner, p.ignore_index, of_part, constants=constants,
    )  # fmt: skip
    launch(LOSS_FILE, "finish_loss", (1,), (256,), sums, counts, loss, divisor, parts, constants=constants)
    return loss, divisor


def nothing_to_average(p: Problem, reduction: str) -> tuple[Array | None, ...]:
    """The results without classes or without rows: losses of 0, whose mean is NaN."""
    fill = (float("nan") if reduction == "mean" else 0.0, -float("inf"), -float("inf"), 0.0)
    pairs = zip(p.results(), fill)
    return tuple(None if form is None else full(form.shape, form.dtype, number) for form, number in pairs)


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
    if p.input.size == 0:
        return zero_gradients(p)
    dtype = p.input.dtype
    grad_x = empty(p.input.shape, dtype) if p.needs_grad[0] else None
    grad_soft = empty(p.input.shape, dtype) if p.needs_grad[1] and not p.indexed else None
    weights = None if weight is None else contiguous(weight)
    kept = (contiguous(maximum), contiguous(log_sum), divisor)
    write_gradients(p, grad_loss, input, target, weights, *kept, grad_x, grad_soft)
    return grad_x, grad_soft, None


def write_gradients(
    p: CrossEntropyProblem,
    grad_loss: Array,
    input: Array,
    target: Array,
    weight: Array | None,
    maximum: Array,
    log_sum: Array,
    divisor: Array | None,
    grad_x: Array | None,
    grad_soft: Array | None,
) -> None:
    """Gradients of input and of target probabilities, contiguous, where they are; so are weight and the residuals."""
    outer, n, inner = p.extents
    (x, x_strides), (t, t_strides) = as_rows(input, p.extents), _target(p, target)
    grad, grad_strides = as_rows(grad_loss, (outer, inner)) if p.reduction == "none" else (grad_loss, (0, 0))
    block = _block(p.extents, False, x, *(() if p.indexed else (t,)))
    pointers = (grad, x, t, weight, maximum, log_sum, divisor, grad_x, grad_soft)
    tail = (p.ignore_index, p.label_smoothing)
    if inner == 1:
        file, name = LOSS_FILE, "loss_gradient_rows"
        rest: tuple[Any, ...] = (outer, n, grad_strides[0], *x_strides[:2], *t_strides[:2], *tail, block.group)
    else:
        file, name = LOSS_COLUMNS_FILE, "loss_gradient_columns"
        rest = (n, inner, *grad_strides, *x_strides, *t_strides, *tail)
    launch(
        file, name, block.grid(outer, inner), block.shape, *pointers, *rest,
        constants=_constants(p, block.vector), shared_bytes=_loss_scratch(block, p.extents, p.input.dtype),
    )  # fmt: skip


def _words(extents: Extents) -> str:
    outer, n, inner = extents
    where = "along the rows" if inner == 1 else "across the inner dimensions"
    return f"{outer * inner} rows of {n}, threads {where}"


def _describe(p: SoftmaxProblem | CrossEntropyProblem) -> str:
    return _words(p.extents)


Implementation(SOFTMAX, "cupy", softmax, softmax_backward, dtypes=DTYPES, describe=_describe)
Implementation(LOG_SOFTMAX, "cupy", softmax, softmax_backward, dtypes=DTYPES, describe=_describe)
Implementation(CROSS_ENTROPY, "cupy", cross_entropy, cross_entropy_backward, dtypes=DTYPES, describe=_describe)

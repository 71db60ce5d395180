"""linear on the CPU: three products of kernels.simd.matmul, and a pass for the activation's derivative and the bias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.activation.vectors import ACTIVATION_CODES, activation_gradient
from kernels.arrays import ArraySpec
from kernels.linear.op import LINEAR, LinearProblem
from kernels.op import Implementation
from kernels.runtime.by_address import Run, array_from, backward_through, by_threads
from kernels.runtime.numba_cpu import address, contiguous, empty, jit, lasting, threaded, threads_for
from kernels.simd import (
    TILE_ROWS,
    TILE_VECTORS,
    VECTOR_BYTES,
    advance,
    lanes_of,
    load_first,
    pointer,
    pointer_at,
    store_first,
    zeros_like,
)
from kernels.simd.matmul import Product, launcher, pack_columns, plan

Array = np.ndarray[Any, Any]

#: Multiply-adds that are worth a thread: about five microseconds.
_GRAIN = 1 << 19
#: Elements of a pass over memory that are worth a thread.
_PASS_GRAIN = 1 << 15
#: Rows whose values are added up before they join the sum of a column.
_SUM_ROWS = 128
#: Columns whose sums are made together: three arrays of them in L1.
_SUM_COLUMNS = 1024


def _matrix(array: Array, rows: int, columns: int) -> Array:
    """`array` as a matrix [rows, columns] of native, aligned elements: a view with any strides where there is one."""
    flags = array.flags
    if not flags.aligned or not array.dtype.isnative:
        array = contiguous(array)
    if array.ndim == 2:
        return array
    if flags.c_contiguous:
        return array.reshape(rows, columns)
    view = array.view()
    try:
        view.shape = (rows, columns)  # In place, because that refuses to copy.
    except AttributeError:
        return contiguous(array).reshape(rows, columns)
    return view


def _operand(array: Array, rows: int, columns: int) -> tuple[Array, tuple[int, int]]:
    """A matrix [rows, columns] as a kernel takes it: a contiguous array from its first element on, and its strides."""
    if array.flags.carray:
        return array, (columns, 1)
    matrix = _matrix(array, rows, columns)
    item = matrix.itemsize
    # One element is enough to say where it begins.
    return contiguous(matrix[0, :1]), (matrix.strides[0] // item, matrix.strides[1] // item)


@dataclass(frozen=True)
class _Facts:
    """What every run of a problem needs and is slow to derive: sizes, shapes, and the settings of the epilogue."""

    batch: int
    inputs: int
    outputs: int
    shape: tuple[int, ...]
    work: int
    bias_stride: int
    code: int
    keeps_sums: bool
    #: Whether the weight lies in panels.
    is_packed: bool
    #: What runs the forward product, by threads and the strides of its operands.
    launchers: dict[Any, Any]


def _facts(p: LinearProblem) -> _Facts:
    # Kept on the problem itself, which lives as long as the plan of a call; its hash would cost more than all this.
    known: _Facts | None = p.__dict__.get("_numba_facts")
    if known is None:
        form, kept = p.results()
        assert form is not None
        known = p.__dict__["_numba_facts"] = _Facts(
            p.batch,
            p.in_features,
            p.out_features,
            form.shape,
            p.batch * p.in_features * p.out_features,
            -1 if p.bias is None else p.bias.ndim,
            ACTIVATION_CODES[p.activation],
            kept is not None,
            p.packed is not None,
            {},
        )
    return known


def _forward_plan(
    f: _Facts, x_strides: tuple[int, int], w_strides: tuple[int, int] | None, item: int, threads: int
) -> Product:
    sizes = (f.batch, f.inputs, f.outputs)
    b_strides = None if w_strides is None else (w_strides[1], w_strides[0])
    return plan(sizes, x_strides, b_strides, f.outputs, item, threads, False, f.bias_stride, f.code, f.keeps_sums)


def _launcher(
    f: _Facts, x_strides: tuple[int, int], w_strides: tuple[int, int] | None, dtype: np.dtype[Any], threads: int
) -> Callable[[int, int, int, int, int], None]:
    """What runs the forward product, kept from the first call on. w_strides: None of a packed weight."""
    key = threads, x_strides, w_strides
    found: Callable[[int, int, int, int, int], None] | None = f.launchers.get(key)
    if found is None:
        product = _forward_plan(f, x_strides, w_strides, dtype.itemsize, threads)
        found = f.launchers[key] = launcher(product, threads, dtype)
    return found


def linear(p: LinearProblem, x: Array, weight: Array, bias: Array | None) -> tuple[Array | None, ...]:
    """x (*, in), weight (out, in) or (in,) or packed, bias (out,) or () -> output, sums before the activation."""
    f = _facts(p)
    rows, x_strides = _operand(x, f.batch, f.inputs)
    weights, w_strides = (contiguous(weight), None) if f.is_packed else _operand(weight, f.outputs, f.inputs)
    threads = threads_for(f.work, _GRAIN)
    run = _launcher(f, x_strides, w_strides, x.dtype, threads)
    output = empty(f.shape, x.dtype)
    before = empty(f.shape, x.dtype) if f.keeps_sums else None
    out = address(output)
    beside = None if bias is None else contiguous(bias)
    run(
        address(rows), address(weights), out, out if before is None else address(before),
        out if beside is None else address(beside),
    )  # fmt: skip
    return output, before


@jit
def _pack_part(first, last, weight, stride, along, inputs, outputs, panels):
    """Outputs [first, last) of a weight whose rows are `stride` and taps `along` elements apart, into its panels."""
    pack_columns(first, last, pointer(weight), along, stride, inputs, outputs, pointer(panels))


_pack = threaded(_pack_part, align=TILE_VECTORS * VECTOR_BYTES // 4)  # Whole panels, in either element type.


def pack(weight: Array) -> tuple[Array, int, tuple[int, int, int]]:
    """weight [out, in], any strides -> its panels, in, and the attribute `packed` of the op."""
    outputs, inputs = weight.shape
    lanes = VECTOR_BYTES // weight.itemsize
    width = TILE_VECTORS * lanes
    last = width if (outputs - 1) % width >= lanes else lanes
    array, (stride, along) = _operand(weight, outputs, inputs)
    panels = lasting((-(-outputs // width) - 1) * width * inputs + last * inputs, weight.dtype)
    threads = threads_for(outputs * inputs, _PASS_GRAIN)
    _pack(outputs, threads, array.reshape(-1), stride, along, inputs, outputs, panels)
    return panels, inputs, (outputs, width, last)


Strides = tuple[int, int]


def _strides_of(form: ArraySpec, columns: int) -> Strides | None:
    """The strides of an input as a matrix; None where it is none without a copy."""
    if form.strides is None:
        return columns, 1
    return (form.strides[0], form.strides[1]) if form.ndim == 2 else None


def by_address(p: LinearProblem) -> Run | None:
    """x, weight, bias -> output, sums before the activation; x and weight contiguous or matrices of any strides."""
    f, dtype = _facts(p), np.dtype(p.x.dtype)
    x_strides, w_strides = _strides_of(p.x, f.inputs), _strides_of(p.weight, f.inputs)
    if x_strides is None or w_strides is None or (p.bias is not None and p.bias.strides is not None):
        return None
    launch = by_threads(
        lambda threads: _launcher(f, x_strides, None if f.is_packed else w_strides, dtype, threads), f.work, _GRAIN
    )
    return lambda x, weight, bias, out, before: launch(x, weight, out, before or out, bias or out)


@jit
def _prepare_columns(first, last, code, halves, grad, known, rows, columns, result, sums, keeps, adds):
    """For columns [first, last): result = grad * act'(known), and the sums of its columns.

    halves: scratch [2, columns]. Addresses: grad, known, result [rows, columns], sums [columns]. keeps: whether result
    is written; adds: whether sums are. Rows are added in order within groups of _SUM_ROWS, the even ones and the odd
    ones apart, then the groups in order, whatever the split. Memory is walked along the rows, _SUM_COLUMNS at a time,
    whose sums stay in L1.
    """
    lanes = lanes_of(halves)
    arriving, values, made = pointer_at(grad, halves), pointer_at(known, halves), pointer_at(result, halves)
    for begin in range(first, last, _SUM_COLUMNS):
        width = min(_SUM_COLUMNS, last - begin)
        total = advance(pointer_at(sums, halves), begin)
        even, odd = pointer(halves, begin), pointer(halves, columns + begin)
        if adds:
            for j in range(0, width, lanes):
                store_first(total, j, zeros_like(total), width - j)
        for group in range(0, rows, _SUM_ROWS):
            stop = min(group + _SUM_ROWS, rows)
            if adds:
                for j in range(0, width, lanes):
                    store_first(even, j, zeros_like(even), width - j)
                    store_first(odd, j, zeros_like(odd), width - j)
            for r in range(group, stop):
                at = r * columns + begin
                source, value, out = advance(arriving, at), advance(values, at), advance(made, at)
                half = odd if r % 2 else even
                for j in range(0, width, lanes):
                    left = width - j
                    v = load_first(source, j, left)
                    if code:
                        v = activation_gradient(code, v, load_first(value, j, left))
                    if keeps:
                        store_first(out, j, v, left)
                    if adds:
                        store_first(half, j, load_first(half, j, left) + v, left)
            if adds:
                for j in range(0, width, lanes):
                    left = width - j
                    both = load_first(even, j, left) + load_first(odd, j, left)
                    store_first(total, j, load_first(total, j, left) + both, left)


_prepare = threaded(_prepare_columns, align=16)


def _prepare_backward(p: LinearProblem, x_strides: Strides, w_strides: Strides) -> Run:
    """grad_output, x, weight (and bias, and output or sums) -> gradients of x, weight, bias; all else contiguous."""
    f, dtype = _facts(p), np.dtype(p.x.dtype)
    wants_x, wants_weight, wants_bias = p.needs_grad
    batch, inputs, outputs, item = f.batch, f.inputs, f.outputs, dtype.itemsize
    size, keeps = batch * outputs, p.activation is not None
    sums_one = wants_bias and p.bias is not None and p.bias.ndim == 0

    def product(sizes: tuple[int, int, int], a: Strides, b: Strides) -> Run:

        def make(threads: int) -> Run:
            return launcher(plan(sizes, a, b, inputs, item, threads), threads, dtype)

        return by_threads(make, f.work, _GRAIN)

    to_x = product((batch, outputs, inputs), (outputs, 1), w_strides) if wants_x and inputs else None
    to_weight = product((outputs, batch, inputs), (1, outputs), x_strides) if wants_weight and inputs else None

    def run(dy: int, x: int, weight: int, *rest: int) -> None:
        *kept, dx, dw, db = rest
        # Alive to the end.
        result = empty(size, dtype) if keeps else None
        sums = empty(outputs, dtype) if sums_one else None
        if keeps or wants_bias:
            to = dy if result is None else address(result)
            _prepare(
                outputs, threads_for(size, _PASS_GRAIN), f.code, empty(2 * outputs, dtype), dy,
                kept[1] if keeps else dy, batch, outputs, to, db if sums is None else address(sums), int(keeps),
                int(wants_bias),
            )  # fmt: skip
            dy = to
        if sums is not None:
            array_from(db, (1,), dtype)[0] = sums.sum()
        if to_x is not None:
            to_x(dy, weight, dx, dx, dx)
        if to_weight is not None:
            to_weight(dy, x, dw, dw, dw)

    return run


def _contiguous_backward(p: LinearProblem) -> Run:
    columns = (p.in_features, 1)
    return _prepare_backward(p, columns, columns)


linear_backward = backward_through(LINEAR, _contiguous_backward)


def backward_by_address(p: LinearProblem) -> Run | None:
    """The same where x and weight are contiguous or matrices of any strides."""
    x_strides, w_strides = _strides_of(p.x, p.in_features), _strides_of(p.weight, p.in_features)
    if x_strides is None or w_strides is None or (p.bias is not None and p.bias.strides is not None):
        return None
    return _prepare_backward(p, x_strides, w_strides)


def describe(p: LinearProblem) -> str:
    """The kernel, its tile and threads."""
    f = _facts(p)
    threads = threads_for(f.work, _GRAIN)
    x = (p.in_features, 1) if p.x.strides is None or p.x.ndim == 1 else p.x.strides[-2:]
    w = (p.in_features, 1) if p.weight.strides is None or p.weight.ndim == 1 else p.weight.strides
    found = _forward_plan(f, (x[0], x[1]), None if f.is_packed else (w[0], w[1]), p.x.itemsize, threads)
    if found.is_few:
        how = "few rows times packed panels"
    elif found.is_dot:
        how = "dot products along in_features"
    elif found.is_streamed:
        how = "weight rows in order"
    else:
        order = " (weight rows x batch)" if found.is_transposed else " of packed panels" if f.is_packed else ""
        how = f"tile {TILE_ROWS} x {TILE_VECTORS} vectors{order}, blocks {found.block_rows} x {found.block_columns}"
    return f"{how}, {threads} thread{'s' if threads > 1 else ''}"


def _torch_below(p: LinearProblem) -> int:
    """Where torch's own function is the faster one; with an activation it takes two of them."""
    if p.trains:
        return 1_500_000
    return 30_000 if p.activation is None else 5_000


Implementation(
    LINEAR, "numba", linear, linear_backward, describe=describe, torch_below=_torch_below, by_address=by_address,
    backward_by_address=backward_by_address,
)  # fmt: skip

"""linear on the CPU: three products of kernels.simd.matmul, and a pass for the activation's derivative and the bias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from kernels.activation.functions import FROM_OUTPUT
from kernels.activation.vectors import ACTIVATION_CODES, activation_gradient
from kernels.linear.op import LINEAR, LinearProblem
from kernels.op import Implementation
from kernels.runtime.numba_cpu import (
    SMALLEST_POOLED,
    address,
    contiguous,
    empty,
    jit,
    lasting,
    place_of,
    small,
    threaded,
    threads_for,
)
from kernels.simd import (
    TILE_ROWS,
    TILE_VECTORS,
    VECTOR_BYTES,
    lanes_of,
    load_first,
    pointer,
    store_first,
    zeros_like,
)
from kernels.simd.matmul import Product, launcher, pack_columns, plan, run_product

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


def by_address(p: LinearProblem) -> Callable[..., Array] | None:
    """The output of contiguous inputs."""
    f = _facts(p)
    if f.keeps_sums or not all(s is None or s.strides is None for s in (p.x, p.weight, p.bias)):
        return None
    dtype, strides = np.dtype(p.x.dtype), (f.inputs, 1)
    w_strides = None if f.is_packed else strides
    shape, work = f.shape, f.work
    # Where C begins makes no difference to a product: it is written once, or once for each block of taps.
    allocate = small if prod(shape) * dtype.itemsize < SMALLEST_POOLED else empty
    is_small = work // _GRAIN <= 1
    known: dict[int, Callable[[int, int, int, int, int], None]] = {}

    def run(x: Array | int, weight: Array | int, bias: Array | int | None) -> Array:
        threads = 1 if is_small else threads_for(work, _GRAIN)
        launch = known.get(threads)
        if launch is None:
            launch = known[threads] = _launcher(f, strides, w_strides, dtype, threads)
        output = allocate(shape, dtype)
        out = address(output)
        if type(x) is int:  # Then all of them are, and this is what a small call waits for.
            launch(x, weight, out, out, out if bias is None else bias)  # type: ignore[arg-type]
        else:
            launch(place_of(x), place_of(weight), out, out, out if bias is None else place_of(bias))
        return output

    return run


@jit
def _prepare_columns(first, last, code, grad, known, rows, columns, result, sums, halves, keeps, adds):
    """For columns [first, last): result = grad * act'(known), and the sums of its columns.

    grad, known, result: [rows, columns]; sums [columns]; halves: scratch [2, columns]. keeps: whether result is
    written; adds: whether sums are. Rows are added in order within groups of _SUM_ROWS, the even ones and the odd ones
    apart, then the groups in order, whatever the split. Memory is walked along the rows, _SUM_COLUMNS at a time, whose
    sums stay in L1.
    """
    lanes = lanes_of(pointer(grad))
    for begin in range(first, last, _SUM_COLUMNS):
        width = min(_SUM_COLUMNS, last - begin)
        total, even, odd = pointer(sums, begin), pointer(halves, begin), pointer(halves, columns + begin)
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
                source, value, out = pointer(grad, at), pointer(known, at), pointer(result, at)
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


def linear_backward(
    p: LinearProblem,
    grad_output: Array,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    output: Array | None = None,
    preactivation: Array | None = None,
) -> tuple[Array | None, ...]:
    """grad_output (*, out) or (*) -> gradients of x, weight, bias."""
    f = _facts(p)
    wants_x, wants_weight, wants_bias = p.needs_grad
    batch, inputs, outputs = f.batch, f.inputs, f.outputs
    dtype = grad_output.dtype
    dy = contiguous(grad_output).reshape(-1)
    dx = dw = db = None
    if p.activation is not None or wants_bias:
        known = output if p.activation in FROM_OUTPUT else preactivation
        keeps = p.activation is not None
        values = dy if not keeps or known is None else contiguous(known).reshape(-1)
        result = empty(dy.shape, dtype) if keeps else dy
        sums, halves = empty(outputs, dtype), empty(2 * outputs, dtype)
        threads = threads_for(dy.size, _PASS_GRAIN)
        _prepare(
            outputs, threads, f.code, dy, values, batch, outputs, result, sums, halves, int(keeps), int(wants_bias)
        )
        dy = result
        if wants_bias:
            assert p.bias is not None
            db = sums if p.bias.ndim else np.asarray(sums.sum(), dtype)
    threads = threads_for(f.work, _GRAIN)
    if wants_x:
        dx = empty(x.shape, dtype)
        if inputs:
            weights, strides = _operand(weight, outputs, inputs)
            product = plan((batch, outputs, inputs), (outputs, 1), strides, inputs, dtype.itemsize, threads)
            run_product(product, threads, dy, weights, dx)
    if wants_weight:
        dw = empty(weight.shape, dtype)
        if inputs:
            rows, strides = _operand(x, batch, inputs)
            product = plan((outputs, batch, inputs), (1, outputs), strides, inputs, dtype.itemsize, threads)
            run_product(product, threads, dy, rows, dw)
    return dx, dw, db


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
    LINEAR, "numba", linear, linear_backward, describe=describe, torch_below=_torch_below, by_address=by_address
)

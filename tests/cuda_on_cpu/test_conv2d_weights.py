"""A convolution's weight on its way to the products, and its gradient on the way back: every layout, in every order."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import kernels
from kernels.arrays import ArraySpec, spec
from kernels.conv2d.cuda_tiles import MOST_DEPTH, PACKED_LINES, lines_of_weight, taps_at_once
from kernels.conv2d.cupy_sums import Order, sum_of_parts
from kernels.conv2d.cupy_weights import packed_weight
from kernels.runtime.cupy_gpu import computed_dtype, numpy_dtype
from tests.cuda_on_cpu import helpers
from tests.cuda_on_cpu.helpers import on_cpu
from tests.cuda_on_cpu.test_measured import wasteful
from tests.support import oracle
from tests.support.cuda_cpu.run import ORDERS

Array = np.ndarray[Any, Any]

pytestmark = helpers.needs_harness
#: Orders of a weight's dimensions in memory, the fastest last.
LAYOUTS = {"first": (0, 1, 2, 3), "last": (0, 2, 3, 1), "outputs": (2, 3, 1, 0), "turned": (3, 1, 0, 2)}


def laid_out(a: Array, order: tuple[int, ...]) -> Array:
    """The same numbers in memory in another order of the dimensions."""
    return np.ascontiguousarray(a.transpose(order)).transpose(np.argsort(order))


# ----- to the products ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 2), (2, 3), (5, 2), (6, 6)])
@pytest.mark.parametrize("layout", [*LAYOUTS, "backwards"])
def test_weights_are_packed_from_any_layout(layout: str, kernel: tuple[int, int]):
    """Columns that are no whole tile, in two groups, both ways round."""
    numbers = helpers.numbers(14, 37, *kernel)
    weight = numbers[::-1, ::-1] if layout == "backwards" else laid_out(numbers, LAYOUTS[layout])
    for transposed, (order, seed) in itertools.product((False, True), ORDERS):
        with on_cpu(order=order, seed=seed):
            packed = packed_weight(weight, 2, 32, transposed)
        groups = weight.reshape(2, 7, 37, -1)
        wanted = groups.transpose(0, 3, 1, 2) if transposed else groups.transpose(0, 3, 2, 1)
        np.testing.assert_array_equal(packed[..., : wanted.shape[3]], wanted)
        assert packed.shape[3] in (32, 64) and not packed[..., wanted.shape[3] :].any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("layout", ["first", "last"])
def test_weights_of_every_type(layout: str, transposed: bool, dtype: str):
    """Numbers arrive bit by bit, the smallest too."""
    numbers = helpers.numbers(33, 17, 3, 3).astype(numpy_dtype(dtype))
    numbers[0, 0, 0, 0] = np.array(1, f"u{numbers.itemsize}").view(numbers.dtype)
    with on_cpu():
        packed = packed_weight(laid_out(numbers, LAYOUTS[layout]), 1, 32, transposed)
    wanted = numbers.reshape(33, 17, 9).transpose((2, 0, 1) if transposed else (2, 1, 0))
    assert packed[0, :, :, : wanted.shape[2]].tobytes() == wanted.tobytes()


def test_lines_that_a_block_packs():
    """(taps, strides of inner channels, columns and taps) of the layouts in both ways round."""
    assert lines_of_weight(9, 9, 576, (3, 1)) == (PACKED_LINES, PACKED_LINES, False)
    assert lines_of_weight(9, 576, 9, (3, 1)) == (27, 9, False)
    assert lines_of_weight(9, 1, 576, (192, 64)) == (PACKED_LINES, PACKED_LINES, True)
    assert lines_of_weight(9, 576, 1, (192, 64)) == (PACKED_LINES, 1, True)
    assert lines_of_weight(9, 0, 9, (3, 1)) == (27, 9, False)
    assert lines_of_weight(49, 3136, 49, (7, 1)) == (PACKED_LINES, PACKED_LINES, False)
    for taps, of_inner, of_column in itertools.product((1, 4, 6, 25, 36), (0, 1, 7, 100), (0, 1, 9, 300)):
        depth, fast, _ = lines_of_weight(taps, of_inner, of_column, (1, 1))
        assert 1 <= fast <= depth <= PACKED_LINES and depth % fast == 0


# ----- and back ----------------------------------------------------------------------------------------------------


def summed(parts: Array, form: ArraySpec, order: Order) -> Array:
    """The sum of the parts in the order of the weight's dimensions (or of the bias's only one)."""
    total = parts.sum(0, dtype=parts.dtype)
    outputs, channels, *kernel = (*form.shape, 1, 1, 1)[:4]
    taps = kernel[0] * kernel[1]
    if order is Order.CHANNELS:
        total = total.reshape(outputs, taps, channels).transpose(0, 2, 1)
    elif order is Order.OUTPUTS:
        total = total.reshape(taps, outputs).transpose()
    return total.reshape(form.shape)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("shape", [(5, 40, 3, 3), (3, 35, 2, 2), (40, 3, 1, 1), (2, 33, 5, 7), (1, 8, 2, 3)])
def test_parts_are_summed_into_any_layout(shape: tuple[int, ...], order: Order, dtype: str):
    """Of small whole numbers, so that every order of the sum is exact."""
    shape = (shape[0] * shape[1], 1, *shape[2:]) if order is Order.OUTPUTS else shape
    rng = np.random.default_rng(0)
    parts = rng.integers(-3, 4, (19, int(np.prod(shape)))).astype(computed_dtype(dtype))
    for layout in ("first", "last"):  # the layouts of gradients
        form = spec(laid_out(np.empty(shape, dtype), LAYOUTS[layout]))
        for kind, seed in ORDERS:
            with on_cpu(order=kind, seed=seed):
                found = sum_of_parts(parts, form, order)
            np.testing.assert_array_equal(found, summed(parts, form, order))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("size", [1, 8, 24, 136, 7])
def test_sums_of_a_bias(size: int, dtype: str):
    """An odd number of vectors: the last thread of a pair has none."""
    parts = np.random.default_rng(0).integers(-3, 4, (11, size)).astype(np.float32)
    with on_cpu(order="reverse"):
        found = sum_of_parts(parts, ArraySpec((size,), dtype), Order.OUTPUTS)
    np.testing.assert_array_equal(found, parts.sum(0))


def test_taps_at_once():
    assert [taps_at_once(n) for n in (1, 4, 9, 25, 32, 33, 49, 121)] == [
        (1, 1), (4, 4), (9, 16), (25, 32), (32, 32), (17, 32), (25, 32), (31, 32),
    ]  # fmt: skip
    assert all(taps_at_once(n)[1] <= MOST_DEPTH for n in range(1, 1000))


# ----- layouts that differ -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("op", ["conv2d", "conv_transpose2d"])
def test_weights_in_torchs_layout_and_images_in_vectors_waste_nothing(op: str, dtype: str):
    x, weight = helpers.numbers(2, 64, 8, 16), helpers.numbers(64, 64, 3, 3, seed=1) / np.float32(24)
    given = helpers.in_dtype({"x": laid_out(x, LAYOUTS["last"]), "weight": weight, "padding": 1}, dtype)
    with on_cpu("prof") as launched:
        y, pullback = kernels.vjp(op, **given, backend="cupy")
        pullback(np.ones_like(y))
    helpers.report(wasteful(launched))
    assert launched.kernels[-2:] == ["weight_gradient_of_parts", "add_parts"]


def test_depthwise_gradients_are_turned_on_their_way():
    """Parts have the channels of a tap side by side, the weight the taps of a channel."""
    x, weight = helpers.numbers(2, 64, 8, 16), helpers.numbers(64, 1, 3, 3, seed=1)
    with on_cpu("prof") as launched:
        y, pullback = kernels.vjp("conv2d", laid_out(x, LAYOUTS["last"]), weight, groups=64, backend="cupy")
        pullback(np.ones_like(y))
    helpers.report(wasteful(launched))
    assert launched.kernels == [
        "pack_weight", "convolve_depthwise", "pack_weight", "spread_depthwise", "sums_of_pixels", "add_turned_parts",
    ]  # fmt: skip


@pytest.mark.parametrize("of_x, of_weight", itertools.product(LAYOUTS, LAYOUTS))
def test_any_two_layouts(of_x: str, of_weight: str):
    x, weight = helpers.numbers(2, 8, 5, 6), helpers.numbers(12, 4, 3, 2, seed=1) / np.float32(5)
    given = {"x": laid_out(x, LAYOUTS[of_x]), "weight": laid_out(weight, LAYOUTS[of_weight]), "groups": 2}
    expected = oracle.expect("conv2d", given)
    with on_cpu(order="random", seed=4):
        found = oracle.with_vjp("conv2d", expected.arguments, expected.incoming, "cupy")
    helpers.report(expected.complaints(found))

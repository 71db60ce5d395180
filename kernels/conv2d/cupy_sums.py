"""Sums over the pixels of an image, for biases and depthwise weights, and sums of parts: the kernels of sums.cu."""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

from kernels.arrays import ArraySpec
from kernels.conv2d.cuda_tiles import sum_threads, taps_at_once, vector_elements
from kernels.conv2d.gpu_tiles import parts_of_pixels
from kernels.runtime.cuda_tiles import FLAT_THREADS, flat_block
from kernels.runtime.cupy_gpu import (
    computed_dtype,
    element_strides,
    empty,
    empty_like_form,
    has_vectors,
    index_type,
    launch,
    pointer_of,
    target_of,
    types,
)

Array = Any

#: Threads of a block that adds up parts: along the elements, and along the parts.
PARTS_BLOCK = (32, 8)
#: Kernel, stride, padding and dilation of a sum over grad alone.
ONE_TAP = (1, 1, 1, 1, 0, 0, 1, 1)


def constants(dtype: str, *arrays: Array | None, vector: int = 1, depth: int = 1) -> dict[str, Any]:
    """Those of every kernel of sums.cu."""
    return types(dtype) | {"INDEX": index_type(*arrays), "THREADS": FLAT_THREADS, "VECTOR": vector, "DEPTH": depth}


def sums_over_pixels(
    grad: Array, form: ArraySpec, source: Array | None = None, geometry: tuple[int, ...] = ONE_TAP, multiplier: int = 1
) -> Array:
    """Sums over the pixels of grad (N, K, H, W), in the layout of `form`.

    Alone they are a bias's gradient (K,). With a source (N, K / multiplier, H', W') each tap's of grad times what it
    meets there: a depthwise weight's gradient (K, 1, kh, kw).
    """
    channels = grad.shape[1]
    extents, strides = (grad.shape[0], *grad.shape[2:]), element_strides(grad)
    if source is None:
        extents, strides = _joined(extents, strides)
    wide = vector_elements(form.itemsize)
    vectors = has_vectors(grad, 1, wide) and multiplier == 1 and (source is None or has_vectors(source, 1, wide))
    vector = wide if vectors else 1
    block = sum_threads(channels // vector, strides[1] == 1)
    blocks = form.size // channels * -(-channels // (block[0] * vector))
    parts, part = parts_of_pixels(extents[0] * extents[1] * extents[2], blocks, target_of(grad))
    of_parts = empty((parts, form.size), computed_dtype(form.dtype))
    plane, of_source = ((1, 1), (0, 0, 0, 0)) if source is None else (source.shape[2:], element_strides(source))
    launch(
        "conv2d/sums.cu", "sums_of_pixels", (blocks, parts), block, grad, source, of_parts, extents[0], channels,
        *plane, *extents[1:], part, *strides, *of_source, *geometry, multiplier,
        constants=constants(form.dtype, grad, source, of_parts, vector=vector),
    )  # fmt: skip
    return sum_of_parts(of_parts, form, Order.OUTPUTS)


def _joined(extents: tuple[int, ...], strides: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(images, height, width) and strides of (N, C, H, W) with rows, and then images, that follow each other as one."""
    (images, height, width), (of_image, of_channel, of_row, of_column) = extents, strides
    if height == 1 or of_row == width * of_column:
        height, width = 1, height * width
        if images == 1 or of_image == width * of_column:
            images, width = 1, images * width
    return (images, height, width), (of_image, of_channel, of_row, of_column)


class Order(Enum):
    """How the sums of a part are counted."""

    #: (K, taps, C) of a weight.
    CHANNELS = "channels"
    #: (K, C, taps) of a weight.
    TAPS = "taps"
    #: (taps, K) of a weight with a C of 1, or (K,) of a bias.
    OUTPUTS = "outputs"


def sum_of_parts(of_parts: Array, form: ArraySpec, order: Order) -> Array:
    """The sum of parts (parts, elements) in the layout of `form`, a bias's (K,) or a weight's (K, C, kh, kw)."""
    out = empty_like_form(form)
    strides = element_strides(out)
    taps = math.prod(form.shape[2:])
    # Of taps, where one step leads from each to the next: a row of them follows the one before without a gap.
    tap_step = next((step for step in reversed(strides[2:]) if step), 0)
    outer, outer_step, inner, inner_step = 1, 0, form.shape[0], strides[0]
    if order is not Order.OUTPUTS:
        outer, outer_step, inner, inner_step = form.shape[0], strides[0], form.shape[1], strides[1]
    if order is Order.TAPS and taps > 1 and inner_step in (0, taps * tap_step):
        # Inner places follow each other as taps do: one row of both.
        inner, inner_step, taps, tap_step = inner * taps, tap_step, 1, 0
    elif order is Order.TAPS and taps > 1:
        taps, tap_step, inner, inner_step = inner, inner_step, taps, tap_step
    elif tap_step == 1 and inner > 1:
        return _sum_of_turned_parts(of_parts, out, form, (outer, taps, inner), (outer_step, inner_step))
    vector = vector_elements(form.itemsize)
    whole = all(number % vector == 0 for number in (inner, outer_step, tap_step, pointer_of(out) // form.itemsize))
    if inner_step != 1 or not whole:
        vector = 1
    items = form.size // vector
    launch(
        "conv2d/sums.cu", "add_parts", (-(-items // PARTS_BLOCK[0]),), PARTS_BLOCK, of_parts, out, items,
        of_parts.shape[0], taps, inner, outer_step, tap_step, inner_step,
        constants=constants(form.dtype, of_parts, out, vector=vector),
    )  # fmt: skip
    return out


def _sum_of_turned_parts(
    of_parts: Array, out: Array, form: ArraySpec, extents: tuple[int, int, int], steps: tuple[int, int]
) -> Array:
    """The same of parts that are counted as (outer, taps, inner), where out has the taps side by side."""
    outer, taps, inner = extents
    depth, most = taps_at_once(taps)
    blocks = outer * -(-taps // depth) * -(-inner // PARTS_BLOCK[0])
    launch(
        "conv2d/sums.cu", "add_turned_parts", (blocks,), PARTS_BLOCK, of_parts, out, form.size, of_parts.shape[0], taps,
        inner, depth, *steps, constants=constants(form.dtype, of_parts, out, depth=most),
    )  # fmt: skip
    return out


def finish_parts(
    of_parts: Array, bias: Array | None, out: Array, sums: Array | None, form: ArraySpec, activation: int
) -> None:
    """out = act(bias + the sum of parts), and sums what is before the activation; both of `form`, (N, K, H, W).

    of_parts: (parts, elements), counted as they lie in out. activation: its number.
    """
    channels, plane = form.shape[1], 1 if form.channels_last else form.shape[2] * form.shape[3]
    vector = vector_elements(form.itemsize)
    if bias is None:
        whole = form.size % vector == 0
    else:
        whole = plane % vector == 0 if plane > 1 else channels % vector == 0 and has_vectors(bias, 0, vector)
    vector = vector if whole else 1
    items = form.size // vector
    block = flat_block(items, target_of(of_parts))
    launch(
        "conv2d/sums.cu", "finish_parts", (-(-items // block),), (block,), of_parts, bias, out, sums, items,
        of_parts.shape[0], channels, plane, activation, constants=constants(form.dtype, of_parts, out, vector=vector),
    )  # fmt: skip

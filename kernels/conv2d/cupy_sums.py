"""Sums over the pixels of an image, for biases and depthwise weights, and sums of parts: the kernels of sums.cu."""

from __future__ import annotations

from typing import Any

from kernels.arrays import ArraySpec
from kernels.conv2d.cuda_tiles import CHUNK, sum_threads, vector_elements
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


def constants(dtype: str, *arrays: Array | None, vector: int = 1) -> dict[str, Any]:
    """Those of every kernel of sums.cu."""
    return types(dtype) | {"INDEX": index_type(*arrays), "THREADS": FLAT_THREADS, "VECTOR": vector, "CHUNK": CHUNK}


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
    return sum_of_parts(of_parts, form, outputs_fastest=True)


def _joined(extents: tuple[int, ...], strides: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(images, height, width) and strides of (N, C, H, W) with rows, and then images, that follow each other as one."""
    (images, height, width), (of_image, of_channel, of_row, of_column) = extents, strides
    if height == 1 or of_row == width * of_column:
        height, width = 1, height * width
        if images == 1 or of_image == width * of_column:
            images, width = 1, images * width
    return (images, height, width), (of_image, of_channel, of_row, of_column)


def sum_of_parts(of_parts: Array, form: ArraySpec, *, outputs_fastest: bool) -> Array:
    """The sum of parts in the layout of `form`, a bias's (K,) or a weight's (K, C, kh, kw).

    of_parts: (parts, elements), counted as (K, taps, C), or with outputs_fastest as (taps, K) of a bias or of a C of 1.
    """
    out = empty_like_form(form)
    strides = element_strides(out)
    taps, outer_step, tap_step = 1, 0, 0
    inner, inner_step = form.shape[0], strides[0]
    if form.ndim == 4:
        # A row of taps follows the one before without a gap, so that one step leads from each tap to the next.
        tap_step = strides[3] if form.shape[3] > 1 else strides[2]
        taps = form.shape[2] * form.shape[3]
        if not outputs_fastest:
            outer_step, inner, inner_step = strides[0], form.shape[1], strides[1]
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


def finish_parts(
    of_parts: Array, bias: Array | None, out: Array, sums: Array | None, form: ArraySpec, activation: int
) -> None:
    """out = act(bias + the sum of parts), and sums what is before the activation; both of `form`, (N, K, H, W).

    of_parts: (parts, elements), counted as they lie in out. activation: its number.
    """
    channels, plane = form.shape[1], 1 if form.channels_last else form.shape[2] * form.shape[3]
    vector = vector_elements(form.itemsize)
    if plane > 1 or channels % vector or (bias is not None and not has_vectors(bias, 0, vector)):
        vector = 1
    items = form.size // vector
    block = flat_block(items, target_of(of_parts))
    launch(
        "conv2d/sums.cu", "finish_parts", (-(-items // block),), (block,), of_parts, bias, out, sums, items,
        of_parts.shape[0], channels, plane, activation, constants=constants(form.dtype, of_parts, out, vector=vector),
    )  # fmt: skip

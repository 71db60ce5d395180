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
    target_of,
    types,
)

Array = Any

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
    return sum_of_parts(of_parts, form, 1)


def _joined(extents: tuple[int, ...], strides: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(images, height, width) and strides of (N, C, H, W) with rows, and then images, that follow each other as one."""
    (images, height, width), (of_image, of_channel, of_row, of_column) = extents, strides
    if height == 1 or of_row == width * of_column:
        height, width = 1, height * width
        if images == 1 or of_image == width * of_column:
            images, width = 1, images * width
    return (images, height, width), (of_image, of_channel, of_row, of_column)


def sum_of_parts(of_parts: Array, form: ArraySpec, inner: int) -> Array:
    """The sum of parts (parts, K * taps * inner) in the layout of `form`: (K, inner, kh, kw), or a bias's (K,)."""
    out = empty_like_form(form)
    block = flat_block(form.size, target_of(of_parts))
    outer_step, inner_step, tap_step, taps = 1, 0, 0, 1
    if form.ndim == 4:
        outer_step, inner_step, of_row, of_column = element_strides(out)
        # A row of taps follows the one before without a gap, so that one step leads from each tap to the next.
        tap_step = of_column if form.shape[3] > 1 else of_row
        taps = form.shape[2] * form.shape[3]
    launch(
        "conv2d/sums.cu", "add_parts", (-(-form.size // block),), (block,), of_parts, out, form.size,
        of_parts.shape[0], taps, inner, outer_step, tap_step, inner_step,
        constants=constants(form.dtype, of_parts, out),
    )  # fmt: skip
    return out

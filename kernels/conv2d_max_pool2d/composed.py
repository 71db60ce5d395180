"""conv2d and max_pool2d one after the other: what runs where no kernel pools its own sums."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from kernels.activation.numba_cpu import grad_preactivation
from kernels.conv2d import numba_cpu as convolutions
from kernels.conv2d.image_pass import flat
from kernels.conv2d.numba_cpu import dense, fresh
from kernels.conv2d_max_pool2d.bands import windows_of
from kernels.conv2d_max_pool2d.op import Conv2dMaxPool2dProblem
from kernels.conv2d_max_pool2d.reference import indices_of_taps
from kernels.conv2d_max_pool2d.windows_cpu import elements
from kernels.pool2d import numba_cpu as poolings
from kernels.runtime.numba_cpu import empty, jit, threaded, threads_for

Array = np.ndarray[Any, Any]

#: Windows that are worth a thread of their own.
GRAIN = 20_000


@jit
def _number_taps(first, last, w, columns, plane, channels, pixel_step, channel_step, indices, winners, sums, kept):
    """Images [first, last): winners [image, window, channel] = the taps of `indices`; kept = the sums there.

    w: Windows. columns, plane: of the whole convolution. indices, kept: elements [N, PH, PW, C] or [N, C, PH, PW], with
    steps from window to window and from channel to channel. sums: elements of the convolution in the same layout. kept
    and sums have size 0 if they are not wanted.
    """
    count = w.rows * w.columns
    for image in range(first, last):
        for i in range(w.rows):
            above = i * w.down - w.above
            for j in range(w.columns):
                left = j * w.along - w.left
                window = i * w.columns + j
                for c in range(channels):
                    at = image * count * channels + window * pixel_step + c * channel_step
                    index = indices[at]
                    row = max(above, 0)
                    while index >= (row + 1) * columns:
                        row += 1
                    tap = (row - above) * w.width + index - row * columns - left
                    winners[(image * count + window) * channels + c] = tap
                    if kept.size:
                        place = image * plane * channels
                        place += index * channels + c if channel_step == 1 else c * plane + index
                        kept[at] = sums[place]


_number = threaded(_number_taps)


def forward(p: Conv2dMaxPool2dProblem, x: Array, weight: Array, bias: Array | None) -> tuple[Array | None, ...]:
    """output, winners, sums of the winners."""
    y, sums = convolutions.conv2d(p.convolution, x, weight, bias)
    assert y is not None
    output, indices = poolings.max_pool2d(p.pooling, y)
    form = p.results()[1]
    if indices is None or form is None:
        return output, None, None
    last = p.convolution.channels_last
    n, channels, rows, columns = p.output_shape
    winners = fresh(form.shape, form.dtype, True)
    kept = fresh(form.shape, x.dtype, last) if sums is not None else None
    nothing = empty(0, x.dtype)
    plane = p.pooling.x.shape[2] * p.pooling.x.shape[3]
    _number(
        n,
        threads_for(indices.size, GRAIN),
        windows_of(p),
        p.pooling.x.shape[3],
        plane,
        channels,
        channels if last else 1,
        1 if last else rows * columns,
        flat(dense(indices, last)),
        flat(winners),
        nothing if sums is None else flat(dense(sums, last)),
        nothing if kept is None else elements(kept),
    )
    return output, winners, kept


def backward(
    p: Conv2dMaxPool2dProblem, grad_output: Array, x: Array, weight: Array, winners: Array, known: Array | None
) -> tuple[Array | None, ...]:
    """Gradients of x, weight, bias; `known` is what the activation's derivative reads."""
    last = p.convolution.channels_last
    grad = dense(grad_output, last)
    if p.activation is not None:
        assert known is not None
        grad = grad_preactivation(p.activation, grad, dense(known, last))
    (spread,) = poolings.max_backward(p.pooling, grad, indices_of_taps(p, winners))
    assert spread is not None
    return convolutions.conv2d_backward(replace(p.convolution, activation=None), spread, x, weight)

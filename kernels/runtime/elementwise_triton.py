"""What Triton's elementwise kernels share: where element i of the result finds its inputs, for any strides.

The result is dense, and its elements are counted in the order in which they lie in memory. Inputs that lie in the same
order are read at i itself; of others the place follows from up to `MOST` dimensions with their strides.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.runtime.strides import collapse
from kernels.runtime.targets import Target

#: Dimensions that a kernel counts through, once neighbours that lie as one are joined.
MOST = 4

#: Elements of a program: eight each of 128 threads, which is 128 bits of half precision.
BLOCK = 1024


def flat_tile(size: int, target: Target, of_thread: int = 8) -> dict[str, Any]:
    """The constants of a kernel that works on `size` elements: fewer a program where the GPU would be left idle.

    of_thread: elements of a thread; fewer for a kernel that keeps much of each.
    """
    block = BLOCK * of_thread // 8
    while block > 256 and size // block < 2 * target.multiprocessors:
        block //= 2
    return {"BLOCK": block, "LONG": size >= 2**31 - 2 * BLOCK, "num_warps": max(1, block // (of_thread * target.warp))}


def places_of(order: tuple[int, ...], *arrays: torch.Tensor) -> tuple[bool, tuple[int, ...], list[torch.Tensor]]:
    """How a kernel walks arrays of one shape while its result is written from front to back.

    Args:
        order: the dimensions from the slowest to the fastest in the result's memory.
        *arrays: the inputs.

    Returns:
        (all of them lie as the result does; the extents of `MOST` dimensions, then as many strides of each array; the
        arrays, copied where they have too many dimensions that lie apart).
    """
    turned = [a.permute(order) for a in arrays]
    shape = tuple(turned[0].shape)
    sizes, strides = collapse(shape, [a.stride() for a in turned])
    if len(sizes) > MOST:
        turned = [a.contiguous() for a in turned]
        sizes, strides = collapse(shape, [a.stride() for a in turned])
    if all(s in ((), (1,)) for s in strides):
        return True, (0,) * (MOST * (len(arrays) + 1)), turned
    front = MOST - len(sizes)
    numbers = (1,) * front + sizes
    for s in strides:
        numbers += (0,) * front + s
    return False, numbers, turned


@triton.jit
def elements_of_program(size, BLOCK: tl.constexpr, LONG: tl.constexpr):
    """(numbers of a program's elements (BLOCK,), which of them exist); int64 where LONG."""
    program = tl.program_id(0)
    if LONG:
        program = program.to(tl.int64)
    i = program * BLOCK + tl.arange(0, BLOCK)
    return i, i < size


@triton.jit
def place_of(i, n1, n2, n3, s0, s1, s2, s3):
    """Where element i is, counted through the dimensions (n0, n1, n2, n3), in elements (int64)."""
    d = i % n3
    i = i // n3
    c = i % n2
    i = i // n2
    return (i // n1).to(tl.int64) * s0 + (i % n1).to(tl.int64) * s1 + c.to(tl.int64) * s2 + d.to(tl.int64) * s3


@triton.jit
def unravel_image(i, channels, height, width, LAST: tl.constexpr):
    """(image, channel, row, column) of element i of a result of (N, channels, height, width)."""
    if LAST:
        c = i % channels
        i = i // channels
        column = i % width
        i = i // width
        return i // height, c, i % height, column
    else:
        column = i % width
        i = i // width
        row = i % height
        i = i // height
        return i // channels, i % channels, row, column

"""The Triton kernel of dropout: the counter-based mask of kernels.random, made where it is needed."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.runtime.elementwise_triton import elements_of_program, place_of


@triton.jit
def drop_elements(
    x, seed, out, size, threshold, low, high, n0, n1, n2, n3, x0, x1, x2, x3,
    KEPT: tl.constexpr, SAME: tl.constexpr, BLOCK: tl.constexpr, LONG: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """out = x * KEPT where it is kept, else 0; out contiguous, x as in activation_triton.

    seed: one int64. threshold: of `drop_threshold`, int64. low, high: the stream's 32-bit halves.
    """
    i, here = elements_of_program(size, BLOCK, LONG)
    # Four neighbours share a block of the generator.
    number = tl.program_id(0).to(tl.int64) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    zero = tl.zeros((BLOCK // 4,), tl.uint32)
    of_low = zero + low.to(tl.uint32)
    of_high = zero + high.to(tl.uint32)
    a, b, c, d = tl.philox(tl.load(seed), number.to(tl.uint32), (number >> 32).to(tl.uint32), of_low, of_high)
    words = tl.interleave(tl.interleave(a, c), tl.interleave(b, d))
    if SAME:
        value = tl.load(x + i, mask=here)
    else:
        value = tl.load(x + place_of(i, n1, n2, n3, x0, x1, x2, x3), mask=here)
    # A dropped NaN is 0.
    found = tl.where(words.to(tl.int64) >= threshold, value.to(COMPUTED) * KEPT, 0.0)
    tl.store(out + i, found.to(out.dtype.element_ty), mask=here)

"""Small Triton kernels, each with one fault of a kind that the tests of kernels must catch, and sound ones beside."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def copy(x, y, n, BLOCK: tl.constexpr):
    """Sound."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def load_without_mask(x, y, n, BLOCK: tl.constexpr):
    """Reads behind the end."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i), mask=i < n)


@triton.jit
def store_without_mask(x, y, n, BLOCK: tl.constexpr):
    """Writes behind the end."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n))


@triton.jit
def wrong_offset(x, y, n, BLOCK: tl.constexpr):
    """Begins one element too early."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i - 1, mask=i < n), mask=i < n)


@triton.jit
def wrong_stride(x, y, n, stride, BLOCK: tl.constexpr):
    """Takes a strided row for a packed one: the gaps are not its own."""
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def overlapping_programs(x, y, n, BLOCK: tl.constexpr):
    """Neighbours write one element in common."""
    i = tl.program_id(0) * (BLOCK - 1) + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def overlapping_lanes(x, y, n, BLOCK: tl.constexpr):
    """Two lanes of a program write one element."""
    i = tl.arange(0, BLOCK)
    tl.store(y + i // 2, tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def reads_its_neighbour(x, y, n, BLOCK: tl.constexpr):
    """Reads what another program writes, in place."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    before = tl.load(x + tl.program_id(0) * BLOCK - 1, mask=tl.program_id(0) > 0, other=0.0)
    tl.store(x + i, before + tl.zeros((BLOCK,), tl.float32), mask=i < n)


@triton.jit
def hands_on_without_barrier(x, y, n, BLOCK: tl.constexpr):
    """A program reads what its other threads have just stored, and nothing makes it wait for them."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)
    tl.store(x + i, tl.load(y + i // 2 * 2, mask=i < n), mask=i < n)


@triton.jit
def overwrites_what_it_loads(x, y, n, BLOCK: tl.constexpr):
    """In place: where several threads load an element, one may already have stored to it."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + i, 2.0 * tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def hands_on_at_barriers(x, y, n, BLOCK: tl.constexpr):
    """y = x, x = that with its odd elements replaced: sound."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)
    tl.debug_barrier()
    tl.store(x + i, tl.load(y + i // 2 * 2, mask=i < n), mask=i < n)


@triton.jit
def short_offset(x, y, rows, stride, n, BLOCK: tl.constexpr):
    """A row's offset in 32 bits."""
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    tl.store(y + row * n + i, tl.load(x + row * stride + i, mask=i < n), mask=i < n)


@triton.jit
def long_offset(x, y, rows, stride, n, BLOCK: tl.constexpr):
    """The same in 64: sound."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    tl.store(y + row * n + i, tl.load(x + row * stride + i, mask=i < n), mask=i < n)


@triton.jit
def multiply_add(x, y, z, n, BLOCK: tl.constexpr):
    """z = x * y + x in the type of x."""
    i = tl.arange(0, BLOCK)
    a = tl.load(x + i, mask=i < n)
    b = tl.load(y + i, mask=i < n)
    tl.store(z + i, a * b + a, mask=i < n)


@triton.jit
def convert(x, y, n, BLOCK: tl.constexpr):
    """y = x in the type of y."""
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n).to(y.dtype.element_ty), mask=i < n)


@triton.jit
def total(x, y, n, BLOCK: tl.constexpr):
    """y = (sum, largest) of x."""
    i = tl.arange(0, BLOCK)
    a = tl.load(x + i, mask=i < n, other=0.0)
    tl.store(y, tl.sum(a, 0))
    tl.store(y + 1, tl.max(a, 0))


@triton.jit
def product(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):
    """c (M, N) = a (M, K) @ b (K, N)."""
    m = tl.arange(0, M)[:, None]
    n = tl.arange(0, N)[None, :]
    left = tl.load(a + m * K + tl.arange(0, K)[None, :])
    right = tl.load(b + tl.arange(0, K)[:, None] * N + n)
    tl.store(c + m * N + n, tl.dot(left, right, input_precision=PRECISION).to(c.dtype.element_ty))


@triton.jit
def scattered(x, y, n, stride, BLOCK: tl.constexpr):
    """Neighbouring lanes read elements that are apart: no vector holds them."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i * stride, mask=i < n), mask=i < n)


@triton.jit
def too_much_at_once(x, y, z, K, M: tl.constexpr, N: tl.constexpr):
    """Sums of (M, N) that no registers of so few warps hold."""
    m = tl.arange(0, M)[:, None]
    n = tl.arange(0, N)[None, :]
    sums = tl.zeros((M, N), tl.float32)
    for k in range(0, K):
        sums += tl.load(x + m * K + k) * tl.load(y + k * N + n)
    tl.store(z + m * N + n, sums)

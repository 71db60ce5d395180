"""Small CUDA C++ kernels, each with one fault of a kind that the harness must catch, and sound ones beside."""

from __future__ import annotations

from dataclasses import dataclass

#: What every text begins with: one line, so that the kernel's own lines are 1, 2, ...
_BEGIN = '#line 1 "kernel.cu"\nextern "C" __global__ void '


@dataclass(frozen=True)
class Planted:
    """A kernel with a fault.

    Attributes:
        text: its source.
        grid, block: of the launch that shows it.
        lengths: of its float arrays x, y, in order of the parameters.
        message: what the harness must say, a regular expression; of a "fast" run too where `fast` is None.
        fast: what it says where memory is not watched; "" where it cannot see the fault.
        shared: bytes of dynamic shared memory.
    """

    text: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    lengths: tuple[int, ...]
    message: str
    fast: str | None = None
    shared: int = 0


def _kernel(body: str) -> str:
    return _BEGIN + body


SOUND = _kernel(
    """copy(const float* x, float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i];
}"""
)

_BAD = r"access to the bad address 0x\w+ "
_NOTHING = ""

FAULTS: dict[str, Planted] = {
    "global load behind the end": Planted(
        _kernel(
            """k(const float* x, float* y) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[i + 1];
}"""
        ),
        (4,), (64,), (256, 256),
        r"^k: out-of-bounds 4-byte load: byte 1024 of x \(1024 bytes\) "
        r"\[block \(3, 0, 0\) thread \(63, 0, 0\)\] at kernel.cu:3$",
        _BAD + r"\[block \(3, 0, 0\) thread \(63, 0, 0\)\] at kernel.cu:3$",
    ),
    "global store without a mask": Planted(
        _kernel("k(const float* x, float* y) { y[blockIdx.x * blockDim.x + threadIdx.x] = 1; }"),
        (2,), (64,), (1, 100),
        r"^k: out-of-bounds 4-byte store: byte 400 of y \(400 bytes\) \[block \(1, 0, 0\) thread \(36, 0, 0\)\]",
        _BAD,
    ),
    "static shared memory behind the end": Planted(
        _kernel(
            """k(const float* x, float* y) {
  __shared__ float s[32];
  s[threadIdx.x + 1] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}"""
        ),
        (1,), (32,), (32, 32),
        r"^k: trap: an index outside of its array.* \[block \(0, 0, 0\) thread \(31, 0, 0\)\] at kernel.cu:[35]$",
    ),
    "dynamic shared memory behind the end": Planted(
        _kernel(
            """k(const float* x, float* y) {
  extern __shared__ float s[];
  s[threadIdx.x + 1] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}"""
        ),
        (1,), (32,), (32, 32),
        r"^k: out-of-bounds 4-byte store: byte 128 of dynamic shared memory \(128 bytes\) .* at kernel.cu:3$",
        _BAD,
        128,
    ),
    "missing barrier": Planted(
        _kernel(
            """k(const float* x, float* y) {
  __shared__ float s[64];
  s[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = s[63 - threadIdx.x];
}"""
        ),
        (1,), (64,), (64, 64),
        r"^k: race: store to byte \d+ of static shared memory, which thread \d+ of block 0 read with no barrier "
        r"between \[block \(0, 0, 0\) thread \(32, 0, 0\)\] at kernel.cu:3$",
        _NOTHING,
    ),
    "missing second barrier in a loop": Planted(
        _kernel(
            """k(const float* x, float* y) {
  __shared__ float s[64];
  float sum = 0;
  for (int i = 0; i < 3; ++i) {
    s[threadIdx.x] = x[threadIdx.x] + i;
    __syncthreads();
    sum += s[63 - threadIdx.x];
  }
  y[threadIdx.x] = sum;
}"""
        ),
        (1,), (64,), (64, 64),
        r"^k: race: load of byte 124 of static shared memory, which thread 31 of block 0 wrote with no barrier between "
        r"\[block \(0, 0, 0\) thread \(32, 0, 0\)\] at kernel.cu:7$",
        _NOTHING,
    ),
    "missing barrier of a warp": Planted(
        _kernel(
            """k(const float* x, float* y) {
  __shared__ float s[32];
  s[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = s[threadIdx.x ^ 1];
}"""
        ),
        (1,), (32,), (32, 32),
        r"^k: race: store to byte 4 of static shared memory, which thread 0 of block 0 read",
        _NOTHING,
    ),
    "barrier under divergence": Planted(
        _kernel(
            """k(const float* x, float* y) {
  if (threadIdx.x < 16) __syncthreads();
  y[threadIdx.x] = x[threadIdx.x];
}"""
        ),
        (1,), (64,), (64, 64),
        r"^k: barrier divergence in block \(0, 0, 0\): 16 threads wait at __syncthreads \(line 2\), "
        r"0 at a warp collective \(line -1\), 48 have returned$",
    ),
    "return before a barrier": Planted(
        _kernel(
            """k(const float* x, float* y) {
  if (threadIdx.x >= 40) return;
  __syncthreads();
  y[threadIdx.x] = x[threadIdx.x];
}"""
        ),
        (1,), (64,), (64, 64),
        r"^k: barrier divergence in block \(0, 0, 0\): 40 threads wait at __syncthreads \(line 3\), .*24 have returned",
    ),
    "two barriers at once": Planted(
        _kernel(
            """k(const float* x, float* y) {
  if (threadIdx.x < 32) __syncthreads();
  else
    __syncthreads();
  y[threadIdx.x] = x[threadIdx.x];
}"""
        ),
        (1,), (64,), (64, 64),
        r"^k: barrier divergence in block \(0, 0, 0\): 64 threads wait at __syncthreads \(different lines, one is",
    ),
    "shuffle under divergence": Planted(
        _kernel(
            """k(const float* x, float* y) {
  float v = x[threadIdx.x];
  if (threadIdx.x < 16) v = __shfl_xor_sync(0xffffffffu, v, 1);
  y[threadIdx.x] = v;
}"""
        ),
        (1,), (32,), (32, 32),
        r"^k: barrier divergence in block \(0, 0, 0\): 0 threads wait at __syncthreads \(line -1\), "
        r"16 at a warp collective \(line 3\), 16 have returned$",
    ),
    "shuffle from a lane that takes no part": Planted(
        _kernel(
            """k(const float* x, float* y) {
  float v = x[threadIdx.x];
  if (threadIdx.x < 16) v = __shfl_sync(0xffffu, v, 20);
  y[threadIdx.x] = v;
}"""
        ),
        (1,), (32,), (32, 32),
        r"^k: line 3: a shuffle reads lane 20, which takes no part",
    ),
    "two blocks write one element": Planted(
        _kernel("k(const float* x, float* y) { y[threadIdx.x] += x[threadIdx.x]; }"),
        (2,), (32,), (32, 32),
        r"^k: race: load of byte 0 of y, which thread 0 of block 0 wrote with no barrier between "
        r"\[block \(1, 0, 0\) thread \(0, 0, 0\)\]",
        _NOTHING,
    ),
    "a block reads what another one writes": Planted(
        _kernel("k(const float* x, float* y) { if (blockIdx.x) y[0] = 1; else y[1] = y[0]; }"),
        (2,), (1,), (1, 2),
        r"^k: race: store to byte 0 of y, which thread 0 of block 0 read with no barrier between",
        _NOTHING,
    ),
    "misaligned vector": Planted(
        _kernel(
            """k(const float* x, float* y) {
  float4 v = *(const float4*)(x + 1);
  y[0] = v.x + v.w;
}"""
        ),
        (1,), (1,), (64, 1),
        r"^k: misaligned 16-byte load at byte 4 of x .* at kernel.cu:2$",
        _NOTHING,
    ),
    "division by zero": Planted(
        _kernel("k(const float* x, float* y) { y[0] = 5 / (int)x[0]; }"),
        (1,), (1,), (1, 1), r"^k: trap: .*division by zero",
    ),
    "wild address": Planted(
        _kernel("k(const float* x, float* y) { *(float*)(size_t)(threadIdx.x + 16) = x[0]; }"),
        (1,), (1,), (1, 1), r"^k: 4-byte store at the wild address 0x10 ", _BAD,
    ),
    "local arrays larger than a stack": Planted(
        _kernel(
            """k(const float* x, float* y) {
  volatile float a[100000];
  a[(int)x[0]] = 1;
  y[0] = a[5];
}"""
        ),
        (1,), (2,), (1, 1), _BAD,
    ),
    "spins for another thread": Planted(
        _kernel(
            """k(const float* x, float* y) {
  if (threadIdx.x == 0) {
    while (*(volatile float*)y == 0);
  } else y[0] = 1;
}"""
        ),
        (1,), (2,), (1, 1), r"^k: the launch takes too long: does a thread wait for another one in a loop\?",
    ),
    "loops over a barrier for ever": Planted(
        _kernel("k(const float* x, float* y) { while (x[0] == 0) __syncthreads(); }"),
        (1,), (2,), (1, 1), r"^k: the launch takes too long",
    ),
    "a failed assertion": Planted(
        _kernel("k(const float* x, float* y) {\n  assert(x[0] == 1);\n}"),
        (1,), (2,), (1, 1), r"^k: line 2: assert\(x\[0\] == 1\)",
    ),
}  # fmt: skip

"""How elementwise CUDA kernels are cut: pure functions of the size and the GPU."""

from __future__ import annotations

from kernels.runtime.targets import Target

#: Most threads of a block of an elementwise kernel.
FLAT_THREADS = 256


def flat_block(items: int, target: Target) -> int:
    """Threads of a block where each thread has one of `items`: fewer where the GPU would be left idle."""
    threads = FLAT_THREADS
    while threads > 64 and items // threads < 2 * target.multiprocessors:
        threads //= 2
    return threads

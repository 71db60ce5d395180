"""CUDA C++ kernels executed on the CPU, unmodified, with what a GPU would not tell: see `module`."""

from tests.support.cuda_cpu.module import KernelFault, compiled, missing
from tests.support.cuda_cpu.run import launch, on_cpu

__all__ = ["KernelFault", "compiled", "launch", "missing", "on_cpu"]

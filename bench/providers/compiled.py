"""torch.compile: the same functions as PyTorch eager, through its compiler."""

from __future__ import annotations

import os
import shutil

from bench.providers import eager
from bench.providers.provider import Call, Unsupported, missing_package
from bench.providers.tensors import tensor_call
from bench.workload import Workload


class Compiled:
    """torch.compile with its defaults, for these shapes alone."""

    name = "compile"
    title = "torch.compile"

    def missing(self) -> str | None:
        """It writes C++ for the CPU, so a compiler must be there."""
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            return f"it needs a C++ compiler: {compiler} is not installed (or name another one in CXX)"
        return missing_package("torch")

    def prepare(self, workload: Workload, threads: int) -> Call:
        """Compiles; the code depends on the number of threads, so it is made anew for each."""
        import torch

        function = eager.torch_function(workload)
        if function is None:
            raise Unsupported("torch has no such function to compile")
        # Seldom worth it across cases, and past eight variants of a function the compiler gives up on it.
        torch._dynamo.reset()
        random = eager.is_random(workload)
        # A pool of its own: the code it makes links whatever OpenMP the compiler brings.
        return tensor_call(
            torch.compile(function, dynamic=False),
            workload,
            pool="compile",
            checked=not random,
            note=eager.NOTE_RANDOM if random else "",
        )

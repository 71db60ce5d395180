"""Program: run every small case of one op on guarded memory. ``python -m tests.support.guarded_run conv2d``.

It prints a line before each run, so that the last line names what crashed. With ``--plant`` it runs a kernel that
reads or writes past its array, to show that this crashes.
"""

from __future__ import annotations

import argparse
import faulthandler
from collections.abc import Callable
from itertools import product
from typing import Any, get_args

import numpy as np

import kernels
from kernels import simd
from kernels.case import Case, all_cases
from kernels.op import OPS
from kernels.runtime.numba_cpu import empty, jit
from tests.support import memory

DONE = "all cases ran"
PLANTS = ("vector load", "vector store", "element before", "element behind", "output of the allocator")


def _packed(a: Any) -> Any:
    return np.array(a, order="C")


def _channels_last(a: Any) -> Any:
    return _packed(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if a.ndim == 4 else a


def _guard(arguments: dict[str, Any], where: memory.Where) -> dict[str, Any]:
    return {n: memory.guarded_copy(a, where) if isinstance(a, np.ndarray) else a for n, a in arguments.items()}


def _run(case: Case, dtype: str, where: memory.Where, layout: Callable[[Any], Any]) -> None:
    arguments = {n: layout(a) if isinstance(a, np.ndarray) else a for n, a in case.build(dtype).items()}
    value, pullback = kernels.vjp(case.op, **arguments, backend="numba")
    results = value if isinstance(value, tuple) else (value,)
    rng = np.random.default_rng(1)
    incoming = [rng.standard_normal(r.shape).astype(r.dtype) for r in results[: OPS[case.op].differentiable_results]]
    expected = [*results, *pullback(*incoming)]
    with memory.allocator(memory.guarded_allocator(where)):
        value, pullback = kernels.vjp(case.op, **_guard(arguments, where), backend="numba")
        results = value if isinstance(value, tuple) else (value,)
        found = [*results, *pullback(*[memory.guarded_copy(g, where) for g in incoming])]
        getattr(kernels, case.op)(**_guard(arguments, where), backend="numba")
    for a, b in zip(expected, found, strict=True):
        if a is not None:
            np.testing.assert_array_equal(a, b)


@jit
def _vector_load(x: Any, y: Any) -> None:
    simd.store(simd.pointer(y), 0, simd.load(simd.pointer(x), 0))


@jit
def _vector_store(x: Any, y: Any) -> None:
    simd.store(simd.pointer(y), 0, simd.load_first(simd.pointer(x), 0, 1))


@jit
def _element_at(x: Any, y: Any, at: int) -> None:
    y[0] = simd.peek(simd.pointer(x), at)


def plant(name: str) -> None:
    """Read or write one vector or element past an array of three elements."""
    inside = np.zeros(64, np.float32)
    behind = memory.guarded(3, np.float32, "end")
    if name == "vector load":
        _vector_load(behind, inside)
    elif name == "vector store":
        _vector_store(inside, behind)
    elif name == "element behind":
        _element_at(behind, inside, 3)
    elif name == "element before":
        _element_at(memory.guarded(3, np.float32, "start"), inside, -1)
    else:
        with memory.allocator(memory.guarded_allocator("end")):
            _vector_store(inside, empty(3))


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("op")
    parser.add_argument("--plant", action="store_true")
    asked = parser.parse_args()
    faulthandler.enable()
    if asked.plant:
        array = np.zeros(64, np.float32)  # inside their arrays the planted kernels are harmless
        _vector_load(array, array)
        _vector_store(array, array)
        _element_at(array, array, 3)
        print("planted", asked.op, flush=True)
        plant(asked.op)
    else:
        for case in all_cases("ci", "odd"):
            if case.op == asked.op:
                for dtype in ("float32", "float64"):
                    for where, layout in product(get_args(memory.Where), (_packed, _channels_last)):
                        print(f"{case.id}, {dtype}, {layout.__name__[1:]}, guard at the {where}", flush=True)
                        _run(case, dtype, where, layout)
    print(DONE)


if __name__ == "__main__":
    main()

"""Every configuration of the CUDA C++ kernels that the calls of gpu_configurations.py reach, held to the gates.

Those calls, and a few more, go through all sizes that tile functions tell apart. Each source with each set of constants
is compiled once a target, as CuPy would: ``python -m kernels.cupy_configurations [FAMILY ...] [--target TARGET ...]``
says what is broken. That takes minutes, so it is no test's work.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Iterator

from kernels import gpu_gates
from kernels.gpu_configurations import FAMILIES, Call, _conv_call
from kernels.gpu_report import capture, why_not
from kernels.gpu_workloads import REPORTED_TARGETS
from kernels.runtime.cupy_compile import Launch, compiled, recording

TARGETS = REPORTED_TARGETS["cupy"]
#: Bytes of a call's largest input, at most: arrays are not touched, but reserved. Smaller calls have the same tiles.
MOST_BYTES = 1 << 33


def _more() -> Iterator[Call]:
    """Convolutions whose pixels make many tiles of 64 and few of 128."""
    for dtype, last in itertools.product(("bfloat16", "float32"), (True, False)):
        yield _conv_call(dtype, False, last, (4, 64, 56, 56), 64)


def launches(family: str, target: str) -> list[tuple[Call, Launch]]:
    """The launches of a family's calls that a compiler or a block sees the difference of, each with its first call.

    Args:
        family: a name in `kernels.gpu_configurations.FAMILIES`.
        target: a name in `TARGETS`.
    """
    found: dict[tuple[object, ...], tuple[Call, Launch]] = {}
    for call in (*FAMILIES[family](), *(_more() if family == "convolutions" else ())):
        itemsize = 8 if call.workload.dtype == "float64" else 4
        largest = max(math.prod(shape) for shape in call.workload.shapes.values()) * itemsize
        # tf32 is Triton's alone.
        if call.tf32 or largest > MOST_BYTES or why_not(call.workload, "cupy") is not None:
            continue
        captured = capture(call.workload, "cupy", lambda: recording(target))
        for launch in (*captured.forward, *captured.backward):
            seen = (launch.source, launch.kernel, math.prod(launch.block), launch.shared)
            found.setdefault(seen, (call, launch))
    return list(found.values())


def broken(family: str, target: str) -> tuple[int, list[str]]:
    """(how many launches were compiled, the rules that they break, in words); arguments as of `launches`."""
    known = launches(family, target)
    complaints = []
    for call, launch in known:
        kernel = compiled(launch, target)
        rules = gpu_gates.gates(kernel, call.workload.dtype) if call.aligned else gpu_gates.soundness(kernel)
        complaints += [f"{kernel.name}, {call.workload.id}, {kernel.options}: {rule}" for rule in rules]
    return len(known), complaints


def main(arguments: list[str]) -> int:
    """The command; returns 1 where a kernel breaks a rule."""
    parser = argparse.ArgumentParser(prog="python -m kernels.cupy_configurations")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"some of {', '.join(FAMILIES)}; none: all")
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=TARGETS)
    asked = parser.parse_args(arguments)
    for family in asked.families:
        if family not in FAMILIES:
            parser.error(f"FAMILY must be one of {', '.join(FAMILIES)}, got {family!r}")
    worst = 0
    for family, target in itertools.product(asked.families or FAMILIES, asked.target):
        count, complaints = broken(family, target)
        print(f"{family}, {target}: {count} launches, {len(complaints)} broken rules", flush=True)
        print("\n".join(complaints), end="\n" if complaints else "")
        worst |= int(bool(complaints))
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

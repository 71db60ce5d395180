"""Every configuration of the CUDA C++ kernels that the calls of gpu_configurations.py reach, held to the gates.

Those calls, and a few more, go through all sizes that tile functions tell apart. Each source with each set of constants
is compiled once a target, as CuPy would: ``python -m kernels.cupy_configurations [FAMILY ...] [--target TARGET ...]
[--json FILE]`` says what is broken. That takes long, so what was found is kept in docs/cuda_configurations.json, for
each family and target with a digest of the code and the launches: a test says when these no longer are what was
compiled. A run with the same file leaves out what it has of today's code, so one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kernels import gpu_gates
from kernels.gpu_capture import capture, why_not
from kernels.gpu_configurations import FAMILIES, Call, _conv_call, updated
from kernels.gpu_workloads import REPORTED_TARGETS
from kernels.runtime import cuda_source
from kernels.runtime.cupy_compile import Launch, compiled, recording, version

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


@functools.cache
def _code(file: str) -> str:
    """A source with its includes, without comments, numbers of lines and spaces, which change nothing."""
    text = re.sub(r"^#line .*$", "", cuda_source.expanded(file), flags=re.M)
    return " ".join(cuda_source._COMMENT.sub(" ", text).split())


def digest(launches: Iterable[Launch]) -> str:
    """A number of what is compiled for some launches: code and constants, kernels, threads, shared memory."""
    facts = [(_code(x.source.file), x.source.options, x.kernel, math.prod(x.block), x.shared) for x in launches]
    return hashlib.sha256(repr(sorted(facts)).encode()).hexdigest()[:16]


def broken(known: list[tuple[Call, Launch]], target: str) -> list[str]:
    """The rules that kernels break, in words; `known` as of `launches`."""
    complaints = []
    for call, launch in known:
        kernel = compiled(launch, target)
        rules = gpu_gates.gates(kernel, call.workload.dtype) if call.aligned else gpu_gates.soundness(kernel)
        complaints += [f"{kernel.name}, {call.workload.id}, {kernel.options}: {rule}" for rule in rules]
    return complaints


def find(family: str, target: str, before: dict[str, Any]) -> dict[str, Any]:
    """What compiling a family for a target finds: "digest", how many were "compiled", which rules are "broken".

    What was found before is taken where its digest is today's. Other arguments as of `launches`.
    """
    known = launches(family, target)
    now = digest(launch for _, launch in known)
    if before.get("digest") == now:
        return before
    return {"digest": now, "compiled": len(known), "broken": broken(known, target)}


def main(arguments: list[str]) -> int:
    """The command; returns 1 where a kernel breaks a rule."""
    parser = argparse.ArgumentParser(prog="python -m kernels.cupy_configurations")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"some of {', '.join(FAMILIES)}; none: all")
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--json", type=Path, help="keep what was found here, and compile only what it has not")
    asked = parser.parse_args(arguments)
    for family in asked.families:
        if family not in FAMILIES:
            parser.error(f"FAMILY must be one of {', '.join(FAMILIES)}, got {family!r}")
    kept: dict[str, Any] = {"compiler": version(), "families": {}}
    if asked.json and asked.json.exists():
        kept = updated(json.loads(asked.json.read_text()), kept)
    worst = 0
    for family, target in itertools.product(asked.families or FAMILIES, asked.target):
        found = find(family, target, kept["families"].get(family, {}).get(target, {}))
        complaints = found["broken"]
        print(f"{family}, {target}: {found['compiled']} launches, {len(complaints)} broken rules", flush=True)
        print("\n".join(complaints), end="\n" if complaints else "")
        worst |= int(bool(complaints))
        kept = updated(kept, {"compiler": kept["compiler"], "families": {family: {target: found}}})
        if asked.json:  # at once: all of it takes long
            asked.json.write_text(json.dumps(kept, indent=1) + "\n")
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

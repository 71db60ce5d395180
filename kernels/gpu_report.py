"""The kernel report: what the compilers made of the GPU kernels, Triton's and CuPy's, for GPUs that need not be here.

``python -m kernels report`` compiles a list of workloads for each target and prints a table; ``--json FILE`` also
writes the rows. Everything in it is a fact of the compiler or arithmetic of the algorithm: registers, spills, how many
blocks a multiprocessor holds, instructions, bytes, operations, and the time below which no H100 can be. No time is
measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kernels.backends import BACKENDS
from kernels.gpu_capture import capture, why_not
from kernels.gpu_gates import MATRIX_KERNELS, gates
from kernels.gpu_workloads import REPORTED_TARGETS, WORKLOADS, Workload
from kernels.runtime.machine_code import Compiled

#: Data-sheet peaks of the H100 SXM a second: bytes of memory, operations in half precision on tensor cores, in float32.
H100 = {"bytes": 3.35e12, "half": 989e12, "float32": 67e12}

Report = dict[str, Any]


@dataclass(frozen=True)
class Pass:
    """The forward or backward pass of a workload: its compiled kernels, and what the algorithm must do."""

    workload: Workload
    name: str
    kernels: tuple[Compiled, ...]
    bytes: int
    flops: int

    @property
    def floor(self) -> float:
        """Seconds that an H100 needs at least: for the bytes at full bandwidth, or for the operations at full rate."""
        products = any(k.name in MATRIX_KERNELS[k.backend] for k in self.kernels)
        half = self.workload.dtype in ("float16", "bfloat16") and products
        return max(self.bytes / H100["bytes"], self.flops / H100["half" if half else "float32"])


def missing(backend: str) -> str | None:
    """Why the kernels of a backend cannot be compiled and looked into here, or None."""
    if backend == "triton":
        return BACKENDS["triton"].missing() if find_spec("triton") is None or find_spec("torch") is None else None
    from kernels.runtime import cupy_compile

    return cupy_compile.missing()


def _compiling(backend: str, target: str) -> AbstractContextManager[list[Compiled]]:
    if backend == "triton":
        from kernels.runtime import triton_compile

        return triton_compile.compiling(target)
    from kernels.runtime import cupy_compile

    return cupy_compile.compiling(target)


def compile_workload(workload: Workload, target: str, backend: str = "triton") -> tuple[Pass, Pass]:
    """Compile a workload's forward and backward for a target.

    Args:
        workload: the call.
        target: name in `kernels.runtime.targets.TARGETS`.
        backend: "triton" or "cupy".

    Raises:
        BackendError: the backend cannot run this call.
    """
    found = capture(workload, backend, lambda: _compiling(backend, target))
    return (
        Pass(workload, "forward", tuple(found.forward), found.bytes[0], found.flops[0]),
        Pass(workload, "backward", tuple(found.backward), found.bytes[1], found.flops[1]),
    )


#: Constants of a kernel that tell its tile.
_TILE = ("BLOCK", "ROWS", "WHOLE", "TIMES", "UNITS", "WIDTH", "SECOND", "PART", "num_stages")


def row_of(workload: Workload, direction: str, kernel: Compiled) -> dict[str, Any]:
    """One line of the report, as JSON has it."""
    blocks, occupancy, limiter = kernel.occupancy if not kernel.target.amd else (0, 0.0, "")
    # Of CUDA C++ every constant but places in shared memory, which follow from the others.
    tiles = {n: v for n, v in kernel.options.items() if not n.startswith("AT_")}
    tile = {n: v for n, v in tiles.items() if kernel.backend == "cupy" or n.startswith(_TILE)}
    tile |= {"SELECTS": True} if kernel.options.get("SELECTS") else {}
    return {
        "workload": workload.id,
        "pass": direction,
        "backend": kernel.backend,
        "kernel": kernel.name,
        "target": kernel.target.name,
        "tile": tile,
        "warps": kernel.warps,
        "registers": kernel.registers,
        "spills": kernel.spills,
        "stack": kernel.stack,
        "shared": kernel.shared,
        "blocks": blocks,
        "occupancy": round(occupancy, 3),
        "limiter": limiter,
        "instructions": sum(kernel.instructions.values()),
        "loop": sum(kernel.loop.values()),
        "matrix": kernel.count(kernel.matrix_instructions, in_loop=True),
        "asynchronous": kernel.asynchronous,
        "wide": kernel.wide,
        "narrow": kernel.narrow,
    }


def make(
    targets: tuple[str, ...] = (), workloads: tuple[Workload, ...] = WORKLOADS, backends: tuple[str, ...] = ()
) -> Report:
    """The whole report: {"compilers": {backend: version}, "digests": {...}, "passes": [...], "kernels": [...]}.

    Args:
        targets: names of GPUs; none: all that a backend is reported for.
        workloads: the calls.
        backends: "triton", "cupy" or both; none: both.
    """
    passes: dict[tuple[str, str], dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    digests: dict[str, str] = {}
    backends = backends or tuple(REPORTED_TARGETS)
    for backend in backends:
        for workload in (w for w in workloads if why_not(w, backend) is None):
            for target in (t for t in workload.targets(backend) if not targets or t in targets):
                print(f"{workload.id}, {backend}, {target}", file=sys.stderr)
                if backend == "triton":
                    digests[f"{workload.id} | {target}"] = digest_of(workload, target)
                for done in compile_workload(workload, target, backend):
                    passes[workload.id, done.name] = {
                        "workload": workload.id,
                        "pass": done.name,
                        "bytes": done.bytes,
                        "flops": done.flops,
                        "h100_floor_us": round(done.floor * 1e6, 1),
                    }
                    seen = {json.dumps(r) for r in rows}
                    found = (row_of(workload, done.name, k) | _broken(workload, k) for k in done.kernels)
                    rows += [r for r in found if json.dumps(r) not in seen]
    compilers = {b: _version(b) for b in backends}
    return {"compilers": compilers, "digests": digests, "passes": list(passes.values()), "kernels": rows}


def _broken(workload: Workload, kernel: Compiled) -> dict[str, Any]:
    """The rules that a kernel breaks, for its line of the report; as a rule none."""
    found = gates(kernel, workload.dtype)
    return {"broken": found} if found else {}


def digest_of(workload: Workload, target: str) -> str:
    """A number of what is compiled for a workload in Triton: kernels' code, what Triton knows of their arguments."""
    from kernels.runtime import triton_compile

    found = capture(workload, "triton", lambda: triton_compile.recording(target))
    return triton_compile.digest((*found.forward, *found.backward))


def _version(backend: str) -> str:
    if backend == "triton":
        from kernels.runtime import triton_compile

        return triton_compile.version()
    from kernels.runtime import cupy_compile

    return cupy_compile.version()


def updated(old: Report, new: Report) -> Report:
    """A report with the lines of another one in place of its own for the same backends, targets and workloads.

    Lines of workloads that there are no more are left out.
    """

    def place(row: dict[str, Any]) -> tuple[str, str, str]:
        return row["backend"], row["target"], row["workload"]

    made, listed = {place(r) for r in new["kernels"]}, [w.id for w in WORKLOADS]
    kept = [r for r in old["kernels"] if place(r) not in made and r["workload"] in listed]
    backends, targets = list(REPORTED_TARGETS), REPORTED_TARGETS["triton"]
    rows = sorted(
        kept + new["kernels"],
        key=lambda r: (backends.index(r["backend"]), listed.index(r["workload"]), targets.index(r["target"])),
    )
    passes = {(p["workload"], p["pass"]): p for p in (*old["passes"], *new["passes"]) if p["workload"] in listed}
    ordered = sorted(passes.values(), key=lambda p: listed.index(p["workload"]))
    digests = old.get("digests", {}) | new.get("digests", {})
    digests = {n: d for n, d in sorted(digests.items()) if n.partition(" | ")[0] in listed}
    compilers = old["compilers"] | new["compilers"]
    return {"compilers": compilers, "digests": digests, "passes": ordered, "kernels": rows}


def key(row: dict[str, Any]) -> str:
    """What tells the lines of a report apart."""
    names = ("backend", "workload", "pass", "kernel", "target")
    return " | ".join((*(row[n] for n in names), json.dumps(row["tile"])))


INTRODUCTION = """# The GPU kernels as the compiler leaves them

Made by `python -m kernels report --json docs/gpu_kernels.json --markdown docs/gpu_kernels.md`, which needs Triton, CuPy
and NVRTC, and no GPU. **No kernel has been run on a GPU, and no time here is measured.** What the figures are:

- registers, shared memory (bytes) and instructions: the compiler's, from the machine code of a launch with these sizes;
- occupancy: threads on a multiprocessor as a share of those that fit, and what limits them, by NVIDIA's rules (a kernel
  full of tensor-core work needs little of it; AMD's rules are others);
- matrix: tensor-core instructions in the loop; async: copies to shared memory that no thread waits for;
- wide/all: global loads, stores and copies of 128 bits a thread, of all that there are;
- floor: bytes / 3.35e12 or operations / peak (989e12 in half precision on tensor cores, else 67e12), whichever is
  longer: no H100 can be faster. What a kernel really takes is unknown.

`tests/triton_on_cpu/test_compiled.py` and `tests/cuda_on_cpu/test_compiled.py` compile all of it and fail when a kernel
spills registers, does not fit, leaves tensor cores or wide accesses unused, or became worse than in this table.
"""


_NAMES = {"triton": "Triton", "cupy": "CuPy"}


def document(report: Report) -> str:
    """docs/gpu_kernels.md."""
    return f"{INTRODUCTION}\n{table(report)}\n"


def table(report: Report) -> str:
    """The report as tables in Markdown."""
    lines = [
        f"Compiled with {' and '.join(_NAMES[b] + ' ' + v for b, v in report['compilers'].items())}.",
        "",
        "| workload | pass | bytes | operations | H100 floor, us |",
        "|---|---|---:|---:|---:|",
    ]
    for p in report["passes"]:
        lines.append(f"| {p['workload']} | {p['pass']} | {p['bytes']:,} | {p['flops']:,} | {p['h100_floor_us']} |")
    head = "backend target workload kernel tile warps registers shared occupancy instructions matrix async wide/all"
    lines += ["", f"| {' | '.join(head.split())} |", "|" + "---|" * len(head.split())]
    for r in report["kernels"]:
        tile = " ".join(f"{n.lower()}={v}" for n, v in r["tile"].items())
        occupancy = f"{r['occupancy']:.0%} ({r['limiter']})" if r["limiter"] else "-"
        cells = (
            r["backend"], r["target"], f"{r['workload']}, {r['pass']}", r["kernel"], tile, r["warps"], r["registers"],
            r["shared"], occupancy, r["instructions"], r["matrix"], r["asynchronous"],
            f"{r['wide']}/{r['wide'] + r['narrow']}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """``python -m kernels report [--backend cupy] [--target sm_90] [--op conv2d] [--json FILE] [--markdown FILE]``.

    With ``--all`` every configuration of Triton's kernels is compiled and held to the gates (gpu_configurations.py), of
    the families that ``--op`` names there; ``--json`` keeps what was found.

    Returns:
        the exit status: 1 where a kernel breaks a rule of gpu_gates.py, 2 where a backend's compiler is missing or an
        argument is wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m kernels report", description=__doc__)
    targets = REPORTED_TARGETS["triton"]
    parser.add_argument("--backend", action="append", choices=list(REPORTED_TARGETS), help="only it; may be repeated")
    parser.add_argument("--target", action="append", choices=targets, help="only this target; may be repeated")
    parser.add_argument("--op", action="append", help="only workloads of this op; may be repeated")
    parser.add_argument("--json", type=Path, help="also write the report here; lines that were not made anew are kept")
    parser.add_argument("--markdown", type=Path, help="write the tables here in place of printing them")
    parser.add_argument("--all", action="store_true", help="every tile that Triton's kernels can take: takes hours")
    parser.add_argument("--processes", type=int, default=1, help="how many compile at a time with --all; 1")
    asked = parser.parse_args(arguments)
    if asked.processes < 1:
        parser.error(f"argument --processes: must be at least 1, got {asked.processes}")
    backends = ("triton",) if asked.all else tuple(asked.backend or REPORTED_TARGETS)
    for backend in backends:
        if (reason := missing(backend)) is not None:
            print(f"report: {reason}", file=sys.stderr)
            return 2
    if asked.all:
        from kernels import gpu_configurations

        return gpu_configurations.run(tuple(asked.op or ()), tuple(asked.target or ()), asked.json, asked.processes)
    ops = sorted({w.op for w in WORKLOADS})
    for op in asked.op or ():
        if op not in ops:
            print(f"report: --op must be one of {', '.join(ops)}, got {op}", file=sys.stderr)
            return 2
    known: Report | None = None
    if asked.json and asked.json.exists():
        try:
            known = json.loads(asked.json.read_text())
        except (OSError, ValueError) as error:
            print(f"report: --json must be a new file or a report, got {asked.json} ({error})", file=sys.stderr)
            return 2
    chosen = tuple(w for w in WORKLOADS if not asked.op or w.op in asked.op)
    report = make(tuple(asked.target or ()), chosen, backends)
    if asked.json:
        if known is not None:
            report = updated(known, report)
        asked.json.write_text(json.dumps(report, indent=1) + "\n")
    if asked.markdown:
        asked.markdown.write_text(document(report))
    else:
        print(table(report))
    for row in (r for r in report["kernels"] if "broken" in r):
        print(f"{key(row)}: {'; '.join(row['broken'])}", file=sys.stderr)
    return int(any("broken" in r for r in report["kernels"]))

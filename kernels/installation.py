"""What is installed and what runs here: `info`, the text to paste into a bug report."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from kernels import dispatch
from kernels.backends import BACKENDS, load
from kernels.op import OPS

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Packages whose versions matter to somebody who reads a bug report.
PACKAGES = ("nnlib-kernels", "numpy", "numba", "llvmlite", "torch", "triton", "cupy-cuda13x", "nvidia-cuda-nvrtc")


@dataclass(frozen=True)
class Info:
    """What `info` found; ``str()`` lays it out.

    Attributes:
        versions: of Python and of each package that matters, None for one that is not installed.
        machine: platform, processor, vector features, threads.
        cache: where compiled code is kept, and why there.
        backends: for each backend why it cannot run here, or None.
        ops: for each op and backend "yes", or why there is no such kernel.
        chosen: the backend named by KERNELS_BACKEND, or "auto".
    """

    versions: dict[str, str | None]
    machine: dict[str, str]
    cache: dict[str, str]
    backends: dict[str, str | None]
    ops: dict[str, dict[str, str]]
    chosen: str

    def __str__(self) -> str:
        lines = ["versions", *_aligned({name: version or "not installed" for name, version in self.versions.items()})]
        lines += ["machine", *_aligned(self.machine)]
        lines += ["cache of compiled code", *_aligned(self.cache)]
        backends = {name: why or "runs here" for name, why in self.backends.items()}
        lines += ["backends", *_aligned({**backends, "chosen": self.chosen})]
        names = list(self.backends)
        heading = "".join(f"{name:<11}" for name in names)
        marks = {op: ["yes" if row[name] == "yes" else "-" for name in names] for op, row in self.ops.items()}
        rows = {op: "".join(f"{mark:<11}" for mark in row) for op, row in marks.items()}
        lines += ["ops", *_aligned({"": heading, **rows})]
        return "\n".join(lines)


def _aligned(lines: Mapping[str, object]) -> list[str]:
    """A line for each name and what is said of it, one below the other."""
    width = max(map(len, lines), default=0)
    return [f"  {name:<{width}}  {value}".rstrip() for name, value in lines.items()]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def info() -> Info:
    """Describe the installation: versions, machine, threads, cache, and which op runs on which backend.

    Returns:
        the facts as an object that prints as a table, the same as ``python -m kernels``.
    """
    versions: dict[str, str | None] = {"python": platform.python_version()}
    versions |= {package: _version(package) for package in PACKAGES}
    machine = {"platform": platform.platform(), "python program": sys.implementation.name}
    cache: dict[str, str] = {}
    if _version("numba") is not None:
        from kernels.runtime import numba_cpu

        facts: dict[str, Any] = numba_cpu.info()
        state = facts.pop("cache", None)
        machine |= {
            name.replace("_", " "): ", ".join(value) if isinstance(value, tuple) else str(value)
            for name, value in facts.items()
            if name not in versions and value is not None
        }
        if state is not None:
            cache = {
                "folder": str(state.folder or "none: code is compiled anew in every process"),
                "why": str(state.reason),
                "writable": "yes" if state.writable else "no",
                "entries": str(state.entries),
                "digest": str(state.digest),
            }
    backends = {name: backend.missing() for name, backend in BACKENDS.items()}
    ops = {name: {b: _kernel(name, b, backends[b]) for b in BACKENDS} for name in sorted(OPS)}
    return Info(versions, machine, cache, backends, ops, dispatch.ENVIRONMENT)


def _kernel(op: str, backend: str, missing: str | None) -> str:
    """ "yes", or why an op has no kernel of a backend here."""
    if missing is not None:
        return missing
    found = load(OPS[op].family, BACKENDS[backend]) and backend in OPS[op].implementations
    return "yes" if found else f"there is no {backend} kernel of {op}"

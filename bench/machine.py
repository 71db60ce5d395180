"""Where and with what a measurement was made: processor, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "nnlib-kernels",
    "numpy",
    "numba",
    "llvmlite",
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "rich",
    "matplotlib",
)
ROOT = Path(__file__).resolve().parents[1]


def versions() -> dict[str, str | None]:
    """Version of Python and of each package that matters; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def processor() -> str:
    """Name of the processor, as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip().lower() in ("model name", "hardware", "cpu model"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """Logical processors that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def load() -> float | None:
    """How many processes want to run at the moment, on average over the last minute; None where unknown."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def busy() -> str | None:
    """A remark when others use the cores too; None on a quiet machine."""
    found = load()
    if found is None or found < 0.5 * cores():
        return None
    return (
        f"the machine is busy (load {found} on {cores()} cores): ratios are noisy, times with several threads worthless"
    )


def _git(*arguments: str) -> str | None:
    try:
        ran = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout.strip() if ran.returncode == 0 else None


def commit() -> str | None:
    """The commit that the kernels are of, with "+" behind it when files differ from it; None outside a repository."""
    name = _git("rev-parse", "HEAD")
    return None if name is None else name + ("+" if _git("status", "--porcelain", "--", "kernels", "bench") else "")


def facts() -> dict[str, Any]:
    """Everything about the machine and the installation that a reader of a result needs."""
    from kernels.runtime import cache_folder

    name, features = cache_folder.processor()
    enabled = sorted(f[1:] for f in features.split(",") if f.startswith("+avx") or f in ("+fma", "+neon", "+sve"))
    return {
        "processor": processor(),
        "target": name,
        "features": enabled,
        "cores": cores(),
        "load": load(),
        "platform": platform.platform(),
        "versions": versions(),
        "commit": commit(),
    }

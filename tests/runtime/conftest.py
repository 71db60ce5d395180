"""Fresh Python processes for what a process decides once: its cache folder, its threading layer, its settings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Nothing of the surroundings may decide a test.
_CLEARED = ("KERNELS_", "NUMBA_", "OMP_", "XDG_CACHE_HOME", "PYTHONPATH")

KERNEL = """
import numpy as np
from kernels.runtime import compile_cache, numba_cpu, threads
from kernels.runtime.numba_cpu import *

@jit
def scale(first, last, x, y, factor):
    for i in range(first, last):
        y[i] = np.exp(x[i]) * factor

run = threaded(scale)
x = np.linspace(-3, 3, 1003).astype(np.float32)
y = empty(1003)
y1 = empty(1003)

def stats(*functions):
    print(*(f"{sum(f.stats.cache_hits.values())}/{sum(f.stats.cache_misses.values())}" for f in functions))
"""
"""Beginning of most programs; `stats` prints hits/misses of the disk cache for each function."""


def copy_runtime(folder: Path) -> Path:
    """Makes a package ``kernels`` in `folder` that has nothing but this repository's ``kernels.runtime``.

    The disk cache goes by the sources of the whole package, so a test that used the repository's would fail whenever
    somebody saved a file while it ran.
    """
    package = folder / "kernels"
    shutil.copytree(ROOT / "kernels" / "runtime", package / "runtime", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").write_text("")
    return package


@pytest.fixture(scope="session")
def package_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the copied package that the programs of a test session import."""
    return copy_runtime(tmp_path_factory.mktemp("package")).parent


def environment(tmp_path: Path, package_root: Path, **settings: str | None) -> dict[str, str]:
    """The environment for a test's processes: nothing inherited that matters, folders inside `tmp_path`."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(_CLEARED)}
    variables |= {
        "PYTHONPATH": str(package_root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "KERNELS_CACHE_DIR": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path),
        "NUMBA_NUM_THREADS": "3",
    }
    for name, value in settings.items():
        variables.pop(name, None)
        if value is not None:
            variables[name] = value
    return variables


@pytest.fixture
def python(tmp_path: Path, package_root: Path) -> Callable[..., list[str]]:
    """``python(program, NAME="value", ...)`` runs a program with those variables; its printed lines."""

    def run(program: str, **settings: str | None) -> list[str]:
        finished = subprocess.run(
            # Python 3.12 and later warn of every fork beside threads, which is what some tests are about.
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(program)],
            env=environment(tmp_path, package_root, **settings),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert finished.returncode == 0, f"exit {finished.returncode}\n{finished.stdout}{finished.stderr}"
        assert finished.stderr == ""
        return finished.stdout.splitlines()

    return run

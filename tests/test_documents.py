"""What the documents show runs: README's Python blocks in order, and the make targets that it names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
TEXT = README.read_text() if README.exists() else ""


def blocks(language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)


@pytest.mark.skipif(not TEXT, reason="there is no README.md yet")
def test_python_blocks_run(tmp_path):
    """One program of all blocks, as a reader would type them; a block marked ``# not run`` is left out."""
    programs = [b for b in blocks("python") if "# not run" not in b]
    assert programs, "README.md shows no Python"
    finished = subprocess.run(
        [sys.executable, "-c", "\n".join(programs)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]


@pytest.mark.skipif(not TEXT, reason="there is no README.md yet")
def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([a-z]+)\b", TEXT))
    assert named and named <= targets


@pytest.mark.skipif(not TEXT, reason="there is no README.md yet")
def test_named_files_exist():
    """Paths of this repository in backquotes are real."""
    named = re.findall(r"`((?:kernels|nnlib|tests|tools|bench)/[\w./-]*)`", TEXT)
    missing = [n for n in named if not (ROOT / n).exists()]
    assert not missing

"""The numbers by which CUDA kernels are told which activation to apply: those of activation.cuh."""

from __future__ import annotations

import re

from kernels.runtime.cuda_source import ROOT


def _read() -> dict[str, int]:
    enumeration = re.search(
        r"enum Activation \{(.*?)\}", (ROOT / "activation" / "activation.cuh").read_text(), re.DOTALL
    )
    assert enumeration is not None
    return {name.lower(): int(number) for name, number in re.findall(r"(\w+) = (\d+)", enumeration[1])}


#: Numbers of the activations of functions.py.
CODES = _read()


def code_of(activation: str | None) -> int:
    """The number of an activation; 0 for None."""
    return 0 if activation is None else CODES[activation]

"""The tile of a matrix product in Triton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class ProductTile:
    """What a program works on: a product of (rows, inner) and (inner, columns), `inner` at a time.

    Attributes:
        rows, columns, inner: powers of two.
        warps, stages: of a program.
    """

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int

    LIMITS: ClassVar = {
        "rows": (16, 256), "columns": (16, 256), "inner": (16, 128), "warps": (1, 8), "stages": (1, 6),
    }  # fmt: skip

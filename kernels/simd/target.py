"""What the machine that Numba compiles for can do, decided once at import.

The rule is Numba's own: `NUMBA_CPU_FEATURES` where it is set, else the features LLVM reports for the host. So
`NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES=+avx,+avx2,+fma,...` makes AVX2 code on an AVX-512 machine, and everything
in this package (lane counts, tile sizes) follows. Code that Numba keeps on disk is keyed by the same two settings.
"""

from dataclasses import dataclass

from llvmlite import binding
from numba.core import config
from numba.core.codegen import get_host_cpu_features


@dataclass(frozen=True)
class Target:
    """The facts that code generation depends on; see `describe` for how they follow from the features."""

    architecture: str
    """First part of the LLVM triple: "x86_64", "aarch64", ..."""
    vector_bytes: int
    """Bytes in one vector register."""
    tile_rows: int
    """Rows of the register tile that, times two vectors, fills the register file without spilling."""
    has_fma: bool
    """Whether one instruction does x * y + z with one rounding. Without it `fma` rounds twice."""
    has_avx512: bool
    """Whether the AVX-512 foundation instructions exist."""
    assembly_register: str | None
    """Letter that names a vector register in inline assembly, or None where we know none."""


def describe(triple: str, features: str) -> Target:
    """The `Target` for an LLVM triple and a feature string such as "+avx2,+fma,-avx512f"."""
    enabled = {name[1:] for name in features.split(",") if name.startswith("+")}
    architecture = triple.split("-")[0].replace("arm64", "aarch64")
    if architecture == "x86_64":
        if "avx512f" in enabled:
            return Target(architecture, 64, 12, True, True, "v")
        if {"avx2", "fma"} <= enabled:
            return Target(architecture, 32, 6, True, False, "x")
        return Target(architecture, 16, 4, "fma" in enabled, False, "x")
    if architecture == "aarch64":
        return Target(architecture, 16, 12, True, False, "w")
    return Target(architecture, 16, 4, False, False, None)


TARGET = describe(
    binding.get_process_triple(),
    getattr(config, "CPU_FEATURES", None) or get_host_cpu_features(),
)

VECTOR_BYTES: int = TARGET.vector_bytes
"""Bytes in one vector: 64 with AVX-512, 32 with AVX2 and FMA, else 16."""
LINE_VECTORS: int = max(64 // VECTOR_BYTES, 1)
"""Vectors in a cache line, which is what one prefetch asks for."""
TILE_ROWS: int = TARGET.tile_rows
"""Rows of the largest register tile that does not spill when it is TILE_VECTORS wide."""
TILE_VECTORS: int = 2
"""Vectors in a row of the register tile."""
STORES_BY_BRANCH: bool = TARGET.architecture == "x86_64" and not TARGET.has_avx512
"""Whether a masked store first asks if all lanes are stored: AVX2's own takes a dozen cycles on AMD's processors (42
micro-operations on Zen 2), and SSE has none. AVX-512's costs next to nothing."""
GROUP: int = 4 if TARGET.has_fma and not TARGET.has_avx512 else 1
"""Vectors that a loop of long chains of operations takes together (`load_group`). With AVX2 a processor looks too few
operations ahead (about a hundred on Zen 2) to overlap as many rounds of such a loop as its pipelines can take."""

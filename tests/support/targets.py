"""Environments in which Numba compiles for another processor than this one."""

from __future__ import annotations

_SSE = "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt"
_AVX2 = f"{_SSE},+avx,+avx2,+fma,+bmi,+bmi2,+f16c,+lzcnt"

#: By bytes of a vector: x86-64 with AVX2 and no AVX-512, and with SSE alone.
TARGETS = {
    32: {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": _AVX2},
    16: {"NUMBA_CPU_NAME": "nehalem", "NUMBA_CPU_FEATURES": _SSE},
}

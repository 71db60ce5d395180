"""CUDA C++ sources compiled for this processor by g++, with NVIDIA's own headers.

Two ways: "full" watches every access to memory (bounds, races, alignment, gaps of strided arrays) and is some ten
times slower than "fast", which knows guard pages and g++'s checks of array indices alone. Both catch barriers under
divergence, and both fill shared memory with NaN for each block.

What it cannot do: inline PTX, asynchronous copies, cooperative groups, textures (kernels put them under ``#ifndef
CUDA_CPU``); the memory model's reorderings; a thread that spins until another one has written, which ends as an error
when its time is over. Threads change over at barriers and warp collectives alone, so a race is found by who touched
what, not by what came of it. x86-64 with FMA and F16C.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.runtime.cuda_source import Source, kernels_of

HERE = Path(__file__).resolve().parent
#: Compiled code, by a digest of everything that it is made from.
CACHE = Path(__file__).resolve().parents[3] / ".pytest_cache" / "cuda_cpu"
CHECKS = ("full", "fast")

_OPTIONS = [
    # More optimisation costs more than it saves: what watches a kernel takes its time. Lines of the code are asked for,
    # its variables never.
    *("-std=c++17", "-O1", "-g1", "-gdwarf-4", "-fno-var-tracking", "-fPIC", "-w"),
    *("-fvisibility=hidden", "-fno-strict-aliasing"),
    # Accesses stay those of the source, one by one.
    *("-fno-tree-vectorize", "-fno-tree-sra", "-fno-ipa-sra", "-fno-ipa-reference", "-fno-ipa-pure-const"),
    # Products and sums are fused where nvcc fuses them.
    *("-mfma", "-mf16c", "-ffp-contract=fast", "-fexpensive-optimizations"),
]
_WATCHED = ["-DCUDA_CPU_WATCHED"]
# Large local arrays touch the page that guards a thread's stack.
_SANITIZERS = ["-fstack-clash-protection", "-fsanitize=bounds,shift,integer-divide-by-zero"]
_SANITIZERS += ["-fsanitize-undefined-trap-on-error"]


class KernelFault(Exception):
    """A kernel did what no kernel may: the message says what, which thread, and on which line."""


@functools.cache
def missing() -> str | None:
    """Why CUDA C++ cannot run on this processor, or None."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "the harness for CUDA C++ is written for Linux on x86-64"
    if shutil.which("g++") is None:
        return "g++ is not installed"
    flags = Path("/proc/cpuinfo").read_text()
    if not re.search(r"\bfma\b", flags) or not re.search(r"\bf16c\b", flags):
        return "this processor has no FMA or no F16C"
    if not _headers():
        return "CUDA's headers are not installed: pip install nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl"
    return None


def _headers() -> list[str]:
    """Folders of CUDA's headers: those of NVIDIA's packages, else of the toolkit."""
    package = importlib.util.find_spec("nvidia")
    places = [Path(p) / "cu13" / "include" for p in (package.submodule_search_locations or ())] if package else []
    places.append(Path(os.environ.get("CUDA_PATH", "/usr/local/cuda")) / "include")
    found = next((p for p in places if (p / "cuda_fp16.h").exists() and (p / "cccl" / "nv").exists()), None)
    return [] if found is None else [str(found), str(found / "cccl")]


# ----- compiling ---------------------------------------------------------------------------------------------------


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


@functools.cache
def _harness_digest() -> str:
    """Of the harness's own sources and the compiler."""
    files = sorted(p for p in HERE.rglob("*") if p.suffix in (".h", ".cpp"))
    version = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout
    return _digest([(p.name, p.read_text()) for p in files], version, _OPTIONS, _SANITIZERS, _headers())


def _run(*command: str) -> None:
    # In this folder, because debugging information has the #line directives' names relative to it.
    done = subprocess.run(command, capture_output=True, text=True, cwd=CACHE)
    if done.returncode:
        raise RuntimeError(f"g++ refuses a kernel:\n{done.stderr[:4000]}")


def _made(path: Path, *command: str) -> Path:
    """The file `path`, made unless it exists by a command that ends with "-o"; whole, though several processes do."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        _run(*command, str(partial))
        partial.replace(path)
    return path


def _linker() -> list[str]:
    """The linker that takes half the time of the usual one, where it is installed."""
    return ["-fuse-ld=gold"] if shutil.which("ld.gold") else []


def _includes() -> list[str]:
    return [f"-I{folder}" for folder in (HERE / "include", HERE, *_headers())]


def _options_of(check: str) -> list[str]:
    return _OPTIONS + (_WATCHED if check == "full" else [])


def _of_kernels(check: str) -> list[str]:
    return _options_of(check) + _SANITIZERS + (["-fsanitize=thread"] if check == "full" else [])


@functools.cache
def _runtime(check: str) -> tuple[Path, list[Path]]:
    """(the folder of the precompiled header, the compiled harness), for a way to check."""
    folder = CACHE / f"{check}-{_harness_digest()}"
    _made(
        folder / "cuda_cpu.h.gch", "g++", *_of_kernels(check), *_includes(),
        "-x", "c++-header", str(HERE / "cuda_cpu.h"), "-o",
    )  # fmt: skip
    objects = [
        _made(folder / f"{name}.o", "g++", *_options_of(check), *_includes(), "-c", str(HERE / f"{name}.cpp"), "-o")
        for name in ("runtime", "memory")
    ]
    return folder, objects


_DYNAMIC = re.compile(
    r"extern\s+__shared__\s+(?:(?:__align__|alignas)\s*\(\s*\d+\s*\)\s*)?([\w:\s<>,]+?)\s*(\w+)\s*\[\s*\]\s*;"
)


def with_dynamic_shared(text: str) -> str:
    """``extern __shared__ T x[];`` as a pointer to the launch's dynamic shared memory."""
    return _DYNAMIC.sub(r"\1* const \2 = reinterpret_cast<\1*>(cuda_cpu::state.dynamic_shared);", text)


#: Arrays of single bytes in shared memory; else two bytes are watched as one, which is quicker.
_BYTES = re.compile(r"(?<!extern )__shared__\s+(?:un)?(?:signed\s+)?(?:char|bool)\b")


@dataclass(frozen=True)
class Module:
    """Compiled kernels.

    Attributes:
        library: the loaded library.
        path: of its file.
        check: how it was compiled, one of `CHECKS`.
        shared_granule: bytes of shared memory that are watched as one.
    """

    library: ctypes.CDLL
    path: Path
    check: str
    shared_granule: int

    def line_of(self, code: int) -> str:
        """The line of an address in the library, as "softmax/softmax.cu:31"."""
        command = ["addr2line", "-e", str(self.path), hex(code)]
        found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        return re.sub(r" \(discriminator \d+\)$", "", found).removeprefix(f"{CACHE}/")


@functools.cache
def compiled(source: Source, check: str = "full") -> Module:
    """A source compiled for this processor, or found where it was before.

    Raises:
        RuntimeError: g++ refuses it.
    """
    return compiled_text(source.text, source.constants, check)


@functools.cache
def compiled_text(text: str, constants: tuple[tuple[str, int | str], ...] = (), check: str = "full") -> Module:
    """The same of a source as text."""
    defined = "".join(f"#define {name} {value}\n" for name, value in constants)
    exported = "".join(f"CUDA_CPU_EXPORT({name})\n" for name in kernels_of(text))
    whole = f"{defined}{with_dynamic_shared(text)}\n{exported}"
    path = CACHE / f"{_digest(whole, check, _harness_digest())}.so"
    if not path.exists():
        folder, objects = _runtime(check)
        source = path.with_suffix(f".{os.getpid()}.cpp")
        source.write_text(whole)
        made = path.with_suffix(f".{os.getpid()}.o")
        options = [*_of_kernels(check), *_includes()]
        _run("g++", *options, "-include", str(folder / "cuda_cpu.h"), "-c", str(source), "-o", str(made))
        # Linked without -fsanitize: memory.cpp has the functions that its library would bring.
        _made(path, "g++", "-shared", *_linker(), "-Wl,-z,defs", str(made), *map(str, objects), "-lrt", "-o")
        source.unlink()
        made.unlink()
    return Module(ctypes.CDLL(str(path)), path, check, 1 if _BYTES.search(text) else 2)

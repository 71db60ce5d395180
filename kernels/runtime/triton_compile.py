"""Compiling Triton kernels for any GPU on a machine without one, through the path of a real launch.

The host code of an op runs on tensors of the meta device, which have shapes and no memory; every launch is compiled
with exactly the specialisation (strides of 1, divisibility by 16) that Triton gives it on a GPU. A kernel compiled any
other way says little: without that specialisation it has other instructions, twice the registers and no asynchronous
copies. Needs Triton 3.9, which brings its own assembler and disassembler.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from kernels.runtime import triton_gpu
from kernels.runtime.targets import TARGETS, Target


class _Driver:
    """What a launch asks of a driver before it compiles; nothing here can run a kernel."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def get_current_device(self) -> str:
        """The name of the target, so that Triton keeps its compiled kernels apart."""
        return self.target.name

    def get_current_stream(self, device: Any) -> int:
        """No stream."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """The target as Triton names it."""
        if self.target.amd:
            return GPUTarget("hip", self.target.name, self.target.warp)
        return GPUTarget("cuda", int(self.target.name.removeprefix("sm_")), self.target.warp)


@dataclass(frozen=True)
class Compiled:
    """One compiled launch.

    Attributes:
        name: of the kernel.
        target: what it is compiled for.
        grid: its programs.
        options: its constants and compiler options, those that name types left out.
        shared: bytes of shared memory a block.
        warps: of a block.
        registers: of a thread.
        stack: bytes of a thread's stack: local arrays and spilled registers.
        spills: instructions that spill registers or take them back.
        instructions: how many of each opcode there are, with what follows its dots: {"LDG.E.128": 4, ...}.
        loop: the same of the innermost loop with the most work in it; empty without a loop.
    """

    name: str
    target: Target
    grid: tuple[int, ...]
    options: dict[str, Any]
    shared: int
    warps: int
    registers: int
    stack: int
    spills: int
    instructions: dict[str, int]
    loop: dict[str, int] = field(default_factory=dict)

    def count(self, pattern: str, *, in_loop: bool = False) -> int:
        """How many instructions begin with a regular expression."""
        chosen = self.loop if in_loop else self.instructions
        return sum(number for opcode, number in chosen.items() if re.match(pattern, opcode))

    @property
    def occupancy(self) -> tuple[int, float, str]:
        """See `Target.occupancy`."""
        return self.target.occupancy(self.registers, self.shared, self.warps * self.target.warp)

    @property
    def narrow(self) -> int:
        """Global loads and stores of less than 128 bits a thread; of asynchronous copies all sizes below that too."""
        return self.count(GLOBAL) - self.wide

    @property
    def wide(self) -> int:
        """Global loads, stores and copies of 128 bits a thread; of TMA any."""
        return sum(n for o, n in self.instructions.items() if re.match(GLOBAL, o) and re.search(_WIDE, o))

    @property
    def asynchronous(self) -> int:
        """Copies from global to shared memory that the threads do not wait for."""
        return self.count(ASYNCHRONOUS)

    @property
    def matrix_instructions(self) -> str:
        """The name of the tensor cores' instructions on this target."""
        return MATRIX["gfx" if self.target.amd else self.target.name]


#: Opcodes that reach global memory, and those of tensor cores by target.
GLOBAL = r"(LDG\b|STG\b|LDGSTS|LD\.E|ST\.E|UTMALDG|UTMASTG|UBLKCP|(global|buffer)_(load|store))"
_WIDE = r"\.128|UTMA|UBLK|dwordx4|b128"
ASYNCHRONOUS = r"(LDGSTS|UTMALDG|UBLKCP)\b"
MATRIX = {"sm_80": "HMMA", "sm_86": "HMMA", "sm_89": "HMMA", "sm_120": "HMMA"}
MATRIX |= {"sm_90": "(HGMMA|HMMA)", "sm_100": r"(UTC\w*MMA|HMMA)", "gfx": "v_mfma"}


@contextmanager
def compiling(target: str) -> Iterator[list[Compiled]]:
    """Every launch inside the block is compiled for a target in place of being run.

    Args:
        target: name in `kernels.runtime.targets.TARGETS`.

    Yields:
        what was compiled, in order.
    """
    found: list[Compiled] = []
    chosen = TARGETS[target]

    def compile_launch(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        made = kernel.warmup(*arguments, grid=grid, **options)
        found.append(_read(kernel.fn.__name__, chosen, grid, options, made))

    before = driver._active  # asking for it by its property would look for a GPU
    driver.set_active(_Driver(chosen))
    try:
        with triton_gpu.elsewhere(compile_launch, chosen):
            yield found
    finally:
        driver._active = before


def _read(name: str, target: Target, grid: tuple[int, ...], options: dict[str, Any], made: Any) -> Compiled:
    shown = {n: v for n, v in options.items() if isinstance(v, (bool, int, float, str))}
    if target.amd:
        facts = _read_amd(made.asm["amdgcn"])
    else:
        facts = _read_nvidia(made.asm["cubin"])
    # The system's own share of shared memory (1 KiB) is in Target.reserved.
    return Compiled(name, target, grid, shown, made.metadata.shared, made.metadata.num_warps, **facts)


# ----- NVIDIA ------------------------------------------------------------------------------------------------------

#: A line of nvdisasm: the label of a block, or an instruction with its opcode and operands.
_LABEL = re.compile(r"\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)")


def _tool(name: str, *arguments: str, data: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(data)
        file.flush()
        command = [getattr(knobs.nvidia, name).path, *arguments, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _read_nvidia(cubin: bytes) -> dict[str, Any]:
    usage = _tool("cuobjdump", "--dump-resource-usage", data=cubin)
    numbers = {n: int(v) for n, v in re.findall(r"(REG|STACK):(\d+)", usage)}
    instructions, loop = read_assembly(_tool("nvdisasm", "-c", data=cubin), _LABEL, _INSTRUCTION, r"BRA")
    spills = sum(n for o, n in instructions.items() if re.match(r"(LDL|STL)\b", o))
    return {
        "registers": numbers["REG"],
        "stack": numbers["STACK"],
        "spills": spills,
        "instructions": instructions,
        "loop": loop,
    }


#: What an instruction of a loop counts when the one with the most work is looked for.
_WORK = ((r"(HGMMA|UTC\w*MMA|HMMA|DMMA|v_mfma)", 64), (GLOBAL, 2), (r"(FFMA|FADD|FMUL|MUFU|DFMA|v_fma|v_exp)", 1))


def _work(counts: dict[str, int]) -> int:
    return sum(n * next((w for p, w in _WORK if re.match(p, o)), 0) for o, n in counts.items())


def read_assembly(
    text: str, label: re.Pattern[str], instruction: re.Pattern[str], branch: str
) -> tuple[dict[str, int], dict[str, int]]:
    """Opcodes of a kernel and of its innermost loop with the most work, each with how often it stands there.

    A loop is what lies between a label and a branch back to it.
    """
    code: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if found := label.match(line):
            labels[found[1]] = len(code)
        elif found := instruction.match(line):
            code.append((found[1], found[2]))
    loops = []
    for i, (opcode, operands) in enumerate(code):
        if re.match(branch, opcode):
            back = [labels[name] for name in re.findall(r"\.?L\w+", operands) if labels.get(name, i) < i]
            loops += [(start, i) for start in back]
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    counted = [_counts(code[first : last + 1]) for first, last in inner]
    return _counts(code), max(counted, key=_work, default={})


def _counts(code: list[tuple[str, str]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for opcode, _ in code:
        counts[opcode] = counts.get(opcode, 0) + 1
    return counts


# ----- AMD ---------------------------------------------------------------------------------------------------------

_AMD_LABEL = re.compile(r"(\.LBB\w+):")
_AMD_INSTRUCTION = re.compile(r"\s+([vs]_\w+|ds_\w+|global_\w+|buffer_\w+|scratch_\w+)(.*)")


def _read_amd(assembly: str) -> dict[str, Any]:
    def number(key: str) -> int:
        found = re.search(rf"\.{key}:\s+(\d+)", assembly)
        return int(found[1]) if found else 0

    instructions, loop = read_assembly(assembly, _AMD_LABEL, _AMD_INSTRUCTION, r"s_c?branch")
    return {
        "registers": number("vgpr_count"),
        "stack": number("private_segment_fixed_size"),
        # What goes to memory: the compiler's own counts include registers kept in the matrix cores' accumulators.
        "spills": sum(n for o, n in instructions.items() if o.startswith("scratch_")),
        "instructions": instructions,
        "loop": loop,
    }


def version() -> str:
    """Triton's version, which the figures of a report belong to."""
    found: str = triton.__version__
    return found

"""What compilers leave of a kernel: registers, spills, instructions. The same facts for Triton's and CuPy's kernels.

NVIDIA's cuobjdump and nvdisasm read machine code; Triton brings both, else they are looked for on the path.
"""

from __future__ import annotations

import bisect
import importlib.util
import itertools
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kernels.runtime.targets import Target


@dataclass(frozen=True)
class Compiled:
    """One compiled launch.

    Attributes:
        name: of the kernel.
        target: what it is compiled for.
        grid: its programs or blocks.
        options: its constants and compiler options, those that name types left out.
        shared: bytes of shared memory a block.
        warps: of a block.
        registers: of a thread.
        stack: bytes of a thread's stack: local arrays and spilled registers.
        spills: instructions that spill registers or take them back.
        instructions: how many of each opcode there are, with what follows its dots: {"LDG.E.128": 4, ...}.
        loop: the same of the innermost loop with the most work in it, see `read_assembly`; empty without a loop.
        backend: whose kernel it is.
        family: the folder that its source is in: "softmax".
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
    backend: str = "triton"
    family: str = ""

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

#: Facts of a kernel that `Compiled` has: registers, stack, spills, instructions, loop; of NVIDIA's also "shared", the
#: static shared memory.
Facts = dict[str, Any]


# ----- NVIDIA ------------------------------------------------------------------------------------------------------

#: A line of nvdisasm: the label of a block, or an instruction with its opcode and operands.
_LABEL = re.compile(r"\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)")
_USAGE = re.compile(r"Function (\S+):\s*\n\s*(.*)")
#: A line of the listing of bare code, and the place that a branch of it goes to.
_PLACE = re.compile(r"\s*/\*([0-9a-f]{4,})\*/")
_ADDRESS = re.compile(r"(?<=\s)0x([0-9a-f]+)(?= ?;)")
_TEXT = re.compile(r"\.text\.(\S+):\n(.*?)(?=\n\s*\.section|\Z)", re.S)


def missing() -> str | None:
    """Why NVIDIA's machine code cannot be read here, or None."""
    lost = [name for name in ("cuobjdump", "nvdisasm") if _tool_path(name) is None]
    if lost:
        return f"{' and '.join(lost)} not found: pip install triton, or {' '.join('nvidia-cuda-' + n for n in lost)}"
    return None


def _tool_path(name: str) -> str | None:
    if importlib.util.find_spec("triton") is not None:
        from triton import knobs

        path: str = getattr(knobs.nvidia, name).path
        return path
    return shutil.which(name)


def _tool(name: str, *arguments: str, data: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(data)
        file.flush()
        command = [_tool_path(name) or name, *arguments, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def resources(cubin: bytes, reserved: int) -> dict[str, Facts]:
    """Registers, stack and static shared memory of every kernel in a cubin, by name: quickly read.

    Args:
        cubin: the machine code.
        reserved: bytes of shared memory that the compiler counts for the system (1024 from sm_90 on).
    """
    found = {}
    for name, line in _USAGE.findall(_tool("cuobjdump", "--dump-resource-usage", data=cubin)):
        numbers = {n: int(v) for n, v in re.findall(r"(REG|STACK|SHARED):(\d+)", line)}
        shared = max(numbers["SHARED"] - reserved, 0)
        found[name] = {"registers": numbers["REG"], "stack": numbers["STACK"], "shared": shared}
    return found


def read_nvidia(cubin: bytes, reserved: int) -> dict[str, Facts]:
    """All facts of every kernel in a cubin, by name; arguments as of `resources`."""
    usage = resources(cubin, reserved)
    listings = _TEXT.findall(_tool("nvdisasm", "-c", data=cubin))
    return {name: usage[name] | _facts(body) for name, body in listings if name in usage}


def read_many_nvidia(cubins: Sequence[bytes], target: Target) -> list[Facts]:
    """The facts of many cubins of one kernel each, all for one target, as `read_nvidia` has them.

    nvdisasm takes longer to begin than to read a kernel, so it is given the code of all of them at once.
    """
    if not cubins:
        return []
    codes = [_code(cubin) for cubin in cubins]
    listing = _tool("nvdisasm", "-b", target.architecture.replace("sm_", "SM"), data=b"".join(codes))
    parts: list[list[str]] = [[] for _ in codes]
    begins = list(itertools.accumulate((len(code) for code in codes), initial=0))
    for line in listing.splitlines():
        if place := _PLACE.match(line):
            at = int(place[1], 16)
            # Without labels every instruction is one, by its place.
            parts[bisect.bisect_right(begins, at) - 1] += [f".L_x_{at}:", _ADDRESS.sub(_label_of, line)]
    found = []
    for cubin, part in zip(cubins, parts, strict=True):
        (usage,) = resources(cubin, target.reserved).values()
        found.append(usage | _facts("\n".join(part)))
    return found


def _label_of(address: re.Match[str]) -> str:
    return f"`(.L_x_{int(address[1], 16)})"


def _facts(body: str) -> Facts:
    """What the disassembler's lines of a kernel tell."""
    instructions, loop = read_assembly(body, _LABEL, _INSTRUCTION, r"BRA")
    spills = sum(n for o, n in instructions.items() if re.match(r"(LDL|STL)\b", o))
    return {"spills": spills, "instructions": instructions, "loop": loop}


def _code(cubin: bytes) -> bytes:
    """The machine code of the one kernel in a cubin: the contents of its section of instructions (ELF, 64 bits).

    Raises:
        ValueError: there is not one such section.
    """
    (table,), (size, count) = struct.unpack_from("<Q", cubin, 40), struct.unpack_from("<HH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + n * size) for n in range(count)]
    # Type 1 (contents) with flag 4 (instructions).
    found = [cubin[start : start + length] for _, kind, flags, _, start, length in sections if kind == 1 and flags & 4]
    if len(found) != 1:
        raise ValueError(f"cubin must have one section of instructions, got {len(found)}")
    return found[0]


#: What an instruction of a loop counts when the one with the most work is looked for.
_WORK = ((r"(HGMMA|UTC\w*MMA|HMMA|DMMA|v_mfma)", 64), (GLOBAL, 2), (r"(FFMA|FADD|FMUL|MUFU|DFMA|v_fma|v_exp)", 1))


def _work(counts: dict[str, int]) -> int:
    return sum(n * next((w for p, w in _WORK if re.match(p, o)), 0) for o, n in counts.items())


def read_assembly(
    text: str, label: re.Pattern[str], instruction: re.Pattern[str], branch: str
) -> tuple[dict[str, int], dict[str, int]]:
    """Opcodes of a kernel and of its innermost loop with the most work, each with how often it stands there.

    A loop is what lies between a label and a branch back to it. Where some have tensor cores' instructions, the
    innermost of these: there may be loops in them that have none.
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
    loops = [(a, b) for a, b in loops if any(re.match(_WORK[0][0], o) for o, _ in code[a : b + 1])] or loops
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


def read_amd(assembly: str) -> Facts:
    """The facts of the kernel in an assembly listing."""

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

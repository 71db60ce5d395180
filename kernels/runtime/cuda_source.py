"""The .cu files of the CuPy backend: their text, what their kernels take, and arguments of exactly these types.

CuPy passes a Python int as 64 bits and a float as a double, whatever the kernel declares, and takes any array for any
pointer. Here every argument follows the kernel's own signature, which is read from the source.

A file is written for NVRTC and, in the tests, for g++: one ``extern "C" __global__`` function a kernel, its parameters
without conditions of the preprocessor. Types that differ from launch to launch are constants of the preprocessor
(``const STORAGE* x``).
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: What paths of sources and of their includes are relative to: the package `kernels`.
ROOT = Path(__file__).resolve().parents[1]

Constants = tuple[tuple[str, "int | str"], ...]

#: Names of element types, as arrays have them, by CUDA C++'s.
ELEMENTS = {
    "float": "float32",
    "double": "float64",
    "__half": "float16",
    "__nv_bfloat16": "bfloat16",
    "bool": "bool",
    "signed char": "int8",
    "unsigned char": "uint8",
    "short": "int16",
    "unsigned short": "uint16",
    "int": "int32",
    "unsigned int": "uint32",
    "unsigned": "uint32",
    "long long": "int64",
    "unsigned long long": "uint64",
}
_STORAGE = {name: c for c, name in ELEMENTS.items() if c != "unsigned"}


def storage(dtype: str) -> str:
    """CUDA C++'s name of an element type: "__half" for "float16", "long long" for "int64"."""
    return _STORAGE[dtype]


@dataclass(frozen=True)
class Source:
    """A .cu file with its constants: what one module is compiled from. Hashable.

    Attributes:
        file: path relative to the package, "softmax/softmax.cu".
        constants: pairs (name, value), which become ``-DNAME=VALUE``.
    """

    file: str
    constants: Constants

    @property
    def text(self) -> str:
        """The file with its own includes in it, so that the text alone tells two versions apart."""
        return expanded(self.file)

    @property
    def options(self) -> tuple[str, ...]:
        """The constants as options of the compiler."""
        return tuple(f"-D{name}={value}" for name, value in self.constants)

    def signature(self, kernel: str) -> Signature:
        """What a kernel of it takes.

        Raises:
            ValueError: it has no such kernel.
        """
        return _signature(self, kernel)


_INCLUDE = re.compile(r'^[ \t]*#include[ \t]+"([^"]+)"[^\n]*$', re.M)


def expanded(file: str) -> str:
    """A file's text with every ``#include "..."`` replaced by that file, once; those in <> are left.

    CuPy keeps compiled kernels by their text and does not look into what they include.
    """
    seen: set[str] = set()

    def text_of(name: str) -> str:
        seen.add(name)
        text = (ROOT / name).read_text()
        parts, end = [f'#line 1 "{name}"\n'], 0
        for found in _INCLUDE.finditer(text):
            line = text.count("\n", 0, found.end()) + 2
            inner = "" if found[1] in seen else text_of(found[1])
            parts += [text[end : found.start()], inner, f'\n#line {line} "{name}"']
            end = found.end()
        return "".join((*parts, text[end:]))

    return text_of(file)


# ----- signatures --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel.

    Attributes:
        name: of the parameter.
        type: element type that it points to, or its own: "float32"; of a pointer to void "".
        lanes: elements of what it points to: 4 of a float4.
        pointer: whether it is a pointer.
    """

    name: str
    type: str
    lanes: int
    pointer: bool


@dataclass(frozen=True)
class Signature:
    """What a kernel takes, and the most threads of a block that it is compiled for (None: as many as there are)."""

    kernel: str
    parameters: tuple[Parameter, ...]
    threads: int | None


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\(((?:[^()]|\([^()]*\))*)\)\s*)?(\w+)\s*\(([^{;]*?)\)\s*\{',
    re.S,
)
_VECTOR = re.compile(r"(float|double|int|uint|short|ushort|char|uchar|longlong|ulonglong)([1234])$")
_LONG_NAMES = {"uint": "unsigned int", "ushort": "unsigned short", "uchar": "unsigned char", "char": "signed char"}
_LONG_NAMES |= {"longlong": "long long", "ulonglong": "unsigned long long"}


def kernels_of(text: str) -> tuple[str, ...]:
    """Names of the kernels in a source, in order."""
    return tuple(found[2] for found in _KERNEL.finditer(_COMMENT.sub("", text)))


@functools.cache
def _signature(source: Source, kernel: str) -> Signature:
    return signature_of(source.text, dict(source.constants), kernel, source.file)


def signature_of(text: str, constants: Mapping[str, int | str], kernel: str, file: str = "source") -> Signature:
    """What a kernel of a text takes; `file` names it in errors.

    Raises:
        ValueError: there is no such kernel, or its parameters are none that launches can follow.
    """
    found = {m[2]: m for m in _KERNEL.finditer(_COMMENT.sub("", text))}
    if kernel not in found:
        raise ValueError(f"{file}: kernel must be one of {', '.join(found)}, got {kernel!r}")
    bounds, _, parameters = found[kernel].groups()
    if "#" in parameters:
        raise ValueError(f"{file}: the parameters of {kernel} must not depend on the preprocessor")
    read = tuple(_parameter(file, kernel, one, constants) for one in parameters.split(",") if one.strip())
    return Signature(kernel, read, None if bounds is None else _number(bounds.split(",")[0], constants))


def _parameter(file: str, kernel: str, text: str, constants: Mapping[str, int | str]) -> Parameter:
    words = re.sub(r"\b(const|volatile|__restrict__)\b", " ", text).replace("*", " * ").split()
    *kind, name = words
    pointer = "*" in kind
    spelled = " ".join(w for w in kind if w != "*")
    spelled = str(constants.get(spelled, spelled))
    if pointer and spelled == "void":
        return Parameter(name, "", 1, True)
    lanes = 1
    if vector := _VECTOR.match(spelled):
        spelled, lanes = _LONG_NAMES.get(vector[1], vector[1]), int(vector[2])
    if spelled not in ELEMENTS or kind.count("*") > 1:
        raise ValueError(
            f"{file}: parameter {name} of {kernel} must be a number or a pointer to numbers, got {text.strip()!r}"
        )
    return Parameter(name, ELEMENTS[spelled], lanes, pointer)


def _number(text: str, constants: Mapping[str, int | str]) -> int | None:
    """The value of an expression of integers and constants; None for any other one."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name):
            return int(constants[node.id])
        if isinstance(node, ast.BinOp):
            left, right = value(node.left), value(node.right)
            if isinstance(node.op, ast.Mult):
                return left * right
            if isinstance(node.op, ast.Add):
                return left + right
            if isinstance(node.op, ast.Sub):
                return left - right
            if isinstance(node.op, ast.Div):
                return left // right
        raise ValueError

    try:
        return value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, KeyError):
        return None


# ----- arguments ---------------------------------------------------------------------------------------------------


def typed_arguments(signature: Signature, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments in the types that a kernel declares: numbers as NumPy scalars; arrays and None are left.

    Args:
        signature: of the kernel.
        arguments: arrays for pointers, or None for a null pointer; ints, floats and bools for the rest.

    Raises:
        TypeError: one is of another kind or element type; names it.
        ValueError: there are too many or too few, or an integer does not fit.
    """
    parameters = signature.parameters
    if len(arguments) != len(parameters):
        raise ValueError(f"{signature.kernel}: must be given {len(parameters)} arguments, got {len(arguments)}")
    return tuple(typed_argument(signature.kernel, p, a) for p, a in zip(parameters, arguments))


def typed_argument(kernel: str, parameter: Parameter, value: Any) -> Any:
    """One of them."""
    where = f"{kernel}: {parameter.name}"
    if parameter.pointer:
        if value is None:
            return None
        found = getattr(getattr(value, "dtype", None), "name", None)
        if not hasattr(value, "strides") or found is None or getattr(value, "ndim", None) is None:
            raise TypeError(f"{where} must be an array, got {value!r} ({type(value).__name__})")
        if parameter.type and found != parameter.type:
            raise TypeError(f"{where} must be an array of {parameter.type}, got {found}")
        return value
    kind = np.dtype(parameter.type).type if parameter.type != "bfloat16" else None
    if kind is None or parameter.type == "float16":
        raise TypeError(f"{where} must be no number in half precision; let the kernel take a float")
    if isinstance(value, (bool, np.bool_)):
        fits = kind is np.bool_
    elif isinstance(value, (int, np.integer)):
        fits = kind is not np.bool_
    else:
        fits = isinstance(value, (float, np.floating)) and np.issubdtype(kind, np.floating)
    if not fits:
        raise TypeError(f"{where} must be a number of {parameter.type}, got {value!r} ({type(value).__name__})")
    if np.issubdtype(kind, np.integer):
        limits = np.iinfo(kind)
        if not limits.min <= value <= limits.max:
            raise ValueError(f"{where} must fit {parameter.type}, got {value}")
    return kind(value)

"""The fingerprint of a jitted function: what its compiled code depends on beyond the package's files.

Functions made by ``exec`` and closures have no file that tells them apart; their code, constants, globals and the
functions they call do.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic

_PACKAGE = __name__.split(".")[0]


def _names(code: types.CodeType) -> set[str]:
    """Every global and attribute name in `code` and the functions inside it."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return found


# Modules whose functions change with a version that the digest holds: what they call need not be followed.
_VERSIONED = {"numba", "llvmlite", "numpy", *sys.stdlib_module_names} - {"__main__"}
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class _Description:
    """Writes a function, and what it refers to, as lines that are the same in every process."""

    def __init__(self) -> None:
        # Numbers in the order of meeting, so that functions may call each other in a circle.
        self._seen: dict[int, int] = {}
        self._alive: list[object] = []  # An id means something only while its object lives.

    def lines(self, value: object, compiled: bool = True) -> Iterator[str]:
        """Lines for one value. `compiled`: reached from a jitted function, whose globals are frozen into its code.

        What is reached from plain Python alone (the body of an intrinsic, say) is told by its code and its closure;
        its module's objects come from the sources, which the digest covers.
        """
        if isinstance(value, (*_PLAIN, np.dtype)):
            yield f"{type(value).__name__} {value!r}"
        elif isinstance(value, np.generic):
            yield f"scalar {value.dtype} {value.tobytes().hex()}"
        elif isinstance(value, enum.Enum):
            yield f"enum {type(value).__qualname__} {value.name}"
        elif isinstance(value, type):
            yield f"class {value.__module__}.{value.__qualname__}"
        elif isinstance(value, numba.types.Type):
            yield f"type {value}"
        elif id(value) in self._seen:
            yield f"again {self._seen[id(value)]}"
        else:
            self._seen[id(value)] = len(self._seen)
            self._alive.append(value)
            yield from self._compound(value, compiled)

    def _compound(self, value: object, compiled: bool) -> Iterator[str]:
        if isinstance(value, Dispatcher):
            # The module too: Numba imports it when it loads the code.
            yield f"jit {value.py_func.__module__} {sorted(value.targetoptions.items(), key=str)}"
            yield from self._function(value.py_func, True)
        elif isinstance(value, _Intrinsic):
            yield "intrinsic"
            yield from self._function(value._defn, False)
        elif isinstance(value, types.FunctionType):
            yield f"python {value.__module__}.{value.__qualname__}"
            yield from self._function(value, False)
            for template in self._overloads(value) if compiled else ():
                yield "overload"
                yield from self.lines(template, False)
        elif isinstance(value, types.CodeType):
            yield from self._code(value)
        elif isinstance(value, types.ModuleType):
            yield f"module {value.__name__}"
        elif isinstance(value, np.ndarray):
            yield f"array {value.dtype} {value.shape} {hashlib.blake2b(value.tobytes()).hexdigest()}"
        elif isinstance(value, functools.partial):
            yield "partial"
            yield from self._several([value.func, value.args, value.keywords], compiled)
        elif dataclasses.is_dataclass(value):
            yield f"dataclass {type(value).__qualname__}"
            yield from self._several([getattr(value, f.name) for f in dataclasses.fields(value)], compiled)
        elif isinstance(value, (tuple, list)):
            yield f"{type(value).__qualname__} of {len(value)}"
            yield from self._several(value, compiled)
        elif isinstance(value, (set, frozenset)):
            yield f"{type(value).__qualname__} {sorted(map(repr, value))}"
        elif isinstance(value, dict):
            yield f"dict of {len(value)}"
            for key in sorted(value, key=repr):
                yield from self._several([key, value[key]], compiled)
        else:
            name = getattr(value, "__qualname__", getattr(value, "__name__", ""))
            yield f"{type(value).__module__}.{type(value).__qualname__} {name} {_ADDRESS.sub('', repr(value))}"

    def _overloads(self, stub: types.FunctionType) -> list[object]:
        """What `numba.extending.overload` put in place of a Python function: two stubs of one text may differ in it."""
        context = numba.core.registry.cpu_target.typing_context
        context.refresh()
        known = context._lookup_global(stub)
        return [
            template._overload_func
            for template in getattr(known, "templates", ())
            if hasattr(template, "_overload_func")
        ]

    def _several(self, values: Any, compiled: bool) -> Iterator[str]:
        for value in values:
            yield from self.lines(value, compiled)

    def _code(self, code: types.CodeType) -> Iterator[str]:
        # co_code is the plain form; the interpreter's own rewriting of hot code does not show in it.
        yield f"code {code.co_name} {code.co_argcount} {code.co_kwonlyargcount} {code.co_flags} {code.co_code.hex()}"
        yield f"{code.co_names} {code.co_varnames} {code.co_freevars} {code.co_cellvars}"
        yield from self._several(code.co_consts, False)

    def _function(self, function: types.FunctionType, compiled: bool) -> Iterator[str]:
        yield from self._code(function.__code__)
        yield from self._several(function.__defaults__ or (), compiled)
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # Not filled yet.
                content = None
            yield from self.lines(content, compiled)
        if not compiled and (function.__module__ or "").split(".")[0] in _VERSIONED:
            return
        names = sorted(_names(function.__code__))
        for name in names:
            if name not in function.__globals__:
                continue
            value = function.__globals__[name]
            if compiled or isinstance(value, (*_PLAIN, Dispatcher, _Intrinsic, types.FunctionType)):
                yield f"global {name}"
                yield from self.lines(value, compiled)
            if compiled and isinstance(value, types.ModuleType) and value.__name__.split(".")[0] == _PACKAGE:
                for attribute in names:
                    if attribute in vars(value):
                        yield f"attribute {name}.{attribute}"
                        yield from self.lines(vars(value)[attribute], compiled)


def fingerprint(dispatcher: Any) -> str:
    """32 hex digits for a jitted function with its options, constants, closure and the functions it calls.

    Two functions of the same text made in a factory with different parameters differ; the same function in another
    process, or in a copy of the package elsewhere, does not.
    """
    lines = "\n".join(_Description().lines(dispatcher))
    return hashlib.blake2b(lines.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()

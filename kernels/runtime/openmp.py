"""Parallel regions on the OpenMP runtime that is already in the process: torch's, where torch is loaded.

Two OpenMP runtimes in one process keep a pool of threads each, and the idle threads of one spin on the cores that the
other one needs: with torch's operations between ours that costs more than a second core brings. So a region is not
started through Numba, which links a runtime of its own, but by ``GOMP_parallel``, the entry that every GNU, LLVM and
Intel runtime has, of the library that torch calls (or Numba's, without torch).

Compiled code finds the entries through a table in memory, so that it is the same on disk for every process, and so that
a torch imported later is followed.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import sys
from pathlib import Path
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.runtime import placement

_ENTRIES = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
_SYMBOL = "nnlib_kernels_openmp_entries"

_table = (ctypes.c_void_p * len(_ENTRIES))()
binding.add_symbol(_SYMBOL, ctypes.addressof(_table))


class _State:
    """Which library the table points into: "", "numba" or "torch"."""

    owner = ""


def _point_into(path: Path, owner: str) -> bool:
    """Fill the table from the OpenMP runtime that the library at `path` uses."""
    try:
        # The library is loaded already; a symbol looked up in it is found where its own calls go.
        library = ctypes.CDLL(str(path))
        addresses = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in _ENTRIES]
    except (OSError, AttributeError):
        return False  # no such library, or one without OpenMP: the caller tries the next one
    for index, address in enumerate(addresses):
        _table[index] = address
    _State.owner = owner
    return True


def _torch_library() -> Path | None:
    torch: Any = sys.modules.get("torch")
    # torch.version is there once torch's own libraries are loaded; __file__ alone comes first.
    if getattr(torch, "get_num_threads", None) is None:
        return None
    folder = Path(torch.__file__).parent / "lib"
    return next((p for p in (folder / "libtorch_cpu.so", folder / "libtorch_cpu.dylib") if p.exists()), None)


def connect() -> bool:
    """Point the table at torch's runtime, or at Numba's; False where neither can be found."""
    placement.connect()
    torch_library = _torch_library()
    if torch_library is not None and _point_into(torch_library, "torch"):
        return True
    try:
        pool = importlib.import_module("numba.np.ufunc.omppool")
    except ImportError:
        return False
    return _point_into(Path(str(pool.__file__)), "numba")


def follow_torch() -> None:
    """Change over to torch's runtime when torch was imported after `connect`."""
    if _State.owner == "numba":
        torch_library = _torch_library()
        if torch_library is None or not _point_into(torch_library, "torch"):
            _State.owner = "numba, for good"


@functools.cache
def processors() -> int:
    """Processors that torch's runtime found when it started, before it bound any thread; 1 without such a runtime."""
    torch_library = _torch_library()
    if torch_library is None:
        return 1
    try:
        return int(ctypes.CDLL(str(torch_library)).omp_get_num_procs())
    except (OSError, AttributeError):
        return 1  # a torch without OpenMP


def owner() -> str:
    """Whose OpenMP runtime regions run on: "torch", "numba" (or "numba, for good"), "" before `connect`."""
    return _State.owner


_int32, _int64 = ir.IntType(32), ir.IntType(64)
_address = ir.IntType(8).as_pointer()


def _entry(builder: ir.IRBuilder, index: int, function_type: ir.FunctionType) -> ir.Value:
    """One of the table's entries, as a function."""
    module = builder.module
    table = module.globals.get(_SYMBOL)
    if table is None:
        table = ir.GlobalVariable(module, ir.ArrayType(_address, len(_ENTRIES)), _SYMBOL)
    place = builder.gep(table, [ir.Constant(_int32, 0), ir.Constant(_int32, index)])
    return builder.bitcast(builder.load(place), function_type.as_pointer())


@intrinsic
def run_parts(typing_context, serial, total, threads, align, arguments):
    """serial(first, last, *arguments) over parts of [0, total) at once, in a team of at most `threads`.

    serial: a jitted function that must not raise. Parts begin at multiples of align; none is empty.
    """
    if not isinstance(serial, types.Dispatcher) or not isinstance(arguments, types.BaseTuple):
        return None
    kinds = (types.int64, types.int64, *arguments)
    inner = serial.get_call_type(typing_context, kinds, {})
    int64 = types.int64

    def code(context, builder, signature, values):
        _, total, threads, align, packed = values
        compiled = serial.dispatcher.get_compile_result(inner)
        context.active_code_library.add_linking_library(compiled.library)
        note = placement.emit_note(builder)
        given = [note, total, align, *cgutils.unpack_tuple(builder, packed, len(arguments))]
        record_type = ir.LiteralStructType([value.type for value in given])
        record = cgutils.alloca_once(builder, record_type)
        for index, value in enumerate(given):
            builder.store(value, cgutils.gep_inbounds(builder, record, 0, index))
        body = _emit_body(context, builder.module, compiled.fndesc, inner, record_type)
        team = ir.FunctionType(ir.VoidType(), [body.type, _address, _int32, _int32])
        number = builder.trunc(threads, _int32)
        flags = ir.Constant(_int32, 0)
        builder.call(_entry(builder, 0, team), [body, builder.bitcast(record, _address), number, flags])
        return context.get_dummy_value()

    return types.void(serial, int64, int64, int64, arguments), code


def _emit_body(
    context: Any, module: ir.Module, description: Any, inner: Any, record_type: ir.LiteralStructType
) -> ir.Function:
    """The function that each thread of the team runs: its part of the range."""
    function_type = ir.FunctionType(ir.VoidType(), [_address])
    body = ir.Function(module, function_type, module.get_unique_name("nnlib_kernels_part"))
    body.linkage = "internal"
    builder = ir.IRBuilder(body.append_basic_block("entry"))
    record = builder.bitcast(body.args[0], record_type.as_pointer())
    members = len(record_type.elements)
    note, total, align, *arguments = [builder.load(cgutils.gep_inbounds(builder, record, 0, i)) for i in range(members)]
    ask = ir.FunctionType(_int32, [])
    index, count = [builder.sext(builder.call(_entry(builder, entry, ask), []), _int64) for entry in (1, 2)]
    placement.emit_separation(builder, note, index)
    one = ir.Constant(_int64, 1)
    blocks = builder.sdiv(builder.sub(builder.add(total, align), one), align)

    def boundary(part: ir.Value) -> ir.Value:
        place = builder.mul(builder.sdiv(builder.mul(blocks, part), count), align)
        return builder.select(builder.icmp_signed("<", place, total), place, total)

    first, last = boundary(index), boundary(builder.add(index, one))
    with builder.if_then(builder.icmp_signed("<", first, last)):
        function = context.declare_function(module, description)
        context.call_conv.call_function(builder, function, inner.return_type, inner.args, [first, last, *arguments])
    builder.ret_void()
    return body

"""Threads of a team that the system has put on one core are moved apart, and kept apart.

The idle threads of a team sleep, and Linux may wake one on the core of the thread that wakes it, though another core is
idle (seen on a virtual machine, after idle times of 20 ms): the team then takes turns on one core, for seconds in the
worst case, and two threads take as long as one. So the caller of a region notes its core, each thread that joins adds
its own, and one that finds its core taken narrows its affinity to the cores of the process that are not: that moves it
at once, and keeps it from being pulled back. A later collision (the caller has moved) frees it and moves it anew, once
in some 10 ms at most.

The note costs some 20 ns a thread. Where the user places threads (OMP_PROC_BIND, OMP_PLACES, GOMP_CPU_AFFINITY or
KMP_AFFINITY is set, to anything), and on systems other than Linux, nothing is noted and nothing moves.
"""

from __future__ import annotations

import ctypes
import os
import sys

from llvmlite import binding, ir
from numba.core import cgutils

CORES = 1024
"""As many as the C library's cpu_set_t holds."""

USERS_OWN = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
"""Variables by which users place threads."""

_WORDS = CORES // 64
_CYCLES_BETWEEN_MOVES = 1 << 25

_ENTRIES = ("sched_getcpu", "sched_getaffinity", "sched_setaffinity")
_SYMBOL = "nnlib_kernels_placement"
_PROCESS, _LAST_MOVE, _MOVES = range(len(_ENTRIES), len(_ENTRIES) + 3)

# The entries, the process, the time stamp of the last move and their number; no entries where nothing shall move.
_table = (ctypes.c_uint64 * (_MOVES + 1))()
binding.add_symbol(_SYMBOL, ctypes.addressof(_table))

_int32, _int64 = ir.IntType(32), ir.IntType(64)
_mask_type = ir.ArrayType(_int64, _WORDS)


def connect() -> None:
    """Find the system's functions, where it has them and the user does not place the threads."""
    if sys.platform != "linux" or any(os.environ.get(name) for name in USERS_OWN):
        return
    library = ctypes.CDLL(None)
    if all(hasattr(library, name) for name in _ENTRIES):
        addresses = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in _ENTRIES]
        # The process's first thread is never narrowed: its cores are those that the user allows.
        _table[_PROCESS] = os.getpid()
        _table[: len(_ENTRIES)] = [address or 0 for address in addresses]


def moves() -> int:
    """How often a thread was moved in this process."""
    return _table[_MOVES]


def _place(builder: ir.IRBuilder, index: int) -> ir.Value:
    table = builder.module.globals.get(_SYMBOL)
    if table is None:
        table = ir.GlobalVariable(builder.module, ir.ArrayType(_int64, len(_table)), _SYMBOL)
    return builder.gep(table, [ir.Constant(_int32, 0), ir.Constant(_int32, index)])


def _is_connected(builder: ir.IRBuilder) -> ir.Value:
    return builder.icmp_unsigned("!=", builder.load(_place(builder, 0)), ir.Constant(_int64, 0))


def emit_note(builder: ir.IRBuilder) -> ir.Value:
    """In the caller of a region: a note of the cores taken, with its own."""
    note = cgutils.alloca_once(builder, _mask_type)
    builder.store(ir.Constant(_mask_type, None), note)
    with builder.if_then(_is_connected(builder)):
        _emit_taking(builder, note)
    return note


def emit_separation(builder: ir.IRBuilder, note: ir.Value, index: ir.Value) -> None:
    """In each thread of a region: note the core, and leave it where it is taken already.

    note: of `emit_note`. index: the thread's number in its team; 0 is the caller, which stays where it is.
    """
    joined = builder.icmp_signed("!=", index, ir.Constant(index.type, 0))
    with builder.if_then(builder.and_(joined, _is_connected(builder))):
        taken = _emit_taking(builder, note)
        last_move = _place(builder, _LAST_MOVE)
        clock = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_int64, []), "llvm.readcyclecounter")
        now = builder.call(clock, [])
        passed = builder.sub(now, builder.load(last_move))
        due = builder.icmp_unsigned(">", passed, ir.Constant(_int64, _CYCLES_BETWEEN_MOVES))
        with builder.if_then(builder.and_(taken, due), likely=False):
            builder.store(now, last_move)
            _emit_move(builder, note)


def _emit_taking(builder: ir.IRBuilder, note: ir.Value) -> ir.Value:
    """Note this thread's core; whether it was taken already."""
    ask = builder.inttoptr(builder.load(_place(builder, 0)), ir.FunctionType(_int32, []).as_pointer())
    core = builder.call(ask, [])
    # A core that the note has no room for is not noted, nor an answer that is none (-1).
    known = builder.icmp_unsigned("<", core, ir.Constant(_int32, CORES))
    core = builder.zext(builder.and_(core, ir.Constant(_int32, CORES - 1)), _int64)
    word = builder.gep(note, [ir.Constant(_int64, 0), builder.lshr(core, ir.Constant(_int64, 6))])
    bit = builder.shl(builder.zext(known, _int64), builder.and_(core, ir.Constant(_int64, 63)))
    before = builder.atomic_rmw("or", word, bit, "monotonic")
    return builder.icmp_unsigned("!=", builder.and_(before, bit), ir.Constant(_int64, 0))


def _emit_move(builder: ir.IRBuilder, note: ir.Value) -> None:
    """Narrow this thread to those cores of the process that the note does not have, where there are any."""
    entry_type = ir.FunctionType(_int32, [_int32, _int64, _mask_type.as_pointer()]).as_pointer()
    get, put = [builder.inttoptr(builder.load(_place(builder, index)), entry_type) for index in (1, 2)]
    process = builder.trunc(builder.load(_place(builder, _PROCESS)), _int32)
    this_thread, size = ir.Constant(_int32, 0), ir.Constant(_int64, CORES // 8)
    free = cgutils.alloca_once(builder, _mask_type)
    answer = builder.call(get, [process, size, free])
    several: ir.Value = ir.Constant(_int64, 0)
    for index in range(_WORDS):
        at = [ir.Constant(_int32, 0), ir.Constant(_int32, index)]
        place = builder.gep(free, at)
        word = builder.and_(builder.load(place), builder.not_(builder.load(builder.gep(note, at))))
        builder.store(word, place)
        several = builder.or_(several, word)
    possible = builder.icmp_unsigned("!=", several, ir.Constant(_int64, 0))
    with builder.if_then(builder.and_(possible, builder.icmp_signed("==", answer, ir.Constant(_int32, 0)))):
        builder.call(put, [this_thread, size, free])
        count = _place(builder, _MOVES)
        builder.atomic_rmw("add", count, ir.Constant(_int64, 1), "monotonic")
        _emit_taking(builder, note)

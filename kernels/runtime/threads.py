"""How many threads a CPU kernel uses, and the parallel driver around a serial kernel.

A kernel is written once, as a serial compiled function over a range of outputs; `threaded` runs it over parts of that
range. Outputs never share a sum, so the results have the same bits for any number of threads, and every reason not to
run in parallel (a forked child, a layer that allows one caller) just means running the same function in one part.

Regions run on the OpenMP runtime that torch uses, or else Numba's (`kernels.runtime.openmp`); a region starts in about
a microsecond and any number of callers may start one, but not a forked child. Where there is no such runtime, or the
user named one of Numba's threading layers, Numba's own regions are used: "tbb" and "omp" take concurrent callers,
"workqueue" ends the process when two Python threads call at once.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import linecache
import os
import sys
import threading
from typing import Any

from kernels.runtime import cache_folder, compile_cache

numba = cache_folder.numba

if numba is not None:
    from llvmlite import ir
    from numba.core import cgutils
    from numba.np.ufunc import parallel as _parallel

    from kernels.runtime import openmp

    parallel: Any = _parallel

_PREFERRED_LAYERS = ["omp", "tbb", "workqueue"]
_NUMBA_DEFAULT_LAYERS = ["tbb", "omp", "workqueue"]
_CONCURRENT_LAYERS = ("omp", "tbb")

# What a parallel call may do; see _State.mode. _TEAMS: on our own OpenMP regions; the next two: on Numba's.
_NOT_LAUNCHED, _TEAMS, _ANY_CALLER, _ONE_CALLER, _SERIAL = range(5)


class _State:
    """The one record of what this process can do. A forked child puts a fresh one in place."""

    __slots__ = ("forked", "launching", "mode", "region")

    def __init__(self, mode: int, forked: bool) -> None:
        self.mode = mode
        self.forked = forked
        # Held while the layer is started or a driver is made, which happens once each.
        self.launching = threading.Lock()
        # Held during a parallel region of a layer that allows one caller.
        self.region = threading.Lock()


_state = _State(_NOT_LAUNCHED, forked=False)


def _after_fork_in_child() -> None:
    # OpenMP's threads did not come along, and a lock may have been held by a thread that did not either.
    global _state
    _state = _State(_SERIAL, forked=True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


# ---------------------------------------------------------------------------------------------------------------
# How many


@functools.cache
def _environment_threads() -> int | None:
    """KERNELS_NUM_THREADS, read once at the first question as OpenMP and Numba read theirs, or None when unset."""
    text = os.environ.get("KERNELS_NUM_THREADS")
    if not text:
        return None
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise ValueError(f"KERNELS_NUM_THREADS must be a whole number of at least 1, got {text!r}")
    return count


def thread_count() -> int:
    """Threads that a large CPU kernel uses now.

    ``KERNELS_NUM_THREADS`` if set; else what torch uses, where torch is loaded (two pools of different size on the same
    cores starve each other); else what Numba uses. Never more than there are processors, than
    ``numba.config.NUMBA_NUM_THREADS`` where the user set that, and than numba.set_num_threads said; 1 in a forked child
    and where nothing can be compiled.

    Raises:
        ValueError: KERNELS_NUM_THREADS is not a whole number of at least 1.
    """
    count = _environment_threads()
    if _state.forked or numba is None:
        return 1
    config = numba.config
    if config.DISABLE_JIT:
        return 1
    limit: int = config.NUMBA_NUM_THREADS
    # getattr: another thread may be in the middle of importing torch.
    ask = getattr(sys.modules.get("torch"), "get_num_threads", None)
    if ask is not None and limit == config.NUMBA_DEFAULT_NUM_THREADS:
        # Numba counts the cores of the thread that imports it, which is one core where OpenMP has bound that thread.
        limit = max(limit, openmp.processors())
    if count is None:
        if ask is not None and openmp.owner() == "numba":
            openmp.follow_torch()
        count = limit if ask is None else ask()
        if parallel._is_initialized:
            allowed: int = parallel._get_num_threads()
            limit = allowed if allowed < config.NUMBA_NUM_THREADS else limit
    return count if count < limit else limit


def threads_for(work: int, grain: int) -> int:
    """Threads for `work` units when fewer than `grain` units a thread are not worth starting one: 1 for small work."""
    shares = work // grain
    if shares <= 1:
        return 1
    count = thread_count()
    return count if count < shares else shares


# ---------------------------------------------------------------------------------------------------------------
# The layer


def threading_layer() -> str | None:
    """Name of the threading layer in use, or None before the first parallel call."""
    if _state.mode == _TEAMS:
        return f"omp, {openmp.owner()}'s"
    if numba is None or not parallel._is_initialized:
        return None
    name: str = numba.threading_layer()
    return name


def _launch() -> int:
    """Starts the threading layer unless it runs, and returns the mode that it allows."""
    state = _state
    with state.launching:
        if state.mode != _NOT_LAUNCHED:
            return state.mode
        config = numba.config
        chosen = str(config.THREADING_LAYER).lower() != "default"
        if not chosen and list(config.THREADING_LAYER_PRIORITY) == _NUMBA_DEFAULT_LAYERS and openmp.connect():
            state.mode = _TEAMS
            return state.mode
        if not chosen and list(config.THREADING_LAYER_PRIORITY) == _NUMBA_DEFAULT_LAYERS:
            # Ours for the length of the launch only; nothing changes for a layer that runs already.
            config.THREADING_LAYER_PRIORITY = _PREFERRED_LAYERS
            try:
                parallel._launch_threads()
            finally:
                config.THREADING_LAYER_PRIORITY = _NUMBA_DEFAULT_LAYERS
        else:
            try:
                parallel._launch_threads()
            except ValueError as error:
                reason = str(error).splitlines()[0]
                raise RuntimeError(
                    "NUMBA_THREADING_LAYER must name a threading layer that loads on this machine, "
                    f"got {config.THREADING_LAYER!r}: {reason}"
                ) from None
        state.mode = _ANY_CALLER if numba.threading_layer() in _CONCURRENT_LAYERS else _ONE_CALLER
        return state.mode


# ---------------------------------------------------------------------------------------------------------------
# The driver

if numba is not None:

    @numba.extending.intrinsic
    def _limit_threads(typing_context, count):
        """numba.set_num_threads without its address in the code, which would keep the driver out of the disk cache."""

        def generate(context, builder, signature, arguments):
            function_type = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])
            function = cgutils.get_or_insert_function(builder.module, function_type, "set_num_threads")
            builder.call(function, [builder.trunc(arguments[0], ir.IntType(32))])
            return context.get_dummy_value()

        return numba.types.void(numba.types.int64), generate


_driver_numbers = itertools.count(1)


_TEAM_LOOP = """
def {name}(total, threads{arguments}):
    # Not more than there are parts: an empty part would still wake a thread.
    parts = min(threads, (total + {align} - 1) // {align})
    run_parts(serial, total, parts, {align}, ({tuple}))
"""

_TEAM_STEPS = """
def {name}(steps, total, threads{arguments}):
    for step in range(steps):
        run_parts(serial, total, min(threads, total), 1, (step, {tuple}))
"""

# Each thread gets a whole number of blocks, none of them no block: serial never sees an empty range. The loop's index
# is unsigned, and unsigned with signed makes float64 in Numba, hence int64().
_NUMBA_LOOP = """
def {name}(total, threads{arguments}):
    blocks = (total + {align} - 1) // {align}
    parts = min(threads, blocks)
    allowed = get_num_threads()
    limit_threads(min(parts, allowed))
    for part in prange(parts):
        index = int64(part)
        first = blocks * index // parts * {align}
        last = min(total, blocks * (index + 1) // parts * {align})
        serial(first, last{arguments})
    limit_threads(allowed)
"""


def _scope_and_source(serial: Any, template: str, leading: int, align: int) -> tuple[str, dict[str, Any], Any]:
    """A driver written out: its name, the names that it sees, and its code.

    It has the arguments of `serial` by name but for the `leading` first ones, and `serial` as a global: Numba passes
    neither a variable number of arguments nor a closure into a parallel loop cheaply.
    """
    parameters = list(inspect.signature(serial.py_func).parameters.values())
    if len(parameters) < leading or any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters):
        raise TypeError(f"a threaded kernel must take (first, last, ...) by position, got {serial.py_func.__name__}")
    name = f"{serial.py_func.__name__}_in_parallel"
    names = [f"argument_{i}" for i in range(len(parameters) - leading)]
    source = template.format(
        name=name, arguments="".join(f", {n}" for n in names), tuple="".join(f"{n}, " for n in names), align=align
    )
    file = f"<driver {next(_driver_numbers)} of {serial.py_func.__module__}.{serial.py_func.__name__}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)  # For Numba's error messages.
    return name, {"__name__": serial.py_func.__module__, "serial": serial}, compile(source, file, "exec")


def _make_team_driver(serial: Any, template: str, leading: int, align: int = 1) -> Any:
    """A driver whose regions are our own, on OpenMP."""
    name, scope, code = _scope_and_source(serial, template, leading, align)
    scope["run_parts"] = openmp.run_parts
    exec(code, scope)
    return compile_cache.jit(scope[name])


def _make_driver(serial: Any, align: int, teams: bool) -> Any:
    """The compiled function (total, threads, *args) that runs `serial` over parts of [0, total) at once.

    `teams`: on our own OpenMP regions.
    """
    if teams:
        return _make_team_driver(serial, _TEAM_LOOP, 2, align)
    name, scope, code = _scope_and_source(serial, _NUMBA_LOOP, 2, align)
    scope |= {
        "prange": numba.prange,
        "int64": numba.int64,
        "get_num_threads": parallel._iget_num_threads,
        "limit_threads": _limit_threads,
    }
    exec(code, scope)
    # Nothing but the loop above may become parallel.
    options = dict.fromkeys(
        ("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil", "fusion"), False
    )
    options["prange"] = True
    driver = numba.njit(nogil=True, error_model="numpy", parallel=options)(scope[name])
    return compile_cache.keep(driver)


class Threaded:
    """A serial kernel that can run in parts at once; made by `threaded`.

    Attributes:
        serial: the kernel itself, ``serial(first, last, *args)``.
        align: parts begin at multiples of this.
    """

    __slots__ = ("_driver", "align", "serial")

    def __init__(self, serial: Any, align: int) -> None:
        self.serial = serial
        self.align = align
        self._driver: Any = None

    def __call__(self, total: int, threads: int, *args: Any) -> None:
        """Computes outputs [0, total) in at most `threads` parts."""
        if threads <= 1 or total <= self.align:
            self.serial(0, total, *args)
        elif _state.mode in (_TEAMS, _ANY_CALLER) and self._driver is not None:
            self._driver(total, threads, *args)
        else:
            self._run_carefully(total, threads, args)

    @property
    def driver(self) -> Any:
        """The compiled parallel driver, ``driver(total, threads, *args)``; made on first use."""
        if self._driver is None:
            with _state.launching:
                if self._driver is None:
                    self._driver = _make_driver(self.serial, self.align, _state.mode == _TEAMS)
        return self._driver

    def _run_carefully(self, total: int, threads: int, args: tuple[Any, ...]) -> None:
        """The first parallel call, a layer that allows one caller, a forked child, and nothing compiled."""
        state = _state
        mode = state.mode
        if mode == _NOT_LAUNCHED:
            mode = _SERIAL if cache_folder.unavailable() is not None else _launch()
        if mode in (_TEAMS, _ANY_CALLER):
            self.driver(total, threads, *args)
        elif mode == _SERIAL or state.region.locked():
            self.serial(0, total, *args)
        else:
            # Two threads can both find it unlocked; the later one then waits for a kernel's time, no harm. It is a
            # plain `with` since an interrupt cannot get between taking the lock and being bound to give it back.
            with state.region:
                self.driver(total, threads, *args)


def threaded(serial: Any, align: int = 1) -> Threaded:
    """Makes ``run(total, threads, *args)`` of a jitted ``serial(first, last, *args)`` that computes outputs
    [first, last) and returns nothing.

    With one thread, or a total of at most `align`, that is ``serial(0, total, *args)``. Else the range is split into
    at most `threads` parts of nearly equal size that run at once; their boundaries must make no difference to the
    results. The driver is compiled at the first parallel call and kept on disk like the kernel. Fewer threads work at
    it where numba.set_num_threads said so. `serial` must not raise.

    Args:
        serial: the kernel, under `jit`; its arguments after `last` are what Numba can pass into a parallel loop
            (arrays, numbers, tuples of them).
        align: parts begin at multiples of this (a vector, a tile, a cache line of outputs).
    """
    if align < 1:
        raise ValueError(f"align must be at least 1, got {align}")
    return Threaded(serial, align)


class Stepped:
    """Steps of a serial kernel, each of which runs in parts at once; made by `stepped`."""

    __slots__ = ("_driver", "serial")

    def __init__(self, serial: Any) -> None:
        self.serial = serial
        self._driver: Any = None

    def __call__(self, steps: int, total: int, threads: int, *args: Any) -> None:
        """``serial(first, last, step, *args)`` over parts of [0, total), for each step in [0, steps) in turn."""
        if self._driver is None:
            with _state.launching:
                if self._driver is None:
                    self._driver = _make_team_driver(self.serial, _TEAM_STEPS, 3)
        self._driver(steps, total, threads, *args)


def stepped(serial: Any) -> Stepped:
    """Makes ``run(steps, total, threads, *args)`` of a jitted ``serial(first, last, step, *args)``.

    All parts of a step have ended when the next one begins. Each step is a region of its own, which pays only where a
    region costs microseconds: call it only where `has_teams` says so. `serial` must not raise.
    """
    return Stepped(serial)


def has_teams() -> bool:
    """Whether regions run on the OpenMP runtime that torch uses, where one starts in a microsecond or two."""
    mode = _state.mode
    if mode == _NOT_LAUNCHED:
        mode = _SERIAL if cache_folder.unavailable() is not None else _launch()
    return mode == _TEAMS

"""`jit`, the decorator of every CPU kernel, and the disk cache behind it.

Numba's own cache looks at the file a function is written in, so a kernel would keep running old code after a helper in
another file changed, and two processes that save at once can leave an index that names the wrong code. This one has
no index. Each compiled signature is one file, in a folder named after a digest of all that code generation depends
on (cache_folder.py). The file's own name comes from the function with everything it refers to (fingerprint.py), so
functions made by ``exec`` and closures are kept apart and found again. Files are written aside and renamed; a damaged
one counts as absent.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import re
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

from kernels.runtime.cache_folder import SUFFIX, choice, numba, unavailable

Function = TypeVar("Function", bound=Callable[..., Any])

if numba is not None:
    from numba.core import caching, sigutils
    from numba.core.compiler import CompileResult
    from numba.core.serialize import dumps

    from kernels.runtime import callees
    from kernels.runtime.fingerprint import fingerprint

    class KernelCache(caching._Cache):
        """Keeps the compiled signatures of one function on disk; Numba calls it under its compiler lock."""

        def __init__(self, dispatcher: Any) -> None:
            self._dispatcher = dispatcher
            self._enabled = True
            self._fingerprint: str | None = None
            self._is_callee = isinstance(dispatcher, callees.Callee)

        @property
        def cache_path(self) -> str | None:
            """The folder in use, for `dispatcher.stats`."""
            folder = choice()[0]
            return None if folder is None else str(folder)

        def enable(self) -> None:
            """Turns the cache on, as it is at first."""
            self._enabled = True

        def disable(self) -> None:
            """Turns the cache off for this function."""
            self._enabled = False

        def flush(self) -> None:
            """Does nothing: to empty the cache, remove its folder."""

        def fingerprint(self) -> str:
            """Of the function, the same for both its forms."""
            if self._is_callee:
                found: str = self._dispatcher.kernel._cache.fingerprint()
                return found
            if self._fingerprint is None:
                function = self._dispatcher.py_func
                self._fingerprint = fingerprint(self._dispatcher)
                # The name goes into the symbols of the compiled code. Numba tells functions of one name apart by a
                # number counted in each process, so code loaded from disk could meet another function of its name and
                # number; with the fingerprint in it, one symbol is one function.
                function.__qualname__ += f"__{self._fingerprint[:12]}"
            return self._fingerprint

        def _locate(self, signature: Any, codegen: Any) -> tuple[Path, str] | None:
            """File and full key of a signature, or None where nothing is kept."""
            folder = choice()[0]
            if folder is None or not self._enabled:
                return None
            function = self._dispatcher.py_func
            arguments, result = sigutils.normalize_signature(signature)
            form = "callee" if self._is_callee else "kernel"
            key = "\n".join([self.fingerprint(), form, repr(arguments), repr(result), repr(codegen.magic_tuple())])
            hashed = hashlib.blake2b(key.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()
            name = re.sub(r"\W+", "_", function.__name__)[:60]
            return folder / f"{name}-{hashed}{SUFFIX}", key

        def load_overload(self, signature: Any, target_context: Any) -> Any:
            """The compiled function kept for `signature`, or None."""
            target_context.refresh()
            try:
                located = self._locate(signature, target_context.codegen())
                if located is None:
                    return None
                path, key = located
                content = path.read_bytes()
                if hashlib.blake2b(content[64:]).digest() != content[:64]:
                    return None
                kept_key, payload = pickle.loads(content[64:])
                if kept_key != key:
                    return None
                rebuild = callees.rebuild if self._is_callee else CompileResult._rebuild
                return rebuild(target_context, *payload)
            except Exception:  # Whatever is wrong with what was kept, compiling again is right.
                return None

        def save_overload(self, signature: Any, result: Any) -> None:
            """Keeps a freshly compiled function, where that can be done."""
            if not self._is_callee:
                callees.fill_environments(result)
            try:
                located = self._locate(signature, result.codegen)
                # An address of this process inside the code, or a part that runs in the interpreter: not for others.
                if located is None or result.library.has_dynamic_globals or any(not x.can_cache for x in result.lifted):
                    return
                path, key = located
                content = dumps((key, result._reduce()))
                content = hashlib.blake2b(content).digest() + content
                path.parent.mkdir(mode=0o700, exist_ok=True)  # Another process may have removed it as an old one.
                aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:16]}")
                try:
                    aside.write_bytes(content)
                    os.replace(aside, path)
                finally:
                    aside.unlink(missing_ok=True)
            except Exception:  # A full disk or an object that does not pickle: the function runs, it is only not kept.
                return


@overload
def jit(function: Function) -> Function: ...


@overload
def jit(*, inline: str = "never", forceinline: bool = False) -> Callable[[Function], Function]: ...


def jit(function: Any = None, *, inline: str = "never", forceinline: bool = False) -> Any:
    """Compiles a CPU kernel, as ``@jit`` or ``@jit(inline=..., ...)``, and keeps the code on disk.

    It is `numba.njit` without the GIL, with NumPy's rules for division, and without fastmath, since kernels promise
    IEEE results for NaN and infinities. Where nothing can be compiled (`unavailable`) the function comes back as it is.

    Args:
        function: the Python function.
        inline: "always" pastes the body into callers before types are known, so that constants reach it.
        forceinline: True tells LLVM to inline the compiled function into its callers.
    """
    if function is None:
        return functools.partial(jit, inline=inline, forceinline=forceinline)
    if unavailable() is not None:
        return function
    options = {
        "nopython": True,
        "nogil": True,
        "error_model": "numpy",
        "inline": inline,
        "forceinline": forceinline,
    }
    return keep(callees.Kernel(function, targetoptions=options, pipeline_class=callees.KernelCompiler))


def keep(dispatcher: Any) -> Any:
    """Gives a function jitted by other means (with ``parallel=``, say) the disk cache, and returns it."""
    function = dispatcher.py_func
    if sys.modules.get(function.__module__) is None:
        # Made by exec for no module: Numba imports a function's module when it loads the code.
        function.__module__ = __name__
    dispatcher._cache = KernelCache(dispatcher)
    return dispatcher

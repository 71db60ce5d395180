"""`jit`, the decorator of every CPU kernel, and the disk cache behind it.

Numba's own cache looks at the file a function is written in, so a kernel would keep running old code after a helper in
another file changed, and two processes that save at once can leave an index that names the wrong code. This one has
no index. Each compiled signature is one file, in a folder named after a digest of all that code generation depends
on: every source file of the package, the versions, the processor, the compiler settings. The file's own name comes
from the function with everything it refers to (`fingerprint`), so functions made by ``exec`` and closures are kept
apart and found again. Files are written aside and renamed; a damaged one counts as absent.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import os
import pickle
import platform
import re
import shutil
import stat
import sys
import tempfile
import types
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

numba: Any = None
IMPORT_ERROR: str | None = None
"""Why numba cannot be imported, or None."""
try:
    import numba
    from numba.core import caching, sigutils
    from numba.core.compiler import CompileResult
    from numba.core.dispatcher import Dispatcher
    from numba.core.extending import _Intrinsic
    from numba.core.serialize import dumps
except Exception as error:  # Not ImportError alone: a broken llvmlite raises OSError, a wrong NumPy SystemError.
    numba = None
    IMPORT_ERROR = f"{type(error).__name__}: {error}"

Function = TypeVar("Function", bound=Callable[..., Any])

KEPT_DIGESTS = 4
"""Folders of other sources, versions or settings kept beside the current one, so that switching back is warm."""

_PACKAGE = __name__.split(".")[0]
_PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
_DIGEST_FOLDER_NAME = re.compile(r"[0-9a-f]{32}")
_SUFFIX = ".kernel"
# Settings of Numba that change the machine code but are not part of a function's signature.
_CODE_SETTINGS = (
    "OPT",
    "LOOP_VECTORIZE",
    "SLP_VECTORIZE",
    "ENABLE_AVX",
    "BOUNDSCHECK",
    "DEBUGINFO_DEFAULT",
    "FULL_TRACEBACKS",
    "USING_SVML",
    "LLVM_PASS_TIMINGS",
    "LLVM_REFPRUNE_PASS",
    "LLVM_REFPRUNE_FLAGS",
)


def unavailable() -> str | None:
    """Why nothing can be compiled in this process, or None."""
    if numba is None:
        return f"numba cannot be imported: {IMPORT_ERROR}"
    if numba.config.DISABLE_JIT:
        return "NUMBA_DISABLE_JIT is set: compiled kernels are off"
    return None


# ---------------------------------------------------------------------------------------------------------------
# The digest: what all kernels together depend on


def _read_sources(folder: Path) -> str | None:
    """Digest of every .py file below `folder`, names and contents, or None where none can be read."""
    digest = hashlib.blake2b()
    try:
        sources = sorted(
            os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names if name.endswith(".py")
        )
        for source in sources:
            with open(source, "rb", buffering=0) as file:
                content = file.read()
            digest.update(f"{source[len(str(folder)) :]}\0{len(content)}\0".encode())
            digest.update(content)
    except OSError:
        return None
    return digest.hexdigest() if sources else None


# Read when this module is imported (about 2 ms for 100 files), not when the first kernel compiles: a file edited in
# between would put code of the old version under the digest of the new one.
_SOURCES = _read_sources(_PACKAGE_FOLDER)


def processor() -> tuple[str, str]:
    """Name and feature string of the processor that code is compiled for, as Numba decides them."""
    from llvmlite import binding
    from numba.core.codegen import get_host_cpu_features

    config = numba.config
    name = binding.get_host_cpu_name() if config.CPU_NAME is None else config.CPU_NAME
    return name, get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES


@functools.cache
def digest() -> str | None:
    """Name of the cache's sub-folder: 32 hex digits, or None where the package's sources cannot be read."""
    if _SOURCES is None or numba is None:
        return None
    import llvmlite

    facts = [
        _SOURCES,
        numba.__version__,
        llvmlite.__version__,
        np.__version__,
        sys.version,
        sys.implementation.cache_tag,
        platform.machine(),
        *processor(),
        *(f"{name}={getattr(numba.config, name, None)}" for name in _CODE_SETTINGS),
    ]
    return hashlib.blake2b("\0".join(map(str, facts)).encode(), digest_size=16).hexdigest()


# ---------------------------------------------------------------------------------------------------------------
# The folder


@dataclasses.dataclass(frozen=True)
class CacheState:
    """Where compiled kernels are kept.

    Attributes:
        folder: the folder in use, or None where nothing is kept.
        reason: why this folder, or why none.
        writable: whether this process can add to it.
        entries: compiled signatures in it.
        digest: name of the sub-folder, a digest of sources, versions, processor and settings.
    """

    folder: str | None
    reason: str
    writable: bool
    entries: int
    digest: str | None


class _Unusable(Exception):
    """Why a folder cannot hold the cache."""


def _user() -> int | None:
    return os.geteuid() if hasattr(os, "geteuid") else None


def _own(folder: Path, forbidden: int) -> None:
    """Makes `folder` and checks that it is ours alone; what lies in it is unpickled, so a stranger's would run code."""
    try:
        os.makedirs(folder.parent, exist_ok=True)
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            pass
        found = os.lstat(folder)
    except OSError as error:
        raise _Unusable(f"{folder} cannot be made ({error.strerror or error})") from None
    if not stat.S_ISDIR(found.st_mode):
        raise _Unusable(f"{folder} is not a folder")
    user = _user()
    if user is not None and found.st_uid != user:
        raise _Unusable(f"{folder} belongs to another user")
    if user is not None and found.st_mode & forbidden:
        raise _Unusable(f"{folder} is open to other users")


def _check_parents(folder: Path) -> None:
    """Refuses a default folder inside another user's home, as under sudo with HOME kept: both would trip over it."""
    user = _user()
    if user is None:
        return
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    if existing is not None:
        found = existing.stat()
        if found.st_uid not in (user, 0) and not found.st_mode & stat.S_ISVTX:
            raise _Unusable(f"{existing} belongs to another user")


def _usable(base: Path, name: str) -> Path:
    """The sub-folder `name` of `base`, made, checked and tried by writing to it."""
    folder = base / name
    _own(folder, 0o022)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        os.utime(folder)  # The age that _prune goes by.
    except OSError as error:
        raise _Unusable(f"{folder} cannot be written ({error.strerror or error})") from None
    return folder


def _default_base() -> Path:
    """The platform's folder for caches, with ours in it."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser(r"~\AppData\Local")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME", "")
        if not os.path.isabs(base):  # The XDG rule: a relative path counts as unset.
            base = os.path.expanduser("~/.cache")
    if not os.path.isabs(base):
        raise _Unusable("there is no home folder")
    folder = Path(base, "nnlib-kernels")
    _check_parents(folder)
    return folder


def _temporary_base() -> Path:
    """A folder of this user's own among the temporary files."""
    user = _user()
    try:
        folder = Path(tempfile.gettempdir(), f"nnlib-kernels-{'user' if user is None else user}")
    except OSError as error:
        raise _Unusable(f"there is no temporary folder ({error})") from None
    _own(folder, 0o077)
    return folder


def _prune(base: Path, current: Path) -> None:
    """Removes the digests least recently used; another process that still uses one merely compiles again."""
    try:
        others = [
            (entry.stat(follow_symlinks=False).st_mtime, entry.path)
            for entry in os.scandir(base)
            if _DIGEST_FOLDER_NAME.fullmatch(entry.name)
            and entry.is_dir(follow_symlinks=False)
            and entry.name != current.name
        ]
    except OSError:
        return
    for _, path in sorted(others, reverse=True)[KEPT_DIGESTS:]:
        shutil.rmtree(path, ignore_errors=True)


def _find_folder() -> tuple[Path | None, str]:
    """The folder to use with the reason for it, or None with the reasons against every candidate."""
    name = digest()
    if name is None:
        return None, f"not kept on disk: the sources of {_PACKAGE} cannot be read"
    given = os.environ.get("KERNELS_CACHE_DIR")
    candidates: list[tuple[str, Callable[[], Path]]] = [("temporary folder of this user", _temporary_base)]
    if given:
        candidates.insert(0, ("KERNELS_CACHE_DIR", lambda: Path(os.path.abspath(os.path.expanduser(given)))))
    else:
        candidates.insert(0, ("the user's cache folder", _default_base))
    against: list[str] = []
    for label, base in candidates:
        try:
            root = base()
            folder = _usable(root, name)
        except (_Unusable, OSError, ValueError) as error:  # ValueError: a path with a NUL in it.
            against.append(f"{label}: {error}")
            continue
        _prune(root, folder)
        return folder, "; ".join([label, *against])
    return None, "; ".join(["not kept on disk", *against])


@functools.cache
def _choice() -> tuple[Path | None, str]:
    return _find_folder()


def cache_state() -> CacheState:
    """Where compiled kernels are kept, and why there. Makes the folder when it is not there yet."""
    why = unavailable()
    if why is not None:
        return CacheState(None, why, False, 0, None)
    folder, reason = _choice()
    if folder is None:
        return CacheState(None, reason, False, 0, digest())
    try:
        entries = sum(name.endswith(_SUFFIX) for name in os.listdir(folder))
    except OSError:
        entries = 0
    return CacheState(str(folder), reason, os.access(folder, os.W_OK), entries, digest())


# ---------------------------------------------------------------------------------------------------------------
# The fingerprint: what one kernel depends on beyond its file


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


# ---------------------------------------------------------------------------------------------------------------
# The cache of one function

if numba is not None:

    class KernelCache(caching._Cache):
        """Keeps the compiled signatures of one function on disk; Numba calls it under its compiler lock."""

        def __init__(self, dispatcher: Any) -> None:
            self._dispatcher = dispatcher
            self._enabled = True
            self._fingerprint: str | None = None

        @property
        def cache_path(self) -> str | None:
            """The folder in use, for `dispatcher.stats`."""
            folder = _choice()[0]
            return None if folder is None else str(folder)

        def enable(self) -> None:
            """Turns the cache on, as it is at first."""
            self._enabled = True

        def disable(self) -> None:
            """Turns the cache off for this function."""
            self._enabled = False

        def flush(self) -> None:
            """Does nothing: to empty the cache, remove its folder."""

        def _locate(self, signature: Any, codegen: Any) -> tuple[Path, str] | None:
            """File and full key of a signature, or None where nothing is kept."""
            folder = _choice()[0]
            if folder is None or not self._enabled:
                return None
            function = self._dispatcher.py_func
            if self._fingerprint is None:
                self._fingerprint = fingerprint(self._dispatcher)
                # The name goes into the symbols of the compiled code. Numba tells functions of one name apart by a
                # number counted in each process, so code loaded from disk could meet another function of its name and
                # number; with the fingerprint in it, one symbol is one function.
                function.__qualname__ += f"__{self._fingerprint[:12]}"
            arguments, result = sigutils.normalize_signature(signature)
            key = "\n".join([self._fingerprint, repr(arguments), repr(result), repr(codegen.magic_tuple())])
            hashed = hashlib.blake2b(key.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()
            name = re.sub(r"\W+", "_", function.__name__)[:60]
            return folder / f"{name}-{hashed}{_SUFFIX}", key

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
                return CompileResult._rebuild(target_context, *payload)
            except Exception:  # Whatever is wrong with what was kept, compiling again is right.
                return None

        def save_overload(self, signature: Any, result: Any) -> None:
            """Keeps a freshly compiled function, where that can be done."""
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
def jit(*, inline: str = "never", forceinline: bool = False, inner: bool = False) -> Callable[[Function], Function]: ...


def jit(function: Any = None, *, inline: str = "never", forceinline: bool = False, inner: bool = False) -> Any:
    """Compiles a CPU kernel, as ``@jit`` or ``@jit(inline=..., ...)``, and keeps the code on disk.

    It is `numba.njit` without the GIL, with NumPy's rules for division, and without fastmath, since kernels promise
    IEEE results for NaN and infinities. Where nothing can be compiled (`unavailable`) the function comes back as it is.

    Args:
        function: the Python function.
        inline: "always" pastes the body into callers before types are known, so that constants reach it.
        forceinline: True tells LLVM to inline the compiled function into its callers.
        inner: True for a function that only compiled code calls: no entry from Python is made, which is a fifth of the
            time that a small one takes to compile.
    """
    if function is None:
        return functools.partial(jit, inline=inline, forceinline=forceinline, inner=inner)
    if unavailable() is not None:
        return function
    compiled = numba.njit(
        nogil=True,
        error_model="numpy",
        inline=inline,
        forceinline=forceinline,
        no_cpython_wrapper=inner,
        no_cfunc_wrapper=inner,
    )(function)
    return keep(compiled)


def keep(dispatcher: Any) -> Any:
    """Gives a function jitted by other means (with ``parallel=``, say) the disk cache, and returns it."""
    function = dispatcher.py_func
    if sys.modules.get(function.__module__) is None:
        # Made by exec for no module: Numba imports a function's module when it loads the code.
        function.__module__ = __name__
    dispatcher._cache = KernelCache(dispatcher)
    return dispatcher

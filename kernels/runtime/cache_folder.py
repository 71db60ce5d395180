"""Where compiled kernels are kept on disk: a folder named after a digest of all that code generation depends on.

That is every source file of the package, the versions, the processor and the compiler settings: a folder's files are
right for whoever finds the folder. It must belong to this user alone, since what is in it will be run.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

numba: Any = None
IMPORT_ERROR: str | None = None
"""Why numba cannot be imported, or None."""
try:
    import numba
except Exception as error:  # Not ImportError alone: a broken llvmlite raises OSError, a wrong NumPy SystemError.
    numba = None
    IMPORT_ERROR = f"{type(error).__name__}: {error}"

KEPT_DIGESTS = 4
"""Folders of other sources, versions or settings kept beside the current one, so that switching back is warm."""

SUFFIX = ".kernel"
"""Of a file with one compiled signature."""

_PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
_DIGEST_FOLDER_NAME = re.compile(r"[0-9a-f]{32}")
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
        return None, f"not kept on disk: the sources of {_PACKAGE_FOLDER.name} cannot be read"
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
def choice() -> tuple[Path | None, str]:
    return _find_folder()


def cache_state() -> CacheState:
    """Where compiled kernels are kept, and why there. Makes the folder when it is not there yet."""
    why = unavailable()
    if why is not None:
        return CacheState(None, why, False, 0, None)
    folder, reason = choice()
    if folder is None:
        return CacheState(None, reason, False, 0, digest())
    try:
        entries = sum(name.endswith(SUFFIX) for name in os.listdir(folder))
    except OSError:
        entries = 0
    return CacheState(str(folder), reason, os.access(folder, os.W_OK), entries, digest())

"""Which tile a GPU kernel takes: the tile function's, unless a `with` block asks for another or one was found faster.

The tile functions know what fits and what is usual; `kernels.tune` tries their neighbours on a real GPU and keeps the
fastest in a file beside the compiled CPU code, by GPU, kernel and call. The folder belongs to one version of the
sources, so a choice is never used with other kernels than those it was measured with. Nothing here needs a GPU.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from kernels.arrays import ArraySpec

if TYPE_CHECKING:
    from kernels.op import Problem
    from kernels.runtime.targets import Target


class Tile(Protocol):
    """A frozen dataclass of numbers."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    #: By name of what may be tried: its least and largest value. `stages` goes by ones, all else by powers of two.
    LIMITS: ClassVar[dict[str, tuple[int, int]]]


T = TypeVar("T", bound=Tile)

_asked: ContextVar[dict[type, Any]] = ContextVar("asked_tiles", default={})  # noqa: B039 (never changed in place)


@contextmanager
def use_tile(tile: Any) -> Iterator[None]:
    """Take this tile for every kernel inside the block that takes tiles of its kind."""
    token = _asked.set({**_asked.get(), type(tile): tile})
    try:
        yield
    finally:
        _asked.reset(token)


def asked(kind: type[T]) -> T | None:
    """The tile of a kind that the innermost `use_tile` asks for."""
    return _asked.get().get(kind)


# ----- a call's tiles ----------------------------------------------------------------------------------------------


@dataclass
class Trial:
    """Tiles to try, by kernel, and what the kernels of a call have asked for: key, and the tile function's choice."""

    tiles: dict[str, Any] = field(default_factory=dict)
    seen: dict[str, tuple[str, Any]] = field(default_factory=dict)


_trial: ContextVar[Trial | None] = ContextVar("tile_trial", default=None)


@contextmanager
def trying(trial: Trial) -> Iterator[None]:
    """Kernels inside the block take the trial's tiles."""
    token = _trial.set(trial)
    try:
        yield
    finally:
        _trial.reset(token)


def choose(kernel: str, problem: Problem, target: Target, default: T) -> T:
    """The tile of a kernel.

    Args:
        kernel: a name for this use of tiles, unique within the op.
        problem: the call.
        target: the GPU.
        default: what the tile function says.
    """
    trial = _trial.get()
    if trial is not None:
        trial.seen[kernel] = key(kernel, problem, target), default
        return trial.tiles.get(kernel, default)
    known = stored()
    if not known or asked(type(default)) is not None:
        return default
    found = known.get(key(kernel, problem, target))
    return default if found is None else type(default)(**found)


@functools.lru_cache(maxsize=4096)
def key(kernel: str, problem: Problem, target: Target) -> str:
    """Target, kernel, and the call: arrays with their layouts, and attributes."""
    parts = [target.name, kernel, type(problem).__name__]
    for each in fields(problem):
        value = getattr(problem, each.name)
        if isinstance(value, ArraySpec):
            layout = "" if value.strides is None else f" strides {value.strides}"
            parts.append(f"{each.name} {value.dtype} {value.shape}{layout}")
        elif each.name != "needs_grad":
            parts.append(f"{each.name} {value!r}")
    return " | ".join(parts)


# ----- what was found ----------------------------------------------------------------------------------------------

FILE = "tiles.json"


def _path() -> Path | None:
    from kernels.runtime import cache_folder  # brings Numba, which a look at the declarations does not need

    folder, _ = cache_folder.choice()
    return None if folder is None else folder / FILE


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warnings.warn(f"{path} cannot be read ({error}): tiles are the tile functions'", stacklevel=3)
        return {}
    if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
        warnings.warn(f"{path} holds no tiles: they are the tile functions'", stacklevel=3)
        return {}
    return found


@functools.cache
def stored() -> dict[str, dict[str, Any]]:
    """The tiles that were found faster, by key; read once a process."""
    path = _path()
    return {} if path is None else _read(path)


def store(found: dict[str, Any]) -> Path | None:
    """Keep tiles by key, beside those that are there.

    Returns:
        the file; None where there is no folder that can keep it, when this process alone knows them.
    """
    stored().update({k: asdict(tile) for k, tile in found.items()})
    path = _path()
    if path is None:
        return None
    merged = {**_read(path), **{k: asdict(tile) for k, tile in found.items()}}
    # Another process reads a whole file or the one before.
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
        json.dump(merged, file, indent=1, sort_keys=True)
    os.replace(file.name, path)
    return path


# ----- the search --------------------------------------------------------------------------------------------------


def neighbours(tile: T) -> list[T]:
    """The tiles that differ in one number: half and twice of it, for `stages` one less and one more."""
    found = []
    for name, (least, most) in tile.LIMITS.items():
        now = getattr(tile, name)
        steps = (now - 1, now + 1) if name == "stages" else (now // 2, now * 2)
        found += [replace(tile, **{name: n}) for n in steps if least <= n <= most]
    return found


def fastest(tile: T, seconds: Callable[[T], float]) -> tuple[T, dict[T, float]]:
    """Go from a tile to its fastest neighbour until none is faster.

    Args:
        tile: where to begin; it wins all ties.
        seconds: asked once for each tile; infinite for one that does not fit.

    Returns:
        (the fastest, the seconds of every tile that was tried).
    """
    times = {tile: seconds(tile)}
    while True:
        near = neighbours(tile)
        for each in near:
            if each not in times:
                times[each] = seconds(each)
        best = min((tile, *near), key=times.__getitem__)
        if times[best] >= times[tile]:
            return tile, times
        tile = best

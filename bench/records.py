"""What a run writes down, and the JSON file it is kept in."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.limits import Limits
from bench.timing import Quartiles

#: Of the file; a reader refuses any other.
FORMAT = "nnlib-kernels bench 1"

TIMED, WRONG, UNSUPPORTED, FAILED = "timed", "wrong", "unsupported", "failed"
STATUSES = (TIMED, WRONG, UNSUPPORTED, FAILED)


@dataclass(frozen=True)
class Measurement:
    """One case on one provider.

    Attributes:
        op, name: the case; `family` is the package that its op belongs to.
        dtype, passes, threads, layout: how it was run; passes is "forward" or "training" (forward and backward).
        provider: which engine.
        status: "timed"; "wrong": outside the error budget, so without a time; "unsupported": the engine has no such
            op; "failed": it raised.
        reason: of any other status than "timed", in one line; else a remark, often empty.
        seconds: of one call, quartiles over the rounds.
        eager_ratio: PyTorch eager's time as a multiple of this one's (above 1: faster than eager), by rounds.
        peer_ratio: the same against the fastest of all engines but ours; `best_peer` names it.
        rounds: how many rounds were timed.
        flops, bytes_moved: what the op declares for the work.
        bound: "flops" or "bytes": which of this machine's limits is the nearer one.
        limit_share: the time that this limit would allow as a share of the time taken.
        memory: peak extra bytes of one call, results included; None where unknown.
        memory_kind: "asked" or "resident", see `bench.memory`.
    """

    op: str
    name: str
    family: str
    dtype: str
    passes: str
    threads: int
    layout: str
    provider: str
    status: str
    reason: str = ""
    seconds: Quartiles | None = None
    eager_ratio: Quartiles | None = None
    peer_ratio: Quartiles | None = None
    best_peer: str | None = None
    rounds: int = 0
    flops: int = 0
    bytes_moved: int = 0
    bound: str = ""
    limit_share: float | None = None
    memory: int | None = None
    memory_kind: str = ""

    @property
    def key(self) -> tuple[str, str, str, str, int, str, str]:
        """What identifies it in a run."""
        return self.op, self.name, self.dtype, self.passes, self.threads, self.layout, self.provider

    @property
    def group(self) -> tuple[str, str, str, str, int, str]:
        """What the measurements of one case on all providers have in common."""
        return self.op, self.name, self.dtype, self.passes, self.threads, self.layout

    @property
    def rate(self) -> tuple[float, str] | None:
        """GFLOP/s or GB/s, whichever limit is the nearer one; None without a time."""
        if self.seconds is None or not self.bound:
            return None
        work, unit = (self.flops, "GFLOP/s") if self.bound == "flops" else (self.bytes_moved, "GB/s")
        return work / self.seconds.median / 1e9, unit


@dataclass(frozen=True)
class Run:
    """One run of the benchmarks: where, how, and what came out."""

    created: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    limits: list[Limits] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def limits_of(self, threads: int, dtype: str) -> Limits | None:
        """The machine's limits at a number of threads."""
        return next((found for found in self.limits if (found.threads, found.dtype) == (threads, dtype)), None)


def save(run: Run, path: Path) -> None:
    """Write a run as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": FORMAT, **dataclasses.asdict(run)}, indent=1, allow_nan=False) + "\n")


def load(path: Path) -> Run:
    """Read a run.

    Raises:
        ValueError: the file is missing, no JSON, or no run of this format; says which.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ValueError(f"{path}: not a result of this program (its format must be {FORMAT!r})")
    try:
        run: Run = _build(Run, content)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    return run


def _build(kind: Any, value: Any) -> Any:
    """`value` from JSON as an object of the annotated type `kind`, checked on the way."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (inner,) = (a for a in arguments if a is not type(None))
        return _build(inner, value)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise TypeError(f"{kind} must be an object, got {value!r:.60}")
        hints = typing.get_type_hints(kind)
        unknown = set(value) - set(hints)
        if unknown:
            raise ValueError(f"unknown field {', '.join(sorted(unknown))}")
        made: Any = kind
        return made(**{name: _build(hints[name], item) for name, item in value.items()})
    if origin is list:
        return [_build(arguments[0], item) for item in value]
    if origin is dict:
        return {_build(arguments[0], name): _build(arguments[1], item) for name, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, str):  # JSON's object names are strings.
        return int(value)
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.60} must be of type {kind.__name__}")
    return value

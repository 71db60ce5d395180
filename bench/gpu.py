"""``python -m bench gpu``: the GPU backends beside torch's own functions (cuDNN, SDPA, cuBLAS), timed by CUDA events.

Gate, then time: what is farther from torch's own float64 answer on the same numbers than twice torch's error in the
same dtype, plus a few units in the last place, gets no time. The contestants run in turn, each call with a cold L2
cache between two events on one stream, so that the time is the GPU's alone; ratios are taken within a round.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

import kernels
from bench.providers.eager import torch_function
from bench.providers.tensors import tensors_of
from bench.timing import MAX_ROUNDS, MIN_ROUNDS, Quartiles, ratios
from bench.workload import Workload, results_of
from kernels.backends import BACKENDS
from kernels.case import Case

Function = Callable[..., Any]
Tensors = Sequence[torch.Tensor]
BAND, FACTOR = 4, 2
#: Bytes that are overwritten between two calls: more than any GPU's second-level cache.
FLUSHED = 256 << 20
TIMED, WRONG, FAILED = "timed", "wrong", "failed"


class Clock(Protocol):
    """How a call is timed."""

    def seconds(self, run: Callable[[], Any]) -> float:
        """Of one call."""
        ...


class EventClock:
    """Two events around a call on torch's current stream."""

    def __init__(self) -> None:
        self._cache = torch.empty(FLUSHED, dtype=torch.int8, device="cuda")

    def seconds(self, run: Callable[[], Any]) -> float:
        """Of one call, with nothing of its arrays in the cache."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._cache.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


@dataclass(frozen=True)
class Row:
    """One case on one contestant.

    Attributes:
        case, dtype, passes: what ran; passes is "forward" or "training".
        provider: "triton", "cupy" or "torch" (its own function).
        status: "timed", "wrong" or "failed".
        note: why not.
        seconds: of a call.
        ratio: torch's time divided by this one's, round by round; None where torch has no time.
    """

    case: str
    dtype: str
    passes: str
    provider: str
    status: str
    note: str = ""
    seconds: Quartiles | None = None
    ratio: Quartiles | None = None


def missing() -> str | None:
    """Why nothing can be timed here, or None."""
    return None if torch.cuda.is_available() else "torch finds no CUDA device or driver"


def _arguments(case: Case, dtype: torch.dtype, training: bool, device: str) -> dict[str, Any]:
    made = tensors_of(Workload(case, "float32", training))
    found = {}
    for name, value in made.items():
        if isinstance(value, torch.Tensor):
            wants = value.requires_grad
            value = value.detach().to(device, dtype if value.is_floating_point() else None).requires_grad_(wants)
        found[name] = value
    return found


def _run(function: Function, arguments: Mapping[str, Any], wanted: Sequence[str], incoming: Any) -> tuple[Any, ...]:
    """Results, and the gradients of `wanted`."""
    results = results_of(function(**arguments))
    if not wanted:
        return results
    if not incoming:
        incoming += [torch.randn_like(r) for r in results if r.requires_grad]
    flowing = [r for r in results if r.requires_grad]
    given = [gradient.to(result) for gradient, result in zip(incoming, flowing)]
    return (*results, *torch.autograd.grad(flowing, [arguments[name] for name in wanted], given))


def complaint(found: Tensors, theirs: Tensors, exact: Tensors) -> str | None:
    """What is wrong with an answer, in one line; None when it is within the budget."""
    for i, (mine, their, right) in enumerate(zip(found, theirs, exact, strict=True)):
        if not mine.is_floating_point():
            if not torch.equal(mine, right.to(mine.dtype)):
                return f"array {i}: wrong integers"
            continue
        finite = torch.isfinite(right)
        if not torch.equal(torch.isfinite(mine), finite):
            return f"array {i}: NaN or infinity in other places"
        if not bool(finite.any()):
            continue
        scale = float(right[finite].abs().max())
        errors = [float((a.double() - right)[finite].abs().max()) for a in (mine, their)]
        allowed = FACTOR * errors[1] + BAND * scale * torch.finfo(mine.dtype).eps
        if errors[0] > allowed:
            return f"array {i}: error {errors[0]:.3g} exceeds {allowed:.3g}"
    return None


def measure(
    case: Case, dtype: torch.dtype, training: bool, names: Sequence[str], seconds: float, clock: Clock,
    device: str = "cuda",
) -> list[Row]:  # fmt: skip
    """A row for each contestant that has the op.

    Args:
        case: the call.
        dtype: of its floating-point arrays.
        training: forward and backward.
        names: of "triton", "cupy" and "torch".
        seconds: to time them for, all together.
        clock: times a call.
        device: where the arrays are.
    """
    workload = Workload(case, "float32", training)
    public = getattr(kernels, case.op)
    stock = torch_function(workload) or functools.partial(public, backend="torch")
    functions = {n: stock if n == "torch" else functools.partial(public, backend=n) for n in names}
    wanted = workload.wanted if training else ()
    incoming: list[torch.Tensor] = []
    row = functools.partial(Row, case.id, str(dtype).removeprefix("torch."), workload.passes)
    double = {name: _as_double(value) for name, value in _arguments(case, dtype, training, device).items()}
    try:
        exact = _run(stock, double, wanted, incoming)
        theirs = _run(stock, _arguments(case, dtype, training, device), wanted, incoming)
    except (RuntimeError, TypeError, ValueError) as error:
        return [row("torch", FAILED, _first_line(error))]
    rows, ready = [], {}
    for name, function in functions.items():
        arguments = _arguments(case, dtype, training, device)
        try:
            found = _run(function, arguments, wanted, incoming)
        except (RuntimeError, NotImplementedError) as error:  # BackendError too: it says why it cannot run this
            rows.append(row(name, FAILED, _first_line(error)))
            continue
        wrong = complaint([f.detach() for f in found], [t.detach() for t in theirs], [e.detach() for e in exact])
        if wrong is not None:
            rows.append(row(name, WRONG, wrong))
            continue
        ready[name] = functools.partial(_run, function, arguments, wanted, incoming)
    times = in_turn(ready, seconds, clock)
    for name, sample in times.items():
        beside = ratios(times["torch"], sample) if "torch" in times else None
        rows.append(row(name, TIMED, seconds=Quartiles.of(sample), ratio=beside))
    return rows


def _as_double(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    return value.detach().double().requires_grad_(value.requires_grad)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__


def in_turn(ready: Mapping[str, Callable[[], Any]], seconds: float, clock: Clock) -> dict[str, list[float]]:
    """Seconds of each round, by contestant; every second round the other way round."""
    samples: dict[str, list[float]] = {name: [] for name in ready}
    order, spent = list(ready), 0.0
    for run in ready.values():
        clock.seconds(run)  # the first calls set up workspaces
    for done in range(MAX_ROUNDS if ready else 0):
        if done >= MIN_ROUNDS and spent >= seconds:
            break
        for name in order:
            took = clock.seconds(ready[name])
            samples[name].append(took)
            spent += took
        order.reverse()
    return samples


def run(
    cases: Sequence[Case], dtypes: Sequence[str], passes: Sequence[str], names: Sequence[str], seconds: float,
    clock: Clock, device: str = "cuda",
) -> list[Row]:  # fmt: skip
    """All rows, printed as they come."""
    rows: list[Row] = []
    for case in cases:
        for dtype in dtypes:
            for each in passes:
                found = measure(case, getattr(torch, dtype), each == "training", names, seconds, clock, device)
                for made in found:
                    print(line(made), flush=True)
                rows += found
    return rows


def line(row: Row) -> str:
    """A row in words."""
    head = f"{row.case} [{row.passes}, {row.dtype}] {row.provider}: "
    if row.seconds is None:
        return f"{head}{row.status}, {row.note}"
    beside = "" if row.ratio is None or row.provider == "torch" else f", {row.ratio.median:.2f} x torch"
    return f"{head}{row.seconds.median * 1e6:.1f} us{beside}"


def save(rows: Sequence[Row], path: Path) -> None:
    """The rows and the machine they belong to, as JSON."""
    cuda = torch.cuda.is_available()
    facts = {"torch": torch.__version__, "device": torch.cuda.get_device_name() if cuda else "cpu"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": facts, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def backends() -> tuple[str, ...]:
    """The contestants that can run here; torch's own functions last."""
    ours = [b.name for b in BACKENDS.values() if b.devices == ("cuda",) and b.missing() is None]
    return (*ours, "torch")

"""``python -m bench gpu``: the GPU backends beside torch's own functions (cuDNN, SDPA, cuBLAS), timed by CUDA events.

Gate, then time: what is farther from torch's own float64 answer on the same numbers than twice torch's error in the
same dtype, plus a few units in the last place, gets no time. The contestants run in turn, each call with a cold L2
cache between two events on one stream. The GPU is kept busy until the call has been queued, so that the time is the
GPU's alone; what the call takes of the host is told beside it. Ratios are taken within a round.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

import kernels
from bench.gpu_sizes import Sized
from bench.providers.eager import is_random, torch_function
from bench.providers.tensors import as_tensor
from bench.timing import MAX_ROUNDS, MIN_ROUNDS, Quartiles, ratios
from bench.workload import Workload, results_of
from kernels.backends import BACKENDS
from kernels.case import Case

Function = Callable[..., Any]
Tensors = Sequence[torch.Tensor]
BAND, FACTOR = 4, 2
#: The factor of convolutions that torch is set to multiply as tf32: cuDNN rounds to it, Triton leaves digits away.
TF32_FACTOR = 4
#: Bytes that are overwritten between two calls: more than any GPU's second-level cache.
FLUSHED = 256 << 20
#: The GPU is kept busy for so many times what the host took for the call before.
HOST_MARGIN = 2.0
TIMED, WRONG, FAILED = "timed", "wrong", "failed"


class Clock(Protocol):
    """How a call is timed."""

    def seconds(self, run: Callable[[], Any]) -> tuple[float, float]:
        """Of one call: on the GPU, and until it returned on the host."""
        ...


class EventClock:
    """Two events around a call on torch's current stream."""

    def __init__(self) -> None:
        self._cache = torch.empty(FLUSHED, dtype=torch.int8, device="cuda")
        self._host: dict[Callable[[], Any], float] = {}
        self._fill = min(self._between(self._cache.zero_) for _ in range(10))

    def _between(self, run: Callable[[], Any]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def seconds(self, run: Callable[[], Any]) -> tuple[float, float]:
        """Of one call, with nothing of its arrays in the cache, and the GPU busy until the host is done."""
        for _ in range(2 + int(HOST_MARGIN * self._host.get(run, 0.0) / self._fill)):
            self._cache.zero_()
        host = 0.0

        def timed() -> None:
            nonlocal host
            began = time.perf_counter()
            run()
            host = time.perf_counter() - began

        device = self._between(timed)
        self._host[run] = host
        return device, host


@dataclass(frozen=True)
class Row:
    """One case on one contestant.

    Attributes:
        case, dtype, passes: what ran; passes is "forward" or "training".
        provider: "triton", "cupy" or "torch" (its own function).
        status: "timed", "wrong" or "failed".
        note: why not.
        seconds: of a call on the GPU.
        host: seconds until a call returned on the host, with nothing to wait for.
        ratio: torch's time on the GPU divided by this one's, round by round; None where torch has no time.
    """

    case: str
    dtype: str
    passes: str
    provider: str
    status: str
    note: str = ""
    seconds: Quartiles | None = None
    host: Quartiles | None = None
    ratio: Quartiles | None = None


def missing() -> str | None:
    """Why nothing can be timed here, or None."""
    return None if torch.cuda.is_available() else "torch finds no CUDA device or driver"


def _each(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A tensor changed, inside a dataclass too (a relative position term); anything else as it is."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _each(getattr(value, f.name), change) for f in fields(value)})
    return value


def _numbers(workload: Workload, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """The arguments with tensors on a device, floating ones in a dtype."""
    made = {name: as_tensor(value) for name, value in workload.arguments.items()}
    if isinstance(workload.case, Sized):
        made |= workload.case.tensors(workload.arguments, device)

    def change(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    return {name: _each(value, change) for name, value in made.items()}


def _copies(numbers: Mapping[str, Any], dtype: torch.dtype, wanted: Sequence[str]) -> dict[str, Any]:
    """Own copies of the arguments, floating ones in a dtype; `wanted` ones want gradients."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)

    found = {name: _each(value, change) for name, value in numbers.items()}
    for name in wanted:
        found[name].requires_grad_()
    return found


def _run(
    function: Function, arguments: Mapping[str, Any], wanted: Sequence[str], incoming: Tensors
) -> tuple[torch.Tensor, ...]:
    """Results, and the gradients of `wanted`."""
    results = results_of(function(**arguments))
    if not wanted:
        return results
    flowing = [r for r in results if r.requires_grad]
    return (*results, *torch.autograd.grad(flowing, [arguments[name] for name in wanted], incoming))


def _incoming(
    function: Function, arguments: Mapping[str, Any], wanted: Sequence[str], drawn: list[torch.Tensor]
) -> list[torch.Tensor]:
    """The gradients that flow in, in the results' dtype and layout; drawn by the first one that asks."""
    if not wanted:
        return []
    flowing = [r for r in results_of(function(**arguments)) if r.requires_grad]
    if not drawn:
        drawn += [torch.randn_like(r) for r in flowing]
    return [torch.empty_like(r).copy_(g) for r, g in zip(flowing, drawn, strict=True)]


def _answer(
    function: Function, arguments: Mapping[str, Any], wanted: Sequence[str], drawn: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Results and gradients, detached."""
    incoming = _incoming(function, arguments, wanted, drawn)
    return [t.detach() for t in _run(function, arguments, wanted, incoming)]


def complaint(found: Tensors, theirs: Tensors, exact: Tensors, factor: float = FACTOR) -> str | None:
    """What is wrong with an answer, in one line; None when it is within `factor` times torch's error and a band."""
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
        allowed = factor * errors[1] + BAND * scale * torch.finfo(mine.dtype).eps
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
    own = functools.partial(public, backend="torch")
    stock = torch_function(workload) or own
    functions = {n: stock if n == "torch" else functools.partial(public, backend=n) for n in names}
    judge = own if is_random(workload) else stock
    wanted = workload.wanted if training else ()
    drawn: list[torch.Tensor] = []
    row = functools.partial(Row, case.id, str(dtype).removeprefix("torch."), workload.passes)
    numbers = _numbers(workload, dtype, device)
    # Exact of contiguous arrays: torch's average pooling, backward, is wrong on channels-last images whose windows
    # overlap (2.11).
    plain = {name: _each(value, torch.Tensor.contiguous) for name, value in numbers.items()}
    judged = ((plain, torch.float64), (numbers, dtype))
    try:
        exact, theirs = (_answer(judge, _copies(given, kind, wanted), wanted, drawn) for given, kind in judged)
    except (RuntimeError, TypeError, ValueError) as error:
        return [row("torch", FAILED, _first_line(error))]
    rows, ready = [], {}
    as_tf32 = dtype == torch.float32 and case.op.startswith("conv") and torch.backends.cudnn.allow_tf32
    factor = TF32_FACTOR if as_tf32 else FACTOR
    for name, function in functions.items():
        arguments = _copies(numbers, dtype, wanted)
        try:
            incoming = _incoming(function, arguments, wanted, drawn)
            found = [t.detach() for t in _run(function, arguments, wanted, incoming)]
        except (RuntimeError, NotImplementedError) as error:  # BackendError too: it says why it cannot run this
            rows.append(row(name, FAILED, _first_line(error)))
            continue
        wrong = None if name == "torch" and is_random(workload) else complaint(found, theirs, exact, factor)
        if wrong is not None:
            rows.append(row(name, WRONG, wrong))
            continue
        ready[name] = functools.partial(_run, function, arguments, wanted, incoming)
    del exact, theirs
    times = in_turn(ready, seconds, clock)
    torchs = [device for device, _ in times.get("torch", ())]
    for name, sample in times.items():
        on_gpu, on_host = zip(*sample)
        beside = ratios(torchs, on_gpu) if torchs else None
        rows.append(row(name, TIMED, seconds=Quartiles.of(on_gpu), host=Quartiles.of(on_host), ratio=beside))
    return rows


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__


def in_turn(
    ready: Mapping[str, Callable[[], Any]], seconds: float, clock: Clock
) -> dict[str, list[tuple[float, float]]]:
    """Seconds of each round on the GPU and the host, by contestant; every second round the other way round."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in ready}
    order, spent = list(ready), 0.0
    for run in ready.values():
        clock.seconds(run)  # the first calls set up workspaces
    for done in range(MAX_ROUNDS if ready else 0):
        if done >= MIN_ROUNDS and spent >= seconds:
            break
        for name in order:
            took = clock.seconds(ready[name])
            samples[name].append(took)
            spent += sum(took)
        order.reverse()
    return samples


def run(
    cases: Sequence[Case], dtypes: Sequence[str], passes: Sequence[str], names: Sequence[str], seconds: float,
    clock: Clock, device: str = "cuda",
) -> list[Row]:  # fmt: skip
    """All rows, printed as they come."""
    rows: list[Row] = []
    for case in cases:
        for dtype in (case.dtype,) if isinstance(case, Sized) else dtypes:
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
    host = "" if row.host is None else f", host {row.host.median * 1e6:.0f} us"
    return f"{head}{row.seconds.median * 1e6:.1f} us{beside}{host}"


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

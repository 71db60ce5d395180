"""The benchmark itself: every chosen case, checked and then timed on every provider in turn."""

from __future__ import annotations

import contextlib
import functools
import gc
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any

import kernels
from bench import gate, limits, machine, memory, records, selection, timing
from bench.limits import Limits
from bench.providers import OURS
from bench.providers.provider import Call, NothingOfItsOwn, Provider, Unsupported
from bench.records import Measurement, Run
from bench.timing import Contestant, Quartiles
from bench.workload import Answer, Workload
from kernels.case import Case
from kernels.op import OPS

Report = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How cases are run."""

    dtypes: tuple[str, ...] = ("float32",)
    passes: tuple[str, ...] = ("forward",)
    threads: tuple[int, ...] = (1,)
    layout: str = "given"
    seconds: float = 1.0
    probe_seconds: float = 1.0
    memory: bool = True


@dataclass(frozen=True)
class Task:
    """One case in one dtype and pass; it is checked and timed at each number of threads."""

    case: Case
    dtype: str
    passes: str


def tasks(cases: Iterable[Case], settings: Settings) -> tuple[list[Task], list[str]]:
    """Everything to run, and a line for each op that lacks a dtype."""
    complaints: dict[str, None] = {}
    found = []
    for given in cases:
        case = selection.in_layout(given, settings.layout)
        if case is None:
            continue
        for dtype in settings.dtypes:
            wrong = selection.dtype_complaint(case.op, dtype)
            if wrong is not None:
                complaints[wrong] = None
                continue
            found += [Task(case, dtype, passes) for passes in settings.passes]
    return found, list(complaints)


def _use_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)  # Our kernels follow it.


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Number of threads as before at the end; being told to terminate is taken as an interruption by hand."""
    import torch

    threads = torch.get_num_threads()
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if main else None
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if main:
            signal.signal(signal.SIGTERM, before)


def _blank(task: Task, threads: int, provider: str, layout: str) -> Measurement:
    declared = OPS.get(task.case.op)
    family = (declared.family if declared else task.case.op).rpartition(".")[2]
    case = task.case
    return Measurement(
        case.op, case.name, family, task.dtype, task.passes, threads, layout, provider, records.UNSUPPORTED
    )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _Bench:
    """One case at one number of threads."""

    def __init__(self, task: Task, workload: Workload, threads: int, settings: Settings) -> None:
        self.task, self.workload, self.threads, self.settings = task, workload, threads, settings
        self.calls: dict[str, Call] = {}
        self.found: dict[str, Measurement] = {}
        self.torchs: Answer | None = None

    def _set_budget(self) -> None:
        """torch's own answer, whose error is the budget's measure; by the library's torch backend, so that it is there
        even where eager is not asked for or draws random numbers."""
        from bench.providers.tensors import tensor_call

        try:
            call = tensor_call(functools.partial(getattr(kernels, self.task.case.op), backend="torch"), self.workload)
            self.torchs = call.answer(call.run())
        except Exception:  # Then the budget is the band alone, and eager's own row tells what torch raises.
            self.torchs = None

    def prepare(self, provider: Provider) -> None:
        """Make the case ready on a provider and check its answer."""
        blank = _blank(self.task, self.threads, provider.name, self.settings.layout)
        try:
            exact = self.workload.exact
            if self.torchs is None:
                self._set_budget()
            call = provider.prepare(self.workload, self.threads)
            wrong = None
            if call.checked:
                wrong = gate.complaint(call.answer(call.run()), exact, self.torchs)
        except NothingOfItsOwn:
            return
        except Unsupported as reason:
            self.found[provider.name] = replace(blank, status=records.UNSUPPORTED, reason=str(reason))
            return
        except Exception as error:  # Any engine may raise anything; the rest still runs.
            self.found[provider.name] = replace(blank, status=records.FAILED, reason=_one_line(error))
            return
        if wrong is not None:
            self.found[provider.name] = replace(blank, status=records.WRONG, reason=wrong)
            return
        self.calls[provider.name] = call
        self.found[provider.name] = replace(blank, status=records.TIMED, reason=call.note)

    def time(self, bounds: Limits | None) -> list[Measurement]:
        """Time everything that passed the gate, in turn."""
        samples: dict[str, list[float]] = {}
        if self.calls:
            contestants = {name: Contestant(call.run, call.pool) for name, call in self.calls.items()}
            samples = timing.in_turn(contestants, self.settings.seconds, park=self.threads > 1)
        medians = {name: Quartiles.of(times).median for name, times in samples.items()}
        peers = [name for name in medians if name not in OURS]
        best = min(peers, key=medians.__getitem__) if peers else None
        for name, times in samples.items():
            self.found[name] = replace(
                self.found[name],
                seconds=Quartiles.of(times),
                eager_ratio=timing.ratios(samples["torch"], times) if "torch" in samples else None,
                peer_ratio=timing.ratios(samples[best], times) if best is not None else None,
                best_peer=best,
                rounds=len(times),
                **self._costs(medians[name], bounds),
                **self._memory(name),
            )
        return list(self.found.values())

    def _costs(self, seconds: float, bounds: Limits | None) -> dict[str, Any]:
        flops, nbytes = self.workload.flops, self.workload.bytes_moved
        if bounds is None:
            return {"flops": flops, "bytes_moved": nbytes}
        least, bound = bounds.seconds(flops, nbytes)
        return {"flops": flops, "bytes_moved": nbytes, "bound": bound, "limit_share": least / seconds}

    def _memory(self, name: str) -> dict[str, Any]:
        if not self.settings.memory:
            return {}
        run = self.calls[name].run
        if name in OURS and self.calls[name].note == "numba":
            return {"memory": memory.asked(run), "memory_kind": "asked"}
        return {"memory": memory.resident(run), "memory_kind": "resident"}


def run_task(
    task: Task, providers: Sequence[Provider], settings: Settings, bounds: dict[tuple[int, str], Limits], report: Report
) -> Iterator[Measurement]:
    """Check and time one case on every provider at every number of threads."""
    workload = Workload(task.case, task.dtype, task.passes == "training")
    for threads in settings.threads:
        _use_threads(threads)
        bench = _Bench(task, workload, threads, settings)
        for provider in providers:
            report(f"{task.case.id}: {provider.title}")
            bench.prepare(provider)
        report(f"{task.case.id}: timing")
        yield from bench.time(bounds.get((threads, task.dtype)))
        del bench
        gc.collect()


def run_all(
    found: Sequence[Task],
    providers: Sequence[Provider],
    settings: Settings,
    *,
    complaints: Sequence[str] = (),
    report: Report = lambda _: None,
    advance: Callable[[], None] = lambda: None,
) -> Run:
    """Probe the machine and run every task; `report` is told what is going on, `advance` when a task is done."""
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    names = [provider.name for provider in providers]
    run = Run(created, machine.facts(), {**asdict(settings), "providers": names}, complaints=list(complaints))
    bounds: dict[tuple[int, str], Limits] = {}
    with _undisturbed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Engines' remarks about their own fallbacks would break the progress bar.
        try:
            for threads in settings.threads:
                for dtype in dict.fromkeys(task.dtype for task in found):
                    report(f"probing the machine, {threads} thread{'s' * (threads > 1)}, {dtype}")
                    _use_threads(threads)
                    bounds[threads, dtype] = limits.measure(threads, dtype, settings.probe_seconds)
                    run.limits.append(bounds[threads, dtype])
            for task in found:
                run.measurements.extend(run_task(task, providers, settings, bounds, report))
                advance()
        except KeyboardInterrupt:  # What is measured by then is worth keeping.
            run.complaints.append("interrupted: the rest was not measured")
    return run

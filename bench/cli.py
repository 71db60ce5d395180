"""``python -m bench``: the commands. Exit code 0: all well; 1: a wrong or failed result of ours, or a regression;
2: something that was asked for does not exist or cannot run here (the rest ran)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from bench import compare, machine, options, records, selection
from bench.providers import OURS
from bench.providers.provider import Provider
from kernels.case import Case

OK, FOUND, BAD_INPUT = 0, 1, 2


def _complain(lines: Sequence[str]) -> None:
    for line in lines:
        print(f"bench: {line}", file=sys.stderr)


def _result(path: Path) -> Path:
    return path / "result.json" if path.is_dir() else path


def _choose_providers(names: Sequence[str] | None) -> tuple[list[Provider], list[str]]:
    """The providers that can run here, and a line for each that was named and cannot."""
    from bench import providers

    found: list[Provider] = []
    complaints: list[str] = []
    for name in dict.fromkeys(names or providers.NAMES):
        try:
            candidate = providers.provider(name)
        except ValueError as error:
            complaints.append(str(error))
            continue
        missing = candidate.missing()
        if missing is None:
            found.append(candidate)
        elif names:
            complaints.append(f"provider {name}: {missing}")
        else:
            print(f"bench: left out {name}: {missing}", file=sys.stderr)
    return found, complaints


def _choose_threads(wanted: Sequence[int]) -> tuple[tuple[int, ...], list[str]]:
    most = machine.cores()
    good = tuple(n for n in dict.fromkeys(wanted) if n <= most)
    return good, [f"{n} threads: this process has {most} cores" for n in wanted if n > most]


def run(given: argparse.Namespace) -> int:
    """Check and time the chosen cases."""
    from rich.console import Console

    from bench import table
    from bench.run import Settings, run_all, tasks

    cases, complaints = selection.choose_cases(given.ops, given.case, given.tag)
    if given.list:
        for case in cases:
            print(case.id)
        _complain(complaints)
        return BAD_INPUT if complaints else OK
    providers, wrong = _choose_providers(given.provider)
    complaints += wrong
    threads, wrong = _choose_threads(given.threads)
    complaints += wrong
    settings = Settings(
        tuple(dict.fromkeys(given.dtype)), tuple(dict.fromkeys(given.passes)), threads, given.layout, given.seconds,
        min(given.seconds, 1.0), not given.no_memory,
    )  # fmt: skip
    chosen, wrong = tasks(cases, settings)
    complaints += wrong
    _complain(complaints)
    if not (chosen and providers and threads):
        _complain([] if complaints else [f"no case has images to lay out {given.layout}"])
        return BAD_INPUT
    busy = machine.busy()
    if busy is not None:
        print(f"bench: note: {busy}", file=sys.stderr)
    with _progress(len(chosen)) as (report, advance):
        found = run_all(chosen, providers, settings, complaints=complaints, report=report, advance=advance)
    console = Console(width=None if sys.stdout.isatty() else 200)
    _complain(found.complaints[len(complaints) :])
    console.print(table.table_of(found))
    console.print()
    console.print(table.means_table(found))
    for limits in found.limits:
        console.print(table.limits_line(limits), style="dim", soft_wrap=True)
    folder = given.output or options.RESULTS / datetime.now().strftime("%Y-%m-%d-%H%M%S")
    records.save(found, folder / "result.json")
    print(f"wrote {folder / 'result.json'}")
    if not given.no_plots:
        _write_report(found, folder)
    ours = [m for m in found.measurements if m.provider in OURS and m.status in (records.WRONG, records.FAILED)]
    return FOUND if ours else BAD_INPUT if found.complaints else OK


class _progress:
    """A progress bar on standard error, with what is going on beside it."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            BarColumn(30), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"),
            console=Console(stderr=True), transient=True,
            # Drawn by this thread when there is news: a thread that draws would run beside what is timed.
            auto_refresh=False,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=total)

    def _report(self, text: str) -> None:
        self._bar.update(self._task, description=text, refresh=True)

    def _advance(self) -> None:
        self._bar.advance(self._task)

    def __enter__(self) -> tuple[Callable[[str], None], Callable[[], None]]:
        self._bar.start()
        return self._report, self._advance

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def _write_report(found: records.Run, folder: Path) -> None:
    """Pictures and HTML; without matplotlib the HTML alone."""
    from bench import report

    folder.mkdir(parents=True, exist_ok=True)
    pictures: list[Path] = []
    try:
        from bench import plots
    except ImportError as error:
        _complain([f'no pictures: {error} (pip install "nnlib-kernels[bench]")'])
    else:
        pictures = plots.draw(found, folder)
    print(f"wrote {report.write(found, folder, pictures)} and {len(pictures)} pictures")


def report(given: argparse.Namespace) -> int:
    """Draw a result again."""
    path = _result(given.result)
    try:
        found = records.load(path)
    except ValueError as error:
        _complain([str(error)])
        return BAD_INPUT
    _write_report(found, given.output or path.parent)
    return OK


def compare_results(given: argparse.Namespace) -> int:
    """Regressions from one result to another."""
    try:
        old, new = records.load(_result(given.old)), records.load(_result(given.new))
    except ValueError as error:
        _complain([str(error)])
        return BAD_INPUT
    for line in compare.remarks(old, new):
        print(f"note: {line}")
    whose = () if "all" in given.provider else tuple(given.provider)
    changes = list(compare.compare(old, new, band=given.band, by_time=given.time, providers=whose))
    order = (compare.BROKEN, compare.SLOWER, compare.FASTER, compare.GONE, compare.NEW, compare.SAME)
    for verdict in order:
        members = [c for c in changes if c.verdict == verdict]
        if verdict == compare.SAME and not given.all:
            continue
        for change in sorted(members, key=lambda c: -(c.factor or 0)):
            print(change)
    counts = {verdict: sum(c.verdict == verdict for c in changes) for verdict in order}
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "nothing in common")
    if not any(c.factor is not None or c.verdict == compare.BROKEN for c in changes):
        _complain(["the two results have no measurement in common"])
        return BAD_INPUT
    return FOUND if any(c.verdict in compare.REGRESSIONS for c in changes) else OK


def _choose_ops(patterns: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    ops, complaints = selection.choose_ops(patterns, selection.known_ops())
    _complain(complaints)
    return ops, complaints


def show_overhead(given: argparse.Namespace) -> int:
    """What Python costs a call of each op."""
    from rich.console import Console
    from rich.table import Table

    from bench import overhead, table

    ops, complaints = _choose_ops(given.ops)
    if not ops:
        return BAD_INPUT
    shown = Table(title="Microseconds a call; in brackets: beyond the kernel", title_justify="left", show_edge=False)
    for heading in ("op", "case", *overhead.COLUMNS):
        shown.add_column(heading, justify="left" if heading in ("op", "case") else "right")
    failed = False
    with _progress(len(ops)) as (tell, advance):
        for op in ops:
            tell(op)
            try:
                cost = overhead.measure(op, given.seconds)
            except Exception as error:  # One op's failure must not hide the others.
                failed = True
                shown.add_row(op, "FAILED", f"{type(error).__name__}: {error}"[:120])
                continue
            finally:
                advance()
            if cost is None:
                continue
            cells = []
            for column in overhead.COLUMNS:
                text = f"{cost.seconds[column].median * 1e6:.2f}" if column in cost.seconds else table.DASH
                cells.append(text + (f" ({cost.beyond[column].median * 1e6:+.2f})" if column in cost.beyond else ""))
            shown.add_row(op, cost.name, *cells)
    Console(width=None if sys.stdout.isatty() else 200).print(shown)
    return FOUND if failed else BAD_INPUT if complaints else OK


def show_choices(given: argparse.Namespace) -> int:
    """Our kernels beside torch's function wherever a call may be left to torch, and which one is chosen."""
    from rich.console import Console
    from rich.table import Table

    from bench import automatic

    ops, complaints = _choose_ops(given.ops)
    if not ops:
        return BAD_INPUT
    shown = Table(title="Microseconds a call, one thread; ! where the slower one is chosen", title_justify="left")
    for heading in ("op", "case", "pass", "operations", "torch below", "numba", "torch", "numba / torch", "chosen"):
        shown.add_column(heading, justify="left" if heading in ("op", "case", "pass", "chosen") else "right")
    wrong = 0
    with _progress(len(ops) * len(given.passes)) as (tell, advance):
        for op in ops:
            for passes in given.passes:
                tell(f"{op}, {passes}")
                for choice in automatic.measure(op, passes == "training", given.seconds):
                    times = [f"{t.median * 1e6:.2f}" for t in (choice.numba, choice.torch)]
                    sign = " !" if choice.lost > automatic.BAND else ""
                    wrong += bool(sign)
                    facts = (op, choice.name, passes, str(choice.work), str(choice.limit), *times)
                    shown.add_row(*facts, f"{choice.gain.median:.2f}", choice.chosen + sign)
                advance()
    if not shown.row_count:
        print(f"no call of {', '.join(ops)} is left to torch")
        return BAD_INPUT if complaints else OK
    Console(width=None if sys.stdout.isatty() else 200).print(shown)
    print(f"{wrong} of {shown.row_count} choices cost more than {automatic.BAND - 1:.0%}")
    return BAD_INPUT if complaints else OK


def show_cold(given: argparse.Namespace) -> int:
    """Import time and first calls of each op."""
    from rich.console import Console
    from rich.table import Table

    from bench import cold

    ops, complaints = _choose_ops(given.ops)
    if not ops:
        return BAD_INPUT
    shown = Table(title=f"Seconds in a fresh process, {given.passes}", title_justify="left", show_edge=False)
    for heading in ("op", "case", "import", "first call, empty cache", "first call, warm cache", "second call"):
        shown.add_column(heading, justify="left" if heading in ("op", "case") else "right")
    failed = False
    with _progress(len(ops)) as (tell, advance):
        for op in ops:
            tell(op)
            try:
                start = cold.measure(op, given.passes)
            except Exception as error:  # One op's failure must not hide the others.
                failed = True
                shown.add_row(op, "FAILED", str(error)[:120])
                continue
            finally:
                advance()
            if start is not None:
                waits = (start.warm.imported, start.empty.first, start.warm.first, start.warm.second)
                shown.add_row(op, start.name, *[f"{seconds:.3f}" for seconds in waits])
    Console(width=None if sys.stdout.isatty() else 200).print(shown)
    return FOUND if failed else BAD_INPUT if complaints else OK


def train_networks(given: argparse.Namespace) -> int:
    """The article's networks, trained beside others."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from bench.networks import race, trainers

    complaints = [
        f"unknown network {n!r}: {', '.join(options.NETWORKS)}" for n in given.programs if n not in options.NETWORKS
    ]
    programs = [n for n in dict.fromkeys(given.programs or options.NETWORKS) if n in options.NETWORKS]
    chosen = []
    for name in dict.fromkeys(given.trainer or trainers.TRAINERS):
        wrong = trainers.missing(name)
        if wrong is None:
            chosen.append(name)
        else:
            complaints.append(f"trainer {name}: {wrong}")
    threads, wrong_threads = _choose_threads([given.threads])
    _complain(complaints + wrong_threads)
    if not (programs and chosen and threads):
        return BAD_INPUT
    busy = machine.busy()
    if busy is not None:
        print(f"bench: note: {busy}", file=sys.stderr)
    torch.set_num_threads(given.threads)
    settings = {name: getattr(given, name) for name in ("epochs", "seeds", "batch_size", "limit")}
    entries = []
    with _progress(len(programs) * len(chosen) * given.epochs * given.seeds) as (tell, advance):
        for program in programs:
            entries += race.race(program, chosen, **settings, report=tell, advance=advance)
    way = f"{given.epochs} epochs, batches of {given.batch_size}, {given.threads} thread{'s' * (given.threads > 1)}"
    shown = Table(title=way, title_justify="left", show_edge=False)
    for number, heading in enumerate(race.HEADINGS):
        shown.add_column(heading, justify="left" if number < 2 else "right")
    for row in race.rows(entries):
        shown.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 200).print(shown)
    path = given.output or options.RESULTS / f"networks-{datetime.now().strftime('%Y-%m-%d-%H%M%S')}.json"
    race.save(entries, settings | {"threads": given.threads}, path)
    print(f"wrote {path}")
    return BAD_INPUT if complaints else OK


def time_on_gpu(given: argparse.Namespace) -> int:
    """The GPU backends beside torch's own functions."""
    from bench import gpu, gpu_sizes

    missing = gpu.missing()
    if missing is not None:
        _complain([f"gpu: {missing}"])
        return BAD_INPUT
    cases: Sequence[Case]
    if given.large:
        cases, complaints = gpu_sizes.choose(given.ops, given.case)
    else:
        cases, complaints = selection.choose_cases(given.ops, given.case, given.tag)
    _complain(complaints)
    if not cases:
        return BAD_INPUT
    rows = gpu.run(
        cases, given.dtype, given.passes, given.backend or gpu.backends(), given.seconds, gpu.EventClock()
    )  # fmt: skip
    path = given.output or options.RESULTS / f"gpu-{datetime.now().strftime('%Y-%m-%d-%H%M%S')}.json"
    gpu.save(rows, path)
    print(f"wrote {path}")
    wrong = any(row.status == gpu.WRONG and row.provider != "torch" for row in rows)
    return FOUND if wrong else BAD_INPUT if complaints else OK


_COMMANDS = {
    "run": run,
    "compare": compare_results,
    "overhead": show_overhead,
    "auto": show_choices,
    "cold": show_cold,
    "networks": train_networks,
    "gpu": time_on_gpu,
    "report": report,
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code."""
    given = options.parse(sys.argv[1:] if arguments is None else arguments)
    try:
        return _COMMANDS[given.command](given)
    except ModuleNotFoundError as error:
        _complain([f'{error.name} is not installed: pip install "nnlib-kernels[bench]"'])
        return BAD_INPUT
    except OSError as error:
        if error.filename is None:
            raise
        _complain([f"{error.filename}: {error.strerror}"])
        return BAD_INPUT

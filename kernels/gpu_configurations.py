"""Every configuration of the Triton kernels that the tile functions can return, compiled and held to the gates.

The kernel report (gpu_report.py) shows the kernels of some calls at length. Here are many more calls, so chosen that
together they reach every tile which a tile function returns for a dtype, with the least and the most that a kernel can
have beside it. Their launches are recorded, and each one that Triton compiles differently is compiled.
That takes long, so what was found is kept in docs/gpu_configurations.json, for each family and target with a digest of
the kernels' code and of the launches: a test says when these no longer are what was compiled.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels import gpu_gates
from kernels.gpu_capture import capture
from kernels.gpu_workloads import REPORTED_TARGETS, Workload, _attention, _conv, _entropy, _norm, _recurrent
from kernels.runtime.machine_code import Compiled
from kernels.runtime.triton_compile import Launch, compile_launches, digest, recording, version

TARGETS = REPORTED_TARGETS["triton"]


@dataclass(frozen=True)
class Call:
    """A call whose kernels are compiled.

    Attributes:
        workload: the call.
        tf32: whether torch is set to multiply float32 on tensor cores.
        aligned: sizes and strides are multiples of vectors; else only that it fits and spills nothing is asked for.
    """

    workload: Workload
    tf32: bool = False
    aligned: bool = True


@contextmanager
def _precision(tf32: bool) -> Iterator[None]:
    import torch

    cudnn, before = torch.backends.cudnn, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        # flags() and no assignment, which torch's own test suite forbids in its process.
        with cudnn.flags(cudnn.enabled, cudnn.benchmark, cudnn.benchmark_limit, cudnn.deterministic, tf32):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


# ----- the calls ---------------------------------------------------------------------------------------------------

#: dtype, and whether float32 goes to tensor cores. float16 has bfloat16's tiles.
KINDS = (("bfloat16", False), ("float32", True), ("float32", False), ("float64", False))
#: Of the kernels whose tiles do not follow from the dtype: computed in float32, and in float64.
DTYPES = ("bfloat16", "float64")


def _rows() -> Iterator[Call]:
    """softmax, cross-entropy and normalization: rows of all lengths, few of them and many."""
    for dtype in DTYPES:
        for n, rows in itertools.product((8, 32, 64, 128, 256, 512, 1024, 4096, 8192, 16384, 65536), (128, 1 << 17)):
            workloads = Workload("softmax", dtype, {"x": (rows, n)}, (1,)), _entropy((rows, n), dtype, 0.1)
            for workload in (*workloads, _norm("layer_norm", (rows, n), dtype), _norm("rms_norm", (rows, n), dtype)):
                yield Call(workload, aligned=n >= 16)
        for n, inner in itertools.product((4, 8, 16, 32, 64, 128, 32768), (16, 32, 4096)):
            yield Call(Workload("softmax", dtype, {"x": (64, n, inner)}, (1,)))
            yield Call(_entropy((64, n, inner), dtype, 0.1))


def _linear_losses() -> Iterator[Call]:
    """linear_cross_entropy whose logits are never in memory: few rows and many, few features and many."""
    for dtype, tf32 in KINDS[:2]:
        for rows, features in itertools.product((16, 32, 64, 8192), (16, 32, 64, 1024)):
            for smoothing, weighted in ((0.0, False), (0.1, True)):
                shapes: dict[str, tuple[int, ...]] = {"input": (rows, features), "linear_weight": (32000, features)}
                shapes |= {"linear_bias": (32000,), "weight": (32000,)} if weighted else {}
                attributes = (-100, "mean", smoothing)
                yield Call(Workload("linear_cross_entropy", dtype, shapes, attributes, {"target": (rows,)}), tf32)


#: What a score has beside its product, from the least to the most that each class of the tile functions has.
EXTRAS: tuple[frozenset[str], ...] = tuple(
    map(
        frozenset,
        (
            {}, {"hidden"}, {"dropout"}, {"bias", "hidden"}, {"shaw", "hidden"}, {"cap", "dropout"},
            {"mask", "bias", "hidden"}, {"alibi", "hidden"}, {"cap", "mask", "bias"}, {"t5", "hidden"},
            {"cap", "mask", "bias", "dropout", "hidden"}, {"cap", "mask", "bias", "dropout", "hidden", "shaw"},
            {"cap", "mask", "bias", "dropout", "hidden", "alibi"}, {"cap", "mask", "bias", "dropout", "hidden", "t5"},
        ),
    )
)  # fmt: skip


def _attention_call(
    dtype: str, width: int, extras: frozenset[str], queries: int = 2048, tf32: bool = False, bias: tuple[int, ...] = ()
) -> Call:
    """Attention with these things in its scores; "hidden": by position and length too."""
    heads, keys = 16, 4096
    kind = next(iter(extras & {"shaw", "alibi", "t5"}), None)
    tables: dict[str | None, tuple[int, ...]] = {"shaw": (65, width), "alibi": (heads,), "t5": (32, heads)}
    workload = _attention(
        (4, heads, queries, width),
        dtype,
        "+".join(sorted(extras)),
        keys=(4, heads // 2, keys, width),
        bias=(bias or (4, heads, queries, keys)) if "bias" in extras else None,
        mask=(4, 1, queries, keys) if "mask" in extras else None,
        table=tables.get(kind),
        lengths="hidden" in extras,
        causal="bottom_right" if "hidden" in extras else None,
        window=(512, 64) if "hidden" in extras else None,
        softcap=30.0 if "cap" in extras else None,
        dropout_p=0.1 if "dropout" in extras else 0.0,
        kind=kind,
    )
    return Call(workload, tf32, aligned=width % 16 == 0)


def _attentions() -> Iterator[Call]:
    """Widths of every block, in whole vectors and not, and those that are taken in parts; few queries and many."""
    blocks = {"bfloat16": (16, 32, 64, 128, 256, 512), "float32": (16, 32, 64, 128, 256), "float64": (16, 32, 64, 128)}
    for dtype, tf32 in KINDS:
        half = dtype == "bfloat16"
        for block, queries in itertools.product(blocks[dtype], (2048, 64, 32, 1) if half else (2048, 1)):
            for extras in EXTRAS if half else (EXTRAS[0], EXTRAS[2], EXTRAS[-1]):
                for width in (block, block - 8) if half or queries > 1 else (block,):
                    yield _attention_call(dtype, width, extras, queries, tf32)
    for shape in ((4, 16, 1, 4096), (1, 16, 2048, 4096), (4, 1, 2048, 1), (1, 1, 1, 1)):
        yield _attention_call("bfloat16", 64, EXTRAS[-1], bias=shape)


def _convolutions() -> Iterator[Call]:
    """As products of all numbers of pixels and channels; across taps; depthwise; in groups, by strides."""
    images = ((1, 4), (2, 4), (1, 8), (64, 56))
    for (dtype, tf32), last in itertools.product(KINDS, (True, False)):
        sizes = (16, 32, 64, 128) if last and (dtype == "bfloat16" or tf32) else (16, 32, 64)
        for (n, side), outputs, channels in itertools.product(images, sizes, sizes):
            yield _conv_call(dtype, tf32, last, (n, channels, side, side), outputs, activation="gelu")
        for (n, side), outputs in itertools.product(images, (sizes[0], sizes[-1])):
            yield _conv_call(dtype, tf32, last, (n, 3, side, side), outputs)
        yield _conv_call(dtype, tf32, last, (8, 512, 28, 28), 1024)
        yield _conv_call(dtype, tf32, last, (8, 256, 28, 28), 256, stride=2, groups=2)
        for n, side in images:
            yield _conv_call(dtype, tf32, last, (n, 96, side, side), 96, groups=96, activation="silu")


def _conv_call(
    dtype: str, tf32: bool, last: bool, x: tuple[int, ...], outputs: int, groups: int = 1, **more: Any
) -> Call:
    weight = (outputs, x[1] // groups, 3, 3)
    return Call(_conv("", x, weight, dtype, last=last, groups=groups, **more), tf32)


def _recurrences() -> Iterator[Call]:
    """Every kind of cell in every width of tile, with lengths and without; batches of all numbers of rows."""
    cells: tuple[tuple[str, tuple[Any, ...], int], ...] = (
        ("rnn", ("tanh",), 1), ("rnn", ("relu",), 1), ("lstm", (), 1), ("lstm", (), 2), ("gru", (True,), 1),
        ("gru", (False,), 1),
    )  # fmt: skip
    for (dtype, tf32), (cell, attributes, share) in itertools.product(KINDS, cells):
        for units in (16, 32, 64, 128, 256, 512, 1024):
            projection = units // share if share > 1 else 0
            for batch in (64,) if units < 512 else (16, 32, 64):
                sizes = (64 if units < 512 else 1, batch, units)  # a step of many is like the others
                workload = _recurrent(cell, sizes, dtype, "", *attributes, lengths=True, projection=projection)
                yield Call(workload, tf32, aligned=projection % 16 == 0)
            if units in (64, 256):
                yield Call(_recurrent(cell, (64, 64, units), dtype, "", *attributes, projection=projection), tf32)


def _elements() -> Iterator[Call]:
    """Activations, dropout, embedding and poolings: arrays of all sizes of blocks."""
    for dtype in DTYPES:
        for size in (1 << 12, 1 << 18, 1 << 24):
            for op in ("relu", "silu", "sigmoid", "tanh"):
                yield Call(Workload(op, dtype, {"x": (size,)}, ()))
            for form in ("none", "tanh"):
                yield Call(Workload("gelu", dtype, {"x": (size,)}, (form,)))
            yield Call(Workload("dropout", dtype, {"x": (size,)}, (0.1, 0), {"seed": ()}))
        for n, largest in itertools.product((1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096), (None, 1.0)):
            table = (0, largest, 2.0, True, False)
            yield Call(Workload("embedding", dtype, {"weight": (4096, n)}, table, {"input": (4096,)}), aligned=n >= 16)
        for last, side in itertools.product((True, False), (16, 64, 512)):
            window = ((3, 3), (2, 2), (1, 1))
            poolings: tuple[tuple[str, tuple[Any, ...]], ...] = (
                ("max_pool2d", (*window, (1, 1), False, False)),
                ("avg_pool2d", (*window, False, True, None)),
                ("adaptive_avg_pool2d", ((8, 8),)),
                ("lp_pool2d", (2.5, (2, 2), (2, 2), False)),
                ("lp_pool2d", (float("inf"), (2, 2), (2, 2), False)),
            )
            for op, attributes in poolings:
                yield Call(Workload(op, dtype, {"x": (4, 16, side, side)}, attributes, channels_last=last))


#: By the names under which what was found is kept.
FAMILIES: dict[str, Callable[[], Iterator[Call]]] = {
    "rows": _rows,
    "linear losses": _linear_losses,
    "attention": _attentions,
    "convolutions": _convolutions,
    "recurrences": _recurrences,
    "elements": _elements,
}


# ----- what is compiled --------------------------------------------------------------------------------------------


#: Constants of attention's kernels that do not say how a tile is cut, but what is done with it.
_DONE_WITH_IT = {
    *("SCALE", "CAP", "LEFT", "RIGHT", "FROM_END", "HAS_MASK", "HAS_BIAS", "HAS_LENGTHS", "TERM", "LIMIT", "DROPOUT"),
    *("THRESHOLD", "KEPT", "FLAGGED", "KEEPS", "HAS_LSE"),
}


def _cut(call: Call, launch: Launch) -> str:
    """A kernel with how its tile is cut."""
    kept = {n: v for n, v in launch.options.items() if n not in _DONE_WITH_IT}
    return f"{launch.name} {call.workload.dtype} {call.aligned} {sorted(kept.items(), key=str)}"


def launches(family: str, target: str) -> list[tuple[Call, Launch]]:
    """Launches of a family's calls that are compiled differently, each with the call that has it.

    Of attention's, of each tile the last one, with the most beside the products; where there are many queries in whole
    vectors also the first one, with the least.
    """
    found: dict[str, tuple[Call, Launch]] = {}
    cuts: dict[str, list[str]] = {}
    for call in FAMILIES[family]():
        with _precision(call.tf32):
            captured = capture(call.workload, "triton", lambda: recording(target))
        for launch in (*captured.forward, *captured.backward):
            if launch.key not in found:
                found[launch.key] = call, launch
                cuts.setdefault(_cut(call, launch), []).append(launch.key)
    if family != "attention":
        return list(found.values())
    least = {keys[0] for keys in cuts.values() if _is_usual(*found[keys[0]])}
    most = {keys[-1] for keys in cuts.values()}
    return [found[key] for key in found if key in least | most]


def _is_usual(call: Call, launch: Launch) -> bool:
    """Whether a call of attention's has many queries in whole vectors, and the launch is not one of those again."""
    return call.aligned and call.workload.shapes["query"][2] > 64 and not launch.options.get("SELECTS")


def broken(known: Sequence[tuple[Call, Launch]], target: str) -> list[str]:
    """The rules that kernels break, each with the kernel, its call and its tile."""
    complaints = []
    compiled = compile_launches([launch for _, launch in known], target)
    for (call, launch), kernel in zip(known, compiled, strict=True):
        tile = {n: v for n, v in launch.options.items() if isinstance(v, int) and not isinstance(v, bool)}
        where = f"{launch.name}, {call.workload.id}, {tile}"
        complaints += [f"{where}: {rule}" for rule in _rules(call, kernel)]
    return complaints


def _rules(call: Call, kernel: Compiled | str) -> list[str]:
    """What a call's kernel breaks; where it did not compile, that."""
    if isinstance(kernel, str):
        return [kernel]
    if not call.aligned:
        return gpu_gates.soundness(kernel)
    return gpu_gates.gates(kernel, call.workload.dtype, vectors=_has_vectors(call, kernel))


#: Constants of a kernel that are the two sides of a tile in memory.
_SIDES = (
    *(("ROWS", "BLOCK"), ("BLOCK_M", "BLOCK_E"), ("BLOCK_N", "BLOCK_E"), ("BLOCK_M", "BLOCK_V"), ("ROWS", "UNITS")),
    *(("ROWS", "WIDTH"), ("ROWS", "INNER"), ("INNER", "COLUMNS"), ("ROWS", "COLUMNS")),
)


#: Kernels that leave the sum of a tile's rows.
_SUMS_OF_ROWS = {"gradients_of_parts", "add_rows"}


def _has_vectors(call: Call, kernel: Compiled) -> bool:
    """Whether a program's smallest tile has 128 bits for each thread; small sizes have less."""
    o = {"ROWS": 1} | kernel.options
    elements = min((o[a] * o[b] for a, b in _SIDES if a in o and b in o), default=o.get("BLOCK", 0))
    elements = o["BLOCK"] if kernel.name in _SUMS_OF_ROWS else elements
    itemsize = gpu_gates.ITEMSIZES[call.workload.dtype]
    return bool(elements * itemsize >= 16 * kernel.warps * kernel.target.warp)


#: Kernels that a process compiles at a time.
AT_A_TIME = 16


def make(families: tuple[str, ...] = (), targets: tuple[str, ...] = (), processes: int = 1) -> dict[str, Any]:
    """Compile all: {"compiler": version, "families": {family: {target: what was found}}}.

    What was found: "digest" of what was compiled, how many kernels were "compiled", and what is "broken", in words.

    Args:
        families: names in `FAMILIES`; none: all.
        targets: names of GPUs; none: all.
        processes: how many compile at a time.
    """
    made: dict[str, dict[str, Any]] = {}
    for family, target in itertools.product(families or FAMILIES, targets or TARGETS):
        begun = time.monotonic()
        known = launches(family, target)
        now = digest(launch for _, launch in known)
        complaints = _compile(known, target, processes)
        made.setdefault(family, {})[target] = {"digest": now, "compiled": len(known), "broken": complaints}
        seconds = time.monotonic() - begun
        print(f"{family}, {target}: {len(known)} kernels, {seconds:.0f} s, {len(complaints)} broken", file=sys.stderr)
    return {"compiler": version(), "families": made}


def _compile(known: list[tuple[Call, Launch]], target: str, processes: int) -> list[str]:
    """What is `broken`, compiled by so many processes. They are forked: launches hold what cannot be sent to others."""
    parts = [known[at : at + AT_A_TIME] for at in range(0, len(known), AT_A_TIME)]
    if processes == 1:
        return [c for part in parts for c in broken(part, target)]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _keep, (parts, target)) as pool:
        return [c for found in pool.map(_broken_part, range(len(parts))) for c in found]


_kept: tuple[list[list[tuple[Call, Launch]]], str] = [], ""


def _keep(parts: list[list[tuple[Call, Launch]]], target: str) -> None:
    global _kept
    _kept = parts, target


def _broken_part(number: int) -> list[str]:
    parts, target = _kept
    return broken(parts[number], target)


def updated(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """What was found, with what was found anew in its place; of another version of the compiler nothing is kept."""
    kept = old["families"] if old["compiler"] == new["compiler"] else {}
    families = {f: kept.get(f, {}) | new["families"].get(f, {}) for f in FAMILIES}
    return {"compiler": new["compiler"], "families": {f: found for f, found in families.items() if found}}


def run(families: tuple[str, ...], targets: tuple[str, ...], file: Path | None, processes: int = 1) -> int:
    """``python -m kernels report --all``: compile, say what is broken, and keep what was found in a file.

    Whole families are kept. A run that was interrupted goes on where it was all the same: Triton finds in its cache
    what was compiled before.

    Returns:
        the exit status: 1 where a kernel breaks a rule, 2 where there is no such family.
    """
    unknown = [f for f in families if f not in FAMILIES]
    if unknown:
        print(f"report: --op must be one of {', '.join(FAMILIES)} with --all, got {unknown[0]}", file=sys.stderr)
        return 2
    worst = 0
    for family, target in itertools.product(families or FAMILIES, targets or TARGETS):
        found = make((family,), (target,), processes)
        complaints = found["families"][family][target]["broken"]
        print("\n".join(complaints), end="\n" if complaints else "")
        worst |= int(bool(complaints))
        if file is not None:  # at once: all of it takes hours
            known = json.loads(file.read_text()) if file.exists() else found
            file.write_text(json.dumps(updated(known, found), indent=1) + "\n")
    return worst

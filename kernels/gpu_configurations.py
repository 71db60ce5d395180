"""Every configuration of the Triton kernels that the tile functions can return, and what compiling all of them found.

The kernel report (gpu_report.py) shows the kernels of some forty calls at length. Here are many more calls, so chosen
that together they reach every tile which a tile function returns for a dtype, with the least and the most that a kernel
can have beside it; their launches are recorded without being run, and each one that differs is compiled and held to the
gates. That takes most of an hour, so what was found is kept in docs/gpu_configurations.json, with a digest of the
kernels' code and of the launches: a test says when these no longer are what was compiled.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import sys
import time
import tokenize
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels import gpu_gates
from kernels.gpu_report import capture
from kernels.gpu_workloads import REPORTED_TARGETS, Workload, _attention, _conv, _entropy, _norm, _recurrent
from kernels.runtime.triton_compile import Launch, recording

TARGETS = REPORTED_TARGETS["triton"]


@dataclass(frozen=True)
class Call:
    """A call whose kernels are compiled.

    Attributes:
        workload: the call.
        tf32: whether torch is set to multiply float32 on tensor cores.
        aligned: sizes and strides are multiples of vectors; else only that it fits and spills nothing is asked for.
        again: whether attention's second launches are compiled too, whose tile is one and the same.
    """

    workload: Workload
    tf32: bool = False
    aligned: bool = True
    again: bool = True


@contextmanager
def _precision(tf32: bool) -> Iterator[None]:
    import torch

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


# ----- the calls ---------------------------------------------------------------------------------------------------

#: dtype, and whether float32 goes to tensor cores. float16 has bfloat16's tiles.
KINDS = (("bfloat16", False), ("float32", True), ("float32", False), ("float64", False))
DTYPES = ("bfloat16", "float32", "float64")


def _rows() -> Iterator[Call]:
    """softmax, cross-entropy and normalization: rows of all lengths, few of them and many."""
    for dtype in DTYPES:
        for n, rows in itertools.product((8, 32, 64, 128, 256, 512, 1024, 4096, 8192, 16384, 65536), (128, 1 << 17)):
            yield Call(Workload("softmax", dtype, {"x": (rows, n)}, (1,)))
            yield Call(_entropy((rows, n), dtype, 0.1))
            yield Call(_norm("layer_norm", (rows, n), dtype))
            yield Call(_norm("rms_norm", (rows, n), dtype))
        for n, inner in itertools.product((4, 8, 16, 32, 64, 128, 32768), (16, 32, 4096)):
            yield Call(Workload("softmax", dtype, {"x": (64, n, inner)}, (1,)))
            yield Call(_entropy((64, n, inner), dtype, 0.1))


def _linear_losses() -> Iterator[Call]:
    """linear_cross_entropy whose logits are never in memory: few rows and many, few features and many."""
    for dtype, tf32 in KINDS[:2]:
        for rows, features in itertools.product((16, 32, 64, 8192), (16, 32, 64, 1024)):
            for classes, smoothing, weighted in ((32000, 0.0, False), (32000, 0.1, True)):
                shapes: dict[str, tuple[int, ...]] = {"input": (rows, features), "linear_weight": (classes, features)}
                shapes |= {"linear_bias": (classes,), "weight": (classes,)} if weighted else {}
                attributes = (-100, "mean", smoothing)
                yield Call(Workload("linear_cross_entropy", dtype, shapes, attributes, {"target": (rows,)}), tf32)


#: What a score may have beside its product: as many things as each class of `forward_tile` and `backward_tiles` takes,
#: and all at once.
_ALL = {"mask", "bias", "cap", "dropout", "hidden"}
EXTRAS: tuple[frozenset[str], ...] = tuple(
    map(
        frozenset,
        (
            {}, {"hidden"}, {"bias"}, {"dropout"}, {"shaw"}, {"mask", "bias"}, {"cap", "dropout"}, {"alibi"},
            {"mask", "bias", "cap"}, {"t5"}, _ALL | {"shaw"}, _ALL | {"alibi"}, _ALL | {"t5"},
        ),
    )
)  # fmt: skip
#: The same where tiles do not follow from them.
FEW_EXTRAS = tuple(e for e in EXTRAS if len(e) in (0, 5, 6) or e == {"bias"})


def _attention_call(
    dtype: str, width: int, extras: frozenset[str], queries: int = 2048, tf32: bool = False, bias: tuple[int, ...] = ()
) -> Call:
    """Attention with these things in its scores; "hidden": by position and length too."""
    heads, keys = 16, 4096
    kind = next(iter(extras & {"shaw", "alibi", "t5"}), None)
    tables: dict[str | None, tuple[int, ...]] = {"shaw": (65, width), "alibi": (heads,), "t5": (32, heads)}
    return Call(
        _attention(
            (4, heads, queries, width),
            dtype,
            "+".join(sorted(extras)),
            keys=(4, heads // 2, keys, width),
            bias=bias or (4, heads, queries, keys) if "bias" in extras else None,
            mask=(4, 1, queries, keys) if "mask" in extras else None,
            table=tables.get(kind),
            lengths="hidden" in extras,
            causal="bottom_right" if "hidden" in extras else None,
            window=(512, 64) if "hidden" in extras else None,
            softcap=30.0 if "cap" in extras else None,
            dropout_p=0.1 if "dropout" in extras else 0.0,
            kind=kind,
        ),
        tf32,
        again=len(extras) > 3,
    )


def _attentions() -> Iterator[Call]:
    """Every block of widths, whole and not, and those that are taken in parts; tiles of fewer queries."""
    for dtype, tf32 in KINDS:
        half = dtype == "bfloat16"
        widths = (16, 32, 64, 128, 256, 512) if half else (16, 32, 64, 128, 256) if dtype == "float32" else (16, 32, 64, 128)
        for width in widths:
            for extras in EXTRAS if half else FEW_EXTRAS:
                yield _attention_call(dtype, width, extras, tf32=tf32)
            yield _attention_call(dtype, width - 8, EXTRAS[-1], tf32=tf32)
            for extras, queries in itertools.product((EXTRAS[0], EXTRAS[-1]), (1, 32, 64) if half else (1,)):
                yield _attention_call(dtype, width, extras, queries, tf32)
    for shape in ((4, 16, 1, 4096), (1, 16, 2048, 4096), (4, 1, 2048, 1), (1, 1, 1, 1)):
        for width in (64, 128):
            yield _attention_call("bfloat16", width, EXTRAS[-1], bias=shape)


def _convolutions() -> Iterator[Call]:
    """As products of all numbers of pixels and channels; across taps; depthwise; pixels that skip and lie apart."""
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


def _conv_call(dtype: str, tf32: bool, last: bool, x: tuple[int, ...], outputs: int, groups: int = 1, **more: Any) -> Call:
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
                # The second step alone is like all that follow.
                sizes = (1 if units >= 512 else 64, batch, units)
                yield Call(_recurrent(cell, sizes, dtype, "", *attributes, lengths=True, projection=projection), tf32)
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
            attributes = (0, largest, 2.0, True, False)
            yield Call(Workload("embedding", dtype, {"weight": (4096, n)}, attributes, {"input": (4096,)}), aligned=n > 4)
        for last, side in itertools.product((True, False), (16, 64, 512)):
            window = ((3, 3), (2, 2), (1, 1))
            for op, attributes in (
                ("max_pool2d", (*window, (1, 1), False, False)),
                ("avg_pool2d", (*window, False, True, None)),
                ("adaptive_avg_pool2d", ((8, 8),)),
                ("lp_pool2d", (2.5, (2, 2), (2, 2), False)),
                ("lp_pool2d", (float("inf"), (2, 2), (2, 2), False)),
            ):
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


def launches(family: str, target: str) -> dict[str, tuple[Call, Launch]]:
    """Every launch of a family's calls that is compiled differently, by its key, with the first call that has it."""
    found: dict[str, tuple[Call, Launch]] = {}
    for call in FAMILIES[family]():
        with _precision(call.tf32):
            captured = capture(call.workload, "triton", lambda: recording(target))
        for launch in (*captured.forward, *captured.backward):
            if call.again or not launch.options.get("SELECTS"):
                found.setdefault(launch.key, (call, launch))
    return found

"""Every case of every op in CUDA C++, executed on the CPU: memory watched, in every type and layout.

Each kernel with each set of constants, here and wherever memory is watched, runs in several orders of threads and
blocks the first times, and leaves the same bits (tests/support/cuda_cpu/run.py).
Ops and cases are found by themselves. What an op has besides (paths, tiles, edge cases) is in the file of its name.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import kernels
from kernels.backends import BACKENDS, load
from kernels.case import Case
from kernels.op import OPS
from tests.cuda_on_cpu import helpers
from tests.cuda_on_cpu.helpers import on_cpu
from tests.support import layouts, matrix

pytestmark = helpers.needs_harness

NAMES = tuple(n for n, op in OPS.items() if load(op.family, BACKENDS["cupy"]) and "cupy" in op.implementations)
#: Their kernels take seconds each to compile: in types other than float32 they run the ordinary cases alone.
RECURRENT = ("rnn_layer", "lstm_layer", "gru_layer")
LARGE = ("attention", "scaled_dot_product_attention", *RECURRENT)
#: bfloat16 differs from float16 in its conversions alone. Recurrences take it by every path in their own tests.
IN_BFLOAT16 = {"attention": ("heads", "causal", "mask", "bias by query, capped", "dropout")}
IN_BFLOAT16 |= dict.fromkeys(("scaled_dot_product_attention", *RECURRENT), ())


def cases_in(dtype: str) -> list[Any]:
    """One parameter (case, dtype) for each case that runs in a type."""
    found: list[Case] = []
    for name in NAMES:
        tags = ("ci",) if dtype == "bfloat16" or (dtype != "float32" and name in LARGE) else ("ci", "odd")
        cases = matrix.cases_of(name, *tags)
        if dtype == "bfloat16" and name in IN_BFLOAT16:
            cases = tuple(c for c in cases if c.name in IN_BFLOAT16[name])
        found += cases
    return [pytest.param(c, dtype, id=f"{c.id} {dtype}") for c in found]


@pytest.mark.parametrize("case, dtype", cases_in("float32") + cases_in("float64"))
def test_cases(case: Case, dtype: str):
    with on_cpu():
        helpers.report(helpers.complaints(case, dtype))


@pytest.mark.parametrize("case, dtype", cases_in("float16") + cases_in("bfloat16"))
def test_cases_in_half_precision(case: Case, dtype: str):
    complaints = in_two_steps if case.op == "conv2d_max_pool2d" else helpers.half_complaints
    with on_cpu(order="reverse"):
        helpers.report(complaints(case, dtype))


def in_two_steps(case: Case, dtype: str) -> list[str]:
    """conv2d_max_pool2d gives the bits of its two ops one after the other: rounding to half precision makes ties."""
    arguments = helpers.in_dtype(case.build("float32"), dtype)
    pool = {n.removeprefix("pool_"): arguments.pop(n) for n in list(arguments) if n.startswith("pool_")}
    y, back_y = kernels.vjp("conv2d", **arguments, backend="cupy")
    z, back_z = kernels.vjp("max_pool2d", y, **pool, backend="cupy")
    grad = helpers.numbers(*z.shape).astype(z.dtype)
    fused = arguments | {f"pool_{n}": v for n, v in pool.items()}
    found, pullback = kernels.vjp("conv2d_max_pool2d", **fused, backend="cupy")
    lines = [] if found.tobytes() == z.tobytes() else ["other results"]
    if arguments.get("activation") is None:
        pairs = zip(pullback(grad), back_y(*back_z(grad)), strict=True)
        lines += [f"gradient {i}" for i, (a, b) in enumerate(pairs) if a is not None and a.tobytes() != b.tobytes()]
    return lines


#: Which ordinary cases come in every layout: the first two, or these.
IN_LAYOUTS = {"softmax": slice(4), "log_softmax": slice(4), "cross_entropy": slice(3, 12, 2), "max_pool2d": slice(1, 2)}
IN_LAYOUTS |= {"layer_norm": slice(3), "rms_norm": slice(3), "conv2d_max_pool2d": slice(1, 2)}
ATTENTION_IN_LAYOUTS = ("heads", "mask", "bias", "log-sum-exp")


def with_layouts() -> tuple[Case, ...]:
    """These cases of every op; recurrences have theirs in their own tests."""
    found: list[Case] = [c for c in matrix.cases_of("attention", "ci") if c.name in ATTENTION_IN_LAYOUTS]
    for name in NAMES:
        if name not in LARGE:
            found += matrix.cases_of(name, "ci")[IN_LAYOUTS.get(name, slice(2))]
    return tuple(found)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("case", matrix.case_parameters(with_layouts()))
def test_any_layout(case: Case, layout: str):
    helpers.check_layout(case, layout)


def test_ops_are_these():
    """Those that lose the backend are noticed, and every op has cases of each kind here."""
    assert set(NAMES) == set(OPS)
    assert {p.values[0].op for p in cases_in("float16")} == set(OPS)


def test_a_case_that_is_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch):
    """The check itself: the gradient of relu with the other sign."""
    implementations = OPS["relu"].implementations
    right = implementations["cupy"]
    case = matrix.cases_of("relu", "ci")[0]

    def wrong(*arguments: Any, **keywords: Any) -> tuple[Any, ...]:
        assert right.backward is not None
        return tuple(None if a is None else np.negative(a) for a in right.backward(*arguments, **keywords))

    monkeypatch.setitem(implementations, "cupy", right)
    replace(right, backward=wrong)  # it takes the place of the right one
    with on_cpu():
        assert len(helpers.complaints(case, "float32")) == 1
    monkeypatch.undo()
    with on_cpu():
        assert helpers.complaints(case, "float32") == []

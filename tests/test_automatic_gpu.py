"""Automatic choice on a GPU: the speeds that stand beside the kernels, and what follows from them.

The choice is a function of declared facts, so no GPU is needed: backends are told that nothing is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import kernels
from kernels import dispatch
from kernels.backends import BACKENDS, load
from kernels.gpu_capture import specs_of
from kernels.gpu_workloads import WORKLOADS, Workload
from kernels.op import OPS, Problem
from kernels.runtime import cupy_gpu, triton_gpu
from kernels.runtime.targets import TARGETS

pytest.importorskip("triton", reason="the backend triton is one of those that are chosen from")

ROOT = Path(__file__).resolve().parents[1]
GPUS = ("triton", "cupy")
#: A call of the table of times: (case, pass, what Triton, CuPy are to torch).
Row = tuple[str, str, dict[str, float | None]]


def rows() -> list[Row]:
    """The tables of docs/gpu_times.md."""
    found: list[Row] = []
    for line in (ROOT / "docs/gpu_times.md").read_text().splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        if len(cells) == 5 and cells[1] in ("forward", "training"):
            ratios = [re.search(r"\(([\d.]+)\)", c) for c in cells[2:4]]
            found.append((cells[0], cells[1], {n: float(r[1]) if r else None for n, r in zip(GPUS, ratios)}))
    return found


def workload_of(case: str) -> Workload:
    """The call of a row: the table names op, name, shape and dtype in this order."""
    return next(w for w in WORKLOADS if w.id == case)


def problem_of(workload: Workload, training: bool) -> Problem:
    """Its problem, on a GPU."""
    op = OPS[workload.op]
    specs = [None if s is None else replace(s, device="cuda:0") for s in specs_of(op, workload)]
    wanted = tuple(training and name in op.differentiable and name in workload.shapes for name in op.inputs)
    return replace(op.problem.check(*specs, *workload.attributes), needs_grad=wanted)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """An H100 with all packages; what a test puts into it is another target, or what is missing."""
    facts: dict[str, Any] = {"target": "sm_90", "missing": set()}
    for name in GPUS:

        def missing(name: str = name) -> str | None:
            return f"{name} is not there" if name in facts["missing"] else None

        monkeypatch.setitem(BACKENDS, name, replace(BACKENDS[name], missing=missing))
    for module in (triton_gpu, cupy_gpu):
        # The one behind it too: other modules have the function itself by its name.
        for function in ("target_of_device", "_target_of_device"):
            monkeypatch.setattr(module, function, lambda index: TARGETS[facts["target"]])
    monkeypatch.setattr(dispatch, "_torch_has_cuda", lambda: True)
    for op in OPS.values():
        monkeypatch.setattr(op, "plans", {})
    yield facts


def chosen(problem: Problem, op: str, kind: str = "torch", *, eager: bool = True, wanted: str = "auto") -> str:
    return dispatch.resolve(OPS[op], problem, wanted, kind, "cuda", eager=eager).backend.name


# ----- the numbers -------------------------------------------------------------------------------------------------

#: Rows whose time of torch is not that of the backend "torch", or whose results are not the same, so that they are no
#: reason: torch's dropout has another mask, its biases may hide all keys of a query; of causality see torch_fused.py.
OTHERS = {"attention dropout", "attention bias", "attention causal", "attention wide causal"}
#: The decode kernel has two stages since, and takes 257 us in place of 352; of sm_90 no other row is behind CuPy's.
FASTER_SINCE = {"attention decode 16384 keys"}


def is_left(case: str, names: set[str]) -> bool:
    return any(re.match(rf"{re.escape(n)} [\dx]+ ", case) for n in names)


ROWS = [pytest.param(*row, id=f"{row[0]}, {row[1]}") for row in rows()]


def test_the_table_is_read():
    assert len(ROWS) > 90 and {r.values[1] for r in ROWS} == {"forward", "training"}
    assert sum(is_left(r.values[0], OTHERS) for r in ROWS) == 10


@pytest.mark.parametrize("missing", [set(), {"cupy"}, {"triton"}], ids=["all", "no CuPy", "no Triton"])
@pytest.mark.parametrize("case, passes, measured", ROWS)
def test_the_fastest_backend_is_chosen(
    case: str, passes: str, measured: dict[str, float | None], missing: set[str], gpu: dict[str, Any]
):
    """Of every call that was timed, as far as times differ by more than the margin."""
    gpu["missing"] = missing
    workload = workload_of(case)
    problem = problem_of(workload, passes == "training")
    name = chosen(problem, workload.op)
    assert name == chosen(problem, workload.op)
    if is_left(case, OTHERS | FASTER_SINCE) or any(measured[n] is None for n in {*GPUS} - missing):
        first = next(n for n in GPUS if n not in missing)
        assert name == first or not is_left(case, OTHERS | FASTER_SINCE)
        return
    speeds = {n: s for n, s in measured.items() if n not in missing and s is not None}
    if not problem.checks_values:
        speeds["torch"] = 1.0
    assert speeds[name] * dispatch.MARGIN >= max(speeds.values()), speeds


def test_every_number_is_the_tables():
    """Each class has the numbers of one case, or of the two that its words name."""
    table: dict[str, dict[str, Any]] = {}
    for case, passes, measured in rows():
        for backend, speed in measured.items():
            table.setdefault(case, {})[backend, passes] = speed
    seen = 0
    for workload in WORKLOADS:
        op = OPS[workload.op]
        for backend in GPUS:
            assert load(op.family, BACKENDS[backend])
        for passes in ("forward", "training"):
            problem = problem_of(workload, passes == "training")
            found = {op.implementations[b].measured(problem) for b in GPUS}
            assert len(found) == 1, "Triton and CuPy declare one and the same"
            (one,) = found
            if one is not None:
                numbers = {("triton", *one.triton), ("cupy", *one.cupy)}
                cases = [{(b, t[b, "forward"], t.get((b, "training"))) for b in GPUS} for t in table.values()]
                assert numbers in cases, f"{workload.id}: {one}"
                seen += 1
    assert seen > 40


# ----- what decides ------------------------------------------------------------------------------------------------


def training_in_tf32(training: bool = True) -> Problem:
    return problem_of(workload_of("conv2d 3x3 channels-last tf32 32x64x56x56 float32"), training)


def test_gradients_decide_for_both_passes(gpu: dict[str, Any]):
    assert chosen(training_in_tf32(False), "conv2d") == "triton"
    problem = training_in_tf32()
    assert chosen(problem, "conv2d") == "torch"
    found = dispatch.resolve(OPS["conv2d"], problem, "auto", "torch", "cuda")
    backward = dispatch.backward_of(OPS["conv2d"], problem, found, "torch", "cuda")
    assert backward is not None and backward.backend == "torch"


def test_torchs_setting_of_tf32_decides():
    cudnn = torch.backends.cudnn
    # flags() and no assignment, which torch's own test suite forbids in its process.
    with cudnn.flags(cudnn.enabled, cudnn.benchmark, cudnn.benchmark_limit, cudnn.deterministic, False):
        assert chosen(training_in_tf32(), "conv2d") == "triton"


@pytest.mark.parametrize("target", ["sm_80", "sm_100", "gfx942"])
def test_other_gpus_have_the_first_backend(target: str, gpu: dict[str, Any]):
    gpu["target"] = target
    assert chosen(training_in_tf32(), "conv2d") == "triton"


def test_torch_is_for_eager_tensors(gpu: dict[str, Any]):
    problem = training_in_tf32()
    assert chosen(problem, "conv2d", eager=False) == "triton"
    assert [chosen(problem, "conv2d", kind) for kind in ("cupy", "numpy")] == ["triton", "triton"]
    recurrent = problem_of(workload_of("lstm_layer streamed 100x32x256 bfloat16"), True)
    assert [chosen(recurrent, "lstm_layer", kind) for kind in ("torch", "cupy", "numpy")] == ["cupy"] * 3
    gpu["missing"] = {"cupy"}
    assert [chosen(recurrent, "lstm_layer", kind) for kind in ("torch", "cupy", "numpy")] == ["torch", *["triton"] * 2]


def test_a_named_backend_runs(gpu: dict[str, Any]):
    for name in (*GPUS, "torch"):
        assert chosen(training_in_tf32(), "conv2d", wanted=name) == name


def test_values_that_are_checked_stay_with_us(gpu: dict[str, Any]):
    """torch's own lookup ends the GPU's work at a wrong index, and ours would have to wait to find it first."""
    problem = problem_of(workload_of("embedding 32000x4096 bfloat16"), True)
    assert chosen(problem, "embedding") == "cupy"
    gpu["missing"] = {"cupy"}
    assert chosen(problem, "embedding") == "triton"


def test_a_backend_that_cannot_run_it_is_no_reason(gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dispatch, "_torch_has_cuda", lambda: False)
    assert chosen(training_in_tf32(), "conv2d") == "triton"


def test_the_reason_is_shown(gpu: dict[str, Any]):
    with FakeTensorMode():
        x, weight = (
            torch.empty(shape, device="cuda", memory_format=torch.channels_last)
            for shape in ((8, 64, 56, 56), (64, 64, 3, 3))
        )
        plain = kernels.explain("conv2d", x, weight)
        trained = kernels.explain("conv2d", x, weight.requires_grad_())
    assert plain.chosen == "triton" and trained.chosen == trained.backward == "torch"
    reasons = {c.backend.name: c.reasons for c in trained.candidates}
    assert reasons["triton"] == (
        "torch was measured 1.8 times as fast on sm_90 with gradients, for channels-last convolutions in tf32 "
        "(docs/gpu_times.md)",
    )
    assert reasons["torch"] == () and "torch      yes" in str(trained)


# ----- attention ---------------------------------------------------------------------------------------------------


def attention_problem(width: int = 64, length: int = 2048, dtype: str = "bfloat16", **changes: Any) -> Any:
    workload = replace(
        workload_of("attention 4x16x4096x128 bfloat16"),
        dtype=dtype,
        shapes=dict.fromkeys(("query", "key", "value"), (2, 16, length, width)),
    )
    return replace(problem_of(workload, changes.pop("training", False)), **changes)


def test_plain_attention_is_torchs(gpu: dict[str, Any]):
    for training in (False, True):
        for width in (64, 128, 256):
            assert chosen(attention_problem(width, training=training), "attention") == "torch"
    assert chosen(attention_problem(512, training=True), "attention") == "triton"
    for kept in (
        {"length": 512}, {"dtype": "float32"}, {"width": 60}, {"causal": "top_left"}, {"window": (5, 5)},
        {"softcap": 3.0}, {"scale": -1.0}, {"scale": 0.0}, {"return_lse": True}, {"dropout_p": 0.1},
    ):  # fmt: skip
        assert chosen(attention_problem(**kept), "attention") == "triton", kept


@pytest.mark.parametrize("training", [False, True])
def test_torchs_own_function_may_be_causal(training: bool, gpu: dict[str, Any]):
    with FakeTensorMode():
        query = torch.empty(4, 16, 4096, 64, device="cuda", dtype=torch.bfloat16, requires_grad=training)
        mask = torch.empty(4096, 4096, device="cuda", dtype=torch.bool)
        name = "scaled_dot_product_attention"
        assert kernels.explain(name, query, query, query, is_causal=True).chosen == "torch"
        assert kernels.explain(name, query, query, query).chosen == "torch"
        assert kernels.explain(name, query, query, query, mask).chosen == "triton"
        assert kernels.explain(name, query, query, query, dropout_p=0.1).chosen == "triton"
        assert kernels.explain("attention", query, query, query, causal="top_left").chosen == "triton"
        assert kernels.explain("attention", query, query, query).chosen == "torch"

"""What Triton's compiler makes of the kernels, through the path of a real launch, for GPUs that are not here.

The gates are shown to catch what they are for; then every kernel of the report passes them, and is no worse than in the
report that is committed (docs/gpu_kernels.json). Those for one target are compiled always, those for others where their
code or their launches are no longer those of the report, by its digests, and all of them in a test that is slow. After
a change that is meant: ``python -m kernels report --json docs/gpu_kernels.json --markdown docs/gpu_kernels.md``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels import gpu_gates, gpu_report
from kernels.gpu_workloads import REPORTED_TARGETS, WORKLOADS, Workload
from kernels.runtime import machine_code, triton_compile, triton_gpu
from kernels.runtime.machine_code import Compiled
from kernels.runtime.targets import TARGETS
from kernels.runtime.triton_compile import compiling
from tests.triton_on_cpu import helpers
from tests.triton_on_cpu import kernels_with_faults as faults

ROOT = Path(__file__).resolve().parents[2]
NVIDIA = ("sm_80", "sm_90", "sm_100")


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def compiled(target: str, kernel: Any, *arguments: Any, grid: int = 8, **options: Any) -> Compiled:
    with compiling(target) as found:
        triton_gpu.launch(kernel, (grid,), *arguments, **options)
    return found[0]


# ----- the gates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", NVIDIA)
def test_a_sound_kernel_passes(target: str):
    kernel = compiled(target, faults.copy, meta(4096), meta(4096), 4096, BLOCK=1024, num_warps=4)
    assert gpu_gates.gates(kernel) == []
    assert (kernel.wide, kernel.narrow, kernel.spills, kernel.stack) == (4, 0, 0, 0)


def test_narrow_accesses_are_caught():
    """Lengths that are no multiple of 16 cannot be vectors, nor can elements that are apart."""
    odd = compiled("sm_90", faults.copy, meta(4097), meta(4097), 4097, BLOCK=1024, num_warps=4)
    apart = compiled("sm_90", faults.scattered, meta(9000), meta(4096), 4096, 2, BLOCK=1024, num_warps=4)
    for kernel in (odd, apart):
        (complaint,) = gpu_gates.gates(kernel)
        assert "global accesses are narrower than 128 bits" in complaint


@pytest.mark.parametrize("target", NVIDIA)
def test_spilled_registers_are_caught(target: str):
    arguments = (meta(256, 256), meta(256, 256), meta(256, 256), 256)
    kernel = compiled(target, faults.too_much_at_once, *arguments, M=256, N=256, num_warps=4)
    assert any("instructions spill registers" in c for c in gpu_gates.gates(kernel))
    assert any("a stack of" in c for c in gpu_gates.gates(kernel))


def test_matrix_products_without_tensor_cores_are_caught(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(gpu_gates.MATRIX_KERNELS, "triton", {"too_much_at_once"})
    arguments = (meta(64, 64), meta(64, 64), meta(64, 64), 64)
    kernel = compiled("sm_90", faults.too_much_at_once, *arguments, M=64, N=64, num_warps=8, num_stages=2)
    found = gpu_gates.gates(kernel, "float16")
    assert "no (HGMMA|HMMA) in the loop" in found
    assert "no asynchronous copies, though there are stages" in found


@pytest.mark.parametrize("target", REPORTED_TARGETS["triton"])
def test_tensor_cores_are_seen(target: str):
    half = torch.float16
    arguments = (meta(64, 64, dtype=half), meta(64, 64, dtype=half), meta(64, 64))
    kernel = compiled(target, faults.product, *arguments, M=64, N=64, K=64, PRECISION="ieee", num_warps=4)
    assert kernel.count(kernel.matrix_instructions) > 0


@pytest.mark.parametrize("target", REPORTED_TARGETS["triton"])
def test_a_barrier_of_the_language_is_one_of_the_hardware(target: str):
    """In kernels without shared memory, where the compiler places none by itself."""
    arguments = (meta(4096), meta(4096), 4096)
    found = [
        compiled(target, kernel, *arguments, BLOCK=1024, num_warps=4).count(r"BAR\.SYNC|s_barrier")
        for kernel in (faults.hands_on_without_barrier, faults.hands_on_at_barriers)
    ]
    assert found == [0, 1]


def test_loads_past_the_caches_that_stores_reach_are_caught():
    whole = compiled("sm_90", faults.copy, meta(4096), meta(4096), 4096, BLOCK=1024, num_warps=4)
    facts = {f: getattr(whole, f) for f in whole.__dataclass_fields__}
    instructions = whole.instructions | {"LDG.E.128.CONSTANT": 1}
    named = Compiled(**(facts | {"name": "forward_sequence", "instructions": instructions}))
    assert "loads of what the program has stored go through the read-only path" in gpu_gates.gates(named)


@pytest.mark.parametrize(
    "rows, block, warps, dtype, expected",
    [
        (1, 1024, 4, "bfloat16", 1),
        (16, 64, 2, "bfloat16", 2),  # 8 threads to a row
        (32, 64, 4, "float64", 8),  # a warp to a row
        (4, 64, 4, "bfloat16", 2),  # a row of a thread's, in two layouts
    ],
)
def test_numbers_of_rows_are_allowed_for_each_row_of_a_thread(
    rows: int, block: int, warps: int, dtype: str, expected: int
):
    whole = compiled("sm_90", faults.copy, meta(4096), meta(4096), 4096, BLOCK=1024, num_warps=4)
    facts = {f: getattr(whole, f) for f in whole.__dataclass_fields__}
    kernel = Compiled(**(facts | {"options": {"ROWS": rows, "BLOCK": block}, "warps": warps}))
    assert gpu_gates._rows_of_thread(kernel, dtype) == expected


def test_too_much_shared_memory_and_registers_are_caught():
    whole = compiled("sm_90", faults.copy, meta(4096), meta(4096), 4096, BLOCK=1024, num_warps=4)
    facts = {f: getattr(whole, f) for f in whole.__dataclass_fields__}
    huge = Compiled(**(facts | {"shared": 300_000}))
    assert gpu_gates.gates(huge) == [
        "300000 bytes of shared memory, there are 232448",
        "no block fits on a multiprocessor: does not launch",
    ]


@pytest.mark.parametrize("target", NVIDIA)
def test_many_kernels_are_read_as_each_is_alone(target: str):
    """Loops too, which are found by the labels of the one listing, by the places of the other."""
    half = torch.float16
    matrices = (meta(64, 64, dtype=half), meta(64, 64, dtype=half), meta(64, 64))
    launches: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
        (faults.copy, (meta(4096), meta(4096), 4096), {"BLOCK": 1024}),
        (faults.too_much_at_once, (meta(256, 256), meta(256, 256), meta(256, 256), 256), {"M": 256, "N": 256}),
        (faults.product, matrices, {"M": 64, "N": 64, "K": 64, "PRECISION": "ieee"}),
    ]
    gpu = TARGETS[target]
    with triton_compile._driver_of(gpu):
        cubins = [k.warmup(*given, grid=(8,), num_warps=4, **o).asm["cubin"] for k, given, o in launches]
    many = machine_code.read_many_nvidia(cubins, gpu)
    assert many == [fact for cubin in cubins for fact in machine_code.read_nvidia(cubin, gpu.reserved).values()]
    assert [bool(facts["loop"]) for facts in many[:2]] == [False, True]
    assert machine_code.read_many_nvidia([], gpu) == []


def test_code_must_be_of_one_kernel():
    with pytest.raises(ValueError, match="^cubin must have one section of instructions, got 0$"):
        machine_code._code(bytes(64))


# ----- the report --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "docs" / "gpu_kernels.json").read_text())
    return found


@pytest.fixture(scope="module")
def committed(report: dict[str, Any]) -> dict[str, Any]:
    return {gpu_report.key(row): row for row in report["kernels"]}


COMPILED = [(w, t) for w in WORKLOADS for t in w.targets("triton")]
#: The target whose kernels are compiled in every run.
ALWAYS = "sm_90"


def complaints_of(workload: Workload, target: str, committed: dict[str, Any]) -> list[str]:
    """What of a workload's kernels breaks a rule or is worse than in the report."""
    complaints = []
    for done in gpu_report.compile_workload(workload, target):
        assert done.kernels
        for kernel in done.kernels:
            row = gpu_report.row_of(workload, done.name, kernel)
            old = committed.get(gpu_report.key(row))
            if old is None:
                complaints.append(f"{done.name} {kernel.name}: {row['tile']} is not in docs/gpu_kernels.json")
                continue
            found = gpu_gates.gates(kernel, workload.dtype) + gpu_gates.worse(row, old)
            complaints += [f"{done.name} {kernel.name}: {c}" for c in found]
    return complaints


def parameters(pairs: list[tuple[Workload, str]]) -> list[Any]:
    return [pytest.param(w, t, id=f"{w.id}-{t}") for w, t in pairs]


@pytest.mark.parametrize("workload, target", parameters(COMPILED))
def test_every_kernel_passes_the_gates_and_is_no_worse(
    workload: Workload, target: str, report: dict[str, Any], committed: dict[str, Any]
):
    known = report.get("digests", {}).get(f"{workload.id} | {target}")
    if target == ALWAYS or known != gpu_report.digest_of(workload, target):
        helpers.report(complaints_of(workload, target, committed))


@pytest.mark.slow
@pytest.mark.parametrize("workload, target", parameters([(w, t) for w, t in COMPILED if t != ALWAYS]))
def test_every_kernel_for_other_targets_too(workload: Workload, target: str, committed: dict[str, Any]):
    helpers.report(complaints_of(workload, target, committed))


def test_no_line_of_the_report_breaks_a_rule(report: dict[str, Any]):
    assert [gpu_report.key(row) for row in report["kernels"] if "broken" in row] == []


def test_the_report_names_what_is_worse(committed: dict[str, Any]):
    old = next(r for r in committed.values() if r["target"] == "sm_90" and r["wide"])
    assert gpu_gates.worse(old, old) == []
    assert gpu_gates.worse(old | {"registers": old["registers"] + 9}, old) == [
        f"registers {old['registers'] + 9}, were {old['registers']}"
    ]
    assert "narrow" in gpu_gates.worse(old | {"narrow": old["narrow"] + 1}, old)[0]
    assert "occupancy 0.0, was" in gpu_gates.worse(old | {"occupancy": 0.0}, old)[0]
    assert gpu_gates.worse(old | {"matrix": 0}, old | {"matrix": 4}) == ["matrix 0, were 4"]


def test_the_committed_tables_are_those_of_the_committed_report():
    report = json.loads((ROOT / "docs" / "gpu_kernels.json").read_text())
    assert gpu_report.document(report) == (ROOT / "docs" / "gpu_kernels.md").read_text()
    for backend, targets in REPORTED_TARGETS.items():
        assert {row["target"] for row in report["kernels"] if row["backend"] == backend} == set(targets)
    assert {p["workload"] for p in report["passes"]} == {w.id for w in WORKLOADS}


def test_floors_are_bytes_over_bandwidth():
    """An H100 SXM reads and writes 3.35e12 bytes a second."""
    report = json.loads((ROOT / "docs" / "gpu_kernels.json").read_text())
    (found,) = [p for p in report["passes"] if p["workload"] == "softmax 8192x8192 bfloat16" and p["pass"] == "forward"]
    assert found["bytes"] == 2 * 2 * 8192 * 8192
    assert found["h100_floor_us"] == round(2 * 2 * 8192 * 8192 / 3.35e12 * 1e6, 1)


def test_the_report_needs_triton_and_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(gpu_report, "find_spec", lambda name: None)
    assert gpu_report.main([]) == 2
    assert capsys.readouterr().err.startswith("report: ")

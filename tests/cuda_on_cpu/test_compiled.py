"""What NVRTC makes of the CUDA C++ kernels, through CuPy's own path, for GPUs that are not here.

The gates are shown to catch what they are for; then every launch of every op's cases is sound, every kernel of the
report passes all gates and is no worse than in the report that is committed (docs/gpu_kernels.json). New ops, cases and
workloads are found by themselves. After a change that is meant: ``python -m kernels report --backend cupy --json
docs/gpu_kernels.json --markdown docs/gpu_kernels.md``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels import cupy_configurations, gpu_capture, gpu_gates, gpu_report
from kernels.backends import BACKENDS, load
from kernels.case import Case, all_cases
from kernels.conv2d.cuda_tiles import product_tiles
from kernels.gpu_workloads import REPORTED_TARGETS, WORKLOADS, Workload
from kernels.op import OPS
from kernels.runtime import cuda_source, cupy_compile, cupy_gpu
from kernels.runtime.machine_code import Compiled
from tests.cuda_on_cpu import helpers
from tests.support import matrix

ROOT = Path(__file__).resolve().parents[2]
TARGETS = REPORTED_TARGETS["cupy"]
MISSING = cupy_compile.missing()

pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"compiling CUDA C++: {MISSING}")


def cupy_ops() -> tuple[str, ...]:
    """Ops with kernels in CUDA C++."""
    return tuple(n for n, op in OPS.items() if load(op.family, BACKENDS["cupy"]) and "cupy" in op.implementations)


# ----- the gates ---------------------------------------------------------------------------------------------------

KERNELS = {
    "copy": """extern "C" __global__ void copy(const float4* x, float4* y, int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) y[i] = x[i];
}""",
    "narrow": """extern "C" __global__ void narrow(const float* x, float* y, int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) y[i] = x[i];
}""",
    "spills": """extern "C" __global__ void __launch_bounds__(1024) spills(const float4* x, float4* y, int n) {
  float4 kept[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) kept[i] = x[i * n + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) y[i * n + threadIdx.x] = kept[63 - i];
}""",
    "indexed": """extern "C" __global__ void indexed(const float4* x, float4* y, int n) {
  float kept[64];
  for (int i = 0; i < 64; ++i) kept[i] = i;
  for (int i = 0; i < n; ++i) kept[(int)x[i].x & 63] += x[i].y;
  y[threadIdx.x].x = kept[threadIdx.x & 63];
}""",
    "refused": """#include <cstdint>
extern "C" __global__ void refused(const float* x, float* y, int n) {}""",
    "product": """#include <mma.h>
extern "C" __global__ void product(const __half* x, const __half* y, float* out) {
  using namespace nvcuda::wmma;
  fragment<matrix_a, 16, 16, 16, __half, row_major> a;
  fragment<matrix_b, 16, 16, 16, __half, col_major> b;
  fragment<accumulator, 16, 16, 16, float> c;
  fill_fragment(c, 0.f);
  load_matrix_sync(a, x, 16);
  load_matrix_sync(b, y, 16);
  mma_sync(c, a, b, c);
  store_matrix_sync(out, c, 16, mem_row_major);
}""",
}


def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, target: str, threads: int = 256) -> Compiled:
    """A kernel of `KERNELS` through the path of a launch."""
    (tmp_path / f"{name}.cu").write_text(KERNELS[name])
    monkeypatch.setattr(cuda_source, "ROOT", tmp_path)
    dtypes = ("float16", "float16", "float32") if name == "product" else ("float32", "float32")
    arrays = [np.empty(64, dtype) for dtype in dtypes]
    with cupy_compile.compiling(target) as found:
        cupy_gpu.launch(
            f"{name}.cu", name, (8,), (threads,), *arrays, *(() if name == "product" else (16,)), constants={}
        )
    return found[0]


@pytest.mark.parametrize("target", TARGETS)
def test_a_sound_kernel_passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str):
    kernel = compiled(monkeypatch, tmp_path, "copy", target)
    assert gpu_gates.gates(kernel) == []
    assert kernel.wide > 0 and (kernel.narrow, kernel.spills, kernel.stack, kernel.shared) == (0, 0, 0, 0)
    assert (kernel.warps, kernel.backend, kernel.grid) == (8, "cupy", (8,))
    assert kernel.loop and kernel.count("LDG.E.128", in_loop=True) > 0


@pytest.mark.parametrize("target", TARGETS)
def test_narrow_accesses_are_caught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str):
    (complaint,) = gpu_gates.gates(compiled(monkeypatch, tmp_path, "narrow", target))
    assert "global accesses are narrower than 128 bits" in complaint


@pytest.mark.parametrize("target", TARGETS)
def test_spilled_registers_are_caught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str):
    kernel = compiled(monkeypatch, tmp_path, "spills", target)
    found = gpu_gates.soundness(kernel)
    assert any("instructions spill registers" in c for c in found) and any("a stack of" in c for c in found)


def test_local_arrays_are_caught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert "a stack of 256 bytes" in gpu_gates.soundness(compiled(monkeypatch, tmp_path, "indexed", "sm_90"))


@pytest.mark.parametrize("target", TARGETS)
def test_tensor_cores_are_seen_and_missed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str):
    monkeypatch.setitem(gpu_gates.MATRIX_KERNELS, "cupy", {"product", "narrow"})
    product = compiled(monkeypatch, tmp_path, "product", target, 32)
    assert product.count(product.matrix_instructions) > 0
    assert not any("in the loop" in c for c in gpu_gates.gates(product, "float16"))
    without = gpu_gates.gates(compiled(monkeypatch, tmp_path, "narrow", target), "float16")
    assert f"no {product.matrix_instructions} in the loop" in without


def test_blocks_larger_than_a_kernel_is_compiled_for_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with pytest.raises(ValueError, match=r"^spills: block must have 1 to 1024 threads, got \(1025,\)$"):
        compiled(monkeypatch, tmp_path, "spills", "sm_90", 1025)


def test_what_nvrtc_refuses_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A header that g++ has and NVRTC has not; the message names the file and the line."""
    with pytest.raises(Exception, match=r"(?s)refused.cu\(1\): .*error: cannot open source file .cstdint."):
        compiled(monkeypatch, tmp_path, "refused", "sm_90")


# ----- every launch of every case ----------------------------------------------------------------------------------

CASES = matrix.case_parameters(tuple(c for c in all_cases("ci", "odd") if c.op in cupy_ops()))


def compile_case(case: Case, dtype: str, target: str) -> list[Compiled]:
    """The launches of a case, forward and backward, compiled; its arrays hold the case's numbers."""
    arguments = helpers.in_dtype(case.build("float32"), dtype)
    captured = matrix.capture(case.op, **arguments)
    problem = captured.problem(True)
    op, implementation = captured.op, captured.op.implementations["cupy"]
    if problem.empty or implementation.why_not(problem):
        return []
    assert implementation.backward is not None
    with cupy_compile.compiling(target, cupy_compile.resources) as found:
        results = implementation.forward(problem, *captured.inputs)
        known = dict(zip((*op.inputs, *op.results), (*captured.inputs, *results), strict=True))
        gradients = [None if r is None else np.zeros_like(r) for r in results[: op.differentiable_results]]
        implementation.backward(problem, *gradients, **{name: known[name] for name in problem.saved()})
    return found


@pytest.mark.parametrize("case", CASES)
def test_every_launch_of_every_case_is_sound(case: Case):
    """For one target, in float32 and half precision: nothing on the stack, and every block fits."""
    complaints = []
    for dtype in ("float32", "float16"):
        for kernel in compile_case(case, dtype, "sm_90"):
            complaints += [f"{kernel.name} {kernel.options} {dtype}: {c}" for c in gpu_gates.soundness(kernel)]
    helpers.report(complaints)


# ----- every configuration -----------------------------------------------------------------------------------------


# They are compiled by ``python -m kernels.cupy_configurations --json docs/cuda_configurations.json``, which takes long;
# here is what they are, and whether that is what was compiled.


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("family", cupy_configurations.FAMILIES)
def test_every_configuration_was_compiled_and_breaks_no_rule(family: str, target: str):
    found = json.loads((ROOT / "docs" / "cuda_configurations.json").read_text())
    now = [launch for _, launch in cupy_configurations.launches(family, target)]
    assert found["compiler"] == cupy_compile.version()
    expected = {"digest": cupy_configurations.digest(now), "compiled": len(now), "broken": []}
    assert found["families"][family][target] == expected


def test_configurations_are_compiled_and_held_to_the_gates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    calls = [c for c in cupy_configurations.FAMILIES["elements"]() if c.workload.op in ("relu", "embedding")][:2]
    monkeypatch.setitem(cupy_configurations.FAMILIES, "few", lambda: iter(calls))
    command = ["few", "--target", "sm_90", "--json", str(tmp_path / "found.json")]
    assert cupy_configurations.main(command) == 0
    found = json.loads((tmp_path / "found.json").read_text())["families"]["few"]["sm_90"]
    assert (found["compiled"], found["broken"]) == (2, [])
    monkeypatch.setattr(gpu_gates, "gates", lambda *_: ["a rule"])
    assert cupy_configurations.main(command) == 0  # nothing is compiled again
    complaints = cupy_configurations.broken(cupy_configurations.launches("few", "sm_90"), "sm_90")
    assert len(complaints) == 2 and all(c.endswith(": a rule") for c in complaints)
    assert cupy_configurations.main(command[:-2]) == 1


def test_a_digest_is_of_code_and_constants(monkeypatch: pytest.MonkeyPatch):
    known = [launch for _, launch in cupy_configurations.launches("linear losses", "sm_90")]
    same = cupy_configurations.digest(known)
    assert cupy_configurations.digest(known[::-1]) == same != cupy_configurations.digest(known[1:])
    real = cuda_source.expanded
    for change, changes in (("\n// A word more.\n", False), ("\n__device__ int five = 5;\n", True)):
        monkeypatch.setattr(cuda_source, "expanded", lambda file, more=change: more + real(file))
        cupy_configurations._code.cache_clear()
        assert (cupy_configurations.digest(known) != same) == changes
    cupy_configurations._code.cache_clear()


def test_every_tile_of_products_is_among_the_configurations():
    found: dict[Any, set[Any]] = {name: set() for name in ("__half", "__nv_bfloat16", "float", "double")}
    for _, launch in cupy_configurations.launches("convolutions", "sm_90"):
        if launch.kernel == "convolve":
            known = dict(launch.source.constants)
            found[known["STORAGE"]].add((known["TILE_ROWS"], known["TILE_COLUMNS"]))
    for storage, itemsize in (("__nv_bfloat16", 2), ("float", 4), ("double", 8)):
        assert found[storage] == {(t.rows, t.columns) for t in product_tiles(itemsize)}


# ----- the report --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    rows = json.loads((ROOT / "docs" / "gpu_kernels.json").read_text())["kernels"]
    return {gpu_report.key(row): row for row in rows if row["backend"] == "cupy"}


REPORTED = [
    w for w in WORKLOADS if w.op in cupy_ops() and w.targets("cupy") and gpu_capture.why_not(w, "cupy") is None
]
COMPILED = [pytest.param(w, t, id=f"{w.id}-{t}") for w in REPORTED for t in w.targets("cupy")]


@pytest.mark.parametrize("workload, target", COMPILED)
def test_every_kernel_passes_the_gates_and_is_no_worse(workload: Workload, target: str, committed: dict[str, Any]):
    complaints = []
    for done in gpu_report.compile_workload(workload, target, "cupy"):
        assert done.kernels
        for kernel in done.kernels:
            row = gpu_report.row_of(workload, done.name, kernel)
            old = committed.get(gpu_report.key(row))
            if old is None:
                complaints.append(f"{done.name} {kernel.name}: {row['tile']} is not in docs/gpu_kernels.json")
                continue
            found = gpu_gates.gates(kernel, workload.dtype) + gpu_gates.worse(row, old)
            complaints += [f"{done.name} {kernel.name}: {c}" for c in found]
    helpers.report(complaints)


def test_the_report_has_every_workload(committed: dict[str, Any]):
    assert {row["workload"] for row in committed.values()} == {w.id for w in REPORTED}


def test_a_part_of_the_report_can_be_renewed():
    old = json.loads((ROOT / "docs" / "gpu_kernels.json").read_text())
    part = {"compilers": {"cupy": "new"}, "passes": [], "kernels": []}
    row = next(r for r in old["kernels"] if r["backend"] == "cupy" and r["target"] == "sm_90")
    part["kernels"] = [row | {"registers": 999}]
    found = gpu_report.updated(old, part)
    same = [r for r in found["kernels"] if r["registers"] == 999]
    assert len(same) == 1 and found["compilers"]["cupy"] == "new" and "triton" in found["compilers"]
    removed = [r for r in old["kernels"] if all(r[n] == row[n] for n in ("backend", "workload", "target"))]
    assert len(found["kernels"]) == len(old["kernels"]) - len(removed) + 1


def test_shapes_of_the_report_are_those_of_its_kernels():
    """A sanity check of the whole path: the grid covers the rows, the constants are the block's."""
    workload = next(w for w in WORKLOADS if w.id == "softmax 8192x8192 bfloat16")
    forward, backward = gpu_report.compile_workload(workload, "sm_90", "cupy")
    assert [k.name for k in forward.kernels] == ["softmax_rows"] and forward.kernels[0].grid == (8192,)
    assert [k.name for k in backward.kernels] == ["softmax_gradient_rows"]
    assert forward.kernels[0].options == {"VECTOR": 8, "STEPS": 2} and forward.kernels[0].warps == 16

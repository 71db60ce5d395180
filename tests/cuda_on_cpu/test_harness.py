"""The harness for CUDA C++: every kind of fault is caught and named, and sound kernels do what CUDA says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kernels
from tests.cuda_on_cpu import helpers
from tests.cuda_on_cpu.kernels_with_faults import FAULTS, SOUND
from tests.support.cuda_cpu import KernelFault, module
from tests.support.cuda_cpu.run import ORDERS, SHOWN, _shown, in_every_order, launch, on_cpu, order_number

pytestmark = helpers.needs_harness

Array = np.ndarray[Any, Any]
BEGIN = '#line 1 "kernel.cu"\nextern "C" __global__ void '


def run(text: str, grid: tuple[int, ...], block: tuple[int, ...], *arguments: Any, check: str = "full", **options: Any):
    """Launch the only kernel of a text."""
    (name,) = module.kernels_of(text)
    compiled = module.compiled_text(text, (), check)
    return launch(compiled, name, grid, block, arguments, names=("x", "y", "n"), **options)


# ----- faults ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_caught_where_memory_is_watched(name: str):
    planted = FAULTS[name]
    arrays = [np.zeros(n, np.float32) for n in planted.lengths]
    with pytest.raises(KernelFault, match=planted.message):
        run(planted.text, planted.grid, planted.block, *arrays, shared=planted.shared, seconds=1)


@pytest.mark.parametrize("name", FAULTS)
def test_faults_that_are_caught_without_watching(name: str):
    planted = FAULTS[name]
    arrays = [np.zeros(n, np.float32) for n in planted.lengths]
    message = planted.message if planted.fast is None else planted.fast
    message = message.replace("^k: 4-byte store at the wild address 0x10 ", "bad address 0x10")
    if not message:
        run(planted.text, planted.grid, planted.block, *arrays, shared=planted.shared, check="fast")
        return
    with pytest.raises(KernelFault, match=message):
        run(planted.text, planted.grid, planted.block, *arrays, shared=planted.shared, seconds=1, check="fast")


@pytest.mark.parametrize("check", module.CHECKS)
def test_a_missing_barrier_shows_in_another_order(check: str):
    """Without watching, because the result then differs from the one in order."""
    text = FAULTS["missing barrier"].text
    answers = []
    for order in ("forward", "reverse"):
        x, y = helpers.numbers(64), np.zeros(64, np.float32)
        if check == "full":
            with pytest.raises(KernelFault, match="race"):
                run(text, (1,), (64,), x, y, order=order_number(order))
        else:
            run(text, (1,), (64,), x, y, check=check, order=order_number(order))
            answers.append(y)
    if check == "fast":
        assert np.isnan(answers[0]).sum() == 32 and np.isnan(answers[1]).sum() == 32
        assert not np.array_equal(answers[0], answers[1], equal_nan=True)


def test_sums_in_the_order_of_threads_are_caught():
    """Atomics are no race, but what they add up has the bits of an order."""
    text = BEGIN + "k(const float* x, float* y) { atomicAdd(&y[0], x[threadIdx.x]); }"
    compiled = module.compiled_text(text)
    orders = [order_number(*o) for o in ORDERS]

    def done(x: Array) -> Array:
        y = np.ones(1, np.float32)
        given = (x, y)
        in_every_order("k", given, lambda number: launch(compiled, "k", (1,), (64,), given, order=number), orders)
        return y

    assert done(np.ones(64, np.float32)) == 65  # once, though it ran three times
    with pytest.raises(KernelFault, match="^k: writeable array 1 has other bits in order 1 than in 0$"):
        done(np.float32(10.0) ** np.linspace(-3, 8, 64, dtype=np.float32))


def test_what_runs_in_every_order():
    """Every kernel with every set of constants, until it was seen so a few times with several blocks and warps."""
    x = helpers.numbers(3, 200)
    with on_cpu() as launched:
        kernels.relu(x, backend="cupy")
    ((kernel,), (source,)) = launched.kernels, launched.sources
    with on_cpu():
        for _ in range(SHOWN + 1):
            kernels.relu(helpers.numbers(40, 200), backend="cupy")
    assert _shown[source, kernel] == SHOWN


@pytest.mark.parametrize("check", module.CHECKS)
def test_shared_memory_that_nobody_wrote_is_nan(check: str):
    text = (
        BEGIN
        + """k(const float* x, float* y) {
  __shared__ float s[32];
  if (threadIdx.x < 16) s[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}"""
    )
    y = np.zeros(32, np.float32)
    run(text, (1,), (32,), np.zeros(1, np.float32), y, check=check)
    assert np.isnan(y).tolist() == [False] * 16 + [True] * 16


@pytest.mark.parametrize("check", module.CHECKS)
@pytest.mark.parametrize(
    "value, found", [(np.int64(5), "integer of 64"), (np.float32(5), "floating of 32"), (None, "pointer of 64")]
)
def test_wrong_types_of_arguments_are_caught(check: str, value: Any, found: str):
    x = np.zeros(4, np.float32)
    with pytest.raises(KernelFault, match=rf"^copy: n must be a integer of 32 bits, got a {found}$"):
        run(SOUND, (1,), (4,), x, x.copy(), value, check=check)


def test_wrong_numbers_of_arguments_are_caught():
    with pytest.raises(KernelFault, match=r"^copy: the kernel takes 3 arguments, got 1$"):
        run(SOUND, (1,), (4,), np.zeros(4, np.float32))


@pytest.mark.parametrize("block, grid", [((1025,), (1,)), ((2, 2, 65), (1,)), ((32,), (1, 65536))])
def test_launches_that_no_gpu_takes(block: tuple[int, ...], grid: tuple[int, ...]):
    x = np.zeros(4, np.float32)
    with pytest.raises(KernelFault, match="^copy: a (block|grid) must have "):
        run(SOUND, grid, block, x, x.copy(), np.int32(4))


def test_what_the_compiler_refuses_is_shown():
    with pytest.raises(RuntimeError, match=r"(?s)^g\+\+ refuses a kernel:.*kernel.cu:2:.*no_such_function"):
        module.compiled_text(BEGIN + "k(float* y) {\n  y[0] = no_such_function(1);\n}")


def test_a_fault_leaves_the_process_as_it_was():
    """Faults one after another, through signals too, and a sound kernel behind them; Ctrl-C still works."""
    program = """
import numpy as np, signal
from tests.cuda_on_cpu.kernels_with_faults import FAULTS, SOUND
from tests.support.cuda_cpu import KernelFault, module
from tests.support.cuda_cpu.run import launch
before = signal.getsignal(signal.SIGINT)  # ignored where a shell runs the tests in the background
for name in ("wild address", "local arrays larger than a stack", "division by zero", "missing barrier"):
    planted = FAULTS[name]
    for check in ("fast", "full"):
        arrays = [np.zeros(n, np.float32) for n in planted.lengths]
        try:
            launch(module.compiled_text(planted.text, (), check), "k", planted.grid, planted.block, tuple(arrays))
        except KernelFault as fault:
            print(check, name)
x, y = np.arange(100, dtype=np.float32), np.zeros(100, np.float32)
launch(module.compiled_text(SOUND), "copy", (4,), (32,), (x, y, np.int32(100)))
print(np.array_equal(x, y), signal.getsignal(signal.SIGINT) is before)
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True True" and len(done.stdout.splitlines()) == 8, done.stdout


# ----- arrays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", module.CHECKS)
def test_strided_arrays_are_read_where_they_lie(check: str):
    text = BEGIN + "k(const float* x, float* y, int n) { y[threadIdx.x] = x[(int)threadIdx.x * n]; }"
    base, y = helpers.numbers(64), np.zeros(8, np.float32)
    run(text, (1,), (8,), base[3:60:7], y, np.int32(7), check=check)
    np.testing.assert_array_equal(y, base[3:53:7])
    run(text, (1,), (8,), base[56::-7], y, np.int32(-7), check=check)
    np.testing.assert_array_equal(y, base[56::-7][:8])


def test_gaps_of_strided_arrays_are_nobodys():
    text = BEGIN + "k(const float* x, float* y, int n) { y[threadIdx.x] = x[threadIdx.x]; }"
    message = r"^k: out-of-bounds 4-byte load in a gap of the strided x \[block \(0, 0, 0\) thread \(1, 0, 0\)\]"
    with pytest.raises(KernelFault, match=message):
        run(text, (1,), (8,), np.zeros(16, np.float32)[::2], np.zeros(8, np.float32), np.int32(1))


def test_parts_of_an_array_far_apart_are_watched_each():
    far = np.empty(2**28, np.float32)
    x = np.lib.stride_tricks.as_strided(far, (2, 8), (2**29, 4))
    x[...] = helpers.numbers(2, 8)
    text = (
        BEGIN
        + "k(const float* x, float* y, int n) { y[threadIdx.x] = x[(long long)threadIdx.x / 8 * n + threadIdx.x % 8]; }"
    )
    y = np.zeros(16, np.float32)
    run(text, (1,), (16,), x, y, np.int32(2**27))
    np.testing.assert_array_equal(y.reshape(2, 8), x)
    with pytest.raises(KernelFault, match=r"out-of-bounds 4-byte load: byte 32 of x \(32 bytes\)"):
        run(text, (1,), (16,), x, y, np.int32(8))


@pytest.mark.parametrize("check", module.CHECKS)
def test_null_pointers_arrive(check: str):
    text = BEGIN + "k(const float* x, float* y, int n) { y[0] = x ? 1 : 2; }"
    y = np.zeros(1, np.float32)
    run(text, (1,), (1,), None, y, np.int32(0), check=check)
    assert y[0] == 2


# ----- what CUDA says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
@pytest.mark.parametrize("check", module.CHECKS)
def test_collectives(check: str, order: str):
    text = (
        BEGIN
        + """k(const float* x, float* y, int n) {
  int lane = threadIdx.x % 32;
  int total = threadIdx.x;
  for (int d = 1; d < 32; d *= 2) {
    int other = __shfl_up_sync(0xffffffffu, total, d);
    if (lane >= d) total += other;
  }
  int odd = __popc(__ballot_sync(0xffffffffu, lane & 1));
  int down = __shfl_down_sync(0xffffffffu, (int)threadIdx.x, 3);
  int eights = __shfl_xor_sync(0xffffffffu, (int)threadIdx.x, 1, 8);
  int third = __shfl_sync(0xffffffffu, (int)threadIdx.x, 3, 4);
  bool any = __any_sync(0xffffffffu, lane == 5), all = __all_sync(0xffffffffu, lane < 31);
  int many = __syncthreads_count(threadIdx.x < 40);
  bool one = __syncthreads_or(threadIdx.x == 63), each = __syncthreads_and(threadIdx.x < 64);
  float* p = y + threadIdx.x * 8;
  p[0] = total; p[1] = odd; p[2] = down; p[3] = eights; p[4] = third; p[5] = any * 2 + all; p[6] = many;
  p[7] = one * 2 + each;
}"""
    )
    y = np.zeros((64, 8), np.float32)
    run(text, (1,), (64,), np.zeros(1, np.float32), y, np.int32(0), check=check, order=order_number(order, 5))
    t = np.arange(64)
    np.testing.assert_array_equal(y[:, 0], np.concatenate([np.cumsum(t[:32]), np.cumsum(t[32:])]))
    assert (y[:, 1] == 16).all() and (y[:, 5] == 2).all() and (y[:, 6] == 40).all() and (y[:, 7] == 3).all()
    np.testing.assert_array_equal(y[:, 2], np.where(t % 32 < 29, t + 3, t))
    np.testing.assert_array_equal(y[:, 3], t ^ 1)
    np.testing.assert_array_equal(y[:, 4], t // 4 * 4 + 3)


def test_synchronised_warps_and_atomics_are_no_races():
    text = (
        BEGIN
        + """k(const float* x, float* y, int n) {
  __shared__ float s[64];
  s[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  atomicAdd(&y[0], s[threadIdx.x ^ 1]);
}"""
    )
    x, y = np.ones(64, np.float32), np.zeros(1, np.float32)
    counts = run(text, (3,), (64,), x, y, np.int32(0))
    assert y[0] == 192 and counts["atomics"] == 192


@pytest.mark.parametrize("storage, name", [("__half", "float16"), ("__nv_bfloat16", "bfloat16")])
def test_matrix_products_of_halves(storage: str, name: str):
    from kernels.runtime.cupy_gpu import numpy_dtype

    text = (
        f"#include <mma.h>\n#define T {storage}\n"
        + BEGIN
        + """k(const T* x, const T* y, float* out) {
  using namespace nvcuda::wmma;
  fragment<matrix_a, 16, 16, 16, T, row_major> a;
  fragment<matrix_b, 16, 16, 16, T, col_major> b;
  fragment<accumulator, 16, 16, 16, float> c;
  fill_fragment(c, 0.f);
  load_matrix_sync(a, x, 16);
  load_matrix_sync(b, y, 16);
  mma_sync(c, a, b, c);
  store_matrix_sync(out, c, 16, mem_row_major);
}"""
    )
    a, b = (helpers.numbers(16, 16, seed=s).astype(numpy_dtype(name)) for s in (0, 1))
    out = np.zeros((16, 16), np.float32)
    for profile in (False, True):
        out[...] = np.nan
        counts = run(text, (1,), (32,), a, b, out, profile=profile)
        np.testing.assert_allclose(out, a.astype(np.float64) @ b.astype(np.float64).T, atol=1e-5)
    # Each lane asks for 16 bytes of each factor, as ldmatrix does.
    assert counts["global_loaded"] == 2 * 512 and counts["load_requests"] == 2


def test_numbers_are_flushed_and_fused_as_cupy_has_them():
    text = BEGIN + "k(const float* x, float* y, int n) { y[0] = x[0] * 0.5f; y[1] = x[1] * x[1] + x[2]; }"
    x = np.array([np.finfo(np.float32).tiny, 1 + 2.0**-12, -(1 + 2.0**-11)], np.float32)
    y = np.ones(2, np.float32)
    run(text, (1,), (1,), x, y, np.int32(0))
    assert y[0] == 0 and y[1] == np.float32(2.0**-24)


def test_functions_of_floats_are_those_of_single_precision():
    text = (
        BEGIN
        + """k(const float* x, float* y, int n) {
  y[0] = sizeof(exp(x[0])) + sizeof(sqrt(x[0])) + sizeof(log(x[0]));
}"""
    )
    y = np.zeros(1, np.float32)
    run(text, (1,), (1,), np.zeros(1, np.float32), y, np.int32(0))
    assert y[0] == 12


# ----- counts ------------------------------------------------------------------------------------------------------


def counted(body: str, *arrays: Array, block: int = 32, grid: int = 1) -> dict[str, int]:
    text = BEGIN + body
    return run(text, (grid,), (block,), *arrays, profile=True)


def test_sectors_of_global_memory():
    x, y = np.zeros(1024, np.float32), np.zeros(1024, np.float32)
    counts = counted(
        "k(const float4* x, float4* y) { int i = blockIdx.x * 64 + threadIdx.x; y[i] = x[i]; }", x, y, block=64, grid=4
    )
    assert counts["global_loaded"] == counts["unique_loaded"] == counts["unique_stored"] == 4096
    assert (counts["load_requests"], counts["load_sectors"]) == (8, 128)
    strided = counted("k(const float* x, float* y) { y[threadIdx.x] = x[2 * threadIdx.x]; }", x, y)
    assert (strided["load_requests"], strided["load_sectors"], strided["store_sectors"]) == (1, 8, 4)
    again = counted("k(const float* x, float* y) { y[threadIdx.x] = x[0] + x[threadIdx.x]; }", x, y)
    assert again["global_loaded"] == 256 and again["unique_loaded"] == 128


@pytest.mark.parametrize("columns, turns", [(32, 1024), (33, 32)])
def test_turns_of_shared_memory(columns: int, turns: int):
    """A column of rows of 32 words lies in one bank."""
    counts = counted(
        f"""k(float* y) {{
  __shared__ float s[32][{columns}];
  for (int i = 0; i < 32; i++) s[i][threadIdx.x] = i;
  __syncwarp();
  float sum = 0;
  for (int i = 0; i < 32; i++) sum += s[threadIdx.x][i];
  y[threadIdx.x] = sum;
}}""",
        np.zeros(32, np.float32),
    )
    assert (counts["shared_load_requests"], counts["shared_load_turns"]) == (32, turns)
    assert (counts["shared_store_requests"], counts["shared_store_turns"]) == (32, 32)


# ----- compiling ---------------------------------------------------------------------------------------------------


def test_compiled_code_is_kept_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = BEGIN + "k(float* y) { y[0] = NUMBER; }"
    first = module.compiled_text(text, (("NUMBER", 1),), "fast")
    written = first.path.stat().st_mtime_ns
    module.compiled_text.cache_clear()
    again = module.compiled_text(text, (("NUMBER", 1),), "fast")
    assert again.path == first.path and again.path.stat().st_mtime_ns == written
    other = module.compiled_text(text, (("NUMBER", 2),), "fast")
    assert other.path != first.path
    for compiled, expected in ((again, 1), (other, 2)):
        y = np.zeros(1, np.float32)
        launch(compiled, "k", (1,), (1,), (y,))
        assert y[0] == expected


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    assert module.missing.__wrapped__() == "g++ is not installed"
    monkeypatch.undo()
    monkeypatch.setattr(module, "_headers", lambda: [])
    assert module.missing.__wrapped__().startswith("CUDA's headers are not installed: pip install nvidia-cuda-runtime")
    monkeypatch.undo()
    monkeypatch.setattr(module.platform, "machine", lambda: "aarch64")
    assert module.missing.__wrapped__() == "the harness for CUDA C++ is written for Linux on x86-64"

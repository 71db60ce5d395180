"""Wrong indices and lengths on the backend "triton": found by a kernel, raised by a later call, waited for by none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels.runtime import dlpack, triton_compile, triton_gpu, value_reports, values_triton
from kernels.softmax.op import CROSS_ENTROPY
from tests.support import wrong_values
from tests.support.triton_interpreter import SMALL, on_cpu
from tests.support.wrong_values import CALLS, EARLIER, Call

SOUND = np.array([0, 6, 3])


@pytest.fixture
def launched() -> Iterator[list[str]]:
    """The backend takes CPU tensors; names of the kernels launched."""
    with on_cpu(all_names=True) as names:
        yield names


def raised(error: type[Exception], message: str) -> Any:
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def run(call: Call, values: Any) -> torch.Tensor:
    found: torch.Tensor = call.run(torch.from_numpy, values, "triton")
    return found


@pytest.mark.parametrize("value", [7, -1])
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.op)
def test_a_later_call_raises(call: Call, value: int, launched: list[str]):
    found = run(call, np.array([0, 2, value]))
    assert launched[0] == "find_wrong_values" and launched.count("find_wrong_values") == 1
    if call.marks:
        assert found[2].isnan().all() and not found[:2].isnan().any()
    with raised(call.error, f"{call.message}, got {value} at 2{EARLIER}"):
        run(call, SOUND)
    run(call, SOUND)
    kernels.check_device_errors()


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.op)
def test_check_device_errors_raises(call: Call, launched: list[str]):
    run(call, SOUND)
    kernels.check_device_errors()
    run(call, np.array([99, 2, 77]))
    run_other = next(c for c in CALLS if c is not call)
    with raised(call.error, f"{call.message}, got 99 at 0{EARLIER}"):
        kernels.check_device_errors()
    kernels.check_device_errors()
    run(run_other, SOUND)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.op)
def test_backward_is_safe_with_wrong_values(call: Call, launched: list[str]):
    """The interpreter watches every access."""
    wrong_values.check_gradients(call, "triton")
    with pytest.raises(call.error, match=f"got 1000000000 at 1{re.escape(EARLIER)}$"):
        kernels.check_device_errors()


def test_ignored_labels_are_right(launched: list[str]):
    x = torch.randn(3, 7)
    kernels.cross_entropy(x, torch.tensor([-100, 2, 6]), backend="triton")
    kernels.cross_entropy(x, torch.tensor([255, 2, 6], dtype=torch.uint8), ignore_index=255, backend="triton")
    kernels.check_device_errors()
    kernels.cross_entropy(x, torch.tensor([255, 2, 6], dtype=torch.uint8), backend="triton")
    with pytest.raises(IndexError, match="got 255 at 0"):
        kernels.check_device_errors()


@pytest.mark.parametrize("view", wrong_values.VIEWS)
def test_places_in_every_layout(view: str, launched: list[str]):
    """The first one of the memory is told, and where it is in the array; many programs look."""
    labels = torch.from_numpy(wrong_values.labels((40, 30, 4), {}))
    seen = wrong_values.VIEWS[view](labels)
    weight = torch.zeros(5, 1)
    kernels.embedding(seen, weight, backend="triton")
    kernels.check_device_errors()
    place = tuple(n * 2 // 3 for n in seen.shape)
    seen[place] = 11
    kernels.embedding(seen, weight, backend="triton")
    where = f" at {place}" if len(place) > 1 else ""
    with pytest.raises(IndexError, match=re.escape(f"got 11{where}{EARLIER}")):
        kernels.check_device_errors()


def test_the_first_one_of_the_earliest_call_is_told(launched: list[str], monkeypatch: pytest.MonkeyPatch):
    """Also where the GPU is behind the host, whose launches wait in a queue here."""
    queue: list[Any] = []
    run_now = triton_gpu._launcher

    def flush() -> None:
        for given in queue:
            run_now(*given)
        queue.clear()

    monkeypatch.setattr(values_triton, "_done", flush)
    weight = torch.zeros(5, 1)
    with triton_gpu.elsewhere(lambda *given: queue.append(given), SMALL):
        for wrong in ({}, {(4500,): 8, (3000,): 9}, {(10,): 7}, {}):
            kernels.embedding(torch.from_numpy(wrong_values.labels((5000,), wrong)), weight, backend="triton")
        assert len(queue) == 8 and launched == []
        with pytest.raises(IndexError, match=r"got 9 at 3000"):
            kernels.check_device_errors()
        kernels.check_device_errors()


def test_nothing_is_looked_at_while_a_graph_is_captured(launched: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dlpack, "captured", lambda tensors: True)
    kernels.embedding(torch.tensor([9]), torch.zeros(5, 1), backend="triton")
    assert launched == ["gather_rows"]
    kernels.check_device_errors()


def test_the_host_waits_once_in_many_calls(launched: list[str], monkeypatch: pytest.MonkeyPatch):
    waits: list[int] = []
    monkeypatch.setattr(values_triton, "_done", lambda: waits.append(1))
    monkeypatch.setattr(value_reports, "MOST_CALLS", 3)
    for _ in range(10):
        kernels.embedding(torch.tensor([1]), torch.zeros(5, 1), backend="triton")
    assert len(waits) == 3
    kernels.check_device_errors()
    kernels.check_device_errors()
    assert len(waits) == 4


def test_numpy_arrays_are_looked_at_at_once():
    message = "cross_entropy: target must lie in [0, 6] or be ignore_index (-100), got 7 at 1"
    with on_cpu(all_names=True) as launched, raised(IndexError, message):
        kernels.cross_entropy(np.zeros((2, 7), np.float32), np.array([6, 7]), backend="triton")
    assert launched == []


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_the_kernel_compiles(target: str):
    """With labels without contents: the host asks for none. Small, without spills."""
    x, labels = torch.empty(3000, 7, device="meta"), torch.empty(3000, dtype=torch.int64, device="meta")
    problem = CROSS_ENTROPY.problem.check(*map(kernels.arrays.spec, (x, labels)), None, -100, "mean", 0.0)
    with triton_compile.compiling(target) as compiled:
        values_triton.Check(problem)((x, labels, None))
    values_triton._report.cache_clear()
    (kernel,) = compiled
    assert kernel.grid == (3,) and kernel.spills == 0 and kernel.registers <= 128

"""Wrong indices and lengths on the backend "cupy": found by a kernel, raised by a later call, waited for by none."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels import backends
from kernels.runtime import value_reports
from tests.cuda_on_cpu import helpers
from tests.support import fake_cupy, wrong_values
from tests.support.wrong_values import CALLS, EARLIER, Call

pytestmark = helpers.needs_harness

SOUND = np.array([0, 6, 3])
MAKERS: dict[str, Callable[[Any], Any]] = {"cupy": fake_cupy.on_device, "torch": torch.from_numpy}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_cupy.Gpu]:
    """A CuPy that runs here; CPU tensors stand for CUDA tensors."""
    stream = types.SimpleNamespace(cuda_stream=77)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    monkeypatch.setitem(backends.BACKENDS, "cupy", replace(backends.BACKENDS["cupy"], devices=("cpu", "cuda")))
    with fake_cupy.installed() as seen:
        yield seen


def raised(error: type[Exception], message: str) -> Any:
    return pytest.raises(error, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.op)
def test_a_later_call_raises(call: Call, kind: str, gpu: fake_cupy.Gpu):
    found = call.run(MAKERS[kind], np.array([0, 2, 7]), "cupy")
    names = [launch.kernel for launch in gpu.launches]
    assert names[0] == "find_wrong_values" and names.count("find_wrong_values") == 1 and gpu.waits == 0
    assert {launch.stream for launch in gpu.launches} == {77 if kind == "torch" else 0}
    if call.marks:
        numbers = found.numpy() if kind == "torch" else found.get()
        assert np.isnan(numbers[2]).all() and not np.isnan(numbers[:2]).any()
    with raised(call.error, f"{call.message}, got 7 at 2{EARLIER}"):
        call.run(MAKERS[kind], SOUND, "cupy")
    assert gpu.waits == 1
    call.run(MAKERS[kind], SOUND, "cupy")
    kernels.check_device_errors()


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.op)
def test_backward_is_safe_with_wrong_values(call: Call, gpu: fake_cupy.Gpu):
    """The harness watches every access."""
    wrong_values.check_gradients(call, "cupy")
    with pytest.raises(call.error, match=f"got 1000000000 at 1{re.escape(EARLIER)}$"):
        kernels.check_device_errors()


@pytest.mark.parametrize("view", wrong_values.VIEWS)
def test_places_in_every_layout(view: str, gpu: fake_cupy.Gpu):
    labels = wrong_values.labels((40, 30, 4), {})
    seen = wrong_values.VIEWS[view](labels)
    weight = fake_cupy.on_device(np.zeros((5, 1), np.float32))
    kernels.embedding(fake_cupy.on_device(np.asarray(seen)), weight)
    kernels.check_device_errors()
    place = tuple(n * 2 // 3 for n in np.shape(seen))
    if place:
        seen[place] = 11
    else:
        seen = np.array(11)
    kernels.embedding(fake_cupy.on_device(seen), weight)
    where = f" at {place}" if len(place) > 1 else ""
    with pytest.raises(IndexError, match=re.escape(f"got 11{where}{EARLIER}")):
        kernels.check_device_errors()


def test_every_device_has_a_report(gpu: fake_cupy.Gpu):
    for device in (1, 0):
        a = [fake_cupy.on_device(x, device) for x in (np.array([3 + device]), np.zeros((3, 2), np.float32))]
        kernels.embedding(*a)
    assert {launch.device for launch in gpu.launches} == {0, 1}
    with pytest.raises(IndexError, match="got 4 at 0"):
        kernels.check_device_errors()
    with pytest.raises(IndexError, match="got 3 at 0"):
        kernels.check_device_errors()
    kernels.check_device_errors()


def test_ignored_labels_are_right(gpu: fake_cupy.Gpu):
    x = fake_cupy.on_device(helpers.numbers(3, 7))
    kernels.cross_entropy(x, fake_cupy.on_device(np.array([-100, 2, 6])))
    kernels.cross_entropy(x, fake_cupy.on_device(np.array([255, 2, 6], np.uint8)), ignore_index=255)
    kernels.check_device_errors()
    kernels.cross_entropy(x, fake_cupy.on_device(np.array([255, 2, 6], np.uint8)))
    with pytest.raises(IndexError, match="got 255 at 0"):
        kernels.check_device_errors()


def test_nothing_is_looked_at_while_a_graph_is_captured(gpu: fake_cupy.Gpu):
    gpu.capturing = True
    kernels.embedding(fake_cupy.on_device(np.array([9])), fake_cupy.on_device(np.zeros((5, 1), np.float32)))
    assert [launch.kernel for launch in gpu.launches] == ["gather_rows"]


def test_the_host_waits_once_in_many_calls(gpu: fake_cupy.Gpu, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(value_reports, "MOST_CALLS", 3)
    for _ in range(10):
        kernels.embedding(fake_cupy.on_device(np.array([1])), fake_cupy.on_device(np.zeros((5, 1), np.float32)))
    assert gpu.waits == 3


def test_numpy_arrays_are_looked_at_at_once(gpu: fake_cupy.Gpu):
    for call in CALLS:
        with raised(call.error, f"{call.message}, got 8 at 1"):
            call.run(lambda array: array, np.array([0, 8, 1]), "cupy")
    assert gpu.launches == [] and gpu.copied["over"] == 0


def test_vjp_looks_at_values(gpu: fake_cupy.Gpu):
    x, labels = fake_cupy.on_device(helpers.numbers(3, 7)), fake_cupy.on_device(np.array([0, 7, 1]))
    kernels.vjp("cross_entropy", x, labels)
    with pytest.raises(IndexError, match=re.escape(f"got 7 at 1{EARLIER}")):
        kernels.check_device_errors()

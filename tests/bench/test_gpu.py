"""``python -m bench gpu`` with a clock of the tests' own, on the CPU: what is timed, what is not, and what is said."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import kernels
from bench import cli, gpu
from tests.support import matrix

pytest.importorskip("triton", reason="Triton is not installed")
from tests.support.triton_interpreter import on_cpu


@pytest.fixture(autouse=True)
def ieee() -> Iterator[None]:
    """Our convolutions follow the flag, torch's on a CPU cannot."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


class Ticks:
    """Every call takes as long as its contestant's turn says: 1, 2, 1, 2, ... microseconds."""

    def __init__(self) -> None:
        self.calls = 0

    def seconds(self, run: Callable[[], Any]) -> tuple[float, float]:
        run()
        self.calls += 1
        return 1e-6 * (1 + self.calls % 2), 1e-5


def rows(op: str, passes: str, dtype: str = "float32", names: tuple[str, ...] = ("triton", "torch")) -> list[gpu.Row]:
    case = matrix.cases_of(op, "ci")[0]
    with on_cpu():
        return gpu.run([case], [dtype], [passes], names, 1e-6, Ticks(), "cpu")


@pytest.mark.parametrize("op", ["softmax", "conv2d", "attention", "linear_cross_entropy"])
@pytest.mark.parametrize("passes", ["forward", "training"])
def test_correct_kernels_are_timed(op: str, passes: str):
    found = rows(op, passes)
    assert [(r.provider, r.status, r.passes, r.dtype) for r in found] == [
        (name, "timed", passes, "float32") for name in ("triton", "torch")
    ]
    assert all(r.seconds is not None and r.ratio is not None for r in found)


def test_half_precision():
    assert {r.status for r in rows("softmax", "training", "bfloat16")} == {"timed"}


def test_wrong_kernels_get_no_time(monkeypatch: pytest.MonkeyPatch):
    right = kernels.softmax
    wrong_softmax = functools.wraps(right)(lambda *a, **k: right(*a, **k) * 1.001)
    monkeypatch.setattr(kernels, "softmax", wrong_softmax)
    wrong, torchs = rows("softmax", "forward")
    assert (wrong.provider, wrong.status, wrong.seconds) == ("triton", "wrong", None)
    assert wrong.note.startswith("array 0: error 0.000")
    assert torchs.status == "timed" and torchs.ratio is not None and torchs.ratio.median == 1


def test_what_a_backend_cannot_run_says_why():
    (refused, _) = rows("lstm_layer", "forward", names=("cupy", "torch"))
    assert refused.status == "failed" and refused.note.startswith("BackendError: lstm_layer: backend 'cupy' cannot run")


def test_wrong_places_of_nan_and_wrong_integers_are_seen():
    one, nan, whole = torch.ones(2), torch.tensor([1.0, torch.nan]), torch.tensor([1, 2])
    assert gpu.complaint([one], [one], [one.double()]) is None
    assert gpu.complaint([nan], [one], [one.double()]) == "array 0: NaN or infinity in other places"
    assert gpu.complaint([one, whole], [one, whole], [one.double(), whole + 1]) == "array 1: wrong integers"


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert cli.main(["gpu"]) == 2
    assert capsys.readouterr().err == "bench: gpu: torch finds no CUDA device or driver\n"


def test_rows_are_kept(tmp_path: Path):
    found = rows("relu", "forward")
    gpu.save(found, tmp_path / "new" / "gpu.json")
    kept = json.loads((tmp_path / "new" / "gpu.json").read_text())
    assert [r["provider"] for r in kept["rows"]] == ["triton", "torch"] and kept["machine"]["torch"]
    assert gpu.line(found[0]).endswith(": 2.0 us, 0.50 x torch, host 10 us")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that torch can use")
def test_a_real_run(tmp_path: Path):
    path = tmp_path / "gpu.json"
    assert cli.main(["gpu", "softmax", "attention", "--tag", "ci", "--seconds", "0.01", "--output", str(path)]) == 0
    assert any(row["status"] == "timed" for row in json.loads(path.read_text())["rows"])

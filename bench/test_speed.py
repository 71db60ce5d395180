"""The same cases under pytest-benchmark, ours beside PyTorch eager: ``pytest bench/ -k "conv2d and forward"``.

A result outside the error budget fails and gets no time. Groups are cases, so that the two stand side by side;
``--benchmark-compare`` and its kin work as ever.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("pytest_benchmark")
pytest.importorskip("torch")

from bench import gate, providers, selection
from bench.providers.provider import Unsupported
from bench.workload import Workload
from kernels.case import Case

CASES, _ = selection.choose_cases()


@pytest.mark.parametrize("provider", ["ours", "torch"])
@pytest.mark.parametrize("passes", selection.PASSES)
@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
def test_speed(case: Case, passes: str, provider: str, benchmark: Any) -> None:
    """One case in float32 on one provider, at torch's number of threads."""
    benchmark.group = f"{case.id}, {passes}"
    workload = Workload(case, training=passes == "training")
    torchs = providers.provider("torch").prepare(workload, 1)
    expected = torchs.answer(torchs.run())
    try:
        call = providers.provider(provider).prepare(workload, 1) if provider != "torch" else torchs
    except Unsupported as reason:
        pytest.skip(str(reason))
    if call.checked:
        wrong = gate.complaint(call.answer(call.run()), workload.exact, expected if torchs.checked else None)
        assert wrong is None, wrong
    benchmark(call.run)

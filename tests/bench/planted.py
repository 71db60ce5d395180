"""What the tests of bench share: providers that do what they should not, and a small result made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import kernels
from bench import records
from bench.limits import Limits
from bench.providers.provider import Call, Unsupported
from bench.records import Measurement, Run
from bench.timing import Quartiles
from bench.workload import Workload, answer, results_of


class Planted:
    """A provider that runs the reference and adds `error` to its first result; counts its calls."""

    title = "planted"

    def __init__(self, name: str = "planted", error: float = 0.0, raises: Exception | None = None) -> None:
        self.name, self.error, self.raises = name, error, raises
        self.calls = 0

    def missing(self) -> str | None:
        return None

    def prepare(self, workload: Workload, threads: int) -> Call:
        if self.raises is not None:
            raise self.raises
        function = getattr(kernels, workload.case.op)

        def run() -> Any:
            self.calls += 1
            first, *rest = results_of(function(**workload.arguments, backend="reference"))
            return (first + np.float32(self.error), *rest)

        return Call(run, lambda value: answer(value, {}), "planted")


UNSUPPORTED = Unsupported("it has no such op")


def measurement(name: str, provider: str = "ours", factor: float = 1.0, **fields: Any) -> Measurement:
    """A timed measurement; `factor` is how many times as long as usual it takes."""
    seconds = 1e-4 * factor * (1 if provider == "ours" else 2)
    made = Measurement(
        "conv2d", name, "conv2d", "float32", "forward", 1, "given", provider, records.TIMED,
        seconds=Quartiles(seconds * 0.99, seconds, seconds * 1.01),
        eager_ratio=Quartiles(*(2e-4 / seconds * x for x in (0.99, 1, 1.01))),
        peer_ratio=Quartiles(*(2e-4 / seconds * x for x in (0.99, 1, 1.01))),
        best_peer="torch", rounds=20, flops=10**8, bytes_moved=10**6, bound="flops", limit_share=0.8,
        memory=1_500_000, memory_kind="asked",
    )  # fmt: skip
    return replace(made, **fields)


def fake_run(*measurements: Measurement) -> Run:
    """A run with two cases on two providers and one of each kind of failure, or with what is given."""
    if not measurements:
        slow = measurement("3x3 <64>", "torch")
        measurements = (
            measurement("3x3 <64>"),
            slow,
            measurement("1x1"),
            measurement("1x1", "torch"),
            replace(measurement("1x1", "openvino"), status=records.WRONG, reason="error 99 ulp", seconds=None,
                    eager_ratio=None, peer_ratio=None, limit_share=None),
            replace(measurement("1x1", "onnxruntime"), status=records.UNSUPPORTED, reason="no such op", seconds=None,
                    eager_ratio=None, peer_ratio=None, limit_share=None),
        )  # fmt: skip
    limits = [Limits(1, "float32", 2e11, {1 << 17: 9e10, 1 << 28: 1e10})]
    machine = {"processor": "a processor", "cores": 2, "target": "generic", "versions": {"torch": "2"}, "commit": "abc"}
    return Run("2000-01-01T00:00:00+00:00", machine, {"seconds": 1.0}, limits, list(measurements))

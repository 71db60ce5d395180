"""Gate, then time: a wrong result gets no time, on a planted provider and in the budget itself."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from bench import budget, gate, records, selection
from bench.limits import Limits
from bench.run import Settings, Task, run_all, run_task
from bench.workload import Workload
from tests.bench.planted import UNSUPPORTED, Planted
from tests.support import budget as tests_budget

SETTINGS = Settings(seconds=0.01, memory=False)
BOUNDS = {(1, "float32"): Limits(1, "float32", 1e11, {1 << 28: 1e10})}


def small(op: str = "relu"):
    return selection.choose_cases([op], tags=["ci"])[0][0]


def run(*providers: Planted):
    found = run_task(Task(small(), "float32", "forward"), providers, SETTINGS, BOUNDS, lambda _: None)
    return {m.provider: m for m in found}


def test_a_wrong_provider_gets_no_time():
    wrong = Planted("wrong", error=1e-3)
    found = run(Planted("right"), wrong)
    assert found["wrong"].status == records.WRONG and "ulp" in found["wrong"].reason
    assert found["wrong"].seconds is None and found["wrong"].eager_ratio is None and found["wrong"].rounds == 0
    assert wrong.calls == 1  # for the gate alone
    assert found["right"].status == records.TIMED and found["right"].seconds is not None
    assert found["right"].best_peer == "right"


def test_one_that_raises_and_one_that_cannot_leave_the_rest_running():
    found = run(
        Planted("raises", raises=RuntimeError("out of order")), Planted("lacks", raises=UNSUPPORTED), Planted("x")
    )
    assert found["raises"].status == records.FAILED and found["raises"].reason == "RuntimeError: out of order"
    assert found["lacks"].status == records.UNSUPPORTED and found["lacks"].reason == "it has no such op"
    assert found["x"].status == records.TIMED


def test_an_interrupted_run_keeps_what_it_has():
    class Interrupted(Planted):
        def prepare(self, workload, threads):
            if workload.case.op == "tanh":
                signal.raise_signal(signal.SIGTERM)
            return super().prepare(workload, threads)

    chosen = [Task(small(op), "float32", "forward") for op in ("relu", "tanh", "sigmoid")]
    before = signal.getsignal(signal.SIGTERM)
    found = run_all(chosen, [Interrupted()], Settings(seconds=0.01, probe_seconds=0.01, memory=False))
    assert [m.op for m in found.measurements] == ["relu"] and "interrupted" in found.complaints[0]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_missing_gradient_a_wrong_shape_and_a_surplus_result_are_wrong():
    exact = Workload(small("linear"), training=True).exact
    assert gate.complaint(exact, exact, exact) is None
    assert "gradient of weight: missing" in str(gate.complaint({**exact, "gradient of weight": None}, exact, None))
    assert "shape" in str(gate.complaint({**exact, "result 0": np.zeros(3)}, exact, None))
    assert "results" in str(gate.complaint({**exact, "result 1": np.zeros(3)}, exact, None))


@pytest.mark.parametrize("units", [0.0, 3.0, 5.0, 60.0])
@pytest.mark.parametrize("torch_units", [None, 0.0, 2.0, 40.0])
def test_the_budget_is_that_of_the_tests(units: float, torch_units: float | None):
    assert (budget.BAND, budget.FACTOR) == (tests_budget.BAND, tests_budget.FACTOR)
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((7, 9))
    one = budget.unit(exact, np.float32)

    def off(by: float) -> np.ndarray:
        moved = exact.copy()
        moved[3, 4] += by * one
        return moved.astype(np.float32)

    torchs = None if torch_units is None else off(torch_units)
    mine, theirs = (module.complaint(off(units), exact, torchs) for module in (budget, tests_budget))
    assert (mine is None) == (theirs is None)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_budget_on_special_values(value: float):
    exact = np.array([1.0, 2.0, value])
    right, wrong = exact.astype(np.float32), np.array([1, 2, 3], np.float32)
    for module in (budget, tests_budget):
        assert module.complaint(right, exact) is None
        assert module.complaint(wrong, exact) is not None
    indices = np.array([1, 2, 3])
    assert budget.complaint(indices, indices) is None and budget.complaint(indices, indices + 1) is not None

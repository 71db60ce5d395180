"""Every engine that is installed gives right answers on small cases, or says why it cannot."""

from __future__ import annotations

from typing import Any

import pytest

from bench import gate, providers, run, selection
from bench.providers import eager, graphs
from bench.providers.provider import NothingOfItsOwn, Unsupported, missing_package
from bench.workload import Workload

CASES, _ = selection.choose_cases(tags=["ci"])
#: One small case of each op, so that every graph and every spelled-out torch function runs.
FIRST = {case.op: case for case in reversed(CASES)}


def installed(name: str) -> Any:
    found = providers.provider(name)
    missing = found.missing()
    if missing is not None:
        pytest.skip(f"{name}: {missing}")
    return found


def complaint(name: str, workload: Workload) -> str | None:
    torchs = providers.provider("torch").prepare(workload, 1)
    call = torchs if name == "torch" else installed(name).prepare(workload, 1)
    if not call.checked:
        return None
    return gate.complaint(call.answer(call.run()), workload.exact, torchs.answer(torchs.run()))


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("op", sorted(FIRST))
def test_torch_is_called_with_our_meaning(op: str, training: bool):
    assert complaint("torch", Workload(FIRST[op], training=training)) is None


@pytest.mark.parametrize("op", ["softmax", "relu"])
def test_ours(op: str):
    assert complaint("ours", Workload(FIRST[op], training=True)) is None


def test_ours_packed():
    """Where there is a weight to pack it is the op with its activation; elsewhere it leaves no row."""
    found = [case for case in CASES if case.op == "linear" and len(case.shapes["weight"]) == 2]
    assert len(found) > 5
    for case in found:
        assert complaint("ours-packed", Workload(case)) is None
    packed = providers.provider("ours-packed")
    for workload in (Workload(FIRST["conv2d"]), Workload(found[0], training=True)):
        with pytest.raises(NothingOfItsOwn):
            packed.prepare(workload, 1)
    settings = run.Settings(seconds=1e-3, memory=False)
    rows = run.run_task(run.Task(FIRST["relu"], "float32", "forward"), [packed], settings, {}, lambda _: None)
    assert list(rows) == []


#: Cases that torch's own function and ours both have; the others fall back to the library's torch backend.
@pytest.mark.parametrize("op", ["conv2d", "lstm_layer", "gru_layer", "rnn_layer", "max_pool2d", "cross_entropy"])
def test_torch_has_its_own_function(op: str):
    if op not in FIRST:
        pytest.skip(f"there is no public function {op} yet")
    assert eager.torch_function(Workload(FIRST[op])) is not None


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_graphs(engine: str):
    """All small cases: right, or refused with a reason; a good part of them must have a graph."""
    installed(engine)
    built, wrong = 0, []
    for case in CASES:
        workload = Workload(case)
        try:
            found = complaint(engine, workload)
        except Unsupported as reason:
            assert str(reason)
            continue
        built += 1
        wrong += [f"{case.id}: {found}"] if found else []
    assert built > 40
    # What is left are differences of meaning in corners, which the gate keeps out of every table.
    assert len(wrong) < 0.1 * built, wrong


def test_what_graphs_refuse():
    with pytest.raises(Unsupported, match="forward only"):
        graphs.build(Workload(FIRST["conv2d"], training=True), "openvino")
    last = selection.in_layout(FIRST["conv2d"], "channels-last")
    assert last is not None
    with pytest.raises(Unsupported, match="channels-first"):
        graphs.build(Workload(last), "openvino")


def test_openvino_does_not_pretend_float64():
    with pytest.raises(Unsupported, match="float32"):
        providers.provider("openvino").prepare(Workload(FIRST["relu"], "float64"), 1)


def test_a_missing_package_is_one_line_with_the_remedy():
    text = missing_package("no_such_package_anywhere", "numpy")
    assert text is not None and "no_such_package_anywhere not installed" in text and "pip install" in text
    assert missing_package("numpy") is None


def test_unknown_providers():
    with pytest.raises(ValueError, match="did you mean onnxruntime"):
        providers.provider("onnxruntme")

"""The JSON file: what is written comes back, and what is no such file is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import records, summary
from bench.timing import Quartiles
from tests.bench.planted import fake_run, measurement


def test_round_trip(tmp_path: Path):
    run = fake_run()
    path = tmp_path / "new" / "result.json"
    records.save(run, path)
    assert records.load(path) == run
    content = json.loads(path.read_text())
    assert content["format"] == records.FORMAT
    assert {"created", "machine", "settings", "limits", "measurements", "complaints"} < set(content)
    first = content["measurements"][0]
    assert first["status"] in records.STATUSES and set(first["seconds"]) == {"low", "median", "high"}


def damaged(content: dict, what: str) -> str:
    if what == "no JSON":
        return "{"
    if what == "another format":
        content["format"] = "something else"
    if what == "a number as text":
        content["measurements"][0]["seconds"]["median"] = "fast"
    if what == "a field too many":
        content["measurements"][0]["colour"] = "red"
    if what == "a field missing":
        del content["measurements"][0]["op"]
    return json.dumps(content)


@pytest.mark.parametrize(
    "what", ["no JSON", "another format", "a number as text", "a field too many", "a field missing"]
)
def test_damaged_files_are_refused(tmp_path: Path, what: str):
    path = tmp_path / "result.json"
    records.save(fake_run(), path)
    path.write_text(damaged(json.loads(path.read_text()), what))
    with pytest.raises(ValueError, match=r"result\.json: "):
        records.load(path)


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(ValueError, match="No such file"):
        records.load(tmp_path / "result.json")


def test_rates():
    fast = measurement("x")
    assert fast.rate is not None and fast.rate[1] == "GFLOP/s" and fast.rate[0] == pytest.approx(1e8 / 1e-4 / 1e9)
    moved = measurement("x", bound="bytes")
    assert moved.rate is not None and moved.rate[1] == "GB/s" and moved.rate[0] == pytest.approx(10.0)


def test_family_means():
    two, eight = (measurement(str(r), eager_ratio=Quartiles(r, r, r)) for r in (2.0, 8.0))
    (found,) = summary.family_means([two, eight, measurement("x", "torch")])
    assert found.cases == 2 and found.to_eager == pytest.approx(4.0)
    assert found.worst == 2.0 and found.worst_case == "conv2d: 2.0"
    packed = measurement("y", "ours-packed", eager_ratio=Quartiles(4.0, 4.0, 4.0))
    both = summary.family_means([two, packed, measurement("x", "torch")])
    assert [(f.provider, f.cases) for f in both] == [("ours", 1), ("ours-packed", 1)]
    assert [f.to_eager for f in both] == pytest.approx([2.0, 4.0])
    assert summary.geometric_mean([]) is None

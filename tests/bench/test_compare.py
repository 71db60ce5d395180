"""compare: a planted regression is found, noise is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench import cli, compare, records
from bench.timing import Quartiles
from tests.bench.planted import fake_run, measurement


def verdicts(old, new, **keywords):
    return {c.key[1]: c.verdict for c in compare.compare(fake_run(*old), fake_run(*new), **keywords)}


def test_verdicts():
    old = [measurement(name) for name in ("same", "noise", "slower", "faster", "broken", "gone")]
    new = [
        measurement("same"),
        measurement("noise", factor=1.03),
        measurement("slower", factor=1.3),
        measurement("faster", factor=0.6),
        replace(measurement("broken"), status=records.WRONG, seconds=None, reason="error 99 ulp"),
        measurement("new"),
    ]
    assert verdicts(old, new) == {
        "same": "same", "noise": "same", "slower": "slower", "faster": "faster", "broken": "broken", "gone": "gone",
        "new": "new",
    }  # fmt: skip


def test_a_wide_spread_is_a_wide_band():
    wide = Quartiles(1.5, 2.0, 2.6)
    old = [measurement("x", eager_ratio=wide)]
    assert verdicts(old, [measurement("x", eager_ratio=Quartiles(1.2, 1.5, 2.0))]) == {"x": "same"}
    assert verdicts(old, [measurement("x", eager_ratio=Quartiles(0.49, 0.5, 0.51))]) == {"x": "slower"}


def test_ratios_survive_another_machine_and_times_do_not():
    old, new = [measurement("x")], [measurement("x")]
    slow = new[0].seconds
    assert slow is not None
    new = [replace(new[0], seconds=Quartiles(*(3 * s for s in (slow.low, slow.median, slow.high))))]
    assert verdicts(old, new) == {"x": "same"}
    assert verdicts(old, new, by_time=True) == {"x": "slower"}


def test_other_providers_count_when_asked_for():
    old = [measurement("x"), measurement("y", "openvino")]
    new = [measurement("x"), measurement("y", "openvino", factor=2)]
    assert verdicts(old, new) == {"x": "same"}
    assert verdicts(old, new, providers=()) == {"x": "same", "y": "slower"}


@pytest.mark.parametrize("factor, code", [(1.0, 0), (1.03, 0), (1.5, 1)])
def test_exit_code(tmp_path: Path, capsys, factor: float, code: int):
    records.save(fake_run(measurement("x")), tmp_path / "old" / "result.json")
    records.save(fake_run(measurement("x", factor=factor)), tmp_path / "new" / "result.json")
    assert cli.main(["compare", str(tmp_path / "old"), str(tmp_path / "new" / "result.json")]) == code
    assert ("slower" in capsys.readouterr().out) == bool(code)


def test_bad_files_and_nothing_in_common(tmp_path: Path, capsys):
    records.save(fake_run(measurement("x")), tmp_path / "a.json")
    records.save(fake_run(measurement("y")), tmp_path / "b.json")
    assert cli.main(["compare", str(tmp_path / "a.json"), str(tmp_path / "c.json")]) == 2
    assert "c.json: No such file" in capsys.readouterr().err
    assert cli.main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    assert "no measurement in common" in capsys.readouterr().err

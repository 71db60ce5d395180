"""``python -m bench`` on tiny runs, and what it says to bad input."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import automatic, cli, overhead, providers, records

pytest.importorskip("rich", reason="rich is not installed")
TINY = ["--tag", "ci", "--seconds", "0.01"]


def test_a_real_run(tmp_path: Path, capsys):
    arguments = ["rms_norm", "--case", "eps", *TINY, "--pass", "forward", "training", "--provider", "ours", "torch"]
    assert cli.main([*arguments, "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "rms_norm: eps [forward, 1 thread, float32]" in out and "geometric means" in out
    run = records.load(tmp_path / "result.json")
    assert {(m.provider, m.passes, m.status) for m in run.measurements} == {
        (provider, passes, "timed") for provider in ("ours", "torch") for passes in ("forward", "training")
    }
    for m in run.measurements:
        assert m.seconds is not None and m.eager_ratio is not None and m.rounds >= 5 and m.limit_share is not None
        assert m.memory_kind == ("asked" if m.provider == "ours" else "resident")
    forward = next(m for m in run.measurements if (m.provider, m.passes) == ("ours", "forward"))
    assert forward.memory == 12 * 19 * 4  # the result
    assert run.machine["versions"]["numpy"] and run.limits[0].flops > 0
    assert (tmp_path / "report.html").exists()


def test_bad_input_is_told_and_the_rest_runs(tmp_path: Path, capsys):
    arguments = ["relu", "conv2", "--case", "matrix", *TINY, "--dtype", "float32", "float16", "--threads", "1", "4096"]
    code = cli.main([*arguments, "--provider", "ours", "tensorflow", "--output", str(tmp_path), "--no-plots"])
    shown = capsys.readouterr()
    assert code == 2
    for line in ("unknown op 'conv2'", "unknown provider 'tensorflow'", "dtype float16", "4096 threads"):
        assert line in shown.err
    assert "Traceback" not in shown.err
    assert [m.status for m in records.load(tmp_path / "result.json").measurements] == ["timed"]


def test_a_provider_that_is_not_installed(tmp_path: Path, capsys, monkeypatch):
    found = providers.provider("openvino")
    monkeypatch.setattr(type(found), "missing", lambda _: "openvino not installed: pip install it")
    arguments = ["relu", "--case", "matrix", *TINY, "--no-plots", "--no-memory", "--output", str(tmp_path)]
    assert cli.main([*arguments, "--provider", "ours", "openvino"]) == 2
    assert "provider openvino: openvino not installed" in capsys.readouterr().err
    monkeypatch.setattr(providers, "NAMES", ("ours", "openvino"))
    assert cli.main(arguments) == 0  # not asked for by name: left out with a line
    assert "left out openvino: openvino not installed" in capsys.readouterr().err


def test_nothing_to_run(capsys):
    assert cli.main(["nonsense"]) == 2
    assert "unknown op 'nonsense'" in capsys.readouterr().err
    assert cli.main(["cross_entropy", "--layout", "channels-last", "--provider", "ours"]) == 2
    assert "no case has images" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["cold", "overhead", "auto"])
def test_an_unknown_op_is_one_line_and_no_table(command: str, capsys):
    assert cli.main([command, "nonsense"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and re.fullmatch(r"bench: unknown op 'nonsense'\. Known: [^\n]+\n", shown.err)


def test_an_op_that_is_never_left_to_torch(capsys):
    assert cli.main(["auto", "conv2d", "--seconds", "0.001"]) == 0
    assert capsys.readouterr().out.strip() == "no call of conv2d is left to torch"


def test_where_results_cannot_go(tmp_path: Path, capsys):
    """Refused before anything is measured."""
    (tmp_path / "file").write_text("")
    for command, path, kind in (("relu", "file", "folder"), ("relu", "file/more", "folder"), ("networks", "", "file")):
        with pytest.raises(SystemExit) as stopped:
            cli.main([command, "--output", str(tmp_path / path)])
        wanted = f"argument --output: must be a {kind} that can be written, got '{tmp_path / path}'"
        assert stopped.value.code == 2 and capsys.readouterr().err.splitlines()[-1].endswith(wanted)


@pytest.mark.parametrize("wrong", [["--seconds", "0"], ["--threads", "none"], ["--pass", "back"], ["--layout", "x"]])
def test_impossible_settings(wrong: list[str], capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["relu", *wrong])
    assert stopped.value.code == 2 and wrong[0] in capsys.readouterr().err


def test_list(capsys):
    assert cli.main(["softmax", "--list"]) == 0
    assert "softmax: small 64x10" in capsys.readouterr().out.splitlines()


def test_overhead(capsys):
    cost = overhead.measure("softmax", 0.01)
    assert cost is not None and set(cost.seconds) == set(overhead.COLUMNS) and set(cost.beyond) == set(overhead.PAIRS)
    assert cli.main(["overhead", "relu", "--seconds", "0.01"]) == 0
    assert "relu" in capsys.readouterr().out


def test_auto(capsys):
    found = list(automatic.measure("linear", False, 0.001))
    assert [choice.work for choice in found] == sorted(choice.work for choice in found)
    assert {choice.chosen for choice in found} == {"numba", "torch"}
    for choice in found:
        assert (choice.chosen == "torch") == (choice.work < choice.limit)
        ratio = choice.gain.median
        assert choice.lost == (1 / ratio if choice.chosen == "torch" else ratio)
    assert cli.main(["auto", "relu", "nonsense", "--seconds", "0.001", "--pass", "forward"]) == 2
    shown = capsys.readouterr()
    assert "unknown op" in shown.err and "small 64x10" in shown.out and "choices cost more than 5%" in shown.out


def test_cold(capsys):
    assert cli.main(["cold", "relu", "nonsense"]) == 2
    shown = capsys.readouterr()
    assert "unknown op" in shown.err and "relu" in shown.out and "FAILED" not in shown.out

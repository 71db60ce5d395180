"""``python -m kernels``: the text for a bug report, and what the command says about other arguments."""

from __future__ import annotations

import re

import kernels
from kernels import gpu_report
from kernels.__main__ import main
from kernels.op import OPS


def test_the_report_names_all_and_its_columns_stand_below_one_another():
    report = str(kernels.info())
    table = report.split("\nops\n")[1].splitlines()
    heading, rows = table[0], table[1:]
    assert [row.split()[0] for row in rows] == sorted(OPS)
    starts = [match.start() for match in re.finditer(r"\S+", heading)]
    for row in rows:
        assert [match.start() for match in re.finditer(r"(?<=\s)(yes|-)", row)] == starts, row


def test_the_command_prints_it(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out == f"{kernels.info()}\n"


def test_an_unknown_argument_is_answered_with_the_usage(capsys):
    assert main(["reprot"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("usage: python -m kernels ")
    assert printed.err.endswith("\npython -m kernels: unknown argument 'reprot'\n")
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: python -m kernels ")


def test_arguments_of_the_report(capsys, tmp_path, monkeypatch):
    """Refused before anything is compiled."""
    monkeypatch.setattr(gpu_report, "missing", lambda _: None)
    monkeypatch.setattr(gpu_report, "make", None)
    other = tmp_path / "notes.json"
    other.write_text("no report")
    for arguments, rule in ((["--op", "nope"], "--op must be one of "), (["--json", str(other)], "--json must be ")):
        assert main(["report", "--backend", "cupy", *arguments]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith(f"report: {rule}") and printed.err.count("\n") == 1

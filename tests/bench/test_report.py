"""Tables, pictures and the HTML report of a small result made by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import cli, records, table
from tests.bench.planted import fake_run

rich_console = pytest.importorskip("rich.console", reason="rich is not installed")


def test_pictures_and_report(tmp_path: Path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    records.save(fake_run(), tmp_path / "result.json")
    assert cli.main(["report", str(tmp_path)]) == 0
    pictures = sorted(tmp_path.glob("*.png"))
    assert [path.name.split("-")[0] for path in pictures] == ["cost", "ratios", "roofline"]
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000 for path in pictures)
    html = (tmp_path / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 3
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", html)  # It stands alone.
    assert "3x3 &lt;64&gt;" in html and "<64>" not in html
    assert "error 99 ulp" in html and "no such op" in html


def test_the_table_shows_what_is_wrong_and_why():
    console = rich_console.Console(width=250, record=True, file=open("/dev/null", "w"))
    run = fake_run()
    console.print(table.table_of(run))
    console.print(table.means_table(run))
    text = console.export_text()
    assert "WRONG" in text and "error 99 ulp" in text and "no such op" in text
    assert "2.00 (1.98-2.02)" in text and "1e+03 GFLOP/s" in text and "80 %" in text and "1.5 MB" in text
    assert "conv2d: 3x3 <64>" in text


def test_a_run_without_a_time_still_makes_a_report(tmp_path: Path):
    wrong = [m for m in fake_run().measurements if m.seconds is None]
    records.save(fake_run(*wrong), tmp_path / "result.json")
    assert cli.main(["report", str(tmp_path / "result.json"), "--output", str(tmp_path / "there")]) == 0
    assert (tmp_path / "there" / "report.html").exists()


@pytest.mark.parametrize(
    "seconds, text", [(1.234e-7, "123 ns"), (2.5e-6, "2.5 us"), (0.99951e-6, "1 us"), (0.012, "12 ms"), (3.0, "3 s")]
)
def test_durations(seconds: float, text: str):
    assert table.duration(seconds) == text

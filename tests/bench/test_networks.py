"""``python -m bench networks`` on a few samples, and that the twins are the same networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import cli
from bench.networks import race, torch_twins, trainers
from nnlib.programs import PROGRAMS

pytest.importorskip("rich", reason="rich is not installed")


@pytest.mark.parametrize("program", sorted(torch_twins.BUILDERS))
def test_the_twins_have_our_parameters(program: str):
    """As many numbers to train, and the same outputs' shape."""
    (x, _), _ = PROGRAMS[program].load(False)
    ours, theirs = PROGRAMS[program].build(None, None), torch_twins.BUILDERS[program]()
    torch_twins.initialize_as_keras(theirs)
    few = torch.from_numpy(x[:2])
    assert ours.eval()(few).shape == theirs.eval()(few).shape == (2, 10)
    count = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (ours, theirs)]
    assert count[0] == count[1]


@pytest.mark.slow
@pytest.mark.parametrize("program", sorted(torch_twins.BUILDERS))
def test_keras_twins_too(program: str):
    keras_twins = pytest.importorskip("bench.networks.keras_twins", reason="Keras is not installed")
    ours = PROGRAMS[program].build(None, None)
    (x, _), _ = PROGRAMS[program].load(False)
    ours(torch.from_numpy(x[:1]))
    theirs = keras_twins.BUILDERS[program]()
    assert theirs.count_params() == sum(p.numel() for p in ours.parameters())


def test_a_race(tmp_path: Path, capsys):
    path = tmp_path / "networks.json"
    tiny = ["--epochs", "2", "--seeds", "2", "--limit", "48", "--batch-size", "16", "--output", str(path)]
    assert cli.main(["networks", "cnn", "--trainer", "ours", "torch", *tiny]) == 0
    told = json.loads(path.read_text())
    assert told["settings"] == {"epochs": 2, "seeds": 2, "batch_size": 16, "limit": 48, "threads": 1}
    assert [(e["program"], e["trainer"]) for e in told["entries"]] == [("cnn", "ours"), ("cnn", "torch")]
    for entry in told["entries"]:
        assert len(entry["seconds"]) == 4 and min(entry["seconds"]) > 0
        assert len(entry["accuracies"]) == 2
        for accuracy in entry["accuracies"]:
            assert accuracy * 48 == pytest.approx(round(accuracy * 48), abs=1e-4)
    out = capsys.readouterr().out
    assert "2 epochs, batches of 16, 1 thread" in out and "cnn" in out


def test_rows_say_how_much_faster():
    entries = [race.Entry("rnn", "ours", [1.0, 2.0, 1.0], [0.5]), race.Entry("rnn", "torch", [2.0, 3.0, 4.0], [0.25])]
    assert race.rows(entries) == [
        ("rnn", "ours", "1.00", "-", "0.500", "0.500"),
        ("rnn", "torch", "3.00", "2.00 (1.75-3.00)", "0.250", "0.250"),
    ]


def test_it_learns():
    """A trainer's epochs go on from one another."""
    (x, y), _ = PROGRAMS["cnn"].load(False)
    for name in ("ours", "torch"):
        trainer = trainers.TRAINERS[name]("cnn", x[:512], y[:512], 32, 0)
        before = trainer.accuracy(x[:512], y[:512])
        for _ in range(3):
            trainer.train_epoch()
        assert trainer.accuracy(x[:512], y[:512]) > max(before, 0.5)


def test_bad_input(tmp_path: Path, capsys):
    tiny = ["--epochs", "1", "--seeds", "1", "--limit", "16", "--output", str(tmp_path / "n.json")]
    assert cli.main(["networks", "gan", "--trainer", "ours", *tiny]) == 2
    assert "unknown network 'gan': cnn, rnn, transformer" in capsys.readouterr().err
    assert cli.main(["networks", "cnn", "--trainer", "ours", "jax", *tiny]) == 2
    shown = capsys.readouterr()
    assert "trainer jax: is unknown: ours, torch, keras" in shown.err and "wrote" in shown.out

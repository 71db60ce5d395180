"""python -m nnlib, on a few images."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import nnlib
from nnlib.cli import main

FEW = ["--subset", "--limit", "128", "--epochs", "1"]


def test_train_reports_accuracy_time_and_kernels(capsys):
    assert main(["train", "cnn", "--backend", "torch", *FEW]) == 0
    output = capsys.readouterr().out
    assert "Epoch 1/1: " in output and "samples/s" in output
    assert "Test accuracy 0." in output and "s an epoch" in output
    table = output[output.index("Which kernel ran where") :]
    rows = [line.split() for line in table.splitlines()[3:] if line]
    assert rows == [
        ["conv2d", "conv2d", "torch"],
        ["max_pooling2d", "max_pool2d", "torch"],
        ["conv2d_1", "conv2d", "torch"],
        ["max_pooling2d_1", "max_pool2d", "torch"],
        ["conv2d_2", "conv2d", "torch"],
        ["dense", "linear", "torch"],
        ["dense_1", "linear", "torch"],
        ["sparse_categorical_crossentropy", "cross_entropy", "torch"],
    ]


@pytest.mark.parametrize("program", ["rnn", "transformer"])
def test_text_programs_train_and_keep_what_they_made(program, capsys, tmp_path):
    saved, drawn = tmp_path / "model.safetensors", tmp_path / "history.png"
    few = ["--limit", "64", "--epochs", "1", "--save", str(saved), "--plot", str(drawn)]
    assert main(["train", program, "--backend", "torch", *few]) == 0
    output = capsys.readouterr().out
    assert "Test accuracy 0." in output and f"Model saved: {saved}" in output and f"History drawn: {drawn}" in output
    table = output[output.index("Which kernel ran where") :]
    assert {"rnn": "lstm_layer", "transformer": "attention"}[program] in table
    (tokens, _), _ = nnlib.datasets.stdlib_source()
    found = nnlib.load(saved).predict(tokens[:5])
    assert found.shape == (5, 10)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_compare_trains_the_same_network_twice(capsys):
    assert main(["compare", "cnn", *FEW]) == 0
    output = capsys.readouterr().out
    kernels, table = output.split("The same program, data and seed")
    assert "conv2d_2                         conv2d         numba            torch" in kernels
    header, _, *rows = table.strip().splitlines()
    assert header.split("  ")[0] == "backend"
    results = {row.split()[0]: [float(value) for value in row.split()[1:]] for row in rows}
    assert list(results) == ["numba", "torch"]
    assert results["numba"][1] == pytest.approx(results["torch"][1], abs=2e-3)  # test loss after two steps


def test_a_seed_repeats_a_run(capsys):
    outputs = []
    for seed in ("1", "1", "2"):
        main(["train", "cnn", "--backend", "torch", "--seed", seed, *FEW])
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch"))
        outputs.append(line.partition("loss=")[2])
    assert outputs[0] == outputs[1] != outputs[2]


def test_an_unknown_backend_is_one_line(capsys):
    assert main(["train", "cnn", "--backend", "nubma", *FEW]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("nnlib: ") and "nubma" in errors


def test_the_module_runs():
    result = subprocess.run([sys.executable, "-m", "nnlib", "train", "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "--batch-size" in result.stdout

"""python -m nnlib, on a few images."""

from __future__ import annotations

import subprocess
import sys

import pytest

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

"""The text set made of the standard library: forms, no file in both halves, the same numbers at every call."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from nnlib.datasets import stdlib_source, stdlib_tokens


def test_forms():
    halves = stdlib_source()
    for tokens, labels in halves:
        assert tokens.dtype == labels.dtype == np.int64
        assert tokens.shape == (len(labels), 50)
        assert tokens.min() >= 1 and tokens.max() < 10_000
        assert sorted(set(labels)) == list(range(10))
    (x_train, y_train), (x_test, y_test) = halves
    assert len(x_train) > 3000 and len(x_test) > 1000
    assert np.bincount(y_train).max() <= 1200 and np.bincount(y_test).max() <= 300


def test_no_file_is_in_both_halves():
    train, test = stdlib_tokens._halves()
    for ours, theirs in zip(train, test, strict=True):
        assert ours and theirs
        assert not {tuple(file) for file in ours if len(file) > 50} & {tuple(file) for file in theirs if len(file) > 50}
        share = sum(map(len, theirs)) / sum(map(len, ours + theirs))
        assert share >= 0.2 or len(ours) == 1


def test_the_vocabulary_is_of_the_training_half():
    found = stdlib_tokens.vocabulary()
    assert sorted(found.values()) == list(range(2, 2 + len(found))) and len(found) <= 9998
    assert found["<newline>"] < found["import"]
    known = {word for files in stdlib_tokens._halves()[0] for file in files for word in file}
    assert set(found) <= known
    test_words = {word for files in stdlib_tokens._halves()[1] for file in files for word in file}
    assert test_words - known, "words that only the test half has are unknown ones"
    assert (stdlib_source()[1][0] == stdlib_tokens.UNKNOWN).any()


def test_words():
    source = "def f(x):  # a comment\n    '''text'''\n    return x + 1.5\n"
    assert stdlib_tokens.words(source) == [
        "def", "f", "(", "x", ")", ":", "<newline>", "<indent>", "<string>", "<newline>",
        "return", "x", "+", "<number>", "<newline>", "<dedent>",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="^source: Python source is expected, got "):
        stdlib_tokens.words("(((")


def test_another_process_makes_the_same_numbers():
    program = (
        "import hashlib; from nnlib.datasets import stdlib_source; (a, b), (c, d) = stdlib_source();"
        "print(hashlib.sha256(b''.join(x.tobytes() for x in (a, b, c, d))).hexdigest())"
    )
    found = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True) for _ in range(2)]
    assert found[0].returncode == 0, found[0].stderr
    assert found[0].stdout == found[1].stdout


def test_a_python_without_source_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(stdlib_tokens.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="^stdlib_source: the source of asyncio is expected in .*got 0 files$"):
        list(stdlib_tokens._sources("asyncio"))

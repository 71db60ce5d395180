"""Keras' own tests of its layers, passed by the layers of this library: see keras_own_tests."""

from __future__ import annotations

import pytest

from nnlib import layers
from tests.nnlib import keras_own_tests

pytest.importorskip("keras")


@pytest.mark.parametrize("module, test", keras_own_tests.cases())
def test_keras_own_test_passes(module, test):
    result, made = keras_own_tests.run(module, test)
    assert result.testsRun == 1
    assert not result.skipped
    for _, report in (*result.errors, *result.failures):
        pytest.fail(report)
    # It was this library that was tested.
    assert made and all(isinstance(layer, layers.Layer) for layer in made)


@pytest.mark.parametrize("module", keras_own_tests.METHODS)
def test_no_case_is_left_out(module):
    """A parametrized method has exactly the cases that are listed."""
    loaded = keras_own_tests.load(module)
    for test, count in keras_own_tests.METHODS[module].items():
        kind, method = test.split(".")
        if count is not None:
            assert not hasattr(getattr(loaded, kind), f"{method}{count}")


def test_the_adapter_sees_a_wrong_number(monkeypatch):
    monkeypatch.setattr(layers.Dense, "call", lambda self, x: 1.001 * x.new_ones(*x.shape[:-1], self.units))
    result, made = keras_own_tests.run("core.dense", "DenseTest.test_dense_correctness")
    assert made and result.failures


def test_keras_is_left_as_it_was():
    from keras.src.layers.core import dense_test

    assert dense_test.layers.__name__ == "keras.src.layers"
    assert not hasattr(layers.Dense, "kernel")

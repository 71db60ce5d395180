"""One clear line for every wrong argument."""
# ruff: noqa: E501 (a table reads best with a line for each row)

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kernels
from tests.recurrence.modules import random_params

X = np.zeros((4, 3, 5), np.float32)
LSTM, GRU, RNN = (random_params(cell, 5, 7) for cell in ("lstm", "gru", "rnn"))
W_IH, W_HH, B, _ = LSTM[0]
STATE = np.zeros((1, 3, 7), np.float32)


def lstm(x: Any = X, params: Any = LSTM, state: Any = None, **arguments: Any) -> Any:
    return kernels.lstm(x, params, state, **arguments)


ERRORS = [
    (lambda: lstm(lengths=np.array([1, 2])), ValueError, r"lengths must have shape \(3,\) .*, got \(2,\)"),
    (lambda: lstm(lengths=[1, 2, 5]), ValueError, r"lengths must lie in \[0, 4\], the number of steps of x, got 5 at 2"),
    (lambda: lstm(lengths=[1, -1, 2]), ValueError, r"lengths must lie in \[0, 4\], .*, got -1 at 1"),
    (lambda: lstm(lengths=np.ones(3)), TypeError, "lengths must have dtype int64 or int32, got float64"),
    (lambda: lstm(lengths=[1.0, 2, 3]), TypeError, "lengths must be an int, got 1.0"),
    (lambda: lstm(lengths="123"), TypeError, "lengths must be an array or a list of ints"),
    (lambda: lstm(X[:, 0], lengths=[4]), ValueError, "lengths must be None for a single sequence"),
    (lambda: lstm(np.zeros((0, 3, 5), "f")), ValueError, "x must not have a dimension of size 0"),
    (lambda: lstm(np.zeros((4, 3, 0), "f")), ValueError, "x must not have a dimension of size 0"),
    (lambda: lstm(X[0, 0]), ValueError, r"lstm: x must have shape \(T, B, I\) or \(T, I\), got 1 dimensions \(5,\)"),
    (lambda: lstm(X.astype("int32")), TypeError, "x must have dtype float16 or .*, got int32"),
    (lambda: lstm(X.tolist()), TypeError, "lstm: x must be a NumPy, torch or CuPy array, got list"),
    (lambda: lstm(X.astype("float64")), TypeError, r"w_ih must have the dtype of x \(float64\), got float32"),
    (lambda: lstm(X[..., :4]), ValueError, r"w_ih must have shape \(28, 4\) \(gates i, f, g, o .*\), got \(28, 5\)"),
    (lambda: lstm(params=GRU), ValueError, r"w_hh must have shape \(28, 7\) \(gates i, f, g, o .*\), got \(21, 7\)"),
    (lambda: kernels.gru(X, LSTM), ValueError, r"w_hh must have shape \(21, 7\) \(gates r, z, n .*\), got \(28, 7\)"),
    (lambda: lstm(params=[(W_IH, W_HH, B[:-1], B)]), ValueError, r"b_ih must have shape \(28,\) .*, got \(27,\)"),
    (lambda: lstm(params=[(W_IH, W_HH)]), ValueError, r"lstm: params\[0\] must be \(w_ih, w_hh, b_ih, b_hh\), got 2 entries"),
    (lambda: lstm(params=LSTM[0]), TypeError, "lstm: params must be a sequence of tuples .*, got tuple"),
    (lambda: lstm(params=LSTM * 2), ValueError, "lstm: params must hold 1 tuples, one for each layer and direction, got 2"),
    (lambda: lstm(bidirectional=True), ValueError, "lstm: params must hold 2 tuples, .*, got 1"),
    (lambda: lstm(params=LSTM * 2, num_layers=2), ValueError, r"w_ih must have shape \(28, 7\) .*, got \(28, 5\)"),
    (lambda: lstm(state=STATE), TypeError, r"lstm: state must be a pair \(h0, c0\) or None, got ndarray"),
    (lambda: lstm(state=(STATE[:, :2], STATE)), ValueError, r"h0 must have shape \(1, 3, 7\) .*, got \(1, 2, 7\)"),
    (lambda: lstm(state=(STATE, STATE[..., :3])), ValueError, r"c0 must have shape \(1, 3, 7\) .*, got \(1, 3, 3\)"),
    (lambda: lstm(state=(np.zeros((2, 3, 7), "f"), STATE)), ValueError, r"lstm: h0 must have shape \(1, rows of x, .*got \(2, 3, 7\)"),
    (lambda: lstm(X[:, 0], state=(STATE, STATE)), ValueError, r"lstm: h0 must have shape \(1, size of the state\), got \(1, 3, 7\)"),
    (lambda: lstm(state=(STATE.astype("float64"), STATE)), TypeError, r"h0 must have the dtype of x"),
    (lambda: lstm(state=([0.0], STATE)), TypeError, "lstm: h0 must be an array of the kind of x, got list"),
    (lambda: lstm(proj_size=3), ValueError, r"lstm: params\[0\] must be \(w_ih, w_hh, b_ih, b_hh, w_hr\), got 4 entries"),
    (lambda: lstm(params=random_params("lstm", 5, 7, projection=3), proj_size=2), ValueError, "lstm: proj_size must be the 3 rows of w_hr, got 2"),
    (lambda: lstm(params=[(*LSTM[0], np.zeros((3, 7), "f"))], proj_size=3), ValueError, r"w_hr must have shape \(7, 7\) .*, got \(3, 7\)"),
    (lambda: lstm(proj_size=-1), ValueError, "lstm: proj_size must be at least 0, got -1"),
    (lambda: lstm(num_layers=0), ValueError, "lstm: num_layers must be at least 1, got 0"),
    (lambda: lstm(num_layers=1.0), TypeError, "lstm: num_layers must be an int, got 1.0"),
    (lambda: lstm(dropout=1.5), ValueError, r"lstm: dropout must lie in \[0, 1\], got 1.5"),
    (lambda: lstm(dropout="a"), TypeError, "lstm: dropout must be a number"),
    (lambda: lstm(bidirectional=1), TypeError, "lstm: bidirectional must be True or False"),
    (lambda: lstm(training=1), TypeError, "lstm: training must be True or False"),
    (lambda: lstm(batch_first=None), TypeError, "lstm: batch_first must be True or False"),
    (lambda: lstm(return_last=0), TypeError, "lstm: return_last must be True or False"),
    (lambda: lstm(params=[*LSTM, *random_params("lstm", 7, 7)], num_layers=2, dropout=0.5, training=True, seed=0.5), TypeError, "lstm: seed must be an int"),
    (lambda: kernels.rnn(X, RNN, nonlinearity="sigmoid"), ValueError, "nonlinearity must be one of 'tanh', 'relu', got 'sigmoid'"),
    (lambda: kernels.gru(X, GRU, reset_after=1), TypeError, "reset_after must be True or False"),
    (lambda: lstm(backend="none"), kernels.BackendError, "must be one of"),
    (lambda: lstm(device="tpu"), ValueError, "device must be"),
    (lambda: lstm(lengths=torch.tensor([1, 2, 3])), TypeError, "lengths must be a numpy array, as x is, got a torch array"),
    (lambda: kernels.lstm_layer(X, W_IH, W_HH, w_ih_reverse=W_IH), ValueError, "w_ih_reverse must be given with w_ih_reverse and w_hh_reverse"),
    (lambda: kernels.lstm_layer(X, W_IH, W_HH, b_ih_reverse=B), ValueError, "b_ih_reverse must be given with w_ih_reverse"),
    (lambda: kernels.lstm_layer(X, W_IH[0], W_HH), ValueError, r"w_ih must have shape \(rows, columns\), got 1 dimensions"),
    (lambda: kernels.lstm_cell(X[0], STATE[0], W_IH, W_HH), TypeError, r"lstm_cell: state must be a pair \(h, c\) or None"),
    (lambda: kernels.gru_cell(X, None, *GRU[0]), ValueError, r"gru_cell: x must have shape \(B, I\) or \(I,\), got 3 dimensions"),
    (lambda: kernels.rnn_cell(X[0], STATE, *RNN[0]), ValueError, r"rnn_cell: h must be an array with as many dimensions as x, got \(1, 3, 7\)"),
]  # fmt: skip


@pytest.mark.parametrize("call, kind, text", ERRORS, ids=[text[:50] for *_, text in ERRORS])
def test_error(call: Any, kind: type[Exception], text: str):
    with pytest.raises(kind, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_lengths_are_checked_for_tensors_too():
    x, params = torch.from_numpy(X), [tuple(map(torch.from_numpy, LSTM[0]))]
    for backend in ("numba", "torch", "reference"):
        with pytest.raises(ValueError, match=r"lengths must lie in \[0, 4\], the number of steps of x, got 9 at 1"):
            kernels.lstm(x, params, lengths=torch.tensor([1, 9, 2]), backend=backend)

"""Bad input: one line that names the op, the argument, the rule and the value."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

import kernels
from tests.attention.helpers import inputs

Q, K, V = inputs(2, 4, 5, 7, 8, 6, kv_heads=2)


def ones(*shape: int, dtype: str = "float32") -> np.ndarray:
    """An array of ones."""
    return np.ones(shape, dtype)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"query": ones(8)}, ValueError, "query must have shape (..., L, E), got 1 dimensions (8,)"),
    ({"key": K[0]}, ValueError, "key must have as many dimensions as query (4), got 3 dimensions (2, 7, 8)"),
    ({"key": K[:1], "value": V[:1]}, ValueError, "key must have query's batch size 2, got (1, 2, 7, 8)"),
    ({"key": K[..., :7]}, ValueError, "key must have query's last dimension 8, got (2, 2, 7, 7)"),
    ({"value": V[:, :, :6]}, ValueError, "value must have key's batch, heads and length (2, 2, 7), got (2, 2, 6, 6)"),
    (
        {"key": ones(2, 3, 7, 8), "value": ones(2, 3, 7, 8)},
        ValueError,
        "key must have a number of heads that divides query's 4, got 3",
    ),
    ({"value": V.astype("float64")}, TypeError, "value must have the dtype of query (float32), got float64"),
    (
        {"query": Q.astype("int32"), "key": K.astype("int32"), "value": V.astype("int32")},
        TypeError,
        "query must have dtype float16 or bfloat16 or float32 or float64, got int32",
    ),
    ({"mask": ones(5, 7)}, TypeError, "mask must have dtype bool, got float32"),
    (
        {"mask": ones(5, 6, dtype="bool")},
        ValueError,
        "mask must broadcast to the scores (batch, heads, queries, keys) (2, 4, 5, 7), got (1, 1, 5, 6)",
    ),
    (
        {"mask": ones(1, 1, 1, 1, 1, dtype="bool")},
        ValueError,
        "mask must have at most query's 4 dimensions, got (1, 1, ",
    ),
    ({"bias": ones(5, 7, dtype="float64")}, TypeError, "bias must have the dtype of query (float32), got float64"),
    (
        {"bias": ones(3, 5, 7)},
        ValueError,
        "bias must broadcast to the scores (batch, heads, queries, keys) (2, 4, 5, 7), got (1, 3, 5, 7)",
    ),
    ({"causal": True}, ValueError, "causal must be one of None, 'top_left', 'bottom_right', got True"),
    ({"window": -1}, ValueError, "window must be at least 0, got -1"),
    ({"window": (1, 2, 3)}, ValueError, "window must be an int or a pair (left, right), got (1, 2, 3)"),
    ({"window": 1.5}, TypeError, "window must be an int, got 1.5 (float)"),
    ({"softcap": 0.0}, ValueError, "softcap must be above 0, or None, got 0.0"),
    ({"softcap": float("nan")}, ValueError, "softcap must be finite, got nan"),
    ({"scale": "1"}, TypeError, "scale must be a number, got '1' (str)"),
    ({"dropout_p": 1.5}, ValueError, "dropout_p must lie in [0, 1], got 1.5"),
    ({"dropout_p": -0.1}, ValueError, "dropout_p must lie in [0, 1], got -0.1"),
    ({"dropout_p": 0.5, "seed": 2**64}, ValueError, "seed must fit into 64 bits, got 18446744073709551616"),
    ({"dropout_p": 0.5, "seed": 1.5}, TypeError, "seed must be an int, got 1.5 (float)"),
    ({"dropout_p": 0.5, "seed": np.zeros(2, np.int64)}, ValueError, "seed must have shape () (one number), got (2,)"),
    ({"lengths": [5, 7]}, TypeError, "lengths must be a NumPy, torch or CuPy array, got list"),
    ({"lengths": np.array([5.0, 7.0])}, TypeError, "lengths must have dtype int32 or int64, got float64"),
    (
        {"lengths": np.array([5, 7, 1])},
        ValueError,
        "lengths must have shape (2,) (the number of keys of every row of the batch), got (3,)",
    ),
    ({"lengths": np.array([5, 8])}, ValueError, "lengths must lie in [0, 7] (the keys there are), got 8 at 1"),
    ({"lengths": np.array([-1, 7])}, ValueError, "lengths must lie in [0, 7] (the keys there are), got -1 at 0"),
    ({"return_lse": 1}, TypeError, "return_lse must be True or False, got 1 (int)"),
    (
        {"value": V[..., :0], "return_lse": True},
        ValueError,
        "value must have at least one column when return_lse is True, got (2, 2, 7, 0)",
    ),
    ({"relative": ones(3, 8)}, TypeError, "relative must be a RelativeShaw, RelativeT5 or RelativeALiBi, got "),
    (
        {"relative": kernels.RelativeShaw(ones(4, 8))},
        ValueError,
        "RelativeShaw.table must have shape (2 * clip + 1, 8), got (4, 8)",
    ),
    (
        {"relative": kernels.RelativeShaw(ones(5, 7))},
        ValueError,
        "RelativeShaw.table must have shape (2 * clip + 1, 8), got (5, 7)",
    ),
    (
        {"relative": kernels.RelativeShaw(ones(5, 8), 3)},
        ValueError,
        "RelativeShaw.table must have 2 * clip + 1 = 7 rows, got (5, 8)",
    ),
    ({"relative": kernels.RelativeShaw(ones(5, 8), -2)}, ValueError, "RelativeShaw.clip must be at least 0, got -2"),
    (
        {"relative": kernels.RelativeT5(ones(32, 2))},
        ValueError,
        "RelativeT5.table must have shape (buckets, 4), a column for each head of query, got (32, 2)",
    ),
    (
        {"relative": kernels.RelativeT5(ones(31, 4))},
        ValueError,
        "RelativeT5.table must have an even number of buckets, at least 4, got (31, 4)",
    ),
    (
        {"relative": kernels.RelativeT5(ones(1, 4), bidirectional=False)},
        ValueError,
        "RelativeT5.table must have at least 2 buckets, got (1, 4)",
    ),
    (
        {"relative": kernels.RelativeT5(ones(32, 4), max_distance=8)},
        ValueError,
        "RelativeT5.max_distance must be above the 8 distances with their own bucket, got 8",
    ),
    (
        {"relative": kernels.RelativeALiBi(ones(3))},
        ValueError,
        "RelativeALiBi.slopes must have shape (4,) (one slope for each head of query), got (3,)",
    ),
    (
        {"relative": kernels.RelativeALiBi(ones(4, dtype="float64"))},
        TypeError,
        "RelativeALiBi.slopes must have the dtype of query (float32), got float64",
    ),
]


@pytest.mark.parametrize("change, error, text", BAD, ids=[text for _, _, text in BAD])
def test_attention(change: dict[str, Any], error: type[Exception], text: str):
    with pytest.raises(error, match=f"^attention: {re.escape(text)}"):
        kernels.attention(**({"query": Q, "key": K, "value": V} | change))


def test_attention_of_tensors():
    q, k, v = map(torch.from_numpy, (Q, K, V))
    with pytest.raises(ValueError, match=r"^attention: lengths must lie in \[0, 7\] .*, got 9 at 1$"):
        kernels.attention(q, k, v, lengths=torch.tensor([3, 9]))
    with pytest.raises(TypeError, match="^attention: key must be a torch array, as query is, got a numpy array$"):
        kernels.attention(q, K, v)
    with pytest.raises(ValueError, match=r"^attention: bias must be on the device of query \(cpu\), got meta$"):
        kernels.attention(q, k, v, bias=torch.zeros(5, 7, device="meta"))


BAD_TORCH: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"query": ones(8)}, ValueError, "query must have at least 2 dimensions, got 1 dimensions (8,)"),
    ({"attn_mask": ones(5, 7), "is_causal": True}, ValueError, "attn_mask must be None when is_causal is True, got "),
    (
        {"attn_mask": ones(5, 7, dtype="float64")},
        TypeError,
        "attn_mask must have dtype bool or float32, got float64",
    ),
    ({"enable_gqa": 1}, TypeError, "enable_gqa must be True or False, got 1 (int)"),
    ({"is_causal": 1}, TypeError, "is_causal must be True or False, got 1 (int)"),
    ({"dropout_p": 2}, ValueError, "dropout_p must lie in [0, 1], got 2"),
    ({"enable_gqa": False}, ValueError, "key must have leading dimensions that broadcast to (2, 4), got (2, 2, 7, 8)"),
    ({"scale": "1"}, TypeError, "scale must be a number, got '1' (str)"),
    ({"key": ones(7, 8), "value": ones(7, 8)}, ValueError, "key must have heads (..., H, S, E) when enable_gqa is "),
]


@pytest.mark.parametrize("change, error, text", BAD_TORCH, ids=[text for _, _, text in BAD_TORCH])
def test_scaled_dot_product_attention(change: dict[str, Any], error: type[Exception], text: str):
    with pytest.raises(error, match=f"^scaled_dot_product_attention: {re.escape(text)}"):
        kernels.scaled_dot_product_attention(**({"query": Q, "key": K, "value": V, "enable_gqa": True} | change))

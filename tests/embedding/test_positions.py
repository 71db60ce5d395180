"""The sinusoidal position encoding: numbers, odd sizes, offsets, kinds of array, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import kernels

encoding = kernels.position_encoding


def by_the_paper(position: int, channel: int, d_model: int, base: float = 10000.0) -> float:
    """One number, as the paper has it: sine and cosine of a channel pair share the even channel's wavelength."""
    angle = position / base ** (channel // 2 * 2 / d_model)
    return math.cos(angle) if channel % 2 else math.sin(angle)


@pytest.mark.parametrize("d_model", [1, 2, 3, 7, 8, 64])
@pytest.mark.parametrize("offset", [0, 5, -3, 100_000])
@pytest.mark.parametrize("base", [10000, 500.0])
def test_every_number(d_model, offset, base):
    found = encoding(6, d_model, offset=offset, base=base, dtype="float64")
    exact = [[by_the_paper(offset + r, c, d_model, base) for c in range(d_model)] for r in range(6)]
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-15 * max(1, abs(offset)))
    assert found.shape == (6, d_model) and found.flags.c_contiguous


def test_by_hand():
    """d_model = 4: wavelengths 2 pi and 200 pi."""
    found = encoding(2, 4, dtype="float64")
    np.testing.assert_array_equal(found[0], [0, 1, 0, 1])
    np.testing.assert_allclose(
        found[1], [0.8414709848078965, 0.5403023058681398, 0.009999833334166664, 0.99995000041666]
    )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rounded_once_from_float64(dtype):
    """float32 angles would be off by thousands of units at position 100 000."""
    exact = encoding(50, 33, offset=100_000, dtype=np.float64)
    found = encoding(50, 33, offset=100_000, dtype=dtype)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, exact.astype(dtype))


def test_a_part_is_a_part_of_the_whole():
    np.testing.assert_array_equal(encoding(40, 10)[13:20], encoding(7, 10, offset=13))


def test_numpy_in_float32_by_default():
    found = encoding(3, 4)
    assert type(found) is np.ndarray and found.dtype == np.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_like_a_tensor(dtype):
    x = torch.zeros(2, 5, 6, dtype=dtype, requires_grad=True)
    found = encoding(5, 6, like=x)
    assert torch.is_tensor(found) and found.dtype == dtype and found.device == x.device and not found.requires_grad
    torch.testing.assert_close(found, torch.from_numpy(encoding(5, 6, dtype="float64")).to(dtype), rtol=0, atol=0)
    assert encoding(5, 6, like=x, dtype=torch.float64).dtype == torch.float64
    assert encoding(5, 6, like=x, dtype="bfloat16").dtype == torch.bfloat16
    assert encoding(5, 6, like=x.detach().to("meta")).is_meta


def test_like_token_indices():
    assert encoding(5, 6, like=torch.zeros(2, 5, dtype=torch.int64)).dtype == torch.float32
    assert encoding(5, 6, like=np.zeros((2, 5), np.int32)).dtype == np.float32
    assert encoding(5, 6, like=np.zeros(1)).dtype == np.float64
    assert encoding(5, 6, like=np.zeros(1, np.float16)).dtype == np.float16


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_nothing(shape):
    assert encoding(*shape).shape == shape


@pytest.mark.parametrize(
    "arguments, error, text",
    [
        ({"length": -1}, ValueError, "length must be at least 0, got -1"),
        ({"length": 2.0}, TypeError, r"length must be an int, got 2.0 \(float\)"),
        ({"d_model": True}, TypeError, "d_model must be an int, got True"),
        ({"offset": 0.5}, TypeError, "offset must be an int, got 0.5"),
        ({"base": 0}, ValueError, "base must be above 0 and finite, got 0"),
        ({"base": math.inf}, ValueError, "base must be above 0 and finite, got inf"),
        ({"base": math.nan}, ValueError, "base must be above 0 and finite, got nan"),
        ({"base": "x"}, TypeError, "base must be a number, got 'x'"),
        ({"dtype": "int32"}, ValueError, "dtype must be None or one of float16, float32, float64, got 'int32'"),
        ({"dtype": "bfloat16"}, ValueError, "dtype must be None or one of float16, float32, float64, got 'bfloat16'"),
        ({"dtype": torch.int64}, ValueError, "dtype must be None or one of .*, got torch.int64"),
        ({"like": [1.0]}, TypeError, "like must be None or a NumPy, torch or CuPy array, got list"),
    ],
)
def test_wrong_arguments(arguments, error, text):
    with pytest.raises(error, match=f"^position_encoding: {text}"):
        encoding(**({"length": 3, "d_model": 4} | arguments))

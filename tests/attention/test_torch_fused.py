"""torch's fused attention as the backend "torch" calls it on a GPU: here on the CPU, with problems that say "cuda"."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels.attention.torch_stock import direct
from kernels.op import OPS
from tests.support import matrix

Tensor = torch.Tensor
matrix.implementations()  # loads them


def problem_of(query: Tensor, key: Tensor, value: Tensor, place: str = "cuda:0", **arguments: Any) -> Any:
    """The problem of a call of attention with these tensors on another device."""
    found: Any = kernels.explain("attention", query, key, value, **arguments).problem
    names = ("query", "key", "value")
    return replace(found, **{n: replace(getattr(found, n), device=place) for n in names})


def numbers(*shape: int, dtype: Any = torch.float64, gradients: bool = True, seed: int = 0) -> Tensor:
    drawn = torch.from_numpy(np.random.default_rng((seed, *shape)).standard_normal(shape))
    return drawn.to(dtype).requires_grad_(gradients)


def arrays(
    queries: int = 5, keys: int = 7, heads: int = 4, kv_heads: int = 4, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value."""
    query = numbers(2, heads, queries, 8, seed=1, **options)
    key, value = (numbers(2, kv_heads, keys, 8, seed=s, **options) for s in (2, 3))
    return query, key, value


def fused(*given: Tensor, **arguments: Any) -> Callable[..., Tensor]:
    found = direct(problem_of(*given, **arguments))
    assert found is not None
    return found


CALLS: list[Any] = [
    ({}, {}),
    ({}, {"scale": 0.3}),
    ({"keys": 5}, {"causal": "top_left"}),
    ({"keys": 5}, {"causal": "bottom_right"}),
    ({"queries": 9}, {"causal": "top_left"}),
    ({"kv_heads": 2}, {}),
]


@pytest.mark.parametrize("sizes, arguments", CALLS)
def test_it_computes_the_same(sizes: dict[str, int], arguments: dict[str, Any]):
    given = arrays(**sizes)
    rest = (None,) * 5
    found = fused(*given, **arguments)(*given, *rest)
    expected = kernels.attention(*given, **arguments, backend="reference")
    incoming = numbers(*expected.shape, gradients=False, seed=4)
    torch.testing.assert_close(found, expected)
    theirs = torch.autograd.grad(expected, given, incoming)
    torch.testing.assert_close(torch.autograd.grad(found, given, incoming), theirs)
    with torch.no_grad():
        plain = fused(*given, **arguments)(*given, *rest)
    assert not plain.requires_grad
    torch.testing.assert_close(plain, expected.detach())


@pytest.mark.parametrize(
    "arguments",
    [
        {"causal": "bottom_right"},  # of 5 queries and 7 keys, where torch's causality is the other one
        {"window": 2},
        {"softcap": 1.0},
        {"dropout_p": 0.1, "seed": 1},
        {"scale": 0.0},
        {"scale": -1.0},
        {"return_lse": True},
        {"lengths": torch.tensor([3, 7])},
        {"mask": torch.ones(5, 7, dtype=torch.bool)},
        {"bias": torch.zeros(5, 7, dtype=torch.float64)},
        {"relative": kernels.RelativeALiBi(torch.ones(4, dtype=torch.float64))},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_where_torchs_is_another_function_there_is_none(arguments: dict[str, Any]):
    assert direct(problem_of(*arrays(), **arguments)) is None


def test_none_without_keys_and_none_on_the_cpu():
    assert direct(problem_of(*arrays(keys=0))) is None
    assert direct(problem_of(*arrays(), place="cpu")) is None
    assert OPS["scaled_dot_product_attention"].implementations["torch"].direct(
        kernels.explain("scaled_dot_product_attention", *arrays()).problem
    ) is None  # fmt: skip


@pytest.mark.parametrize("wanted", [(True, True, True), (False, True, False), (True, False, False)])
def test_second_derivatives_are_the_formulas(wanted: tuple[bool, bool, bool]):
    """torch's fused gradient has no derivative; ours has, of the inputs that want one."""
    given = tuple(t.detach().requires_grad_(want) for t, want in zip(arrays(dtype=torch.float64), wanted))
    asked = [t for t in given if t.requires_grad]

    def squares(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(function(*given).square().sum(), asked, create_graph=True)
        second = torch.autograd.grad(sum((g.square().sum() for g in first), torch.tensor(0.0)), asked)
        return (*first, *second)

    expected = squares(lambda *tensors: kernels.attention(*tensors, backend="reference"))
    for mine, right in zip(squares(fused(*given)), expected, strict=True):
        torch.testing.assert_close(mine, right)


def test_torchs_own_second_derivative_is_missing():
    """What the formulas are for; on a GPU it is the same."""
    given = arrays(dtype=torch.float32)
    first = torch.autograd.grad(F.scaled_dot_product_attention(*given).square().sum(), given, create_graph=True)
    with pytest.raises((RuntimeError, NotImplementedError), match="derivative for aten::_scaled_dot_product"):
        torch.autograd.grad(first[0].sum(), given)


def test_gradients_flow_twice_and_are_not_kept():
    given = arrays()
    output = fused(*given)(*given)
    once = torch.autograd.grad(output.sum(), given, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(output.sum(), given), once)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(output.sum(), given)
    query, key, value = (t * 1 for t in given)
    output = fused(query, key, value)(query, key, value)
    memory = weakref.ref(query)
    output.sum().backward()
    del query, key, value
    gc.collect()
    assert memory() is None, "what backward has read must not outlive it"


def test_torch_func_takes_torchs_own():
    given = tuple(t.detach() for t in arrays())
    function = fused(*arrays())
    found = torch.func.grad(lambda *tensors: function(*tensors).square().sum(), argnums=(0, 1, 2))(*given)
    leaves = arrays()
    expected = torch.autograd.grad(kernels.attention(*leaves, backend="reference").square().sum(), leaves)
    torch.testing.assert_close(found, expected)


def test_the_output_is_contiguous(monkeypatch: pytest.MonkeyPatch):
    """FlashAttention's lies in memory as (B, L, H, E)."""
    real = F.scaled_dot_product_attention

    def turned(*given: Any, **options: Any) -> Tensor:
        return real(*given, **options).transpose(1, 2).contiguous().transpose(1, 2)

    given = arrays()
    expected = fused(*given)(*given)
    monkeypatch.setattr(F, "scaled_dot_product_attention", turned)
    found = fused(*given)(*given)
    assert found.is_contiguous() and torch.equal(found, expected)


@pytest.mark.parametrize("op", ["conv2d", "lstm_layer", "attention"])
def test_no_backend_of_torchs_is_cast(op: str):
    """torch.autocast would make bfloat16 of the sums that torch's own functions take."""
    tensors = matrix.as_tensors(matrix.cases_of(op, "ci")[0].build(), op, requires_grad=True)
    expected = matrix.results_of(matrix.public(op)(**tensors, backend="torch"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = matrix.results_of(matrix.public(op)(**tensors, backend="torch"))
    for mine, right in zip(found, expected, strict=True):
        assert torch.equal(mine, right) and mine.dtype == torch.float32

"""Calls that are recognised as like earlier ones, and dimensions of size 1 that the caller's arrays have not."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels import call as kernels_call
from kernels import recent
from kernels.ones import Ones
from kernels.op import OPS
from tests.test_by_address import spied


@pytest.fixture
def plans_made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for each plan of linear or embedding that is made from here on."""
    made: list[Any] = []
    make_plan = kernels_call.make_plan

    def watch(*call: Any) -> Any:
        made.append(call)
        return make_plan(*call)

    monkeypatch.setattr(kernels_call, "make_plan", watch)
    for op in ("linear", "embedding", "cross_entropy", "lstm_layer"):
        monkeypatch.setattr(OPS[op], "plans", {})
    return made


def recognised(monkeypatch: pytest.MonkeyPatch, op: str) -> list[bool]:
    """What the remembered calls of `op` answer from here on."""
    answers: list[bool] = []
    for shape, known in list(OPS[op].plans.items()):
        if not isinstance(known, tuple):
            continue

        def asked(fits: Any) -> Any:
            def ask(*call: Any) -> bool:
                answers.append(bool(fits(*call)))
                return answers[-1]

            return ask

        OPS[op].plans[shape] = tuple((asked(fits), run) for fits, run in known)
    return answers


def linear(x: Any, weight: Any, *rest: Any, **more: Any) -> Any:
    return kernels.linear(x, weight, *rest, backend="numba", **more)


# ----- recognised calls --------------------------------------------------------------------------------------------


def test_a_call_like_an_earlier_one_is_recognised(monkeypatch, plans_made):
    x, weight, bias = torch.randn(5, 4), torch.randn(3, 4), torch.randn(3)
    parameter = torch.nn.Parameter(weight, requires_grad=False)
    for given in (weight, parameter):
        linear(x, given, bias, activation="relu")
    answers = recognised(monkeypatch, "linear")
    for given in (parameter, weight):
        again = torch.randn(5, 4)
        found = linear(again, given, bias, activation="relu")
        torch.testing.assert_close(found, F.linear(again, weight, bias).relu())
    assert answers == [True, False, True] and len(plans_made) == 1


DIFFERENT: dict[str, Any] = {
    "shape of another input": lambda a: a | {"weight": torch.randn(6, 4), "bias": torch.randn(6)},
    "dtype": lambda a: {n: t.double() if isinstance(t, torch.Tensor) else t for n, t in a.items()},
    "strides": lambda a: a | {"weight": torch.randn(4, 3).T},
    "an input that is not there": lambda a: a | {"bias": None},
    "attribute": lambda a: a | {"activation": None},
    "gradient": lambda a: a | {"weight": a["weight"].clone().requires_grad_()},
    "subclass": lambda a: a | {"x": a["x"].as_subclass(type("Mine", (torch.Tensor,), {}))},
    "kind": lambda a: {n: t.numpy() if isinstance(t, torch.Tensor) else t for n, t in a.items()},
    "backend": lambda a: a | {"backend": "reference"},
    "device": lambda a: a | {"device": "cpu"},
}


@pytest.mark.parametrize("difference", DIFFERENT)
def test_what_differs_in_anything_is_not(difference, monkeypatch, plans_made):
    arguments = {
        "x": torch.randn(5, 4), "weight": torch.randn(3, 4), "bias": torch.randn(3), "activation": "relu",
        "backend": "numba",
    }  # fmt: skip
    kernels.linear(**arguments)
    answers = recognised(monkeypatch, "linear")
    changed = DIFFERENT[difference](arguments)
    found = kernels.linear(**changed)
    assert answers == [False] and len(plans_made) == 2
    given = [torch.as_tensor(changed[n]) if changed[n] is not None else None for n in ("x", "weight", "bias")]
    expected = F.linear(given[0].as_subclass(torch.Tensor), given[1], given[2])
    expected = expected.relu() if changed["activation"] else expected
    torch.testing.assert_close(torch.as_tensor(found).as_subclass(torch.Tensor), expected)


def test_numbers_that_are_equal_but_of_other_types_are_told_apart(plans_made):
    x, target = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 1])
    kernels.cross_entropy(x, target, ignore_index=1)
    with pytest.raises(TypeError, match="^cross_entropy: ignore_index must be an int, got True"):
        kernels.cross_entropy(x, target, ignore_index=True)
    with pytest.raises(TypeError, match="^cross_entropy: ignore_index must be an int, got 1.0"):
        kernels.cross_entropy(x, target, ignore_index=1.0)


def test_whether_gradients_are_recorded_is_asked_at_each_call():
    x, weight = torch.randn(5, 4), torch.randn(3, 4)
    for _ in range(2):
        for requires in (False, True):
            weight.requires_grad_(requires)
            assert linear(x, weight).requires_grad == requires
            with torch.no_grad():
                assert not linear(x, weight).requires_grad
            with torch.inference_mode():
                assert not linear(x, weight).requires_grad
        weight = weight.detach()


def test_tensors_that_change_their_form_in_place_are_seen_as_they_are():
    x, weight = torch.randn(5, 4), torch.randn(3, 4)
    linear(x, weight)
    memory = weight.data_ptr()
    weight.resize_(2, 4)
    assert weight.data_ptr() == memory
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight))
    weight.data = torch.randn(4, 6).T
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight))
    weight.t_()
    weight.data = weight.data[:2, :4]
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight))


def test_only_so_many_calls_are_kept_for_a_shape(plans_made):
    x = torch.randn(5, 4)
    for outputs in range(1, recent.MOST + 4):
        linear(x, torch.randn(outputs, 4))
    assert len(OPS["linear"].plans[x.shape]) == recent.MOST
    weight = torch.randn(1, 4)  # The oldest, which is found by its key.
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight))
    assert len(plans_made) == recent.MOST + 3


def test_nothing_remembered_keeps_tensors_alive():
    x, weight = torch.randn(5, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    found = linear(x, weight)
    gradient = torch.ones(5, 3)
    made = torch.autograd.grad(found, (x, weight), gradient)
    seen = [weakref.ref(t) for t in (x, weight, found, gradient, *made)]
    del x, weight, found, gradient, made
    gc.collect()
    assert [ref() for ref in seen] == [None] * 6


@pytest.mark.parametrize("which", ["x", "weight", "output"])
def test_what_is_written_to_before_backward_is_refused(which):
    x, weight = torch.randn(5, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    copies = x.clone(), weight.clone()
    for _ in range(2):
        found = linear(*copies, activation="relu")
    changed = {"x": copies[0], "weight": copies[1], "output": found}[which]
    with torch.no_grad():
        changed.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.sum().backward()


def test_gradients_of_some_results_alone():
    x, h0, c0 = torch.randn(4, 3, 5), torch.randn(1, 3, 6), torch.randn(1, 3, 6)
    weights = [torch.randn(24, 5), torch.randn(24, 6), torch.randn(24), torch.randn(24)]
    module = torch.nn.LSTM(5, 6)
    for parameter, weight in zip(module.parameters(), weights):
        parameter.data = weight
    wanted = [t.requires_grad_() for t in (x, h0, c0)]
    output, h_n, c_n = kernels.lstm_layer(x, *weights, h0=h0, c0=c0, backend="numba")
    expected, (h_e, c_e) = module(x, (h0, c0))
    for mine, theirs in (((output,), (expected,)), ((h_n,), (h_e,)), ((c_n,), (c_e,)), ((h_n, c_n), (h_e, c_e))):
        incoming = [torch.randn(t.shape) for t in mine]
        found = torch.autograd.grad(mine, wanted, incoming, retain_graph=True, allow_unused=True)
        exact = torch.autograd.grad(theirs, wanted, incoming, retain_graph=True)
        for a, b in zip(found, exact):
            torch.testing.assert_close(a, b)


# ----- dimensions of size 1 ----------------------------------------------------------------------------------------


def test_ones_of_arrays_and_specs():
    both = Ones((0, 1), 2)
    array = np.zeros((3, 4))
    assert both.put_in(array).shape == (1, 1, 3, 4) and both.put_in(array).base is array
    assert [None if a is None else a.shape for a in both.put_into_inputs((array, None, array))] == [
        (1, 1, 3, 4), None, (3, 4)
    ]  # fmt: skip
    assert both.taken_out(np.zeros((1, 1, 5))).shape == (5,)
    assert [a.shape for a in both.returned((np.zeros((1, 1, 5)), np.zeros((1, 1, 2, 2))))] == [(5,), (2, 2)]
    assert Ones((1,), 1).put_in(torch.zeros(2, 3, 4)).shape == (2, 1, 3, 4)
    assert both.put_in("no array") == "no array"


RANKS = {2: ((7, 8), (11, 8), (11, 6)), 3: ((2, 7, 8), (2, 11, 8), (2, 11, 6))}


def three(rank: int, dtype: Any = torch.float64) -> list[torch.Tensor]:
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in RANKS[rank]]


@pytest.mark.parametrize("op", ["attention", "scaled_dot_product_attention"])
@pytest.mark.parametrize("rank", [2, 3])
def test_attention_of_few_dimensions_goes_by_address(monkeypatch, rank, op):
    given, function = three(rank), getattr(kernels, op)
    ways = [spied(monkeypatch, op, "by_address"), spied(monkeypatch, op, "backward_by_address")]
    found = function(*given, backend="numba")
    gradient = torch.randn_like(found)
    of_three = torch.autograd.grad(found, given, gradient, retain_graph=True)
    forth, back = ways
    assert [p[:3] for p in forth] == [tuple(t.data_ptr() for t in given)]
    assert [p[0] for p in back] == [gradient.data_ptr()]
    assert {t.data_ptr() for t in (*given, *of_three)} < set(back[0])
    expected = F.scaled_dot_product_attention(*given)
    torch.testing.assert_close(found, expected)
    exact = torch.autograd.grad(expected, given, gradient)
    expanded = torch.autograd.grad(found.sum(), given)
    ones = torch.autograd.grad(F.scaled_dot_product_attention(*given).sum(), given)
    assert len(back) == 1  # An expanded gradient has no memory to go through.
    for a, b in zip((*of_three, *expanded), (*exact, *ones)):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", ["numba", "torch", "reference"])
@pytest.mark.parametrize("rank", [2, 3])
def test_attention_of_few_dimensions_in_every_way(rank, backend):
    query, key, value = three(rank)
    expected = F.scaled_dot_product_attention(query, key, value)

    def attention(*given: torch.Tensor) -> torch.Tensor:
        return kernels.attention(*given, backend=backend)

    arrays = [t.detach().numpy() for t in (query, key, value)]
    np.testing.assert_allclose(kernels.attention(*arrays, backend=backend), expected.detach(), rtol=1e-10)
    reversed_rows = [a[..., ::-1, :] for a in arrays]  # Negative strides.
    np.testing.assert_allclose(
        kernels.attention(*reversed_rows, backend=backend), expected.detach().flip(-2), rtol=1e-10
    )
    turned = [t.detach().transpose(-1, -2).contiguous().transpose(-1, -2) for t in (query, key, value)]
    torch.testing.assert_close(attention(*turned), expected.detach())
    torch.testing.assert_close(attention(query, key, value), expected)
    output, lse = kernels.attention(query, key, value, return_lse=True, backend=backend)
    assert output.shape == expected.shape and lse.shape == expected.shape[:-1]
    scores = query @ key.transpose(-1, -2) / 8**0.5
    torch.testing.assert_close(lse, scores.logsumexp(-1))
    incoming = torch.randn_like(lse)
    found = torch.autograd.grad(lse, (query, key), incoming)
    for a, b in zip(found, torch.autograd.grad(scores.logsumexp(-1), (query, key), incoming)):
        torch.testing.assert_close(a, b)
    if backend != "reference":
        assert torch.autograd.gradgradcheck(attention, (query, key, value))


@pytest.mark.parametrize("rank", [2, 3])
def test_attention_of_few_dimensions_inside_transforms(rank):
    given = [t.detach() for t in three(rank)]

    def loss(attention: Any) -> Any:
        return lambda *inputs: attention(*inputs).square().sum()

    found = torch.func.grad(loss(lambda *i: kernels.attention(*i, backend="numba")), argnums=(0, 1, 2))(*given)
    expected = torch.func.grad(loss(F.scaled_dot_product_attention), argnums=(0, 1, 2))(*given)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)
    compiled = torch.compile(lambda *i: kernels.attention(*i), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), F.scaled_dot_product_attention(*given))
    y, pullback = kernels.vjp("attention", *[t.numpy() for t in given])
    assert y.shape == (*RANKS[rank][0][:-1], 6)
    for a, t in zip(pullback(np.ones_like(y)), given):
        assert a.shape == t.shape


def test_hooks_on_saved_tensors_of_attention_are_looked_at():
    given = three(2)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t[None] if t.shape == (11, 6) else t):
        found = kernels.attention(*given, backend="numba")
    rule = r"^attention: hooks on saved tensors must give value back as float64 \(1, 1, 11, 6\), got "
    with pytest.raises(ValueError, match=rule):
        found.sum().backward()


def test_what_cannot_be_recognised_is_tried_once(monkeypatch: pytest.MonkeyPatch):
    """A call of one input is found by its key alone, and so is one whose device is named."""
    tried = []
    monkeypatch.setattr(recent, "remember", lambda *given: tried.append(given) or False)
    x, weight = torch.randn(7, 11), torch.randn(5, 11)
    for _ in range(3):
        kernels.relu(x, backend="numba")
        kernels.linear(x, weight, device="cpu", backend="numba")
    assert len(tried) == 2

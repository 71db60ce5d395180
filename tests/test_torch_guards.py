"""Tensors recognised as like earlier ones by torch's own guards, and without them."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels import torch_by_address, torch_guards
from kernels.arrays import ArraySpec
from kernels.op import OPS
from kernels.runtime import numba_cpu
from tests.support.memory import allocator
from tests.test_by_address import spied

CHANNELS_LAST = torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)


def test_this_torch_has_guards():
    """Where it fails, calls are right and slower: see `torch_guards.alike`."""
    assert torch_guards._Guards is not None and torch_by_address._empty_strided is not None


#: What is not as torch.randn(2, 3, 4, 5), and whether the question that is asked tensor by tensor says so too: calls
#: of another type, or that want gradients, have plans of their own.
UNLIKE: dict[str, tuple[Callable[[], torch.Tensor], bool]] = {
    "shape": (lambda: torch.randn(2, 3, 5, 4), True),
    "dimensions": (lambda: torch.randn(120), True),
    "strides": (lambda: CHANNELS_LAST, True),
    "dtype": (lambda: torch.randn(2, 3, 4, 5, dtype=torch.float64), True),
    "device": (lambda: torch.randn(2, 3, 4, 5, device="meta"), True),
    "negated when read": (lambda: torch._neg_view(torch.randn(2, 3, 4, 5)), True),
    "gradient": (lambda: torch.randn(2, 3, 4, 5, requires_grad=True), False),
    "type": (lambda: torch.nn.Parameter(torch.randn(2, 3, 4, 5), requires_grad=False), False),
}


@pytest.mark.parametrize("difference", UNLIKE)
def test_what_differs_is_seen(difference: str):
    first, second = torch.randn(2, 3, 4, 5), torch.randn(3)
    fits = torch_guards.alike((first, second))
    assert fits is not None
    assert fits(torch.zeros(2, 3, 4, 5), torch.zeros(3)) is True
    make, is_seen_alone = UNLIKE[difference]
    assert fits(make(), second) is False and fits(second, first) is False
    form = ArraySpec((2, 3, 4, 5), "float32")
    assert torch_guards._is_as(first, form, torch.float32)
    assert torch_guards._is_as(make(), form, torch.float32) is not is_seen_alone


def test_surroundings_that_change_what_a_tensor_means_are_seen():
    x = torch.randn(3, 4)
    fits = torch_guards.alike((x,))
    assert fits is not None
    seen: list[bool] = []

    def ask(t: torch.Tensor) -> torch.Tensor:
        seen.append(fits(t))
        return t.sum()

    torch.func.grad(ask)(x)
    torch.func.vmap(ask)(torch.randn(5, 3, 4))
    for inside in (torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with inside:
            ask(x)
    assert seen == [False] * 4 and fits(x)


def test_strides_of_single_elements_do_not_matter_where_a_tensor_is_contiguous():
    x = torch.randn(4, 1, 6)
    fits = torch_guards.alike((x,))
    assert fits is not None and fits(x.as_strided((4, 1, 6), (6, 99, 1)))
    gaps = torch.randn(4, 12)[:, None, ::2]
    fits = torch_guards.alike((gaps,))
    assert fits is not None and fits(gaps) and not fits(gaps.as_strided((4, 1, 6), (12, 99, 2)))


def test_a_tensor_that_comes_twice_has_no_guards():
    x, y = torch.randn(3), torch.randn(3)
    assert torch_guards.alike((x, y, x)) is None
    fits = torch_guards.alike((x, y))
    assert fits is not None and not fits(x, x)


def test_guards_keep_no_tensor_alive():
    x = torch.randn(3)
    fits = torch_guards.alike((x,))
    ref = weakref.ref(x)
    del x
    gc.collect()
    assert ref() is None and fits is not None


@pytest.fixture(params=[True, False], ids=["guards", "one by one"])
def guards(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With torch's guards, and as where a torch has none."""
    if not request.param:
        monkeypatch.setattr(torch_guards, "_Guards", None)
        monkeypatch.setattr(torch_by_address, "_empty_strided", None)
    for op in ("attention", "linear", "lstm_layer", "silu"):
        monkeypatch.setattr(OPS[op], "plans", {})
    return bool(request.param)


def test_training_goes_by_address_either_way(monkeypatch: pytest.MonkeyPatch, guards: bool):
    forth, back = spied(monkeypatch, "lstm_layer"), spied(monkeypatch, "lstm_layer", "backward_by_address")
    x, h0, c0 = torch.randn(4, 3, 5), torch.randn(1, 3, 6), torch.randn(1, 3, 6)
    module = torch.nn.LSTM(5, 6)
    expected, (h_e, c_e) = module(x, (h0, c0))
    parameters = list(module.parameters())
    # As parameters, as what was made of them, and as parameters again; from one result's gradient, and from others'.
    for as_weight in (lambda w: w, lambda w: w * 1, lambda w: w):
        for mine, theirs in (("output", (expected,)), ("h_n c_n", (h_e, c_e)), ("output", (expected,))):
            weights = list(map(as_weight, parameters))
            output, h_n, c_n = kernels.lstm_layer(x, *weights, h0=h0, c0=c0, backend="numba")
            torch.testing.assert_close(output, expected)
            results = (output,) if mine == "output" else (h_n, c_n)
            incoming = [torch.randn(t.shape) for t in results]
            found = torch.autograd.grad(results, parameters, incoming)
            exact = torch.autograd.grad(theirs, parameters, incoming, retain_graph=True)
            for a, b in zip(found, exact, strict=True):
                torch.testing.assert_close(a, b)
    assert len(forth) == len(back) == 9
    known = [each for plan in OPS["lstm_layer"].plans.values() if isinstance(plan, tuple) for each in plan]
    assert bool(known) is guards


def test_one_tensor_for_three_inputs(monkeypatch: pytest.MonkeyPatch, guards: bool):
    calls = spied(monkeypatch, "attention", "backward_by_address")
    x = torch.randn(1, 2, 7, 8, requires_grad=True)
    expected = torch.autograd.grad(F.scaled_dot_product_attention(x, x, x).sum(), x)[0]
    for _ in range(3):
        found = kernels.attention(x, x, x, backend="numba")
        torch.testing.assert_close(torch.autograd.grad(found, x, torch.ones_like(found))[0], expected)
        others = [x.detach().clone().requires_grad_() for _ in range(3)]
        found = kernels.attention(*others, backend="numba")
        torch.testing.assert_close(sum(torch.autograd.grad(found, others, torch.ones_like(found))), expected)
    assert len(calls) == 6


def test_a_known_call_under_another_mode_is_remembered_too(guards: bool):
    x, weight = torch.randn(5, 4), torch.randn(3, 4)
    expected = F.linear(x, weight)
    modes: tuple[Any, ...] = (contextlib.nullcontext, torch.inference_mode, contextlib.nullcontext)
    for mode in modes:
        with mode():
            for _ in range(2):
                torch.testing.assert_close(kernels.linear(x, weight, backend="numba"), expected)
    assert len(OPS["linear"].plans.get(x.shape, ())) == (2 if guards else 0)


def test_small_results_lie_in_torchs_memory_unless_tests_look_at_all_of_it(guards: bool):
    x, made = torch.randn(6, 8), []

    def allocate(shape: Any, dtype: Any) -> Any:
        made.append(numba_cpu.fresh(shape, dtype))
        return made[-1]

    assert kernels.silu(x, backend="numba").is_contiguous()
    with allocator(allocate):
        found = kernels.silu(x, backend="numba")
    assert [array.ctypes.data for array in made] == [found.data_ptr()]
    torch.testing.assert_close(found, F.silu(x))


def test_a_saved_tensor_that_a_hook_made_a_nested_one():
    """torch's guards would end the process; torch's own words come of torch's own function."""
    x, weight = (torch.randn(n, 8, requires_grad=True) for n in (4, 3))
    for _ in range(3):
        kernels.linear(x, weight).sum().backward()
    nested = torch.nested.nested_tensor([torch.randn(8)] * 4)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda _: nested):
        y = kernels.linear(x, weight)
    with pytest.raises(NotImplementedError, match="NestedTensorCPU"):
        torch.autograd.grad(y, [x, weight], torch.ones(4, 3))


def test_what_is_no_tensor_in_the_place_of_one():
    x, weight = torch.randn(4, 8), torch.randn(3, 8)
    for _ in range(3):
        kernels.linear(x, weight)
    with pytest.raises(TypeError, match="weight must be a torch array, as x is, got a numpy array"):
        kernels.linear(x, weight.numpy())

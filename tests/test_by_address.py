"""Calls by address: the bits of the careful way, taken where they may be, left where a tensor is not plain memory."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels import arrays, dispatch
from kernels.case import Case, all_cases
from kernels.op import OPS, Problem
from kernels.runtime.by_address import gradient_forms
from tests.support import matrix

matrix.implementations()  # loads them
OPS_BY_ADDRESS = (
    "relu", "gelu", "silu", "sigmoid", "tanh", "softmax", "log_softmax", "layer_norm", "rms_norm", "embedding",
    "cross_entropy", "linear", "conv2d", "conv_transpose2d", "attention",
    "scaled_dot_product_attention", "rnn_layer", "gru_layer", "lstm_layer", "max_pool2d", "avg_pool2d",
    "adaptive_max_pool2d", "adaptive_avg_pool2d", "dropout", "conv2d_max_pool2d", "lp_pool2d", "linear_cross_entropy",
)  # fmt: skip


class _Seen(BaseException):
    pass


def call_of(case: Case, dtype: str) -> tuple[Problem, tuple[Any, ...]]:
    """The problem of a case, and its op's inputs as NumPy arrays."""
    arguments, seen = case.build(dtype), []

    def look(_: Any, inputs: tuple[Any, ...], *rest: Any) -> Any:
        seen.append(inputs)
        raise _Seen

    problem = kernels.explain(case.op, **arguments).problem
    with dispatch.inspecting(look), pytest.raises(_Seen):
        matrix.public(case.op)(**arguments)
    return problem, seen[0]


CASES = [c for c in all_cases("ci", "odd") if c.op in OPS_BY_ADDRESS]


def on_places(run: Any, given: tuple[Any, ...], forms: tuple[Any, ...]) -> tuple[Any, ...]:
    """The results of a run on the addresses of arrays (None for an absent one), which are made full of NaN."""
    made = tuple(None if form is None else arrays.empty_numpy(form, np.nan if form.floating else -1) for form in forms)
    assert run(*[0 if a is None else a.ctypes.data for a in (*given, *made)]) is not False
    return made


def assert_same_bits(found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_the_bits_are_those_of_forward(case: Case, dtype: str):
    problem, inputs = call_of(case, dtype)
    own = OPS[case.op].implementations["numba"]
    run = None if problem.empty else own.by_address(problem)
    if run is None:
        return  # test_every_op_has_it counts them
    results = on_places(run, inputs, problem.results())
    assert_same_bits(results, own.forward(problem, *inputs))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_the_bits_are_those_of_backward(case: Case, dtype: str):
    problem, inputs = call_of(case, dtype)
    op, own = OPS[case.op], OPS[case.op].implementations["numba"]
    named = {n for n, a in zip(op.inputs, inputs) if n in op.differentiable and a is not None and a.dtype.kind == "f"}
    problem = replace(problem, needs_grad=tuple(n in named for n in op.inputs))
    run = None if problem.empty else own.backward_by_address(problem)
    if run is None:
        return  # test_every_op_has_it counts them
    results = own.forward(problem, *inputs)
    numbers = np.random.default_rng(1)
    incoming = [
        None if form is None else arrays.laid_out(numbers.standard_normal(form.shape).astype(form.dtype), form)
        for form in problem.results()[: op.differentiable_results]
    ]
    known = dict(zip((*op.inputs, *op.results), (*inputs, *results)))
    saved = {name: known[name] for name in problem.saved()}
    found = on_places(run, (*incoming, *saved.values()), gradient_forms(problem))
    assert_same_bits(found, own.backward(problem, *incoming, **saved))


@pytest.mark.parametrize("op", OPS_BY_ADDRESS)
def test_every_op_has_it(op: str):
    own = OPS[op].implementations["numba"]
    problems = [call_of(case, "float32")[0] for case in CASES if case.op == op]
    assert any(not p.empty and own.by_address(p) is not None for p in problems)
    wants = [replace(p, needs_grad=(True, *[False] * (len(OPS[op].inputs) - 1))) for p in problems if not p.empty]
    assert any(own.backward_by_address(p) is not None for p in wants)


def spied(monkeypatch: pytest.MonkeyPatch, op: str, way: str = "by_address") -> list[tuple[Any, ...]]:
    """The places of every call of `op` by address from here on; way: or "backward_by_address"."""
    calls: list[tuple[Any, ...]] = []
    declared = OPS[op].implementations["numba"]
    changed = copy.copy(declared)

    def by_address(problem: Problem) -> Any:
        run = getattr(declared, way)(problem)

        def traced(*places: Any) -> Any:
            calls.append(places)
            return run(*places)

        return None if run is None else traced

    object.__setattr__(changed, way, by_address)
    monkeypatch.setitem(OPS[op].implementations, "numba", changed)
    monkeypatch.setattr(OPS[op], "plans", {})
    return calls


@pytest.mark.parametrize("gradients", [False, True])
def test_plain_tensors_are_taken_by_address(monkeypatch, gradients):
    calls = spied(monkeypatch, "tanh")
    x = torch.randn(7, 5, requires_grad=gradients)
    found = kernels.tanh(x, backend="numba")
    assert [places[0] for places in calls] == [x.data_ptr()]
    torch.testing.assert_close(found, torch.tanh(x))
    if gradients:
        found.sum().backward()
        torch.testing.assert_close(x.grad, 1 - torch.tanh(x.detach()) ** 2)
    assert torch.equal(kernels.tanh(x.detach()[1:], backend="numba"), found.detach()[1:])
    assert calls[1][0] == x.data_ptr() + 5 * 4


def test_plain_arrays_are_taken_as_they_are(monkeypatch):
    calls = spied(monkeypatch, "layer_norm")
    x, weight = np.random.default_rng(0).standard_normal((2, 6, 9)).astype(np.float32)[0], np.ones(9, np.float32)
    kernels.layer_norm(x, (9,), weight)
    ((*given, _, mean, rstd),) = calls
    assert given == [x.ctypes.data, weight.ctypes.data, 0] and mean == rstd == 0


def test_what_is_not_plain_memory_goes_the_careful_way(monkeypatch):
    calls = spied(monkeypatch, "silu")
    x = torch.randn(6, 8)
    expected = kernels.silu(-x, backend="numba")
    calls.clear()
    negated = torch._neg_view(x)
    assert negated.is_contiguous() and negated.is_neg()
    assert torch.equal(kernels.silu(negated, backend="numba"), expected)
    imaginary = torch.complex(torch.zeros(1), torch.ones(1)).conj().imag
    torch.testing.assert_close(kernels.silu(imaginary, backend="numba"), torch.nn.functional.silu(-torch.ones(1)))
    array = x.numpy().copy()
    array.flags.writeable = False
    np.testing.assert_array_equal(kernels.silu(array), kernels.silu(x, backend="numba").numpy())
    calls.clear()
    unaligned = np.frombuffer(bytearray(1 + x.numpy().nbytes), np.uint8)[1:].view(np.float32).reshape(6, 8)
    unaligned[...] = array
    np.testing.assert_array_equal(kernels.silu(unaligned), kernels.silu(array))
    refusal = "^silu: torch.func.vmap is not supported; the op takes a whole batch$"
    with pytest.raises(NotImplementedError, match=refusal):
        torch.func.vmap(lambda row: kernels.silu(row, backend="numba"))(x)
    with pytest.raises(NotImplementedError, match="silu: forward-mode derivatives"):
        torch.func.jvp(lambda t: kernels.silu(t, backend="numba"), (x,), (x,))
    assert calls == []


def test_of_a_subclass_the_memory_is_taken(monkeypatch):
    calls = spied(monkeypatch, "silu")
    matrix = np.random.default_rng(0).standard_normal((6, 8)).view(np.matrix)
    found = kernels.silu(matrix)
    assert type(found) is np.ndarray and [places[0] for places in calls] == [matrix.ctypes.data]
    np.testing.assert_array_equal(found, kernels.silu(np.asarray(matrix)))
    turned = np.asfortranarray(matrix)[:5]
    np.testing.assert_array_equal(kernels.silu(turned), kernels.silu(np.asarray(turned)))


@pytest.mark.parametrize("as_kind", [np.asarray, torch.as_tensor])
def test_a_wrong_index_is_named(as_kind):
    weight = as_kind(np.ones((4, 3), np.float32))
    with pytest.raises(IndexError, match=r"embedding: input must lie in \[0, 3\] \(the rows of weight\), got 4 at 1"):
        kernels.embedding(as_kind(np.array([0, 4])), weight)
    with pytest.raises(IndexError, match=r"cross_entropy: target must lie in \[0, 2\] .*, got -1 at 3"):
        kernels.cross_entropy(weight, as_kind(np.array([0, 1, 2, -1])))


def test_inside_autocast_small_calls_keep_their_dtype():
    x = torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kernels.relu(x).dtype == torch.float32
        assert kernels.linear(x, x).dtype == torch.float32


# ----- backward ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS_BY_ADDRESS)
def test_training_goes_by_address(monkeypatch, op):
    calls = spied(monkeypatch, op, "backward_by_address")
    for case in CASES:
        if case.op != op or "ci" not in case.tags or calls:
            continue
        given = {n: torch.from_numpy(a.copy()) if type(a) is np.ndarray else a for n, a in case.build().items()}
        wanted = [t for t in given.values() if isinstance(t, torch.Tensor) and t.is_floating_point()]
        for tensor in wanted:
            tensor.requires_grad_()
        found = matrix.public(op)(**given, backend="numba")
        first = found[0] if isinstance(found, tuple) else found
        torch.autograd.grad(first, wanted, torch.ones_like(first), allow_unused=True)
    assert calls


def test_gradients_are_taken_by_address_where_they_lie_as_declared(monkeypatch):
    calls = spied(monkeypatch, "linear", "backward_by_address")
    x, weight, gradient = torch.randn(5, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True), torch.ones(5, 3)
    found = kernels.linear(x, weight, backend="numba")
    plain = torch.autograd.grad(found, (x, weight), gradient, retain_graph=True)
    ((dy, at_x, at_weight, dx, dw, db),) = calls
    assert (dy, at_x, at_weight, db) == (gradient.data_ptr(), x.data_ptr(), weight.data_ptr(), 0)
    assert (dx, dw) == (plain[0].data_ptr(), plain[1].data_ptr())
    torch.testing.assert_close(plain[0], gradient @ weight.detach())
    torch.testing.assert_close(plain[1], gradient.T @ x.detach())
    # One number for all: it is expanded, and has no memory to go through.
    expanded = torch.autograd.grad(found, (x, weight), torch.ones(()).expand(5, 3), retain_graph=True)
    turned = torch.autograd.grad(found, (x, weight), torch.ones(3, 5).T)
    assert len(calls) == 1
    for other in (expanded, turned):
        assert all(map(torch.equal, other, plain))


def test_what_hooks_make_of_saved_tensors_is_looked_at(monkeypatch):
    calls = spied(monkeypatch, "silu", "backward_by_address")
    x = torch.randn(6, 8, requires_grad=True)
    expected = torch.autograd.grad(torch.nn.functional.silu(x).sum(), x)[0]

    def gradient(unpack: Any) -> torch.Tensor:
        calls.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
            found = kernels.silu(x, backend="numba")
        return torch.autograd.grad(found, x, torch.ones(6, 8))[0]

    for taken, unpack in ((1, lambda t: t), (0, lambda t: t.T.contiguous().T), (1, lambda t: t.clone())):
        torch.testing.assert_close(gradient(unpack), expected)
        assert len(calls) == taken
    rule = r"^silu: hooks on saved tensors must give x back as float32 \(6, 8\), got "
    for unpack, got in ((lambda t: t.half(), r"float16 \(6, 8\)"), (lambda t: t[:, 1:], r"float32 \(6, 7\)")):
        with pytest.raises(ValueError, match=rule + got):
            gradient(unpack)
        assert calls == []


def test_tensors_between_addresses_of_their_elements_go_the_careful_way(monkeypatch):
    calls = spied(monkeypatch, "silu")
    x = torch.randn(6, 8)
    expected = kernels.silu(x, backend="numba")
    room = bytearray(x.nbytes + 1)
    unaligned = torch.frombuffer(room, dtype=torch.uint8)[1:].view(-1)
    unaligned.numpy()[...] = x.numpy().reshape(-1).view(np.uint8)
    off = torch.from_numpy(unaligned.numpy().view(np.float32)).reshape(6, 8)
    assert off.data_ptr() % 4 == 1
    calls.clear()
    assert torch.equal(kernels.silu(off, backend="numba"), expected)
    assert calls == []

"""Every op x case x backend x dtype: values and all gradients, on NumPy arrays and on torch tensors."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from kernels import arrays
from kernels.backends import BACKENDS
from kernels.case import Case
from kernels.op import Implementation
from tests.support import layouts, matrix, oracle

CASE_BACKEND = matrix.case_backend_parameters()
CASES = matrix.case_parameters()


def report(lines: list[str]) -> None:
    """Fail with all the lines, if there are any."""
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


# ----- values and gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", matrix.DTYPES)
@pytest.mark.parametrize("case, backend", CASE_BACKEND)
def test_numpy(case: Case, backend: str, dtype: str):
    expected = oracle.expect_case(case, dtype)
    found = oracle.with_vjp(case.op, expected.arguments, expected.incoming, backend)
    report(expected.complaints(found))
    for name, gradient in found.gradients.items():
        assert gradient.dtype == expected.arguments[name].dtype


@pytest.mark.parametrize("dtype", matrix.DTYPES)
@pytest.mark.parametrize("case, backend", CASE_BACKEND)
def test_torch(case: Case, backend: str, dtype: str):
    expected = oracle.expect_case(case, dtype)
    report(expected.complaints(oracle.with_autograd(case.op, expected.arguments, expected.incoming, backend)))


@pytest.mark.parametrize("case, backend", CASE_BACKEND)
def test_a_call_without_gradients_has_the_same_bits(case: Case, backend: str):
    """A plain call on NumPy arrays, on tensors, under no_grad: the residuals kept for backward change nothing."""
    expected = oracle.expect_case(case, "float32")
    kept = oracle.with_vjp(case.op, expected.arguments, expected.incoming, backend).results
    function = matrix.public(case.op)
    plain = matrix.results_of(function(**expected.arguments, backend=backend))
    with torch.no_grad():
        tensors = matrix.as_tensors(expected.arguments, case.op, requires_grad=True)
        torchs = matrix.results_of(function(**tensors, backend=backend))
    assert all(isinstance(r, np.ndarray) for r in plain) and all(isinstance(r, torch.Tensor) for r in torchs)
    assert not any(r.requires_grad for r in torchs)
    # torch's own matrix products take another way, and have other bits, where memory is aligned otherwise.
    close = {"rtol": 1e-5, "atol": 1e-6} if backend == "torch" else {"rtol": 0, "atol": 0}
    for a, b, c in zip(kept, plain, torchs, strict=True):
        np.testing.assert_allclose(a, b, **close)
        np.testing.assert_allclose(a, c.numpy(), **close)


# ----- manners: inputs untouched, outputs fresh, layouts as declared -----------------------------------------------


@pytest.mark.parametrize("case, backend", CASE_BACKEND)
def test_inputs_are_not_modified_and_outputs_are_fresh(case: Case, backend: str):
    arguments = case.build("float32")
    given = [arguments[n] for n in matrix.array_names(arguments)]
    before = [a.copy() for a in given]
    expected = oracle.expect_case(case, "float32")
    incoming = tuple(g.copy() for g in expected.incoming)
    answer = oracle.with_vjp(case.op, arguments, incoming, backend)
    for a, b in zip((*given, *incoming), (*before, *expected.incoming)):
        np.testing.assert_array_equal(a, b)
    produced = [*answer.results, *answer.gradients.values()]
    for made in produced:
        for other in (*given, *incoming):
            assert not np.shares_memory(made, other)
    for i, made in enumerate(produced):
        for other in produced[:i]:
            assert not np.shares_memory(made, other)


def _strides(form: arrays.ArraySpec) -> tuple[int, ...]:
    return arrays.contiguous_strides(form.shape) if form.strides is None else form.strides


def _layout_complaint(what: str, array: np.ndarray | None, form: arrays.ArraySpec | None) -> list[str]:
    if array is None or form is None:
        return [] if array is None and form is None else [f"{what}: {array!r} where {form} is declared"]
    if array.shape != form.shape or array.dtype.name != form.dtype:
        return [f"{what}: {array.dtype} {array.shape} where {form.dtype} {form.shape} is declared"]
    steps = tuple(s // array.itemsize for s in array.strides)
    wanted = _strides(form)
    # The stride of a dimension of one element says nothing.
    if array.size and any(n > 1 and a != b for n, a, b in zip(form.shape, steps, wanted)):
        return [f"{what}: strides {steps} where {wanted} are declared for {form.shape}"]
    return []


def run_forward(implementation: Implementation, problem: object, inputs: tuple) -> tuple:
    """An implementation's forward on NumPy arrays, whatever it takes."""
    return _adapt(implementation)(implementation.forward, problem, inputs, {})


def run_backward(implementation: Implementation, problem: object, gradients: tuple, saved: dict) -> tuple:
    """An implementation's backward on NumPy arrays, whatever it takes."""
    return _adapt(implementation)(implementation.backward, problem, gradients, saved)


def _adapt(implementation: Implementation):
    if BACKENDS[implementation.backend].arrays == "torch":
        from kernels import torch_binding

        return torch_binding.on_numpy
    return lambda function, problem, inputs, keywords: function(problem, *inputs, **keywords)


def _saved(op, problem, inputs: tuple, results: tuple) -> dict:
    known = dict(zip((*op.inputs, *op.results), (*inputs, *results), strict=True))
    return {n: known[n] for n in problem.saved()}


def _incoming(op, problem, given: tuple[np.ndarray, ...] | None = None) -> tuple[np.ndarray | None, ...]:
    """A gradient of every differentiable result that is returned, `given` or random; None for the others."""
    forms = problem.results()[: min(op.differentiable_results, problem.returned)]
    if given is None:
        rng = np.random.default_rng(1)
        given = tuple(rng.standard_normal(f.shape).astype(f.dtype) for f in forms)
    shaped = [g.reshape(f.shape) for g, f in zip(given, forms, strict=True)]
    return (*shaped, *[None] * (op.differentiable_results - len(shaped)))


def _usable(case: Case, backend: str, captured: matrix.Captured, problem) -> Implementation | None:
    """The backend's implementation of a case, None for a call that the house answers itself (an empty batch)."""
    implementation = captured.op.implementations[backend]
    assert implementation.why_not(problem) == [], f"{backend} refuses the case {case.id}"
    return None if problem.empty else implementation


@pytest.mark.parametrize("last", [False, True], ids=["packed", "channels-last"])
@pytest.mark.parametrize("case, backend", CASE_BACKEND)
def test_layouts_are_those_declared(case: Case, backend: str, last: bool):
    arguments = case.build("float32")
    if last:
        arguments |= {n: layouts.channels_last(arguments[n]) for n in matrix.array_names(arguments)}
    captured = matrix.capture(case.op, **arguments)
    complaints = []
    for trains in (False, True):
        problem = captured.problem(trains)
        implementation = _usable(case, backend, captured, problem)
        forms = problem.results()
        if implementation is None:
            results = problem.empty_results()
        else:
            results = run_forward(implementation, problem, captured.inputs)
        for name, made, form in zip(captured.op.results, results, forms, strict=True):
            complaints += _layout_complaint(name, made, form)
    if implementation is None:
        gradients = problem.zero_gradients()
    elif implementation.backward is None:
        return report(complaints)
    else:
        saved = _saved(captured.op, problem, captured.inputs, results)
        gradients = run_backward(implementation, problem, _incoming(captured.op, problem), saved)
    wanted = [g if need else None for g, need in zip(problem.gradients(), problem.needs_grad, strict=True)]
    if backend == "torch" and complaints == []:
        # torch differentiates its own ops itself, in its own layouts; only shapes are compared.
        gradients = tuple(None if g is None else np.array(g, order="C") for g in gradients)
        wanted = [None if f is None else replace(f, strides=None) for f in wanted]
    for name, made, form in zip(captured.op.inputs, gradients, wanted, strict=True):
        complaints += _layout_complaint(f"gradient of {name}", made, form)
    report(complaints)


# ----- layouts of inputs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case, backend", CASE_BACKEND)
def test_numpy_inputs_in_any_layout(case: Case, backend: str):
    expected = oracle.expect_case(case, "float32")
    names = matrix.array_names(expected.arguments)
    complaints = []
    for layout, relay in layouts.LAYOUTS.items():
        arguments = expected.arguments | {n: relay(expected.arguments[n]) for n in names}
        incoming = tuple(map(relay, expected.incoming))
        found = oracle.with_vjp(case.op, arguments, incoming, backend)
        complaints += [f"{layout}: {c}" for c in expected.complaints(found)]
    report(complaints)


@pytest.mark.parametrize("case, backend", CASE_BACKEND)
def test_torch_inputs_in_any_layout(case: Case, backend: str):
    expected = oracle.expect_case(case, "float32")
    names = matrix.array_names(expected.arguments)
    wanted = matrix.differentiable_names(case.op, expected.arguments)
    count = len(expected.incoming)
    complaints = []
    for layout in layouts.TORCH_LAYOUTS:
        relay = layouts.LAYOUTS[layout]
        arguments = dict(expected.arguments)
        for n in names:
            arguments[n] = layouts.as_tensor(relay(expected.arguments[n])).requires_grad_(n in wanted)
        results = matrix.results_of(matrix.public(case.op)(**arguments, backend=backend))
        incoming = [layouts.as_tensor(relay(g)) for g in expected.incoming]
        found = torch.autograd.grad(results[:count], [arguments[n] for n in wanted], incoming)
        answer = oracle.Answer(tuple(map(matrix.to_numpy, results)), dict(zip(wanted, map(matrix.to_numpy, found))))
        complaints += [f"{layout}: {c}" for c in expected.complaints(answer)]
    report(complaints)


@pytest.mark.parametrize("case, backend", [p for p in CASE_BACKEND if p.values[1] != "torch"])
def test_inputs_repeated_with_stride_0(case: Case, backend: str):
    """What our kernels read; torch's ops are the measure, and err by chance more or less than in one other call."""
    base = case.build("float32")
    # With the same value at every key, say, the weights do not matter: their gradients cancel to nothing.
    usual = oracle.expect_case(case, "float32")
    complaints = []
    for name in matrix.differentiable_names(case.op, base):
        for dimension in range(base[name].ndim):
            if base[name].shape[dimension] < 2 or not base[name].size:
                continue
            arguments = base | {name: layouts.repeated(base[name], dimension)}
            expected = oracle.expect(case.op, base | {name: np.ascontiguousarray(arguments[name])})
            found = oracle.with_vjp(case.op, arguments, expected.incoming, backend)
            complaints += [f"{name}, dimension {dimension}: {c}" for c in expected.complaints(found, usual)]
    report(complaints)


# ----- gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case, backend", CASE_BACKEND)
def test_gradient_of_a_sum(case: Case, backend: str):
    """``result.sum().backward()`` hands in a gradient with stride 0 everywhere."""
    arguments = case.build("float32")
    results = matrix.results_of(matrix.public(case.op)(**arguments, backend="reference"))
    ones = tuple(np.ones(r.shape, r.dtype) for r in results[: matrix.OPS[case.op].differentiable_results])
    expected = oracle.expect(case.op, arguments, ones)
    tensors = matrix.as_tensors(arguments, case.op, requires_grad=True)
    results = matrix.results_of(matrix.public(case.op)(**tensors, backend=backend))
    sum(r.sum() for r in results[: len(ones)]).backward()
    names = matrix.differentiable_names(case.op, arguments)
    found = {n: matrix.to_numpy(tensors[n].grad) for n in names}
    # The rows of a softmax sum to 1 whatever its input: this gradient is 0, and rounding is all that is left of it.
    usual = oracle.expect_case(case, "float32")
    report(expected.complaints(oracle.Answer(tuple(map(matrix.to_numpy, results)), found), usual))


@pytest.mark.parametrize("case, backend", CASE_BACKEND)
def test_one_input_alone_wants_a_gradient(case: Case, backend: str):
    expected = oracle.expect_case(case, "float32")
    names = matrix.differentiable_names(case.op, expected.arguments)
    incoming = [torch.from_numpy(g) for g in expected.incoming]
    complaints = []
    for name in names:
        tensors = matrix.as_tensors(expected.arguments, case.op, requires_grad=(name,))
        results = matrix.results_of(matrix.public(case.op)(**tensors, backend=backend))
        outputs = [(r, g) for r, g in zip(results, incoming) if r.requires_grad]
        torch.autograd.backward([r for r, _ in outputs], [g for _, g in outputs])
        assert all(tensors[n].grad is None for n in names if n != name)
        answer = oracle.Answer(tuple(map(matrix.to_numpy, results)), {name: matrix.to_numpy(tensors[name].grad)})
        complaints += [f"{name} alone: {c}" for c in expected.complaints(answer)]
    report(complaints)


@pytest.mark.parametrize("case, backend", CASE_BACKEND)
def test_second_backward_through_the_same_graph(case: Case, backend: str):
    expected = oracle.expect_case(case, "float32")
    names = matrix.differentiable_names(case.op, expected.arguments)
    tensors = matrix.as_tensors(expected.arguments, case.op, requires_grad=True)
    results = matrix.results_of(matrix.public(case.op)(**tensors, backend=backend))[: len(expected.incoming)]
    incoming = [torch.from_numpy(g) for g in expected.incoming]
    wanted = [tensors[n] for n in names]
    first = torch.autograd.grad(results, wanted, incoming, retain_graph=True)
    other = torch.autograd.grad(results, wanted, [2 * g for g in incoming], retain_graph=True)
    again = torch.autograd.grad(results, wanted, incoming)
    for a, b, c in zip(first, other, again, strict=True):
        assert torch.equal(a, c)
        torch.testing.assert_close(b, 2 * a)


@pytest.mark.parametrize("case, backend", CASE_BACKEND)
def test_a_changed_input_is_noticed(case: Case, backend: str):
    """autograd refuses to go back through an op whose saved input has been overwritten since."""
    arguments = case.build("float32")
    names = matrix.differentiable_names(case.op, arguments)
    saved = [n for n in matrix.capture(case.op, **arguments).problem(True).saved() if n in names]
    if BACKENDS[backend].differentiates:
        saved = []  # torch decides itself what it keeps
    for name in saved:
        tensors = matrix.as_tensors(arguments, case.op, requires_grad=True)
        tensors[name] = tensors[name] * 1
        result = matrix.results_of(matrix.public(case.op)(**tensors, backend=backend))[0]
        tensors[name].detach().add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.sum().backward()


# ----- residuals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_any_forward_pairs_with_any_backward(case: Case):
    expected = oracle.expect_case(case, "float32")
    captured = matrix.capture(case.op, **expected.arguments)
    problem = captured.problem(True)
    op = captured.op
    if problem.empty:
        assert all(g is None or not g.any() for g in problem.zero_gradients())
        return
    incoming = _incoming(op, problem, expected.incoming)
    names = matrix.differentiable_names(case.op, expected.arguments)
    complaints = []
    backends = [b for b in matrix.backends_of(case.op) if matrix.takes(case, b)]
    goes_back = [b for b in backends if op.implementations[b].backward is not None]
    for first, second in product(backends, goes_back):
        results = run_forward(op.implementations[first], problem, captured.inputs)
        saved = _saved(op, problem, captured.inputs, results)
        found = dict(zip(op.inputs, run_backward(op.implementations[second], problem, incoming, saved)))
        gradients = {n: found[n].reshape(expected.arguments[n].shape) for n in names}
        lines = expected.complaints(oracle.Answer(expected.torchs.results, gradients))
        complaints += [f"{first} forward, {second} backward: {c}" for c in lines]
    report(complaints)

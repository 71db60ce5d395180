"""torch: first and second derivatives, modes, and what torch.func is told."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from kernels.case import Case
from tests.support import matrix
from tests.support.torch_calls import (
    CASE_BACKEND,
    SIMPLE,
    SIMPLE_BACKEND,
    assert_equal,
    budget_of_torchs_own,
    function_of,
    own_case,
    total,
)

# ----- derivatives -------------------------------------------------------------------------------------------------


NO_DERIVATIVE = "the gradient of this case is by definition not the derivative of its result"


@pytest.mark.parametrize("case, backend", CASE_BACKEND)
def test_gradcheck(case: Case, backend: str):
    if not case.derivative:
        pytest.skip(NO_DERIVATIVE)
    tensors = matrix.as_tensors(case.build("float64"), case.op, requires_grad=True)
    function, inputs = function_of(case, tensors, backend)
    if any(t.numel() == 0 for t in inputs):
        # Nothing to perturb: gradients exist, in the inputs' shapes, and an empty result makes zeros of all.
        results = matrix.results_of(function(*inputs))
        total(results).backward()
        for t in inputs:
            assert t.grad is not None and t.grad.shape == t.shape
            assert any(r.numel() for r in results) or not t.grad.any()
        return
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("case", SIMPLE)
def test_gradcheck_of_every_element(case: Case):
    """The slow form, element by element, for the smallest case of each op."""
    smallest = min(
        matrix.cases_of(case.op, "ci", "odd"),
        key=lambda c: (min(map(np.prod, c.shapes.values())) == 0, sum(map(np.prod, c.shapes.values()))),
    )
    tensors = matrix.as_tensors(smallest.build("float64"), case.op, requires_grad=True)
    function, inputs = function_of(smallest, tensors)
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("case, backend", [p for p in CASE_BACKEND if p.values[1] != "reference"])
def test_gradgradcheck(case: Case, backend: str):
    """Ours goes back a second time through torch's formulas, whichever backend went forward."""
    if not case.derivative:
        pytest.skip(NO_DERIVATIVE)
    tensors = matrix.as_tensors(case.build("float64"), case.op, requires_grad=True)
    function, inputs = function_of(case, tensors, backend)
    if any(t.numel() == 0 for t in inputs):
        (first,) = torch.autograd.grad(total(function(*inputs)), inputs[:1], create_graph=True)
        assert first.shape == inputs[0].shape
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gradgradcheck uses deprecated parts of torch
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("case", SIMPLE)
def test_gradients_accumulate_and_flow_on(case: Case):
    """The op inside a larger graph, used twice."""
    function, inputs = function_of(case, matrix.as_tensors(case.build("float64"), case.op, requires_grad=True))
    once = torch.autograd.grad(total(function(*inputs)), inputs)
    scaled = [2 * t for t in inputs]
    (total(function(*scaled)) + 3 * total(function(*inputs))).backward()
    at = [(2 * t).detach().requires_grad_() for t in inputs]
    other = torch.autograd.grad(total(function(*at)), at)
    for t, a, b in zip(inputs, once, other):
        torch.testing.assert_close(t.grad, 3 * a + 2 * b)


# ----- modes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case, backend", SIMPLE_BACKEND)
def test_no_grad_and_inference_mode(case: Case, backend: str):
    tensors = matrix.as_tensors(case.build("float32"), case.op, requires_grad=True)
    call = matrix.public(case.op)
    expected = tuple(r.detach() for r in matrix.results_of(call(**tensors, backend=backend)))
    rtol, atol = budget_of_torchs_own(case, backend)
    with torch.no_grad():
        found = matrix.results_of(call(**tensors, backend=backend))
        assert not any(r.requires_grad for r in found)
        assert_equal(found, expected, rtol, atol)
    with torch.inference_mode():
        found = matrix.results_of(call(**tensors, backend=backend))
        assert all(not r.requires_grad for r in found)
        assert_equal(found, expected, rtol, atol)
        made_inside = matrix.as_tensors(case.build("float32"))
        assert_equal(matrix.results_of(call(**made_inside, backend=backend)), expected, rtol, atol)
    # Tensors made in inference mode also work outside of it.
    assert_equal(matrix.results_of(call(**made_inside, backend=backend)), expected, rtol, atol)


@pytest.mark.parametrize("case", SIMPLE)
def test_autocast_leaves_the_dtype_alone(case: Case):
    """The call computes in the dtype of its inputs; nothing is cast behind the caller's back."""
    tensors = matrix.as_tensors(case.build("float32"), case.op, requires_grad=True)
    expected = matrix.results_of(matrix.public(case.op)(**tensors))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = matrix.results_of(matrix.public(case.op)(**tensors))
    assert_equal(found, expected)
    found[0].sum().backward()
    assert all(tensors[n].grad.dtype == torch.float32 for n in matrix.differentiable_names(case.op, tensors))


# ----- torch.func --------------------------------------------------------------------------------------------------

UNSUPPORTED = (NotImplementedError, RuntimeError)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("case", SIMPLE)
def test_vmap_says_no(case: Case, grad: bool):
    tensors = matrix.as_tensors(case.build("float32"), case.op, requires_grad=grad)
    function, inputs = function_of(case, tensors, own_case(case))
    with pytest.raises(UNSUPPORTED, match="(?i)vmap"):
        torch.func.vmap(function)(*[torch.stack([t.detach(), t.detach()]).requires_grad_(grad) for t in inputs])


@pytest.mark.parametrize("case", SIMPLE)
def test_functional_grad(case: Case):
    """torch.func.grad gives what autograd gives, also of a gradient, and beside tensors that it does not follow."""
    function, inputs = function_of(case, matrix.as_tensors(case.build("float64")), own_case(case))

    def squares(*tensors: torch.Tensor) -> torch.Tensor:
        return total(function(*tensors)) + sum((r**2).sum() for r in matrix.results_of(function(*tensors)))

    everything = tuple(range(len(inputs)))
    found = torch.func.grad(squares, argnums=everything)(*inputs)
    leaves = [t.detach().requires_grad_() for t in inputs]
    expected = torch.autograd.grad(squares(*leaves), leaves, create_graph=True)
    for one, another in zip(found, expected, strict=True):
        torch.testing.assert_close(one, another.detach())
    beside = torch.func.grad(lambda t, *rest: (total(function(t.detach(), *rest)) * t).sum())(*inputs)
    assert torch.equal(beside, total(function(*inputs)).expand_as(inputs[0]))
    if not case.derivative or not any(e.requires_grad for e in expected):
        return
    found = torch.func.grad(lambda *t: sum((g**2).sum() for g in torch.func.grad(squares, everything)(*t)))(*inputs)
    twice = torch.autograd.grad(sum((e**2).sum() for e in expected), leaves[0], allow_unused=True)[0]
    torch.testing.assert_close(found, torch.zeros_like(found) if twice is None else twice)


@pytest.mark.parametrize("case", SIMPLE)
def test_forward_mode_says_no(case: Case):
    function, inputs = function_of(case, matrix.as_tensors(case.build("float64")), own_case(case))
    with pytest.raises(UNSUPPORTED, match="(?i)forward|jvp|torch.func"):
        torch.func.jvp(function, tuple(inputs), tuple(map(torch.ones_like, inputs)))
    inputs = [t.detach().requires_grad_() for t in inputs]
    with forward_ad.dual_level(), pytest.raises(UNSUPPORTED, match="(?i)forward|jvp|torch.func"):
        dual = [forward_ad.make_dual(t, torch.ones_like(t)) for t in inputs]
        tangent = forward_ad.unpack_dual(function(*dual)).tangent
        pytest.fail(f"no error, and the tangent is {tangent}")


@pytest.mark.parametrize("case", SIMPLE)
def test_forward_mode_without_recording_says_no(case: Case):
    """Dual numbers of tensors that need no gradient: an error, never a silently lost tangent."""
    function, inputs = function_of(case, matrix.as_tensors(case.build("float64")), own_case(case))
    with forward_ad.dual_level(), pytest.raises(UNSUPPORTED, match="(?i)forward|jvp|torch.func"):
        dual = [forward_ad.make_dual(t, torch.ones_like(t)) for t in inputs]
        tangent = forward_ad.unpack_dual(function(*dual)).tangent
        pytest.fail(f"no error, and the tangent is {tangent}")

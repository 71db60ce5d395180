"""Every op on random calls (hypothesis): our answers beside the reference's and torch's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, event, given
from hypothesis import strategies as st

import kernels
from kernels.op import OPS
from tests.support import budget, layouts, loss_scales, matrix, sequence_strategies
from tests.support.calls import ERRORS
from tests.support.strategies import STRATEGIES, careful_torch_call, torch_call

OP_NAMES = matrix.OP_NAMES


def test_every_op_has_a_strategy():
    assert set(STRATEGIES) == set(OPS)


# ----- random calls ------------------------------------------------------------------------------------------------


def _answer(function: Callable[..., Any], arguments: dict[str, Any], names: tuple[str, ...], dtype: Any) -> Any:
    """Results and gradients of a function of tensors, every floating array as `dtype`."""
    tensors = {}
    for n, a in arguments.items():
        if isinstance(a, np.ndarray):
            a = torch.from_numpy(np.array(a, dtype if a.dtype.kind == "f" else a.dtype))
        tensors[n] = a.requires_grad_() if n in names else a
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = matrix.results_of(function(**tensors))
    generator = np.random.default_rng(5)
    outputs = [r for r in results if r.requires_grad]
    numbers = [np.asarray(generator.standard_normal(r.shape), "float32") for r in outputs]
    incoming = [torch.from_numpy(n).to(r.dtype) for n, r in zip(numbers, outputs)]
    found = torch.autograd.grad(outputs, [tensors[n] for n in names], incoming)
    return [matrix.to_numpy(r) for r in results], [matrix.to_numpy(g) for g in found]


def _torch_units(theirs: Callable[..., Any], arguments: dict[str, Any], names: tuple[str, ...]) -> list[float]:
    """What torch errs in float32 on numbers next to these, in units of each result's scale.

    Next to these, because what cancels here must cancel there; many times, because a few results may be exact by
    luck.
    """
    most: list[float] = []
    rng = np.random.default_rng(7)
    for _ in range(16):
        scaled = {
            n: np.asarray(a * (1 + 1e-6 * rng.standard_normal(a.shape)), np.float32)
            if isinstance(a, np.ndarray) and a.dtype.kind == "f"
            else a
            for n, a in arguments.items()
        }
        exact, single = (sum(_answer(theirs, scaled, names, dtype), []) for dtype in (np.float64, np.float32))
        pairs = zip(exact, single)
        units = [budget.error(b, a) / budget.unit(a, np.float32) if a.dtype.kind == "f" else 0.0 for a, b in pairs]
        most = [max(pair) for pair in zip(most, units)] if most else units
    return most


def _draw_call(data: st.DataObject, op: str, dtype: str) -> dict[str, Any]:
    shapes, arguments = data.draw(STRATEGIES[op])
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16), label="seed"))
    for name, shape in shapes.items():
        numbers = np.asarray(rng.standard_normal(shape), dtype)
        if name.startswith("w_") or (name == "weight" and "bias" in OPS[op].inputs):
            # Sums of ordinary size: where an activation is saturated, its gradient is all rounding.
            numbers *= np.dtype(dtype).type(max(np.prod(shape[1:]), 1) ** -0.5)
        elif name == "weight" or arguments.get("norm_type", 2) % 2:
            # Class weights; and what an odd norm sums up, which would cancel under the root.
            numbers = np.abs(numbers)
        layout = data.draw(st.sampled_from(["packed", *layouts.LAYOUTS]), label=f"layout of {name}")
        arguments = arguments | {name: numbers if layout == "packed" else layouts.LAYOUTS[layout](numbers)}
    return arguments


@pytest.mark.parametrize("dtype", matrix.DTYPES)
@pytest.mark.parametrize("op", OP_NAMES)
@given(data=st.data())
def test_random_calls(op: str, dtype: str, data: st.DataObject):
    """NumPy call, vjp, torch call and torch gradients, all within the budget of torch's own function."""
    arguments = _draw_call(data, op, dtype)
    names = matrix.differentiable_names(op, arguments)
    theirs = torch_call(op)
    try:
        exact = _answer(theirs, arguments, names, np.float64)
    except (RuntimeError, ValueError, TypeError) as refused:
        # What torch refuses here is refused by us: a kernel that does not fit, say.
        event("refused by torch")
        with pytest.raises(ERRORS) as caught:
            matrix.public(op)(**arguments)
        assert "\n" not in str(caught.value), refused
        return
    torchs = _answer(theirs, arguments, names, np.dtype(dtype))
    units = _torch_units(theirs, arguments, names)
    if dtype == "float64":
        # What is called exact here is torch's own float64, as far from the truth as torch ever is.
        units = [1.5 * u for u in units]
    if "attention" in op:
        rounding = sequence_strategies.units_of_log_sum_exp(op, arguments)
        units = [max(u, rounding) if i >= len(exact[0]) else u for i, u in enumerate(units)]
    try:
        value, pullback = kernels.vjp(op, **arguments)
    except ERRORS:
        assert exact[0][0].size == 0
        event("a result without elements, which torch allows")
        return
    results = matrix.results_of(value)
    generator = np.random.default_rng(5)
    count = OPS[op].differentiable_results
    incoming = [np.asarray(generator.standard_normal(r.shape), "float32").astype(dtype) for r in results[:count]]
    gradients = dict(zip(OPS[op].inputs, pullback(*incoming)))
    with_numpy = ([*results], [gradients[n].reshape(arguments[n].shape) for n in names])
    with_torch = _answer(matrix.public(op), arguments, names, np.dtype(dtype))
    scales = sequence_strategies.cancelled_scales if "attention" in op else loss_scales.cancelled_scales
    sizes = scales(arguments, incoming[0]) if "attention" in op or op == "linear_cross_entropy" else {}
    rests = [0.0] * len(exact[0])
    # A result of nothing but rounding has no scale of its own.
    for name, right in zip(names, exact[1]):
        size = sizes.get(name, 0.0)
        nothing = np.abs(right).max(initial=0) < 1e-5 * size
        rests.append(size if nothing or "attention" not in op else 0.0)
    complaints = []
    for where, found in (("NumPy", with_numpy), ("torch", with_torch)):
        labels = [*(f"result {i}" for i in range(len(exact[0]))), *(f"gradient of {n}" for n in names)]
        assert len(found[0]) == len(exact[0])
        columns = (labels, sum(found, []), sum(exact, []), sum(torchs, []), units, rests)
        for label, mine, right, their, known, rest in zip(*columns, strict=True):
            complaint = budget.complaint(np.asarray(mine), right, their, 0.0 if rest else known, rest)
            if complaint:
                complaints.append(f"{where}, {label}: {complaint}")
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("op", OP_NAMES)
@given(data=st.data())
def test_special_numbers(op: str, data: st.DataObject):
    """NaN, infinities, huge and tiny numbers among the inputs: the same as torch's own function, element by element."""
    arguments = _draw_call(data, op, "float32")
    first = OPS[op].inputs[0]
    x = np.array(arguments[first])
    assume(x.size)
    for _ in range(data.draw(st.integers(1, 4))):
        special = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, -0.0, 1e30, -1e30, 1e-42, 1e37]))
        x.reshape(-1)[data.draw(st.integers(0, x.size - 1))] = special
    if "_norm" in op:
        # Where squares overflow, torch's layer_norm is 0 or NaN as the number of elements is.
        x[np.isfinite(x)] = np.clip(x[np.isfinite(x)], -1e18, 1e18)
    elif op in ("cross_entropy", "linear_cross_entropy"):
        # Under label smoothing torch sums all classes before it divides, and overflows where the mean does not.
        x[np.isfinite(x)] = np.clip(x[np.isfinite(x)], -1e35, 1e35)
    arguments[first] = x
    if arguments.get("activation") == "gelu":
        arguments["activation"] = "relu"  # see below
    try:
        tensors = {n: torch.from_numpy(np.array(a)) if isinstance(a, np.ndarray) else a for n, a in arguments.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = [r.numpy() for r in matrix.results_of(careful_torch_call(op)(**tensors))]
    except (RuntimeError, ValueError, TypeError):
        return
    if op == "gelu":
        # torch makes NaN of +inf, or +inf, as the number of elements is; ours is +inf always.
        wanted[0][x == np.inf] = np.inf
    try:
        found = [np.asarray(r) for r in matrix.results_of(matrix.public(op)(**arguments))]
    except ERRORS:
        event("a result without elements, which torch allows")
        return
    for mine, their in zip(found, wanted, strict=True):
        if mine.dtype.kind in "iu":
            np.testing.assert_array_equal(mine, their)
            continue
        np.testing.assert_array_equal(np.isnan(mine), np.isnan(their), err_msg="NaN")
        np.testing.assert_array_equal(np.isposinf(mine), np.isposinf(their), err_msg="+inf")
        np.testing.assert_array_equal(np.isneginf(mine), np.isneginf(their), err_msg="-inf")
        rest = np.isfinite(their)
        # Huge numbers cancel: what is small beside them is as good as lost, in any order of summation.
        scale = np.abs(their[rest]).max() if rest.any() else 0
        largest = np.abs(x[np.isfinite(x)]).max() if np.isfinite(x).any() else 0
        np.testing.assert_allclose(mine[rest], their[rest], rtol=1e-4, atol=1e-5 * min(max(scale, largest), 1e38))

"""Few queries against many keys on the CPU: a forward and a backward kernel of their own."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

import kernels
from kernels.attention.tiles import BACKWARD_BLOCK, DECODE_QUERIES, SEGMENT_KEYS, decode_block
from kernels.op import OPS
from tests.attention.helpers import gradients, inputs, relative_term, terms_cpu, threads

backward_cpu = importlib.import_module("kernels.attention.backward_cpu")
decode_backward_cpu = importlib.import_module("kernels.attention.decode_backward_cpu")

Array = np.ndarray[Any, Any]
#: Every length around blocks and segments.
LENGTHS = (
    1, 3, 127, 128, 129, BACKWARD_BLOCK, BACKWARD_BLOCK + 1, decode_block(1) + 1, SEGMENT_KEYS, SEGMENT_KEYS + 1,
    3 * SEGMENT_KEYS - 5,
)  # fmt: skip
KINDS = ("none", "t5", "t5 causal", "alibi")


def in_float64(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same call with every array of numbers, and a relative term's table, in float64."""

    def wide(value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.dtype == np.float32:
            return value.astype(np.float64)
        if hasattr(value, "table") or hasattr(value, "slopes"):
            return type(value)(**{name: wide(part) for name, part in vars(value).items()})
        return value

    return {name: wide(value) for name, value in arguments.items()}


def assert_gradients_agree(arguments: dict[str, Any], given: dict[str, Any] | None = None) -> None:
    """Results and gradients against the reference in float64: within float32's rounding of the largest number.

    given: what the reference gets instead, where the arrays hold what nobody sees.
    """
    results, found = gradients("numba", arguments)
    exact, pullback = kernels.vjp("attention", **in_float64(given or arguments), backend="reference")
    exact = exact if isinstance(exact, tuple) else (exact,)
    rng = np.random.default_rng(1)
    incoming = [np.where(np.isfinite(r), rng.standard_normal(r.shape), 0).astype(r.dtype) for r in results]
    expected = pullback(*(g.astype(np.float64) for g in incoming))
    for ours, theirs in zip([*results, *found], [*exact, *expected], strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            finite = theirs[np.isfinite(theirs)]
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6 * max(1, np.abs(finite).max(initial=0)))


def options_of(name: str, batch: int, heads: int, queries: int, keys: int, width: int) -> dict[str, Any]:
    """Arguments of a feature that decoding knows."""
    rng = np.random.default_rng(3)

    def numbers(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "plain": {},
        "mask": {"mask": rng.random((batch, 1, queries, keys)) < 0.6},
        "bias": {"bias": numbers(batch, heads, queries, keys), "softcap": 2.0},
        "bias by key": {"bias": numbers(heads, 1, keys), "scale": -0.3},
        "bias by query": {"bias": numbers(1, 1, queries, 1)},
        "lengths": {"lengths": np.array([keys, max(keys - 130, 0)]), "causal": "bottom_right"},
        "window": {"window": (40, 3), "causal": "top_left"},
        "scale 0": {"scale": 0.0, "bias": numbers(1, heads, queries, keys)},
    }[name]


@pytest.mark.parametrize("queries", [1, DECODE_QUERIES])
@pytest.mark.parametrize("keys", LENGTHS)
@pytest.mark.parametrize("width, value_width", [(64, 64), (7, 70), (33, 1)])
def test_lengths(queries: int, keys: int, width: int, value_width: int):
    q, k, v = inputs(2, 4, queries, keys, width, value_width, kv_heads=2)
    lengths = np.array([keys, max(keys - 130, 0)])
    for options in ({}, {"causal": "bottom_right", "window": (200, None), "lengths": lengths}):
        assert_gradients_agree({"query": q, "key": k, "value": v, "return_lse": True, **options})


@pytest.mark.parametrize("keys", [77, 1100])
@pytest.mark.parametrize("name", ["mask", "bias", "bias by key", "bias by query", "lengths", "window", "scale 0"])
def test_features(name: str, keys: int):
    q, k, v = inputs(2, 4, 3, keys, 12, 9, kv_heads=2)
    arguments = {"query": q, "key": k, "value": v, "return_lse": True}
    assert_gradients_agree(arguments | options_of(name, 2, 4, 3, keys, 12))


@pytest.mark.parametrize("causal", [None, "bottom_right"])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_relative_terms(kind: str, causal: str | None):
    q, k, v = inputs(2, 4, 5, 310, 12, kv_heads=2)
    given = {"query": q, "key": k, "value": v, "causal": causal, "relative": relative_term(kind, 4, 12)}
    assert_gradients_agree(given)
    assert_gradients_agree(given | {"lengths": np.array([310, 3]), "softcap": 3.0})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_bits_at_any_number_of_threads(dtype: str, kind: str):
    """Over several segments, which threads share."""
    keys = 3 * SEGMENT_KEYS - 5
    q, k, v = inputs(2, 4, 2, keys, 12, 9, kv_heads=2, dtype=dtype)
    bias = np.random.default_rng(0).standard_normal((4, 1, keys)).astype(dtype)
    given: dict[str, Any] = {"query": q, "key": k, "value": v, "bias": bias, "return_lse": True}
    if kind != "none":
        given["relative"] = relative_term(kind, 4, 12, dtype)
    with threads(1):
        alone = gradients("numba", given)
    for count in (2, 3, 7):
        with threads(count):
            shared = gradients("numba", given)
        for a, b in zip([*alone[0], *alone[1]], [*shared[0], *shared[1]], strict=True):
            assert (a is None and b is None) or a.tobytes() == b.tobytes()


def test_it_gives_what_the_kernel_for_panels_gives(monkeypatch: pytest.MonkeyPatch):
    q, k, v = inputs(2, 4, 3, 700, 24, kv_heads=2)
    given = {"query": q, "key": k, "value": v, **options_of("bias", 2, 4, 3, 700, 24)}
    few = gradients("numba", given)
    monkeypatch.setattr(terms_cpu, "DECODE_QUERIES", 0)
    OPS["attention"].plans.clear()
    panels = gradients("numba", given)
    OPS["attention"].plans.clear()
    for a, b in zip([*few[0], *few[1]], [*panels[0], *panels[1]], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options, few",
    [({}, True), ({"bias": np.ones((1, 1, 1, 40), np.float32)}, True), ({"dropout_p": 0.5, "seed": 1}, False)],
)
def test_which_kernel_is_taken(options: dict[str, Any], few: bool, monkeypatch: pytest.MonkeyPatch):
    taken = []
    for module, name in ((decode_backward_cpu, "decode_backward_parts"), (backward_cpu, "backward_parts")):
        kernel = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, name=name, kernel=kernel: taken.append(name) or kernel(*a))
    q, k, v = inputs(1, 2, 1, 40)
    gradients("numba", {"query": q, "key": k, "value": v, **options})
    assert taken == ["decode_backward_parts" if few else "backward_parts"]
    q, k, v = inputs(1, 2, DECODE_QUERIES + 1, 40)
    gradients("numba", {"query": q, "key": k, "value": v})
    assert taken[1:] == ["backward_parts"]


def test_shaws_table_is_for_the_kernel_for_panels(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decode_backward_cpu, "decode_backward_parts", None)
    q, k, v = inputs(1, 2, 1, 40)
    gradients("numba", {"query": q, "key": k, "value": v, "relative": relative_term("shaw", 2, 8)})


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_what_is_hidden_reaches_no_gradient(odd: float):
    """A key that a mask hides, a query that sees nothing, keys past the row's length: they may be no numbers."""
    q, k, v = inputs(2, 4, 3, 300, 12, kv_heads=2)
    mask = np.ones((2, 1, 3, 300), bool)
    mask[..., 5] = False
    mask[:, :, 1] = False
    lengths = np.array([300, 200])
    given = {"query": q, "key": k, "value": v, "mask": mask, "lengths": lengths}
    spoilt_q, spoilt_k, spoilt_v = q.copy(), k.copy(), v.copy()
    spoilt_q[:, :, 1] = odd
    spoilt_k[:, :, 5], spoilt_v[:, :, 5] = odd, odd
    spoilt_k[1, :, 200:], spoilt_v[1, :, 200:] = odd, odd
    assert_gradients_agree(given | {"query": spoilt_q, "key": spoilt_k, "value": spoilt_v}, given)


def test_a_query_that_is_no_number_spoils_the_keys_it_sees_alone():
    q, k, v = inputs(1, 1, 2, 300, 12)
    q[0, 0, 1, 3] = np.nan
    mask = np.ones((1, 1, 2, 300), bool)
    mask[0, 0, 1, 100:] = False
    _, (grad_q, grad_k, grad_v, *_) = gradients("numba", {"query": q, "key": k, "value": v, "mask": mask})
    assert np.isnan(grad_k[0, 0, :100]).all() and np.isfinite(grad_k[0, 0, 100:]).all()
    assert np.isnan(grad_v[0, 0, :100]).all() and np.isfinite(grad_v[0, 0, 100:]).all()
    assert np.isfinite(grad_q[0, 0, 0]).all() and np.isnan(grad_q[0, 0, 1]).all()


def test_gradients_that_nobody_wants_are_not_made():
    import torch

    q, k, v = (torch.from_numpy(a) for a in inputs(1, 2, 1, 40))
    for wanted in ((True, False, False), (False, True, False), (False, False, True)):
        given = [x.clone().requires_grad_(w) for x, w in zip((q, k, v), wanted)]
        kernels.attention(*given, backend="numba").sum().backward()
        all_of_them = [x.clone().requires_grad_() for x in (q, k, v)]
        kernels.attention(*all_of_them, backend="numba").sum().backward()
        for one, every, w in zip(given, all_of_them, wanted):
            assert (one.grad is not None) == w
            if w:
                assert torch.equal(one.grad, every.grad)

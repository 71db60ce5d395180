"""Dropout between layers, torch.compile without a graph break, second derivatives, modes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels.random import keep_mask
from kernels.recurrence.panels import SUMMED_VECTORS
from tests.recurrence.modules import CELLS, OURS, flat, random_params


def two_layers(cell: str, dtype: str = "float64") -> list[tuple[torch.Tensor, ...]]:
    params = random_params(cell, 5, 7, layers=2, dtype=dtype)
    return [tuple(torch.from_numpy(a).requires_grad_() for a in one) for one in params]


def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("backend", ["numba", "reference", "torch"])
@pytest.mark.parametrize("cell", CELLS)
def test_dropout_lies_between_the_layers_alone(cell: str, backend: str):
    """Two layers by hand, with the counter-based mask of layer 0 in between, are the stack; gradients too."""
    params, x = two_layers(cell), leaf(4, 3, 5)
    output, *_ = flat(OURS[cell](x, params, num_layers=2, dropout=0.4, training=True, seed=11, backend=backend))
    mask = torch.from_numpy(keep_mask((4, 3, 7), 0.4, 11, 0))
    between = OURS[cell](x, params[:1], backend=backend)[0]
    by_hand = OURS[cell](torch.where(mask, between / 0.6, 0.0), params[1:], backend=backend)[0]
    torch.testing.assert_close(output, by_hand)
    every = [x, *params[0], *params[1]]
    for a, b in zip(torch.autograd.grad(output.sum(), every), torch.autograd.grad(by_hand.sum(), every)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("cell", CELLS)
def test_dropout_is_for_training_and_for_several_layers(cell: str):
    params, x = two_layers(cell), leaf(4, 3, 5)
    plain = OURS[cell](x, params, num_layers=2)[0]
    assert torch.equal(OURS[cell](x, params, num_layers=2, dropout=0.5)[0], plain)
    assert torch.equal(OURS[cell](x, params, num_layers=2, dropout=0.0, training=True)[0], plain)
    single = OURS[cell](x, params[:1])[0]
    assert torch.equal(OURS[cell](x, params[:1], dropout=0.9, training=True)[0], single)
    torch.manual_seed(0)
    first, second = (OURS[cell](x, params, num_layers=2, dropout=0.5, training=True)[0] for _ in (0, 1))
    torch.manual_seed(0)
    third = OURS[cell](x, params, num_layers=2, dropout=0.5, training=True)[0]
    assert torch.equal(first, third) and not torch.equal(first, second)
    everything = OURS[cell](x, params, num_layers=2, dropout=1.0, training=True)[0]
    assert torch.equal(everything, OURS[cell](torch.zeros(4, 3, 7, dtype=x.dtype), params[1:])[0])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_compile_without_a_graph_break(cell: str, bidirectional: bool):
    """Layers, dropout, lengths and states in one graph, and the same bits."""
    torch.compiler.reset()
    directions = 1 + bidirectional
    drawn = random_params(cell, 5, 7, layers=2, directions=directions)
    params = [tuple(torch.from_numpy(a).requires_grad_() for a in one) for one in drawn]
    settings: dict[str, Any] = {"num_layers": 2, "bidirectional": bidirectional, "batch_first": True}

    def run(x: torch.Tensor, lengths: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        output, *ends = flat(OURS[cell](x, params, lengths=lengths, dropout=0.3, training=True, seed=seed, **settings))
        return output.sum() + sum(end.sum() for end in ends)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    every = [p for one in params for p in one]
    for batch in (3, 4):
        x = leaf(batch, 6, 5, dtype=torch.float32)
        lengths, seed = torch.arange(batch) + 2, torch.tensor(5)
        first, second = compiled(x, lengths, seed), run(x, lengths, seed)
        assert torch.equal(first, second)
        for a, b in zip(torch.autograd.grad(first, [x, *every]), torch.autograd.grad(second, [x, *every])):
            assert torch.equal(a, b)


def test_compile_with_a_seed_of_its_own():
    torch.compiler.reset()
    params = two_layers("gru", "float32")
    compiled = torch.compile(
        lambda x: kernels.gru(x, params, num_layers=2, dropout=0.5, training=True)[0],
        fullgraph=True,
        backend="aot_eager",
    )
    x = leaf(4, 3, 5, dtype=torch.float32)
    torch.manual_seed(3)
    first, second = compiled(x), compiled(x)
    torch.manual_seed(3)
    assert torch.equal(compiled(x), first) and not torch.equal(first, second)


@pytest.mark.parametrize("lengths", [None, torch.tensor([2, 3])])
@pytest.mark.parametrize("cell", CELLS)
def test_second_derivatives(cell: str, lengths: Any):
    params, x = two_layers(cell), leaf(3, 2, 5)

    def run(x: torch.Tensor, w: torch.Tensor) -> Any:
        changed = [(params[0][0], w, *params[0][2:]), params[1]]
        output, *ends = flat(OURS[cell](x, changed, num_layers=2, lengths=lengths))
        return output, ends[-1]

    assert torch.autograd.gradgradcheck(run, (x, params[0][1]), fast_mode=True)


@pytest.mark.parametrize("cell", CELLS)
def test_modes(cell: str):
    params, x = two_layers(cell, "float32"), leaf(4, 3, 5, dtype=torch.float32)
    expected = [r.detach() for r in flat(OURS[cell](x, params, num_layers=2))]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for a, b in zip(flat(OURS[cell](x, params, num_layers=2)), expected, strict=True):
                assert torch.equal(a, b) and not a.requires_grad


def test_explain_and_use_backend():
    x, (one,) = np.zeros((4, 3, 5), np.float32), random_params("lstm", 5, 7)
    found = kernels.explain("lstm_layer", x, *one)
    assert found.chosen == "numba" and f"rows x {SUMMED_VECTORS} vectors" in str(found)
    with kernels.use_backend("reference"):
        assert kernels.explain("lstm_layer", x, *one).chosen == "reference"
    whole = kernels.explain("lstm", x, [one])
    assert (whole.op, whole.chosen) == ("lstm_layer", "numba")
    assert str(whole).splitlines()[0] == "lstm is made of lstm_layer; its first call:"
    with pytest.raises(ValueError, match=r"^vjp: op must be one of .*lstm_layer.*, got 'lstm'$"):
        kernels.vjp("lstm", x, [one])
        kernels.lstm(x, [one])


def test_vjp_of_a_layer():
    x, (one,) = np.ones((4, 3, 5), np.float32), random_params("gru", 5, 7)
    (output, h_n), pullback = kernels.vjp("gru_layer", x, *one)
    gradients = pullback(np.ones_like(output), None)
    assert gradients[0] is not None and gradients[0].shape == x.shape
    both = pullback(np.ones_like(output), np.ones_like(h_n))
    assert not np.array_equal(both[0], gradients[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("cell", CELLS)
def test_one_graph_for_every_size(cell: str):
    """Steps and rows may change without another compilation; so may the lengths' values."""
    torch.compiler.reset()
    params = two_layers(cell, "float32")
    graphs = []

    def count(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return graph

    def run(x: torch.Tensor, lengths: torch.Tensor) -> Any:
        return OURS[cell](x, params, num_layers=2, lengths=lengths)[0]

    compiled = torch.compile(run, fullgraph=True, backend=count, dynamic=True)
    for steps, batch in ((6, 3), (7, 5), (9, 4)):
        x, lengths = leaf(steps, batch, 5, dtype=torch.float32), torch.arange(batch) + 1
        assert torch.equal(compiled(x, lengths), run(x, lengths))
    assert len(graphs) == 1


def test_second_derivatives_under_compile_say_no():
    torch.compiler.reset()
    params, x = two_layers("lstm"), leaf(3, 2, 5)
    compiled = torch.compile(
        lambda x: kernels.lstm(x, params, num_layers=2)[0].pow(2).sum(), fullgraph=True, backend="aot_eager"
    )
    with pytest.raises((RuntimeError, NotImplementedError), match="(?i)second|double|create_graph|twice"):
        (first,) = torch.autograd.grad(compiled(x), x, create_graph=True)
        torch.autograd.grad(first.sum(), x)


@pytest.mark.parametrize("cell", CELLS)
def test_export(cell: str):
    params = [tuple(p.detach() for p in one) for one in two_layers(cell, "float32")]

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return OURS[cell](x, params, num_layers=2)[0]

    x = leaf(4, 3, 5, dtype=torch.float32).detach()
    program = torch.export.export(Net(), (x,))
    assert torch.equal(program.module()(x), Net()(x))

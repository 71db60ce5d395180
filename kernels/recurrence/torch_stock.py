"""torch's own recurrent layers, to compare with and as a last resort; their backward is differentiable once more.

What torch has no op for (lengths of any order, GRU with the reset before the product) runs by the equations.
"""

from __future__ import annotations

from typing import Any

import torch

from kernels.op import input_names
from kernels.recurrence import equations
from kernels.recurrence.op import GRU_LAYER, LSTM_LAYER, RNN_LAYER, implement
from kernels.recurrence.problem import Layer, RnnProblem

Tensor = torch.Tensor


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return like.new_zeros(shape)


def _join(tensors: list[Tensor]) -> Tensor:
    return torch.cat(tensors, -1)


TORCH = equations.Math(torch.sigmoid, torch.tanh, torch.where, _join, torch.stack, _zeros)


def _stock(p: Layer, named: dict[str, Any]) -> tuple[Tensor, ...]:
    """output for every step, h_n (and c_n) by torch.rnn_tanh, rnn_relu, lstm or gru."""
    x = named["x"]
    flat: list[Tensor] = []
    directions = p.weights(named)
    has_biases = any(w.b_ih is not None or w.b_hh is not None for w in directions)
    for w in directions:
        flat += [w.w_ih, w.w_hh]
        if has_biases:
            flat += [x.new_zeros(w.w_ih.shape[0]) if b is None else b for b in (w.b_ih, w.b_hh)]
        if w.w_hr is not None:
            flat.append(w.w_hr)
    states = [named["h0"], named["c0"]] if p.cell == "lstm" else [named["h0"]]
    sizes = (p.hidden, p.units)
    given = [x.new_zeros(p.directions, p.batch, size) if s is None else s for s, size in zip(states, sizes)]
    tail = (flat, has_biases, 1, 0.0, p.trains, p.directions == 2, p.batch_first)
    function: Any = getattr(torch, f"rnn_{p.nonlinearity}" if isinstance(p, RnnProblem) else p.cell)
    found = function(x, given, *tail) if p.cell == "lstm" else function(x, given[0], *tail)
    return found


def forward(p: Layer, *inputs: Tensor | None) -> tuple[Tensor | None, ...]:
    """The op's inputs -> its results."""
    named = p.named(inputs)
    if not p.is_torchs:
        return _contiguous(equations.results(TORCH, p, named, equations.run(TORCH, p, named)))
    full, *states = _stock(p, named)
    output = (full[:, -1] if p.batch_first else full[-1]) if p.return_last else full
    kept: tuple[Tensor | None, ...] = (None,) * (len(p.results()) - 1 - len(states))
    if p.trains and not output.requires_grad:
        # Autograd does not watch: the house's own backward will ask for the gates, which torch's op keeps to itself.
        kept = equations.results(TORCH, p, named, equations.run(TORCH, p, named))[-len(kept) :]
    return _contiguous((output, *states, *kept))


def _contiguous(tensors: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None else t.contiguous() for t in tensors)


def backward(p: Layer, *incoming: Tensor | None, **saved: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of output, h_n (and c_n), each possibly None -> gradients of the inputs.

    The layer is computed anew, so that autograd sees how the gates depend on the inputs.
    """
    named = {name: saved[name] for name in input_names(type(p))}
    found = equations.gradients(TORCH, p, named, equations.run(TORCH, p, named), incoming)
    return _contiguous(found)


for _op in (RNN_LAYER, LSTM_LAYER, GRU_LAYER):
    implement(_op, "torch", forward, backward, dtypes=("float16", "bfloat16", "float32", "float64"))

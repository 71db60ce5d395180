"""torch's recurrent layers with our arguments: what ``torch.nn.LSTM`` and its kin call, packed sequences included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from bench.workload import Workload

_ORDER = ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr")


def torch_layer(workload: Workload) -> Callable[..., Any] | None:
    """The layer as a function on tensors by keyword; None where torch has no such layer."""
    given, problem = workload.arguments, workload.problem
    lengths = given.get("lengths")
    last = bool(given.get("return_last", False))
    if given.get("reset_after", True) is False or (lengths is not None and (last or not lengths.all())):
        return None
    cell = workload.case.op.removesuffix("_layer")
    function: Any = getattr(torch, f"rnn_{given.get('nonlinearity', 'tanh')}" if cell == "rnn" else cell)
    batch_first = bool(given.get("batch_first", False))
    spec: Any = problem
    directions, states = spec.directions, 2 if cell == "lstm" else 1
    sizes = (spec.hidden, spec.units)[:states]
    names = [n + suffix for suffix in ("", "_reverse")[:directions] for n in _ORDER if n + suffix in given]
    tail = ("b_ih" in given, 1, 0.0, workload.training, directions == 2)

    def run(x: Any, h0: Any = None, c0: Any = None, lengths: Any = None, **arguments: Any) -> Any:
        flat = [arguments[name] for name in names]
        first = [x.new_zeros(directions, spec.batch, size) if s is None else s for s, size in zip((h0, c0), sizes)]
        if lengths is None:
            output, *final = function(x, _one_or_both(first), flat, *tail, batch_first)
            output = (output[:, -1] if batch_first else output[-1]) if last else output
            return (output, *final)
        packed = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
        assert packed.sorted_indices is not None and packed.unsorted_indices is not None
        ordered = [s.index_select(1, packed.sorted_indices) for s in first]
        data, *final = function(packed.data, packed.batch_sizes, _one_or_both(ordered), flat, *tail)
        result = PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        output, _ = pad_packed_sequence(result, batch_first, total_length=spec.steps)
        return (output, *[s.index_select(1, packed.unsorted_indices) for s in final])

    return run


def _one_or_both(states: list[Any]) -> Any:
    """torch's LSTM takes its two states as a list, the others take one tensor."""
    return states if len(states) == 2 else states[0]

"""Bidirectional: a recurrent layer and its like that walks the other way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from typing_extensions import Unpack

from nnlib import activity
from nnlib.layers.base import Layer, Shape
from nnlib.layers.options import LayerOptions
from nnlib.layers.padding import gaps_closed, laid_along, resolve_lengths, reversed_rows
from nnlib.layers.recurrent_base import Recurrent, States
from nnlib.names import look_up

_MERGES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "concat": lambda y, reverse: torch.cat([y, reverse], -1),
    "sum": torch.add,
    "mul": torch.mul,
    "ave": lambda y, reverse: (y + reverse) / 2,
}


class Bidirectional(Layer):
    """A recurrent layer that walks both ways, keras.layers.Bidirectional; one kernel runs both.

    Input and call as of the layer; initial_state has the states of the way forward, then those of the way back. Output
    (N, 2 units) or (N, T, 2 units), see merge_mode; the way back gives its output where the step is, so that without
    return_sequences it is that of the first step. Padded steps are 0 (the layer's zero_output_for_mask is always on).

    layer: a SimpleRNN, LSTM or GRU that goes forward; it becomes `forward_layer`, or where it is built already, another
    one made with the same arguments, whose weights are its own.
    merge_mode: "concat" (side by side), "sum", "mul", "ave", or None for a pair of outputs.
    backward_layer: the layer of the way back (default: one like `layer`), with go_backwards=True.
    input_shape, device, backend, name: see Layer.

    Raises TypeError for another kind of layer; ValueError for an unknown merge_mode or layers that do not match.
    """

    takes_lengths = True

    def __init__(
        self,
        layer: Recurrent,
        merge_mode: str | None = "concat",
        *,
        backward_layer: Recurrent | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(**options)
        for argument, given in (("layer", layer), ("backward_layer", backward_layer)):
            if not isinstance(given, Recurrent) and (given is not None or argument == "layer"):
                raise TypeError(f"{argument}: a SimpleRNN, LSTM or GRU is expected, got {given!r}")
        if layer.go_backwards:
            raise ValueError("layer: it must go forward")
        if layer.built:  # as in Keras: another like it, with weights of its own
            arguments, named = layer.constructor_arguments
            layer = type(layer)(*arguments, **named)
        if merge_mode is not None:
            look_up("merge_mode", merge_mode, _MERGES)
        self.merge_mode = merge_mode
        if backward_layer is None:
            backward_layer = copy.deepcopy(layer)
            backward_layer.go_backwards = True
        for setting in ("return_sequences", "return_state", "stateful", "units"):
            mine, theirs = getattr(layer, setting), getattr(backward_layer, setting)
            if mine != theirs:
                raise ValueError(f"backward_layer: it must have {setting}={mine} as layer has, got {theirs}")
        if not backward_layer.go_backwards:
            raise ValueError("backward_layer: it must have go_backwards=True")
        if self.given_input_shape is None:
            self.given_input_shape = layer.given_input_shape
        self.forward_layer = layer
        self.backward_layer = backward_layer
        self.adopt(self.backend, self.device)

    @property
    def return_sequences(self) -> bool:
        """Whether every step has an output."""
        return self.forward_layer.return_sequences

    def expected_input(self) -> tuple[int | str, ...]:
        return self.forward_layer.expected_input()

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """The output's shape, that of each of two for merge_mode=None."""
        shape = self.forward_layer.compute_output_shape(input_shape)
        return (*shape[:-1], 2 * self.forward_layer.units) if self.merge_mode == "concat" else shape

    def output_lengths(self, x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor | None:
        return self.forward_layer.output_lengths(x, lengths)

    def build(self, input_shape: Shape) -> None:
        self.forward_layer.build_once(input_shape)
        self.backward_layer.build_once(input_shape)

    def reset_state(self) -> None:
        """Forgets the states that a stateful layer keeps."""
        self.forward_layer.reset_state()
        self.backward_layer.reset_state()

    def reset_states(self) -> None:
        """reset_state, by its name in Keras 2."""
        self.reset_state()

    def call(
        self,
        x: torch.Tensor,
        initial_state: Sequence[torch.Tensor] | None = None,
        *,
        lengths: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        lengths = resolve_lengths(self.name, x, lengths, mask)
        real = None
        if lengths is not None and lengths.dtype == torch.bool:
            real = lengths
            x, lengths = gaps_closed(x, real)
        both = (self.forward_layer, self.backward_layer)
        count = self.forward_layer.state_count
        given = (None, None) if initial_state is None else (initial_state[:count], initial_state[count:])
        states = [layer.states_before(x, one) for layer, one in zip(both, given)]
        y, reverse, ends, side_by_side = self._run(x, states, lengths)
        if real is not None and self.return_sequences:
            y, reverse = (laid_along(output, real, zero=True) for output in (y, reverse))
            side_by_side = None
        for layer, end in zip(both, ends):
            layer.keep_states(end)
        for layer, output, end in zip(both, (y, reverse), ends):
            if layer.activity_regularizer is not None:  # which its own call would see to
                activity.note(layer, layer.activity_regularizer, (output, *end) if layer.return_state else output)
        merged: tuple[torch.Tensor, ...]
        if self.merge_mode is None:
            merged = y, reverse
        elif self.merge_mode == "concat" and side_by_side is not None:
            merged = (side_by_side,)
        else:
            merged = (_MERGES[self.merge_mode](y, reverse),)
        if self.forward_layer.return_state:
            return (*merged, *ends[0], *ends[1])
        return merged if self.merge_mode is None else merged[0]

    def _run(
        self, x: torch.Tensor, states: Sequence[States | None], lengths: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, Sequence[States], torch.Tensor | None]:
        """The outputs of both ways, each step's where it is, the states at their ends, and the outputs side by side
        where they lie so already."""
        one, other = self.forward_layer, self.backward_layer
        drops = self.training and any((one.dropout, one.recurrent_dropout, other.dropout, other.recurrent_dropout))
        in_kernel = one.in_kernel and other.in_kernel
        if drops or not in_kernel or type(one) is not type(other) or one.op_options() != other.op_options():
            y, end = one.run_sequence(x, states[0], lengths)
            reverse, first = other.run_sequence(x, states[1], lengths)
            if self.return_sequences:
                reverse = reversed_rows(reverse, lengths)
            return y, reverse, (end, first), None
        output, ends = one.run_op(x, (one, other), states, lengths, return_last=not self.return_sequences)
        y, reverse = output.chunk(2, -1)
        if self.return_sequences:
            return y, reverse, ends, output
        # The last output of a way back is that of the first step: its state.
        reverse = ends[1][0] if lengths is None else ends[1][0].masked_fill((lengths == 0)[:, None], 0)
        return y, reverse, ends, None

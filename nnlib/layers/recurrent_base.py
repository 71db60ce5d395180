"""What recurrent layers share: parameters, states, padding, direction, dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from nnlib.activations import ActivationChoice
from nnlib.checks import positive_integer, share
from nnlib.initializers import InitializerChoice, fill
from nnlib.layers.base import Layer, Shape
from nnlib.layers.padding import gaps_closed, laid_along, real_steps, resolve_lengths, reversed_rows
from nnlib.layers.rules import features_last

States = tuple[torch.Tensor, ...]


class Recurrent(Layer):
    """The base of SimpleRNN, LSTM and GRU, whose docstrings say what the arguments are."""

    takes_lengths = True
    regularized = constrained = ("kernel", "recurrent", "bias")

    #: The op in kernels that runs a whole sequence.
    op: ClassVar[str]
    gates: ClassVar[int] = 1
    #: How many tensors (N, units) go from step to step; the first is the output.
    state_count: ClassVar[int] = 1
    activations: ClassVar[tuple[str, ...]] = ("tanh",)

    weight_ih: torch.Tensor
    weight_hh: torch.Tensor
    bias_ih: torch.Tensor | None
    bias_hh: torch.Tensor | None

    def __init__(
        self,
        units: int,
        activation: str | None,
        recurrent_activation: str | None,
        use_bias: bool,
        kernel_initializer: InitializerChoice,
        recurrent_initializer: InitializerChoice,
        bias_initializer: InitializerChoice,
        *,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        zero_output_for_mask: bool = False,
        implementation: int = 2,
        use_cudnn: bool | str = "auto",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        for argument, choice in (("activation", activation), ("recurrent_activation", recurrent_activation)):
            if not isinstance(choice, (str, type(None))):
                raise TypeError(f"{argument}: a name or None is expected, got {choice!r}")
        self.act = ActivationChoice(activation)
        self.gate_act = ActivationChoice(recurrent_activation)
        #: Whether the kernel of a whole sequence has these activations; others are computed step by step.
        self.in_kernel = self.act.name in self.activations and (self.gates == 1 or self.gate_act.name == "sigmoid")
        for argument, rate in (("dropout", dropout), ("recurrent_dropout", recurrent_dropout)):
            share(argument, rate, below_1=True)
        self.units = positive_integer("units", units)
        self.activation = activation
        self.recurrent_activation = recurrent_activation
        self.use_bias = use_bias
        self.kernel_initializer = kernel_initializer
        self.recurrent_initializer = recurrent_initializer
        self.bias_initializer = bias_initializer
        self.dropout = dropout
        self.recurrent_dropout = recurrent_dropout
        self.return_sequences = return_sequences
        self.return_state = return_state
        self.go_backwards = go_backwards
        self.stateful = stateful
        self.unroll = unroll
        self.zero_output_for_mask = zero_output_for_mask
        self.input_features: int | None = None
        #: What a stateful layer starts its next batch from; None for zeros.
        self.kept_states: States | None = None

    # What the three differ in.

    def op_options(self) -> dict[str, Any]:
        """Further arguments of the op."""
        return {}

    @property
    def has_second_bias(self) -> bool:
        """Whether the recurrent product has a bias of its own."""
        return False

    def fill_bias(self, bias: torch.Tensor) -> None:
        """Fills a bias at the start."""
        fill(f"{self.name}: bias_initializer", self.bias_initializer, bias, features_last)

    def step(self, x: torch.Tensor, states: States, dropped: torch.Tensor) -> States:
        """The states after a step on x (N, features), in which the product with h is of `dropped`: with any activation,
        and with recurrent_dropout."""
        raise NotImplementedError(f"{type(self).__name__} must define step(x, states, dropped)")

    def step_in_kernel(self, x: torch.Tensor, states: States, dropped: torch.Tensor) -> States:
        """The same where the kernel has the activations, and needs the state h for the product alone."""
        return self.run_op(x[:, None], [self], [(dropped, *states[1:])], None, return_last=True)[1][0]

    def sums(self, x: torch.Tensor, dropped: torch.Tensor) -> torch.Tensor:
        """W x + U h + b, (N, gates * units)."""
        ahead = self.run("linear", x, self.weight_ih, self.bias_ih)
        return ahead + self.run("linear", dropped, self.weight_hh, self.bias_hh)

    def activate(self, choice: ActivationChoice, x: torch.Tensor) -> torch.Tensor:
        """An activation of (N, units)."""
        return choice.apply(self.name, x, axis=-1, backend=self.backend)

    # The parts of a layer.

    def expected_input(self) -> tuple[int | str, ...]:
        return ("N", "T", "features" if self.input_features is None else self.input_features)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, steps, _ = input_shape
        return (batch, steps, self.units) if self.return_sequences else (batch, self.units)

    def output_lengths(self, x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor | None:
        return lengths if self.return_sequences else None

    def build(self, input_shape: Shape) -> None:
        features = input_shape[-1]
        if features is None:
            raise ValueError(f"{self.name}: the last axis of the input must be known, got {input_shape}")
        rows = self.gates * self.units
        self.add_parameter("weight_ih", (rows, features), self.kernel_initializer, "kernel_initializer")
        self.add_parameter("weight_hh", (rows, self.units), self.recurrent_initializer, "recurrent_initializer")
        for name, wanted in (("bias_ih", self.use_bias), ("bias_hh", self.has_second_bias)):
            if wanted:
                self.add_parameter(name, (rows,), self.fill_bias, "bias_initializer")
            else:
                self.register_parameter(name, None)
        self.input_features = features

    def call(
        self,
        x: torch.Tensor,
        initial_state: torch.Tensor | Sequence[torch.Tensor] | None = None,
        *,
        lengths: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        lengths = resolve_lengths(self.name, x, lengths, mask)
        real = None if lengths is None else real_steps(lengths, x.shape[1])
        if real is lengths is not None:
            x, lengths = gaps_closed(x, lengths)
        output, states = self.run_sequence(x, self.states_before(x, initial_state), lengths)
        self.keep_states(states)
        if real is not None and self.return_sequences:
            output = self.lay_out(output, real)
        return (output, *states) if self.return_state else output

    # States.

    def states_before(self, x: torch.Tensor, given: torch.Tensor | Sequence[torch.Tensor] | None) -> States | None:
        """The states that the rows of x start from: those given, or those kept, or None for zeros."""
        kept = self.kept_states if self.stateful else None
        rows = x.shape[0]
        if given is None:
            if kept is not None and kept[0].shape[0] != rows:
                raise ValueError(
                    f"{self.name}: a stateful layer needs the batch size of the call before ({kept[0].shape[0]}), "
                    f"got {rows}; reset_state() starts anew"
                )
            return None if kept is None else tuple(state.to(x) for state in kept)
        states = (given,) if isinstance(given, torch.Tensor) else tuple(given)
        shape = (rows, self.units)
        if len(states) != self.state_count or any(tuple(state.shape) != shape for state in states):
            raise ValueError(
                f"{self.name}: initial_state must be {self.state_count} of shape {shape}, "
                f"got {[tuple(state.shape) for state in states]}"
            )
        return states

    def keep_states(self, states: States) -> None:
        """Keeps the states for the next batch where the layer is stateful; gradients end here."""
        if self.stateful:
            self.kept_states = tuple(state.detach() for state in states)

    def reset_state(self) -> None:
        """Forgets the states that a stateful layer keeps: the next batch starts from zeros."""
        self.kept_states = None

    def reset_states(self) -> None:
        """reset_state, by its name in Keras 2."""
        self.reset_state()

    # Running.

    def run_sequence(
        self, x: torch.Tensor, states: States | None, lengths: torch.Tensor | None
    ) -> tuple[torch.Tensor, States]:
        """The output in the order of the walk, 0 where padded, and the states at the end."""
        if self.training and self.dropout > 0:
            x = x * self._drop_mask(x[:, 0], self.dropout)[:, None]
        if self.go_backwards:
            x = reversed_rows(x, lengths)
        if not self.in_kernel or (self.training and self.recurrent_dropout > 0):
            return self._step_by_step(x, states, lengths)
        output, ends = self.run_op(x, [self], [states], lengths, return_last=not self.return_sequences)
        return output, ends[0]

    def run_op(
        self,
        x: torch.Tensor,
        directions: Sequence[Recurrent],
        states: Sequence[States | None],
        lengths: torch.Tensor | None,
        *,
        return_last: bool,
    ) -> tuple[torch.Tensor, list[States]]:
        """One call of the kernel for a layer, or for a layer and the one that walks the other way.

        Returns its output (N, T, D units), or (N, D units) of each row's last step, and the states of each direction.
        """
        arguments: dict[str, Any] = {}
        for suffix, layer in zip(("", "_reverse"), directions):
            arguments |= {
                f"w_ih{suffix}": layer.weight_ih,
                f"w_hh{suffix}": layer.weight_hh,
                f"b_ih{suffix}": layer.bias_ih,
                f"b_hh{suffix}": layer.bias_hh,
            }
        if any(one is not None for one in states):
            zero = x.new_zeros(x.shape[0], self.units)
            rows = [one or (zero,) * self.state_count for one in states]
            for name, parts in zip(("h0", "c0"), zip(*rows)):
                arguments[name] = torch.stack(parts)
        output, *ends = self.run(
            self.op, x, **arguments, lengths=lengths, batch_first=True, return_last=return_last, **self.op_options()
        )
        return output, [tuple(end[d] for end in ends) for d in range(len(directions))]

    def _step_by_step(
        self, x: torch.Tensor, states: States | None, lengths: torch.Tensor | None
    ) -> tuple[torch.Tensor, States]:
        steps = x.shape[1]
        zero = x.new_zeros(x.shape[0], self.units)
        now = states or (zero,) * self.state_count
        drops = self.training and self.recurrent_dropout > 0
        mask = self._drop_mask(zero, self.recurrent_dropout) if drops else None
        real = None if lengths is None else real_steps(lengths, steps)
        if real is not None:
            x = x.masked_fill(~real[:, :, None], 0)  # what is there may be NaN
        outputs = []
        for step in range(steps):
            new = self.step(x[:, step], now, now[0] if mask is None else now[0] * mask)
            if real is None:
                now = new
                outputs.append(new[0])
            else:
                going = real[:, step, None]
                now = tuple(torch.where(going, one, other) for one, other in zip(new, now))
                outputs.append(torch.where(going, new[0], zero))
        if self.return_sequences:
            return torch.stack(outputs, 1), now
        if lengths is None:
            return now[0], now
        return torch.where((lengths > 0)[:, None], now[0], zero), now

    def _drop_mask(self, like: torch.Tensor, rate: float) -> torch.Tensor:
        """0 with the probability `rate`, else 1 / (1 - rate), for each element of `like`."""
        return self.run("dropout", torch.ones_like(like, requires_grad=False), rate)

    def lay_out(self, output: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """The output, real steps first, as Keras lays it out: in the order of the walk, with padding where it was."""
        real = real.flip(1) if self.go_backwards else real
        return laid_along(output, real, zero=self.zero_output_for_mask)

"""Recurrent layers: SimpleRNN, LSTM and GRU. What they share is here and in recurrent_base."""

from __future__ import annotations

from typing import Any

import torch
from typing_extensions import Unpack

from nnlib.constraints import NonNeg
from nnlib.initializers import Constant, Identity, InitializerChoice, get
from nnlib.layers.base import Shape
from nnlib.layers.options import RecurrentOptions
from nnlib.layers.recurrent_base import Recurrent, States

_SHARED = """
    units: size of the state and of the output.
    use_bias: whether there is one. kernel_initializer, recurrent_initializer, bias_initializer: see nnlib.initializers;
    kernel_regularizer, recurrent_regularizer, bias_regularizer, kernel_constraint, recurrent_constraint,
    bias_constraint: see Layer. All that follow are named, and off by default.
    dropout: share of the input's features, recurrent_dropout: share of the state's units, that is zeroed in training
    for the products alone: one draw a row and call, the same at all of its steps and for all gates (Gal and Ghahramani,
    2016, with tied weights; Keras draws one for each gate where it uses recurrent_dropout). With recurrent_dropout
    training runs step by step.
    return_sequences: the output of every step in place of the last. return_state: (output, *states) in place of the
    output. go_backwards: from the last step to the first, which is then the order of the output.
    stateful: a batch starts from the states that the batch before it ended with (detached), see reset_state.
    unroll, implementation, use_cudnn: accepted and without effect: they choose between Keras' ways to compute the same,
    where this library has `backend`.
    zero_output_for_mask: with return_sequences, padded steps are 0; else they repeat the row's last output.
    The other options: see Layer.

    Call: layer(x, initial_state=None, lengths=None, mask=None). initial_state: as many tensors (N, units) as the layer
    has states, or one alone. lengths (N,) int64: how many steps of each row are real, or mask (N, T), bool, True for
    those (default: what the input tells, see Layer). Padded steps are never read, whatever they hold; a row of length 0
    keeps its initial state, and its output is 0.

    Raises ValueError if an argument is out of its range, or an input does not fit.
"""


class SimpleRNN(Recurrent):
    __doc__ = f"""Fully connected recurrence h' = act(W x + U h + b), keras.layers.SimpleRNN.

    Input (N, T, features), floating point; output (N, units), or (N, T, units) with return_sequences. Parameters as in
    torch.nn.RNNCell: weight_ih (units, features), weight_hh (units, units), bias_ih (units,). One state, h.

    activation: "tanh" and "relu" have kernels, others of nnlib.activations run step by step.{_SHARED}"""

    op = "rnn_layer"
    activations = ("tanh", "relu")

    def __init__(
        self,
        units: int,
        activation: str | None = "tanh",
        use_bias: bool = True,
        kernel_initializer: InitializerChoice = "glorot_uniform",
        recurrent_initializer: InitializerChoice = "orthogonal",
        bias_initializer: InitializerChoice = "zeros",
        **options: Unpack[RecurrentOptions],
    ) -> None:
        super().__init__(
            units, activation, None, use_bias, kernel_initializer, recurrent_initializer, bias_initializer, **options
        )  # fmt: skip

    def op_options(self) -> dict[str, Any]:
        return {"nonlinearity": self.act.name}

    def step(self, x: torch.Tensor, states: States, dropped: torch.Tensor) -> States:
        if self.in_kernel:
            return self.step_in_kernel(x, states, dropped)
        return (self.activate(self.act, self.sums(x, dropped)),)


class LSTM(Recurrent):
    __doc__ = f"""Long short-term memory (Hochreiter and Schmidhuber, 1997), keras.layers.LSTM.

    Input (N, T, features), floating point; output (N, units), or (N, T, units) with return_sequences. Parameters as in
    torch.nn.LSTMCell, gates i, f, g, o one below the other: weight_ih (4 units, features), weight_hh (4 units, units),
    bias_ih (4 units,); one bias, as in Keras. Two states, h and c.

    activation: "tanh", recurrent_activation: "sigmoid": those of the kernels; others of nnlib.activations, or None, run
    step by step.
    unit_forget_bias: the forget gate's bias starts at 1 (Jozefowicz et al., 2015).{_SHARED}"""

    op = "lstm_layer"
    gates = 4
    state_count = 2

    def __init__(
        self,
        units: int,
        activation: str | None = "tanh",
        recurrent_activation: str | None = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: InitializerChoice = "glorot_uniform",
        recurrent_initializer: InitializerChoice = "orthogonal",
        bias_initializer: InitializerChoice = "zeros",
        unit_forget_bias: bool = True,
        **options: Unpack[RecurrentOptions],
    ) -> None:
        super().__init__(
            units, activation, recurrent_activation, use_bias, kernel_initializer, recurrent_initializer,
            bias_initializer, **options,
        )  # fmt: skip
        self.unit_forget_bias = unit_forget_bias

    def fill_bias(self, bias: torch.Tensor) -> None:
        super().fill_bias(bias)
        if self.unit_forget_bias:
            bias[self.units : 2 * self.units] = 1.0

    def step(self, x: torch.Tensor, states: States, dropped: torch.Tensor) -> States:
        if self.in_kernel:
            return self.step_in_kernel(x, states, dropped)
        _, c = states
        i, f, g, o = self.sums(x, dropped).chunk(4, -1)
        i, f, o = (self.activate(self.gate_act, gate) for gate in (i, f, o))
        c = f * c + i * self.activate(self.act, g)
        return o * self.activate(self.act, c), c


class GRU(Recurrent):
    __doc__ = f"""Gated recurrent units (Cho et al., 2014), keras.layers.GRU.

    Input (N, T, features), floating point; output (N, units), or (N, T, units) with return_sequences. Parameters as in
    torch.nn.GRUCell, gates r, z, n one below the other: weight_ih (3 units, features), weight_hh (3 units, units),
    bias_ih (3 units,), and with reset_after bias_hh (3 units,). One state, h.

    activation: "tanh", recurrent_activation: "sigmoid": those of the kernels; others of nnlib.activations, or None, run
    step by step.
    reset_after: the reset gate multiplies after the matrix product (torch, cuDNN) or before it.{_SHARED}"""

    op = "gru_layer"
    gates = 3

    def __init__(
        self,
        units: int,
        activation: str | None = "tanh",
        recurrent_activation: str | None = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: InitializerChoice = "glorot_uniform",
        recurrent_initializer: InitializerChoice = "orthogonal",
        bias_initializer: InitializerChoice = "zeros",
        *,
        reset_after: bool = True,
        **options: Unpack[RecurrentOptions],
    ) -> None:
        super().__init__(
            units, activation, recurrent_activation, use_bias, kernel_initializer, recurrent_initializer,
            bias_initializer, **options,
        )  # fmt: skip
        self.reset_after = reset_after
        if self.has_second_bias and not isinstance(self.bias_constraint, (NonNeg, type(None))):
            raise ValueError(
                "bias_constraint: with reset_after=True, None or NonNeg is expected, since Keras' other ones take both "
                f"biases together, got {self.bias_constraint!r}"
            )

    @torch.no_grad()
    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        # What is placed and not drawn goes where Keras has it, whose gates are z, r, n.
        for weight, choice in ((self.weight_ih, self.kernel_initializer), (self.weight_hh, self.recurrent_initializer)):
            if isinstance(get(choice), (Constant, Identity)):
                update, reset, new = weight.clone().chunk(3)
                weight.copy_(torch.cat([reset, update, new]))

    @property
    def has_second_bias(self) -> bool:
        return self.use_bias and self.reset_after

    def op_options(self) -> dict[str, Any]:
        return {"reset_after": self.reset_after}

    def step(self, x: torch.Tensor, states: States, dropped: torch.Tensor) -> States:
        # Not in the kernel: dropout may fall on the products with h, not on the h that z keeps.
        (h,) = states
        reset_hh, update_hh, new_hh = self.weight_hh.chunk(3)
        a_r, a_z, a_n = self.run("linear", x, self.weight_ih, self.bias_ih).chunk(3, -1)
        b_r, b_z, b_n = (None, None, None) if self.bias_hh is None else self.bias_hh.chunk(3)
        r = self.activate(self.gate_act, a_r + self.run("linear", dropped, reset_hh, b_r))
        z = self.activate(self.gate_act, a_z + self.run("linear", dropped, update_hh, b_z))
        if self.reset_after:
            n = self.activate(self.act, a_n + r * self.run("linear", dropped, new_hh, b_n))
        else:
            n = self.activate(self.act, a_n + self.run("linear", r * dropped, new_hh, b_n))
        return (torch.lerp(n, h, z),)

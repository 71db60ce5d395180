"""The activations on SIMD vectors: what epilogues of other kernels and the elementwise kernels apply.

With a literal code, `activate(2, v)`, exactly that activation is written into the caller. With a code that is known
only at run time there is one function for each vector type, which branches on the code: a call in every place that
uses it, so its compile cost is paid once. A loop that does little else is best written once for each literal code.

gelu: Hendrycks and Gimpel, Gaussian Error Linear Units (2016); silu: Elfwing et al. (2017). The tanh form of gelu is
computed as x * sigmoid(2u), which is 0.5 * x * (1 + tanh(u)) without its cancellation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.activation.functions import CUBIC, SQRT_2_OVER_PI
from kernels.simd import emit
from kernels.simd.emit import Lanes
from kernels.simd.math import _exp, _exp_nonpositive, _ndtr, _sigmoid, _tanh, scales_at_once
from kernels.simd.types import Vector

#: The code of every activation by its name.
ACTIVATION_CODES: dict[str | None, int] = {
    None: 0,
    "relu": 1,
    "gelu": 2,
    "silu": 3,
    "tanh": 4,
    "sigmoid": 5,
    "gelu_tanh": 6,
}

_INVERSE_SQRT_2_PI = 1 / math.sqrt(2 * math.pi)


def _identity(x: Lanes) -> Lanes:
    return x


def _relu(x: Lanes) -> Lanes:
    # The comparison is false for NaN, which passes, as -0.0 does.
    return x.compare("<", 0.0).select(x.constant(0.0), x)


def _gelu(x: Lanes) -> Lanes:
    return x * _ndtr(x)


def _silu(x: Lanes) -> Lanes:
    if not scales_at_once(x.type):
        return x * _sigmoid(x)
    return x / (_exp(-x) + 1.0)


def _gelu_tanh_exponent(x: Lanes) -> Lanes:
    """2u with u = sqrt(2 / pi) * (x + 0.044715 x**3)."""
    return x * (x * x).fma(2 * SQRT_2_OVER_PI * CUBIC, 2 * SQRT_2_OVER_PI)


def _gelu_tanh(x: Lanes) -> Lanes:
    return x * _sigmoid(_gelu_tanh_exponent(x))


def _identity_gradient(grad: Lanes, known: Lanes) -> Lanes:
    return grad


def _relu_gradient(grad: Lanes, output: Lanes) -> Lanes:
    return output.compare("<=", 0.0).select(grad.constant(0.0), grad)


def _gelu_gradient(grad: Lanes, x: Lanes) -> Lanes:
    density = _exp_nonpositive(x * x * -0.5) * _INVERSE_SQRT_2_PI
    return grad * x.fma(density, _ndtr(x))


def _silu_gradient(grad: Lanes, x: Lanes) -> Lanes:
    s = _sigmoid(x)
    return grad * s * x.fma(x.constant(1.0) - s, 1.0)


def _tanh_gradient(grad: Lanes, output: Lanes) -> Lanes:
    return grad * (-output).fma(output, 1.0)


def _sigmoid_gradient(grad: Lanes, output: Lanes) -> Lanes:
    return grad * (output.constant(1.0) - output) * output


def _gelu_tanh_gradient(grad: Lanes, x: Lanes) -> Lanes:
    exponent = _gelu_tanh_exponent(x)
    # s = sigmoid(2u); s * (1 - s) by itself, because 1 - s has few digits where s is near 1 and x is large.
    e = _exp_nonpositive(-exponent.absolute())
    inverse = x.constant(1.0) / (e + 1.0)
    small = e * inverse
    s = exponent.compare(">=", 0.0).select(inverse, small)
    slope = (x * x).fma(6 * SQRT_2_OVER_PI * CUBIC, 2 * SQRT_2_OVER_PI)
    return grad * (x * (small * inverse)).fma(slope, s)


# By code.
_FORWARD: tuple[Callable[..., Lanes], ...] = (_identity, _relu, _gelu, _silu, _tanh, _sigmoid, _gelu_tanh)
_BACKWARD: tuple[Callable[..., Lanes], ...] = (
    _identity_gradient,
    _relu_gradient,
    _gelu_gradient,
    _silu_gradient,
    _tanh_gradient,
    _sigmoid_gradient,
    _gelu_tanh_gradient,
)


def _branching(
    module: ir.Module, name: str, choices: tuple[Callable[..., Lanes], ...], vector: Vector, count: int
) -> Any:
    """The function (code, operand, ...) -> vector of this name in the module, written when it is not there yet.

    A code that is none of the choices' acts as 0.
    """
    name = f"kernels_{name}_{vector.dtype}x{vector.lanes}"
    found = module.globals.get(name)
    if found is not None:
        return found
    llvm = vector.llvm_type()
    function = ir.Function(module, ir.FunctionType(llvm, [emit.int64, *[llvm] * count]), name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    blocks = [function.append_basic_block(f"code_{code}") for code in range(len(choices))]
    switch = builder.switch(function.args[0], blocks[0])
    for code, (choice, block) in enumerate(zip(choices, blocks, strict=True)):
        if code:
            switch.add_case(ir.Constant(emit.int64, code), block)
        builder.position_at_end(block)
        operands = [Lanes(builder, vector, operand) for operand in function.args[1:]]
        builder.ret(choice(*operands).value)
    return function


def _chosen(name: str, choices: tuple[Callable[..., Lanes], ...], code: types.Type, *operands: types.Type) -> Any:
    """Signature and code of a function on vectors that `code`, a literal or any integer, picks from `choices`."""
    vector = operands[0]
    if not isinstance(vector, Vector) or any(operand != vector for operand in operands):
        return None
    if isinstance(code, types.IntegerLiteral):
        if not 0 <= code.literal_value < len(choices):
            return None
        choice = choices[code.literal_value]

        def write(context, builder, signature, arguments):
            return choice(*(Lanes(builder, vector, argument) for argument in arguments[1:])).value

        return vector(code, *operands), write
    if not isinstance(code, types.Integer):
        return None

    def call(context, builder, signature, arguments):
        function = _branching(builder.module, name, choices, vector, len(operands))
        return builder.call(function, arguments)

    return vector(types.int64, *operands), call


@intrinsic(prefer_literal=True)
def activate(typing_context, code, v):
    """act(v) for the activation with this code (ACTIVATION_CODES), a literal or any integer. relu keeps NaN."""
    return _chosen("activate", _FORWARD, code, v)


@intrinsic(prefer_literal=True)
def activation_gradient(typing_context, code, grad, known):
    """grad * act'(x); `known` is the output for the activations in functions.FROM_OUTPUT, else the input x."""
    return _chosen("activation_gradient", _BACKWARD, code, grad, known)

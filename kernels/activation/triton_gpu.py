"""The activations in Triton: one pass over memory, in whatever order the elements lie there."""

from __future__ import annotations

from typing import Any

import torch
import triton

from kernels.activation import activation_triton
from kernels.activation.gpu_speeds import measured
from kernels.activation.op import OPS, ActivationProblem
from kernels.arrays import ArraySpec
from kernels.op import Implementation
from kernels.runtime.elementwise_triton import flat_tile, places_of
from kernels.runtime.triton_gpu import DTYPES, computed, empty_like_form, launch, target_of

Tensor = torch.Tensor


def _elementwise(kernel: Any, name: str, form: ArraySpec, *inputs: Tensor) -> Tensor:
    """A fresh tensor in the layout of `form`, filled by a kernel from inputs of its shape."""
    out = empty_like_form(form, inputs[0].device)
    tile = flat_tile(form.size, target_of(inputs[0]))
    same, numbers, arrays = places_of(form.memory_order, *inputs)
    grid = (triton.cdiv(form.size, tile["BLOCK"]),)
    wide = computed(out.dtype)
    launch(kernel, grid, *arrays, out, form.size, *numbers, NAME=name, SAME=same, COMPUTED=wide, **tile)
    return out


def forward(p: ActivationProblem, x: Tensor) -> tuple[Tensor]:
    """act(x), in x's layout."""
    return (activated(p.function, p.layout, x),)


def activated(name: str, form: ArraySpec, x: Tensor) -> Tensor:
    """act(x) in the layout of `form`."""
    return _elementwise(activation_triton.activate_elements, name, form, x)


def gradient(name: str, form: ArraySpec, grad: Tensor, known: Tensor) -> Tensor:
    """grad * act'(x) in the layout of `form`; known is act(x) for the activations in functions.FROM_OUTPUT, else x."""
    return _elementwise(activation_triton.activation_gradient_elements, name, form, grad, known)


def backward(
    p: ActivationProblem, grad_output: Tensor, x: Tensor | None = None, output: Tensor | None = None
) -> tuple[Tensor]:
    """The gradient of x, in x's layout."""
    known = x if output is None else output
    assert known is not None
    return (gradient(p.function, p.layout, grad_output, known),)


def _describe(p: ActivationProblem) -> str:
    return f"{p.function} in one pass over x"


for _op in OPS:
    Implementation(_op, "triton", forward, backward, dtypes=DTYPES, describe=_describe, measured=measured)

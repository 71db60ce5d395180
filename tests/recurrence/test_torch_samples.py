"""PyTorch's own samples of nn.RNN, nn.LSTM and nn.GRU, values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing._internal.common_modules import module_db

from tests.recurrence.modules import OURS, flat, params_of, settings_of

INFOS = [info for info in module_db if info.module_cls in (torch.nn.RNN, torch.nn.LSTM, torch.nn.GRU)]


def leaves_of(arguments: tuple[Any, ...]) -> list[torch.Tensor]:
    """The tensors of a call, inside tuples too, as leaves that want gradients."""
    found: list[torch.Tensor] = []
    for argument in arguments:
        if isinstance(argument, (tuple, list)):
            found += leaves_of(tuple(argument))
        elif torch.is_tensor(argument):
            found.append(argument.requires_grad_())
    return found


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.module_cls.__name__)
def test_samples(info: Any, dtype: torch.dtype, training: bool):
    samples = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=training)
    seen = 0
    for sample in samples:
        if sample.constructor_input.kwargs.get("dropout", 0) and training:
            continue  # torch's generator draws other masks
        given, settings = sample.constructor_input, {"dtype": dtype}
        module = info.module_cls(*given.args, **given.kwargs, **settings).train(training)
        call = sample.forward_input
        if any(isinstance(a, torch.nn.utils.rnn.PackedSequence) for a in call.args):
            continue
        leaves = [*leaves_of(call.args), *module.parameters()]
        expected = flat(module(*call.args, **call.kwargs))
        cell = info.module_cls.__name__.lower()
        x, *states = call.args
        found = flat(OURS[cell](x, params_of(module), *states, **settings_of(module)))
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(b, a)
        incoming = [torch.randn_like(a) for a in expected]
        pairs = zip(torch.autograd.grad(expected, leaves, incoming), torch.autograd.grad(found, leaves, incoming))
        for a, b in pairs:
            torch.testing.assert_close(b, a)
        seen += 1
    assert seen > 10

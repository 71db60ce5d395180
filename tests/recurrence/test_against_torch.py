"""rnn, lstm and gru give what torch.nn's modules give: outputs, states and every gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.recurrence.modules import CELLS, OURS, flat, in_numpy, module_of, params_of, settings_of, states_of

SETTINGS: list[dict[str, Any]] = [
    {},
    {"bidirectional": True},
    {"num_layers": 3, "bidirectional": True, "batch_first": True},
    {"num_layers": 2, "bias": False},
    {"batch_first": True},
]
BACKENDS = ["numba", "reference", "torch"]


def compare(module: Any, x: torch.Tensor, states: Any, backend: str | None, **arguments: Any) -> None:
    """Outputs, states, and gradients of x, states and parameters for random cotangents."""
    leaves = [x, *(states if isinstance(states, tuple) else [states] if states is not None else [])]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    expected = flat(module(x, states))
    found = flat(OURS[module.mode.split("_")[0].lower()](
        x, params_of(module), states, backend=backend, **settings_of(module), **arguments
    ))  # fmt: skip
    check(expected, found, [*leaves, *module.parameters()])


def check(expected: Any, found: Any, leaves: list[torch.Tensor]) -> None:
    """Equal results, and equal gradients for the same cotangents."""
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12)
    torch.manual_seed(4)
    incoming = [torch.randn_like(a) for a in expected]
    first = torch.autograd.grad(expected, leaves, incoming, allow_unused=True)
    second = torch.autograd.grad(found, leaves, incoming, allow_unused=True)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_layers_and_directions(cell: str, settings: dict[str, Any], backend: str):
    module = module_of(cell, 5, 7, **settings)
    shape = (3, 4, 5) if module.batch_first else (4, 3, 5)
    compare(module, torch.randn(shape, dtype=torch.float64), states_of(module, 3), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_relu(backend: str):
    module = module_of("rnn", 5, 7, nonlinearity="relu", num_layers=2)
    compare(module, torch.randn(4, 3, 5, dtype=torch.float64), states_of(module, 3), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_projection(bidirectional: bool, backend: str):
    module = module_of("lstm", 5, 7, proj_size=3, num_layers=2, bidirectional=bidirectional)
    states = states_of(module, 3)
    assert states[0].shape[-1] == 3 and states[1].shape[-1] == 7
    compare(module, torch.randn(4, 3, 5, dtype=torch.float64), states, backend)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_one_sequence_without_batch(cell: str, batch_first: bool):
    module = module_of(cell, 5, 7, num_layers=2, bidirectional=True, batch_first=batch_first)
    compare(module, torch.randn(4, 5, dtype=torch.float64), states_of(module, None), None)


@pytest.mark.parametrize("cell", CELLS)
def test_states_are_zero_by_default(cell: str):
    module = module_of(cell, 5, 7)
    compare(module, torch.randn(4, 3, 5, dtype=torch.float64), None, None)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_lengths_are_packed_sequences(cell: str, bidirectional: bool, backend: str):
    lengths = torch.tensor([2, 5, 1, 4, 5])
    module = module_of(cell, 5, 7, num_layers=2, bidirectional=bidirectional, batch_first=True)
    x = torch.randn(5, 5, 5, dtype=torch.float64, requires_grad=True)
    states = states_of(module, 5)
    leaves = [s.requires_grad_() for s in (states if isinstance(states, tuple) else [states])]
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    output, ends = module(packed, states)
    expected = flat((pad_packed_sequence(output, batch_first=True)[0], ends))
    found = flat(OURS[cell](x, params_of(module), states, lengths=lengths, backend=backend, **settings_of(module)))
    check(expected, found, [x, *leaves, *module.parameters()])


@pytest.mark.parametrize("cell", CELLS)
def test_float32_is_within_torchs_error(cell: str):
    """Twice torch's own error and a few units in the last place, over a hundred steps."""
    module = module_of(cell, 64, 64, torch.float32)
    x = torch.randn(100, 8, 64)
    theirs, ours = module(x)[0], OURS[cell](x, params_of(module))[0]
    exact = module.double()(x.double())[0]
    allowed = 2 * (theirs - exact).abs().max() + 4 * torch.finfo(torch.float32).eps
    assert (ours - exact).abs().max() <= allowed


@pytest.mark.parametrize("cell", CELLS)
def test_numpy_arrays(cell: str):
    module = module_of(cell, 5, 7, num_layers=2, bidirectional=True)
    x, states = torch.randn(4, 3, 5, dtype=torch.float64), states_of(module, 3)
    given = tuple(s.numpy() for s in states) if isinstance(states, tuple) else states.numpy()
    found = flat(OURS[cell](x.numpy(), in_numpy(params_of(module)), given, **settings_of(module)))
    for a, b in zip(flat(module(x, states)), found, strict=True):
        assert isinstance(b, np.ndarray)
        np.testing.assert_allclose(b, a.detach().numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_last_step_alone(cell: str, backend: str, batch_first: bool, bidirectional: bool):
    """The same bits as the full output's last step, with and without gradients, and the same gradients."""
    module = module_of(cell, 5, 7, num_layers=2, batch_first=batch_first, bidirectional=bidirectional)
    shape = (3, 4, 5) if batch_first else (4, 3, 5)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    call = lambda **more: OURS[cell](x, params_of(module), backend=backend, **settings_of(module), **more)  # noqa: E731
    full, last = flat(call()), flat(call(return_last=True))
    expected = (full[0][:, -1] if batch_first else full[0][-1], *full[1:])
    check(expected, last, [x, *module.parameters()])
    with torch.no_grad():
        for a, b in zip(last, flat(call(return_last=True)), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("cell", CELLS)
def test_layouts_and_aliases(cell: str):
    """Transposed weights (as from Keras), strided and expanded x, one weight for both directions."""
    module = module_of(cell, 6, 6, bidirectional=True)
    forward = params_of(module)[0]
    shared = [forward, forward]
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    expected = OURS[cell](x, shared, bidirectional=True)[0]
    turned = tuple(p.detach().t().contiguous().t() if p.ndim == 2 else p for p in forward)
    torch.testing.assert_close(OURS[cell](x, [turned, turned], bidirectional=True)[0], expected, rtol=0, atol=0)
    wide = torch.full((8, 3, 12), torch.nan, dtype=torch.float64)
    wide[::2, :, ::2] = x
    torch.testing.assert_close(OURS[cell](wide[::2, :, ::2], shared, bidirectional=True)[0], expected, rtol=0, atol=0)
    repeated = x[:, :1].expand(4, 3, 6)
    found = OURS[cell](repeated, shared, bidirectional=True)[0]
    torch.testing.assert_close(found, OURS[cell](repeated.contiguous(), shared, bidirectional=True)[0], rtol=0, atol=0)
    # The gradient of a weight that both directions share is the sum of the two.
    (both,) = torch.autograd.grad(OURS[cell](x, shared, bidirectional=True)[0].sum(), [forward[1]])
    copies = [tuple(p.detach().clone().requires_grad_() for p in forward) for _ in (0, 1)]
    apart = torch.autograd.grad(OURS[cell](x, copies, bidirectional=True)[0].sum(), [copies[0][1], copies[1][1]])
    torch.testing.assert_close(both, apart[0] + apart[1])

"""Lengths, steps, segments, permutations, threads: the same numbers whichever way a sequence is walked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels.arrays import ArraySpec
from kernels.op import OPS
from kernels.recurrence import gradients_cpu, numba_cpu, sequence
from kernels.recurrence.forward import Sizes, in_memory
from kernels.recurrence.panels import DOUBLE_ROWS, LARGE_ROWS, MEDIUM_ROWS, RUN_TAPS
from tests.recurrence.modules import CELLS, OURS, flat, random_params

LENGTHS = np.array([3, 0, 6, 1, 4, 6], np.int64)
Array = np.ndarray[Any, Any]


def states_for(cell: str, count: int, batch: int, units: int, dtype: str = "float32") -> Any:
    rng = np.random.default_rng(8)
    h, c = rng.standard_normal((2, count, batch, units)).astype(dtype)
    return (h, c) if cell == "lstm" else h


def same(first: Any, second: Any) -> None:
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def inputs(steps: int, batch: int, features: int, dtype: str = "float32") -> Array:
    return np.random.default_rng(1).standard_normal((steps, batch, features)).astype(dtype)


def with_gradients(cell: str, x: Array, params: Any, states: Any, **arguments: Any) -> list[Array]:
    """Results, and gradients of x, states and parameters for fixed cotangents, as arrays."""
    x_leaf = torch.from_numpy(x.copy()).requires_grad_()
    leaves = [torch.from_numpy(a).clone().requires_grad_() for a in (states if cell == "lstm" else [states])]
    weights = [[torch.from_numpy(a).clone().requires_grad_() for a in one] for one in params]
    given = tuple(leaves) if cell == "lstm" else leaves[0]
    found = flat(OURS[cell](x_leaf, [tuple(w) for w in weights], given, **arguments))
    rng = np.random.default_rng(2)
    incoming = [torch.from_numpy(rng.standard_normal(r.shape).astype(x.dtype)) for r in found]
    every = [x_leaf, *leaves, *(w for one in weights for w in one)]
    gradients = torch.autograd.grad(found, every, incoming)
    return [a.detach().numpy() for a in (*found, *gradients)]


# ----- lengths -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numba", "reference", "torch"])
@pytest.mark.parametrize("cell", CELLS)
def test_padding_is_never_read(cell: str, backend: str):
    """NaN and infinities past the end change no bit of results and gradients, incoming gradients there included."""
    x = inputs(6, 6, 5)
    params = random_params(cell, 5, 7, layers=2, directions=2)
    states = states_for(cell, 4, 6, 7)
    settings: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "lengths": torch.from_numpy(LENGTHS)}
    clean = with_gradients(cell, x, params, states, backend=backend, **settings)
    past = np.arange(6)[:, None] >= LENGTHS
    dirty = x.copy()
    dirty[past] = np.nan
    dirty[5, 1] = np.inf
    same(clean, with_gradients(cell, dirty, params, states, backend=backend, **settings))
    assert all(np.isfinite(a).all() for a in clean)
    output, gradient_of_x = clean[0], clean[2 + (cell == "lstm")]
    assert not output[past].any() and not gradient_of_x[past].any()
    # What flows in there is not looked at either.
    x_leaf = torch.from_numpy(x.copy()).requires_grad_()
    (out, *_) = flat(
        OURS[cell](x_leaf, [tuple(map(torch.from_numpy, one)) for one in params], backend=backend, **settings)
    )
    incoming = torch.ones_like(out)
    (expected,) = torch.autograd.grad(out, x_leaf, incoming, retain_graph=True)
    incoming[torch.from_numpy(past)] = torch.nan
    same([expected], torch.autograd.grad(out, x_leaf, incoming))


@pytest.mark.parametrize("cell", CELLS)
def test_each_row_is_a_sequence_of_its_own(cell: str):
    """Bit for bit, the reverse direction's start and the final states included; length 0 keeps the initial states."""
    x, params = inputs(6, 6, 5), random_params(cell, 5, 7, directions=2)
    states = states_for(cell, 2, 6, 7)
    output, *ends = flat(OURS[cell](x, params, states, bidirectional=True, lengths=LENGTHS))
    for row, length in enumerate(LENGTHS):
        own = tuple(s[:, row : row + 1] for s in states) if cell == "lstm" else states[:, row : row + 1]
        assert not output[length:, row].any()
        if length == 0:
            same([end[:, row] for end in ends], [s[:, 0] for s in (own if cell == "lstm" else [own])])
            continue
        alone, *own_ends = flat(OURS[cell](x[:length, row : row + 1], params, own, bidirectional=True))
        np.testing.assert_array_equal(output[:length, row], alone[:, 0])
        same([end[:, row] for end in ends], [end[:, 0] for end in own_ends])


@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("units", [5, 37])
@pytest.mark.parametrize("cell", CELLS)
def test_a_permuted_batch_gives_permuted_results(cell: str, units: int, with_lengths: bool):
    """Bit for bit, whichever tile a row falls into: of whole panels, or of a part of one."""
    batch = DOUBLE_ROWS + MEDIUM_ROWS + 1
    x, params = inputs(5, batch, 5), random_params(cell, 5, units)
    lengths = np.random.default_rng(0).integers(0, 6, batch) if with_lengths else None
    expected = flat(OURS[cell](x, params, lengths=lengths))
    order = np.random.default_rng(3).permutation(batch)
    found = flat(OURS[cell](x[:, order], params, lengths=None if lengths is None else lengths[order]))
    same(found, [r[:, order] for r in expected])


@pytest.mark.parametrize("cell", CELLS)
def test_lengths_of_every_kind_of_array(cell: str):
    x, params = inputs(6, 6, 5), random_params(cell, 5, 7)
    expected = flat(OURS[cell](x, params, lengths=LENGTHS))
    for lengths in (LENGTHS.astype(np.int32), LENGTHS.tolist(), tuple(LENGTHS), LENGTHS[::-1].copy()[::-1]):
        same(flat(OURS[cell](x, params, lengths=lengths)), expected)
    tensors = [tuple(map(torch.from_numpy, one)) for one in params]
    same(flat(OURS[cell](torch.from_numpy(x), tensors, lengths=LENGTHS.tolist())), map(torch.from_numpy, expected))


def test_all_rows_of_full_length_are_no_lengths():
    x, params = inputs(6, 4, 5), random_params("lstm", 5, 7)
    same(flat(kernels.lstm(x, params, lengths=[6] * 4)), flat(kernels.lstm(x, params)))


def problem(cell: str, steps: int, batch: int, lengths: bool) -> Any:
    """A checked problem of 5 inputs and 7 units."""
    rows = {"rnn": 1, "lstm": 4, "gru": 3}[cell] * 7
    specs: dict[str, ArraySpec | None] = dict.fromkeys(OPS[f"{cell}_layer"].inputs)
    specs |= {"x": ArraySpec((steps, batch, 5), "float32"), "w_ih": ArraySpec((rows, 5), "float32")}
    specs["w_hh"] = ArraySpec((rows, 7), "float32")
    if lengths:
        specs["lengths"] = ArraySpec((batch,), "int64")
    extra = {"rnn": ["tanh"], "gru": [True], "lstm": []}[cell]
    return OPS[f"{cell}_layer"].problem.check(*specs.values(), False, False, *extra)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_the_walk_takes_the_sum_of_the_lengths(threads: int):
    way = sequence.walk(problem("lstm", 6, 6, True), LENGTHS, threads)
    assert way.total == LENGTHS.sum() == way.counts.sum()
    assert way.steps == 6 and way.counts.tolist() == [int((LENGTHS > t).sum()) for t in range(6)]
    assert way.ends.tolist() == sorted(LENGTHS, reverse=True) == LENGTHS[way.order].tolist()
    assert way.starts.tolist() == [0, *way.counts.cumsum()[:-1]]
    # Parts cover the rows once, in order, none with much more than its share.
    assert way.bounds[0] == 0 and way.bounds[-1] == 6 and (np.diff(way.bounds) >= 0).all()
    shares = [way.ends[a:b].sum() for a, b in zip(way.bounds, way.bounds[1:])]
    assert max(shares) <= way.total / way.row_parts + 6
    plain = sequence.walk(problem("lstm", 6, 6, False), None, threads)
    assert plain.total == 36 and plain.counts.tolist() == [6] * 6 and plain.order.tolist() == list(range(6))


# ----- steps and segments ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "batch, inputs_, units", [(1, 4, 5), (5, RUN_TAPS + 3, 21), (LARGE_ROWS + 1, 30, RUN_TAPS + 9)]
)
@pytest.mark.parametrize("cell", CELLS)
def test_steps_are_the_sequence(cell: str, batch: int, inputs_: int, units: int, dtype: str):
    """T cells have the bits of a sequence of T."""
    x, params = inputs(4, batch, inputs_, dtype), random_params(cell, inputs_, units, dtype=dtype)
    states = states_for(cell, 1, batch, units, dtype)
    expected = flat(OURS[cell](x, params, states))
    step = {"rnn": kernels.rnn_cell, "lstm": kernels.lstm_cell, "gru": kernels.gru_cell}[cell]
    state = tuple(s[0] for s in states) if cell == "lstm" else states[0]
    for t in range(4):
        state = step(x[t], state, *params[0])
        np.testing.assert_array_equal(state[0] if cell == "lstm" else state, expected[0][t])
    same(state if cell == "lstm" else [state], [end[0] for end in expected[1:]])
    # One row without a batch.
    alone = step(x[0, 0], None, *params[0])
    batched = step(x[0, :1], None, *params[0])
    same(alone if cell == "lstm" else [alone], [b[0] for b in (batched if cell == "lstm" else [batched])])


@pytest.mark.parametrize("cell, extra", [("rnn", {"nonlinearity": "relu"}), ("gru", {"reset_after": False})])
def test_steps_of_the_other_kinds(cell: str, extra: dict[str, Any]):
    x, params = inputs(3, 4, 6), random_params(cell, 6, 9)
    expected = OURS[cell](x, params, **extra)[0]
    step, state = {"rnn": kernels.rnn_cell, "gru": kernels.gru_cell}[cell], None
    for t in range(3):
        state = step(x[t], state, *params[0], **extra)
        np.testing.assert_array_equal(state, expected[t])


def test_projected_steps():
    x, params = inputs(3, 4, 6), random_params("lstm", 6, 9, projection=5)
    expected, (h_n, c_n) = kernels.lstm(x, params, proj_size=5)
    state = None
    for t in range(3):
        state = kernels.lstm_cell(x[t], state, *params[0])
        np.testing.assert_array_equal(state[0], expected[t])
    same(state, [h_n[0], c_n[0]])


@pytest.mark.parametrize("cell", CELLS)
def test_segments_are_the_whole(cell: str):
    """A run cut in two, states handed on, has the bits of the whole, whatever the segments' sizes do to its blocks."""
    x, params = inputs(50, 5, 6), random_params(cell, 6, 20)
    expected = flat(OURS[cell](x, params))
    for cut in (1, 7, 26):
        first, *ends = flat(OURS[cell](x[:cut], params))
        second, *ends = flat(OURS[cell](x[cut:], params, tuple(ends) if cell == "lstm" else ends[0]))
        same([np.concatenate([first, second]), *ends], expected)


@pytest.mark.parametrize("cell", CELLS)
def test_many_rows_and_steps(cell: str):
    """More rows than a block and than a chunk of input products: each row still has its own bits."""
    for steps, batch in ((3, 200), (70, 3)):
        x, params = inputs(steps, batch, 4), random_params(cell, 4, 5)
        expected = OURS[cell](x, params)[0]
        for row in (0, batch // 2, batch - 1):
            np.testing.assert_array_equal(OURS[cell](x[:, row : row + 1], params)[0][:, 0], expected[:, row])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_threads_change_no_bit(cell: str, bidirectional: bool, monkeypatch: pytest.MonkeyPatch):
    """Forward and backward on 1, 2 and 3 threads; the batch is large enough that they are used."""
    lengths = np.random.default_rng(0).integers(0, 9, 23)
    x = inputs(8, 23, 5)
    params = random_params(cell, 5, 19, directions=1 + bidirectional)
    states = states_for(cell, 1 + bidirectional, 23, 19)
    for given in (None, torch.from_numpy(lengths)):
        found = []
        for threads in (1, 2, 3):
            for module in (numba_cpu, gradients_cpu):
                monkeypatch.setattr(module, "threads_for", lambda work, grain, threads=threads: threads)
            found.append(with_gradients(cell, x, params, states, bidirectional=bidirectional, lengths=given))
        same(found[0], found[1])
        same(found[0], found[2])


def test_sizes_of_all_calls_have_one_type():
    """Numba knows the type of a structured array by its dtype object, and compares equal ones field by field."""
    forms = [in_memory(Sizes(*[n] * len(Sizes._fields))) for n in (1, 2)]
    assert forms[0].dtype is forms[1].dtype and forms[1]["work"] == 2


# ----- gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [None, [40, 3, 0, 17, 40, 29, 1, 12, 33]])
@pytest.mark.parametrize(
    "cell, bidirectional, extra",
    [
        ("rnn", False, {"nonlinearity": "relu"}),
        ("gru", True, {}),
        ("gru", False, {"reset_after": False}),
        ("lstm", True, {}),
        ("lstm", True, {"proj_size": 7}),
    ],
)
def test_groups_of_steps(
    cell: str, bidirectional: bool, extra: dict[str, Any], lengths: Any, monkeypatch: pytest.MonkeyPatch
):
    """Backward in several groups of steps has the gradients of one, and the same bits on any number of threads.

    Two blocks of rows: as many threads take a block each; more take the products in pieces, group by group.
    """
    size = extra.get("proj_size", 0)
    x, directions = inputs(40, 9, 5, "float64"), 1 + bidirectional
    params = random_params(cell, 5, 19, directions=directions, projection=size, dtype="float64")
    states = states_for(cell, directions, 9, 19, "float64")
    if size:
        states = (states[0][..., :size], states[1])
    layer = OPS[f"{cell}_layer"]
    calls: list[Any] = []

    def record(name: str) -> None:
        run = getattr(gradients_cpu, name)

        def counted(parts: int, threads: int, *rest: Any) -> None:
            calls.append((name, parts, *(rest[:2] if name == "run_steps" else ())))
            run(parts, threads, *rest)

        monkeypatch.setattr(gradients_cpu, name, counted)

    record("run_blocks")
    record("run_steps")
    found = []
    for group_bytes, threads in ((1 << 30, 1), (1, 1), (1, 2), (1, 3), (1, 5)):
        # At least RUN_TAPS rows: 25 steps of a block's 5 rows, of more where lengths make the blocks uneven.
        monkeypatch.setattr(gradients_cpu, "GROUP_BYTES", group_bytes)
        for module in (numba_cpu, gradients_cpu):
            monkeypatch.setattr(module, "threads_for", lambda work, grain, threads=threads: threads)
        layer.plans.clear()
        calls.clear()
        found.append(with_gradients(cell, x, params, states, bidirectional=bidirectional, lengths=lengths, **extra))
        if threads <= 2:
            assert calls == [("run_blocks", 2)]
        else:
            assert {call[:2] for call in calls} == {("run_steps", 2 * directions)} and len(calls) >= 2
            assert [call[2] for call in calls] == [0, *(call[3] for call in calls[:-1])] and calls[-1][3] == 40
    layer.plans.clear()
    for one, several in zip(found[0], found[1], strict=True):
        np.testing.assert_allclose(several, one, rtol=1e-12, atol=1e-12)
    for others in found[2:]:
        same(found[1], others)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_block_whose_rows_end_before_the_first_group(bidirectional: bool):
    """One long row is half of the work: the other block has rows of one step, and nothing in the other groups."""
    x, directions = inputs(300, 32, 5, "float64"), 1 + bidirectional
    lengths = torch.tensor([1] * 20 + [300] + [1] * 11)
    params = random_params("lstm", 5, 19, directions=directions, dtype="float64")
    states = states_for("lstm", directions, 32, 19, "float64")
    settings: dict[str, Any] = {"lengths": lengths, "bidirectional": bidirectional}
    found = with_gradients("lstm", x, params, states, backend="numba", **settings)
    for ours, exact in zip(found, with_gradients("lstm", x, params, states, backend="reference", **settings)):
        np.testing.assert_allclose(ours, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("which", ["output", "h_n", "c_n"])
@pytest.mark.parametrize("cell", CELLS)
def test_each_result_alone_can_be_differentiated(cell: str, which: str):
    """One result's gradient without the others, twice, in eval and by the reference's numbers."""
    index = {"output": 0, "h_n": 1, "c_n": 2}[which]
    if index == 2 and cell != "lstm":
        pytest.skip("only the LSTM has a cell")
    params = [tuple(torch.from_numpy(a).requires_grad_() for a in random_params(cell, 5, 7, dtype="float64")[0])]
    x = torch.from_numpy(inputs(4, 3, 5, "float64")).requires_grad_()
    states = states_for(cell, 1, 3, 7, "float64")
    leaves = [torch.from_numpy(s).requires_grad_() for s in (states if cell == "lstm" else [states])]
    given = tuple(leaves) if cell == "lstm" else leaves[0]
    every = [x, *leaves, *params[0]]
    gradients = []
    for backend in ("numba", "reference", "torch"):
        result = flat(OURS[cell](x, params, given, backend=backend))[index]
        first = torch.autograd.grad(result.sum(), every, retain_graph=True)
        again = torch.autograd.grad(result.sum(), every)
        for a, b in zip(first, again):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        gradients.append(first)
    for found in gradients[1:]:
        for a, b in zip(found, gradients[0]):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("wanted", [("x",), ("h0",), ("w_hh",), ("b_hh",), ("w_ih_reverse", "lengths")])
@pytest.mark.parametrize("cell", CELLS)
def test_only_the_wanted_gradients_are_made(cell: str, wanted: tuple[str, ...]):
    forward, reverse = random_params(cell, 5, 7, directions=2)
    rng = np.random.default_rng(0)
    arguments: dict[str, Any] = {"x": inputs(4, 3, 5), "h0": rng.standard_normal((2, 3, 7)).astype(np.float32)}
    for suffix, one in (("", forward), ("_reverse", reverse)):
        arguments |= {f"{n}{suffix}": a for n, a in zip(("w_ih", "w_hh", "b_ih", "b_hh"), one)}
    tensors = {n: torch.from_numpy(a).requires_grad_(n in wanted) for n, a in arguments.items()}
    if "lengths" in wanted:
        tensors["lengths"] = torch.tensor([4, 2, 3])
    layer = getattr(kernels, f"{cell}_layer")
    leaves = [t for t in tensors.values() if t.requires_grad]
    first = torch.autograd.grad(layer(**tensors)[0].sum(), leaves)
    for t in tensors.values():
        if t.is_floating_point():
            t.requires_grad_()
    second = torch.autograd.grad(layer(**tensors)[0].sum(), leaves)
    for a, b in zip(first, second):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


# ----- awkward numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("cell", CELLS)
def test_saturated_gates_stay_finite(cell: str, backend: str):
    params = random_params(cell, 3, 4)
    for scale in (1e4, -1e4, 1e30, 0.0, -0.0):
        x = np.full((5, 2, 3), scale, np.float32)
        found = with_gradients(cell, x, params, states_for(cell, 1, 2, 4), backend=backend)
        assert all(np.isfinite(a).all() for a in found[: 2 + (cell == "lstm")])
        assert np.abs(found[0]).max() <= (1 if cell != "gru" else 3)


@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_in_its_row(cell: str):
    x, params = inputs(4, 8, 3), random_params(cell, 3, 4)
    expected = OURS[cell](x, params)[0]
    x[1, 3] = np.nan
    found = OURS[cell](x, params)[0]
    rest = [row for row in range(8) if row != 3]
    np.testing.assert_array_equal(found[:, rest], expected[:, rest])
    assert np.isnan(found[1:, 3]).all() and not np.isnan(found[0]).any()


@pytest.mark.parametrize("cell", CELLS)
def test_an_empty_batch_has_zero_gradients(cell: str):
    params = [tuple(torch.from_numpy(a).requires_grad_() for a in random_params(cell, 3, 4)[0])]
    x = torch.zeros(5, 0, 3, requires_grad=True)
    output, *ends = flat(OURS[cell](x, params))
    assert output.shape == (5, 0, 4) and all(end.shape == (1, 0, 4) for end in ends)
    output.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
    assert all(p.grad is not None and not p.grad.any() for p in params[0])

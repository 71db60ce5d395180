"""The recurrent layers in Triton, executed on the CPU: bounds, races and barriers watched, programs in random order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels.case import Case
from kernels.recurrence.gpu_tiles import PATHS, RecurrenceTile, path_of, recurrence_tile, use_recurrence_tile
from kernels.recurrence.op import GRU_LAYER, LSTM_LAYER, RNN_LAYER
from kernels.recurrence.plan_gpu import KINDS, gradient_blocks, has_second_product, kind_of, recurrent_bytes
from kernels.runtime.targets import TARGETS
from tests.support import layouts, matrix, oracle
from tests.support.triton_interpreter import KernelFault, on_cpu
from tests.support.triton_memory import Watch
from tests.triton_on_cpu import helpers
from tests.triton_on_cpu.helpers import report

OPS = ("rnn_layer", "lstm_layer", "gru_layer")
H100 = TARGETS["sm_90"]
CASES = helpers.small_cases(*OPS)
ORDINARY = tuple(c for op in OPS for c in matrix.cases_of(op, "ci"))
ORDINARY_CASES = matrix.case_parameters(ORDINARY)
STEPWISE = RecurrenceTile("stepwise", 16, 32, 32, 4, 2)


@contextmanager
def torch_set_to(precision: str) -> Iterator[None]:
    """torch's own setting for float32 products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def named(op: str, name: str) -> Case:
    (case,) = [c for c in matrix.cases_of(op) if c.name == name]
    return case


# ----- every case --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_cases(case: Case):
    with on_cpu():
        report(helpers.complaints(case, "float32"))


@pytest.mark.parametrize("case", ORDINARY_CASES)
def test_cases_in_float64(case: Case):
    with on_cpu():
        report(helpers.complaints(case, "float64"))


@pytest.mark.parametrize("dtype", helpers.HALVES, ids=str)
@pytest.mark.parametrize("case", ORDINARY_CASES)
def test_cases_in_half_precision(case: Case, dtype: torch.dtype):
    """Weights held, but for projections."""
    with on_cpu() as launched:
        report(helpers.tensor_complaints(case, dtype))
    assert ("held_forward" in launched) == ("projection" not in case.name)


@pytest.mark.parametrize("case", ORDINARY_CASES)
def test_cases_step_by_step(case: Case):
    with on_cpu() as launched, use_recurrence_tile(STEPWISE):
        report(helpers.complaints(case, "float32"))
    assert set(launched) == {"forward_step", "backward_step"}


# ----- precision ---------------------------------------------------------------------------------------------------


def errors(case: Case, path: str) -> list[float]:
    """Largest error of each result and gradient, relative to its largest number."""
    expected = oracle.expect_case(case, "float32")
    with on_cpu() as launched:
        found = oracle.with_autograd(case.op, expected.arguments, expected.incoming, "triton")
    assert launched == (
        ["held_forward", "held_backward"] if path == "held" else ["forward_sequence", "backward_sequence"]
    )
    pairs = list(zip(found.results, expected.exact.results, strict=True))
    pairs += [(found.gradients[n], e) for n, e in expected.exact.gradients.items()]
    return [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs]


@pytest.mark.parametrize("op", OPS)
def test_float32_is_multiplied_as_torch_is_set(op: str):
    case = named(op, "plain")
    with torch_set_to("highest"):
        assert max(errors(case, "held")) < 4e-6  # on tensor cores too: three products of tf32
    with torch_set_to("high"):
        found = errors(case, "held")
    # Factors of the recurrent products are rounded to 11 bits.
    assert 2e-5 < max(found) < 4e-3


# ----- what a program hands on to itself -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op, name", [("rnn_layer", "plain"), ("lstm_layer", "projection"), ("gru_layer", "reset before")]
)
def test_steps_need_their_barriers(op: str, name: str, monkeypatch: pytest.MonkeyPatch):
    """Without them one thread would read what another one has yet to store, which no interpreter shows by itself."""
    monkeypatch.setattr(Watch, "barrier", lambda self: None)
    arguments = matrix.as_tensors(named(op, name).build("float32"))
    with (
        on_cpu(TARGETS["sm_80"]),  # where float32's weights are streamed
        pytest.raises(KernelFault, match=r"loads what it stored of .*, with no barrier between"),
    ):
        matrix.public(op)(**arguments, backend="triton")


@pytest.mark.parametrize("op", OPS)
def test_held_weights_need_none(op: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Watch, "barrier", lambda self: None)
    with on_cpu():
        report(helpers.tensor_complaints(named(op, "lengths, both directions, batch first"), torch.float16))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("op", OPS)
def test_results_do_not_depend_on_the_order_of_the_programs(op: str, path: str):
    case = named(op, "lengths, both directions, batch first")
    with use_recurrence_tile(RecurrenceTile(path, 16, 16, 16, 4, 1)):
        helpers.check_order(case)


# ----- padding, layouts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("op", OPS)
def test_padding_is_never_read(op: str, path: str):
    """NaN past the lengths, in x and in the incoming gradient, changes no bit."""
    case = named(op, "lengths, both directions, batch first")
    arguments = case.build("float32")
    lengths = arguments["lengths"]
    past = np.arange(arguments["x"].shape[1])[None] >= lengths[:, None]
    incoming = oracle.expect_case(case, "float32").incoming
    answers = []
    for filler in (0.0, np.nan):
        x, grad = arguments["x"].copy(), incoming[0].copy()
        x[past] = filler
        grad[past] = filler
        with on_cpu(), use_recurrence_tile(RecurrenceTile(path, 16, 16, 16, 4, 1)):
            given = arguments | {"x": x}
            found = oracle.with_autograd(op, given, (grad, *incoming[1:]), "triton")
        assert not found.gradients["x"][past].any()
        answers.append((*found.results, *found.gradients.values()))
    for a, b in zip(*answers, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("layout", layouts.TORCH_LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_any_layout(op: str, layout: str):
    helpers.check_layout(named(op, "both directions"), layout)


@pytest.mark.parametrize("op", OPS)
def test_gradients_that_do_not_flow(op: str):
    """Only the output's, only the final states', and of one input alone."""
    arguments = named(op, "lengths").build("float64")
    tensors = matrix.as_tensors(arguments, op, requires_grad=("w_hh", "h0"))
    wanted = [tensors["w_hh"], tensors["h0"]]
    for pick in (0, 1, -1):
        found = []
        for backend in ("triton", "reference"):
            with on_cpu() if backend == "triton" else nullcontext():
                results = matrix.public(op)(**tensors, backend=backend)
                found.append(torch.autograd.grad(results[pick].square().sum(), wanted))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


# ----- cells and stacks ----------------------------------------------------------------------------------------------


def params(gates: int, inputs: int, units: int, layers: int, directions: int) -> list[tuple[Any, ...]]:
    rng = np.random.default_rng(3)
    found = []
    for i in range(layers * directions):
        width = inputs if i < directions else units * directions
        shapes = ((gates * units, width), (gates * units, units), (gates * units,), (gates * units,))
        found.append(tuple(0.3 * rng.standard_normal(s).astype(np.float32) for s in shapes))
    return found


def test_a_stack_of_layers():
    x = helpers.numbers(7, 3, 5)
    given = {"num_layers": 2, "bidirectional": True, "lengths": [7, 2, 5]}
    with on_cpu() as launched:
        found, h_n = kernels.gru(x, params(3, 5, 6, 2, 2), **given, backend="triton")
    expected, h_expected = kernels.gru(x, params(3, 5, 6, 2, 2), **given, backend="reference")
    assert launched == ["held_forward"] * 2
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(h_n, h_expected, rtol=0, atol=1e-6)


def test_single_steps_are_the_steps_of_a_sequence():
    x, (w,) = helpers.numbers(3, 4, 5), params(4, 5, 6, 1, 1)
    with on_cpu():
        output, (h_n, c_n) = kernels.lstm(x, [w], backend="triton")
        h = c = None
        for t in range(3):
            h, c = kernels.lstm_cell(x[t], None if h is None else (h, c), *w, backend="triton")
            np.testing.assert_array_equal(h, output[t])
    np.testing.assert_array_equal(h, h_n[0])
    np.testing.assert_array_equal(c, c_n[0])


# ----- the ways and their tiles ---------------------------------------------------------------------------------------


def problem(
    cell: str, units: int, dtype: str = "float16", batch: int = 40, projection: int = 0, reset_after: bool = True
) -> Any:
    """A layer of 5 inputs."""
    gates = {"rnn": 1, "lstm": 4, "gru": 3}[cell]
    kind = getattr(torch, dtype)
    made = {"x": (3, batch, 5), "w_ih": (gates * units, 5), "w_hh": (gates * units, projection or units)}
    if projection:
        made["w_hr"] = (projection, units)
    tensors = {name: torch.empty(shape, dtype=kind) for name, shape in made.items()}
    more = {"reset_after": reset_after} if cell == "gru" else {}
    return kernels.explain(f"{cell}_layer", **tensors, **more, backend="torch").problem


def test_kinds_and_where_their_gradients_lie():
    found = {
        kind_of(p): (gradient_blocks(p), has_second_product(p))
        for p in (
            problem("rnn", 6), problem("lstm", 6), problem("gru", 6), problem("gru", 6, reset_after=False),
        )
    }  # fmt: skip
    assert found == {
        "rnn_tanh": ((1, 0, 1), False),
        "lstm": ((4, 0, 4), False),
        "gru_after": ((4, 1, 3), False),
        "gru_before": ((3, 0, 3), True),
    }
    assert set(found) < set(KINDS)
    assert has_second_product(problem("lstm", 6, projection=2))
    assert recurrent_bytes(problem("lstm", 6, projection=2)) == 2 * (4 * 6 * 2 + 2 * 6)


@pytest.mark.parametrize(
    "cell, units, dtype, tensor_cores, target, expected",
    [
        ("lstm", 64, "float16", True, "sm_90", "held"),
        ("lstm", 128, "bfloat16", True, "sm_90", "held"),
        ("lstm", 128, "bfloat16", True, "sm_89", "streamed"),  # 128 KiB are more than a block has there
        ("lstm", 129, "bfloat16", True, "sm_90", "streamed"),
        ("lstm", 256, "bfloat16", True, "sm_90", "streamed"),
        ("lstm", 257, "bfloat16", True, "sm_90", "stepwise"),
        ("gru", 65, "float16", True, "gfx942", "streamed"),
        ("rnn", 256, "bfloat16", True, "sm_80", "held"),
        ("lstm", 64, "float32", True, "sm_90", "held"),  # as tf32
        ("lstm", 64, "float32", False, "sm_90", "streamed"),
        ("lstm", 200, "float32", False, "sm_90", "stepwise"),
        ("gru", 64, "float64", False, "sm_90", "streamed"),
    ],
)
def test_the_way_through_the_steps(
    cell: str, units: int, dtype: str, tensor_cores: bool, target: str, expected: str
):  # fmt: skip
    assert path_of(problem(cell, units, dtype), TARGETS[target], tensor_cores=tensor_cores) == expected


def test_projections_are_not_held():
    assert path_of(problem("lstm", 64, projection=32), H100, tensor_cores=True) == "streamed"


def all_tiles() -> list[RecurrenceTile]:
    """Every tile that the function gives, one of those that differ in warps, stages and registers alone."""
    found = {}
    for cell, projection in (("rnn", 0), ("lstm", 0), ("gru", 0), ("lstm", 7)):
        for units in (3, 20, 50, 100, 250, 500, 900):
            for dtype, cores in (("float16", True), ("float32", True), ("float32", False), ("float64", False)):
                for batch in (3, 20, 500):
                    p = problem(cell, units, dtype, batch, projection)
                    for target in TARGETS.values():
                        for backward in (False, True):
                            t = recurrence_tile(p, target, tensor_cores=cores, backward=backward)
                            found[(t.path, t.rows, t.units, t.inner)] = t
    return [found[key] for key in sorted(found)]


ALL_TILES = all_tiles()


def test_tiles_are_what_the_hardware_takes():
    for t in ALL_TILES:
        assert t.path in PATHS
        for size in (t.rows, t.units, t.inner):
            assert size >= 16 and size & (size - 1) == 0
        assert t.warps in (1, 2, 4, 8, 16, 32) and 1 <= t.stages <= 3
        assert t.registers is None or t.registers * t.warps * 32 <= 65536


@pytest.mark.parametrize("tile", ALL_TILES, ids=lambda t: f"{t.path}-{t.rows}x{t.units}x{t.inner}")
def test_every_tile(tile: RecurrenceTile):
    """A few rows and units more than a tile has, in the cell with two products and, where it may be, the projection."""
    held = tile.path == "held"
    units = tile.units - 3 if held else tile.units + 5
    rng = np.random.default_rng(0)
    rows = tile.rows + 2
    shapes = {"x": (2, rows, 3), "w_ih": (3 * units, 3), "w_hh": (3 * units, units), "h0": (1, rows, units)}
    arguments: dict[str, Any] = {
        name: (rng.standard_normal(shape) * (0.6 * units**-0.5 if name[0] == "w" else 1)).astype(np.float32)
        for name, shape in shapes.items()
    }
    arguments |= {"lengths": rng.integers(0, 3, rows), "reset_after": False}
    expected = oracle.expect("gru_layer", arguments)
    with on_cpu(seed=1), use_recurrence_tile(tile):
        report(expected.complaints(oracle.with_autograd("gru_layer", arguments, expected.incoming, "triton")))


def test_a_tile_that_cannot_hold_the_layer_is_refused():
    tile = RecurrenceTile("held", 16, 16, 16, 4, 1)
    rule = r"^use_recurrence_tile: a held tile must have 17 units, unprojected, got RecurrenceTile\(path='held'"
    with use_recurrence_tile(tile), pytest.raises(ValueError, match=rule):
        recurrence_tile(problem("lstm", 17), H100, tensor_cores=True, backward=False)


@pytest.mark.parametrize(
    "cell, units, dtype, words",
    [
        ("lstm", 64, "float16", "whole sequence in one launch, weights held on chip"),
        ("lstm", 200, "float16", "whole sequence in one launch, weights from the L2 cache"),
        ("lstm", 600, "float16", "launches a step: 1 forward, 2 backward"),
    ],
)
def test_explain_says_which_way(cell: str, units: int, dtype: str, words: str):
    op = {"rnn": RNN_LAYER, "lstm": LSTM_LAYER, "gru": GRU_LAYER}[cell]
    p = problem(cell, units, dtype)
    with on_cpu():
        assert kernels.explain(op.name, torch.empty(3, 2, 5, dtype=getattr(torch, dtype)),
                               torch.empty(4 * units, 5, dtype=getattr(torch, dtype)),
                               torch.empty(4 * units, units, dtype=getattr(torch, dtype)), backend="triton"
                               ).chosen == "triton"  # fmt: skip
        assert op.implementations["triton"].describe(p) == words


@pytest.mark.parametrize("reset_after, forward, backward", [(True, 1, 2), (False, 2, 3)])
def test_explain_counts_the_launches_of_a_step(reset_after: bool, forward: int, backward: int):
    """As many as there are."""
    steps, rows, units = 3, 2, 20
    shapes: dict[str, tuple[int, ...]] = {"x": (steps, rows, 5), "w_ih": (3 * units, 5), "w_hh": (3 * units, units)}
    arguments: dict[str, Any] = {n: helpers.numbers(*s) for n, s in shapes.items()} | {"reset_after": reset_after}
    tile = RecurrenceTile("stepwise", 16, 32, 16, 4, 1)
    with on_cpu() as launched, use_recurrence_tile(tile):
        _, pullback = kernels.vjp("gru_layer", **arguments, backend="triton")
        pullback(np.ones((steps, rows, units), np.float32), None)
    assert (launched.count("forward_step"), launched.count("backward_step")) == (forward * steps, backward * steps)
    with on_cpu():
        words = GRU_LAYER.implementations["triton"].describe(problem("gru", 900, reset_after=reset_after))
    assert words == f"launches a step: {forward} forward, {backward} backward"

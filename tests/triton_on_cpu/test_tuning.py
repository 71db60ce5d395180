"""kernels.tune: the search, what it keeps and where, with a clock of the tests' own."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels.attention.gpu_tiles import AttentionTile
from kernels.conv2d.gpu_tiles import ConvTile
from kernels.runtime import cache_folder, tuning
from kernels.runtime.row_tiles import RowTile
from kernels.runtime.targets import TARGETS
from tests.support.triton_interpreter import on_cpu


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of this test's own."""
    monkeypatch.setattr(cache_folder, "choice", lambda: (tmp_path, "a test's"))
    tuning.stored.cache_clear()
    yield tmp_path
    tuning.stored.cache_clear()


# ----- the search --------------------------------------------------------------------------------------------------


def test_neighbours_differ_in_one_number():
    assert tuning.neighbours(RowTile(1, 4096, False, 16)) == [RowTile(2, 4096, False, 16), RowTile(1, 4096, False, 8)]
    assert tuning.neighbours(AttentionTile(16, 256, 4, 1)) == [
        AttentionTile(32, 256, 4, 1),
        AttentionTile(16, 128, 4, 1),
        AttentionTile(16, 256, 2, 1),
        AttentionTile(16, 256, 8, 1),
        AttentionTile(16, 256, 4, 2),
    ]
    assert len(tuning.neighbours(ConvTile(64, 64, 32, 4, 3))) == 10


def test_the_search_goes_downhill_and_asks_once():
    asked: list[RowTile] = []

    def seconds(tile: RowTile) -> float:
        asked.append(tile)
        return abs(tile.rows - 8) + abs(tile.warps - 2)

    best, times = tuning.fastest(RowTile(1, 64, True, 8), seconds)
    assert best == RowTile(8, 64, True, 2) and times[best] == 0
    assert len(asked) == len(set(asked)) == len(times)


def test_the_tile_functions_choice_wins_ties_and_what_does_not_fit_loses():
    tile = AttentionTile(64, 64, 4, 2)
    assert tuning.fastest(tile, lambda _: 1.0)[0] == tile
    assert tuning.fastest(tile, lambda t: 1.0 if t == tile else float("inf"))[0] == tile


# ----- a call ------------------------------------------------------------------------------------------------------


def clock(score: Callable[[Any], float]) -> Callable[[Callable[[], Any]], float]:
    """A measure that runs nothing: the score of the tiles that are on trial."""

    def measure(function: Callable[[], Any]) -> float:
        trial = tuning._trial.get()
        assert trial is not None
        return 1 + sum(score(tile) for tile in trial.tiles.values())

    return measure


def arguments(columns: int = 40) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, n, 16, generator=generator) for n in (columns, 50, 50))
    return {"query": query, "key": key, "value": value}


def launched_tiles(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """(kernel, BLOCK_M, BLOCK_N) of every launch from now on."""
    from kernels.attention import gpu_backward, triton_gpu

    seen: list[tuple[str, int, int]] = []
    launch = triton_gpu.launch

    def watch(kernel: Any, grid: Any, *arguments: Any, **options: Any) -> None:
        if "BLOCK_N" in options:
            seen.append((kernel.fn.__name__, options["BLOCK_M"], options["BLOCK_N"]))
        launch(kernel, grid, *arguments, **options)

    for module in (triton_gpu, gpu_backward):
        monkeypatch.setattr(module, "launch", watch)
    return seen


def test_a_call_takes_the_tiles_that_were_found_for_it_alone(folder: Path, monkeypatch: pytest.MonkeyPatch):
    with on_cpu():
        before = kernels.attention(**arguments(), backend="triton")
        # The fewest keys are fastest, and the gradients of keys have no fewer than they had.
        found = kernels.tune("attention", **arguments(), measure=clock(lambda t: t.keys / 1000))
        assert [t.kernel for t in found] == [
            "forward attention_forward",
            "backward query_gradient",
            "backward key_gradients",
        ]
        *larger, least = found
        assert all(t.tile.keys == 16 < t.default.keys and t.seconds < t.default_seconds for t in larger)
        assert least.tile == least.default and least.tile.keys == 16 and least.seconds == least.default_seconds
        seen = launched_tiles(monkeypatch)
        after = kernels.attention(**arguments(), backend="triton")
        kernels.attention(**arguments(20), backend="triton")
        with tuning.use_tile(AttentionTile(16, 64, 4, 1)):
            kernels.attention(**arguments(), backend="triton")
    assert seen == [("attention_forward", 32, 16), ("attention_forward", 32, 64), ("attention_forward", 16, 64)]
    torch.testing.assert_close(after, before)


def test_choices_persist_and_add_up(folder: Path, monkeypatch: pytest.MonkeyPatch):
    with on_cpu():
        kernels.tune("attention", **arguments(), measure=clock(lambda t: t.keys / 1000))
        kernels.tune("softmax", torch.ones(3, 40), measure=clock(lambda t: -t.rows / 1000))
        kept = json.loads((folder / tuning.FILE).read_text())
        assert sorted(k.split(" | ")[:3] for k in kept) == [
            ["sm_90", "attention_forward", "AttentionProblem"],
            ["sm_90", "key_gradients", "AttentionProblem"],
            ["sm_90", "query_gradient", "AttentionProblem"],
            ["sm_90", "softmax_gradient_rows", "SoftmaxProblem"],
            ["sm_90", "softmax_rows", "SoftmaxProblem"],
        ]
        tuning.stored.cache_clear()  # another process
        seen = launched_tiles(monkeypatch)
        kernels.attention(**arguments(), backend="triton")
        assert seen == [("attention_forward", 32, 16)]


def test_a_key_says_all_that_a_tile_depends_on():
    def key(target: str = "sm_90", **changed: Any) -> str:
        x, weight = torch.ones(2, 16, 8, 8), torch.ones(4, 16, 3, 3)
        given = {"x": x, "weight": weight, "padding": 1} | changed
        return tuning.key("convolve", kernels.explain("conv2d", **given).problem, TARGETS[target])

    last = torch.ones(2, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    others = [{"target": "sm_80"}, {"x": last}, {"padding": 0}, {"x": torch.ones(3, 16, 8, 8)}, {"bias": torch.ones(4)}]
    assert len({key(), *(key(**changed) for changed in others)}) == 6
    assert key(x=torch.ones(2, 16, 8, 8, requires_grad=True)) == key()


def test_a_broken_file_is_said_and_not_used(folder: Path):
    (folder / tuning.FILE).write_text("{")
    with on_cpu(), pytest.warns(UserWarning, match=r"tiles.json cannot be read .*: tiles are the tile functions'"):
        kernels.softmax(torch.ones(3, 4), backend="triton")
    tuning.stored.cache_clear()
    (folder / tuning.FILE).write_text("[1]")
    with on_cpu(), pytest.warns(UserWarning, match=r"tiles.json holds no tiles"):
        kernels.softmax(torch.ones(3, 4), backend="triton")


def test_without_a_folder_this_process_alone_knows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache_folder, "choice", lambda: (None, "nowhere"))
    assert tuning.store({"a": RowTile(1, 2, True, 4)}) is None
    assert tuning.stored() == {"a": {"rows": 1, "block": 2, "whole": True, "warps": 4}}


def test_tiles_that_do_not_fit_are_passed_over(monkeypatch: pytest.MonkeyPatch):
    from triton.runtime.errors import OutOfResources

    def measure(function: Callable[[], Any]) -> float:
        trial = tuning._trial.get()
        assert trial is not None
        if any(t.warps > 4 for t in trial.tiles.values()):
            raise OutOfResources(300_000, 232_448, "shared memory")
        return 1 / sum(t.warps for t in trial.tiles.values())

    with on_cpu():
        found = kernels.tune("softmax", torch.ones(4, 2000), measure=measure)
    assert [t.tile.warps for t in found] == [4, 4]


def test_errors():
    x = np.ones((3, 4), np.float32)
    with pytest.raises(
        kernels.BackendError, match=r"^tune: triton cannot run x float32 \(3, 4\), dim 1: it runs on cuda"
    ):
        kernels.tune("softmax", torch.ones(3, 4))
    with pytest.raises(TypeError, match=r"^tune: x must be a torch tensor, got a numpy array$"):
        kernels.tune("softmax", x)
    with pytest.raises(ValueError, match=r"^tune: "):
        kernels.tune("nothing", x)
    with pytest.raises(IndexError, match=r"^softmax: dim"), on_cpu():
        kernels.tune("softmax", torch.ones(3, 4), dim=7)


def test_nothing_to_tune(capsys: pytest.CaptureFixture[str]):
    with warnings.catch_warnings(), on_cpu():
        warnings.simplefilter("error")
        assert kernels.tune("relu", torch.ones(5), measure=lambda f: 1.0) == ()
        assert kernels.tune("softmax", torch.ones(0, 4)) == ()

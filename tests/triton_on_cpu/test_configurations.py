"""Every configuration that Triton's tile functions can return: which they are, and that what was compiled is these.

What compiling all of them found is in docs/gpu_configurations.json, made by
``python -m kernels report --all --json docs/gpu_configurations.json``, which takes hours: here it is only asked whether
that is of today's kernels.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels import gpu_capture, gpu_configurations, gpu_report
from kernels.attention.gpu_tiles import backward_tiles, forward_tile
from kernels.conv2d.gpu_tiles import conv_tile
from kernels.gpu_configurations import FAMILIES, TARGETS, Call, launches
from kernels.gpu_workloads import Workload
from kernels.runtime import targets, triton_compile, triton_gpu
from kernels.runtime.triton_compile import Launch, recording
from tests.triton_on_cpu import kernels_with_faults as faults

FILE = Path(__file__).resolve().parents[2] / "docs" / "gpu_configurations.json"


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    known: dict[str, Any] = json.loads(FILE.read_text())
    return known


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_compiled_is_what_there_is(family: str, target: str, found: dict[str, Any]):
    known = found["families"][family][target]
    now = launches(family, target)
    assert found["compiler"] == triton_compile.version()
    assert known == {"digest": triton_compile.digest(launch for _, launch in now), "compiled": len(now), "broken": []}


# ----- what is compiled --------------------------------------------------------------------------------------------


def known_of(call: Call, target: str) -> list[tuple[Call, Launch]]:
    with gpu_configurations._precision(call.tf32):
        captured = gpu_capture.capture(call.workload, "triton", lambda: recording(target))
    return [(call, launch) for launch in (*captured.forward, *captured.backward)]


def test_attention_with_a_mask_in_float32_as_tf32_compiles():
    """Its second launches brought bits to where tensor cores read, which Triton's compiler fails at."""
    call = gpu_configurations._attention_call("float32", 16, frozenset({"hidden", "mask"}), tf32=True)
    known = known_of(call, "sm_90")
    again = [(call, launch) for call, launch in known if launch.options.get("SELECTS")]
    assert [launch.name for _, launch in again] == ["attention_forward", "query_gradient", "key_gradients"]
    assert gpu_configurations.broken(again, "sm_90") == []


SOFTMAX = Call(Workload("softmax", "bfloat16", {"x": (64, 4096)}, (1,)))


def test_what_does_not_compile_is_broken():
    known = known_of(SOFTMAX, "sm_90")
    call, launch = known[0]
    known[0] = call, replace(launch, options=launch.options | {"BLOCK": 4095})
    (complaint,) = gpu_configurations.broken(known, "sm_90")
    assert complaint.startswith("softmax_rows, softmax 64x4096 bfloat16, {")
    assert "does not compile: CompilationError" in complaint


def test_processes_find_what_one_finds(monkeypatch: pytest.MonkeyPatch):
    """Of two kernels, compiled by one process each, the one for rows that are no vectors is broken."""
    odd = Call(Workload("softmax", "bfloat16", {"x": (64, 4097)}, (1,)))
    known = [known_of(SOFTMAX, "sm_90")[0], known_of(odd, "sm_90")[0]]
    monkeypatch.setattr(gpu_configurations, "AT_A_TIME", 1)
    found = gpu_configurations._compile(known, "sm_90", 2)
    assert found == gpu_configurations._compile(known, "sm_90", 1) == gpu_configurations.broken(known[1:], "sm_90")
    assert len(found) == 1 and "global accesses are narrower than 128 bits" in found[0]


# ----- which they are ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_attention_in_every_tile(target: str):
    gpu = targets.TARGETS[target]
    names = ("attention_forward", "query_gradient", "key_gradients")
    wanted = set()
    for itemsize, queries, width, extras, vectors, reaches in itertools.product(
        (2, 4, 8), (1, 17, 33, 64, 5000), (16, 32, 64, 128, 256, 512), range(8), (True, False), (True, False)
    ):
        facts = (queries, width, itemsize, extras, gpu, vectors)
        for name, tile in zip(names, (forward_tile(*facts, reaches=reaches), *backward_tiles(*facts))):
            wanted.add((name, itemsize, tile.queries, tile.keys, tile.warps, tile.stages, tile.registers))
    compiled = {
        (
            launch.name, getattr(torch, call.workload.dtype).itemsize, o["BLOCK_M"], o["BLOCK_N"], o["num_warps"],
            o["num_stages"], o.get("maxnreg"),
        )
        for call, launch in launches("attention", target) if (o := launch.options) and launch.name in names
    }  # fmt: skip
    assert wanted - compiled == set()


@pytest.mark.parametrize("target", TARGETS)
def test_convolutions_in_every_tile(target: str):
    gpu = targets.TARGETS[target]
    wanted = set()
    for (dtype, tf32), vectors in itertools.product(gpu_configurations.KINDS, (True, False)):
        itemsize = getattr(torch, dtype).itemsize
        precision = triton_gpu.product_precision(getattr(torch, dtype), gpu, tf32=tf32)
        cores = triton_gpu.on_tensor_cores(getattr(torch, dtype), precision) or (gpu.amd and itemsize == 4)
        for rows, columns, inner in itertools.product(
            (16, 32, 64, 128, 500, 5000, 10**6), (3, 16, 32, 64, 128), (16, 32, 64, 128)
        ):
            tile = conv_tile(rows, columns, inner, itemsize, gpu, tensor_cores=cores, vectors=vectors)
            wanted.add((dtype, vectors, tile.rows, tile.columns, tile.inner, tile.warps, tile.stages))
    compiled = {
        (
            call.workload.dtype, o["VECTORS"], o["ROWS"], o["COLUMNS"], o["INNER"], o["num_warps"], o["num_stages"],
        )
        for call, launch in launches("convolutions", target) if (o := launch.options) and launch.name == "convolve"
    }  # fmt: skip
    assert wanted - compiled == set()


# ----- what tells launches apart -----------------------------------------------------------------------------------


def recorded(*sizes: int, block: int = 1024) -> list[Launch]:
    """Copies of so many elements."""
    with recording("sm_90") as found:
        for n in sizes:
            x = torch.empty(n, device="meta")
            triton_gpu.launch(faults.copy, (8,), x, x, n, BLOCK=block, num_warps=4)
    return found


def test_launches_that_compile_alike_have_one_key():
    assert len({launch.key for launch in recorded(4096, 32)}) == 1  # both are multiples of 16
    assert len({launch.key for launch in recorded(4096, 4097, 1)}) == 3
    assert len({recorded(32)[0].key, recorded(32, block=512)[0].key}) == 2


def test_a_digest_is_of_code_and_launches(monkeypatch: pytest.MonkeyPatch):
    one, other = recorded(32), recorded(33)
    same = triton_compile.digest(recorded(4096))
    assert triton_compile.digest(one) == same != triton_compile.digest(other)
    source = triton_compile._source(faults.__name__)
    for change, changes in (("# said once more\n", False), ("FIVE = 5\n", True)):
        monkeypatch.setattr(triton_compile, "_source", lambda module, text=source + change: text)
        triton_compile._code.cache_clear()
        assert (triton_compile.digest(one) != same) == changes
    triton_compile._code.cache_clear()


def test_no_more_than_a_family_is_asked_for(capsys: pytest.CaptureFixture[str]):
    assert gpu_report.main(["--all", "--op", "softmax"]) == 2
    assert "report: --op must be one of rows, linear losses, attention" in capsys.readouterr().err

"""The kernel report: what the compiler made of the Triton kernels, for GPUs that need not be here.

``python -m kernels report`` compiles a list of workloads for each target and prints a table; ``--json FILE`` also
writes the rows. Everything in it is a fact of the compiler or arithmetic of the algorithm: registers, spills, how many
blocks a multiprocessor holds, instructions, bytes, operations, and the time below which no H100 can be. No time is
measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernels import dispatch
from kernels.backends import BACKENDS, BackendError, load
from kernels.op import OPS, Op

if TYPE_CHECKING:
    from kernels.runtime.triton_compile import Compiled

#: What the report is made for.
REPORTED_TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")

#: Data-sheet peaks of the H100 SXM a second: bytes of memory, operations in half precision on tensor cores, in float32.
H100 = {"bytes": 3.35e12, "half": 989e12, "float32": 67e12}


@dataclass(frozen=True)
class Workload:
    """One call, forward and backward, of sizes that GPUs are used for.

    Attributes:
        op: name of the op.
        dtype: of its floating-point arrays.
        shapes: of these, by name.
        integers: shapes of int64 arrays, by name.
        booleans: shapes of bool arrays, by name.
        attributes: the declaration's attributes, in its order.
        name: what it shows, beside op, shape and dtype.
        channels_last: 4-d arrays lie in memory as (N, H, W, C).
    """

    op: str
    dtype: str
    shapes: dict[str, tuple[int, ...]]
    attributes: tuple[Any, ...]
    integers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    booleans: dict[str, tuple[int, ...]] = field(default_factory=dict)
    name: str = ""
    channels_last: bool = False

    @property
    def targets(self) -> tuple[str, ...]:
        """What it is compiled for: AMD's compiler takes many times as long, so a few of some ops do for all there."""
        few = {"attention": ("causal",), "lstm_layer": ("held", "a step"), "gru_layer": ("streamed reset before",)}
        few["rnn_layer"] = ()
        wanted = self.op not in few or self.name in few[self.op] and self.dtype == "bfloat16"
        return REPORTED_TARGETS if wanted else REPORTED_TARGETS[:3]

    @property
    def id(self) -> str:
        """Op, what it shows, shape and dtype."""
        shape = "x".join(map(str, next(iter(self.shapes.values()))))
        return " ".join(filter(None, (self.op, self.name, shape, self.dtype)))


def _norm(op: str, shape: tuple[int, ...], dtype: str) -> Workload:
    names = ("x", "weight", "bias") if op == "layer_norm" else ("x", "weight")
    return Workload(op, dtype, {n: shape if n == "x" else shape[-1:] for n in names}, (shape[-1:], 1e-5))


def _entropy(shape: tuple[int, ...], dtype: str, smoothing: float = 0.0) -> Workload:
    return Workload(
        "cross_entropy", dtype, {"input": shape}, (-100, "mean", smoothing), {"target": (shape[0], *shape[2:])}
    )


def _pool(op: str, attributes: tuple[Any, ...], dtype: str, last: bool) -> Workload:
    name = "channels-last" if last else "channels first"
    return Workload(op, dtype, {"x": (32, 64, 112, 112)}, attributes, name=name, channels_last=last)


def _conv(
    name: str, x: tuple[int, ...], weight: tuple[int, ...], dtype: str, *, last: bool = True, stride: int = 1,
    padding: int = 1, groups: int = 1, activation: str | None = None, op: str = "conv2d",
) -> Workload:  # fmt: skip
    """A convolution with bias, in channels-last images or in (N, C, H, W)."""
    outputs = weight[0] if op == "conv2d" else weight[1] * groups
    shapes = {"x": x, "weight": weight, "bias": (outputs,)}
    pairs = ((stride, stride), (padding, padding))
    attributes = (*pairs, (1, 1), groups, activation) if op == "conv2d" else (*pairs, (0, 0), groups, (1, 1))
    return Workload(op, dtype, shapes, attributes, name=name, channels_last=last)


def _attention(
    shape: tuple[int, ...],
    dtype: str,
    name: str = "",
    *,
    keys: tuple[int, ...] | None = None,
    bias: tuple[int, ...] | None = None,
    mask: tuple[int, ...] | None = None,
    table: tuple[int, ...] | None = None,
    lengths: bool = False,
    causal: str | None = None,
    window: tuple[int, int] | None = None,
    softcap: float | None = None,
    dropout_p: float = 0.0,
    kind: str | None = None,
) -> Workload:
    keys = shape if keys is None else keys
    shapes = {"query": shape, "key": keys, "value": keys}
    shapes |= {n: s for n, s in (("bias", bias), ("relative", table)) if s is not None}
    integers: dict[str, tuple[int, ...]] = {"lengths": shape[:1]} if lengths else {}
    integers |= {"seed": ()} if dropout_p else {}
    clip = (table[0] - 1) // 2 if kind == "shaw" and table is not None else 0
    attributes = (causal, window, softcap, None, dropout_p, kind, clip, False, False)
    return Workload("attention", dtype, shapes, attributes, integers, {} if mask is None else {"mask": mask}, name)


def _recurrent(
    cell: str, sizes: tuple[int, int, int], dtype: str, name: str, *attributes: Any, directions: int = 1,
    lengths: bool = False, projection: int = 0,
) -> Workload:  # fmt: skip
    """A layer of sizes (T, B, H), as many inputs as units, with biases and initial states."""
    steps, batch, units = sizes
    rows, hidden = {"rnn": 1, "lstm": 4, "gru": 3}[cell] * units, projection or units
    shapes: dict[str, tuple[int, ...]] = {"x": (steps, batch, units)}
    for suffix in ("", "_reverse")[:directions]:
        shapes |= {"w_ih" + suffix: (rows, units), "w_hh" + suffix: (rows, hidden)}
        shapes |= {"b_ih" + suffix: (rows,), "b_hh" + suffix: (rows,)}
        if projection:
            shapes["w_hr" + suffix] = (projection, units)
    shapes["h0"] = (directions, batch, hidden)
    if cell == "lstm":
        shapes["c0"] = (directions, batch, units)
    integers: dict[str, tuple[int, ...]] = {"lengths": (batch,)} if lengths else {}
    return Workload(f"{cell}_layer", dtype, shapes, (False, False, *attributes), integers, name=name)


WORKLOADS: tuple[Workload, ...] = (
    Workload("softmax", "bfloat16", {"x": (8192, 8192)}, (1,)),
    Workload("softmax", "float32", {"x": (4096, 50304)}, (1,), name="long rows"),
    Workload("softmax", "bfloat16", {"x": (16, 32, 128, 128)}, (1,), name="channels"),
    Workload("log_softmax", "float32", {"x": (65536, 1024)}, (1,)),
    _entropy((8192, 32000), "bfloat16"),
    _entropy((16384, 4096), "float32", 0.1),
    _entropy((16, 32, 256, 256), "float32"),
    _attention((4, 16, 4096, 64), "bfloat16", "causal", causal="top_left"),
    _attention((4, 16, 4096, 128), "bfloat16"),
    _attention((2, 8, 2048, 256), "bfloat16"),
    _attention((2, 16, 2048, 64), "float32", "causal", causal="top_left"),
    _attention((2, 16, 2048, 64), "float16", "bias", bias=(1, 16, 2048, 2048)),
    _attention((2, 16, 2048, 64), "bfloat16", "dropout", dropout_p=0.1),
    _attention(
        (2, 32, 2048, 128),
        "bfloat16",
        "grouped mask window softcap lengths",
        keys=(2, 8, 2048, 128),
        lengths=True,
        mask=(2, 1, 2048, 2048),
        causal="bottom_right",
        window=(512, 0),
        softcap=30.0,
    ),
    _attention((2, 16, 2048, 64), "bfloat16", "Shaw", table=(65, 64), kind="shaw"),
    _attention((2, 16, 2048, 64), "bfloat16", "ALiBi", table=(16,), kind="alibi", causal="top_left"),
    _attention((8, 32, 1, 128), "bfloat16", "decode 16384 keys", keys=(8, 8, 16384, 128), causal="bottom_right"),
    _norm("layer_norm", (16384, 1024), "bfloat16"),
    _norm("layer_norm", (16384, 4096), "float32"),
    _norm("layer_norm", (4096, 20480), "bfloat16"),
    _norm("rms_norm", (16384, 4096), "bfloat16"),
    Workload("relu", "float16", {"x": (64, 256, 56, 56)}, ()),
    Workload("gelu", "bfloat16", {"x": (16384, 4096)}, ("none",)),
    Workload("sigmoid", "float64", {"x": (4096, 4096)}, ()),
    Workload("tanh", "float32", {"x": (4096, 4096)}, ()),
    Workload("dropout", "bfloat16", {"x": (16384, 4096)}, (0.1, 0), {"seed": ()}),
    Workload("embedding", "bfloat16", {"weight": (32000, 4096)}, (0, 1.0, 2.0, True, False), {"input": (8, 2048)}),
    _pool("max_pool2d", ((3, 3), (2, 2), (1, 1), (1, 1), False, False), "float16", True),
    _pool("max_pool2d", ((2, 2), (2, 2), (0, 0), (1, 1), False, False), "float32", False),
    _pool("avg_pool2d", ((3, 3), (1, 1), (1, 1), False, True, None), "bfloat16", True),
    _pool("adaptive_avg_pool2d", ((7, 7),), "float32", True),
    _pool("lp_pool2d", (2.0, (2, 2), (2, 2), False), "float32", True),
    _conv("3x3 channels-last", (32, 64, 56, 56), (64, 64, 3, 3), "bfloat16", activation="relu"),
    _conv("3x3 channels-last tf32", (32, 64, 56, 56), (64, 64, 3, 3), "float32", activation="gelu"),
    _conv("3x3 channels first tf32", (32, 64, 56, 56), (128, 64, 3, 3), "float32", last=False),
    _conv("7x7 stride 2 of 3 channels", (32, 3, 224, 224), (64, 3, 7, 7), "bfloat16", stride=2, padding=3),
    _conv("depthwise channels-last", (32, 96, 56, 56), (96, 1, 3, 3), "bfloat16", groups=96, activation="silu"),
    _conv("4x4 stride 2", (16, 256, 28, 28), (256, 128, 4, 4), "bfloat16", stride=2, op="conv_transpose2d"),
    _recurrent("lstm", (50, 64, 64), "bfloat16", "held"),
    _recurrent("lstm", (100, 32, 128), "float16", "held lengths both directions", directions=2, lengths=True),
    _recurrent("lstm", (100, 32, 256), "bfloat16", "streamed"),
    _recurrent("lstm", (100, 32, 256), "bfloat16", "projected lengths", lengths=True, projection=128),
    _recurrent("lstm", (1, 64, 1024), "bfloat16", "a step"),
    _recurrent("lstm", (50, 64, 128), "float32", "streamed"),
    _recurrent("gru", (50, 64, 64), "float16", "held", True),
    _recurrent("gru", (100, 32, 256), "bfloat16", "streamed lengths both directions", True, directions=2, lengths=True),
    _recurrent("gru", (100, 32, 256), "bfloat16", "streamed reset before", False),
    _recurrent("gru", (1, 16, 1024), "bfloat16", "a step reset before lengths", False, lengths=True),
    _recurrent("gru", (50, 64, 64), "float64", "streamed", True),
    _recurrent("rnn", (100, 64, 256), "bfloat16", "held", "tanh"),
    _recurrent("rnn", (100, 64, 512), "float16", "streamed relu", "relu"),
)


@dataclass(frozen=True)
class Pass:
    """The forward or backward pass of a workload: its compiled kernels, and what the algorithm must do."""

    workload: Workload
    name: str
    kernels: tuple[Compiled, ...]
    bytes: int
    flops: int

    @property
    def floor(self) -> float:
        """Seconds that an H100 needs at least: for the bytes at full bandwidth, or for the operations at full rate."""
        half = self.workload.dtype in ("float16", "bfloat16") and bool(MATRIX_KERNELS & {k.name for k in self.kernels})
        return max(self.bytes / H100["bytes"], self.flops / H100["half" if half else "float32"])


#: Kernels whose work is matrix products: these must use tensor cores in their loop.
MATRIX_KERNELS = {"attention_forward", "query_gradient", "key_gradients", "bias_gradient"}
MATRIX_KERNELS |= {"convolve", "weight_gradient_of_parts"}
MATRIX_KERNELS |= {"held_forward", "held_backward", "forward_sequence", "backward_sequence", "forward_step"}
MATRIX_KERNELS |= {"backward_step"}

#: Kernels that load what other threads of the same program have stored.
HANDING_ON = {"forward_sequence", "backward_sequence"}

#: Ops whose backward has five matrix products where forward has two; of the others it is taken for twice the work.
MATRIX_OPS = {"attention"}

#: By kernel: accesses of a number a row beside its tiles, which no vector can hold.
OF_ROWS = {"losses_of_rows": 6, "gradient_of_rows": 6, "normalise_rows": 2, "gradients_of_parts": 2}
OF_ROWS |= {"attention_forward": 2, "join_splits": 8, "row_products": 2, "query_gradient": 20, "key_gradients": 8}
OF_ROWS |= {"bias_gradient": 8}
OF_ROWS |= {"gather_rows": 6, "factors_of_rows": 6, "add_rows": 8, "drop_elements": 1}
OF_ROWS |= {"convolve": 16, "sums_of_pixels": 1, "convolve_depthwise": 1}
# Places and lengths of rows, and of the GRU a bias.
OF_ROWS |= {"held_forward": 5, "held_backward": 5, "forward_sequence": 6, "backward_sequence": 6}
OF_ROWS |= {"forward_step": 6, "backward_step": 6}
OF_ROWS |= {"sum_losses": 2, "finish_loss": 8, "gradient_of_long_rows": 2, "sums_of_columns": 2, "sum_parts": 1}


#: Kernels that gather windows of images.
OF_WINDOWS = {"max_of_windows", "mean_of_windows", "gradient_of_maxima", "gradient_of_means", "sums_of_pixels"}
OF_WINDOWS |= {"convolve", "weight_gradient_of_parts", "convolve_depthwise", "spread_depthwise"}


def _inputs(op: Op, workload: Workload) -> tuple[Any, ...]:
    import torch

    kinds = ((workload.shapes, getattr(torch, workload.dtype)), (workload.integers, torch.int64))
    made = {n: torch.empty(s, dtype=dtype, device="meta") for shapes, dtype in kinds for n, s in shapes.items()}
    made |= {n: torch.empty(s, dtype=torch.bool, device="meta") for n, s in workload.booleans.items()}
    if workload.channels_last:
        made = {n: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for n, t in made.items()}
    return tuple(made.get(name) for name in op.inputs)


def compile_workload(workload: Workload, target: str) -> tuple[Pass, Pass]:
    """Compile a workload's forward and backward for a target.

    Args:
        workload: the call.
        target: name in `kernels.runtime.targets.TARGETS`.

    Raises:
        BackendError: the Triton backend cannot run this call.
    """
    import torch

    from kernels.runtime.triton_compile import compiling

    op = OPS[workload.op]
    load(op.family, BACKENDS["triton"])
    implementation = op.implementations["triton"]
    inputs = _inputs(op, workload)
    _, specs, _ = dispatch.describe_inputs(op, inputs)
    wanted = tuple(name in op.differentiable and name in workload.shapes for name in op.inputs)
    problem = replace(op.problem.check(*specs, *workload.attributes), needs_grad=wanted)
    reasons = implementation.why_not(problem)
    if reasons or implementation.backward is None:
        raise BackendError(f"report: {workload.id}: {'; '.join(reasons) or 'there is no backward'}")
    with compiling(target) as forward:
        results = implementation.forward(problem, *inputs)
    known = dict(zip((*op.inputs, *op.results), (*inputs, *results), strict=True))
    saved = {name: known[name] for name in problem.saved()}
    gradients = [
        torch.empty_like(r) if r is not None and i < problem.returned else None
        for i, r in enumerate(results[: op.differentiable_results])
    ]
    with compiling(target) as backward:
        implementation.backward(problem, *gradients, **saved)
    read = sum(t.nbytes for t in (*saved.values(), *gradients) if t is not None)
    written = sum(s.nbytes for s, want in zip(problem.gradients(), wanted) if s is not None and want)
    flops = problem.flops()
    return (
        Pass(workload, "forward", tuple(forward), problem.bytes_moved(), flops),
        Pass(workload, "backward", tuple(backward), read + written, (5 if MATRIX_OPS & {op.name} else 4) * flops // 2),
    )


def gates(kernel: Compiled, dtype: str = "float32") -> list[str]:
    """Every rule that a compiled kernel breaks, in words: it spills, does not fit, or does without the hardware.

    Args:
        kernel: the kernel.
        dtype: of its arrays; tensor cores are asked for in half precision (float32 has them only as tf32).
    """
    broken = []
    if kernel.spills:
        broken.append(f"{kernel.spills} instructions spill registers")
    if kernel.stack:
        broken.append(f"a stack of {kernel.stack} bytes")
    if kernel.shared > kernel.target.block_shared:
        broken.append(f"{kernel.shared} bytes of shared memory, there are {kernel.target.block_shared}")
    if not kernel.target.amd:
        blocks, _, limiter = kernel.occupancy
        if blocks < 1:
            broken.append(f"no block fits on a multiprocessor: {limiter}")
    of_rows = OF_ROWS.get(kernel.name, 0) * min(int(kernel.options.get("ROWS", 1)), 2)
    narrow = max(kernel.narrow - of_rows, 0)
    # A bool mask is read where the tensor cores leave the scores, two neighbours a thread; Shaw's term is gathered.
    scattered = kernel.options.get("HAS_MASK") or kernel.options.get("TERM") == 1 or _follows_windows(kernel)
    if not kernel.target.amd and not scattered and narrow > 0.1 * (kernel.wide + narrow):
        broken.append(f"{narrow} of {kernel.wide + narrow} global accesses are narrower than 128 bits")
    if kernel.name in HANDING_ON and kernel.count(r"LDG\S*CONSTANT"):
        broken.append("loads of what the program has stored go through the read-only path")
    if _multiplies(kernel) and dtype in ("float16", "bfloat16"):
        if not kernel.count(kernel.matrix_instructions, in_loop=bool(kernel.loop)):
            broken.append(f"no {kernel.matrix_instructions} in the loop")
        stages = int(kernel.options.get("num_stages", 1)) > 1 and bool(kernel.loop)
        if stages and not kernel.target.amd and not kernel.asynchronous:
            broken.append("no asynchronous copies, though there are stages")
    return broken


def _multiplies(kernel: Compiled) -> bool:
    """Whether its work is matrix products; of a recurrent step's parts backward, some are gates alone."""
    alone = kernel.options.get("PART") == "arrive" or (
        kernel.options.get("PART") == "gates" and not kernel.options.get("PROJECTS")
    )
    return kernel.name in MATRIX_KERNELS and not alone


def _follows_windows(kernel: Compiled) -> bool:
    """Whether neighbouring threads read where windows lie in (N, C, H, W), which begin anywhere: no vector holds that.

    In channels-last images they read neighbouring channels, and are held to the rule.
    """
    last = kernel.options.get("VECTORS", kernel.options.get("LAST", True))
    return kernel.name in OF_WINDOWS and not last


def row_of(workload: Workload, direction: str, kernel: Compiled) -> dict[str, Any]:
    """One line of the report, as JSON has it."""
    blocks, occupancy, limiter = kernel.occupancy if not kernel.target.amd else (0, 0.0, "")
    shown = ("BLOCK", "ROWS", "WHOLE", "TIMES", "UNITS", "WIDTH", "SECOND", "PART", "num_stages")
    tile = {n: v for n, v in kernel.options.items() if n.startswith(shown)}
    return {
        "workload": workload.id,
        "pass": direction,
        "kernel": kernel.name,
        "target": kernel.target.name,
        "tile": tile,
        "warps": kernel.warps,
        "registers": kernel.registers,
        "spills": kernel.spills,
        "stack": kernel.stack,
        "shared": kernel.shared,
        "blocks": blocks,
        "occupancy": round(occupancy, 3),
        "limiter": limiter,
        "instructions": sum(kernel.instructions.values()),
        "loop": sum(kernel.loop.values()),
        "matrix": kernel.count(kernel.matrix_instructions, in_loop=True),
        "asynchronous": kernel.asynchronous,
        "wide": kernel.wide,
        "narrow": kernel.narrow,
    }


def make(targets: tuple[str, ...] = REPORTED_TARGETS, workloads: tuple[Workload, ...] = WORKLOADS) -> dict[str, Any]:
    """The whole report: {"triton": version, "passes": [...], "kernels": [...]}."""
    from kernels.runtime.triton_compile import version

    passes: dict[tuple[str, str], dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    for workload in workloads:
        for target in (t for t in targets if t in workload.targets):
            print(f"{workload.id}, {target}", file=sys.stderr)
            for done in compile_workload(workload, target):
                passes[workload.id, done.name] = {
                    "workload": workload.id,
                    "pass": done.name,
                    "bytes": done.bytes,
                    "flops": done.flops,
                    "h100_floor_us": round(done.floor * 1e6, 1),
                }
                seen = {json.dumps(r) for r in rows}
                found = (row_of(workload, done.name, kernel) for kernel in done.kernels)
                rows += [r for r in found if json.dumps(r) not in seen]
    return {"triton": version(), "passes": list(passes.values()), "kernels": rows}


def worse(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """What of a report's line is worse than it was, in words. Slack is for a compiler's update."""
    complaints = []
    limits = (("registers", 8, 0.0), ("instructions", 8, 0.1), ("shared", 0, 0.0), ("narrow", 0, 0.0))
    for name, slack, share in limits:
        if new[name] > old[name] * (1 + share) + slack:
            complaints.append(f"{name} {new[name]}, were {old[name]}")
    if new["occupancy"] < old["occupancy"]:
        complaints.append(f"occupancy {new['occupancy']}, was {old['occupancy']} (limited by {new['limiter']})")
    for name in ("matrix", "asynchronous"):
        if new[name] == 0 < old[name]:
            complaints.append(f"{name} 0, were {old[name]}")
    return complaints


def key(row: dict[str, Any]) -> str:
    """What tells the lines of a report apart."""
    return " | ".join((row["workload"], row["pass"], row["kernel"], row["target"], json.dumps(row["tile"])))


INTRODUCTION = """# The GPU kernels as the compiler leaves them

Made by `python -m kernels report --json docs/gpu_kernels.json --markdown docs/gpu_kernels.md`, which needs Triton and
no GPU. **No kernel has been run on a GPU, and no time here is measured.** What the figures are:

- registers, shared memory (bytes) and instructions: the compiler's, from the machine code of a launch with these sizes;
- occupancy: threads on a multiprocessor as a share of those that fit, and what limits them, by NVIDIA's rules (a kernel
  full of tensor-core work needs little of it; AMD's rules are others);
- matrix: tensor-core instructions in the loop; async: copies to shared memory that no thread waits for;
- wide/all: global loads, stores and copies of 128 bits a thread, of all that there are;
- floor: bytes / 3.35e12 or operations / peak (989e12 in half precision on tensor cores, else 67e12), whichever is
  longer: no H100 can be faster. What a kernel really takes is unknown.

`tests/triton_on_cpu/test_compiled.py` compiles all of it and fails when a kernel spills registers, does not fit, leaves
tensor cores or wide accesses unused, or became worse than in this table.
"""


def document(report: dict[str, Any]) -> str:
    """docs/gpu_kernels.md."""
    return f"{INTRODUCTION}\n{table(report)}\n"


def table(report: dict[str, Any]) -> str:
    """The report as tables in Markdown."""
    lines = [
        f"Compiled with Triton {report['triton']}.",
        "",
        "| workload | pass | bytes | operations | H100 floor, us |",
        "|---|---|---:|---:|---:|",
    ]
    for p in report["passes"]:
        lines.append(f"| {p['workload']} | {p['pass']} | {p['bytes']:,} | {p['flops']:,} | {p['h100_floor_us']} |")
    head = "target workload kernel tile warps registers shared occupancy instructions matrix async wide/all"
    lines += ["", f"| {' | '.join(head.split())} |", "|" + "---|" * len(head.split())]
    for r in report["kernels"]:
        tile = " ".join(f"{n.lower()}={v}" for n, v in r["tile"].items())
        occupancy = f"{r['occupancy']:.0%} ({r['limiter']})" if r["limiter"] else "-"
        cells = (
            r["target"], f"{r['workload']}, {r['pass']}", r["kernel"], tile, r["warps"], r["registers"], r["shared"],
            occupancy, r["instructions"], r["matrix"], r["asynchronous"], f"{r['wide']}/{r['wide'] + r['narrow']}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """``python -m kernels report [--target sm_90 ...] [--json FILE] [--markdown FILE]``; 1 when a gate is broken."""
    parser = argparse.ArgumentParser(prog="python -m kernels report", description=__doc__)
    parser.add_argument("--target", action="append", choices=REPORTED_TARGETS, help="only this target; may be repeated")
    parser.add_argument("--json", type=Path, help="also write the report here, as JSON")
    parser.add_argument("--markdown", type=Path, help="write them here in place of printing them")
    asked = parser.parse_args(arguments)
    if find_spec("triton") is None or find_spec("torch") is None:
        print(f"report: {BACKENDS['triton'].missing()}", file=sys.stderr)
        return 2
    report = make(tuple(asked.target or REPORTED_TARGETS))
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=1) + "\n")
    if asked.markdown:
        asked.markdown.write_text(document(report))
    else:
        print(table(report))
    return 0

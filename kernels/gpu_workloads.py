"""The calls that the kernel report and its gates are made for: each op's, forward and backward, in sizes for GPUs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: What the report is made for, by backend.
REPORTED_TARGETS = {"triton": ("sm_80", "sm_90", "sm_100", "gfx942"), "cupy": ("sm_80", "sm_90", "sm_100")}


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

    def targets(self, backend: str) -> tuple[str, ...]:
        """What it is compiled for: AMD's compiler takes many times as long, so a few of some ops do for all there."""
        few = {"attention": ("causal",), "lstm_layer": ("held", "a step"), "gru_layer": ("streamed reset before",)}
        few["rnn_layer"] = ()
        if self.op == "linear_cross_entropy" and backend == "cupy":
            return ()  # cuBLAS, and cross_entropy's kernels, which are there by themselves
        wanted = self.op not in few or self.name in few[self.op] and self.dtype == "bfloat16"
        return tuple(t for t in REPORTED_TARGETS[backend] if wanted or t.startswith("sm_"))

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
    clip = (table[0] - 1) // 2 if kind == "shaw" and table is not None else 128 if kind == "t5" else 0
    attributes = (causal, window, softcap, None, dropout_p, kind, clip, kind == "t5", False)
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
    Workload(
        "linear_cross_entropy", "bfloat16", {"input": (1024, 512), "linear_weight": (32000, 512)}, (-100, "mean", 0.0),
        {"target": (1024,)},
    ),  # fmt: skip
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
    _attention((2, 16, 2048, 64), "bfloat16", "T5", table=(32, 16), kind="t5"),
    _attention((2, 8, 1024, 512), "bfloat16", "wide causal", causal="top_left"),
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
    _recurrent("gru", (1, 16, 1024), "bfloat16", "a step reset before", False),
    _recurrent("gru", (50, 64, 64), "float64", "streamed", True),
    _recurrent("rnn", (100, 64, 256), "bfloat16", "held", "tanh"),
    _recurrent("rnn", (100, 64, 512), "float16", "streamed relu", "relu"),
)

"""ONNX graphs of convolutions and poolings."""

from __future__ import annotations

from typing import Any

from bench.providers.graphs import Graph, graph_of
from bench.providers.provider import Unsupported


def _pads(padding: tuple[int, ...]) -> list[int]:
    """Ours are top, bottom, left, right (or height, width); ONNX wants all beginnings, then all ends."""
    if len(padding) == 2:
        return [padding[0], padding[1], padding[0], padding[1]]
    top, bottom, left, right = padding
    return [top, left, bottom, right]


def _check_image(graph: Graph) -> Any:
    graph.refuse(one_image=graph.workload.arguments["x"].ndim != 4)
    return graph.workload.problem


@graph_of("conv2d")
def conv2d(graph: Graph) -> tuple[str, ...]:
    """Conv and an activation, which both engines fuse."""
    problem = _check_image(graph)
    sums = graph.node(
        "Conv",
        graph.input("x"),
        graph.weight("weight"),
        graph.weight("bias"),
        kernel_shape=list(problem.weight.shape[2:]),
        strides=list(problem.stride),
        pads=_pads(problem.padding),
        dilations=list(problem.dilation),
        group=problem.groups,
    )
    return (graph.activated(sums, problem.activation),)


@graph_of("conv2d_max_pool2d")
def conv2d_max_pool2d(graph: Graph) -> tuple[str, ...]:
    """Conv, an activation and MaxPool."""
    (convolved,) = conv2d(graph)
    problem: Any = graph.workload.problem
    pooled = graph.node(
        "MaxPool",
        convolved,
        kernel_shape=list(problem.pool_kernel_size),
        strides=list(problem.pool_stride),
        pads=_pads(problem.pool_padding),
        ceil_mode=int(problem.pool_ceil_mode),
    )
    return (pooled,)


@graph_of("conv_transpose2d")
def conv_transpose2d(graph: Graph) -> tuple[str, ...]:
    """ConvTranspose."""
    problem = _check_image(graph)
    return (
        graph.node(
            "ConvTranspose",
            graph.input("x"),
            graph.weight("weight"),
            graph.weight("bias"),
            kernel_shape=list(problem.weight.shape[2:]),
            strides=list(problem.stride),
            pads=_pads(problem.padding),
            dilations=list(problem.dilation),
            output_padding=list(problem.output_padding),
            group=problem.groups,
        ),
    )


@graph_of("max_pool2d", "avg_pool2d", "lp_pool2d")
def pool(graph: Graph) -> tuple[str, ...]:
    """MaxPool, AveragePool, LpPool."""
    problem = _check_image(graph)
    op = graph.workload.case.op
    # ONNX counts indices over the whole batch, torch within a plane.
    graph.refuse(indices=getattr(problem, "return_indices", False), divisor=getattr(problem, "divisor_override", None))
    common: dict[str, Any] = {
        "kernel_shape": list(problem.kernel_size),
        "strides": list(problem.stride),
        "pads": _pads(tuple(problem.padding)),
        "ceil_mode": int(problem.ceil_mode),
    }
    x = graph.input("x")
    if op == "max_pool2d":
        return (graph.node("MaxPool", x, dilations=list(problem.dilation), **common),)
    if op == "avg_pool2d":
        return (graph.node("AveragePool", x, count_include_pad=int(problem.count_include_pad), **common),)
    power = problem.norm_type
    if power not in (1, 2, 3, 4):
        raise Unsupported(f"no ONNX graph with norm_type {power}")
    return (graph.node("LpPool", x, p=int(power), **common),)


@graph_of("adaptive_avg_pool2d", "adaptive_max_pool2d")
def adaptive(graph: Graph) -> tuple[str, ...]:
    """Where all windows have one size, the pooling with that window."""
    problem = _check_image(graph)
    graph.refuse(indices=graph.workload.arguments.get("return_indices", False))
    kind = "Average" if "avg" in graph.workload.case.op else "Max"
    plane = problem.x.shape[2:]
    outputs = problem.output_shape[2:]
    if any(n == 0 or size % n for size, n in zip(plane, outputs)):
        raise Unsupported("ONNX has no adaptive pooling with windows of several sizes")
    window = [size // n for size, n in zip(plane, outputs)]
    x = graph.input("x")
    if all(n == 1 for n in outputs):
        return (graph.node(f"Global{kind}Pool", x),)
    return (graph.node(f"{kind}Pool", x, kernel_shape=window, strides=window),)

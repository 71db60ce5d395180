"""ONNX graphs of recurrent layers and attention."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.providers.graphs import ATTENTION_OPSET, Graph, graph_of

# torch: LSTM i f g o, GRU r z n. ONNX: LSTM i o f c, GRU z r h.
_GATES = {"rnn": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}


def _reordered(weight: Any, cell: str) -> Any:
    """A weight with its gates in ONNX's order."""
    gates = np.split(weight, len(_GATES[cell]))
    return np.concatenate([gates[i] for i in _GATES[cell]])


@graph_of("rnn_layer", "lstm_layer", "gru_layer")
def recurrent(graph: Graph) -> tuple[str, ...]:
    """RNN, LSTM, GRU; the output's directions side by side as in torch."""
    given, problem = graph.workload.arguments, graph.workload.problem
    spec: Any = problem
    cell = graph.workload.case.op.removesuffix("_layer")
    graph.refuse(
        batch_first=given.get("batch_first"),
        projection="w_hr" in given,
        last_step_alone=given.get("return_last"),
        empty_rows=given.get("lengths") is not None and not given["lengths"].all(),
    )
    ends = ("", "_reverse")[: spec.directions]

    def stacked(*names: str) -> str:
        found = [np.concatenate([_reordered(given[n + end], cell) for n in names]) for end in ends]
        return graph.constant(np.stack(found))

    x = graph.input("x")
    weights = (stacked("w_ih"), stacked("w_hh"), stacked("b_ih", "b_hh") if "b_ih" in given else "")
    lengths = given.get("lengths")
    steps = "" if lengths is None else graph.constant(lengths.astype(np.int32))
    states = [graph.input(name) if name in given else "" for name in ("h0", "c0")[: 2 if cell == "lstm" else 1]]
    options: dict[str, Any] = {"hidden_size": spec.units}
    if spec.directions == 2:
        options["direction"] = "bidirectional"
    if cell == "gru":
        options["linear_before_reset"] = int(given.get("reset_after", True))
    if cell == "rnn":
        name = {"tanh": "Tanh", "relu": "Relu"}[given.get("nonlinearity", "tanh")]
        options["activations"] = [name] * spec.directions
    found = graph.node(cell.upper(), x, *weights, steps, *states, outputs=1 + len(states), **options)
    output, *final = found
    # (T, D, B, H) -> (T, B, D H)
    if spec.directions == 1:
        output = graph.node("Squeeze", output, graph.constant(np.array([1], np.int64)))
    else:
        output = graph.node("Transpose", output, perm=[0, 2, 1, 3])
        output = graph.node("Reshape", output, graph.constant(np.array([0, 0, -1], np.int64)))
    return (output, *final)


@graph_of("attention", "scaled_dot_product_attention")
def attention(graph: Graph) -> tuple[str, ...]:
    """ONNX's Attention for ONNX Runtime; for OpenVINO the product-softmax-product that it recognises."""
    given = graph.workload.arguments
    query = given["query"]
    graph.refuse(
        dropout=given.get("dropout_p"),
        window=given.get("window"),
        softcap=given.get("softcap"),
        relative_term=given.get("relative") is not None,
        lengths=given.get("lengths") is not None,
        log_sum_exp=given.get("return_lse"),
        causality_from_the_end=given.get("causal") == "bottom_right",
        grouped_heads=query.shape[-3:-2] != given["key"].shape[-3:-2],
        other_than_four_dimensions=query.ndim != 4,
        two_masks=given.get("mask") is not None and given.get("bias") is not None,
    )
    causal = bool(given.get("is_causal")) or given.get("causal") is not None
    scale = given.get("scale")
    scale = float(query.shape[-1]) ** -0.5 if scale is None else float(scale)
    names = [graph.input(name) for name in ("query", "key", "value")]
    masks = [name for name in ("mask", "bias", "attn_mask") if given.get(name) is not None]
    if graph.engine == "onnxruntime":
        graph.opset = ATTENTION_OPSET
        return (graph.node("Attention", *names, *map(graph.input, masks), is_causal=int(causal), scale=scale),)
    # The scale on the queries: fewer numbers than the scores.
    scaled = graph.node("Mul", names[0], graph.constant(np.array(scale, query.dtype)))
    scores = graph.node("MatMul", scaled, graph.node("Transpose", names[1], perm=[0, 1, 3, 2]))
    for name in masks:
        if given[name].dtype == bool:
            hidden = graph.constant(np.array(-np.inf, query.dtype))
            scores = graph.node("Where", graph.input(name), scores, hidden)
        else:
            scores = graph.node("Add", scores, graph.input(name))
    if causal:
        later = np.triu(np.full((query.shape[-2], given["key"].shape[-2]), -np.inf, query.dtype), 1)
        scores = graph.node("Add", scores, graph.constant(later))
    return (graph.node("MatMul", graph.node("Softmax", scores, axis=-1), names[2]),)

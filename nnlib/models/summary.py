"""The table that model.summary() prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from nnlib import ops
from nnlib.calling import in_mode
from nnlib.layers.base import Layer, Shape
from nnlib.layers.recurrent_base import Recurrent

HEADER = ("Layer (type)", "Output shape", "Parameters", "FLOPs", "Kernels")


def summary_text(model: torch.nn.Module, name: str, shapes: dict[str, Shape], inputs: Sequence[torch.Tensor]) -> str:
    """Each layer's output shape, parameters, floating-point operations and kernels, and the totals below.

    shapes: output shapes by the layers' paths in the model, where they are known better than by the layers.
    inputs: of one sample. The model is called with them, but every kernel only says what it would do (see
    ops.rehearsing), so that nothing is computed, or compiled.
    """
    layers = dict(outermost_layers(model))
    with in_mode(model, training=False), _named_by_path(model) as paths, _states_set_aside(model):
        with ops.rehearsing() as uses, torch.enable_grad():
            model(*inputs)
    rows, total = [], 0
    for path, layer in layers.items():
        own = [use for use in uses if use.caller in paths[path]]
        flops = sum(use.flops for use in own)
        total += flops
        shape = shapes.get(path) or layer.compute_output_shape(layer.built_input_shape or ())
        title = f"{path} ({type(layer).__name__})"
        rows.append((title, str(shape), f"{layer.count_parameters():,}", f"{flops:,}", _kernels(own)))
    parameters = list(model.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    of = ", ".join(str(tuple(x.shape[1:])) for x in inputs)
    return (
        f"Model: {name}\n{format_table(HEADER, rows)}\n"
        f"Parameters: {count:,}, of which {trainable:,} trainable\n"
        f"FLOPs of a forward pass of one sample {of}: {total:,}, a multiply-add counted as two\n"
        "Kernels are those of that pass; larger batches may run on others"
    )


def outermost_layers(module: torch.nn.Module, path: str = "") -> Iterator[tuple[str, Layer]]:
    """The layers of a model by their paths, without those inside other layers."""
    for name, child in module.named_children():
        here = f"{path}.{name}" if path else name
        if isinstance(child, Layer):
            yield here, child
        else:
            yield from outermost_layers(child, here)


@contextmanager
def _named_by_path(model: torch.nn.Module) -> Iterator[dict[str, set[str]]]:
    """Within the block every layer has its path as its name, which no other has. Gives the names inside each layer."""
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, Layer)}
    before = {path: layer.name for path, layer in layers.items()}
    for path, layer in layers.items():
        layer.name = path
    inside = {
        path: {inner.name for inner in layer.modules() if isinstance(inner, Layer)} for path, layer in layers.items()
    }
    try:
        yield inside
    finally:
        for path, layer in layers.items():
            layer.name = before[path]


@contextmanager
def _states_set_aside(model: torch.nn.Module) -> Iterator[None]:
    """Within the block stateful layers start anew; afterwards they have the states that they had."""
    layers = [layer for layer in model.modules() if isinstance(layer, Recurrent)]
    before = [layer.kept_states for layer in layers]
    for layer in layers:
        layer.reset_state()
    try:
        yield
    finally:
        for layer, states in zip(layers, before, strict=True):
            layer.kept_states = states


def _kernels(uses: Sequence[ops.KernelUse]) -> str:
    """numba: linear, attention; torch: dropout (backward: ...)"""
    by_backend: dict[str, list[str]] = {}
    for use in uses:
        backend = use.backend if use.backward in (use.backend, None) else f"{use.backend} (backward {use.backward})"
        ops_there = by_backend.setdefault(backend, [])
        if use.op not in ops_there:
            ops_there.append(use.op)
    return "; ".join(f"{backend}: {', '.join(names)}" for backend, names in by_backend.items())


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text under a header, as wide as they need to be; columns of numbers are set to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    numeric = [
        bool(rows) and all(row[column].replace(",", "").replace(".", "").isdigit() for row in rows)
        for column in range(len(header))
    ]

    def line(row: Sequence[str]) -> str:
        cells = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        )
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *(line(row) for row in rows)])

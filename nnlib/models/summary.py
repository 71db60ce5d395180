"""The table that model.summary() prints."""

from __future__ import annotations

from collections.abc import Sequence

from nnlib.layers.base import Layer, Shape


def summary_text(name: str, layers: Sequence[Layer], input_shape: Shape) -> str:
    """Layer, output shape and number of parameters, one line a layer, and the totals below."""
    rows = []
    shape = input_shape
    for layer in layers:
        shape = layer.compute_output_shape(shape)
        rows.append((f"{layer.name} ({type(layer).__name__})", str(shape), f"{layer.count_parameters():,}"))
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    total = sum(parameter.numel() for parameter in parameters)
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    table = format_table(("Layer (type)", "Output shape", "Parameters"), rows)
    return f"Model: {name}\n{table}\nParameters: {total:,}, of which {trainable:,} trainable"


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

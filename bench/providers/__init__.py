"""The engines that are measured, each in one module, all behind `bench.providers.provider.Provider`."""

from __future__ import annotations

import difflib
import importlib

from bench.providers.provider import Provider

#: Module and class of each provider, by the name that a user types; imported when it is asked for.
_PLACES = {
    "ours": ("bench.providers.ours", "Ours"),
    "ours-packed": ("bench.providers.ours_packed", "OursPacked"),
    "torch": ("bench.providers.eager", "Eager"),
    "compile": ("bench.providers.compiled", "Compiled"),
    "onnxruntime": ("bench.providers.onnx_runtime", "OnnxRuntime"),
    "openvino": ("bench.providers.open_vino", "OpenVino"),
}
NAMES = tuple(_PLACES)
#: This library's: no peers of each other.
OURS = ("ours", "ours-packed")


def provider(name: str) -> Provider:
    """The provider of that name; a ``ValueError`` lists the known ones."""
    if name not in _PLACES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(f"unknown provider {name!r}{hint} Known: {', '.join(NAMES)}")
    module, attribute = _PLACES[name]
    made: Provider = getattr(importlib.import_module(module), attribute)()
    return made

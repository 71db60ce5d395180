"""Functions that are written out as text: what differs from call to call then costs nothing at a call."""

from __future__ import annotations

import linecache
from collections.abc import Callable
from typing import Any


def factory_from(source: str, what: str) -> Callable[..., Any]:
    """The function `factory` that a text defines; `what` names the text in tracebacks, which show its lines."""
    file = f"<{what} {abs(hash(source)):x}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    scope: dict[str, Any] = {}
    exec(compile(source, file, "exec"), scope)
    factory: Callable[..., Any] = scope["factory"]
    return factory

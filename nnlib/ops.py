"""The door from nnlib to the kernels: every computation of a layer or a loss goes through `call`.

One door, so that one place passes the backend on and one place can note which kernel ran where.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import kernels
from nnlib.precision import autocast_dtype, convert


@dataclass(frozen=True)
class KernelUse:
    """One call of a kernel: who called it (a layer's name), the op, and the backends that run it.

    backward: the backend for the gradients, None where no backend has them.
    """

    caller: str
    op: str
    backend: str
    backward: str | None


# The list that calls are noted in, while a `recording` block is open.
_record: list[KernelUse] | None = None


def call(caller: str, op: str, *arguments: Any, backend: str | None, **options: Any) -> Any:
    """Calls kernels.<op>(*arguments, backend=backend, **options) and returns its result.

    caller: the name that a `recording` notes for this call. Raises what the kernel raises.
    """
    dtype = autocast_dtype(op, arguments)
    if dtype is not None:
        arguments = convert(arguments, dtype)
        options = {name: convert(value, dtype) for name, value in options.items()}
    if _record is not None:
        with redirect_stdout(io.StringIO()):  # explain prints its table as well as returning it
            found = kernels.explain(op, *arguments, backend=backend, **options)
        # Nothing is chosen where the named backend cannot run: the call below then raises with the reasons.
        if found.chosen is not None:
            _record.append(KernelUse(caller, op, found.chosen, found.backward))
    return getattr(kernels, op)(*arguments, backend=backend, **options)


@contextmanager
def recording() -> Iterator[list[KernelUse]]:
    """Within the block every kernel call of nnlib is noted in the list that it gives, in order of the calls.

    For reports: it is one list for the process, so it also notes what other threads call meanwhile.
    """
    global _record
    before, _record = _record, []
    try:
        yield _record
    finally:
        _record = before

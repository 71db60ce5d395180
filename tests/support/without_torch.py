"""Calls of the backend "cupy" in a process in which torch is not installed: ``python -m tests.support.without_torch``.

The arguments are two files of pickles: a list of (op, its arguments, incoming gradients), arrays as NumPy; and where
the answers go, for each call a dictionary from the kind of array that came in to (results, gradients of the op's inputs
in their order), as NumPy again. A fake CuPy takes the place of CuPy (fake_cupy.py).
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np

ABSENT = "torch"


class _Finder:
    """One of the interpreter's finders of modules, which finds no torch."""

    def __init__(self, finder: Any) -> None:
        self._finder = finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """As of any finder."""
        return None if name.partition(".")[0] == ABSENT else self._finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


def _answers(op: str, arguments: dict[str, Any], incoming: tuple[Any, ...]) -> dict[str, Any]:
    """Of one call, with arrays of every kind."""
    import kernels
    from tests.support import fake_cupy

    def seen(array: Any) -> Any:
        return array.get() if isinstance(array, fake_cupy.ndarray) else array

    kinds = {"cupy": fake_cupy.on_device, "foreign": fake_cupy.Foreign, "numpy": lambda array, _: array}
    answers = {}
    for kind, make in kinds.items():
        given = {n: make(a, 1) if isinstance(a, np.ndarray) else a for n, a in arguments.items()}
        value, pullback = kernels.vjp(op, **given, **({"device": "cuda:1"} if kind == "numpy" else {}))
        results = value if isinstance(value, tuple) else (value,)
        gradients = pullback(*(g if kind == "numpy" else fake_cupy.on_device(g, 1) for g in incoming))
        arrays = [a for a in (*results, *gradients) if a is not None]
        wanted = np.ndarray if kind == "numpy" else fake_cupy.ndarray
        assert all(isinstance(a, wanted) for a in arrays), f"{op}: other arrays than {wanted} came out"
        assert kind == "numpy" or {a.device.id for a in arrays} == {1}, f"{op}: other devices"
        answers[kind] = tuple(map(seen, results)), tuple(map(seen, gradients))
    return answers


def main(calls: str, answers: str) -> None:
    """Read the calls, leave the answers."""
    sys.meta_path[:] = map(_Finder, sys.meta_path)  # type: ignore[arg-type]
    from tests.support import fake_cupy

    with fake_cupy.installed():
        found = [_answers(*one) for one in pickle.loads(Path(calls).read_bytes())]
    assert ABSENT not in sys.modules
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        Path(answers).write_bytes(pickle.dumps(found))
    else:
        raise AssertionError("torch can be imported here")


if __name__ == "__main__":
    main(*sys.argv[1:])

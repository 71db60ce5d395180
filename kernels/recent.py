"""Recognising a call that is as an earlier one was, without making the key of its plan.

A key of many arrays and attributes takes longer to make, to hash and to compare than many a kernel to run. So beside
each plan is kept, under the shape of the first input alone, a function that asks of a call what the key would say, and
stops at the first answer that differs. It is written out for the call, holds on to no array, and knows nothing of where
arrays lie.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from kernels import arrays
from kernels.written_code import factory_from

#: Calls kept for one shape of the first input, the newest first.
MOST = 4
#: Inputs that an op has for which it pays.
LEAST = 2

#: How a value is compared: by identity, or by type and value.
_IS, _EQUALS = "is", "equals"


def _of_attribute(n: int, how: str) -> str:
    return f"a{n} is value{n}" if how == _IS else f"type(a{n}) is type_of_a{n} and a{n} == value{n}"


def _of_numpy(n: int) -> str:
    form = f"t{n}.shape == shape{n} and t{n}.strides == strides{n} and t{n}.dtype is dtype{n}"
    return f"type(t{n}) in kinds{n} and {form}"


def _of_tensor(n: int, contiguous: bool, wants: bool, any_wants: bool) -> str:
    layout = f"t{n}.is_contiguous()" if contiguous else f"not t{n}.is_contiguous() and t{n}.stride() == strides{n}"
    grad = f"t{n}.requires_grad" if wants else f"not t{n}.requires_grad"
    if not any_wants:
        grad = f"(not t{n}.requires_grad or not is_grad_enabled())"
    form = f"t{n}.shape == shape{n} and {layout} and t{n}.dtype is dtype{n} and t{n}.is_cpu"
    return f"type(t{n}) in kinds{n} and {form} and {grad}"


@lru_cache(1024)
def _factory(inputs: tuple[Any, ...], attributes: tuple[str, ...]) -> Callable[..., Any]:
    """Makes ``fits`` of the constants, in the order in which they are named below.

    inputs: None, "numpy", or of a tensor whether it is contiguous and whether its gradient is wanted.
    """
    any_wants = any(isinstance(form, tuple) and form[1] for form in inputs)
    # First what calls of other forms differ in most often.
    conditions = ["type(t0) in kinds0", *["is_grad_enabled()"] * any_wants]
    conditions += ["backend == backend0", "device is None", "ones is ones0"]
    names = ["backend0", "ones0", "is_grad_enabled"]
    read = []
    for n, how in enumerate(attributes):
        conditions.append(_of_attribute(n, how))
        names += [f"type_of_a{n}", f"value{n}"]
    if attributes:
        read.append(f"{', '.join(f'a{n}' for n in range(len(attributes)))}, = attributes")
    read.append(f"{', '.join(f't{n}' for n in range(len(inputs)))}, = inputs")
    for n, form in enumerate(inputs):
        if form is None:
            conditions.append(f"t{n} is None")
            continue
        if form == "numpy":
            conditions.append(_of_numpy(n))
        else:
            contiguous, wants = form
            conditions.append(_of_tensor(n, contiguous, wants, any_wants))
        names += [f"{what}{n}" for what in ("kinds", "shape", "strides", "dtype")]
    source = "\n".join([
        f"def factory({', '.join(names)}):",
        "    def fits(inputs, attributes, device, backend, ones):",
        *[f"        {line}" for line in read],
        "        try:",
        "            return (",
        "                " + "\n                and ".join(conditions),
        "            )",
        "        except RuntimeError:",  # Of a tensor without strides, as the making of a plan will say.
        "            return False",
        "    return fits",
    ])  # fmt: skip
    return factory_from(source, "calls like an earlier one")


def _recogniser(
    inputs: tuple[Any, ...], attributes: tuple[Any, ...], device: Any, backend: str | None, ones: Any
) -> Callable[..., bool] | None:
    """``fits(inputs, attributes, device, backend, ones)``; see `remember`."""
    torch = arrays.loaded_torch()
    plain = () if torch is None else (torch.Tensor, torch.nn.Parameter)
    forms: list[Any] = []
    constants: list[Any] = []
    for array in inputs:
        if array is None:
            forms.append(None)
        elif type(array) is np.ndarray:
            forms.append("numpy")
            constants += ((np.ndarray,), array.shape, array.strides, array.dtype)
        elif type(array) in plain and array.is_cpu:
            forms.append((array.is_contiguous(), arrays.wants_grad(array)))
            constants += (plain, array.shape, array.stride(), array.dtype)
        else:
            return None
    if device is not None:
        return None
    hows = tuple([_IS if value is None or isinstance(value, (bool, str)) else _EQUALS for value in attributes])
    values = [each for value in attributes for each in (type(value), value)]
    is_grad_enabled = None if torch is None else torch.is_grad_enabled
    found: Callable[..., bool] = _factory(tuple(forms), hows)(backend, ones, is_grad_enabled, *values, *constants)
    return found


def remember(
    plans: dict[Any, Any], inputs: tuple[Any, ...], rest: tuple[Any, ...], run: Callable[[tuple[Any, ...]], Any]
) -> None:
    """Keep among the plans, under the shape of the first input, how calls like this one are recognised and run.

    Not where the key must be asked: of arrays on a GPU, with a named device, of arrays that are none of NumPy's or
    torch's. rest: attributes, device, backend and `ones`, as `kernels.call.call` has them.
    """
    fits = _recogniser(inputs, *rest) if len(inputs) >= LEAST else None
    if fits is not None:
        shape = inputs[0].shape
        plans[shape] = ((fits, run), *plans.get(shape, ()))[:MOST]

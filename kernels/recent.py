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
    return f"type(t{n}) is ndarray and {form}"


@lru_cache(1024)
def _factory(inputs: tuple[Any, ...], attributes: tuple[str, ...], records: bool | None) -> Callable[..., Any]:
    """Makes ``fits`` of the constants, in the order in which they are named below.

    inputs: None, "numpy", "tensor", or of a tensor that came before its number. records: whether gradients must be
    recorded, None where none could be.
    """
    # First what calls of other forms differ in most often.
    conditions = [] if records is None else [f"is_grad_enabled() is {records}"]
    conditions += ["backend == backend0", "device is None", "ones is ones0"]
    names = ["ndarray", "kinds", "backend0", "ones0", "is_grad_enabled", "alike"]
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
        elif form == "numpy":
            conditions.append(_of_numpy(n))
            names += [f"{what}{n}" for what in ("shape", "strides", "dtype")]
        elif form != "tensor":
            conditions.append(f"t{n} is t{form}")
    tensors = [f"t{n}" for n, form in enumerate(inputs) if form == "tensor"]
    asked = [f"not {tensor}.is_nested" for tensor in tensors if tensor != "t0"]
    if asked:
        # Asked of what is no tensor it raises, which takes long. The first input's shape has been asked already, which
        # a nested tensor does not have.
        conditions += [f"type({tensors[0]}) in kinds", *asked]
    if tensors:
        conditions.append(f"alike({', '.join(tensors)})")
    source = "\n".join([
        f"def factory({', '.join(names)}):",
        "    def fits(inputs, attributes, device, backend, ones):",
        *[f"        {line}" for line in read],
        "        try:",
        "            return (",
        "                " + "\n                and ".join(conditions),
        "            )",
        # Of a tensor without strides, and of what is none, as the making of a plan will say.
        "        except (RuntimeError, AttributeError):",
        "            return False",
        "    return fits",
    ])  # fmt: skip
    return factory_from(source, "calls like an earlier one")


def _recogniser(
    inputs: tuple[Any, ...], attributes: tuple[Any, ...], device: Any, backend: str | None, ones: Any
) -> Callable[..., bool] | None:
    """``fits(inputs, attributes, device, backend, ones)``; see `remember`."""
    if device is not None:
        return None
    torch = arrays.loaded_torch()
    plain = () if torch is None else (torch.Tensor, torch.nn.Parameter)
    forms: list[Any] = []
    constants: list[Any] = []
    seen: dict[int, int] = {}
    for n, array in enumerate(inputs):
        if array is None:
            forms.append(None)
        elif type(array) is np.ndarray:
            forms.append("numpy")
            constants += (array.shape, array.strides, array.dtype)
        elif type(array) in plain and array.is_cpu:
            first = seen.setdefault(id(array), n)
            forms.append("tensor" if first == n else first)
        else:
            return None
    alike = records = is_grad_enabled = None
    if seen:
        from kernels import torch_guards

        tensors = [inputs[n] for n in seen.values()]
        alike, is_grad_enabled = torch_guards.alike(tensors), torch.is_grad_enabled
        if alike is None:
            return None
        if any(tensor.requires_grad for tensor in tensors):
            records = is_grad_enabled()
    hows = tuple([_IS if value is None or isinstance(value, (bool, str)) else _EQUALS for value in attributes])
    values = [each for value in attributes for each in (type(value), value)]
    make = _factory(tuple(forms), hows, records)
    found: Callable[..., bool] = make(np.ndarray, plain, backend, ones, is_grad_enabled, alike, *values, *constants)
    return found


def remember(
    plans: dict[Any, Any], inputs: tuple[Any, ...], rest: tuple[Any, ...], run: Callable[[tuple[Any, ...]], Any]
) -> bool:
    """Keep among the plans, under the shape of the first input, how calls like this one are recognised and run.

    For a plan that is new, and for one that was found by its key where there is room: the same plan may serve tensors
    that `torch_guards.alike` tells apart.

    Not where the key must be asked: of arrays on a GPU, with a named device, of arrays that are none of NumPy's or
    torch's. rest: attributes, device, backend and `ones`, as `kernels.call.call` has them.

    Returns:
        whether it was kept: the same for all calls of a plan.
    """
    fits = _recogniser(inputs, *rest) if len(inputs) >= LEAST else None
    if fits is None:
        return False
    shape = inputs[0].shape
    plans[shape] = ((fits, run), *plans.get(shape, ()))[:MOST]
    return True

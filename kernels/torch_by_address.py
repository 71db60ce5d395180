"""Calls by address with tensors: see kernels.runtime.written_calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch.autograd import forward_ad

from kernels import torch_guards
from kernels.arrays import ArraySpec, contiguous_strides
from kernels.runtime import numba_cpu, written_calls
from kernels.runtime.by_address import maker
from kernels.runtime.written_calls import ABSENT, GIVEN, LANGUAGES, OPTIONAL, SAVED, Language

__all__ = ["ABSENT", "GIVEN", "OPTIONAL", "SAVED", "written"]

_from_numpy = torch.from_numpy
_empty_strided = torch_guards.empty_strided


def _ask(numbers: Sequence[int]) -> list[str]:
    """An address is not all that there is to a tensor which is negated when it is read, or belongs to a transform of
    torch.func. Hooks on saved tensors may make anything of them, and gradients come as they are."""
    n, given = numbers[0], ", ".join(f"t{n}" for n in numbers)
    return [
        f"nonlocal alike{n}",
        f"if not alike{n}({given}):",
        f"    found = admit{n}({given})",
        "    if found is None: return None",
        f"    alike{n} = found",
    ]


#: Bytes of a result from which on it lies in our memory. Below, the C library that torch asks has pages at hand, as it
#: keeps what blocks of such sizes leave; there our own costs a small kernel as much again (5 us on Zen 2).
SMALLEST_OURS = 1 << 20


def _make(form: ArraySpec) -> Callable[[], torch.Tensor]:
    """Small tensors in torch's own memory, which takes half the time of a view of NumPy's; large ones in ours, which
    is used again."""
    found = maker(form)
    assert found is not None
    allocate, size, dtype = found
    shape, strides = form.shape, form.strides or contiguous_strides(form.shape)
    is_small = form.nbytes < SMALLEST_OURS and _empty_strided is not None
    element, usual = getattr(torch, form.dtype), numba_cpu._allocate

    def make() -> torch.Tensor:
        if is_small and numba_cpu._allocator is usual:
            found: torch.Tensor = _empty_strided(shape, strides, element)
            return found
        return _from_numpy(allocate(size, dtype))

    return make


LANGUAGES["torch"] = Language(
    objects={"forward_ad": forward_ad},
    # A tensor may have a tangent.
    first=("if forward_ad._current_level >= 0: return None",),
    ask=_ask,
    # What torch_guards.alike must not see.
    ask_saved=lambda numbers: [f"if {' or '.join(f't{n}.is_nested' for n in numbers)}: return None"],
    asked=("alike", "admit"),
    ask_with=lambda forms: (torch_guards.never, torch_guards.admission(forms)),
    # It raises where a tensor has no memory, and is 0 where that was given back.
    address="{}.data_ptr()",
    unfit="RuntimeError",
    make=_make,
)

#: `written_calls.written` for tensors.
written = partial(written_calls.written, "torch")

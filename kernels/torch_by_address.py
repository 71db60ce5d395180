"""Calls by address with tensors: see kernels.runtime.written_calls."""

from __future__ import annotations

from functools import partial

import torch
from torch.autograd import forward_ad

from kernels.runtime import written_calls
from kernels.runtime.written_calls import ABSENT, CHECKED, KNOWN, LANGUAGES, OPTIONAL, Language

__all__ = ["ABSENT", "CHECKED", "KNOWN", "OPTIONAL", "written"]


def _read(n: int, kind: str) -> list[str]:
    """An address is not all that there is to a tensor which is negated when it is read, or belongs to a transform of
    torch.func. (Where it has no memory, data_ptr raises.)"""
    # 0: a zero tensor of forward-mode differentiation, zeros that lie nowhere.
    wrong = f"not p{n} or p{n} & mask or t{n}.is_neg()"
    if kind != KNOWN:
        # Hooks on saved tensors may make anything of them, and gradients come as they are.
        form = f"t{n}.shape != shape{n} or t{n}.dtype is not dtype{n} or not t{n}.is_cpu"
        wrong += f" or {form} or (not t{n}.is_contiguous() if strides{n} is None else t{n}.stride() != strides{n})"
    return [f"p{n} = t{n}.data_ptr()", f"if {wrong}: return None"]


LANGUAGES["torch"] = Language(
    objects={"from_numpy": torch.from_numpy, "forward_ad": forward_ad},
    # A tensor may have a tangent.
    first=("if forward_ad._current_level >= 0: return None",),
    read=_read,
    make="from_numpy(allocate{n}(size{n}, type{n}))",
    place="r{n}.data_ptr()",
    dtype=lambda form: getattr(torch, form.dtype),
)

#: `written_calls.written` for tensors.
written = partial(written_calls.written, "torch")

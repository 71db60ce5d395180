"""Calls by address written out: the function that takes arrays, asks what must be asked, and tells a run their places.

What is asked of an array, and in which order the addresses go to the kernels, follows from the problem. So the function
is written for each pattern of arrays that are there and are not: a loop over them takes longer than many a kernel. See
kernels.runtime.by_address for what it calls. It is the same for arrays of NumPy's and of torch's but for a few lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import addressof, c_char
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from kernels.arrays import ArraySpec
from kernels.runtime.by_address import Run, maker, mask_of
from kernels.written_code import factory_from

#: How an argument is read: it is never there; what it is follows from the key of the plan; it is looked at; the same of
#: a gradient, which need not be there, but one of them must be.
ABSENT, KNOWN, CHECKED, OPTIONAL = "absent", "known", "checked", "optional"


class Language(NamedTuple):
    """What is written for one kind of array.

    Attributes:
        objects: what the lines refer to, by name.
        first: lines before all others.
        read: ``read(n, kind)``: lines that put the address of array t<n> into p<n>, or return None; of a kind that is
            looked at, it must have shape<n>, dtype<n> and strides<n> (None: contiguous). `mask` has the bits of an
            address that must be 0.
        make: a new result, of allocate<n>, size<n> and type<n>, with {n} for the number.
        place: the address of result r<n>, likewise.
        dtype: the element type of a spec as the arrays have it.
    """

    objects: dict[str, Any]
    first: tuple[str, ...]
    read: Callable[[int, str], list[str]]
    make: str
    place: str
    dtype: Callable[[ArraySpec], Any]


def _lines(
    language: Language, groups: tuple[tuple[str, ...], ...], made: tuple[bool | None, ...], leading: int
) -> list[str]:
    """The body of the function; see `_factory`."""
    kinds = [kind for group in groups for kind in group]
    optional = [n for n, kind in enumerate(kinds) if kind == OPTIONAL]
    body, at = [*language.first], 0
    for g, group in enumerate(groups):
        body += [f"t{n} = group{g}[{n - at}]" for n in range(at, at + len(group)) if kinds[n] != ABSENT]
        at += len(group)
    if optional:
        body.append(f"if {' and '.join(f't{n} is None' for n in optional)}: return None")
    if len(optional) == 1:
        kinds[optional[0]] = CHECKED
    body.append("try:")
    for n, kind in enumerate(kinds):
        read = language.read(n, CHECKED if kind == OPTIONAL else kind) if kind != ABSENT else []
        if kind == OPTIONAL:
            read = [f"if t{n} is None: p{n} = 0", "else:", *[f"    {line}" for line in read]]
        body += [f"    {line}" for line in read]
    body += [f"    r{n} = {language.make.format(n=n)}" for n, there in enumerate(made) if there is not None]
    # A tensor may have no memory of its own.
    body += ["    pass", "except RuntimeError: return None"]
    places = [f"p{n}" if kind != ABSENT else "0" for n, kind in enumerate(kinds)]
    places += [language.place.format(n=n) if filled else "0" for n, filled in enumerate(made)]
    returned = ["None"] * leading + [f"r{n}" if there is not None else "None" for n, there in enumerate(made)]
    return [*body, f"if run({', '.join(places)}) is False: return None", f"return ({', '.join(returned)},)"]


@lru_cache(1024)
def _factory(
    name: str, groups: tuple[tuple[str, ...], ...], made: tuple[bool | None, ...], leading: int
) -> Callable[..., Any]:
    """Makes the function ``call(*groups of arrays) -> results`` of what differs from problem to problem.

    name: of the language. groups: how the arguments of each tuple that it takes are read. made: of each result whether
    it has elements, None where it is not there. leading: so many None come before them.
    """
    language = LANGUAGES[name]
    kinds = [kind for group in groups for kind in group]
    constants = [
        f"{what}{n}" for n, kind in enumerate(kinds) if kind in (CHECKED, OPTIONAL)
        for what in ("shape", "dtype", "strides")
    ]  # fmt: skip
    results = [n for n, there in enumerate(made) if there is not None]
    constants += [f"{what}{n}" for n in results for what in ("allocate", "size", "type")]
    source = "\n".join([
        f"def factory(run, mask, {', '.join([*language.objects, *constants])}):",
        f"    def call({', '.join(f'group{g}' for g in range(len(groups)))}):",
        *[f"        {line}" for line in _lines(language, groups, made, leading)],
        "    return call",
    ])  # fmt: skip
    return factory_from(source, f"call by address on {name}")


def _read_numpy(n: int, _: str) -> list[str]:
    """Arrays of NumPy's lie as their key says, but for their alignment and for being written to, which from_buffer
    asks."""
    return [
        f"if type(t{n}) is not plain or not t{n}.flags.carray or not t{n}.size: return None",
        f"p{n} = addressof(first_byte(t{n}))",
    ]


#: The languages by name; torch's comes from kernels.torch_by_address.
LANGUAGES = {
    "numpy": Language(
        # numba_cpu.address written out: a call is a tenth of a small one's time.
        objects={"plain": np.ndarray, "addressof": addressof, "first_byte": c_char.from_buffer},
        first=(),
        read=_read_numpy,
        make="allocate{n}(size{n}, type{n})",
        place="addressof(first_byte(r{n}))",
        dtype=lambda form: np.dtype(form.dtype),
    )
}


def written(
    language: str,
    run: Run,
    groups: Sequence[Sequence[tuple[str, ArraySpec | None]]],
    made: Sequence[ArraySpec | None],
    leading: int = 0,
) -> Callable[..., tuple[Any, ...] | None]:
    """The function that calls `run` with arrays, in as many tuples as there are groups, and returns new ones.

    It returns None where an address is not all that there is to an array, and where the run itself would not do it.

    Args:
        language: the kind of the arrays, a name in LANGUAGES.
        run: what is told the addresses.
        groups: of each array how it is read, and its spec.
        made: specs of the results.
        leading: so many None come before the results.
    """
    everything = [each for group in groups for each in group]
    constants: list[Any] = []
    for kind, form in everything:
        if kind in (CHECKED, OPTIONAL):
            assert form is not None
            constants += (form.shape, LANGUAGES[language].dtype(form), form.strides)
    for form in made:
        constants += maker(form) or ()
    kinds = tuple([tuple([kind for kind, _ in group]) for group in groups])
    make = _factory(language, kinds, tuple([None if form is None else form.size > 0 for form in made]), leading)
    mask = mask_of([form for _, form in everything])
    call: Callable[..., tuple[Any, ...] | None] = make(run, mask, *LANGUAGES[language].objects.values(), *constants)
    return call

"""Calls by address written out: the function that takes arrays, asks what must be asked, and tells a run their places.

What is asked of an array, and in which order the addresses go to the kernels, follows from the problem. So the function
is written for each pattern of arrays that are there and are not: a loop over them takes longer than many a kernel. See
kernels.runtime.by_address for what it calls. It is the same for arrays of NumPy's and of torch's but for a few lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import addressof, c_char
from functools import lru_cache, partial
from typing import Any, NamedTuple

from kernels.arrays import ArraySpec
from kernels.runtime.by_address import Run, maker, mask_of
from kernels.written_code import factory_from

#: How an argument is read: it is never there; it is; it was kept by torch, whose hooks may have made anything of it; it
#: is a gradient, which need not be there, but one must be.
ABSENT, GIVEN, SAVED, OPTIONAL = "absent", "given", "saved", "optional"


class Language(NamedTuple):
    """What is written for one kind of array.

    Attributes:
        objects: what the lines refer to, by name.
        first: lines before all others.
        ask: ``ask(numbers)``: lines that return None where one of the arrays t<number> is not as its spec says.
        ask_saved: the same before these, of those that were kept.
        asked: names that these lines refer to besides, with the first number behind each.
        ask_with: ``ask_with(specs)``: what they stand for.
        address: the address of an array {}.
        unfit: what that raises of an array that has none.
        make: ``make(spec)``: a function that makes new arrays of a spec.
    """

    objects: dict[str, Any]
    first: tuple[str, ...]
    ask: Callable[[Sequence[int]], list[str]]
    ask_saved: Callable[[Sequence[int]], list[str]]
    asked: tuple[str, ...]
    ask_with: Callable[[Sequence[ArraySpec]], tuple[Any, ...]]
    address: str
    unfit: str
    make: Callable[[ArraySpec], Callable[[], Any]]


def _asks(groups: Sequence[Sequence[str]]) -> list[list[int]]:
    """The numbers of the arguments that are asked together: those that are there, then each that may be by itself."""
    kinds = _kinds(groups)
    given = [n for n, kind in enumerate(kinds) if kind in (GIVEN, SAVED)]
    return [*([given] if given else []), *[[n] for n, kind in enumerate(kinds) if kind == OPTIONAL]]


def _kinds(groups: Sequence[Sequence[str]]) -> list[str]:
    """How each argument of the groups is read; a gradient that is the only one must be there."""
    kinds = [kind for group in groups for kind in group]
    return [GIVEN if kind == OPTIONAL and kinds.count(OPTIONAL) == 1 else kind for kind in kinds]


def _lines(
    language: Language, groups: tuple[tuple[str, ...], ...], made: tuple[bool | None, ...], leading: int
) -> list[str]:
    """The body of the function; see `_factory`."""
    kinds = _kinds(groups)
    there = [n for n, kind in enumerate(kinds) if kind != ABSENT]
    optional = [n for n in there if kinds[n] == OPTIONAL]
    given = [n for n in there if kinds[n] != OPTIONAL]
    saved = [n for n in given if kinds[n] == SAVED]
    body, at = [*language.first], 0
    for g, group in enumerate(groups):
        body += [f"t{n} = group{g}[{n - at}]" for n in range(at, at + len(group)) if n in there]
        at += len(group)
    incoming = [n for n, kind in enumerate(kind for group in groups for kind in group) if kind == OPTIONAL]
    if incoming:
        body.append(f"if {' and '.join(f't{n} is None' for n in incoming)}: return None")
    places = {n: f"p{n} = {language.address.format(f't{n}')}" for n in there}
    read = [*(language.ask_saved(saved) if saved else []), *(language.ask(given) if given else [])]
    read += [places[n] for n in given]
    for n in optional:
        lines = [*language.ask([n]), places[n], f"if not p{n}: return None"]
        read += [f"if t{n} is None: p{n} = 0", "else:", *[f"    {line}" for line in lines]]
    body += ["try:", *[f"    {line}" for line in read], f"except {language.unfit}: return None"]
    nowhere = f"not ({' and '.join(f'p{n}' for n in given)}) or " if given else ""
    body.append(f"if {nowhere}({' | '.join(f'p{n}' for n in there)}) & mask: return None")
    body += [f"r{n} = make{n}()" for n, filled in enumerate(made) if filled is not None]
    arguments = [f"p{n}" if n in there else "0" for n in range(len(kinds))]
    arguments += [language.address.format(f"r{n}") if filled else "0" for n, filled in enumerate(made)]
    returned = ["None"] * leading + ["None" if filled is None else f"r{n}" for n, filled in enumerate(made)]
    return [*body, f"if run({', '.join(arguments)}) is False: return None", f"return ({', '.join(returned)},)"]


@lru_cache(1024)
def _factory(
    name: str, groups: tuple[tuple[str, ...], ...], made: tuple[bool | None, ...], leading: int
) -> Callable[..., Any]:
    """Makes the function ``call(*groups of arrays) -> results`` of what differs from problem to problem.

    name: of the language. groups: how the arguments of each tuple that it takes are read. made: of each result whether
    it has elements, None where it is not there. leading: so many None come before them.
    """
    language = LANGUAGES[name]
    constants = [f"{what}{numbers[0]}" for numbers in _asks(groups) for what in language.asked]
    constants += [f"make{n}" for n, filled in enumerate(made) if filled is not None]
    source = "\n".join([
        f"def factory(run, mask, {', '.join([*language.objects, *constants])}):",
        f"    def call({', '.join(f'group{g}' for g in range(len(groups)))}):",
        *[f"        {line}" for line in _lines(language, groups, made, leading)],
        "    return call",
    ])  # fmt: skip
    return factory_from(source, f"call by address on {name}")


def _make_numpy(form: ArraySpec) -> Callable[[], Any]:
    found = maker(form)
    assert found is not None
    allocate, size, dtype = found
    return partial(allocate, size, dtype)


#: The languages by name; torch's comes from kernels.torch_by_address.
LANGUAGES = {
    "numpy": Language(
        objects={"addressof": addressof, "first_byte": c_char.from_buffer},
        first=(),
        # They lie as their key says, but for their alignment, and for being written to, without which, as with gaps
        # between the elements, from_buffer raises.
        ask=lambda _: [],
        ask_saved=lambda _: [],
        asked=(),
        ask_with=lambda _: (),
        # numba_cpu.address written out: a call is a tenth of a small one's time.
        address="addressof(first_byte({}))",
        unfit="(TypeError, ValueError)",
        make=_make_numpy,
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
    speaks = LANGUAGES[language]
    constants: list[Any] = []
    kinds = tuple([tuple([kind for kind, _ in group]) for group in groups])
    for numbers in _asks(kinds):
        constants += speaks.ask_with([form for n in numbers if (form := everything[n][1]) is not None])
    constants += [speaks.make(form) for form in made if form is not None]
    factory = _factory(language, kinds, tuple([None if form is None else form.size > 0 for form in made]), leading)
    mask = mask_of([form for _, form in everything])
    call: Callable[..., tuple[Any, ...] | None] = factory(run, mask, *speaks.objects.values(), *constants)
    return call

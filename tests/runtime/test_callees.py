"""The form of a kernel that compiled code calls: shared between callers, kept on disk, never machine code by itself."""

from __future__ import annotations

from kernels.runtime import compile_cache

NESTED = """
from kernels.runtime.numba_cpu import jit

@jit
def square(x):
    return x * x

@jit
def plus_one(x):
    return square(x) + 1

@jit
def twice(x):
    return 2 * square(x)

def counts():
    for f in (square, square.callee):
        print(sum(f.stats.cache_hits.values()), sum(f.stats.cache_misses.values()), end="  ")
"""


def test_callers_share_a_callee_in_a_process_and_over_the_disk(python):
    assert python(NESTED + "print(plus_one(3), twice(3)); counts()") == ["10 18", "0 0  0 1  "]
    # A caller that is loaded needs no callee; a new one finds it on disk.
    assert python(NESTED + "print(plus_one(3)); counts()") == ["10", "0 0  0 0  "]
    new = "\n@jit\ndef minus_one(x):\n    return square(x) - 1\n"
    assert python(NESTED + new + "print(minus_one(3), plus_one(3)); counts()") == ["8 10", "0 0  1 0  "]
    # The form that Python calls is another file.
    assert python(NESTED + "print(square(3), twice(3)); counts()") == ["9 18", "0 1  0 0  "]
    assert python(NESTED + "print(square(3)); counts()") == ["9", "1 0  0 0  "]


CALLEE = """
print(plus_one(4))
(result,) = square.callee.overloads.values()
print(type(result.library).__name__, result.library.get_llvm_str().count("define"), len(square.overloads))
try:
    square.callee(4)
except TypeError as error:
    print(error)
print(square(4))
"""


def test_callee_has_no_machine_code_and_cannot_be_called(python):
    """One definition: no wrapper for Python either. In a process with nothing on disk, where a caller is compiled."""
    expected = ["17", "CalleeLibrary 1 0", "the callee of square can only be called by compiled code", "16"]
    assert python(NESTED + CALLEE) == expected


RAISES = """
from kernels.runtime.numba_cpu import jit

@jit
def refuse(x):
    if x > 2:
        raise ValueError("x must be at most", 2, "got", x)
    return x

@jit
def ask(x):
    return refuse(x)

for x in (1, 7):
    try:
        print(ask(x))
    except ValueError as error:
        print(*error.args)
print(sum(ask.stats.cache_hits.values()))
"""


def test_callee_raises_through_its_caller_fresh_and_from_disk(python):
    # What is raised with a number is put together with the callee's environment.
    assert python(RAISES) == ["1", "x must be at most 2 got 7", "0"]
    assert python(RAISES) == ["1", "x must be at most 2 got 7", "1"]


def test_functions_may_call_themselves_and_each_other():
    scope = {"jit": compile_cache.jit, "__name__": "made"}
    exec(
        "@jit\ndef factorial(n):\n    return n * factorial(n - 1) if n > 1 else 1\n"
        "@jit\ndef twice(n):\n    return 2 * factorial(n)\n",
        scope,
    )
    assert scope["factorial"](5) == 120
    assert scope["twice"](5) == 240

"""CUDA C++ sources: what their kernels take, and arguments of exactly these types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.runtime import cuda_source
from kernels.runtime.cuda_source import Parameter, Source, signature_of, typed_arguments
from kernels.runtime.cupy_gpu import numpy_dtype

TEXT = """
// extern "C" __global__ void commented(int a) {
extern "C" __global__ void first(const float* __restrict__ x, int n) { }
extern "C" __global__ void __launch_bounds__(THREADS * 2, 1) second(
    const STORAGE* x,   // (n,), read, with a comma, in it
    float4* y, void* raw, const volatile unsigned char* bytes,
    INDEX n, const COMPUTED scale, unsigned long long seed, bool flag) { }
"""
CONSTANTS: dict[str, int | str] = {
    "STORAGE": "__nv_bfloat16", "COMPUTED": "float", "INDEX": "long long", "THREADS": 64,
}  # fmt: skip
FLOATS = np.zeros(4, np.float32)


def arguments(**changed: Any) -> tuple[Any, ...]:
    given = {
        "x": np.zeros(2, numpy_dtype("bfloat16")), "y": FLOATS, "raw": None, "bytes": np.zeros(1, np.uint8), "n": 5,
        "scale": 0.5, "seed": 2**63, "flag": True,
    }  # fmt: skip
    return tuple((given | changed).values())


def test_signatures():
    assert cuda_source.kernels_of(TEXT) == ("first", "second")
    first = signature_of(TEXT, CONSTANTS, "first")
    assert first.threads is None
    assert first.parameters == (Parameter("x", "float32", 1, True), Parameter("n", "int32", 1, False))
    second = signature_of(TEXT, CONSTANTS, "second")
    assert second.threads == 128
    assert [(p.name, p.type, p.lanes, p.pointer) for p in second.parameters] == [
        ("x", "bfloat16", 1, True),
        ("y", "float32", 4, True),
        ("raw", "", 1, True),
        ("bytes", "uint8", 1, True),
        ("n", "int64", 1, False),
        ("scale", "float32", 1, False),
        ("seed", "uint64", 1, False),
        ("flag", "bool", 1, False),
    ]


def test_numbers_get_the_types_that_are_declared():
    typed = typed_arguments(signature_of(TEXT, CONSTANTS, "second"), arguments())
    assert [type(a) for a in typed[4:]] == [np.int64, np.float32, np.uint64, np.bool_]
    assert typed[2] is None and typed[4:] == (5, 0.5, 2**63, True)


@pytest.mark.parametrize(
    "changed, error, message",
    [
        ({"x": FLOATS}, TypeError, r"^second: x must be an array of bfloat16, got float32$"),
        ({"x": 3}, TypeError, r"^second: x must be an array, got 3 \(int\)$"),
        ({"raw": [1]}, TypeError, r"^second: raw must be an array, got \[1\] \(list\)$"),
        ({"n": 1.0}, TypeError, r"^second: n must be a number of int64, got 1.0 \(float\)$"),
        ({"n": None}, TypeError, r"^second: n must be a number of int64, got None \(NoneType\)$"),
        ({"flag": 1}, TypeError, r"^second: flag must be a number of bool, got 1 \(int\)$"),
        ({"n": True}, TypeError, r"^second: n must be a number of int64, got True \(bool\)$"),
        ({"seed": -1}, ValueError, r"^second: seed must fit uint64, got -1$"),
        ({"n": 2**63}, ValueError, r"^second: n must fit int64, got 9223372036854775808$"),
    ],
)
def test_wrong_arguments_are_named(changed: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        typed_arguments(signature_of(TEXT, CONSTANTS, "second"), arguments(**changed))


def test_wrong_numbers_of_arguments():
    with pytest.raises(ValueError, match=r"^first: must be given 2 arguments, got 1$"):
        typed_arguments(signature_of(TEXT, CONSTANTS, "first"), (FLOATS,))


@pytest.mark.parametrize(
    "parameters, message",
    [
        ("__half x", "x must be no number in half precision; let the kernel take a float"),
        ("size_t n", "parameter n of k must be a number or a pointer to numbers, got 'size_t n'"),
        ("float** x", "parameter x of k must be a number or a pointer to numbers"),
        ("\n#if 1\nint n\n#endif\n", "the parameters of k must not depend on the preprocessor"),
    ],
)
def test_parameters_that_cannot_be_followed(parameters: str, message: str):
    text = f'extern "C" __global__ void k({parameters}) {{ }}'
    with pytest.raises((TypeError, ValueError), match=message.replace("(", r"\(")):
        typed_arguments(signature_of(text, {}, "k"), (1,))


def test_kernels_that_do_not_exist():
    with pytest.raises(ValueError, match=r"^softmax/softmax.cu: kernel must be one of softmax_rows, .*, got 'nope'$"):
        Source("softmax/softmax.cu", (("STORAGE", "float"), ("COMPUTED", "float"))).signature("nope")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("64", 64),
        ("A", 8),
        ("A * B", 32),
        ("(A + B) / 3", 4),
        ("A - 1", 7),
        ("sizeof(int)", None),
        ("C", None),
        ("*", None),
    ],
)
def test_launch_bounds(text: str, expected: int | None):
    assert cuda_source._number(text, {"A": 8, "B": 4}) == expected


def test_includes_are_put_in_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Lines keep their numbers and files: what a compiler says of them is found."""
    (tmp_path / "a.cuh").write_text("#pragma once\nint a;\n")
    (tmp_path / "b.cuh").write_text('#include "a.cuh"\nint b;\n')
    (tmp_path / "k.cu").write_text('#include <cuda_fp16.h>\n#include "a.cuh"\n#include "b.cuh"\nint k;\n')
    monkeypatch.setattr(cuda_source, "ROOT", tmp_path)
    text = cuda_source.expanded("k.cu")
    assert text.count("int a;") == text.count("int b;") == text.count("int k;") == 1
    assert "#include <cuda_fp16.h>" in text and '#include "' not in text
    assert text.index("int a;") < text.index("int b;") < text.index("int k;")
    lines = text.splitlines()
    assert lines[lines.index("int k;") - 1] == '#line 4 "k.cu"'
    assert lines[lines.index("int b;") - 1] == '#line 2 "b.cuh"'
    old = Source("k.cu", ()).text
    (tmp_path / "a.cuh").write_text("int changed;\n")
    assert Source("k.cu", ()).text != old


def test_options_of_the_compiler():
    source = Source("k.cu", (("INDEX", "long long"), ("ROWS", 4)))
    assert source.options == ("-DINDEX=long long", "-DROWS=4")


def test_every_source_of_the_package_can_be_read():
    """Each .cu file has kernels, all of its includes are there, and every parameter has its place in the text."""
    files = sorted(p.relative_to(cuda_source.ROOT).as_posix() for p in cuda_source.ROOT.rglob("*.cu"))
    assert "softmax/softmax.cu" in files
    for file in files:
        assert cuda_source.kernels_of(cuda_source.expanded(file)), file

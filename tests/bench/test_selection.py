"""Which cases a command line chooses, and what it says about wishes that find nothing."""

from __future__ import annotations

from bench import selection
from kernels.case import all_cases


def test_all_bench_cases_by_default():
    cases, complaints = selection.choose_cases()
    assert complaints == []
    known = selection.known_ops()
    assert list(cases) == [case for case in all_cases("bench") if case.op in known]


def test_names_globs_and_texts():
    cases, complaints = selection.choose_cases(["*pool*", "relu"], ["cnn", "SMALL"])
    assert complaints == []
    assert {case.op for case in cases} == {"conv2d_max_pool2d", "max_pool2d", "avg_pool2d", "relu"}
    assert all("cnn" in case.name or "small" in case.name for case in cases)


def test_tags():
    cases, complaints = selection.choose_cases(["conv2d"], tags=["odd"])
    assert complaints == [] and cases and all("odd" in case.tags for case in cases)


def test_an_unknown_op_is_answered_with_the_nearest_and_the_rest_is_chosen():
    cases, (complaint,) = selection.choose_cases(["conv2", "relu"])
    assert {case.op for case in cases} == {"relu"}
    assert "unknown op 'conv2'" in complaint and "did you mean conv2d" in complaint and "max_pool2d" in complaint


def test_an_unknown_tag_and_a_text_that_no_case_contains():
    cases, complaints = selection.choose_cases(["relu"], ["no such thing"], ["bench", "benhc"])
    assert cases == ()
    assert any("unknown tag 'benhc'; did you mean bench" in line for line in complaints)
    assert any("no case of relu contains 'no such thing'" in line for line in complaints)


def test_layout():
    by_op = {case.op: case for case in all_cases("bench")}
    changed = selection.in_layout(by_op["conv2d"], "channels-last")
    assert changed is not None and changed.channels_last
    assert selection.in_layout(by_op["cross_entropy"], "channels-last") is None
    assert selection.in_layout(by_op["cross_entropy"], "given") is by_op["cross_entropy"]


def test_impossible_dtype():
    assert selection.dtype_complaint("conv2d", "float64") is None
    complaint = selection.dtype_complaint("conv2d", "float16")
    assert complaint is not None and "float16" in complaint and "float32" in complaint

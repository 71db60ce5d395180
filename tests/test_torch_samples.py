"""PyTorch's own samples for the functions that we have, called as `API` promises: values, gradients, bad inputs."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from kernels.op import OPS
from tests.support import samples

#: torch.nn.functional.lp_pool2d comes without samples; dropout's random numbers are not torch's.
WITHOUT_SAMPLES = {"lp_pool2d", "dropout"}
INFOS = [
    pytest.param(name, info, id=f"{name}{'-' * bool(info.variant_test_name)}{info.variant_test_name}")
    for name, infos in samples.op_infos().items()
    for info in infos
]


def test_every_op_of_torch_has_samples():
    named = {name for name in OPS if hasattr(torch.nn.functional, name)}
    assert named - set(samples.op_infos()) <= WITHOUT_SAMPLES


#: Our choice in both dtypes; the oracle in the one that it is for, torch's op (through our arguments) in the other.
COMBINATIONS = [
    pytest.param(None, torch.float32, id="auto-float32"),
    pytest.param(None, torch.float64, id="auto-float64"),
    pytest.param("reference", torch.float64, id="reference-float64", marks=pytest.mark.slow),
    pytest.param("torch", torch.float32, id="torch-float32", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("backend, dtype", COMBINATIONS)
@pytest.mark.parametrize("name, info", INFOS)
def test_samples(name: str, info: Any, backend: str | None, dtype: torch.dtype):
    tally = samples.Tally()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for sample in info.sample_inputs("cpu", dtype, requires_grad=True):
            samples.compare(name, info.op, sample, tally, backend)
    print(f"{name} on {backend or 'auto'}: {tally}")
    assert tally.agree, "nothing was compared"
    if tally.share < 0.99:
        pytest.fail(str(tally), pytrace=False)


@pytest.mark.parametrize("name, info", [p for p in INFOS if p.values[1].error_inputs_func is not None])
def test_bad_samples(name: str, info: Any):
    """Where torch raises, ours raises one of the ordinary errors."""
    accepted = []
    count = 0
    for bad in info.error_inputs("cpu"):
        sample = bad.sample_input
        args, kwargs = (sample.input, *sample.args), dict(sample.kwargs)
        count += 1
        try:
            samples.run(samples.function_of(name), args, kwargs)
        except samples.REFUSALS as refused:
            lines = str(refused).strip().splitlines()
            assert lines, f"an error without words for {samples.describe(args, kwargs)}"
        else:
            accepted.append(f"  {name}({samples.describe(args, kwargs)}): torch raises {bad.error_regex!r}")
    assert count
    if accepted:
        pytest.fail("\n".join([f"{len(accepted)} of {count} bad samples are accepted", *accepted]), pytrace=False)

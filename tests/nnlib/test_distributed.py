"""DistributedDataParallel over gloo: two processes, each with half of the batch, have one process' gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import nnlib
from nnlib import layers, models

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

# What a user writes; torchrun starts it once a process.
PROGRAM = """
import os
import sys
import torch
import torch.distributed as distributed
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from tests.nnlib.test_distributed import batch, make

name, folder = sys.argv[1:]
distributed.init_process_group("gloo")
rank, processes = distributed.get_rank(), distributed.get_world_size()
model = make(name)
if rank:  # the first process' weights are sent to the others
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
parallel = DistributedDataParallel(model)
optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
x, y = (half.chunk(processes)[rank] for half in batch(name))
for step in range(3):
    optimizer.zero_grad()
    loss = F.cross_entropy(parallel(x, apply_softmax=False), y)
    loss.backward()
    if step == 0:
        gradients = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    optimizer.step()
torch.save({"gradients": gradients, "weights": model.state_dict()}, f"{folder}/{rank}.pt")
distributed.destroy_process_group()
# DistributedDataParallel holds its process group for good, so gloo's threads are there when Python ends; one that has
# not laid down its last work by then aborts the process now and then ("terminate called without an active exception").
os._exit(0)
"""


def make(name):
    nnlib.set_seed(0)
    if name == "cnn":
        model = models.Sequential([layers.Conv2D(4, 3, activation="relu", input_shape=(8, 8, 2))])
        model.add(layers.MaxPooling2D(2))
        model.add(layers.Flatten())
    elif name == "rnn":
        model = models.Sequential([layers.Embedding(20, 6, input_length=7), layers.LSTM(5)])
    else:
        return models.TransformerModel(1, 8, 2, 16, 20, 5, position_encoding_type="relative", rate=0.0).double()
    model.add(layers.Dense(5, activation="softmax"))
    return model.double()


def batch(name):
    generator = torch.Generator().manual_seed(1)
    if name == "cnn":
        x = torch.randn(12, 8, 8, 2, generator=generator, dtype=torch.float64)
    else:
        x = torch.randint(0, 20, (12, 7), generator=generator)
    return x, torch.randint(0, 5, (12,), generator=generator)


def run(program, processes, *arguments):
    """torchrun's own program, on this machine alone and with a free port."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    return subprocess.run(
        [*command, str(program), *arguments], capture_output=True, text=True, timeout=300, env=environment
    )


@pytest.mark.parametrize("name", ["cnn", "rnn", "transformer"])
def test_two_processes_have_one_process_gradients(name, tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    result = run(program, 2, name, str(tmp_path))
    assert result.returncode == 0, result.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))

    model = make(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = batch(name)
    for step in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x, apply_softmax=False), y).backward()
        if step == 0:
            for key, parameter in model.named_parameters():
                torch.testing.assert_close(first["gradients"][key], parameter.grad, rtol=1e-10, atol=1e-13)
                assert torch.equal(first["gradients"][key], second["gradients"][key])
                assert parameter.grad.abs().max() > 0
        optimizer.step()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(first["weights"][key], value, rtol=1e-10, atol=1e-12)
        assert torch.equal(first["weights"][key], second["weights"][key])

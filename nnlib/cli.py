"""`python -m nnlib`: trains the networks of nnlib.programs and reports accuracy, time and which kernel ran where."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kernels import BackendError
from nnlib import ops, set_seed
from nnlib.models import Model
from nnlib.models.summary import format_table
from nnlib.programs import PROGRAMS, Halves, Program
from nnlib.training.history import History

AUTOMATIC = "automatic"


@dataclass(frozen=True)
class Run:
    """What one training run measured. accuracy: on the test images; warm_up: seconds before the first epoch."""

    backend: str
    history: History
    loss: float
    accuracy: float
    warm_up: float
    kernels: list[ops.KernelUse]
    model: Model

    @property
    def seconds_per_epoch(self) -> float:
        return float(np.median(self.history.seconds))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (default: sys.argv) and returns the exit status."""
    options = _parser().parse_args(arguments)
    program = PROGRAMS[options.program]
    try:
        data = _load(program, options)
        if options.command == "train":
            run = _train(program, data, options, options.backend)
            print(f"\nTest accuracy {run.accuracy:.4f}, {run.seconds_per_epoch:.2f} s an epoch")
            print("\nWhich kernel ran where\n" + _kernel_table([run]))
            _keep(run, options)
        else:
            runs = [_train(program, data, options, backend) for backend in options.backends]
            print("\nWhich kernel ran where\n" + _kernel_table(runs))
            print("\nThe same program, data and seed\n" + _comparison_table(runs))
    except (BackendError, ValueError, FileNotFoundError, FloatingPointError) as error:
        print(f"nnlib: {error}", file=sys.stderr)
        return 1
    return 0


def _train(program: Program, data: Halves, options: argparse.Namespace, backend: str | None) -> Run:
    (x_train, y_train), (x_test, y_test) = data
    print(f"\n{program.description}, backend {backend or AUTOMATIC}, {torch.get_num_threads()} threads", flush=True)
    start = time.perf_counter()
    _warm_up(program, data, options, backend)
    warm_up = time.perf_counter() - start
    print(f"Kernels ready in {warm_up:.1f} s", flush=True)

    set_seed(options.seed)
    model = _compiled(program, options, backend)
    history = model.fit(
        x_train,
        y_train,
        epochs=options.epochs,
        batch_size=options.batch_size,
        validation_data=(x_test, y_test),
    )
    return Run(
        backend=backend or AUTOMATIC,
        history=history,
        loss=history.history["val_loss"][-1],
        accuracy=history.history["val_accuracy"][-1],
        warm_up=warm_up,
        model=model,
        kernels=_kernels_used(model, x_train[: options.batch_size], y_train[: options.batch_size]),
    )


def _keep(run: Run, options: argparse.Namespace) -> None:
    """Saves the model and the picture of its history where they were asked for."""
    if options.save is not None:
        run.model.save(options.save)
        print(f"\nModel saved: {options.save}")
    if options.plot is not None:
        run.history.plot(options.plot)
        print(f"\nHistory drawn: {options.plot}")


def _warm_up(program: Program, data: Halves, options: argparse.Namespace, backend: str | None) -> None:
    """One step of another model of the same kind, so that no epoch's time holds a compilation."""
    x, y = data[0]
    _compiled(program, options, backend).train_on_batch(x[: options.batch_size], y[: options.batch_size])


def _compiled(program: Program, options: argparse.Namespace, backend: str | None) -> Model:
    model = program.build(options.device, backend)
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def _kernels_used(model: Model, x: np.ndarray, y: np.ndarray) -> list[ops.KernelUse]:
    with ops.recording() as uses:
        model.train_on_batch(x, y)
    return uses


def _kernel_table(runs: Sequence[Run]) -> str:
    """One line a kernel call of a training step, one column a run."""
    rows = [
        (uses[0].caller, uses[0].op, *(_backends(use) for use in uses))
        for uses in zip(*(run.kernels for run in runs), strict=True)
    ]
    header = ["backend"] if len(runs) == 1 else [f"--backend {run.backend}" for run in runs]
    return format_table(("layer", "op", *header), rows)


def _backends(use: ops.KernelUse) -> str:
    return use.backend if use.backward == use.backend else f"{use.backend} (backward: {use.backward})"


def _comparison_table(runs: Sequence[Run]) -> str:
    rows = [
        (
            run.backend,
            f"{run.accuracy:.4f}",
            f"{run.loss:.4f}",
            f"{run.seconds_per_epoch:.2f}",
            f"{run.warm_up:.1f}",
        )
        for run in runs
    ]
    return format_table(("backend", "test accuracy", "test loss", "seconds an epoch", "ready in seconds"), rows)


def _load(program: Program, options: argparse.Namespace) -> Halves:
    train, test = program.load(False if options.subset else None)
    if options.limit is None:
        return train, test
    limit: int = options.limit
    return (train[0][:limit], train[1][:limit]), (test[0][:limit], test[1][:limit])


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"a positive integer is expected, got {value}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nnlib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a network and report")
    train.add_argument("--backend", help="kernels' backend, such as numba or torch (default: automatic)")
    train.add_argument("--save", metavar="PATH", help="where to save the model (nnlib.load reads it)")
    train.add_argument("--plot", metavar="PATH", help="where to draw loss and accuracy by epoch (needs matplotlib)")
    compare = commands.add_parser("compare", help="train a network with several backends and compare")
    compare.add_argument(
        "--backends", nargs="+", default=["numba", "torch"], help="kernels' backends (default: numba torch)"
    )
    for command in (train, compare):
        command.add_argument("program", choices=PROGRAMS, help="which network")
        command.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cpu)")
        command.add_argument("--epochs", type=_positive, default=5, help="default: 5")
        command.add_argument("--batch-size", type=_positive, default=64, help="default: 64")
        command.add_argument("--seed", type=int, default=0, help="default: 0")
        command.add_argument("--limit", type=_positive, help="use only so many training and test samples")
        command.add_argument(
            "--subset", action="store_true", help="use the embedded subset even where the whole set is found"
        )
    return parser

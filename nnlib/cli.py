"""`python -m nnlib`: trains a network and reports accuracy, time and which kernel ran where; asks a trained model about
files; trains with several backends and compares."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kernels import BackendError
from nnlib import ops, set_seed
from nnlib.models import Model
from nnlib.models.summary import format_table
from nnlib.predictions import MISSING_PICTURES, best_classes, draw_predictions, predict_file, told_by
from nnlib.programs import PROGRAMS, TEXT, Halves, Program
from nnlib.saving import load_model
from nnlib.training.history import History

AUTOMATIC = "automatic"
_ERRORS = (BackendError, ImportError, OSError, ValueError, FloatingPointError)


@dataclass(frozen=True)
class Run:
    """What one training run made and measured. accuracy: on the test half; warm_up: seconds before the first epoch."""

    backend: str
    model: Model
    history: History
    loss: float
    accuracy: float
    warm_up: float
    kernels: list[ops.KernelUse]

    @property
    def seconds_per_epoch(self) -> float:
        return float(np.median(self.history.seconds))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (default: sys.argv) and returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        {"train": _train_command, "compare": _compare_command, "predict": _predict_command}[options.command](options)
    except _ERRORS as error:
        print(f"nnlib: {error}", file=sys.stderr)
        return 1
    return 0


# The commands.


def _train_command(options: argparse.Namespace) -> None:
    files = _files(options)
    if len(files) > 1 and importlib.util.find_spec("matplotlib") is None:
        raise ImportError(f"{MISSING_PICTURES}, or leave them out: --no-files")  # now, not after hours
    program = PROGRAMS[options.program]
    data = _load(program, options)
    run = _train(program, data, options, options.backend)
    print(f"\nTest accuracy {run.accuracy:.4f}, {run.seconds_per_epoch:.2f} s an epoch")
    print("\nWhich kernel ran where\n" + _kernel_table([run]))
    if not files:
        return
    for path in files.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    run.model.save(files["model"])
    run.history.plot(files["history"])
    x, y = (half[: 8 if program.kind == TEXT else 20] for half in data[1])
    shown = x if program.enlarge is None else program.enlarge(torch.from_numpy(x))
    draw_predictions(run.model, shown, y, files["predictions"])
    print("\nSaved\n" + format_table(("what", "where"), [(what, str(path)) for what, path in files.items()]))


def _compare_command(options: argparse.Namespace) -> None:
    program = PROGRAMS[options.program]
    data = _load(program, options)
    runs = [_train(program, data, options, backend) for backend in options.backends]
    print("\nWhich kernel ran where\n" + _kernel_table(runs))
    print("\nThe same program, data and seed\n" + _comparison_table(runs))


def _predict_command(options: argparse.Namespace) -> None:
    model = load_model(options.model, device=options.device, backend=options.backend)
    try:
        told = told_by(model)
    except ValueError as error:
        raise ValueError(f"{options.model}: {error}") from error
    for path in options.files:
        print(f"{path}: {best_classes(predict_file(model, path, invert=options.invert), told['classes'])}", flush=True)


def _files(options: argparse.Namespace) -> dict[str, Path]:
    """What train writes, and where to."""
    if options.no_files:
        return {}
    runs = Path("runs")
    return {
        "model": options.save or runs / f"{options.program}.safetensors",
        "history": options.plot or runs / f"{options.program}-history.png",
        "predictions": options.predictions or runs / f"{options.program}-predictions.png",
    }


# Training.


def _train(program: Program, data: Halves, options: argparse.Namespace, backend: str | None) -> Run:
    (x_train, y_train), (x_test, y_test) = data
    print(f"\n{program.description}, backend {backend or AUTOMATIC}, {torch.get_num_threads()} threads", flush=True)
    start = time.perf_counter()
    uses = _warm_up(program, data, options, backend)
    warm_up = time.perf_counter() - start
    print(f"Kernels ready in {warm_up:.1f} s", flush=True)

    set_seed(options.seed)
    model = _compiled(program, options, backend)
    model.metadata = program.metadata(options.program)
    history = model.fit(
        epochs=options.epochs,
        **program.arguments(x_train, y_train, options.batch_size, shuffle=True),
        validation_data=_held_out(program, x_test, y_test, options.batch_size),
    )
    return Run(
        backend=backend or AUTOMATIC,
        model=model,
        history=history,
        loss=history.history["val_loss"][-1],
        accuracy=history.history["val_accuracy"][-1],
        warm_up=warm_up,
        kernels=uses,
    )


def _warm_up(
    program: Program, data: Halves, options: argparse.Namespace, backend: str | None
) -> list[ops.KernelUse]:
    """The kernels of a step, by one step of another model of the same kind, so that no epoch's time holds a
    compilation."""
    x, y = (half[: options.batch_size] for half in data[0])
    model = _compiled(program, options, backend)
    with ops.recording() as uses:
        model.fit(**program.arguments(x, y, options.batch_size, shuffle=False), verbose=0)
    return uses


def _held_out(program: Program, x: np.ndarray, y: np.ndarray, batch_size: int) -> Any:
    arguments = program.arguments(x, y, batch_size, shuffle=False)
    return arguments["x"] if program.enlarge is not None else (x, y)


def _compiled(program: Program, options: argparse.Namespace, backend: str | None) -> Model:
    model = program.build(options.device, backend)
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def _load(program: Program, options: argparse.Namespace) -> Halves:
    train, test = program.load(False if options.subset else None)
    if options.limit is None:
        return train, test
    limit: int = options.limit
    return (train[0][:limit], train[1][:limit]), (test[0][:limit], test[1][:limit])


# Reports.


def _kernel_table(runs: Sequence[Run]) -> str:
    """One line a kernel call of a training step, one column a run."""
    rows = [
        (uses[0].caller, uses[0].op, *(_backends(use) for use in uses))
        for uses in zip(*(run.kernels for run in runs), strict=True)
    ]
    header = ["backend"] if len(runs) == 1 else [f"--backend {run.backend}" for run in runs]
    return format_table(("layer", "op", *header), rows)


def _backends(use: ops.KernelUse) -> str:
    return use.backend if use.backward in (use.backend, None) else f"{use.backend} (backward: {use.backward})"


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


# The command line.


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"a positive integer is expected, got {value}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nnlib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a network, report, and save model and pictures")
    train.add_argument("--save", type=Path, metavar="PATH", help="the model (default: runs/PROGRAM.safetensors)")
    train.add_argument("--plot", type=Path, metavar="PATH", help="the history (default: runs/PROGRAM-history.png)")
    train.add_argument(
        "--predictions", type=Path, metavar="PATH", help="some samples (default: runs/PROGRAM-predictions.png)"
    )
    train.add_argument("--no-files", action="store_true", help="write none of these")
    compare = commands.add_parser("compare", help="train a network with several backends and compare")
    compare.add_argument(
        "--backends", nargs="+", default=["numba", "torch"], help="kernels' backends (default: numba torch)"
    )
    predict = commands.add_parser("predict", help="ask a trained model about files")
    predict.add_argument("model", type=Path, metavar="MODEL", help="what train saved")
    predict.add_argument("files", type=Path, nargs="+", metavar="FILE", help="images, .npy arrays or Python source")
    predict.add_argument("--invert", action="store_true", help="the images are dark on light, not light on dark")
    for command in (train, predict):
        command.add_argument("--backend", help="kernels' backend, such as numba or torch (default: automatic)")
    for command in (train, compare, predict):
        command.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cpu)")
    for command in (train, compare):
        command.add_argument("program", choices=PROGRAMS, help="which network")
        command.add_argument("--epochs", type=_positive, default=5, help="default: 5")
        command.add_argument("--batch-size", type=_positive, default=64, help="default: 64")
        command.add_argument("--seed", type=int, default=0, help="default: 0")
        command.add_argument("--limit", type=_positive, help="use only so many training and test samples")
        command.add_argument(
            "--subset", action="store_true", help="use the embedded images even where the whole set is found"
        )
    return parser

"""The command line's arguments."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from bench import compare, providers, selection
from bench.networks.trainers import TRAINERS
from kernels.case import TAGS

COMMANDS = ("run", "compare", "overhead", "auto", "cold", "networks", "gpu", "report")
RESULTS = Path("bench/results")
NETWORKS = ("cnn", "rnn", "transformer")


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < 1e9:
            raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
        return value

    return parse


def _new_path(is_folder: bool) -> Callable[[str], Path]:
    """Where results can go, which is asked before anything is measured: a folder that there may be, or a file."""

    def parse(text: str) -> Path:
        path = Path(text)
        wrong = path.is_file() if is_folder else path.is_dir()
        above = next(each for each in (path, *path.absolute().parents) if each.exists())
        if wrong or not os.access(above, os.W_OK) or (above != path and not above.is_dir()):
            kind = "folder" if is_folder else "file"
            raise argparse.ArgumentTypeError(f"must be a {kind} that can be written, got {text!r}")
        return path

    return parse


def _add_ops(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ops", nargs="*", metavar="OP", help='op names or globs ("conv2d", "*pool*"); all by default')


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("run", help="check and time cases (the default)", description=_add_run.__doc__)
    _add_ops(parser)
    parser.add_argument("--case", nargs="+", default=[], metavar="TEXT", help="cases whose name contains one of these")
    parser.add_argument("--tag", nargs="+", default=["bench"], metavar="TAG", help=f"tags: {', '.join(TAGS)}")
    parser.add_argument("--dtype", nargs="+", default=["float32"], metavar="DTYPE", help="float32, float64")
    parser.add_argument(
        "--pass", dest="passes", nargs="+", default=["forward"], choices=selection.PASSES,
        help="forward, or training: forward and backward",
    )  # fmt: skip
    parser.add_argument(
        "--threads", nargs="+", type=_positive(int), default=[1], metavar="N", help="numbers of threads"
    )
    parser.add_argument(
        "--provider", nargs="+", metavar="NAME", help=f"engines: {', '.join(providers.NAMES)}; all that are installed"
    )
    parser.add_argument(
        "--layout", choices=selection.LAYOUTS, default="given", help="of images: as the case says, or one for all"
    )
    parser.add_argument(
        "--seconds", type=_positive(float), default=1.0, metavar="S", help="seconds for each pair of engines"
    )  # fmt: skip
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--no-plots", action="store_true", help="write the JSON alone")
    parser.add_argument(
        "--output", type=_new_path(True), metavar="FOLDER",
        help=f"where results go; by default a new folder in {RESULTS}",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="list the chosen cases and run nothing")


def _add_networks(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "networks", help="train the article's networks beside PyTorch and Keras: time of an epoch, accuracy"
    )
    parser.add_argument("programs", nargs="*", metavar="NETWORK", help=f"{', '.join(NETWORKS)}; all by default")
    parser.add_argument("--trainer", nargs="+", metavar="NAME", help=f"{', '.join(TRAINERS)}; all that are installed")
    parser.add_argument("--epochs", type=_positive(int), default=5, metavar="N", help="of each seed (default 5)")
    parser.add_argument("--seeds", type=_positive(int), default=3, metavar="N", help="how many (default 3)")
    parser.add_argument("--batch-size", type=_positive(int), default=64, metavar="N", help="(default 64)")
    parser.add_argument("--limit", type=_positive(int), metavar="N", help="samples of each half; all by default")
    parser.add_argument("--threads", type=_positive(int), default=1, metavar="N", help="(default 1)")
    parser.add_argument(
        "--output", type=_new_path(False), metavar="FILE", help=f"JSON; by default a new file in {RESULTS}"
    )


def _add_gpu(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("gpu", help="the GPU backends beside torch's own functions, timed by CUDA events")
    _add_ops(parser)
    parser.add_argument("--case", nargs="+", default=[], metavar="TEXT", help="cases whose name contains one of these")
    parser.add_argument("--tag", nargs="+", default=["bench"], metavar="TAG", help=f"tags: {', '.join(TAGS)}")
    parser.add_argument(
        "--large", action="store_true", help="the calls of the kernel report, in sizes and dtypes for GPUs, and no tags"
    )
    kinds = ("float16", "bfloat16", "float32", "float64")
    parser.add_argument("--dtype", nargs="+", default=["float16", "float32"], choices=kinds)
    parser.add_argument("--pass", dest="passes", nargs="+", default=list(selection.PASSES), choices=selection.PASSES)
    parser.add_argument("--backend", nargs="+", choices=("triton", "cupy", "torch"), help="all that can run by default")
    parser.add_argument("--seconds", type=_positive(float), default=0.2, metavar="S", help="seconds for each case")
    parser.add_argument(
        "--output", type=_new_path(False), metavar="FILE", help=f"JSON; by default a new file in {RESULTS}"
    )


def parser() -> argparse.ArgumentParser:
    """The parser of ``python -m bench``."""
    made = argparse.ArgumentParser(prog="python -m bench", description="Measure the kernels, beside other engines.")
    commands = made.add_subparsers(dest="command", required=True)
    _add_run(commands)

    against = commands.add_parser("compare", help="what became slower from one result to another; exit code 1 if any")
    against.add_argument("old", type=Path, help="result.json, or the folder it is in")
    against.add_argument("new", type=Path)
    against.add_argument(
        "--band", type=_positive(float), default=compare.BAND, metavar="SHARE",
        help=f"least change that counts, as a share (default {compare.BAND})",
    )  # fmt: skip
    against.add_argument("--time", action="store_true", help="compare times, not ratios to eager")
    against.add_argument(
        "--provider", nargs="+", default=["ours"], metavar="NAME", help="whose (default: ours), or all"
    )
    against.add_argument("--all", action="store_true", help="show what stayed the same too")

    overhead = commands.add_parser("overhead", help="what our Python costs a call")
    _add_ops(overhead)
    overhead.add_argument("--seconds", type=_positive(float), default=1.0, metavar="S", help="seconds for each op")

    automatic = commands.add_parser("auto", help="whether automatic choice takes the faster of our kernels and torch's")
    _add_ops(automatic)
    automatic.add_argument("--pass", dest="passes", nargs="+", default=list(selection.PASSES), choices=selection.PASSES)
    automatic.add_argument("--seconds", type=_positive(float), default=0.1, metavar="S", help="seconds for each case")

    cold = commands.add_parser("cold", help="import time and first calls, in fresh processes")
    _add_ops(cold)
    cold.add_argument("--pass", dest="passes", default="forward", choices=selection.PASSES)

    _add_networks(commands)
    _add_gpu(commands)

    report = commands.add_parser("report", help="draw the pictures and the report of a result again")
    report.add_argument("result", type=Path, help="result.json, or the folder it is in")
    report.add_argument("--output", type=_new_path(True), metavar="FOLDER", help="by default beside the result")
    return made


def parse(arguments: list[str]) -> argparse.Namespace:
    """The arguments, ``run`` being the command when none is named."""
    named = bool(arguments) and (arguments[0] in COMMANDS or arguments[0] in ("-h", "--help"))
    return parser().parse_args(arguments if named else ["run", *arguments])

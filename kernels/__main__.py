"""``python -m kernels``: describe the installation, for a bug report; ``python -m kernels report``: the GPU kernels."""

import sys

from kernels.installation import info

USAGE = """usage: python -m kernels           versions, threads, the code cache and the op x backend table
       python -m kernels report    the figures of the GPU kernels, see python -m kernels report --help"""


def main(arguments: list[str]) -> int:
    """Run a command line; the exit code."""
    if arguments[:1] == ["report"]:
        from kernels.gpu_report import main as report

        return report(arguments[1:])
    if arguments in (["-h"], ["--help"]):
        print(USAGE)
    elif arguments:
        print(f"{USAGE}\npython -m kernels: unknown argument {arguments[0]!r}", file=sys.stderr)
        return 2
    else:
        print(info())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

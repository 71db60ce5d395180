"""``python -m kernels``: describe the installation, for a bug report; ``python -m kernels report``: the GPU kernels."""

import sys

from kernels.installation import info

if __name__ == "__main__":
    if sys.argv[1:2] == ["report"]:
        from kernels.gpu_report import main

        sys.exit(main(sys.argv[2:]))
    print(info())

"""``python -m kernels``: describe the installation, for a bug report."""

from kernels.installation import info

if __name__ == "__main__":
    print(info())

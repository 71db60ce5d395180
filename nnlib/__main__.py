"""python -m nnlib"""

from nnlib.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

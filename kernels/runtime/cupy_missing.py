"""Why no CUDA C++ kernel can run on this machine: the first thing that is not there, and how to get it.

Nothing here imports CuPy before it is asked.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

#: Where CUDA's toolkit is as a rule.
TOOLKIT = "/usr/local/cuda"

#: The oldest compute capability that the kernels are compiled and inspected for.
LEAST_CAPABILITY = (8, 0)


def missing() -> str | None:
    """Why no CUDA C++ kernel can run on this machine, or None: the first thing that is not there, and how to get it."""
    return package_missing() or driver_missing() or compiler_missing()


def package_missing() -> str | None:
    """Why CuPy cannot be imported, or bfloat16 not be told from other types, or None."""
    for package in ("cupy", "ml_dtypes"):
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed: pip install nnlib-kernels[cupy]"
    try:
        import cupy  # noqa: F401
    except ImportError as error:
        first = str(error).strip().splitlines()[0]
        return f"the package cupy cannot be imported ({first}): pip install nnlib-kernels[cupy]"
    return None


def driver_missing() -> str | None:
    """Why there is no GPU that CuPy can use, or None."""
    import cupy

    runtime = cupy.cuda.runtime
    driver = runtime.driverGetVersion()
    if driver == 0:
        return (
            "there is no NVIDIA driver: install one for CUDA 13 (https://www.nvidia.com/drivers), version 580 or newer"
        )
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        return (
            f"CuPy finds no CUDA device ({error}); nvidia-smi must list one, and its driver be 580 or newer for CUDA 13"
        )
    if count == 0:
        return "CuPy finds no CUDA device: nvidia-smi must list one, and CUDA_VISIBLE_DEVICES not hide it"
    number = str(cupy.cuda.Device().compute_capability)
    if (int(number[:-1]), int(number[-1])) < LEAST_CAPABILITY:
        found = f"{number[:-1]}.{number[-1]}"
        return f"its kernels need compute capability 8.0 or newer, and this GPU has {found}"
    return None


def compiler_missing() -> str | None:
    """Why kernels cannot be compiled, or None: NVRTC, or the headers that they include."""
    from cupy.cuda import nvrtc

    try:
        nvrtc.getVersion()
    except Exception as error:  # of several types, one for each way to look for a library
        name = type(error).__name__
        return f"NVRTC, which compiles its kernels, cannot be loaded ({name}): pip install nvidia-cuda-nvrtc==13.*"
    if header_folder() is None:
        return (
            "CUDA's headers, which its kernels include, are not installed: "
            "pip install nvidia-cuda-runtime==13.* nvidia-cuda-crt==13.* nvidia-cuda-cccl==13.*"
        )
    return None


def header_folder() -> Path | None:
    """The folder with all of CUDA's headers that the kernels include, or None.

    CuPy looks in one folder of its choice; as a rule that is the one that torch's wheels bring, where the headers of
    tensor cores (the package nvidia-cuda-crt) are missing. A toolkit of the same major version has them too.
    """
    import cupy

    root = cupy.cuda.get_cuda_path()
    if root is None or not (Path(root) / "include" / "cuda_fp16.h").exists():
        return None
    first = Path(root) / "include"
    toolkits = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), TOOLKIT)
    for folder in (first, *(Path(t) / "include" for t in toolkits if t)):
        if (folder / "crt" / "mma.h").exists() and _major_version(folder) == _major_version(first):
            return folder
    return None


def _major_version(folder: Path) -> int | None:
    """CUDA's, as its headers say it."""
    header = folder / "cuda.h"
    found = re.search(r"#define CUDA_VERSION (\d+)", header.read_text(errors="replace")) if header.exists() else None
    return int(found[1]) // 1000 if found else None

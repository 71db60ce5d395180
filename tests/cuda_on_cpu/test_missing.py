"""What the backend "cupy" says where something that it needs is missing: a package, driver, device, compiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kernels
from kernels import backends
from kernels.backends import BackendError
from kernels.runtime import cupy_gpu, cupy_missing
from tests.cuda_on_cpu import helpers
from tests.support import fake_cupy

pytestmark = helpers.needs_harness


def why(call: Any) -> str:
    with pytest.raises(BackendError) as caught:
        call()
    return str(caught.value)


def on_numpy() -> Any:
    return kernels.softmax(helpers.numbers(2, 3), device="cuda", backend="cupy")


@pytest.mark.parametrize("package", ["cupy", "ml_dtypes"])
def test_packages_that_are_missing(package: str, monkeypatch: pytest.MonkeyPatch):
    import importlib.util
    import sys

    real = importlib.util.find_spec
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else real(name, *a))
    assert f"the package {package} is not installed: pip install nnlib-kernels[cupy]" in why(on_numpy)


def test_a_package_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch):
    import builtins
    import sys

    real = builtins.__import__

    def broken(name: str, *rest: Any) -> Any:
        if name == "cupy":
            raise ImportError("libfoo.so is lost\nmore words")
        return real(name, *rest)

    for loaded in [n for n in sys.modules if n.partition(".")[0] == "cupy"]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setattr(builtins, "__import__", broken)
    assert cupy_missing.package_missing() == (
        "the package cupy cannot be imported (libfoo.so is lost): pip install nnlib-kernels[cupy]"
    )


def test_a_driver_that_is_missing(monkeypatch: pytest.MonkeyPatch):
    with fake_cupy.installed():
        import cupy

        monkeypatch.setattr(cupy.cuda.runtime, "driverGetVersion", lambda: 0)
        assert "there is no NVIDIA driver: install one for CUDA 13" in why(on_numpy)


def test_devices_that_are_missing(monkeypatch: pytest.MonkeyPatch):
    with fake_cupy.installed(devices=0):
        assert "CuPy finds no CUDA device: nvidia-smi must list one" in why(on_numpy)
    with fake_cupy.installed():
        import cupy

        def fails() -> int:
            raise cupy.cuda.runtime.CUDARuntimeError("cudaErrorInsufficientDriver: too old")

        monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", fails)
        assert "CuPy finds no CUDA device (cudaErrorInsufficientDriver: too old)" in why(on_numpy)


def test_a_gpu_that_is_too_old():
    with fake_cupy.installed() as gpu:
        gpu.capability = "75"
        assert "its kernels need compute capability 8.0 or newer, and this GPU has 7.5" in why(on_numpy)


@pytest.mark.parametrize("capability, name", [("80", "sm_80"), ("90", "sm_90"), ("103", "sm_100"), ("121", "sm_120")])
def test_targets_of_devices(capability: str, name: str):
    with fake_cupy.installed() as gpu:
        gpu.capability = capability
        assert cupy_gpu.target_of(None).name == cupy_gpu.target_of(fake_cupy.on_device(np.zeros(1))).name == name


def test_a_compiler_that_is_missing(monkeypatch: pytest.MonkeyPatch):
    with fake_cupy.installed():
        import cupy

        def fails() -> Any:
            raise RuntimeError("no libnvrtc.so.13")

        monkeypatch.setattr(cupy.cuda.nvrtc, "getVersion", fails)
        assert "NVRTC, which compiles its kernels, cannot be loaded" in why(on_numpy)
        assert "pip install nvidia-cuda-nvrtc==13.*" in why(on_numpy)


def test_headers_that_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Any):
    with fake_cupy.installed():
        import cupy

        for found in (None, str(tmp_path)):
            monkeypatch.setattr(cupy.cuda, "get_cuda_path", lambda found=found: found)
            monkeypatch.setattr(cupy_missing, "TOOLKIT", str(tmp_path))
            assert "CUDA's headers, which its kernels include, are not installed: pip install " in why(on_numpy)


def test_headers_are_completed_by_a_toolkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """torch's wheels bring CUDA's headers without those of tensor cores; a toolkit of the same version has them."""
    wheels, toolkit = tmp_path / "wheels", tmp_path / "toolkit"
    for root, version in ((wheels, 13000), (toolkit, 13010)):
        (root / "include" / "crt").mkdir(parents=True)
        (root / "include" / "cuda.h").write_text(f"#define CUDA_VERSION {version}\n")
        (root / "include" / "cuda_fp16.h").write_text("")
    monkeypatch.setattr(cupy_missing, "TOOLKIT", str(toolkit))
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    with fake_cupy.installed():
        import cupy

        monkeypatch.setattr(cupy.cuda, "get_cuda_path", lambda: str(wheels))
        assert cupy_missing.header_folder() is None
        (toolkit / "include" / "crt" / "mma.h").write_text("")
        assert cupy_missing.header_folder() == toolkit / "include" and cupy_missing.compiler_missing() is None
        (toolkit / "include" / "cuda.h").write_text("#define CUDA_VERSION 12080\n")
        assert cupy_missing.header_folder() is None


def test_this_machine_says_what_it_lacks():
    """Where there is a GPU with all that it takes, nothing."""
    reason = backends.BACKENDS["cupy"].missing()
    assert reason is None or "install" in reason or "nvidia-smi" in reason or "compute capability" in reason

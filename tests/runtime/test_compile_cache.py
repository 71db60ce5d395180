"""The disk cache: found again by other processes, never stale, never in the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap

import pytest
from numba.extending import overload

from kernels.runtime import cache_folder, compile_cache
from kernels.runtime.fingerprint import fingerprint

from .conftest import KERNEL, ROOT, copy_runtime, environment

CALL_BOTH = """
run(1003, 1, x, y, 2.0)
run(1003, 2, x, y1, 2.0)
assert (y == y1).all() and abs(y[-1] - 2 * np.exp(np.float32(3))) < 1e-5
stats(scale, run.driver)
print(cache_state().reason, cache_state().entries, cache_state().writable)
"""


def test_second_process_loads_kernel_and_driver(python):
    assert python(KERNEL + CALL_BOTH) == ["0/1 0/1", "KERNELS_CACHE_DIR 3 True"]
    assert python(KERNEL + CALL_BOTH) == ["1/0 1/0", "KERNELS_CACHE_DIR 3 True"]


def test_new_signature_is_added(python):
    call = "\nrun(9, 1, x, y, {}); stats(scale); print(cache_state().entries)"
    assert python(KERNEL + call.format("2.0")) == ["0/1", "1"]
    assert python(KERNEL + call.format("2")) == ["0/1", "2"]
    assert python(KERNEL + call.format("2.0") + call.format("2")) == ["1/0", "2", "2/0", "2"]


def test_change_in_another_file_is_seen(python, tmp_path):
    package = copy_runtime(tmp_path / "copy")
    # The value reaches the code through an overload, which nothing in the kernel's own objects shows.
    (package / "inner.py").write_text(
        "from numba.extending import overload\ndef add(x): ...\n@overload(add)\ndef _(x):\n    return lambda x: x + 1\n"
    )
    (package / "outer.py").write_text(
        "from kernels.inner import add\n"
        "from kernels.runtime.numba_cpu import jit\n"
        "@jit\n"
        "def outer(x):\n"
        "    return add(x)\n"
    )
    program = """
        from kernels.outer import outer
        print(outer(10), sum(outer.stats.cache_hits.values()))
    """
    place = str(package.parent)
    assert python(program, PYTHONPATH=place) == ["11 0"]
    assert python(program, PYTHONPATH=place) == ["11 1"]
    (package / "inner.py").write_text((package / "inner.py").read_text().replace("+ 1", "+ 5"))
    assert python(program, PYTHONPATH=place) == ["15 0"]
    assert len(list((tmp_path / "cache").iterdir())) == 2
    # The same sources elsewhere are the same code.
    shutil.copytree(package.parent, tmp_path / "moved")
    assert python(program, PYTHONPATH=str(tmp_path / "moved")) == ["15 1"]


def test_settings_of_the_compiler_are_in_the_digest(python):
    program = "from kernels.runtime.numba_cpu import cache_state; print(cache_state().digest)"
    names = [
        python(program)[0],
        python(program, NUMBA_OPT="1")[0],
        python(program, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="+sse2")[0],
        python(program, NUMBA_NUM_THREADS="1")[0],
    ]
    assert len(set(names[:3])) == 3
    assert names[3] == names[0]


FACTORY = """
from kernels.runtime.numba_cpu import jit
import numpy as np

def make(factor):
    @jit
    def inner(x):
        total = 0.0
        for i in range(x.size):
            total += x[i] * factor
        return total
    @jit
    def outer(x):
        return inner(x) + 1
    return outer

def execute(factor):
    scope = {"factor": factor, "jit": jit, "__name__": "made"}
    exec("@jit\\ndef outer(x):\\n    return x.sum() * factor + 1", scope)
    return scope["outer"]

for factor in {}:
    for maker in (make, execute):
        made = maker(factor)
        print(made(np.ones(3)), sum(made.stats.cache_hits.values()), end="  ")
"""


def test_functions_of_one_text_are_kept_apart_and_found_again(python):
    # What is compiled here shares names, modules and Numba's numbering with what is loaded.
    assert python(FACTORY.replace("{}", "[2]")) == ["7.0 0  7.0 0  "]
    assert python(FACTORY.replace("{}", "[2, 5]")) == ["7.0 1  7.0 1  16.0 0  16.0 0  "]
    assert python(FACTORY.replace("{}", "[5, 7, 2]")) == ["16.0 1  16.0 1  22.0 0  22.0 0  7.0 1  7.0 1  "]


def test_fingerprint_sees_what_a_function_refers_to():
    def make(number, callee=None, inline="never"):
        scope = {"number": number, "callee": callee, "jit": compile_cache.jit, "__name__": "made"}
        source = f"@jit(inline={inline!r})\ndef f(x, y=1):\n    return callee(x) + number if callee else number"
        exec(source, scope)
        return fingerprint(scope["f"])

    one = compile_cache.jit(lambda x: x + 1)
    same = compile_cache.jit(lambda x: x + 1)
    two = compile_cache.jit(lambda x: x + 2)
    assert make(1) == make(1)
    assert make(1, one) == make(1, same)
    different = [make(1), make(2), make(1.0), make(True), make((1,)), make(1, one), make(1, two)]
    different.append(make(1, inline="always"))
    assert len(set(different)) == len(different)


def test_fingerprint_sees_behind_overloads():
    def make(factor):
        def stub(x): ...

        @overload(stub)
        def _(x):
            return lambda x: x * factor

        return fingerprint(compile_cache.jit(lambda x: stub(x)))

    assert make(1) == make(1) != make(2)


def test_fingerprint_of_functions_that_call_each_other():
    scope = {"jit": compile_cache.jit}
    exec("@jit\ndef f(x): return g(x)\n@jit\ndef g(x): return f(x)", scope)
    assert fingerprint(scope["f"]) != fingerprint(scope["g"])


def test_two_processes_at_once(tmp_path, package_root, python):
    call = "\nrun(1003, 2, x, y, {0}); run(1003, 1, x, y, {0}); print(float(y[0]) > 0)"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", KERNEL + call.format(factor)],
            env=environment(tmp_path, package_root),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        )
        for factor in ("2.0", "2.0", "2")
    ]
    assert [process.communicate(timeout=120)[0] for process in started] == ["True\n"] * 3
    both = "\nfor f in (2.0, 2): run(9, 1, x, y, f); run(9, 2, x, y, f)\nstats(scale, run.driver)"
    assert python(KERNEL + both) == ["2/0 2/0"]


def test_damaged_file_is_replaced(python, tmp_path):
    program = KERNEL + "\nrun(1003, 1, x, y, 2.0); stats(scale); print(round(float(y[-1]), 3))"
    assert python(program) == ["0/1", "40.171"]
    (kept,) = (tmp_path / "cache").glob("*/*.kernel")
    content = kept.read_bytes()
    for damaged in (b"", content[:1000], content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]):
        kept.write_bytes(damaged)
        assert python(program) == ["0/1", "40.171"]
        assert len(kept.read_bytes()) == len(content)
    assert python(program) == ["1/0", "40.171"]


# --------------------------------------------------------------------------------------------------- the folder


def test_folder_is_ours_alone(python, tmp_path):
    python(KERNEL + CALL_BOTH)
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(".kernel" in path.suffixes[-1] for path in folder.iterdir())


def test_file_in_place_of_the_folder(python, tmp_path):
    (tmp_path / "cache").write_text("")
    first, second = python(KERNEL + CALL_BOTH)
    temporary = tmp_path / f"nnlib-kernels-{os.geteuid()}"
    assert first == "0/1 0/1"
    assert second.startswith(f"temporary folder of this user; KERNELS_CACHE_DIR: {tmp_path / 'cache'}")
    assert second.endswith(" cannot be made (File exists) 3 True")
    assert temporary.stat().st_mode & 0o777 == 0o700
    assert python(KERNEL + CALL_BOTH)[0] == "1/0 1/0"


# Root writes anywhere by two of its capabilities; without them the mode bits hold for it too.
AS_ANYONE = """
import ctypes, os
if os.geteuid() == 0:
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    sets[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
@pytest.mark.parametrize("made", [False, True], ids=["empty", "made before"])
def test_read_only_folder(python, tmp_path, made):
    folder = tmp_path / "cache"
    folder.mkdir()
    if made:
        python(KERNEL + CALL_BOTH)
        (inner,) = folder.iterdir()
        inner.chmod(0o500)
    folder.chmod(0o500)
    first, second = python(AS_ANYONE + KERNEL + CALL_BOTH)
    assert first == "0/1 0/1"
    assert second.startswith("temporary folder of this user; KERNELS_CACHE_DIR: ")
    assert second.endswith(f" cannot be {'written' if made else 'made'} (Permission denied) 3 True")


def test_no_folder_at_all(python, tmp_path):
    (tmp_path / "cache").write_text("")
    (tmp_path / f"nnlib-kernels-{os.geteuid()}").write_text("")
    first, second = python(KERNEL + CALL_BOTH)
    assert first == "0/1 0/1"
    assert second.startswith("not kept on disk; KERNELS_CACHE_DIR: ")
    assert "is not a folder" in second
    assert second.endswith(" 0 False")


def test_home_that_is_no_folder(python, tmp_path):
    (tmp_path / "home").write_text("")
    lines = python(KERNEL + CALL_BOTH, KERNELS_CACHE_DIR=None, HOME=str(tmp_path / "home"))
    assert lines[1].startswith("temporary folder of this user; the user's cache folder: ")


def test_default_folder(python, tmp_path):
    program = KERNEL + "print(cache_state().folder, cache_state().reason)"
    home = {"KERNELS_CACHE_DIR": None, "HOME": str(tmp_path)}
    (line,) = python(program, **home)
    assert line.startswith(str(tmp_path / ".cache" / "nnlib-kernels")) or sys.platform != "linux"
    assert line.endswith("the user's cache folder")
    (line,) = python(program, **home, XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert line.startswith(str(tmp_path / "xdg" / "nnlib-kernels")) or sys.platform != "linux"
    (line,) = python(program, **home, XDG_CACHE_HOME="relative")
    assert line.startswith(str(tmp_path / ".cache" / "nnlib-kernels")) or sys.platform != "linux"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("KERNELS_CACHE_DIR", str(tmp_path / "given"))
    monkeypatch.setattr(cache_folder.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_folder_of_another_user_is_refused(folders, monkeypatch):
    assert cache_folder._find_folder()[1] == "KERNELS_CACHE_DIR"
    monkeypatch.setattr(cache_folder, "_user", lambda: os.geteuid() + 1)
    folder, reason = cache_folder._find_folder()
    assert folder is None
    assert reason.count("belongs to another user") == 2


def test_folder_open_to_others_is_refused(folders):
    folder, _ = cache_folder._find_folder()
    assert folder == folders / "given" / cache_folder.digest()
    assert folder is not None
    folder.chmod(0o777)
    found, reason = cache_folder._find_folder()
    assert found == folders / f"nnlib-kernels-{os.geteuid()}" / cache_folder.digest()
    assert reason == f"temporary folder of this user; KERNELS_CACHE_DIR: {folder} is open to other users"


def test_link_in_place_of_the_folder_is_refused(folders):
    (folders / "elsewhere").mkdir()
    (folders / "given").mkdir()
    (folders / "given" / cache_folder.digest()).symlink_to(folders / "elsewhere")
    assert "is not a folder" in cache_folder._find_folder()[1]


def test_default_folder_in_another_users_home_is_refused(folders, monkeypatch):
    monkeypatch.delenv("KERNELS_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folders / "cache"))
    stranger = os.geteuid() + 1
    monkeypatch.setattr(cache_folder, "_user", lambda: stranger)
    if os.geteuid() == 0:
        os.chown(folders, 65534, -1)
    _, reason = cache_folder._find_folder()
    assert f"the user's cache folder: {folders} belongs to another user" in reason
    assert not (folders / "cache").exists()


def test_old_digests_are_removed(tmp_path):
    current = tmp_path / f"{0:032x}"
    for age in range(8):
        folder = tmp_path / f"{age:032x}"
        folder.mkdir()
        (folder / "f-1.kernel").write_text("")
        os.utime(folder, (10**9 - age * 100, 10**9 - age * 100))
    os.utime(current, (0, 0))  # The current one stays, however old.
    (tmp_path / "notes").mkdir()
    cache_folder._prune(tmp_path, current)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{age:032x}" for age in range(5)] + ["notes"]
    cache_folder._prune(tmp_path / "absent", current)


# --------------------------------------------------------------------------------------------- where Numba is off


def test_disabled_jit(python):
    program = """
        y[:] = 0
        print(missing())
        run(1003, 2, x, y, 2.0)
        print(abs(y[-1] - 2 * np.exp(np.float32(3))) < 1e-5, thread_count(), threads_for(10**9, 1))
        print(cache_state())
        print(info()["missing"])
    """
    why = "NUMBA_DISABLE_JIT is set: compiled kernels are off"
    assert python(KERNEL + textwrap.dedent(program), NUMBA_DISABLE_JIT="1") == [
        why,
        "True 1 1",
        f"CacheState(folder=None, reason='{why}', writable=False, entries=0, digest=None)",
        why,
    ]


def test_without_numba(python):
    program = """
        import sys
        sys.modules["numba"] = None
        from kernels.runtime.numba_cpu import *
        print(missing())
        print(info()["missing"] == missing(), thread_count(), threading_layer(), cache_state().reason == missing())
        print(jit(abs), empty(3).shape)
    """
    assert python(program) == [
        "numba cannot be imported: ModuleNotFoundError: import of numba halted; None in sys.modules",
        "True 1 None True",
        "<built-in function abs> (3,)",
    ]


def test_importing_the_packages_leaves_numba_out(python):
    for place in (None, str(ROOT)):
        settings = {} if place is None else {"PYTHONPATH": place}
        assert python("import sys, kernels.runtime; print('numba' in sys.modules)", **settings) == ["False"]


def test_info(python):
    program = """
        facts = info()
        import numba, llvmlite
        print(sorted(facts))
        print(facts["missing"], facts["numba"] == numba.__version__, facts["llvmlite"] == llvmlite.__version__)
        print(facts["threading_layer"], facts["threads"], facts["cache"].entries)
    """
    assert python(KERNEL + textwrap.dedent(program)) == [
        "['cache', 'features', 'llvmlite', 'missing', 'numba', 'processor', 'threading_layer', 'threads']",
        "None True True",
        "not started 3 0",
    ]

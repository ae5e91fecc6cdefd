"""Compile the C++/CUDA ops on first use, once per machine and torch, and load them.

`load()` is called by every op. It takes, in this order: the library this process already has; a prebuilt one that
came with the package (`ops/prebuilt/`); one built earlier in the cache directory (`LATTICA_CACHE`, default
~/.cache/lattica); one it compiles now. Without a compiler the plain PyTorch twins in `ops.reference` serve under the
same names, with one warning.

A cached build is keyed by everything that could change it (sources, flags, torch, compiler, CUDA architectures, CPU),
so it is never stale, and guarded by a `filelock`, which the system frees when a process dies. torch's own lock file
does not: a killed build leaves it behind and every later one waits forever. It lies in the build's scratch folder,
new each time. LATTICA_CXX_FLAGS adds flags for the compiler and the linker (sanitizers, say) and is part of the key.

    python -m ops.build              # compile now
    python -m ops.build --prebuilt   # compile for any CPU of this architecture, into ops/prebuilt/, to be packaged
    python -m ops.doctor             # what is wrong here?
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

PACKAGE = Path(__file__).resolve().parents[1]
CSRC = PACKAGE / "csrc"
PREBUILT = PACKAGE / "prebuilt"
NAME = "lattica_ops"
NAMESPACE = "lattica"

# The ABI promises that a library built against this version's functions runs on every later torch.
TARGET_TORCH = "-DTORCH_TARGET_VERSION=0x020a000000000000"
# Never -ffast-math: -inf is a value here. The two -fno flags leave infinities and nan alone and let loops vectorise.
CXX_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wno-unknown-pragmas", TARGET_TORCH)
CUDA_FLAGS = ("-O3", "--extended-lambda", "--expt-relaxed-constexpr", "-DUSE_CUDA", TARGET_TORCH)


class CompileError(RuntimeError):
    """The compiler is there and failed; the message holds what it said."""


@dataclass(frozen=True)
class Plan:
    """What a build would compile, with what, and the key that names the result."""

    compiler: str
    sources: tuple[Path, ...]
    cxx_flags: tuple[str, ...]
    cuda_flags: tuple[str, ...]
    cuda: bool
    key: str


# ---------------------------------------------------------------------------------------------------------------- plan


def compiler() -> str | None:
    """The C++ compiler torch would use, or None."""
    return shutil.which(os.environ.get("CXX", "c++")) or (None if "CXX" in os.environ else shutil.which("g++"))


def nvcc() -> str | None:
    from torch.utils import cpp_extension

    home = cpp_extension.CUDA_HOME
    path = Path(home) / "bin" / "nvcc" if home else None
    return str(path) if path and path.is_file() else None


def wants_cuda() -> bool:
    return torch.version.cuda is not None and torch.cuda.is_available()


@functools.cache
def version_line(program: str) -> str:
    """The first line of what `program --version` prints."""
    try:
        result = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{program}: {error}"
    return next((line for line in result.stdout.splitlines() if line.strip()), "").strip()


def _cpu_identity() -> str:
    """-march=native makes code for this CPU only, and home directories are shared by machines that differ."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.split("\t")[0] in ("model name", "flags", "Features")}))
    return platform.processor()


def _cuda_architectures() -> str:
    if "TORCH_CUDA_ARCH_LIST" in os.environ:
        return os.environ["TORCH_CUDA_ARCH_LIST"]
    return ";".join(
        sorted({".".join(map(str, torch.cuda.get_device_capability(i))) for i in range(torch.cuda.device_count())})
    )


def source_files(cuda: bool) -> tuple[Path, ...]:
    folders = ["*.cpp", "cpu/*.cpp"] + (["cuda/*.cu"] if cuda else [])
    return tuple(sorted(path for pattern in folders for path in CSRC.glob(pattern)))


def source_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in CSRC.rglob("*") if p.suffix in (".h", ".cpp", ".cu")):
        digest.update(f"{path.relative_to(CSRC)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def extra_flags() -> tuple[str, ...]:
    """Further flags for the C++ compiler and the linker, from LATTICA_CXX_FLAGS: sanitizers, debugging symbols."""
    return tuple(shlex.split(os.environ.get("LATTICA_CXX_FLAGS", "")))


def plan(portable: bool = False) -> Plan | None:
    """What would be compiled here; None without a C++ compiler."""
    cxx = compiler()
    if cxx is None:
        return None
    cuda = wants_cuda() and nvcc() is not None
    flags = CXX_FLAGS if portable else (*CXX_FLAGS, "-march=native", *extra_flags())
    parts = [source_hash(), torch.__version__, platform.machine(), cxx, version_line(cxx), *flags]
    if not portable:
        parts.append(_cpu_identity())
    if cuda:
        parts += [_cuda_architectures(), str(nvcc()), str(torch.version.cuda), *CUDA_FLAGS]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return Plan(cxx, source_files(cuda), flags, CUDA_FLAGS, cuda, key)


# --------------------------------------------------------------------------------------------------------------- cache


def _writable(folder: Path) -> str | None:
    """None if files can be made in `folder` (which is made if need be), else why not."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"{error.strerror or error}"


def cache_dir() -> Path:
    """Where builds are kept.

    Raises RuntimeError if LATTICA_CACHE names a folder that cannot be written. The default folder is not the user's
    choice, so there a folder under the system's temporary directory takes its place, and a warning says so.
    """
    chosen = os.environ.get("LATTICA_CACHE")
    folder = Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "lattica"
    why = _writable(folder)
    if why is None:
        return folder
    if chosen:
        raise RuntimeError(f"LATTICA_CACHE={folder} cannot be written ({why}): set it to a folder that can")
    fallback = Path(tempfile.gettempdir()) / f"lattica-{os.getuid()}"
    if _writable(fallback) is not None or fallback.stat().st_uid != os.getuid():
        raise RuntimeError(
            f"neither {folder} ({why}) nor {fallback} can be written: set LATTICA_CACHE to a folder that can"
        )
    warnings.warn(
        f"{folder} cannot be written ({why}): the compiled ops go to {fallback}; set LATTICA_CACHE to choose",
        stacklevel=2,
    )
    return fallback


def library_path(built: Plan) -> Path:
    return cache_dir() / built.key / f"{NAME}.so"


def prebuilt_path(cuda: bool) -> Path:
    """The stable ABI makes one library serve every torch from 2.10 on, so torch's version is not in the name."""
    return PREBUILT / f"{NAME}-{source_hash()[:16]}-{'cuda' if cuda else 'cpu'}-{platform.machine()}.so"


# --------------------------------------------------------------------------------------------------------------- build


def _say(message: str) -> None:
    print(f"[lattica] {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time; the others say what they wait for."""
    lock = FileLock(folder / "build.filelock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        _say(f"another process is compiling the ops in {folder}: waiting for it")
        start = time.monotonic()
        while True:
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=30)
                break
            _say(f"still waiting for the build in {folder} ({time.monotonic() - start:.0f} s)")
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _progress(scratch: Path, total: int) -> Iterator[None]:
    """Say how many of the files are compiled, whenever that changes."""
    stop = threading.Event()
    start = time.monotonic()

    def watch() -> None:
        seen = 0
        while not stop.wait(0.5):
            done = len(list(scratch.glob("*.o")))
            if done > seen:
                seen = done
                _say(f"{done} of {total} files compiled, {time.monotonic() - start:.0f} s")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _advice(output: str) -> str:
    """What to install, from what the compiler said."""
    causes = [
        (r"ninja.*(not found|required|No such file)", "install ninja: pip install ninja"),
        (
            r"cuda_runtime\.h|cub/|thrust/",
            "install the CUDA toolkit of the version in torch.version.cuda, or set CUDA_HOME",
        ),
        (
            r"fatal error: (c?stdio|cstdint|cmath|string|vector|features|limits)",
            "install the C++ headers: apt-get install g++ (Debian, Ubuntu) or dnf install gcc-c++",
        ),
        (
            r"unrecognized.*option|unknown (argument|value)",
            "the compiler is too old: install g++ 11 or later and set CXX to it",
        ),
        (r"No space left", "free disk space, or set LATTICA_CACHE to another disk"),
        (r"Killed|out of memory|cannot allocate", "the compiler ran out of memory: set MAX_JOBS=1 and try again"),
    ]
    for pattern, advice in causes:
        if re.search(pattern, output, re.IGNORECASE):
            return advice
    return "run `python -m ops.doctor`; if you changed ops/csrc, look there"


@contextlib.contextmanager
def ninja_on_path() -> Iterator[None]:
    """torch calls `ninja`; the pip package puts it where PATH does not lead if the environment is not activated."""
    before = os.environ.get("PATH", "")
    if shutil.which("ninja") is None:
        with contextlib.suppress(ImportError):
            import ninja

            os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, before])
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _compile(plan_: Plan, target: Path) -> None:
    """Compile to `target`, which appears whole or not at all. The caller holds the lock of its folder."""
    from torch.utils import cpp_extension

    for leftover in target.parent.glob("build-*"):  # of a build that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix="build-", dir=target.parent))
    what = "C++ and CUDA" if plan_.cuda else "C++"
    _say(f"compiling {len(plan_.sources)} {what} files into {target.parent} (once per machine and torch version)")
    start = time.monotonic()
    try:
        with ninja_on_path(), _progress(scratch, len(plan_.sources)):
            built = cpp_extension.load(
                NAME,
                [str(path) for path in plan_.sources],
                extra_cflags=list(plan_.cxx_flags),
                extra_cuda_cflags=list(plan_.cuda_flags),
                extra_ldflags=list(extra_flags()),
                extra_include_paths=[str(CSRC)],
                build_directory=str(scratch),
                with_cuda=plan_.cuda,
                is_python_module=False,
                verbose=False,
            )
        os.replace(built, target)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        lines = [line for line in str(error).splitlines() if " -isystem " not in line]  # without the commands
        first = next((i for i, line in enumerate(lines) if "error:" in line), 0)
        excerpt = "\n".join(lines[first : first + 30])
        raise CompileError(
            f"compiling the ops with {plan_.compiler} failed:\n{excerpt}\nWhat to do: {_advice(excerpt)}"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _say(f"compiled in {time.monotonic() - start:.0f} s")


def build(portable: bool = False) -> Path:
    """Path of the library, compiled now unless it is there already.

    Raises CompileError with the compiler's message, RuntimeError without a compiler or a folder to write to.
    """
    plan_ = plan(portable)
    if plan_ is None:
        raise RuntimeError(f"no C++ compiler: {INSTALL_COMPILER}")
    target = prebuilt_path(plan_.cuda) if portable else library_path(plan_)
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent):
            if not target.is_file():
                _compile(plan_, target)
    return target


# ---------------------------------------------------------------------------------------------------------------- load

INSTALL_COMPILER = (
    "install one: apt-get install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora), xcode-select --install (macOS)"
)

_loaded: str | None = None  # path of the library, or "reference"
_failure: Exception | None = None  # do not compile again for every op call
_when_loaded: list[Callable[[], None]] = []
_thread_lock = threading.Lock()


def when_loaded(register: Callable[[], None]) -> Callable[[], None]:
    """Decorator: run `register` (fake kernels, autograd) as soon as the ops exist."""
    if _loaded is not None:
        register()
    _when_loaded.append(register)
    return register


def _constant_to_dynamo(function: Callable[[], str]) -> Callable[[], str]:
    """What torch.compiler.assume_constant_result does, without importing torch._dynamo: a second and 80 MB."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant_to_dynamo
def load() -> str:
    """Make torch.ops.lattica.* exist; return the library's path, or "reference" when PyTorch twins serve.

    Raises CompileError if a compiler is there and fails; RuntimeError if LATTICA_CACHE cannot be written.
    """
    global _loaded, _failure
    if _loaded is not None:
        return _loaded
    with _thread_lock:
        if _loaded is None:
            if _failure is not None:
                raise _failure
            try:
                _loaded = _load()
            except RuntimeError as error:
                _failure = error
                raise
            for register in _when_loaded:
                register()
    return _loaded


def _load() -> str:
    prebuilt = prebuilt_path(wants_cuda())
    if prebuilt.is_file():
        torch.ops.load_library(str(prebuilt))
        return str(prebuilt)
    if compiler() is None:
        _serve_reference("CompositeExplicitAutograd", define=True)
        warnings.warn(
            f"no C++ compiler: slow PyTorch code serves instead of the compiled ops; {INSTALL_COMPILER}", stacklevel=4
        )
        return "reference"
    library = build()
    torch.ops.load_library(str(library))  # a second time, in the process that compiled: same inode, nothing happens
    if wants_cuda() and nvcc() is None:
        _serve_reference("CUDA", define=False)
        warnings.warn(
            "torch sees a GPU, but there is no nvcc: slow PyTorch code serves on CUDA; install the CUDA toolkit "
            f"{torch.version.cuda} or set CUDA_HOME",
            stacklevel=4,
        )
    return str(library)


# --------------------------------------------------------------------------------------------------- without a compiler

_reference_library: torch.library.Library | None = None  # registrations live as long as this object


def schemas() -> list[str]:
    """Every op's schema, read from csrc/schemas.cpp."""
    text = re.sub(r"//[^\n]*", "", (CSRC / "schemas.cpp").read_text())
    return ["".join(re.findall(r'"([^"]*)"', body)) for body in re.findall(r"m\.def\((.*?)\);", text, re.DOTALL)]


def _serve_reference(dispatch_key: str, define: bool) -> None:
    """Register the twins of ops.reference as the ops' kernels; an op without one raises an error that says so."""
    global _reference_library
    from ops import reference

    def missing(name: str) -> Callable[..., None]:
        def raise_error(*_args: object, **_kwargs: object) -> None:
            raise RuntimeError(
                f"ops: {name} exists only compiled, and nothing is compiled here; run `python -m ops.doctor`"
            )

        return raise_error

    _reference_library = torch.library.Library(NAMESPACE, "DEF" if define else "IMPL")
    for schema in schemas():
        name = schema.split("(")[0]
        twin = getattr(reference, name, None)
        if define:
            _reference_library.define(schema)
        if twin is not None or define:  # beside a library: what has no twin goes by way of the CPU (ops/fsa_call.py)
            _reference_library.impl(name, twin or missing(name), dispatch_key)

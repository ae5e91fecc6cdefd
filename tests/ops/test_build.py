"""The build that happens on first use, and everything that can go wrong with it.

Builds here compile one small file with an op of its own namespace, so that they take seconds and get in nobody's way;
only where processes meet or die, processes are started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import pytest
import torch

from ops import build, doctor, reference

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")

SMALL_SOURCE = """
#include <torch/csrc/stable/library.h>
namespace {
int64_t answer() { return ANSWER; }
STABLE_TORCH_LIBRARY(NAMESPACE, m) { m.def("answer() -> int"); }
STABLE_TORCH_LIBRARY_IMPL(NAMESPACE, CompositeExplicitAutograd, m) { m.impl("answer", TORCH_BOX(&answer)); }
}
"""


class Small:
    """A source folder and a cache of its own in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.csrc, self.cache = folder / "csrc", folder / "cache"
        self.csrc.mkdir()
        self.source = self.csrc / "small.cpp"
        self.write(3)

    def write(self, answer: int) -> None:
        self.namespace = f"lattica_test_{uuid.uuid4().hex[:8]}"  # a process cannot load two libraries of one namespace
        self.source.write_text(SMALL_SOURCE.replace("NAMESPACE", self.namespace).replace("ANSWER", str(answer)))

    def answer(self, library: Path) -> int:
        torch.ops.load_library(str(library))
        return getattr(torch.ops, self.namespace).answer()

    def start(self, **environment: str) -> subprocess.Popen:
        """Build in another process."""
        code = f"""
            import pathlib
            from ops import build
            build.CSRC = pathlib.Path({str(self.csrc)!r})
            print(build.build())
        """
        env = {**os.environ, "PYTHONPATH": str(build.PACKAGE.parent), "LATTICA_CACHE": str(self.cache), **environment}
        command = [sys.executable, "-c", textwrap.dedent(code)]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    made = Small(tmp_path)
    monkeypatch.setattr(build, "CSRC", made.csrc)
    monkeypatch.setattr(build, "PREBUILT", tmp_path / "prebuilt")
    monkeypatch.setenv("LATTICA_CACHE", str(made.cache))
    return made


def wait_for(found, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not found():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)


def test_built_once_and_anew_when_the_source_changes(small: Small, capsys: pytest.CaptureFixture) -> None:
    library = build.build()
    assert small.answer(library) == 3
    said = capsys.readouterr().err
    assert f"compiling 1 C++ files into {library.parent}" in said and "compiled in" in said
    assert library.parent.parent == small.cache and not list(library.parent.glob("build-*"))

    assert build.build() == library and capsys.readouterr().err == ""
    small.write(4)
    changed = build.build()
    assert changed != library and small.answer(changed) == 4


def test_key_depends_on_all_that_matters(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [build.plan().key, build.plan(portable=True).key]
    monkeypatch.setattr(build, "_cpu_identity", lambda: "another CPU")
    keys.append(build.plan().key)
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    keys.append(build.plan().key)
    monkeypatch.setattr(build, "CXX_FLAGS", ("-O0",))
    keys.append(build.plan().key)
    monkeypatch.setattr(build, "version_line", lambda program: "another compiler")
    keys.append(build.plan().key)
    (small.csrc / "new.h").write_text("")
    keys.append(build.plan().key)
    assert len(set(keys)) == 7


def test_processes_that_meet_and_a_build_that_is_killed(small: Small, tmp_path: Path) -> None:
    """The first build is killed at work, which leaves torch's lock file behind; of the next two, one waits."""
    hang = tmp_path / "c++"  # a compiler that waits until it may go on
    hang.write_text(
        f'#!/bin/sh\ncase "$*" in *small.cpp*) i=0; while [ ! -e {tmp_path}/go ] && [ $i -lt 3000 ]; '
        f'do sleep 0.1; i=$((i+1)); done;; esac\nexec {build.compiler()} "$@"\n'
    )
    hang.chmod(0o755)
    killed = small.start(CXX=str(hang))
    wait_for(lambda: list(small.cache.glob("*/build-*/lock")), killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert list(small.cache.glob("*/build-*/lock")), "torch's lock is left behind: this is the case to survive"

    leftover = set(small.cache.glob("*/build-*"))
    first = small.start(CXX=str(hang))
    wait_for(lambda: set(small.cache.glob("*/build-*")) - leftover, first)
    second = small.start(CXX=str(hang))
    said = []
    for line in second.stderr:
        said.append(line)
        if "another process is compiling" in line:
            (tmp_path / "go").touch()
            break
    out_second, rest = second.communicate(timeout=400)
    out_first, said_first = first.communicate(timeout=400)
    assert first.returncode == second.returncode == 0 and out_first == out_second
    library = Path(out_first.strip())
    assert f"compiling 1 C++ files into {library.parent}" in said_first
    assert said == [f"[lattica] another process is compiling the ops in {library.parent}: waiting for it\n"]
    assert "compiling 1" not in rest
    assert library.is_file() and not list(library.parent.glob("build-*"))


def test_compile_error_shows_the_compilers_words_and_what_to_do(small: Small) -> None:
    small.source.write_text("#include <no_such_header.h>\n")
    with pytest.raises(build.CompileError, match=r"fatal error: no_such_header.h(.|\n)*What to do: ") as caught:
        build.build()
    assert " -isystem " not in str(caught.value) and not list(small.cache.glob("*/*.so"))


@pytest.mark.parametrize(
    ("output", "advice"),
    [
        ("fatal error: cuda_runtime.h: No such file", "CUDA toolkit"),
        ("fatal error: cstdint: No such file", "apt-get install g++"),
        ("Ninja is required to load C++ extensions", "pip install ninja"),
        ("error: unrecognized command-line option '-std=c++20'", "too old"),
        ("error: No space left on device", "LATTICA_CACHE"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "MAX_JOBS=1"),
        ("error: expected ';'", "ops.doctor"),
        ("c++ -O3 -std=c++20 -c x.cpp\nerror: expected ';'", "ops.doctor"),  # ninja echoes the command
    ],
)
def test_advice(output: str, advice: str) -> None:
    assert advice in build._advice(output)


def test_a_failure_is_not_repeated_for_every_op(small: Small, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    small.source.write_text("#error stop\n")
    monkeypatch.setattr(build, "_loaded", None)
    monkeypatch.setattr(build, "_failure", None)
    for _ in range(2):
        with pytest.raises(build.CompileError, match="error: #error stop"):
            build.load()
    assert capsys.readouterr().err.count("compiling 1 C++ files") == 1


def test_import_compiles_nothing_and_without_a_compiler_the_reference_serves(tmp_path: Path) -> None:
    """Values and gradients of the losses come out right, only slower, with one warning."""
    code = """
        import torch, ops
        print(ops.build._loaded)
        am = torch.zeros(1, 2, 3, requires_grad=True)
        for _ in range(2):
            lm, symbols = torch.zeros(1, 2, 3), torch.tensor([[1]])
            loss, occupations = ops.rnnt_loss_simple(lm, am, symbols, 0, return_grad=True)
        loss.backward()
        ranges = ops.get_rnnt_prune_ranges(*occupations, None, 2)
        print(round(float((-loss).exp() * 27), 4), ranges.shape, am.grad.any())
    """
    environment = {**os.environ, "PYTHONPATH": str(build.PACKAGE.parent), "LATTICA_CACHE": str(tmp_path / "cache")}
    environment["CXX"] = "no-such-compiler"
    command = [sys.executable, "-W", "always", "-c", textwrap.dedent(code)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    # Two paths (the symbol in frame 0 or in frame 1) of three arcs, each of probability 1/3.
    assert result.stdout == "None\n2.0 torch.Size([1, 2, 2]) tensor(True)\n", result.stderr
    assert result.stderr.count("no C++ compiler") == 1 and "apt-get install g++" in result.stderr
    assert not (tmp_path / "cache").exists()


def test_unwritable_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the way of the folder: root may write anywhere, so permissions would prove nothing here."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LATTICA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(RuntimeError, match=f"LATTICA_CACHE={tmp_path}/file/cache cannot be written"):
        build.cache_dir()

    monkeypatch.delenv("LATTICA_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.warns(UserWarning, match=f"the compiled ops go to {tmp_path}/lattica-"):
        fallback = build.cache_dir()
    assert fallback.stat().st_mode & 0o077 == 0, "others must not be able to put a library there"


def test_prebuilt_comes_first(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    library = build.build(portable=True)
    assert library == build.prebuilt_path(cuda=build.wants_cuda()) and library.is_file()
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build._load() == str(library)
    assert small.answer(library) == 3 and not small.cache.exists()
    small.write(5)
    assert not build.prebuilt_path(cuda=build.wants_cuda()).is_file()  # of other sources: not taken


def test_doctor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    facts, faults = doctor.report()
    assert faults == [] and any("the recursion works on cpu" in fact for fact in facts)
    assert any(str(build.cache_dir()) in fact for fact in facts)

    monkeypatch.setenv("CXX", "no-such-compiler")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LATTICA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(SystemExit, match=r"1|True"):
        doctor.main()
    out = capsys.readouterr().out
    assert "WRONG     no C++ compiler: install one: apt-get install g++" in out and "cannot be written" in out


def test_every_schema_is_read_and_numeric_ops_have_a_twin() -> None:
    names = {schema.split("(")[0] for schema in build.schemas()}
    assert "mutual_information" in names and set(reference.__all__) <= names
    # Automata, language models and decoders are compiled code only; without a compiler those ops raise an error that says so.
    compiled_only = {n for n in names if n.startswith(("fsa_", "decode_", "ngram_", "ctc_decoder_"))} - set(
        reference.__all__
    )
    assert names - compiled_only == set(reference.__all__) and "fsa_state_scores" not in compiled_only

"""Every .cu compiles for the GPUs that users have, wherever nvcc is, GPU or not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from ops import build

NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")  # build.nvcc() needs a torch with CUDA
SOURCES = sorted((build.CSRC / "cuda").glob("*.cu"))


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_compiles_to_an_object(source: Path, tmp_path: Path) -> None:
    # torch's CPU wheel lacks this generated header; nothing in it matters here.
    stand_in = tmp_path / "c10" / "cuda" / "impl" / "cuda_cmake_macros.h"
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text("#pragma once\n")
    includes = [f"-I{path}" for path in (build.CSRC, tmp_path, *cpp_extension.include_paths())]
    architectures = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in (80, 90)]
    command = [
        NVCC,
        "--threads=2",  # an architecture each
        "-std=c++20",
        *build.CUDA_FLAGS,
        *architectures,
        *includes,
        "-Xcompiler",
        "-fPIC",
        "-Werror",
        "all-warnings",
    ]
    result = subprocess.run(
        [*command, "-c", str(source), "-o", str(tmp_path / "out.o")], capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_cuda_source_has_its_cpu_twin() -> None:
    assert {path.stem for path in SOURCES} <= {path.stem for path in (build.CSRC / "cpu").glob("*.cpp")}

"""`python -m ops.doctor`: what the compiled ops need, what is here, and what to do about the difference.

Exit status 0 if the ops load and compute compiled, 1 otherwise.
"""

from __future__ import annotations

import shutil
import sys
import warnings

import torch

from ops import build


def report() -> tuple[list[str], list[str]]:
    """(what was found, what is wrong and how to mend it)."""
    facts, faults = [], []

    facts.append(f"python    {sys.version.split()[0]}, {sys.executable}")
    facts.append(
        f"torch     {torch.__version__}, CUDA {torch.version.cuda or 'not built in'}, {torch.get_num_threads()} threads"
    )
    if tuple(int(x) for x in torch.__version__.split("+")[0].split(".")[:2]) < (2, 10):
        faults.append(f"torch {torch.__version__} is too old: the ops need 2.10 or later: pip install -U torch")

    cxx = build.compiler()
    facts.append(f"compiler  {_program(cxx)}")
    if cxx is None:
        faults.append(f"no C++ compiler: {build.INSTALL_COMPILER}")

    with build.ninja_on_path():
        ninja = shutil.which("ninja")
        facts.append(f"ninja     {_program(ninja)}")
    if ninja is None:
        faults.append("no ninja: pip install ninja")

    nvcc = build.nvcc()
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    facts.append(f"GPUs      {', '.join(gpus) or 'none that torch sees'}")
    facts.append(f"nvcc      {nvcc or 'none'}")
    if gpus and nvcc is None:
        faults.append(f"a GPU, but no nvcc: install the CUDA toolkit {torch.version.cuda} or set CUDA_HOME")

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            facts.append(f"cache     {build.cache_dir()}")
        faults += [str(w.message) for w in caught]
    except RuntimeError as error:
        faults.append(str(error))
        return facts, faults

    prebuilt = build.prebuilt_path(build.wants_cuda())
    facts.append(f"prebuilt  {prebuilt if prebuilt.is_file() else 'none'}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            facts.append(f"library   {build.load()}")
        facts.append(f"test      {_compute('cpu')}")
        if gpus:
            facts.append(f"test      {_compute('cuda')}")
    except (RuntimeError, OSError) as error:
        faults.append(str(error))
    return facts, faults


def _program(path: str | None) -> str:
    return "none" if path is None else f"{path}: {build.version_line(path)}"


def _compute(device: str) -> str:
    """Run one op: with all log-probabilities 0, a 1 × 2 lattice has three paths."""
    import ops

    score = ops.mutual_information_recursion(torch.zeros(1, 1, 3, device=device), torch.zeros(1, 2, 2, device=device))
    paths = round(float(score.exp()))
    if paths != 3:
        raise RuntimeError(
            f"the recursion on {device} counted {paths} paths instead of 3: the build is broken; delete its folder"
        )
    return f"the recursion works on {device}"


def main() -> None:
    facts, faults = report()
    print("\n".join(facts))
    for fault in faults:
        print(f"\nWRONG     {fault}")
    if not faults:
        print("\nAll is well.")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()

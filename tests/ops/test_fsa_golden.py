"""Agreement with results of the real k2, kept in ../shared (skipped where that is absent)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Where both FSAs have epsilons k2 counts a pair of paths once for each order of their epsilons, so that its log-semiring
# total is too large; ours counts it once, as test_fsa_algorithms.py::test_intersect checks against all paths.
KNOWN: dict[str, set[str]] = {"fsa": {"fsa/5/intersect_log"}, "ctc": set(), "rnnt_decode": set()}


@pytest.mark.parametrize("part", sorted(KNOWN))
def test_parity_with_k2(shared_dir, repo_dir, part):
    command = [sys.executable, shared_dir / "scripts" / "k2_parity.py", "--module", "ops", "--seed", "1",
               "--check", shared_dir / "golden" / "k2_parity.pt", "--only", part]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(repo_dir)}
    result = subprocess.run(command, cwd=repo_dir, capture_output=True, text=True, env=env)
    *lines, summary = result.stdout.strip().splitlines()
    assert summary.endswith("agree"), result.stdout + result.stderr
    assert {line.split(":")[0] for line in lines if "differs" in line or "missing" in line} == KNOWN[part], (
        result.stdout
    )
    assert len(lines) == len(KNOWN[part]), result.stdout

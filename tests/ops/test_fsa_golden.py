"""Agreement with results of the real k2, kept in ../shared (skipped where that is absent)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("part", ["fsa", "ctc"])
def test_parity_with_k2(shared_dir, repo_dir, part):
    command = [sys.executable, shared_dir / "scripts" / "k2_parity.py", "--module", "ops", "--seed", "1",
               "--check", shared_dir / "golden" / "k2_parity.pt", "--only", part]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(repo_dir)}
    result = subprocess.run(command, cwd=repo_dir, capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stdout + result.stderr

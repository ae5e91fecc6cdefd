"""docs/fsa.md: its examples run and give what it says, and its figures are there."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def test_page(repo_dir: Path) -> None:
    spec = importlib.util.spec_from_file_location("draw_fsa", repo_dir / "docs" / "draw_fsa.py")
    assert spec is not None and spec.loader is not None
    draw_fsa = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw_fsa)
    results, variables = draw_fsa.run_page()
    assert results.attempted > 25 and results.failed == 0
    names = draw_fsa.figure_names()
    assert len(names) == len(set(names)) > 8
    for name in names:
        svg = (repo_dir / "docs" / "figures" / f"fsa-{name}.svg").read_text(encoding="utf-8")
        assert svg.count("<ellipse") == variables[name].shape[0] + 1  # the final state has two circles
        assert svg.count("<polygon") == variables[name].num_arcs + 1  # arrowheads and the background

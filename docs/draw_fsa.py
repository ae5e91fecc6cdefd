"""Draw the figures of docs/fsa.md: run its examples, then draw the automaton that each figure is named after."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

DOCS = Path(__file__).parent
PAGE = DOCS / "fsa.md"


def run_page(page: Path = PAGE) -> tuple[doctest.TestResults, dict]:
    """Run the page's examples; how many failed, and the variables they leave."""
    text = page.read_text(encoding="utf-8").replace("\n```\n", "\n\n")  # the end of a block is not output
    test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    results = doctest.DocTestRunner().run(test, clear_globs=False)
    return results, test.globs


def figure_names(page: Path = PAGE) -> list[str]:
    return re.findall(r"\]\(figures/fsa-(\w+)\.svg\)", page.read_text(encoding="utf-8"))


def main() -> None:
    results, variables = run_page()
    if results.failed:
        raise SystemExit(f"{results.failed} examples of {PAGE.name} fail")
    for name in figure_names():
        svg = variables[name].draw(None).pipe("svg").decode()
        svg = re.sub(r"<!--.*?-->\s*|<title>.*?</title>\s*", "", svg, flags=re.DOTALL)  # half of the file, not seen
        (DOCS / "figures" / f"fsa-{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Confidence from lattices and n-best lists against enumeration, and its calibration against arithmetic by hand."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path

import pytest
import torch

import ops
from toolkit.eval.confidence import calibration, token_pairs, word_pairs, write_calibration
from toolkit.search.posteriors import (
    frame_posteriors,
    nbest_confidences,
    with_lattice_confidences,
    with_nbest_confidences,
)
from toolkit.search.result import Hypothesis, SearchResult
from toolkit.search.words import Word


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_frame_posteriors_of_an_unpruned_lattice_are_those_of_all_paths(scale: float) -> None:
    log_probs_NTV = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).log_softmax(2)
    lens = [4, 2]
    lattice = ops.get_lattice(log_probs_NTV, torch.tensor(lens), ops.ctc_topo(2), 100.0, 100.0, frame_idx_name="frame")
    got_NTV = frame_posteriors(lattice, torch.tensor(lens), 3, scale)
    for i, length in enumerate(lens):
        expected_TV = torch.zeros(4, 3)
        for path in itertools.product(range(3), repeat=length):
            weight = math.exp(scale * sum(float(log_probs_NTV[i, t, c]) for t, c in enumerate(path)))
            for t, c in enumerate(path):
                expected_TV[t, c] += weight
        torch.testing.assert_close(got_NTV[i], expected_TV / expected_TV[0].sum(), atol=1e-5, rtol=1e-5)


def test_a_token_has_its_greatest_posterior() -> None:
    posteriors_TV = torch.tensor([[0.1, 0.9, 0.0], [0.3, 0.7, 0.0], [0.6, 0.0, 0.4]])
    hypothesis = Hypothesis([1, 2], [0, 2], [-0.1, -0.2], -3.0, ends=[2, 3])
    assert with_lattice_confidences(hypothesis, posteriors_TV).confidences == pytest.approx([0.9, 0.4])


def hyp(tokens: list[int], score: float) -> Hypothesis:
    return Hypothesis(tokens, list(range(len(tokens))), [-0.5] * len(tokens), score)


def test_nbest_confidence_is_the_share_that_agrees() -> None:
    nbest = [hyp([5, 6, 7], math.log(0.5)), hyp([5, 7], math.log(0.3)), hyp([5, 8, 7], math.log(0.2))]
    assert nbest_confidences(nbest) == pytest.approx([1.0, 0.5, 1.0])
    assert nbest_confidences(nbest, scale=0.0) == pytest.approx([1.0, 1 / 3, 1.0])
    result = with_nbest_confidences(SearchResult(nbest))
    assert result.best.confidences == pytest.approx([1.0, 0.5, 1.0]) and result.nbest[1:] == nbest[1:]
    alone = SearchResult(nbest[:1])
    assert with_nbest_confidences(alone) is alone  # nothing to compare it with


def test_pairs_say_what_was_correct() -> None:
    words = [Word("A", 0, 1, 0.9), Word("X", 1, 2, 0.4), Word("C", 2, 3, 0.8), Word("D", 3, 4, 0.1)]
    assert word_pairs(["A", "B", "C"], words) == [(0.9, True), (0.4, False), (0.8, True), (0.1, False)]
    assert word_pairs(["A", "B"], []) == []
    assert token_pairs([5, 6], hyp([5, 7], 0.0)) == [(math.exp(-0.5), True), (math.exp(-0.5), False)]


def test_calibration_by_hand() -> None:
    c = calibration([(0.95, True), (0.85, True), (0.85, False), (0.2, False), (1.0, True)], num_bins=10)
    assert (c.count, c.accuracy) == (5, 0.6)
    assert [b.count for b in c.bins] == [0, 0, 1, 0, 0, 0, 0, 0, 2, 2]
    assert c.ece == pytest.approx((2 * abs(1.0 - 0.975) + 2 * abs(0.5 - 0.85) + 0.2) / 5)
    assert c.nce is not None and c.nce < 1
    perfect = calibration([(1.0, True)] * 3 + [(0.0, False)])
    assert perfect.ece == 0.0 and perfect.nce == pytest.approx(1.0, abs=1e-4)
    assert calibration([]).ece is None and calibration([(0.5, True)]).nce is None
    with pytest.raises(ValueError, match=r"confidence 1\.5"):
        calibration([(1.5, True)])


def test_files_are_written_with_and_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                       caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    pairs = [(0.9, True), (0.6, False)]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write_calibration(tmp_path, "valid-1best", pairs, [])
    assert json.loads((tmp_path / "confidence-valid-1best.json").read_text())["words"]["count"] == 2
    assert "lattica[plots]" in caplog.text and not (tmp_path / "confidence-valid-1best.png").exists()
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    write_calibration(tmp_path, "valid-1best", pairs, [])
    assert (tmp_path / "confidence-valid-1best.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["confidence-valid-1best.json", "confidence-valid-1best.png"]

"""Confidence: how probable each token of a hypothesis is among everything else that a search considered.

From a lattice: the total probability of the paths that say the token in its frame, over that of all paths. From an n-best
list: that of the hypotheses which have the token in the same place of an alignment with the best one. Both are posteriors of
what the model believes; toolkit/eval/confidence.py measures whether it is right to.

Legend: N utterances, T encoder frames, V vocabulary with blank.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import kaldialign
import torch
from torch import Tensor

from ops.fsa import Fsa
from toolkit.search.result import Hypothesis, SearchResult

NO_TOKEN = -1
NEGLIGIBLE = 1e-4  # of the weight of the best hypothesis


def reads_frame(fsas: Fsa, lens: Tensor) -> Tensor:
    """Which arcs read a frame. Arcs without one have `frame` -1, or, where they were part of a final arc, the one after
    the last. lens: frames of each FSA of the vector."""
    owner = fsas._shape.row_ids(1).long()[fsas._shape.row_ids(2).long()]
    return (fsas.frame >= 0) & (fsas.frame < lens.to(fsas.device)[owner]) & (fsas.labels >= 0)


def frame_posteriors(lattice: Fsa, lens_N: Tensor, vocab_size: int, scale: float = 1.0) -> Tensor:
    """(N, T, V) float32: the posterior of each label in each frame; rows of frames that no path reads are 0.

    lattice: FsaVec with the arc attribute `frame`. lens_N: frames of each utterance; T is the largest. scale: of the
    scores; less than 1 makes for less confidence.
    """
    num_frames = int(lens_N.max())
    if scale != 1.0:
        scaled = lattice.detach()
        scaled.scores = scaled.scores * scale
        lattice = scaled
    utterance = lattice._shape.row_ids(1).long()[lattice._shape.row_ids(2).long()]
    frame, label = lattice.frame.long(), lattice.labels.long()
    on = reads_frame(lattice, lens_N)
    place = ((utterance * num_frames + frame) * vocab_size + label)[on]
    size = (lattice.shape[0] or 0, num_frames, vocab_size)
    posterior = lattice.get_arc_post(True, True).detach().exp()[on]
    ans = torch.zeros(math.prod(size), dtype=torch.float64, device=posterior.device).index_add_(0, place, posterior)
    return ans.clamp_(max=1.0).view(size).float()


def with_lattice_confidences(hypothesis: Hypothesis, posteriors_TV: Tensor) -> Hypothesis:
    """The hypothesis with each token's confidence: its greatest posterior over its frames."""
    ends = hypothesis.ends or [frame + 1 for frame in hypothesis.frames]
    spans = zip(hypothesis.tokens, hypothesis.frames, ends)
    confidences = [float(posteriors_TV[start:end, token].max()) for token, start, end in spans]
    return dataclasses.replace(hypothesis, confidences=confidences)


def nbest_confidences(nbest: Sequence[Hypothesis], scale: float = 1.0) -> list[float]:
    """For each token of the first hypothesis the share of the list that has it too: weights softmax(scale * score).

    With a list of one everything is certain, and the result says nothing.
    """
    best = nbest[0].tokens
    top = max(h.score for h in nbest)
    weights = [math.exp(scale * (h.score - top)) for h in nbest]
    shares = [0.0] * len(best)
    for hypothesis, weight in zip(nbest, weights):
        if weight < NEGLIGIBLE:
            continue
        place = 0
        for mine, theirs in kaldialign.align(best, hypothesis.tokens, NO_TOKEN):
            if mine != NO_TOKEN:
                shares[place] += weight * (mine == theirs)
                place += 1
    total = sum(weight for weight in weights if weight >= NEGLIGIBLE)
    return [share / total for share in shares]


def with_nbest_confidences(result: SearchResult, scale: float = 1.0) -> SearchResult:
    """The result with confidences for its best hypothesis, where there are others to compare it with and none yet."""
    best = result.best
    if best.confidences is not None or len(result.nbest) < 2 or not math.isfinite(best.score):
        return result
    best = dataclasses.replace(best, confidences=nbest_confidences(result.nbest, scale))
    return SearchResult([best, *result.nbest[1:]])

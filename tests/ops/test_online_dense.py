"""Streaming intersection: chunks give what the whole gives, for streams that come, go and change places."""

from __future__ import annotations

import pytest
import torch

import ops as k2

LIMITS = (6.0, 5.0, 2, 12)


def scores(n, t, c=8, seed=0):
    return (2 * torch.randn(n, t, c, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)


def chunk(*frames):
    padded = torch.nn.utils.rnn.pad_sequence(frames, batch_first=True)
    return k2.DenseFsaVec(padded, torch.tensor([[i, 0, len(x)] for i, x in enumerate(frames)], dtype=torch.int32))


def whole(graph, frames):
    return k2.intersect_dense_pruned(graph, chunk(frames), *LIMITS, frame_idx_name="frame", allow_partial=True)


GRAPHS = {
    "ctc": k2.ctc_topo(7),
    "linear": k2.linear_fsa([1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3]),  # final after 12 frames only: partial results before
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("sizes", [[12], [4, 4, 4], [1] * 12, [5, 0, 7]])
def test_chunks_are_the_whole(name, sizes):
    graph, lp = GRAPHS[name], scores(2, 12)
    intersecter = k2.OnlineDenseIntersecter(graph, 2, *LIMITS)
    states, t = [None, None], 0
    for size in sizes:
        lattice, states = intersecter.decode(chunk(*lp[:, t : t + size]), states, frame_idx_name="frame")
        t += size
        for i in range(2):
            expected = whole(graph, lp[i, :t])[0]
            assert k2.to_str_simple(lattice[i]) == k2.to_str_simple(expected)
            assert torch.equal(lattice[i].frame, expected.frame)
    assert [len(s.log_probs) for s in states] == [12, 12] and states[0].tokens.dim0 == 13
    assert k2.without_path(lattice) == []


def test_streams_join_leave_and_change_places():
    graph, lp = GRAPHS["ctc"], scores(3, 9, seed=1)
    intersecter = k2.OnlineDenseIntersecter(graph, 3, *LIMITS)
    _, (a, b) = intersecter.decode(chunk(lp[0, :3], lp[1, :2]), [None, None])
    _, (c, a, b) = intersecter.decode(chunk(lp[2, :4], lp[0, 3:6], lp[1, 2:7]), [None, a, b])
    lattice, (a2, _) = intersecter.decode(chunk(lp[0, 6:], lp[2, 4:]), [a, c])
    for i, stream in enumerate((0, 2)):
        assert k2.to_str_simple(lattice[i]) == k2.to_str_simple(whole(graph, lp[stream])[0])
    again, (a3,) = intersecter.decode(chunk(lp[0, 6:]), [a])  # states are values: nothing was changed in place
    assert k2.to_str_simple(again[0]) == k2.to_str_simple(lattice[0]) and torch.equal(a3.scores, a2.scores)
    lattice, _ = intersecter.decode(chunk(lp[1, 7:]), [b])
    assert k2.to_str_simple(lattice[0]) == k2.to_str_simple(whole(graph, lp[1])[0])


def test_dead_streams_stay_dead_and_do_not_harm_others():
    lp = scores(2, 6)
    lp[0, 2] = -float("inf")
    intersecter = k2.OnlineDenseIntersecter(GRAPHS["ctc"], 2, *LIMITS)
    states: list = [None, None]
    for t in (0, 3):
        lattice, states = intersecter.decode(chunk(*lp[:, t : t + 3]), states)
        assert k2.without_path(lattice) == [0]
    assert k2.to_str_simple(lattice[1]) == k2.to_str_simple(whole(GRAPHS["ctc"], lp[1])[0])


def test_bad_arguments():
    graph, lp = GRAPHS["ctc"], scores(2, 6)
    with pytest.raises(ValueError):
        k2.OnlineDenseIntersecter(graph, 0, *LIMITS)
    with pytest.raises(ValueError):
        k2.OnlineDenseIntersecter(k2.create_fsa_vec([graph, graph]), 2, *LIMITS)
    intersecter = k2.OnlineDenseIntersecter(graph, 1, *LIMITS)
    with pytest.raises(ValueError, match="at most 1 streams"):
        intersecter.decode(chunk(*lp), [None, None])
    with pytest.raises(ValueError, match="2 states"):
        intersecter.decode(chunk(lp[0]), [None, None])
    _, (state,) = intersecter.decode(chunk(lp[0]), [None])
    wrong = k2.DecodeStateInfo(state.log_probs[:3], state.tokens, state.scores)
    with pytest.raises(RuntimeError, match="shorter than its history"):
        intersecter.decode(chunk(lp[0, :1]), [wrong])
    small = k2.OnlineDenseIntersecter(k2.linear_fsa([1]), 1, *LIMITS)
    with pytest.raises(RuntimeError, match="no state of the graph"):
        small.decode(chunk(lp[0]), [state])

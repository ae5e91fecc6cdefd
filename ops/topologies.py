"""Automata from label sequences: linear ones, CTC topologies and graphs, graphs for edit distance. All made at
once, no loops.
"""

from __future__ import annotations

import itertools
import struct
from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ops.algorithms import add_epsilon_self_loops
from ops.fsa import Fsa
from ops.fsa_attributes import arcs_of, call
from ops.ragged import RaggedShape, RaggedTensor
from ops.ragged.shape import ids_to_splits, splits_to_ids

Labels = Sequence[int] | Sequence[Sequence[int]] | RaggedTensor


def _ragged(labels: Any, device: torch.device | str | None, what: str) -> tuple[RaggedTensor, bool]:
    """Label lists as a 2-axis int32 ragged tensor, and whether there were several."""
    if isinstance(labels, RaggedTensor):
        if labels.num_axes != 2 or labels.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{what}: labels must be int32 with 2 axes, got {labels.dtype} with {labels.num_axes}")
        labels = labels.to(torch.int32)
        return (labels if device is None else labels.to(device)), True
    if isinstance(labels, Tensor):
        labels = labels.tolist()
    several = len(labels) > 0 and all(isinstance(x, (list, tuple, Tensor)) for x in labels)
    rows = [x.tolist() if isinstance(x, Tensor) else x for x in labels] if several else [labels]
    lens = array("i", itertools.accumulate(map(len, rows), initial=0))
    values = bytearray(4 * lens[-1])
    try:
        struct.pack_into(f"{lens[-1]}i", values, 0, *itertools.chain.from_iterable(rows))  # the fastest way there is
    except (TypeError, struct.error) as e:
        raise ValueError(f"{what}: labels must be lists of int32 numbers: {e}") from None
    flat = torch.frombuffer(values, dtype=torch.int32) if values else torch.zeros(0, dtype=torch.int32)
    ragged = RaggedTensor(RaggedShape(splits=[torch.frombuffer(lens, dtype=torch.int32)]), flat)
    return (ragged if device is None else ragged.to(device)), several


def _check_positive(labels: RaggedTensor, what: str, least: int) -> None:
    if labels.numel() and int(labels.values.min()) < least:
        raise ValueError(f"{what}: labels must be at least {least}, got {int(labels.values.min())}")


def _build(
    states_N: Tensor, owner: Tensor, src: Tensor, dest: Tensor, label: Tensor, aux: Tensor | None, vec: bool,
    scores: Tensor | None = None,
) -> tuple[Fsa, Tensor]:  # fmt: skip
    """FSAs with the given numbers of states from arcs in any order; arcs of one state keep theirs. Also returns the
    order.
    """
    fsa_splits = torch.cat([states_N.new_zeros(1), states_N.cumsum(0)])
    order = torch.argsort(fsa_splits[owner] + src, stable=True)
    state_splits = ids_to_splits((fsa_splits[owner] + src)[order].int(), int(fsa_splits[-1]))
    arcs3 = torch.stack([src, dest, label], dim=1)[order].int()
    zeros = torch.zeros(order.numel(), device=arcs3.device)
    shape = RaggedShape(splits=[fsa_splits.int(), state_splits] if vec else [state_splits])
    ans = Fsa.from_arcs(shape, arcs3, zeros if scores is None else scores[order])
    if aux is not None:
        ans.aux_labels = aux[order].int()
    return ans, order


def _linear(labels: RaggedTensor, aux: Tensor | None, vec: bool) -> Fsa:
    """States 0 ... n for n labels, each left by one arc, and the final one."""
    rows = labels.shape.row_splits(1)
    num_fsas, num_arcs = rows.numel() - 1, labels.numel() + rows.numel() - 1
    fsas, arcs = (torch.arange(n, dtype=torch.int32, device=rows.device) for n in (num_fsas + 1, num_arcs))
    first_arc = rows + fsas
    owner = splits_to_ids(first_arc, num_arcs)
    src = arcs - first_arc[owner]
    inner = torch.ones(num_arcs, dtype=torch.bool, device=rows.device)
    inner[first_arc[1:].long() - 1] = False
    label = torch.full_like(arcs, -1).masked_scatter(inner, labels.values.int())
    fsa_splits = first_arc + fsas
    state_splits = torch.empty(num_arcs + num_fsas + 1, dtype=torch.int32, device=rows.device)
    state_splits[(arcs + owner).long()] = arcs
    state_splits[fsa_splits[1:].long() - 1] = first_arc[1:]  # final states have no arcs
    state_splits[-1] = num_arcs
    shape = RaggedShape(splits=[fsa_splits, state_splits] if vec else [state_splits])
    ans = Fsa.from_arcs(shape, torch.stack([src, src + 1, label], dim=1), torch.zeros(num_arcs, device=rows.device))
    if aux is not None:
        ans.aux_labels = torch.full_like(arcs, -1).masked_scatter(inner, aux.int())
    return ans


def linear_fsa(labels: Labels, device: torch.device | str | None = None) -> Fsa:
    """Accepts exactly the label sequence, with score 0. A list of lists (or a ragged tensor) gives an FsaVec."""
    ragged, several = _ragged(labels, device, "linear_fsa")
    _check_positive(ragged, "linear_fsa", 0)
    return _linear(ragged, None, several)


def linear_fst(labels: Labels, aux_labels: Labels, device: torch.device | str | None = None) -> Fsa:
    """Transduces the labels to the aux_labels, which have the same lengths. Lists of lists give an FsaVec."""
    ragged, several = _ragged(labels, device, "linear_fst")
    aux, _ = _ragged(aux_labels, device, "linear_fst")
    if ragged.shape != aux.shape:
        raise ValueError("linear_fst: labels and aux_labels must have the same lengths")
    _check_positive(ragged, "linear_fst", 0)
    return _linear(ragged, aux.values, several)


def linear_fsa_with_self_loops(fsas: Fsa) -> Fsa:
    """Accepts the labels (without epsilons) of the linear FSAs, with any number of label 0 between: k2's name."""
    labels = _labels_of(fsas, fsas.labels)
    return add_epsilon_self_loops(_linear(labels.remove_values_leq(0), None, fsas.is_vec()))


def linear_fst_with_self_loops(fsas: Fsa) -> Fsa:
    """As linear_fsa_with_self_loops for transducers: made of the aux_labels that are not 0, for labels and
    aux_labels.
    """
    aux = fsas.aux_labels
    flat = aux if isinstance(aux, Tensor) else aux.values
    owner = None if isinstance(aux, Tensor) else aux.shape
    labels = _labels_of(fsas, flat, owner).remove_values_leq(0)
    return add_epsilon_self_loops(_linear(labels, labels.values, fsas.is_vec()))


def _labels_of(fsas: Fsa, values: Tensor, below: RaggedShape | None = None) -> RaggedTensor:
    """Labels in arc order, one row an FSA."""
    shape = fsas.as_vec()._shape.remove_axis(1)
    if below is not None:
        shape = shape.compose(below).remove_axis(1)
    return RaggedTensor(shape, values.contiguous())


def trivial_graph(max_token: int, device: torch.device | str | None = None) -> Fsa:
    """Transduces every sequence of labels 1 ... max_token to itself: one state with a loop for each, and the final
    one.
    """
    _check_max_token(max_token)
    tokens = torch.cat([torch.arange(1, max_token + 1, device=device), torch.full((1,), -1, device=device)])
    dest = (tokens == -1).long()
    zeros = torch.zeros_like(tokens)
    return _build(torch.tensor([2], device=device), zeros, zeros, dest, tokens, tokens, False)[0]


def _check_max_token(max_token: int) -> None:
    if not 0 <= max_token <= 2**15 * 2**15:
        raise ValueError(f"max_token must not be negative, got {max_token}")


def ctc_topo(max_token: int, modified: bool = False, device: torch.device | str | None = None) -> Fsa:
    """Transduces frame labels (0 is blank) to token sequences by CTC's rule: merge repeats, then drop blanks.

    Standard: state i has just seen token i; (max_token + 1)^2 arcs. modified: equal tokens in a row need no blank
    between them, so that a token's frames may be read as one token or as several; 4 arcs a token.
    Source: Graves et al., "Connectionist temporal classification", 2006; the modified one is k2's.
    """
    _check_max_token(max_token)
    n = max_token + 1
    i = torch.arange(n, device=device)
    if modified:
        token = i[1:]
        zero = torch.zeros_like(token)
        src = torch.cat([zero[:0].new_zeros(1), zero, zero, token, token, zero.new_zeros(1)])
        dest = torch.cat([zero.new_zeros(1), zero, token, token, zero, zero.new_full((1,), n)])
        label = torch.cat([zero.new_zeros(1), token, token, token, token, zero.new_full((1,), -1)])
        aux = torch.cat([zero.new_zeros(1), token, token, zero, zero, zero.new_full((1,), -1)])
        return _build(torch.tensor([n + 1], device=device), torch.zeros_like(src), src, dest, label, aux, False)[0]
    # State i is left by an arc with each label, which leads to the label's state, and by the arc into the final state.
    dest = torch.arange(n + 1, device=device)
    src, dest = i.repeat_interleave(n + 1), dest.repeat(n)
    label = torch.where(dest == n, -1, dest)
    state_splits = torch.cat([torch.arange(n + 1, device=device), i.new_full((1,), n)]) * (n + 1)
    arcs3 = torch.stack([src, dest, label], dim=1).int()
    ans = Fsa.from_arcs(RaggedShape(splits=[state_splits.int()]), arcs3, torch.zeros(src.numel(), device=device))
    ans.aux_labels = torch.where(src == dest, 0, label).int()
    return ans


def ctc_graph(symbols: Labels, modified: bool = False, device: torch.device | str | None = "cpu") -> Fsa:
    """The CTC topology of each token sequence: accepts its frame labelings, aux_labels are the tokens.

    State 2k is the blank before token k, state 2k + 1 token k itself. modified: equal tokens in a row need no blank
    between them. A list of lists gives an FsaVec. Tokens must be positive.
    """
    device = None if isinstance(symbols, RaggedTensor) else device
    ragged, several = _ragged(symbols, device, "ctc_graph")
    _check_positive(ragged, "ctc_graph", 1)
    *arcs, aux = call("fsa_ctc_graph", ragged.shape.row_splits(1), ragged.values, modified)
    shape, arcs3 = arcs_of(arcs, several)
    ans = Fsa.from_arcs(shape, arcs3, torch.zeros(aux.numel(), device=ragged.device))
    ans.aux_labels = aux
    return ans


def levenshtein_graph(symbols: Labels, ins_del_score: float = -0.501, device: torch.device | str | None = "cpu") -> Fsa:
    """For levenshtein_alignment: the sequence (no cost), any symbol replaced by label 0 (-0.5) or label 0 added
    anywhere.

    Two such graphs intersect in paths where two zeros that stand for symbols are a substitution (-1), and one of each
    kind is an insertion or a deletion (-1.001, so that a substitution is preferred to a pair of them).
    ins_del_score: of an added label 0; less than -0.5.
    """
    if not ins_del_score <= -0.5:
        raise ValueError(f"ins_del_score must be at most -0.5, got {ins_del_score}")
    device = None if isinstance(symbols, RaggedTensor) else device
    ragged, several = _ragged(symbols, device, "levenshtein_graph")
    _check_positive(ragged, "levenshtein_graph", 1)
    lens = ragged.shape.counts(1).long()
    owner = ragged.shape.row_ids(1).long()
    k = torch.arange(owner.numel(), device=ragged.device) - ragged.shape.row_splits(1).long()[owner]
    y, ids = ragged.values.long(), torch.arange(lens.numel(), device=ragged.device)
    zero, end = torch.zeros_like(y), torch.full_like(lens, -1)
    kinds = [
        (owner, k, k, zero, zero, zero + ins_del_score),
        (ids, lens, lens, 0 * lens, 0 * lens, 0 * lens + ins_del_score),
        (owner, k, k + 1, zero, y, zero - 0.5),
        (owner, k, k + 1, y, y, 0.0 * zero),
        (ids, lens, lens + 1, end, end, 0.0 * lens),
    ]
    owner, src, dest, label, aux, scores = (torch.cat(x) for x in zip(*kinds))
    ans, _ = _build(lens + 2, owner, src, dest, label, aux, several, scores.float())
    loops = ans.arcs3[:, 0] == ans.arcs3[:, 1]
    ans.__ins_del_score_internal_attr_ = torch.where(loops, ins_del_score + 0.5, 0.0)
    return ans

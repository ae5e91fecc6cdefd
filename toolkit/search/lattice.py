"""Decoding of a CTC head through lattices: with the CTC topology alone, with HLG, with a larger language model on top.

    1best                    best path of the topology's lattice
    1best_hlg                best path of the lattice of HLG
    nbest                    the best of paths drawn from it, of all that say the same words
    nbest_rescoring          the same, with the LM scores of HLG replaced by those of the larger model G
    whole_lattice_rescoring  all of the lattice composed with G
    nbest_oracle             the drawn path with the fewest errors: what a perfect rescoring could reach

Methods with an LM give a result for each of `lm_scales`; a path counts acoustic + scale * LM.

Legend: N utterances, T encoder frames, V vocabulary with blank.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import kaldialign
import torch
from torch import Tensor

import ops
from ops.fsa import Fsa
from ops.nbest import path_words
from toolkit.config import LatticeConfig
from toolkit.lang import Lexicon, make_hlg, ngram_to_fsa
from toolkit.search.posteriors import frame_posteriors, nbest_confidences, reads_frame, with_lattice_confidences
from toolkit.search.result import Hypothesis, SearchResult

log = logging.getLogger(__name__)

LATTICE_METHODS = ("1best", "1best_hlg", "nbest", "nbest_rescoring", "whole_lattice_rescoring", "nbest_oracle")
SWEEPS = NEEDS_HLG = ("1best_hlg", "nbest_rescoring", "whole_lattice_rescoring")
NEEDS_G = ("nbest_rescoring", "whole_lattice_rescoring")
NO_WORDS = ("<unk>", "<UNK>", "<s>", "</s>")
WIDER = (4.0, 16.0)  # what beams are widened by where no path survives, before a path may end anywhere


@dataclass(frozen=True)
class DecodingGraphs:
    """hlg: labels are the model's tokens, aux_labels words, `lm_scores` its LM's part of the scores. g: the larger LM, an
    acceptor of the same words with back-off arcs of label 0. words: the written forms, by number."""

    hlg: Fsa | None = None
    g: Fsa | None = None
    words: Sequence[str] = ()


def check_graphs(methods: Sequence[str], config: LatticeConfig) -> None:
    """Raise unless the language models that the methods need are named and there (ValueError, FileNotFoundError)."""
    for key, methods_in_need in (("ngram", NEEDS_HLG), ("rescore_ngram", NEEDS_G)):
        path, needing = getattr(config, key), [m for m in methods if m in methods_in_need]
        if needing and path is None:
            raise ValueError(
                f"decoding.lattice.{key}: {', '.join(needing)} need a word n-gram in ARPA format; "
                "recipes/librispeech/train_lm.py … lm=ngram lm.unit=word lm.order=3 makes one"
            )
        if needing and not Path(path).is_file():
            raise FileNotFoundError(f"decoding.lattice.{key}: no {path}")


def load_graphs(
    config: LatticeConfig, tokenizer: Any, device: torch.device, folder: Path | None = None
) -> DecodingGraphs:
    """HLG of the words of config.ngram, spelled by the tokenizer, and G of config.rescore_ngram, as far as they are given.

    HLG is kept in `folder`, as long as what it was made of stays the same. Words that the tokens cannot spell, and words
    of the second model that the first does not know, are counted and named in the log, and cannot be recognized.
    """
    if config.ngram is None:
        return DecodingGraphs()
    lm = ops.NgramLM.load(config.ngram)
    lexicon = Lexicon.from_tokenizer([w for w in lm.words if w not in NO_WORDS], tokenizer)
    table = lexicon.word_table()
    cache = None if folder is None else folder / f"HLG-{Path(config.ngram).stem}.pt"
    hlg = make_hlg(lexicon, lm, tokenizer.tokens, table, cache=cache)
    g = None
    if config.rescore_ngram is not None:
        g = ngram_to_fsa(ops.NgramLM.load(config.rescore_ngram), table, backoff_label=None).to(device)
    words = [table[i] for i in range(len(table))]
    return DecodingGraphs(hlg.to(device), g, words)


def lattice_settings(method: str, config: LatticeConfig) -> list[str]:
    """The keys of what `LatticeSearch` returns for a method."""
    return [f"lm_scale {s:g}" for s in config.lm_scales] if method in SWEEPS else [""]


class LatticeSearch:
    """The methods above for one model. A batch's lattices are made once for all methods: the first one pays."""

    def __init__(self, model: Any, tokenizer: Any, config: LatticeConfig, graphs: DecodingGraphs) -> None:
        self.model, self.tokenizer, self.config, self.graphs = model, tokenizer, config, graphs
        self._topology: Fsa | None = None
        self._batch: tuple[Any, ...] = ()
        self._made: dict[str, Fsa] = {}

    def __call__(
        self, method: str, encoder_out_NTD: Tensor, lens_N: Tensor, ids: Sequence[str], texts: Sequence[str] = ()
    ) -> dict[str, list[SearchResult]]:
        """Results by setting: {"": …} or {"lm_scale 0.5": …, …}.

        ids name utterances in warnings: those that need wider beams, those that keep their first-pass result because the
        larger LM knows none of their paths, those without a frame, the only ones with an empty result for want of a path.
        texts: the references, for nbest_oracle.
        """
        if tuple(ids) != self._batch:
            self._batch, self._made = tuple(ids), {}
        kept = (lens_N > 0).nonzero().squeeze(1)
        nothing = SearchResult([Hypothesis([], [], [], 0.0)])
        if len(kept) < len(ids):
            log.warning("no frames to decode: %s", _named(ids, (lens_N == 0).nonzero().squeeze(1).tolist()))
        if len(kept) == 0:
            return {setting: [nothing] * len(ids) for setting in lattice_settings(method, self.config)}
        log_probs_NTV = self.model.ctc_log_probs(encoder_out_NTD[kept])
        part = _Part(log_probs_NTV, lens_N[kept], [ids[i] for i in kept.tolist()])
        texts = [texts[i] for i in kept.tolist()] if texts else []
        ans = {}
        for setting, found in getattr(self, f"_{method.lstrip('1')}")(part, texts).items():
            results = dict(zip(kept.tolist(), found))
            ans[setting] = [results.get(i, nothing) for i in range(len(ids))]
        return ans

    # -------------------------------------------------------------------------------------------------------- methods

    def _best(self, part: _Part, texts: Sequence[str]) -> dict[str, list[SearchResult]]:
        lattice = self._lattice(part, "topology")
        return {"": self._from_best_paths(ops.one_best_decoding(lattice), lattice, part)}

    def _best_hlg(self, part: _Part, texts: Sequence[str]) -> dict[str, list[SearchResult]]:
        lattice = self._lattice(part, "hlg")
        return self._best_by_scale(lattice, part)

    def _whole_lattice_rescoring(self, part: _Part, texts: Sequence[str]) -> dict[str, list[SearchResult]]:
        first = self._lattice(part, "hlg")
        rescored = cast(Fsa, ops.rescore_with_whole_lattice(first, self._larger_lm()))
        lost = ops.without_path(rescored)
        if lost:
            log.warning("the larger LM knows no path, first-pass result kept: %s", _named(part.ids, lost))
            rescored = _replace(rescored, ops.index_fsa(first, torch.tensor(lost, dtype=torch.int32)), lost)
        return self._best_by_scale(rescored, part)

    def _nbest(self, part: _Part, texts: Sequence[str]) -> dict[str, list[SearchResult]]:
        lattice = self._lattice(part, "topology" if self.graphs.hlg is None else "hlg")
        nbest = self._draw(lattice)
        return {"": self._from_nbest(nbest, nbest.tot_scores().values, part)}

    def _nbest_rescoring(self, part: _Part, texts: Sequence[str]) -> dict[str, list[SearchResult]]:
        nbest = self._draw(self._lattice(part, "hlg"))
        am, lm = nbest.compute_am_scores().values, nbest.intersect(self._larger_lm()).tot_scores().values
        owner = nbest.shape.row_ids(1).long()
        known = torch.zeros(len(part.ids), dtype=torch.bool, device=lm.device).index_put_(
            (owner,), lm > -torch.inf, True
        )
        lost = (~known).nonzero().squeeze(1)
        if len(lost):
            log.warning("the larger LM knows no path, first-pass result kept: %s", _named(part.ids, lost.tolist()))
            lm = torch.where(known[owner], lm, nbest.compute_lm_scores().values)
        ans = {}
        for scale in self.config.lm_scales:
            total = am + torch.where(lm == -torch.inf, lm, scale * lm)
            ans[f"lm_scale {scale:g}"] = self._from_nbest(nbest, total, part)
        return ans

    def _nbest_oracle(self, part: _Part, texts: Sequence[str]) -> dict[str, list[SearchResult]]:
        ans = []
        for result, text in zip(self._nbest(part, texts)[""], texts):
            errors = [
                kaldialign.edit_distance(text.split(), (h.words or self.tokenizer.decode(h.tokens).split()))["total"]
                for h in result.nbest
            ]
            ans.append(SearchResult([result.nbest[errors.index(min(errors))]]))
        return {"": ans}

    # ------------------------------------------------------------------------------------------------------- machinery

    def _lattice(self, part: _Part, name: str) -> Fsa:
        """The lattices of a batch, with the arc attribute `frame`; every utterance has one that is not empty."""
        if name not in self._made:
            if name == "topology" and self._topology is None:
                self._topology = ops.ctc_topo(self.model.vocab_size - 1, device=part.log_probs_NTV.device)
            graph = self._topology if name == "topology" else self.graphs.hlg
            assert graph is not None, "check_graphs saw to that"
            self._made[name] = self._search(part, graph)
        return self._made[name]

    def _larger_lm(self) -> Fsa:
        assert self.graphs.g is not None, "check_graphs saw to that"
        return self.graphs.g

    def _search(self, part: _Part, graph: Fsa) -> Fsa:
        c = self.config

        def lattices(rows: Tensor, wider: float, partial: bool) -> Fsa:
            return ops.get_lattice(
                part.log_probs_NTV[rows], part.lens_N[rows], graph, wider * c.search_beam, wider * c.output_beam,
                int(wider * c.min_active_states), int(wider * c.max_active_states),
                frame_idx_name="frame", allow_partial=partial,
            )  # fmt: skip

        ans = lattices(torch.arange(len(part.ids), device=part.lens_N.device), 1.0, False)
        for wider, partial in [*((w, False) for w in WIDER), (WIDER[-1], True)]:
            lost = ops.without_path(ans)
            if not lost:
                break
            how = "let a path end anywhere" if partial else f"beams {wider:g} times as wide"
            log.warning("no path survived, %s: %s", how, _named(part.ids, lost))
            ans = _replace(ans, lattices(torch.tensor(lost, device=part.lens_N.device), wider, partial), lost)
        return ans

    def _best_by_scale(self, lattice: Fsa, part: _Part) -> dict[str, list[SearchResult]]:
        ans = {}
        for scale in self.config.lm_scales:
            scaled = lattice.detach()
            scaled.scores = lattice.scores + (scale - 1.0) * lattice.lm_scores
            ans[f"lm_scale {scale:g}"] = self._from_best_paths(ops.one_best_decoding(scaled), scaled, part)
        return ans

    def _draw(self, lattice: Fsa) -> ops.Nbest:
        """Paths that say different words: the best one, and some of those that were drawn."""
        with torch.random.fork_rng(devices=[]):  # the same paths whatever was decoded before
            torch.manual_seed(0)
            drawn = ops.Nbest.from_lattice(lattice, self.config.num_paths, nbest_scale=self.config.nbest_scale)
        best = cast(Fsa, ops.one_best_decoding(lattice))
        count = drawn.shape.dim0
        owner = torch.cat([drawn.shape.row_ids(1), torch.arange(count, dtype=torch.int32, device=lattice.device)])
        order = torch.argsort(owner, stable=True).int()
        counts = drawn.shape.row_splits(1) + torch.arange(count + 1, dtype=torch.int32, device=lattice.device)
        both = ops.Nbest(ops.index_fsa(ops.cat([drawn.fsa, best]), order), ops.RaggedShape(splits=[counts]))
        return both.unique().intersect(lattice).sort()

    def _from_best_paths(self, paths: Any, lattice: Fsa, part: _Part) -> list[SearchResult]:
        vocab_size = part.log_probs_NTV.shape[2]
        posteriors_NTV = frame_posteriors(lattice, part.lens_N, vocab_size, self.config.posterior_scale).cpu()
        owner = torch.arange(len(part.ids))
        found = self._hypotheses(paths, owner, part)
        return [SearchResult([with_lattice_confidences(h, p)]) for h, p in zip(found, posteriors_NTV)]

    def _from_nbest(self, nbest: ops.Nbest, total: Tensor, part: _Part) -> list[SearchResult]:
        """Distinct hypotheses, best first by `total`, the first with its confidences."""
        owner = nbest.shape.row_ids(1).long().cpu()
        lists: list[list[Hypothesis]] = [[] for _ in part.ids]
        for i, score, hypothesis in zip(owner.tolist(), total.tolist(), self._hypotheses(nbest.fsa, owner, part)):
            lists[i].append(dataclasses.replace(hypothesis, score=score))
        ans = []
        for hypotheses in lists:
            hypotheses.sort(key=lambda h: -h.score)
            confidences = nbest_confidences(hypotheses, self.config.posterior_scale)
            ans.append(SearchResult([dataclasses.replace(hypotheses[0], confidences=confidences), *hypotheses[1:]]))
        return ans

    def _hypotheses(self, paths: Fsa, owner: Tensor, part: _Part) -> list[Hypothesis]:
        """What linear FSAs say: tokens by CTC's rule from the labels of the frames, words from the aux_labels of HLG.

        owner: the utterance of each. All paths at once: frames, then runs of equal labels, then tokens.
        """
        arcs = paths._shape.remove_axis(1)
        scores = ops.RaggedTensor(arcs, paths.scores.double().contiguous()).sum().tolist()
        reads_A = reads_frame(paths, part.lens_N[owner.to(part.lens_N.device)])
        path_F, frame_F, label_F = (x[reads_A].cpu().long() for x in (arcs.row_ids(1), paths.frame, paths.labels))
        log_prob_F = part.log_probs_NTV.cpu()[owner[path_F], frame_F, label_F]
        begins_F = torch.ones_like(reads_A.cpu()[: len(path_F)])
        begins_F[1:] = (label_F[1:] != label_F[:-1]) | (path_F[1:] != path_F[:-1])
        run_F, first_R = begins_F.cumsum(0) - 1, begins_F.nonzero().squeeze(1)
        peak_R = torch.full((len(first_R),), -torch.inf).scatter_reduce_(0, run_F, log_prob_F, "amax")
        last_R = torch.cat([first_R[1:], torch.tensor([len(path_F)])[: len(first_R)]]) - 1
        token_R = label_F[first_R]
        spoken_R = token_R != self.model.blank_id
        ends = (path_F[first_R][spoken_R].bincount(minlength=len(scores)).cumsum(0)).tolist()
        columns = [x[spoken_R].tolist() for x in (token_R, frame_F[first_R], peak_R, frame_F[last_R] + 1)]
        words = path_words(paths).tolist() if hasattr(paths, "lm_scores") else None  # only HLG has them
        ans = []
        for i, (begin, end) in enumerate(zip([0, *ends], ends)):
            tokens, starts, peaks, stops = (column[begin:end] for column in columns)
            spelled = None if words is None else [self.graphs.words[w] for w in words[i]]
            ans.append(Hypothesis(tokens, starts, peaks, scores[i], ends=stops, words=spelled))
        return ans


@dataclass(frozen=True)
class _Part:
    """The utterances of a batch that have frames."""

    log_probs_NTV: Tensor
    lens_N: Tensor
    ids: list[str]


def _named(ids: Sequence[str], rows: Sequence[int]) -> str:
    more = f" and {len(rows) - 10} more" if len(rows) > 10 else ""
    return ", ".join(ids[i] for i in rows[:10]) + more


def _replace(fsas: Fsa, others: Fsa, rows: Sequence[int]) -> Fsa:
    """The FsaVec with FSA rows[i] replaced by FSA i of the others."""
    count = fsas.shape[0] or 0
    index = torch.arange(count, dtype=torch.int32)
    index[torch.tensor(rows)] = count + torch.arange(len(rows), dtype=torch.int32)
    return ops.index_fsa(ops.cat([fsas, others]), index)

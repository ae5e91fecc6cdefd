"""CTC beam search with a lexicon and an n-gram model: `ops.ctc_decoder` as one of the searches.

Legend: N utterances, T encoder frames, D encoder dim.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ops import CTCDecoder, CTCHypothesis, NgramLM, ctc_decoder
from toolkit.config import CtcBeamConfig, DecodingConfig
from toolkit.lang.lexicon import Lexicon
from toolkit.search.predictor import check_encoder_out
from toolkit.search.result import Hypothesis, SearchResult

SPECIAL = re.compile(r"<.+>|#\d+|![A-Z]+")  # what lists of words hold besides words
_latest: tuple[str, CTCDecoder] | None = None  # a decoder takes a moment to make, and serves batch after batch


def prepared(d: DecodingConfig, tokenizer: Any, folder: Path) -> DecodingConfig:
    """The config with what a CTC decoder has to know of the model: its tokens, and the lexicon written in them.

    A ctc_beam.lexicon that is a list of words (alone, or with a number behind, as in words.txt) is spelled by the tokenizer
    into folder/lexicon.txt; words that it cannot spell are left out.
    Raises FileNotFoundError; ValueError if no word can be spelled.
    """
    if "ctc_beam" not in d.methods:
        return d
    lexicon = d.ctc_beam.lexicon
    if lexicon is not None and _is_list_of_words(Path(lexicon)):
        listed = [line.split()[0] for line in Path(lexicon).read_text(encoding="utf-8").splitlines() if line.strip()]
        spelled = Lexicon.from_tokenizer([w for w in listed if not SPECIAL.fullmatch(w)], tokenizer)
        if len(spelled) == 0:
            raise ValueError(f"decoding.ctc_beam.lexicon={lexicon}: the model's tokens can spell none of its words")
        spelled.save(folder / "lexicon.txt")
        lexicon = str(folder / "lexicon.txt")
    settings = dataclasses.replace(d.ctc_beam, tokens=list(tokenizer.tokens), lexicon=lexicon)
    return dataclasses.replace(d, ctc_beam=settings)


def _is_list_of_words(path: Path) -> bool:
    if not path.is_file():
        raise FileNotFoundError(f"decoding.ctc_beam.lexicon: no {path}")
    if path.suffix == ".gz":
        return False
    with path.open(encoding="utf-8") as file:
        rows = [line.split() for line in itertools.islice((line for line in file if line.strip()), 5)]
    return all(len(row) == 1 or (len(row) == 2 and row[1].isdigit()) for row in rows)


def make_decoder(config: CtcBeamConfig, lm: NgramLM | None = None) -> CTCDecoder:
    """The decoder that `config`, of `prepared`, describes. lm: config.lm, if it is loaded already.

    Without a lexicon the LM counts tokens instead of words. Raises ValueError naming the file, FileNotFoundError.
    """
    return ctc_decoder(
        config.lexicon,
        config.tokens,
        lm or config.lm,
        nbest=config.nbest,
        beam_size=config.beam_size,
        beam_size_token=config.beam_size_token or None,
        beam_threshold=config.beam_threshold,
        lm_weight=config.lm_weight,
        word_score=config.word_score,
        log_add=config.log_add,
        blank_token=config.tokens[0],
        sil_token=None,
        merge=config.merge,
        blank_skip=config.blank_skip or None,
    )


def ctc_beam(model: Any, encoder_out_NTD: Tensor, lens_N: Tensor, config: CtcBeamConfig) -> list[SearchResult]:
    """Decode the CTC head with `make_decoder(config)`, on the CPU.

    model: has `ctc_log_probs(encoder_out_NTD) -> (N, T, V)`. config: of `prepared`.
    A token's frame is the first of its run, its log-probability the highest in the run; `score` is the decoder's: the path
    in natural logarithms, the LM's in base 10. With a lexicon, hypotheses have `words`.
    Returns N results of up to config.nbest hypotheses.
    """
    global _latest
    check_encoder_out(encoder_out_NTD, lens_N)
    if len(lens_N) == 0:
        return []
    key = repr(config)
    if _latest is None or _latest[0] != key:
        _latest = key, make_decoder(config)
    return decode_log_probs(_latest[1], model.ctc_log_probs(encoder_out_NTD).cpu(), lens_N.cpu())


def decode_log_probs(decoder: CTCDecoder, log_probs_NTV: Tensor, lens_N: Tensor) -> list[SearchResult]:
    nothing = Hypothesis([], [], [], float("-inf"), [], None, [])
    return [
        SearchResult([_hypothesis(hyp, decoder) for hyp in nbest] or [nothing])
        for nbest in decoder(log_probs_NTV, lens_N.to(torch.int64))
    ]


def _hypothesis(hyp: CTCHypothesis, decoder: CTCDecoder) -> Hypothesis:
    """Timestep t + 1 of the decoder is frame t."""
    frames = [t - 1 for t in hyp.timesteps.tolist()]
    words = hyp.words if decoder.has_lexicon else None
    return Hypothesis(hyp.tokens.tolist(), frames, hyp.log_probs.tolist(), hyp.score, hyp.ends.tolist(), words=words)

"""Beam search over CTC emissions with a lexicon, a language model and hotwords, under torchaudio's names.

Legend: N utterances, T frames, V tokens.
"""

from __future__ import annotations

import itertools
import math
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ops import build
from ops.ctc_decoder_hotwords import hotword_automaton
from ops.ctc_decoder_lexicon import Lexicon, Tokens, WordTable, join_lines, match_words, read_bytes
from ops.ctc_decoder_lm import AnswerDesk, CTCDecoderLM, CTCDecoderLMState
from ops.ngram import TENSORS, NgramLM, first_line

__all__ = ["CTCDecoder", "CTCDecoderLM", "CTCDecoderLMState", "CTCHypothesis", "CTCWord", "ctc_decoder"]

UNLISTED = -99 * math.log(10)  # below this lies what an n-gram model that does not list <unk> gives to unknown words
WORD_START = "\u2581"  # how sentencepiece marks the beginning of a word


class CTCWord(NamedTuple):
    """A recognized word; `start` and `end` in seconds, `confidence` in [0, 1]."""

    text: str
    start: float
    end: float
    confidence: float


class _Fields(NamedTuple):
    tokens: Tensor
    words: list[str]
    score: float
    timesteps: Tensor


class CTCHypothesis(_Fields):
    """torchaudio's four fields: tokens (int64), words (empty without a lexicon), score, timesteps (int32).

    The search begins and ends in silence, so the first and the last token are `sil_token`; timestep 0 is before the first
    frame, timestep t + 1 is frame t, and T + 1 is behind the last one. score: emissions + lm_weight · LM + word_score …

    Besides: `ends`, the last timestep that each token fills; `log_probs`, its highest emission among those frames;
    `word_ids`, for each token the number of the word that it completes, or -1.
    """

    ends: Tensor
    log_probs: Tensor
    word_ids: Tensor


class CTCPartial(NamedTuple):
    """What a stream has recognized so far. The first `stable` words are those that all hypotheses in the beam agree on."""

    words: list[str]
    stable: int
    tokens: list[str]
    stable_tokens: int


def ctc_decoder(
    lexicon: str | Path | Mapping[str, Sequence[Sequence[str]]] | None,
    tokens: str | Path | Sequence[str],
    lm: str | Path | NgramLM | CTCDecoderLM | None = None,
    lm_dict: str | Path | None = None,
    nbest: int = 1,
    beam_size: int = 50,
    beam_size_token: int | None = None,
    beam_threshold: float = 50,
    lm_weight: float = 2,
    word_score: float = 0,
    unk_score: float = float("-inf"),
    sil_score: float = 0,
    log_add: bool = False,
    blank_token: str = "-",
    sil_token: str | None = "|",
    unk_word: str = "<unk>",
    *,
    smearing: str = "max",
    merge: str = "history",
    blank_skip: float | None = None,
    hotwords: Iterable[str] | Mapping[str, float] = (),
    hotword_weight: float = 2.0,
) -> CTCDecoder:
    """Build a decoder; arguments, defaults and results are those of `torchaudio.models.decoder.ctc_decoder`.

    The score of a word sequence with an alignment (per frame one token; repeats merged, blanks dropped) is

        Σ emissions + lm_weight · log10 p(words) + word_score · #words + sil_score · #frames of silence,

    the best one is searched; with `log_add` the alignments of a hypothesis are summed. Hannun et al., arXiv 1408.2873;
    Collobert et al., arXiv 1609.03193.

    lexicon: a file (text or gzip; in each line a word and the tokens of a spelling, any number of lines a word) or word →
    spellings; None: any sequence of tokens. tokens: file with a token in each line, or a list, in the order of V.
    lm: ARPA, ARPA.gz or KenLM binary, an `NgramLM`, or a `CTCDecoderLM`. Of words, or of tokens without a lexicon. As in
    Flashlight Text, an n-gram model's log-probabilities count in base 10 and the emissions' in base e.
    lm_dict: file with the words in the order of the indexes that a `CTCDecoderLM` wants; without it, that of the lexicon.
    nbest: hypotheses returned. beam_size: hypotheses kept; beam_size_token: extensions tried in a frame (None: all);
    beam_threshold: what lies further below the best is dropped.
    unk_score: score of an unknown word (any spelling that is not in the lexicon; -inf: none). sil_token=None: tokens say
    themselves where words begin, and there is no silence.

    smearing: what a word's beginning is worth to the LM: the "max" of what it can become (torchaudio's), its "logadd", or
    "none". merge: "history": hypotheses of different words stay apart, as in Flashlight; "lm_state": they are merged
    where no later word can tell them apart, so the same beam sees further, but n-best lists lose such alternatives.
    blank_skip: frames with a blank above this probability are read as blank (emissions must be log-probabilities).
    hotwords: phrases to be preferred, or phrase → weight; hotword_weight: what each matched token of a phrase adds.

    Raises FileNotFoundError; ValueError naming argument, file and line. A lexicon's word that the LM does not have is
    scored as `<unk>`, with one warning; ValueError if the LM does not list `<unk>`.
    """
    token_list = Tokens(tokens)
    blank = token_list.find(blank_token, "blank_token")
    sil = blank if sil_token is None else token_list.find(sil_token, "sil_token")
    _check(
        nbest=nbest,
        beam_size=beam_size,
        beam_size_token=len(token_list) if beam_size_token is None else beam_size_token,
    )
    for name, value in (("lm_weight", lm_weight), ("word_score", word_score), ("sil_score", sil_score)):
        if not math.isfinite(value):
            raise ValueError(f"{name}={value}: expected a finite number")
    if not beam_threshold > 0 or math.isnan(unk_score) or unk_score == math.inf:
        raise ValueError(f"beam_threshold={beam_threshold}, unk_score={unk_score}: expected > 0, and a number or -inf")
    if smearing not in ("max", "logadd", "none"):
        raise ValueError(f"smearing={smearing!r}: expected max, logadd or none")
    if merge not in ("history", "lm_state"):
        raise ValueError(f"merge={merge!r}: expected history or lm_state")
    if blank_skip is not None and not 0 < blank_skip <= 1:
        raise ValueError(f"blank_skip={blank_skip}: expected a probability above 0")
    words = None
    if lexicon is not None and not (isinstance(lexicon, Mapping) and not lexicon):
        words = Lexicon.of(lexicon, token_list) if isinstance(lexicon, Mapping) else Lexicon.load(lexicon, token_list)
        if lm_dict is not None:
            listed = read_bytes(lm_dict, "lm_dict").decode("utf-8", "surrogateescape").split("\n")
            words = words.in_order_of(join_lines(line.split()[0] for line in listed if line.strip()), str(lm_dict))
    if isinstance(lm, (str, Path)):
        lm = NgramLM.load(lm)
    if lm is not None and not isinstance(lm, (NgramLM, CTCDecoderLM)):
        raise ValueError(f"lm: expected a path, an NgramLM or a CTCDecoderLM, got {type(lm).__name__}")
    options = [beam_threshold, lm_weight, word_score, unk_score, sil_score]
    options.append(math.inf if blank_skip is None else math.log(blank_skip))
    ints = [len(token_list), blank, sil, beam_size, beam_size_token or len(token_list)]
    flags = [log_add, merge == "lm_state" and not isinstance(lm, CTCDecoderLM)]
    hot = dict(hotwords) if isinstance(hotwords, Mapping) else dict.fromkeys(hotwords, hotword_weight)
    return CTCDecoder(nbest, words, token_list, lm, unk_word, (ints, flags, options), smearing, hot)


def _check(**positive: Any) -> None:
    for name, value in positive.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value}: expected a positive integer")


class CTCDecoder:
    """Made by `ctc_decoder`. Decoding changes nothing in it, so threads may share one; streaming has a state."""

    def __init__(
        self,
        nbest: int,
        lexicon: Lexicon | None,
        tokens: Tokens,
        lm: NgramLM | CTCDecoderLM | None,
        unk_word: str,
        options: tuple[list[int], list[bool], list[float]],
        smearing: str,
        hotwords: dict[str, float],
    ) -> None:
        self.nbest = nbest
        self.tokens = tokens
        self.lm = lm
        self.unk_word = unk_word
        self.blank, self.sil = options[0][1:3]
        self._options = options
        self._smearing = smearing
        self._hotwords = hotwords
        self._stream: _Stream | None = None
        self._set_lexicon(lexicon)

    @property
    def has_lexicon(self) -> bool:
        return self._lexicon is not None

    # ---------------------------------------------------------------------------------------------------- the vocabulary

    def _set_lexicon(self, lexicon: Lexicon | None) -> None:
        build.load()
        self._lexicon = lexicon
        source = join_lines(self.tokens.entries) if lexicon is None else lexicon.words
        self.words = WordTable(source)
        unk = -1
        if (lexicon is not None and self._options[2][3] > -math.inf) or (
            lexicon is not None and isinstance(self.lm, CTCDecoderLM)
        ):
            if self.words.find(self.unk_word) < 0:
                source += join_lines([self.unk_word])
                self.words = WordTable(source)
            unk = self.words.find(self.unk_word)
        lm, kenlm, ids = self._lm_tensors(source)
        trie = [] if lexicon is None else list(lexicon.trie(self._start_scores(ids), self._smearing))
        hot = self._hotword_tensors()
        ints, flags, floats = self._options
        options = torch.tensor([*ints, unk, *flags, *floats], dtype=torch.float64)
        table = isinstance(self.lm, CTCDecoderLM)
        handle = int(torch.ops.lattica.ctc_decoder_new(options, trie, lm, hot, kenlm, table, len(self.words)))
        self._handle = _Handle(handle, torch.ops.lattica.ctc_decoder_close)

    def _lm_tensors(self, words: bytes) -> tuple[list[Tensor], int, Tensor | None]:
        """What the C++ gets of the LM: its tensors with the numbers of our words in it, or KenLM's handle with these."""
        if not isinstance(self.lm, NgramLM):
            return [], -1, None
        ids = match_words(words, self.lm.words_bytes)
        missing = (ids < 0).nonzero()[:, 0]
        if self._lexicon is None:
            missing = missing[(missing != self.blank) & (missing != self.sil)]
        if len(missing):
            self._complain_about(missing.tolist(), len(ids))
        ids = ids.clamp(min=0)
        if not self.lm.has_arcs:
            assert self.lm.kenlm_handle is not None
            return [ids], self.lm.kenlm_handle, ids
        ends = torch.tensor([self.lm.start_state, self.lm.end_word], dtype=torch.int32)
        return [*(getattr(self.lm, name) for name in TENSORS), ids, ends], -1, ids

    def _complain_about(self, missing: list[int], total: int) -> None:
        assert isinstance(self.lm, NgramLM)
        first = missing[0]
        known = self._lexicon is not None and first < self._lexicon.num_words
        place = self._lexicon.place(first) if known and self._lexicon is not None else self.tokens.source
        what = f"{place}: {self.words[first]!r} is not in the language model"
        if len(missing) > 1:
            what += f", nor are {len(missing) - 1} others of {total}"
        zero = torch.tensor(0)
        if float(self.lm.score(zero, zero)[0]) < UNLISTED:
            raise ValueError(f"{what}, and that one does not list <unk> either")
        if self.words[first] != self.unk_word:
            warnings.warn(f"{what}: scored as <unk>", stacklevel=6)

    def _start_scores(self, ids: Tensor | None) -> Tensor:
        """What each word scores at the beginning of a sentence: what its beginning is worth meanwhile."""
        if isinstance(self.lm, CTCDecoderLM):
            start = self.lm.start(False)
            scored = self.lm.score_batch([start] * len(self.words), list(range(len(self.words))))
            return torch.tensor([score for _, score in scored])
        if ids is None:
            return torch.zeros(len(self.words))
        assert isinstance(self.lm, NgramLM)
        return self.lm.score(torch.full_like(ids, self.lm.start_state), ids)[0] / math.log(10)

    def _hotword_tensors(self) -> list[Tensor]:
        if not self._hotwords:
            return []
        word_start = None if self.sil == self.blank else self.sil
        phrases = [(ids, weight) for phrase, weight in self._hotwords.items() for ids in self._spell(phrase)]
        tensors, start, gain = hotword_automaton(phrases, len(self.tokens), word_start)
        return [*tensors, torch.tensor([start], dtype=torch.int32), torch.tensor([gain], dtype=torch.float64)]

    def _spell(self, phrase: str) -> list[list[int]]:
        """The tokens of a phrase: the spellings of its words in the lexicon, or the longest tokens that make it up."""
        ways: list[list[int]] = [[]]
        for word in phrase.split():
            spellings = self._spellings(word)
            if not spellings:
                raise ValueError(f"hotwords: {word!r} of {phrase!r} cannot be written with the decoder's tokens")
            ways = [way + spelling for way in ways for spelling in spellings]
        return [way for way in ways if way]

    def _spellings(self, word: str) -> list[list[int]]:
        w = self.words.find(word)
        if self._lexicon is not None and w >= 0:
            lexicon = self._lexicon
            found = []
            for p in (lexicon.word_P == w).nonzero()[:, 0].tolist():
                found.append(lexicon.tokens_L[lexicon.splits_P1[p] : lexicon.splits_P1[p + 1]].tolist())
            return found
        closing = [] if self.sil == self.blank else [self.sil]
        rest, ids = (word if closing else WORD_START + word), []
        while rest:
            end = next((e for e in range(len(rest), 0, -1) if rest[:e] in self.tokens.index), 0)
            if end == 0:
                return []
            ids.append(self.tokens.index[rest[:end]])
            rest = rest[end:]
        return [ids + closing]

    def add_words(self, spellings: Mapping[str, Sequence[Sequence[str]]]) -> None:
        """Add words, or spellings of words, to the lexicon: from now on they can be recognized.

        A stream that is open keeps the lexicon that it began with. Raises ValueError without a lexicon, or for a token
        that does not exist; then nothing changes.
        """
        self._change(Lexicon.of(spellings, self.tokens), set())

    def remove_words(self, words: Iterable[str]) -> None:
        """Take words out of the lexicon, with all their spellings. ValueError if one is not there, or none would be left."""
        gone = set(words)
        for word in sorted(gone):
            if self.words.find(word) < 0:
                raise ValueError(f"{word!r} is not in the lexicon")
        self._change(None, gone)

    def _change(self, add: Lexicon | None, remove: set[str]) -> None:
        if self._lexicon is None:
            raise ValueError("this decoder has no lexicon that could be changed")
        lexicon = self._lexicon.changed(add, remove)
        if len(lexicon.word_P) == 0:
            raise ValueError("no word would be left in the lexicon")
        self._set_lexicon(lexicon)

    # ---------------------------------------------------------------------------------------------------------- decoding

    def __call__(self, emissions: Tensor, lengths: Tensor | None = None) -> list[list[CTCHypothesis]]:
        """Decode a batch: for each utterance up to `nbest` hypotheses, best first.

        emissions: (N, T, V), log-probabilities (or other scores) of float32, float16 or bfloat16, of any strides; on
        another device they are copied to the CPU. lengths: (N,) frames of each that count; None: all.
        Utterances are spread over torch's CPU threads (`torch.set_num_threads`); other Python threads can run meanwhile.
        An utterance for which all hypotheses have score -inf has no results. T = 0 gives one without words.
        Raises ValueError on other shapes, lengths outside [0, T], or a nan or +inf among the emissions that count.
        """
        if emissions.dim() != 3:
            raise ValueError(f"emissions must have 3 dimensions (N, T, V), got {tuple(emissions.shape)}")
        emissions = self._check_emissions(emissions)
        n, t, _ = emissions.shape
        lengths = torch.full((n,), t) if lengths is None else lengths.to("cpu", torch.int64).contiguous()
        if lengths.shape != (n,):
            raise ValueError(f"lengths must be ({n},), got {tuple(lengths.shape)}")
        if isinstance(self.lm, CTCDecoderLM):
            return self._decode_with_python_lm(emissions, lengths)
        try:
            packed = torch.ops.lattica.ctc_decoder_decode(emissions, lengths, self._handle.number, self.nbest)
        except RuntimeError as error:
            raise ValueError(first_line(error)) from None
        return self._unpack(packed)

    def _check_emissions(self, emissions: Tensor) -> Tensor:
        if emissions.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(f"emissions must be float32, float16 or bfloat16, got {emissions.dtype}")
        if emissions.shape[-1] != len(self.tokens):
            raise ValueError(
                f"emissions have {emissions.shape[-1]} tokens, {self.tokens.source} has {len(self.tokens)}"
            )
        return emissions.detach().cpu()

    def _unpack(self, packed: tuple[Tensor, ...]) -> list[list[CTCHypothesis]]:
        scores, hyp_splits, event_splits, events, peaks = packed
        columns = events.view(-1, 4)
        tokens, (_, timesteps, ends, word_ids) = columns[:, 0].long(), columns.t().contiguous().unbind()
        splits, bounds, all_words = hyp_splits.tolist(), event_splits.tolist(), word_ids.tolist()
        sizes = [end - begin for begin, end in itertools.pairwise(bounds)]
        parts = zip(scores.tolist(), bounds, *(x.split(sizes) for x in (tokens, timesteps, ends, peaks, word_ids)))
        hyps = []
        for score, begin, own_tokens, own_timesteps, own_ends, own_peaks, own_words in parts:
            ids = all_words[begin : begin + len(own_tokens)]
            words = [] if self._lexicon is None else [self.words[w] for w in ids if w >= 0]
            hyp = CTCHypothesis(own_tokens, words, score, own_timesteps)
            hyp.ends, hyp.log_probs, hyp.word_ids = own_ends, own_peaks, own_words
            hyps.append(hyp)
        return [hyps[splits[n] : splits[n + 1]] for n in range(len(splits) - 1)]

    def _decode_with_python_lm(self, emissions: Tensor, lengths: Tensor) -> list[list[CTCHypothesis]]:
        """All utterances go on together, so that the LM is asked about all their hypotheses at once."""
        desk = AnswerDesk(self.lm)  # type: ignore[arg-type]
        streams = [_Stream(self, desk) for _ in lengths]
        at = [0] * len(streams)
        ended = [False] * len(streams)
        for n, length in enumerate(lengths.tolist()):
            if not 0 <= length <= emissions.shape[1]:
                raise ValueError(f"lengths[{n}] = {length} must lie in [0, T = {emissions.shape[1]}]")
        while not all(ended):
            for n, stream in enumerate(streams):
                at[n] = stream.read(emissions[n], at[n], int(lengths[n]))
                ended[n] = at[n] == int(lengths[n]) and stream.end()
            desk.answer([stream.number for stream, over in zip(streams, ended) if not over])
        return [self._unpack(stream.results(self.nbest))[0] for stream in streams]

    # --------------------------------------------------------------------------------------------------------- streaming

    def decode_begin(self) -> None:
        """Begin an utterance that comes in pieces; one that was open is given up."""
        self._stream = _Stream(self, AnswerDesk(self.lm) if isinstance(self.lm, CTCDecoderLM) else None)

    def decode_step(self, emissions: Tensor) -> None:
        """Read the next frames, (T, V). ValueError as in decoding; RuntimeError without `decode_begin`."""
        if emissions.dim() != 2:
            raise ValueError(f"emissions must have 2 dimensions (T, V), got {tuple(emissions.shape)}")
        self._open().read_all(self._check_emissions(emissions))

    def decode_end(self) -> None:
        """No more frames will come: `get_final_hypothesis` has the results."""
        self._open().end_all()

    def get_final_hypothesis(self) -> list[CTCHypothesis]:
        """Up to `nbest` hypotheses, best first; before `decode_end`, as they are so far."""
        return self._unpack(self._open().results(self.nbest))[0]

    def get_partial(self) -> CTCPartial:
        """The best hypothesis so far and how much of it is stable: agreed on by all hypotheses in the beam."""
        hyps = self._unpack(self._open().results(self._options[0][3]))[0]
        if not hyps:
            return CTCPartial([], 0, [], 0)
        tokens = [hyp.tokens.tolist() for hyp in hyps]
        return CTCPartial(
            hyps[0].words, _common([hyp.words for hyp in hyps]), self.idxs_to_tokens(hyps[0].tokens), _common(tokens)
        )

    def _open(self) -> _Stream:
        if self._stream is None:
            raise RuntimeError("call decode_begin first")
        return self._stream

    # -------------------------------------------------------------------------------------------------------- hypotheses

    def idxs_to_tokens(self, idxs: Tensor) -> list[str]:
        """The tokens' texts. ValueError for an index outside the list of tokens."""
        try:
            return [self.tokens.entries[i] if i >= 0 else self.tokens.entries[len(self.tokens)] for i in idxs.tolist()]
        except IndexError:
            raise ValueError(f"idxs must lie in [0, {len(self.tokens)}), got {idxs.tolist()}") from None

    def words_with_times(self, hypothesis: CTCHypothesis, frame_seconds: float) -> list[CTCWord]:
        """The words of a hypothesis with times and confidences; without a lexicon, what stands between silences.

        frame_seconds: seconds that a frame of the emissions stands for (0.02 for wav2vec2). start: where the frame of the
        word's first token begins; end: where the last frame of its last token ends, silence left out. confidence: the
        probability of its least certain token, if the emissions are log-probabilities.
        """
        found = []
        first = 0
        tokens, word_ids = hypothesis.tokens.tolist(), hypothesis.word_ids.tolist()
        texts = self.idxs_to_tokens(hypothesis.tokens)
        for i in range(len(tokens)):
            marked = i + 1 == len(tokens) or texts[i + 1].startswith(WORD_START)
            ends = word_ids[i] >= 0 if self._lexicon is not None else tokens[i] == self.sil or marked
            if not ends:
                continue
            inside = [k for k in range(first, i + 1) if tokens[k] != self.sil and hypothesis.timesteps[k] > 0]
            first = i + 1
            if not inside:
                continue
            text = self.words[word_ids[i]] if self._lexicon is not None else "".join(texts[k] for k in inside)
            start = (int(hypothesis.timesteps[inside[0]]) - 1) * frame_seconds
            end = int(hypothesis.ends[inside[-1]]) * frame_seconds
            confidence = math.exp(min(0.0, float(hypothesis.log_probs[inside].min())))
            found.append(CTCWord(text.removeprefix(WORD_START), round(start, 3), round(end, 3), round(confidence, 4)))
        return found


def _common(sequences: list[list[Any]]) -> int:
    """How many first elements all have in common."""
    n = min(map(len, sequences))
    return next((i for i in range(n) if any(s[i] != sequences[0][i] for s in sequences)), n)


class _Handle:
    """A number by which C++ knows an object, which goes when this does."""

    def __init__(self, number: int, close: Any) -> None:
        self.number = number
        weakref.finalize(self, close, torch.empty(0), number).atexit = False


class _Stream:
    """One utterance that is being decoded."""

    def __init__(self, decoder: CTCDecoder, desk: AnswerDesk | None) -> None:
        self._decoder = decoder._handle  # as it is now: its lexicon may change
        self._like = torch.empty(0)
        self._desk = desk
        start = desk.start_state if desk else 0
        number = int(torch.ops.lattica.ctc_decoder_stream(self._like, self._decoder.number, start))
        self._handle = _Handle(number, torch.ops.lattica.ctc_decoder_stream_close)

    @property
    def number(self) -> int:
        return self._handle.number

    def read(self, emissions: Tensor, begin: int, end: int) -> int:
        """The first frame not read: `end`, or one that waits for the LM."""
        try:
            return int(
                torch.ops.lattica.ctc_decoder_stream_read(emissions, self.number, self._decoder.number, begin, end)
            )
        except RuntimeError as error:
            raise ValueError(first_line(error)) from None

    def end(self) -> bool:
        return bool(torch.ops.lattica.ctc_decoder_stream_end(self._like, self.number))

    def read_all(self, emissions: Tensor) -> None:
        t = 0
        while (t := self.read(emissions, t, len(emissions))) < len(emissions):
            assert self._desk is not None
            self._desk.answer([self.number])

    def end_all(self) -> None:
        while not self.end():
            assert self._desk is not None
            self._desk.answer([self.number])

    def results(self, nbest: int) -> tuple[Tensor, ...]:
        return torch.ops.lattica.ctc_decoder_stream_results(self._like, self.number, nbest)

"""The CTC decoder's input: lexicon and token files, words that the LM lacks, and everything that has to be refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from golden.make_ctc_decoder import ARPA, LEXICON, TOKENS
from test_ctc_decoder import SPELLINGS, arpa, batch, peaks, same  # noqa: F401

from ops import ctc_decoder

pytestmark = pytest.mark.filterwarnings("ignore:.*'bade' is not in the language model")


def test_lexicon_and_tokens_from_files(tmp_path: Path, arpa: Path) -> None:  # noqa: F811
    lines = [f"{word}\t{' '.join(s)}" for word, several in SPELLINGS.items() for s in several]
    (tmp_path / "lexicon.txt").write_text("\n".join(lines) + "\n\n")
    (tmp_path / "tokens.txt").write_text("\n".join(TOKENS) + "\n")
    x, lengths = batch()
    expected = ctc_decoder(LEXICON, TOKENS, str(arpa), nbest=3)(x, lengths)
    same(expected, ctc_decoder(str(tmp_path / "lexicon.txt"), str(tmp_path / "tokens.txt"), arpa, nbest=3)(x, lengths))
    (tmp_path / "tokens.txt").write_text("-\n| <space>\na A\nb\nc\nd\n")
    (tmp_path / "lexicon.txt").write_text("\n".join(lines).replace("\ta", "\tA").replace("|", "<space>"))
    same(expected, ctc_decoder(tmp_path / "lexicon.txt", tmp_path / "tokens.txt", arpa, nbest=3)(x, lengths))


@pytest.mark.parametrize(
    "lexicon, message",
    [
        ("ab\ta b |\nbad\tb a q |\n", r"lexicon\.txt:2: the spelling of `bad` has the token `q`"),
        ("ab\ta b |\n\nbad\n", r"lexicon\.txt:3: the word `bad` has no spelling"),
        ("\n", r"lexicon\.txt: a lexicon without words"),
    ],
)
def test_bad_lexicon_files_name_the_line(lexicon: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "lexicon.txt").write_text(lexicon)
    with pytest.raises(ValueError, match=message):
        ctc_decoder(str(tmp_path / "lexicon.txt"), TOKENS, None)


def test_words_that_the_lm_does_not_have(tmp_path: Path, arpa: Path) -> None:  # noqa: F811
    (tmp_path / "lexicon.txt").write_text("ab\ta b |\nnew\tb a |\nnewer\tb a b |\n")
    with pytest.warns(UserWarning, match=r"lexicon\.txt:2: 'new' is not in the language model, nor are 1 others of 3"):
        decoder = ctc_decoder(str(tmp_path / "lexicon.txt"), TOKENS, str(arpa))
    assert decoder(peaks((2, "b"), (4, "a"), (6, "|"))[None])[0][0].words == ["new"]
    (tmp_path / "closed.arpa").write_text(ARPA.replace("-2.5\t<unk>\t0\n", "").replace("ngram 1=10", "ngram 1=9"))
    with pytest.raises(ValueError, match=r"lexicon\.txt:2: 'new' is not in the language model.*does not list <unk>"):
        ctc_decoder(str(tmp_path / "lexicon.txt"), TOKENS, str(tmp_path / "closed.arpa"))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"blank_token": "<blank>"}, "blank_token='<blank>' is not among the 6 tokens"),
        ({"sil_token": "_"}, "sil_token='_'"),
        ({"tokens": ["-", "|", "a", "a"]}, "token 'a' stands at 2 and at 3"),
        ({"tokens": []}, "no tokens"),
        ({"lexicon": {"x": [["q"]]}}, r"lexicon\['x'\] has the token 'q'"),
        ({"lexicon": {"x": ["ab"]}}, r"lexicon\['x'\]: expected a list of spellings"),
        ({"lexicon": {"x": []}}, "a lexicon without words"),
        ({"nbest": 0}, "nbest=0"),
        ({"beam_size": -3}, "beam_size=-3"),
        ({"beam_size_token": 0}, "beam_size_token=0"),
        ({"beam_threshold": 0.0}, "beam_threshold=0"),
        ({"lm_weight": math.nan}, "lm_weight=nan"),
        ({"unk_score": math.inf}, "unk_score=inf"),
        ({"smearing": "sum"}, "smearing='sum'"),
        ({"merge": "all"}, "merge='all'"),
        ({"blank_skip": 2.0}, "blank_skip=2.0"),
        ({"lm": 3}, "lm: expected a path"),
    ],
)
def test_bad_arguments(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ctc_decoder(**({"lexicon": LEXICON, "tokens": TOKENS, "lm": None} | change))


def test_missing_files(tmp_path: Path) -> None:
    for change in ({"lexicon": "no.txt"}, {"tokens": "no.txt"}, {"lm": "no.arpa"}):
        with pytest.raises(FileNotFoundError, match=r"no\.(txt|arpa)"):
            ctc_decoder(**({"lexicon": LEXICON, "tokens": TOKENS, "lm": None} | change))  # type: ignore[arg-type]


def test_bad_emissions() -> None:
    decoder = ctc_decoder(LEXICON, TOKENS, None)
    x, lengths = batch()
    x[3, 39, 2] = torch.nan
    with pytest.raises(ValueError, match=r"emissions\[3, 39\] hold nan or \+inf"):
        decoder(x, lengths)
    decoder(x[3:4, :39])  # frames behind the end do not count
    x[3, 39, 2] = torch.inf
    with pytest.raises(ValueError, match=r"emissions\[3, 39\]"):
        decoder(x, lengths)
    with pytest.raises(ValueError, match="tokens has 6"):
        decoder(torch.zeros(1, 3, 5))
    with pytest.raises(ValueError, match="3 dimensions"):
        decoder(torch.zeros(3, 6))
    with pytest.raises(ValueError, match="float32, float16 or bfloat16"):
        decoder(torch.zeros(1, 3, 6, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"lengths\[0\] = 4"):
        decoder(torch.zeros(1, 3, 6), torch.tensor([4]))
    with pytest.raises(ValueError, match=r"lengths must be \(1,\)"):
        decoder(torch.zeros(1, 3, 6), torch.tensor([1, 2]))
    with pytest.raises(RuntimeError, match="decode_begin"):
        decoder.decode_step(torch.zeros(3, 6))
    with pytest.raises(ValueError, match="idxs must lie in"):
        decoder.idxs_to_tokens(torch.tensor([6]))

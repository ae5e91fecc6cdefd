"""Make ctc_decoder_flashlight.json: what flashlight-text 0.0.7 finds in made-up emissions.

    PEERS/bin/python tests/golden/make_ctc_decoder.py tests/golden/ctc_decoder_flashlight.json

Needs flashlight-text and numpy, nothing of this project. Every spelling ends in silence, as is usual: where one does not,
flashlight lets its last token fill one frame only, which ours does not.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

TOKENS = ["-", "|", "a", "b", "c", "d"]
LEXICON = {
    "ab": [["a", "b", "|"]],
    "abc": [["a", "b", "c", "|"], ["a", "b", "b", "c", "|"]],
    "bad": [["b", "a", "d", "|"]],
    "bade": [["b", "a", "d", "|"]],
    "cab": [["c", "a", "b", "|"]],
    "d": [["d", "|"]],
    "dad": [["d", "a", "d", "|"]],
    "add": [["a", "d", "d", "|"], ["a", "d", "|"]],
    "<unk>": [],
}
ARPA = r"""\data\
ngram 1=10
ngram 2=7
ngram 3=3

\1-grams:
-2.5  <unk>  0
-99  <s>  -0.35
-1.1  </s>  0
-0.9  ab  -0.2
-1.2  abc  -0.1
-0.8  bad  -0.3
-1.5  cab  0
-0.7  d  -0.25
-1.4  dad  -0.1
-1.3  add  0

\2-grams:
-0.3  <s> ab  -0.1
-0.6  <s> bad  -0.2
-0.4  ab d  -0.15
-0.5  d dad  0
-0.2  bad </s>  0
-0.7  abc bad  -0.05
-0.9  d </s>  0

\3-grams:
-0.1  <s> ab d
-0.25  ab d </s>
-0.15  ab d dad

\end\
""".replace("  ", "\t")  # KenLM wants tabs


def made_up(frames: int, tokens: int, seed: int) -> np.ndarray:
    """Log-probabilities by a formula, so that nothing has to be kept."""
    t, v = np.arange(frames)[:, None], np.arange(tokens)[None, :]
    x = 2.5 * np.sin(1.7 * t * (v + 1) + 0.3 * v * v + seed) + 1.5 * np.cos(0.9 * t + 2.1 * v * seed)
    return (x - np.log(np.exp(x).sum(axis=1, keepdims=True))).astype(np.float32)


CASES = [
    {"lexicon": lexicon, "log_add": log_add, "beam_size": beam, "beam_threshold": threshold, "beam_size_token": limit}
    | {"lm_weight": 1.3 if lexicon else 0.0, "word_score": 0.4, "sil_score": sil}
    for lexicon, log_add, beam, threshold, limit, sil in [
        (True, False, 50, 50, 6, 0.0),
        (True, True, 50, 50, 6, 0.0),
        (True, False, 7, 6, 4, -0.2),
        (True, True, 7, 9, 6, 0.3),
        (False, False, 20, 30, 6, 0.2),
        (False, True, 20, 30, 6, -0.2),
        (False, False, 5, 8, 3, 0.0),
    ]
]


def main() -> None:
    from flashlight.lib.text import decoder as fl
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary, create_word_dict

    tokens = Dictionary(TOKENS)
    words = create_word_dict(LEXICON)
    with tempfile.NamedTemporaryFile("w", suffix=".arpa", delete=False) as arpa:
        arpa.write(ARPA)
    lm = KenLM(arpa.name, words)
    start = lm.start(False)
    trie = fl.Trie(len(TOKENS), 1)
    for word, spellings in LEXICON.items():
        index = words.get_index(word)
        for spelling in spellings:
            trie.insert([tokens.get_index(t) for t in spelling], index, lm.score(start, index)[1])
    trie.smear(fl.SmearingMode.MAX)
    out = []
    for case in CASES:
        common = case["beam_size"], case["beam_size_token"], case["beam_threshold"], case["lm_weight"]
        if case["lexicon"]:
            options = fl.LexiconDecoderOptions(
                *common, case["word_score"], float("-inf"), case["sil_score"], case["log_add"], fl.CriterionType.CTC
            )
            decoder = fl.LexiconDecoder(options, trie, lm, 1, 0, words.get_index("<unk>"), [], False)
        else:
            free = fl.LexiconFreeDecoderOptions(*common, case["sil_score"], case["log_add"], fl.CriterionType.CTC)
            decoder = fl.LexiconFreeDecoder(free, fl.ZeroLM(), 1, 0, [])
        results = []
        for seed in range(12):
            x = np.ascontiguousarray(made_up(3 + 2 * seed, len(TOKENS), seed))
            found = decoder.decode(x.ctypes.data, *x.shape)[:3]
            results.append(
                [
                    {
                        "score": round(h.score, 6),
                        "words": [words.get_entry(w) for w in h.words if w >= 0] if case["lexicon"] else [],
                        "tokens": list(h.tokens),
                    }
                    for h in found
                ]
            )
        out.append({"case": case, "results": results})
    Path(sys.argv[1]).write_text(json.dumps(out, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()

"""The stage of prepare.sh that makes language material of a corpus: lexicon, word n-grams and decoding graphs, from a config.

Written into data/<corpus>/lang_*/<lang.name>/: lexicon.txt, words.txt, tokens.txt, G_<n>_gram.arpa.gz, HLG.pt (and LG.pt, HL.pt).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ops import Fsa, NgramLM, SymbolTable, build
from toolkit.config import LangConfig
from toolkit.data.tokenizer import Tokenizer
from toolkit.lang.files import numbered_lines, replacing_text
from toolkit.lang.graphs import make_hl, make_hlg, make_lg
from toolkit.lang.lexicon import Lexicon
from toolkit.lang.ngram import train_ngram

GRAPHS: dict[str, Callable[..., Fsa]] = {"HL": make_hl, "LG": make_lg, "HLG": make_hlg}


def check_lang(lang: LangConfig) -> None:
    """Raise now for what would be missing later: FileNotFoundError for files, RuntimeError for a compiler."""
    files = [("lang.text", path) for path in lang.text]
    files += [("lang.lexicon", lang.lexicon)] if lang.lexicon != "tokens" else []
    for key, path in files:
        if not Path(path).is_file():
            raise FileNotFoundError(f"{key}={path}: no such file")
    if lang.graphs and build.compiler() is None:
        raise RuntimeError("lang.graphs: decoding graphs need a C++ compiler; python -m ops.doctor says which")


def make_lang(lang: LangConfig, tokenizer: Tokenizer, transcripts: Iterable[str], folder: Path) -> dict[str, Any]:
    """Make the material in `folder` of the transcripts (if lang.transcripts) and lang.text; returns counts of what there is.

    Words that cannot be spelled, or are beyond lang.max_words, count as <unk> in the n-grams; the log names them. Graphs whose
    inputs did not change are kept.
    """
    sentences = list(transcripts) if lang.transcripts else []
    for path in lang.text:
        sentences += [line for _, line in numbered_lines(path)]
    frequency = Counter(word for sentence in sentences for word in sentence.split())
    words = [word for word, _ in frequency.most_common(lang.max_words)]
    if not words:
        raise ValueError("lang: the text has no words; lang.transcripts=true or lang.text=[file] give some")
    lexicon, tokens = _lexicon(lang.lexicon, words, tokenizer)
    if not len(lexicon):
        raise ValueError(f"lang.lexicon={lang.lexicon}: none of the {len(words)} words of the text has a spelling")
    table = lexicon.word_table()
    lexicon.save(folder / "lexicon.txt")
    for name, symbols in (("words.txt", table), ("tokens.txt", tokens)):
        with replacing_text(folder / name) as f:
            f.write(symbols.to_str())
    counts: dict[str, Any] = {
        "sentences": len(sentences), "words": len(lexicon.words), "spellings": len(lexicon),
        "left out": len(frequency) - len(lexicon.words),
    }  # fmt: skip
    for n in lang.orders:
        model = train_ngram(sentences, n, arpa_path(folder, n), lang.prune[:n], lexicon.words)
        counts[f"{n}-grams"] = model.num_ngrams
    lm = NgramLM.load(arpa_path(folder, lang.orders[0]))
    for name in lang.graphs:
        options: dict[str, Any] = {"words": table, "cache": folder / f"{name}.pt"}
        options |= {"lm": lm} if "G" in name else {}
        options |= {"modified": lang.modified} if "H" in name else {}
        graph = GRAPHS[name](lexicon, tokens=tokens, **options)
        counts[name] = {"states": graph.shape[0], "arcs": graph.num_arcs}
    return counts


def arpa_path(folder: Path, order: int) -> Path:
    return folder / f"G_{order}_gram.arpa.gz"


def _lexicon(source: str, words: list[str], tokenizer: Tokenizer) -> tuple[Lexicon, SymbolTable]:
    """The spellings of `words`, and the tokens they are made of: the tokenizer's, or those of a lexicon that has others."""
    own = SymbolTable(dict(enumerate(tokenizer.tokens)))
    if source == "tokens":
        return Lexicon.from_tokenizer(words, tokenizer), own
    cmu = "cmudict" in Path(source).name
    lexicon = (Lexicon.load_cmudict(source) if cmu else Lexicon.load(source)).restrict(words)
    if set(lexicon.tokens) <= set(tokenizer.tokens):
        return lexicon, own
    logging.info("lang: the lexicon has tokens of its own, %d of them", len(lexicon.tokens))
    return lexicon, lexicon.token_table()

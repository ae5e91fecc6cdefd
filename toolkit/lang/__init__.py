"""Language material for decoding graphs: lexicons, n-gram models, and the graphs L, G, LG, HLG made of them."""

from toolkit.lang.lexicon import Lexicon
from toolkit.lang.ngram import train_ngram

__all__ = ["Lexicon", "train_ngram"]

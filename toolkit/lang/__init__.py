"""Language material for decoding graphs: lexicons, n-gram models, and the graphs L, G, LG, HLG made of them."""

from toolkit.lang.cache import load_graph
from toolkit.lang.graphs import make_hl, make_hlg, make_lg, ngram_to_fsa
from toolkit.lang.lexicon import Lexicon
from toolkit.lang.ngram import train_ngram

__all__ = ["Lexicon", "load_graph", "make_hl", "make_hlg", "make_lg", "ngram_to_fsa", "train_ngram"]

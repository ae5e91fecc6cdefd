"""Forced alignment: ctc.py and transducer.py (best paths), files.py (CTM, TextGrid), run.py (checkpoint → files)."""

from toolkit.align.ctc import align_ctc
from toolkit.align.result import Alignment
from toolkit.align.transducer import align_transducer

__all__ = ["Alignment", "align_ctc", "align_transducer"]

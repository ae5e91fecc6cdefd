"""Tune the CTC beam search on the validation set: python recipes/librispeech/sweep_ctc_beam.py experiment=digits \\
    decoding.ctc_beam.lm=lm.arpa.gz decoding.ctc_beam.lexicon=data/digits/lang_char/words.txt trainer.threads=2

Tries all combinations of decoding.ctc_beam.sweep_lm_weight, sweep_word_score and sweep_beam_size, trainer.threads at a
time. Prints a table; it and a drawing of WER against time lie in exp/<name>/ctc-beam-sweep/. Then decode the test sets with
the settings of your choice: decode.py decoding=ctc_beam decoding.ctc_beam.lm_weight=…
"""

from __future__ import annotations

import hydra

from toolkit.config import Config
from toolkit.eval.ctc_sweep import sweep
from toolkit.program import program


@hydra.main(version_base="1.3", config_path="../../conf", config_name="config")
@program
def main(config: Config) -> None:
    sweep(config)


if __name__ == "__main__":
    main()

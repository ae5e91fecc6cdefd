"""Train a language model: python recipes/librispeech/train_lm.py experiment=digits lm=lstm|transformer|ngram [lm.…].

On the transcripts of the training parts and the files of lm.text=[…]. It lies in exp/<name>/lm_<kind>, for
decode.py … decoding.lm=exp/<name>/lm_<kind>. Starting again resumes where the run stopped.
"""

from __future__ import annotations

import hydra

from toolkit.config import Config
from toolkit.program import program
from toolkit.train.lm import train_lm


@hydra.main(version_base="1.3", config_path="../../conf", config_name="config")
@program
def main(config: Config) -> None:
    train_lm(config)


if __name__ == "__main__":
    main()

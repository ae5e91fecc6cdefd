"""Prepare a corpus: recipes/librispeech/prepare.sh [--stage N] [--stop-stage M] corpus=digits [overrides …].

Stages: 0 recordings, 1 manifests, 2 noise, 3 features, 4 tokens and words (toolkit/data/prepare.py), 5 lexicon, n-grams and
decoding graphs if lang=... asks for them. Run again after an interruption or with other settings, it does what is left to do.
"""

from __future__ import annotations

import argparse
import sys

import hydra

from toolkit.config import Config
from toolkit.data.prepare import STAGES, prepare
from toolkit.program import program

stages = argparse.Namespace(stage=0, stop_stage=len(STAGES) - 1)


@hydra.main(version_base="1.3", config_path="../../conf", config_name="config")
@program
def main(config: Config) -> None:
    prepare(config, stages.stage, stages.stop_stage)


if __name__ == "__main__":
    # Hydra reads the rest of the command line itself.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--stage", type=int, default=stages.stage)
    parser.add_argument("--stop-stage", type=int, default=stages.stop_stage)
    stages, sys.argv[1:] = parser.parse_known_args()
    main()

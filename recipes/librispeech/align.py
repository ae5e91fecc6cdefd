"""Align transcripts with audio: python recipes/librispeech/align.py experiment=digits_ctc [align.method=ctc|transducer].

Takes the checkpoint as decode.py does. CTM and TextGrid files lie in exp/<name>/align-<method>/.
"""

from __future__ import annotations

import hydra

from toolkit.align.run import align
from toolkit.config import Config
from toolkit.program import program


@hydra.main(version_base="1.3", config_path="../../conf", config_name="config")
@program
def main(config: Config) -> None:
    align(config)


if __name__ == "__main__":
    main()

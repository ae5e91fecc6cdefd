"""Decode the test sets, print a WER table: python recipes/librispeech/decode.py experiment=digits [decoding.beam=8 …].

Which model: decoding.checkpoint=best|last|<epoch>|<path>, decoding.avg=N, decoding.use_averaged_model=false. What the
model is like follows from the checkpoint. Results lie in exp/<name>/decode-<checkpoint>-avg<N>/.
"""

from __future__ import annotations

import hydra

from toolkit.config import Config
from toolkit.eval.decode import decode
from toolkit.program import program


@hydra.main(version_base="1.3", config_path="../../conf", config_name="config")
@program
def main(config: Config) -> None:
    decode(config)


if __name__ == "__main__":
    main()

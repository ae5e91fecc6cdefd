"""Train a recognizer: python recipes/librispeech/train.py experiment=digits [trainer.num_epochs=20 …].

More than one process: torchrun --nproc-per-node 2 recipes/librispeech/train.py …. Starting again with the same name
resumes where the run stopped.
"""

from __future__ import annotations

import hydra

from toolkit.config import Config
from toolkit.program import program
from toolkit.train.loop import train


@hydra.main(version_base="1.3", config_path="../../conf", config_name="config")
@program
def main(config: Config) -> None:
    train(config)


if __name__ == "__main__":
    main()

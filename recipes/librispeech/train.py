"""Train a recognizer: python recipes/librispeech/train.py experiment=digits [trainer.num_epochs=20 …].

More than one process: torchrun --nproc-per-node 2 recipes/librispeech/train.py …. Starting again with the same name
resumes where the run stopped.
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig, OmegaConf

from toolkit import config as schema
from toolkit.train.loop import train

schema.register()


@hydra.main(version_base="1.3", config_path="../../conf", config_name="config")
def main(cfg: DictConfig) -> None:
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, schema.Config)
    train(config)


if __name__ == "__main__":
    sys.exit(main())

"""The tables of arXiv 2211.00484 for a corpus: python recipes/librispeech/tables.py experiment=digits [tables.train=true].

Takes the runs exp/<name>-<type>-<scale> (digits-regular-25 is loss.rnnt_type=regular loss.lm_only_scale=0.25), writes
exp/<name>-tables/tables.md and table-<n>.csv. Each cell is kept once measured: started again, it goes on.
"""

from __future__ import annotations

import hydra

from toolkit.config import Config
from toolkit.eval.tables import make_tables
from toolkit.program import program
from toolkit.train.loop import train


@hydra.main(version_base="1.3", config_path="../../conf", config_name="config")
@program
def main(config: Config) -> None:
    print((make_tables(config, train) / "tables.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

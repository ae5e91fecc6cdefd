"""The schema of every yaml under conf/: a key that is not here is an error that names it.

Hydra composes the yaml files against these dataclasses and `OmegaConf.to_object` turns the result, once, in a program's
`main`, into plain objects; nothing below `main` ever sees a DictConfig. Values are checked on construction, so a config
that exists is a config that makes sense. All sections are immutable: what changes during a run lives in `TrainState`.

section.py   what sections are built on
training.py  corpora, features, tokens, models, losses, optimizers, training
decoding.py  searches, tables, alignment

`register()` hands the schema to Hydra and `load()` does the whole trip for programs, tests and notebooks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING, OmegaConf

from toolkit.config.decoding import (
    AlignConfig,
    CtcBeamConfig,
    DecodingConfig,
    FastBeamConfig,
    LatticeConfig,
    TablesConfig,
)
from toolkit.config.section import Schedule, Section, numbers, one_of, require
from toolkit.config.training import (
    LOSS_TERMS,
    AdamWConfig,
    CorpusConfig,
    DataConfig,
    DecoderConfig,
    DirectoryCorpus,
    EncoderConfig,
    FeatureConfig,
    LangConfig,
    LfMmiConfig,
    LibriSpeechCorpus,
    LmConfig,
    LossConfig,
    ModelConfig,
    NoiseConfig,
    OptimConfig,
    ScaledAdamConfig,
    SpecAugmentConfig,
    SyntheticCorpus,
    TokenConfig,
    TrainerConfig,
)

__all__ = [
    "CORPORA",
    "LOSS_TERMS",
    "OPTIMIZERS",
    "AdamWConfig",
    "AlignConfig",
    "Config",
    "CorpusConfig",
    "CtcBeamConfig",
    "DataConfig",
    "DecoderConfig",
    "DecodingConfig",
    "DirectoryCorpus",
    "EncoderConfig",
    "FastBeamConfig",
    "FeatureConfig",
    "LangConfig",
    "LatticeConfig",
    "LfMmiConfig",
    "LibriSpeechCorpus",
    "LmConfig",
    "LossConfig",
    "ModelConfig",
    "NoiseConfig",
    "OptimConfig",
    "ScaledAdamConfig",
    "Schedule",
    "Section",
    "SpecAugmentConfig",
    "SyntheticCorpus",
    "TablesConfig",
    "TokenConfig",
    "TrainerConfig",
    "load",
    "numbers",
    "one_of",
    "register",
    "require",
]


@dataclass
class Config(Section):
    name: str = MISSING
    seed: int = 42
    exp_root: str = "exp"
    corpus: CorpusConfig = MISSING
    features: FeatureConfig = field(default_factory=FeatureConfig)
    tokens: TokenConfig = field(default_factory=TokenConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    lm: LmConfig = field(default_factory=LmConfig)
    lang: LangConfig = field(default_factory=LangConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    tables: TablesConfig = field(default_factory=TablesConfig)
    align: AlignConfig = field(default_factory=AlignConfig)

    def check(self) -> None:
        for head, has_head in (("ctc_head", self.model.ctc_head), ("transducer", self.model.transducer)):
            for term in LOSS_TERMS[head]:
                weight = getattr(self.loss, term)
                require(has_head or not weight.used, f"loss.{term}", weight, f"weight 0, or model.{head}=true")

    @property
    def data_dir(self) -> Path:
        """Manifests, features and tokens of the corpus."""
        return Path(self.data.root) / self.corpus.name

    @property
    def tokens_dir(self) -> Path:
        return self.data_dir / self.tokens.dir_name

    @property
    def lang_dir(self) -> Path:
        """Lexicon, word n-grams and decoding graphs, if lang.name says to make them."""
        return self.tokens_dir / str(self.lang.name)

    @property
    def exp_dir(self) -> Path:
        """Checkpoints, logs and decoding results of the run."""
        return Path(self.exp_root) / self.name


# Which dataclass stands behind which choice of a config group.
CORPORA = {"synthetic": SyntheticCorpus, "directory": DirectoryCorpus, "librispeech": LibriSpeechCorpus}
OPTIMIZERS = {"scaled_adam": ScaledAdamConfig, "adamw": AdamWConfig}


def register() -> None:
    """Tell Hydra the schema: yaml files name it as `schema` (the root) and `<group>/schema_<kind>`."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for group, kinds in (("corpus", CORPORA), ("optim", OPTIMIZERS)):
        for kind, node in kinds.items():
            store.store(group=group, name=f"schema_{kind}", node=node)


def load(conf_dir: str | Path, overrides: list[str] | None = None, config_name: str = "config") -> Config:
    """Compose conf_dir/config_name.yaml with `overrides` (as on the command line) into a checked `Config`."""
    from hydra import compose, initialize_config_dir

    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(Path(conf_dir).resolve())):
        config = OmegaConf.to_object(compose(config_name, overrides=overrides or []))
    assert isinstance(config, Config)
    return config

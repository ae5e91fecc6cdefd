"""The schema of every yaml under conf/: a key that is not here is an error that names it.

Hydra composes the yaml files against these dataclasses and `OmegaConf.to_object` turns the result, once, in a program's
`main`, into plain objects; nothing below `main` ever sees a DictConfig. Values are checked on construction, so a config
that exists is a config that makes sense. All sections are immutable: what changes during a run lives in `TrainState`.

`register()` hands the schema to Hydra and `load()` does the whole trip for programs, tests and notebooks.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from omegaconf import MISSING, OmegaConf


class Section:
    """Base of all config sections: validated by `check`, then sealed.

    Not `dataclass(frozen=True)`, because OmegaConf makes frozen dataclasses read-only, and then no yaml can fill them.
    """

    def __post_init__(self) -> None:
        self.check()
        object.__setattr__(self, "_sealed", True)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in {f.name for f in dataclasses.fields(self)}:  # type: ignore[arg-type]
            raise AttributeError(
                f"config: {type(self).__name__} has no key {name!r}"
            )  # e.g. +name=value on a command line
        if getattr(self, "_sealed", False):
            raise dataclasses.FrozenInstanceError(f"{type(self).__name__}.{name} cannot be changed after construction")
        object.__setattr__(self, name, value)

    def check(self) -> None:
        """Raise ValueError naming the key whose value makes no sense."""


def require(ok: bool, key: str, value: object, expected: str) -> None:
    if not ok:
        raise ValueError(f"config: {key}={value!r}: expected {expected}")


def one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    require(value in choices, key, value, "one of " + ", ".join(choices))


@dataclass
class Schedule(Section):
    """A weight over the run: linear from `initial` to `final` over the first `warmup` (a fraction of the run), then flat.

    Fractions, not steps: a hard-coded number of warm-up steps is silently wrong for a small corpus.
    """

    initial: float = 1.0
    final: float = 1.0
    warmup: float = 0.0

    def check(self) -> None:
        require(0.0 <= self.warmup <= 1.0, "warmup", self.warmup, "a fraction of the run in [0, 1]")

    def __call__(self, progress: float) -> float:
        """The weight at `progress`, the fraction of the run that is done."""
        if progress >= self.warmup:
            return self.final
        return self.initial + (self.final - self.initial) * progress / self.warmup

    @property
    def used(self) -> bool:
        return self.initial != 0.0 or self.final != 0.0


# ---------------------------------------------------------------------------------------------------------------- data


@dataclass
class CorpusConfig(Section):
    """What to train and test on. `name` names data/<name>; the lists name the parts (folders or tables) of the corpus."""

    name: str = MISSING
    train: list[str] = field(default_factory=lambda: ["train"])
    valid: list[str] = field(default_factory=lambda: ["dev"])
    test: list[str] = field(default_factory=lambda: ["test"])


@dataclass
class SyntheticCorpus(CorpusConfig):
    """The embedded corpus: espeak-ng voices reading sentences of a small grammar, written in LibriSpeech's layout."""

    name: str = "synthetic"
    train_minutes: float = 45.0
    dev_minutes: float = 2.0
    test_minutes: float = 6.0
    noise_snr_db: float = 25.0
    reverb: float = 0.15
    seed: int = 42

    def check(self) -> None:
        require(self.train_minutes > 0, "corpus.train_minutes", self.train_minutes, "more than 0")


@dataclass
class DirectoryCorpus(CorpusConfig):
    """A folder of the user's own: `dir/<part>` in LibriSpeech's layout, or tables `dir/<part>.tsv` of audio path and text."""

    dir: str = MISSING
    # A part that is not there is cut out of the training part, by speaker where there are several.
    valid_fraction: float = 0.05


@dataclass
class LibriSpeechCorpus(CorpusConfig):
    """LibriSpeech or mini LibriSpeech from OpenSLR or a mirror; the parts are OpenSLR's archive names."""

    dir: str = MISSING
    base_url: str = "https://www.openslr.org/resources"
    mini: bool = False


@dataclass
class FeatureConfig(Section):
    """80-dim log-mel filterbanks through lhotse."""

    num_mel_bins: int = 80
    sampling_rate: int = 16000
    on_the_fly: bool = False  # compute in the loader instead of in prepare.sh
    num_jobs: int = 2
    speed_factors: list[float] = field(default_factory=lambda: [1.0])  # [0.9, 1.0, 1.1] is the usual threefold

    def check(self) -> None:
        require(1.0 in self.speed_factors, "features.speed_factors", self.speed_factors, "a list with 1.0 in it")


@dataclass
class TokenConfig(Section):
    kind: str = "bpe"
    vocab_size: int = 500  # with kind=char it follows from the text

    def check(self) -> None:
        one_of("tokens.kind", self.kind, ("bpe", "char"))

    @property
    def dir_name(self) -> str:
        return f"lang_bpe_{self.vocab_size}" if self.kind == "bpe" else "lang_char"


@dataclass
class SpecAugmentConfig(Section):
    enabled: bool = True
    probability: float = 0.9
    num_time_masks: int = 10
    max_time_mask_frames: int = 100
    max_time_mask_fraction: float = 0.15
    num_freq_masks: int = 2
    max_freq_mask_bins: int = 27
    time_warp_factor: int = 80  # 0 turns time warping off


@dataclass
class NoiseConfig(Section):
    """Mix noise from any folder of recordings (MUSAN, or one's own) into the training audio."""

    dir: Optional[str] = None
    probability: float = 0.5
    snr_db: list[float] = field(default_factory=lambda: [10.0, 20.0])

    def check(self) -> None:
        require(
            len(self.snr_db) == 2 and self.snr_db[0] <= self.snr_db[1], "data.noise.snr_db", self.snr_db, "[low, high]"
        )


@dataclass
class DataConfig(Section):
    root: str = "data"
    max_duration: float = 100.0  # seconds of audio in a batch
    # An utterance of length d counts as d + d^2 / quadratic_duration, since attention is quadratic. 0 turns it off.
    quadratic_duration: float = 0.0
    num_buckets: int = 10
    num_workers: int = 0
    shuffle: bool = True
    min_seconds: float = 0.1
    max_seconds: float = 40.0
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)

    def check(self) -> None:
        require(self.max_duration > 0, "data.max_duration", self.max_duration, "seconds, more than 0")


# --------------------------------------------------------------------------------------------------------------- model


@dataclass
class EncoderConfig(Section):
    """The re-worked Conformer (see toolkit/models/conformer.py)."""

    num_layers: int = 12
    dim: int = 512
    num_heads: int = 8
    feedforward_dim: int = 2048
    conv_kernel: int = 31
    subsampling_channels: list[int] = field(default_factory=lambda: [8, 32, 128])
    dropout: float = 0.1
    layer_dropout: float = 0.075

    def check(self) -> None:
        require(
            self.dim % self.num_heads == 0, "model.encoder.dim", self.dim, f"a multiple of num_heads={self.num_heads}"
        )
        require(self.conv_kernel % 2 == 1, "model.encoder.conv_kernel", self.conv_kernel, "an odd number")


@dataclass
class DecoderConfig(Section):
    """The stateless prediction network: embedding and a grouped 1-D convolution over the last `context_size` tokens."""

    dim: int = 512
    context_size: int = 2

    def check(self) -> None:
        require(self.context_size in (1, 2), "model.decoder.context_size", self.context_size, "1 or 2")


@dataclass
class ModelConfig(Section):
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    joiner_dim: int = 512
    ctc_head: bool = False


@dataclass
class LossConfig(Section):
    """Weighted terms of the training loss; a term whose weight is 0 throughout is not computed."""

    rnnt_type: str = "regular"
    prune_range: int = 5
    lm_only_scale: float = 0.25
    am_only_scale: float = 0.0
    delay_penalty: float = 0.0
    fused: bool = True  # the pruned loss holds no joiner output; False takes four times the memory for the same numbers
    simple: Schedule = field(default_factory=lambda: Schedule(initial=1.0, final=0.5, warmup=0.1))
    pruned: Schedule = field(default_factory=lambda: Schedule(initial=0.1, final=1.0, warmup=0.1))
    ctc: Schedule = field(default_factory=lambda: Schedule(initial=0.0, final=0.0))

    def check(self) -> None:
        one_of("loss.rnnt_type", self.rnnt_type, ("regular", "modified", "constrained"))
        require(self.prune_range >= 2, "loss.prune_range", self.prune_range, "at least 2")
        scales = self.lm_only_scale, self.am_only_scale
        require(min(scales) >= 0, "loss.lm_only_scale and loss.am_only_scale", scales, "at least 0")
        require(sum(scales) <= 1, "loss.lm_only_scale + loss.am_only_scale", sum(scales), "at most 1")

    @property
    def schedules(self) -> dict[str, Schedule]:
        """The terms that take part in training, by name."""
        terms = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: term for name, term in terms.items() if isinstance(term, Schedule) and term.used}


# ------------------------------------------------------------------------------------------------------------ training


@dataclass
class OptimConfig(Section):
    lr: float = MISSING
    warmup: float = 0.05  # fraction of the run


@dataclass
class ScaledAdamConfig(OptimConfig):
    """ScaledAdam with the Eden schedule; the decay constants are fractions of the run."""

    lr: float = 0.045
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    clipping_scale: float = 2.0
    decay: float = 0.2  # Eden's lr_batches and lr_epochs in one: where the decay sets in


@dataclass
class AdamWConfig(OptimConfig):
    """AdamW with the Noam schedule; `lr` is the peak."""

    lr: float = 1e-3
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    weight_decay: float = 1e-2
    clip_norm: float = 5.0


@dataclass
class TrainerConfig(Section):
    num_epochs: int = 30
    max_steps: Optional[int] = None  # ends the run earlier; schedules stretch over what is then the whole run
    max_minutes: Optional[float] = None  # ends the process with a checkpoint; starting again goes on
    accumulate: int = 1
    precision: str = "fp32"
    device: str = "auto"
    threads: Optional[int] = None  # CPU threads; None leaves torch's choice
    log_every: int = 20  # optimizer steps
    valid_every_epochs: int = 1
    save_every_steps: int = 1000
    keep_checkpoints: int = 5  # epoch checkpoints kept for averaging
    average_period: int = 50  # steps between updates of the running-average model
    max_bad_batches: int = 20  # consecutive batches without a finite loss before the run gives up

    def check(self) -> None:
        one_of("trainer.precision", self.precision, ("fp32", "bf16"))
        require(self.num_epochs > 0, "trainer.num_epochs", self.num_epochs, "at least 1")
        require(self.accumulate > 0, "trainer.accumulate", self.accumulate, "at least 1")


# ------------------------------------------------------------------------------------------------------------ decoding


@dataclass
class DecodingConfig(Section):
    methods: list[str] = field(default_factory=lambda: ["greedy_search", "modified_beam_search"])
    max_symbols: int = 1  # greedy_search: symbols per frame; 0 means no limit
    beam: int = 4  # modified_beam_search: hypotheses kept
    max_duration: float = 200.0
    # Which model: "best", "last", an epoch number, or a path; `avg` averages that many epochs up to it.
    checkpoint: str = "best"
    avg: int = 1
    use_averaged_model: bool = True

    def check(self) -> None:
        require(self.avg >= 1, "decoding.avg", self.avg, "at least 1")


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
    decoding: DecodingConfig = field(default_factory=DecodingConfig)

    def check(self) -> None:
        require(
            self.model.ctc_head or not self.loss.ctc.used, "loss.ctc", self.loss.ctc, "weight 0, or model.ctc_head=true"
        )

    @property
    def data_dir(self) -> Path:
        """Manifests, features and tokens of the corpus."""
        return Path(self.data.root) / self.corpus.name

    @property
    def tokens_dir(self) -> Path:
        return self.data_dir / self.tokens.dir_name

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

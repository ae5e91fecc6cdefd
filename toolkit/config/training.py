"""Sections about corpora, features, tokens, models, losses, optimizers and the training of recognizers and language models."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Optional

from omegaconf import MISSING

from toolkit.config.section import Schedule, Section, one_of, require

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
    transducer: bool = True  # a decoder and a joiner on the encoder
    ctc_head: bool = False  # a linear layer on the encoder; either, or both

    def check(self) -> None:
        require(self.transducer or self.ctc_head, "model.transducer", False, "true, or model.ctc_head=true")


@dataclass
class LfMmiConfig(Section):
    """How the mmi term counts the competitors of a transcript (toolkit/models/lf_mmi.py)."""

    ngram_order: int = 2  # of the token n-gram of the training transcripts that weighs them
    den_scale: float = 1.0
    den_beam: float = 10.0  # competitors that fall more than this behind the best one are left out

    def check(self) -> None:
        require(self.ngram_order >= 1, "loss.lf_mmi.ngram_order", self.ngram_order, "at least 1")
        require(self.den_beam > 0, "loss.lf_mmi.den_beam", self.den_beam, "more than 0")


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
    mmi: Schedule = field(default_factory=lambda: Schedule(initial=0.0, final=0.0))
    lf_mmi: LfMmiConfig = field(default_factory=LfMmiConfig)

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


LOSS_TERMS = {"transducer": ("simple", "pruned"), "ctc_head": ("ctc", "mmi")}  # which part of a model each one trains


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
    init_from: Optional[str] = (
        None  # fine-tuning: a checkpoint or run whose weights a new run begins with, where they fit
    )
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


@dataclass
class LmConfig(Section):
    """A language model over the tokens (or, n-grams, the words) of a recognizer: recipes/librispeech/train_lm.py.

    It has its own epochs and learning rate (AdamW, Noam), since the recognizer's recipe fits another model; everything
    else of `trainer` holds for it, too.
    """

    kind: str = "lstm"
    text: list[str] = field(default_factory=list)  # files of sentences besides the training transcripts, .gz or plain
    transcripts: bool = True  # train on the transcripts of corpus.train
    # lstm, transformer
    dim: int = 256
    num_layers: int = 2
    num_heads: int = 4
    feedforward_dim: int = 1024
    dropout: float = 0.1
    tied: bool = True  # embedding and output layer share their weights
    batch_tokens: int = 2000
    num_epochs: int = 20
    lr: float = 2e-3
    # ngram
    order: int = 3
    unit: str = "token"  # or "word"
    prune: list[int] = field(default_factory=list)  # counts up to which n-grams of orders 1, 2, … are left out

    def check(self) -> None:
        one_of("lm.kind", self.kind, ("lstm", "transformer", "ngram"))
        one_of("lm.unit", self.unit, ("token", "word"))
        require(self.dim % self.num_heads == 0, "lm.dim", self.dim, f"a multiple of num_heads={self.num_heads}")
        require(self.order >= 1, "lm.order", self.order, "at least 1")
        require(self.transcripts or bool(self.text), "lm.text", self.text, "some files, or lm.transcripts=true")


@dataclass
class LangConfig(Section):
    """Lexicon, word n-grams and decoding graphs, made by prepare.sh into data/<corpus>/lang_*/<lang.name> (conf/lang/)."""

    name: Optional[str] = None  # None: make none
    transcripts: bool = True  # learn from the transcripts of corpus.train
    text: list[str] = field(default_factory=list)  # files of sentences besides, .gz or plain
    lexicon: str = "tokens"  # words as the tokens spell them; or a file: lexicon.txt, or one called *cmudict*
    max_words: Optional[int] = None  # the most frequent ones
    orders: list[int] = field(default_factory=lambda: [3])  # n-grams to train; the first one goes into the graphs
    prune: list[int] = field(default_factory=list)  # counts up to which n-grams of orders 1, 2, … are left out
    graphs: list[str] = field(default_factory=lambda: ["HLG"])  # of HL, LG, HLG
    modified: bool = False  # H without a blank between equal tokens

    def check(self) -> None:
        require(bool(self.orders) and min(self.orders) >= 1, "lang.orders", self.orders, "one or more orders from 1 on")
        require(self.transcripts or bool(self.text), "lang.text", self.text, "some files, or lang.transcripts=true")
        for graph in self.graphs:
            one_of("lang.graphs", graph, ("HL", "LG", "HLG"))

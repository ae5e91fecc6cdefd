"""Batches for training, validation and decoding from what prepare.sh made.

Sampling is lhotse's (dynamic buckets of similar duration), so are SpecAugment and noise mixing. Batch k of an epoch is
the same, augmentation included, however often the run was stopped before it: all chance in it is seeded by (seed,
epoch, rank, k), and the generators of the rest of the program are left as they were. Nothing is dropped in silence.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset import CutMix, SpecAugment
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from toolkit.config import Config, DataConfig, SpecAugmentConfig
from toolkit.data.batch import Batch
from toolkit.data.corpora import LeftOut
from toolkit.data.features import LOG_FLOOR, make_extractor
from toolkit.data.prepare import part_manifest, training_manifest
from toolkit.data.sampling import Plan
from toolkit.data.tokenizer import Tokenizer
from toolkit.models.subsampling import Subsampling

CACHE_BYTES = 1 << 30  # features of smaller sets stay in memory
SHORTEST_FRAMES = 7  # what the subsampling turns into one frame


def why_unusable(cut: Cut, tokenizer: Tokenizer, config: DataConfig) -> str | None:
    """What keeps `cut` out of training, or None."""
    text = cut.supervisions[0].text if cut.supervisions else None
    if not text:
        return "no text"
    if cut.duration < config.min_seconds:
        return f"less than data.min_seconds={config.min_seconds:g} of audio"
    if cut.duration > config.max_seconds:
        return f"more than data.max_seconds={config.max_seconds:g} of audio"
    encoder_frames = int(Subsampling.output_lens(torch.tensor(num_frames(cut))))
    if encoder_frames < len(tokenizer.encode(text)):
        return "fewer encoder frames than tokens"
    return None


def num_frames(cut: Cut) -> int:
    """Feature frames of `cut`, computed already or not: one every 10 ms."""
    return cut.num_frames if cut.has_features else math.floor(cut.duration * 100 + 0.5)


@contextlib.contextmanager
def random_state(seed: int) -> Iterator[None]:
    """Python's, numpy's and torch's generators seeded with `seed` inside, and as they were afterwards."""
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002, lhotse draws from the global generator
        torch.random.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.random.set_rng_state(states[2])


def make_spec_augment(config: SpecAugmentConfig) -> SpecAugment | None:
    if not config.enabled:
        return None
    return SpecAugment(
        time_warp_factor=config.time_warp_factor,
        num_feature_masks=config.num_freq_masks,
        features_mask_size=config.max_freq_mask_bins,
        num_frame_masks=config.num_time_masks,
        frames_mask_size=config.max_time_mask_frames,
        max_frames_mask_fraction=config.max_time_mask_fraction,
        p=config.probability,
    )


class Batches(Dataset):
    """Makes one `Batch` of (its number, its cuts); runs in the loader's workers, or in the training process."""

    def __init__(
        self, config: Config, tokenizer: Tokenizer, seeds: tuple[int, ...], noise: CutSet | None, augment: bool
    ) -> None:
        self.tokenizer = tokenizer
        self.seeds = seeds
        self.noise = noise
        self.noise_config = config.data.noise
        self.spec_augment = make_spec_augment(config.data.spec_augment) if augment else None
        self.extractor = make_extractor(config.features)
        self.cache: dict[tuple[str, str], np.ndarray] | None = None

    def __getitem__(self, item: tuple[int, CutSet]) -> Batch:
        number, cuts = item
        seed = int(np.random.SeedSequence([*self.seeds, number]).generate_state(1, np.uint64)[0] >> 1)
        with random_state(seed):
            if self.noise is not None:
                c = self.noise_config
                mix = CutMix(
                    self.noise,
                    snr=(c.snr_db[0], c.snr_db[1]),
                    p=c.probability,
                    pad_to_longest=False,
                    preserve_id=True,
                    seed=random.Random(seed),
                    random_mix_offset=True,
                )
                cuts = mix(cuts)
            loaded = [(cut, x_TF) for cut in cuts if (x_TF := self._load(cut)) is not None]
            if not loaded:
                raise RuntimeError(f"none of the recordings of a batch can be read: {', '.join(c.id for c in cuts)}")
            augment = self.spec_augment
            features = [x_TF if augment is None else augment(x_TF[None])[0] for _, x_TF in loaded]
        return collate([cut for cut, _ in loaded], features, self.tokenizer)

    def _load(self, cut: Cut) -> Tensor | None:
        """Features TF of `cut`, or None (and a warning) for audio that turns out to be broken in an on-the-fly run."""
        if not cut.has_features:
            try:
                return torch.from_numpy(cut.compute_features(self.extractor))
            except Exception as e:  # whatever the audio library of the day throws at a broken file
                logging.warning("%s is left out of its batch, its audio cannot be read: %s", cut.id, e)
                return None
        if self.cache is None or not hasattr(cut, "features"):  # a mixed cut has several
            return torch.from_numpy(cut.load_features())
        key = cut.features.storage_path, cut.features.storage_key
        if key not in self.cache:
            self.cache[key] = cut.load_features()
        return torch.from_numpy(self.cache[key])


def collate(cuts: list[Cut], features: list[Tensor], tokenizer: Tokenizer) -> Batch:
    """Pad `features` with the energy floor, and what is too short for the subsampling to the least it takes."""
    lens = [max(len(f), SHORTEST_FRAMES) for f in features]
    texts = [c.supervisions[0].text or "" if c.supervisions else "" for c in cuts]
    tokens = [tokenizer.encode(text) for text in texts]
    features_NTF = torch.full((len(cuts), max(lens), features[0].shape[1]), LOG_FLOOR)
    tokens_NU = torch.zeros(len(cuts), max(map(len, tokens)), dtype=torch.int64)
    for i, (f, t) in enumerate(zip(features, tokens)):
        features_NTF[i, : len(f)] = f
        tokens_NU[i, : len(t)] = torch.tensor(t, dtype=torch.int64)
    return Batch(
        features_NTF=features_NTF,
        feature_lens_N=torch.tensor(lens),
        tokens_NU=tokens_NU,
        token_lens_N=torch.tensor([len(t) for t in tokens]),
        texts=texts,
        ids=[c.id for c in cuts],
        seconds=math.fsum(c.duration for c in cuts),
    )


@dataclass(frozen=True)
class TrainingSet:
    """What checking leaves of the training manifest: the cuts, how many, seconds of audio, and what was left out."""

    cuts: CutSet
    count: int
    seconds: float
    left_out: dict[str, int]

    @classmethod
    def read(cls, config: Config, tokenizer: Tokenizer) -> TrainingSet:
        manifest = training_manifest(config)
        left_out = LeftOut()
        unusable: set[str] = set()
        count, seconds, unspellable = 0, 0.0, 0
        for cut in _read(manifest):
            reason = why_unusable(cut, tokenizer, config.data)
            if reason is not None:
                unusable.add(cut.id)
                left_out.add(reason, cut.id)
                continue
            unspellable += tokenizer.unk_id in tokenizer.encode(cut.supervisions[0].text)
            count += 1
            seconds += cut.duration
        left_out.report("training set")
        if unspellable:
            logging.warning("training set: %d utterances have characters that the tokens cannot spell", unspellable)
        if count == 0:
            raise ValueError(f"{manifest}: no utterance to train on ({left_out.counts() or 'it is empty'})")
        logging.info("training set: %d utterances, %.2f h an epoch", count, seconds / 3600)
        cuts = _read(manifest)
        if unusable:
            cuts = cuts.filter(functools.partial(_is_usable, unusable))
        return cls(cuts.to_eager() if is_small(seconds, config) else cuts, count, seconds, left_out.counts())


class DataModule:
    """The data of a run: `train_batches(epoch)`, `valid_batches()`, `test_batches(part)`, read when first asked for.

    Raises FileNotFoundError when prepare.sh has not made what the config asks for.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.test_parts = list(config.corpus.test)
        self._caches: dict[Path, dict[tuple[str, str], np.ndarray]] = {}
        self._valid: dict[str, CutSet] = {}

    @functools.cached_property
    def training_set(self) -> TrainingSet:
        return TrainingSet.read(self.config, self.tokenizer)

    @property
    def train_seconds_per_epoch(self) -> float:
        """Audio in one epoch over all ranks, after what cannot be trained on is left out."""
        return self.training_set.seconds

    def train_texts(self) -> Iterator[str]:
        """The transcripts that are trained on, one a cut."""
        return (cut.supervisions[0].text for cut in self.training_set.cuts)

    # --------------------------------------------------------------------------------------------------------- batches

    def train_batches(self, epoch: int, skip: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """The batches of `epoch` for `rank`, from number `skip` on; disjoint and equally many for all ranks."""
        data = self.config.data
        plan = Plan(
            cuts=self.training_set.cuts,
            seconds=self.training_set.seconds,
            max_duration=data.max_duration,
            quadratic_duration=data.quadratic_duration,
            num_buckets=data.num_buckets,
            shuffle=data.shuffle,
            seed=self.config.seed,
            epoch=epoch,
            skip=skip,
            rank=rank,
            world_size=world_size,
        )
        batches = Batches(self.config, self.tokenizer, (self.config.seed, epoch, rank), self._noise(), augment=True)
        return self._load(batches, plan, training_manifest(self.config))

    def valid_batches(self, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """The validation parts, unaugmented and always in the same order, without what the loss is not defined for."""
        for part in self.config.corpus.valid:
            if part not in self._valid:
                left_out, good = LeftOut(), []
                for cut in _read(part_manifest(self.config, part)):
                    reason = why_unusable(cut, self.tokenizer, self.config.data)
                    if reason is None:
                        good.append(cut)
                    else:
                        left_out.add(reason, cut.id)
                left_out.report(f"validation part {part}")
                self._valid[part] = CutSet.from_cuts(good)
            yield from self._plain(self._valid[part], part, self.config.data.max_duration, rank, world_size)

    def test_batches(self, part: str, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """All utterances of `part`, however long or short: a word error rate counts every one of them."""
        if part not in self.test_parts:
            raise ValueError(f"part={part!r}: expected one of corpus.test, {', '.join(self.test_parts)}")
        cuts = _read(part_manifest(self.config, part)).to_eager()
        return self._plain(cuts, part, self.config.decoding.max_duration, rank, world_size)

    # ------------------------------------------------------------------------------------------------------- machinery

    def _plain(self, cuts: CutSet, part: str, max_duration: float, rank: int, world_size: int) -> Iterator[Batch]:
        seconds = math.fsum(c.duration for c in cuts)
        quadratic = self.config.data.quadratic_duration
        plan = Plan(
            cuts, seconds, max_duration, quadratic, self.config.data.num_buckets, rank=rank, world_size=world_size
        )
        batches = Batches(self.config, self.tokenizer, (self.config.seed,), None, augment=False)
        return self._load(batches, plan, part_manifest(self.config, part))

    def _load(self, batches: Batches, plan: Plan, manifest: Path) -> Iterator[Batch]:
        workers = self.config.data.num_workers
        if workers == 0:
            if is_small(plan.seconds, self.config):
                batches.cache = self._caches.setdefault(manifest, {})
            return map(batches.__getitem__, plan)
        return iter(
            DataLoader(batches, batch_size=None, sampler=plan, num_workers=workers, worker_init_fn=_start_worker)
        )

    def _noise(self) -> CutSet | None:
        if self.config.data.noise.dir is None:
            return None
        noise = _read(self.config.data_dir / "noise" / "noise.jsonl").to_eager()
        if noise[0].has_features != next(iter(self.training_set.cuts)).has_features:
            raise ValueError("noise and features were made with different features.on_the_fly: run prepare.sh again")
        return noise


def is_small(seconds: float, config: Config) -> bool:
    """Whether the features of so much audio may stay in memory."""
    return 100 * seconds * config.features.num_mel_bins * 4 <= CACHE_BYTES


def _is_usable(unusable: set[str], cut: Cut) -> bool:
    return cut.id not in unusable


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)  # the training process needs the cores more


def _read(manifest: Path) -> CutSet:
    if not manifest.is_file():
        raise FileNotFoundError(f"no {manifest}: run recipes/librispeech/prepare.sh with the same overrides first")
    return CutSet.from_jsonl_lazy(manifest)

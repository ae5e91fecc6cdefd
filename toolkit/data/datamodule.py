"""Batches for training, validation and decoding from what prepare.sh made.

Sampling is lhotse's (dynamic buckets of similar duration), so are SpecAugment and noise mixing. Batch k of an epoch is
the same, augmentation included, however often the run was stopped before it: all chance in it is seeded by (seed,
epoch, rank, k), and the generators of the rest of the program are left as they were. Nothing is dropped in silence.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset import CutMix, DynamicBucketingSampler, SpecAugment
from lhotse.dataset.sampling.base import TimeConstraint
from lhotse.dataset.sampling.dynamic import DurationBatcher
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from toolkit.config import Config, DataConfig, SpecAugmentConfig
from toolkit.data.batch import Batch
from toolkit.data.corpora import LeftOut
from toolkit.data.features import LOG_FLOOR, make_extractor
from toolkit.data.prepare import part_manifest, training_manifest
from toolkit.data.tokenizer import Tokenizer

CACHE_BYTES = 1 << 30  # features of smaller sets stay in memory
SHORTEST_FRAMES = 7  # what the subsampling turns into one frame
BATCHES_PER_BUCKET = 3  # at least; a bucket that never fills a batch is no help


def subsampled_length(num_frames: int) -> int:
    """Encoder frames of an utterance of `num_frames`: two convolutions of stride 2 without padding in between."""
    return ((num_frames - 1) // 2 - 1) // 2


def why_unusable(cut: Cut, tokenizer: Tokenizer, config: DataConfig) -> str | None:
    """What keeps `cut` out of training, or None."""
    text = cut.supervisions[0].text if cut.supervisions else None
    if not text:
        return "no text"
    if cut.duration < config.min_seconds:
        return f"less than data.min_seconds={config.min_seconds:g} of audio"
    if cut.duration > config.max_seconds:
        return f"more than data.max_seconds={config.max_seconds:g} of audio"
    if subsampled_length(num_frames(cut)) < len(tokenizer.encode(text)):
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


def without_remainders(batches: Iterable[CutSet], max_duration: float, quadratic: float | None) -> Iterator[CutSet]:
    """`batches` with those that are less than half full gathered into full ones at the end.

    Each bucket of the sampler ends with such a remainder; a step on two utterances teaches as little as it weighs much.
    """
    constraint = TimeConstraint(max_duration=max_duration, quadratic_duration=quadratic)
    remainders: list[Cut] = []
    for cuts in batches:
        filled = constraint.copy()
        for cut in cuts:
            filled.add(cut)
        if filled.current < 0.5 * max_duration:
            remainders += cuts
        else:
            yield cuts
    remainders.sort(key=lambda cut: cut.duration)
    yield from DurationBatcher(remainders, constraint=constraint)


def of_rank(batches: Iterator[CutSet], rank: int, world_size: int) -> Iterator[CutSet]:
    """Every `world_size`-th batch, equally many for every rank: the utterances of a last round with fewer batches than
    ranks are spread over the ranks, and repeated only if they are fewer than the ranks."""
    while batches_of_round := list(itertools.islice(batches, world_size)):
        if len(batches_of_round) < world_size:
            cuts = [cut for batch in batches_of_round for cut in batch]
            cuts = list(itertools.islice(itertools.cycle(cuts), max(len(cuts), world_size)))
            batches_of_round = [CutSet.from_cuts(cuts[r::world_size]) for r in range(world_size)]
        yield batches_of_round[rank]


class Plan:
    """A sampler of (k, cuts) from batch `skip` on; what is skipped costs only the reading of manifests."""

    def __init__(self, make: Callable[[], Iterator[CutSet]], skip: int) -> None:
        self.make, self.skip = make, skip

    def __iter__(self) -> Iterator[tuple[int, CutSet]]:
        return itertools.islice(enumerate(self.make()), self.skip, None)


class DataModule:
    """The data of a run: `train_batches(epoch)`, `valid_batches()`, `test_batches(part)`.

    `train_seconds_per_epoch` is the audio of one epoch over all ranks, after what cannot be trained on is left out.
    Raises FileNotFoundError when prepare.sh has not made what the config asks for.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.test_parts = list(config.corpus.test)
        self._caches: dict[Path, dict[tuple[str, str], np.ndarray]] = {}
        self._valid: dict[str, CutSet] = {}
        manifest = training_manifest(config)
        self._unusable: set[str] = set()
        self._num_train = 0
        self.train_seconds_per_epoch = 0.0
        left_out, unknown = LeftOut(), 0
        for cut in _read(manifest):
            reason = why_unusable(cut, tokenizer, config.data)
            if reason is not None:
                self._unusable.add(cut.id)
                left_out.add(reason, cut.id)
                continue
            unknown += tokenizer.unk_id in tokenizer.encode(cut.supervisions[0].text)
            self._num_train += 1
            self.train_seconds_per_epoch += cut.duration
        left_out.report("training set")
        if unknown:
            logging.warning("training set: %d utterances have characters that the tokens cannot spell", unknown)
        if not self._num_train:
            raise ValueError(f"{manifest}: no utterance to train on ({left_out.counts() or 'it is empty'})")
        self.left_out = left_out.counts()
        # A small set is kept in memory, and so are its features; a large one is read anew each epoch.
        frame_bytes = 4 * config.features.num_mel_bins
        self._small = 100 * self.train_seconds_per_epoch * frame_bytes <= CACHE_BYTES
        train = _read(manifest)
        if self._unusable:
            train = train.filter(lambda cut: cut.id not in self._unusable)
        self._train = train.to_eager() if self._small else train
        self._noise = self._read_noise()
        logging.info(
            "training set: %d utterances, %.2f h an epoch", self._num_train, self.train_seconds_per_epoch / 3600
        )

    # --------------------------------------------------------------------------------------------------------- batches

    def train_batches(self, epoch: int, skip: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """The batches of `epoch` for `rank`, from number `skip` on.

        The ranks' batches are disjoint and equally many (see `of_rank`).
        """
        batches = Batches(self.config, self.tokenizer, (self.config.seed, epoch, rank), self._noise, augment=True)
        data = self.config.data
        make = functools.partial(
            self._plan,
            self._train,
            self.train_seconds_per_epoch,
            data.max_duration,
            data.shuffle,
            epoch,
            rank,
            world_size,
        )
        yield from self._load(batches, Plan(make, skip), training_manifest(self.config))

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
        yield from self._plain(cuts, part, self.config.decoding.max_duration, rank, world_size)

    # ------------------------------------------------------------------------------------------------------- machinery

    def _plain(self, cuts: CutSet, part: str, max_duration: float, rank: int, world_size: int) -> Iterator[Batch]:
        if len(cuts) == 0:
            return
        batches = Batches(self.config, self.tokenizer, (self.config.seed,), None, augment=False)
        seconds = math.fsum(c.duration for c in cuts)
        make = functools.partial(self._plan, cuts, seconds, max_duration, False, 0, rank, world_size)
        yield from self._load(batches, Plan(make, 0), part_manifest(self.config, part))

    def _plan(
        self, cuts: CutSet, seconds: float, max_duration: float, shuffle: bool, epoch: int, rank: int, world_size: int
    ) -> Iterator[CutSet]:
        """The cuts of each batch of `epoch` for `rank`."""
        data = self.config.data
        quadratic = data.quadratic_duration or None
        num_buckets = min(data.num_buckets, int(seconds / (BATCHES_PER_BUCKET * max_duration)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lhotse would rather have lazy manifests and larger buffers
            sampler = DynamicBucketingSampler(
                cuts,
                max_duration=max_duration,
                quadratic_duration=quadratic,
                num_buckets=num_buckets,
                duration_bins=None if num_buckets > 1 else [1e6],  # one bucket, and an empty one that lhotse wants
                shuffle=shuffle,
                world_size=1,  # the ranks are of_rank's matter, after the remainders are gathered
                rank=0,
                seed=self.config.seed,
            )
        sampler.set_epoch(epoch)
        yield from of_rank(without_remainders(sampler, max_duration, quadratic), rank, world_size)

    def _load(self, batches: Batches, plan: Plan, manifest: Path) -> Iterator[Batch]:
        workers = self.config.data.num_workers
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if workers == 0:
                if self._small:
                    batches.cache = self._caches.setdefault(manifest, {})
                yield from map(batches.__getitem__, plan)
            else:
                yield from DataLoader(
                    batches, batch_size=None, sampler=plan, num_workers=workers, worker_init_fn=_start_worker
                )

    def _read_noise(self) -> CutSet | None:
        if self.config.data.noise.dir is None:
            return None
        noise = _read(self.config.data_dir / "noise" / "noise.jsonl").to_eager()
        has_features = next(iter(_read(training_manifest(self.config)))).has_features
        if next(iter(noise)).has_features != has_features:
            raise ValueError("noise and features were made with different features.on_the_fly: run prepare.sh again")
        return noise


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)  # the training process needs the cores more


def _read(manifest: Path) -> CutSet:
    if not manifest.is_file():
        raise FileNotFoundError(f"no {manifest}: run recipes/librispeech/prepare.sh with the same overrides first")
    return CutSet.from_jsonl_lazy(manifest)

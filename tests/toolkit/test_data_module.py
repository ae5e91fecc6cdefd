"""Features, batches, augmentation and noise: complete, deterministic, and the same after a restart."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from lhotse import CutSet, Fbank, FbankConfig
from lhotse.testing.dummies import dummy_cut

from toolkit import config as schema
from toolkit.data.batch import Batch
from toolkit.data.datamodule import DataModule, random_state
from toolkit.data.features import LOG_FLOOR
from toolkit.data.prepare import part_manifest, prepare, training_manifest
from toolkit.data.sampling import Plan
from toolkit.data.storage import HalfArchiveReader, HalfArchiveWriter
from toolkit.data.tokenizer import Tokenizer

WORDS = ["ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN"]


def write_corpus(root: Path, part: str, utterances: int) -> None:
    """Tones and noise of 0.3 to 1.5 s, and a table of them."""
    rng = np.random.default_rng(utterances)
    (root / "audio").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(utterances):
        n = int(16000 * rng.uniform(0.3, 1.5))
        x = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 2000) * np.arange(n) / 16000) + 0.01 * rng.standard_normal(n)
        sf.write(root / "audio" / f"{part}{i:03d}.flac", x, 16000)
        rows.append(f"audio/{part}{i:03d}.flac\t{' '.join(rng.choice(WORDS, 1 + n // 16000))}\t{i % 5}\n")
    (root / f"{part}.tsv").write_text("".join(rows))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> schema.Config:
    """40 + 6 utterances and noise, prepared once; tests change what they look at with `dataclasses.replace`."""
    root = tmp_path_factory.mktemp("corpus")
    for part, count in (("train", 40), ("valid", 6)):
        write_corpus(root, part, count)
    (root / "noise").mkdir()
    for i in range(3):
        x = 0.1 * np.random.default_rng(i).standard_normal(16000 * (2 + 6 * i))
        sf.write(root / "noise" / f"n{i}.wav", x, 16000)
    config = schema.Config(
        name="test",
        corpus=schema.DirectoryCorpus(name="tiny", dir=str(root), valid=["valid"], test=["valid"]),
        features=schema.FeatureConfig(num_jobs=1),
        tokens=schema.TokenConfig(kind="char"),
        data=schema.DataConfig(
            root=str(root / "data"),
            max_duration=5.0,
            noise=schema.NoiseConfig(dir=str(root / "noise"), probability=0.7),
        ),
        optim=schema.AdamWConfig(),
    )
    prepare(config)
    return config


def with_data(config: schema.Config, **changes: object) -> schema.Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def plain(config: schema.Config) -> schema.Config:
    """Without any augmentation."""
    return with_data(config, noise=schema.NoiseConfig(), spec_augment=schema.SpecAugmentConfig(enabled=False))


def module(config: schema.Config) -> DataModule:
    return DataModule(config, Tokenizer.load(config.tokens_dir))


def same(a: Batch, b: Batch) -> bool:
    return a.ids == b.ids and torch.equal(a.features_NTF, b.features_NTF) and torch.equal(a.tokens_NU, b.tokens_NU)


def ids(batches: list[Batch]) -> list[str]:
    return [i for batch in batches for i in batch.ids]


# ------------------------------------------------------------------------------------------------------------- features


def test_storage_reads_what_was_written(tmp_path: Path) -> None:
    arrays = [np.random.default_rng(i).uniform(-16, 16, (5 + i, 80)).astype(np.float32) for i in range(3)]
    with HalfArchiveWriter(tmp_path / "a.f16") as writer:
        keys = [writer.write(str(i), x) for i, x in enumerate(arrays)]
    reader = HalfArchiveReader(tmp_path / "a.f16")
    for key, x in zip(keys, arrays):
        assert reader.read(key).dtype == np.float32
        assert np.abs(reader.read(key) - x).max() <= 0.008
        assert np.array_equal(reader.read(key, 1, 4), reader.read(key)[1:4])


def test_features_are_kaldis_filterbanks(base: schema.Config) -> None:
    extractor = Fbank(FbankConfig(num_mel_bins=80))
    for cut in CutSet.from_file(part_manifest(base, "valid")):
        expected = extractor.extract(cut.load_audio(), 16000)
        assert cut.load_features().shape == expected.shape == (cut.num_frames, 80)
        assert np.abs(cut.load_features() - expected).max() < 0.02  # half precision on disk


def test_batch(base: schema.Config) -> None:
    tokenizer = Tokenizer.load(base.tokens_dir)
    for batch in module(plain(base)).test_batches("valid"):
        n, t, f = batch.features_NTF.shape
        assert f == 80 and t == batch.feature_lens_N.max() and len(batch) == n == len(batch.texts)
        assert batch.features_NTF.dtype == torch.float32 and batch.tokens_NU.dtype == torch.int64
        for i in range(n):
            assert (batch.features_NTF[i, batch.feature_lens_N[i] :] == np.float32(LOG_FLOOR)).all()
            assert batch.tokens_NU[i, : batch.token_lens_N[i]].tolist() == tokenizer.encode(batch.texts[i])
            assert not batch.tokens_NU[i, batch.token_lens_N[i] :].any()
        assert batch.seconds == pytest.approx(batch.feature_lens_N.sum().item() / 100, abs=0.02 * n)


def test_on_the_fly_features_are_the_precomputed_ones(base: schema.Config) -> None:
    fly = dataclasses.replace(
        base,
        corpus=dataclasses.replace(base.corpus, name="fly"),
        features=dataclasses.replace(base.features, on_the_fly=True),
    )
    prepare(fly)
    assert not list(fly.data_dir.rglob("*.f16"))
    stored, computed = (list(module(plain(c)).train_batches(0)) for c in (base, fly))
    assert ids(stored) == ids(computed)
    assert all((a.features_NTF - b.features_NTF).abs().max() < 0.02 for a, b in zip(stored, computed))
    noisy = list(module(fly).train_batches(0))  # mixes the audio, not the features
    assert ids(noisy) == ids(computed)
    assert not same(noisy[0], computed[0])


def test_a_file_that_breaks_after_prepare_is_named_not_fatal(
    base: schema.Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_corpus(tmp_path, "train", 6)
    config = dataclasses.replace(
        plain(with_data(base, root=str(tmp_path / "data"))),
        corpus=dataclasses.replace(base.corpus, dir=str(tmp_path), valid=["train"], test=["train"]),
        features=dataclasses.replace(base.features, on_the_fly=True),
    )
    prepare(config)
    (tmp_path / "audio" / "train002.flac").write_bytes(b"broken")
    batches = list(module(config).train_batches(0))
    assert len(ids(batches)) == 5 and "audio-train002 is left out of its batch" in caplog.text


def test_speed_factors_make_more_of_the_training_set_only(base: schema.Config) -> None:
    config = dataclasses.replace(
        plain(base),
        corpus=dataclasses.replace(base.corpus, name="speeds"),
        features=dataclasses.replace(base.features, speed_factors=[0.9, 1.0, 1.1], num_jobs=2),
    )
    prepare(config)
    data = module(config)
    assert len(set(ids(list(data.train_batches(0))))) == 120
    seconds = module(plain(base)).train_seconds_per_epoch
    assert data.train_seconds_per_epoch == pytest.approx(seconds * (1 + 1 / 0.9 + 1 / 1.1), rel=1e-3)
    assert len(ids(list(data.valid_batches()))) == 6


# -------------------------------------------------------------------------------------------------------------- batches


def test_an_epoch_has_every_utterance_once(base: schema.Config) -> None:
    data = module(base)
    batches = list(data.train_batches(0))
    assert sorted(ids(batches)) == sorted(CutSet.from_file(training_manifest(base)).ids)
    assert sum(b.seconds for b in batches) == pytest.approx(data.train_seconds_per_epoch)
    assert all(b.seconds <= base.data.max_duration for b in batches)
    assert sum(b.seconds < base.data.max_duration / 2 for b in batches) <= 1


def test_epochs_differ_and_repeat(base: schema.Config) -> None:
    data = module(base)
    first, second = list(data.train_batches(0)), list(data.train_batches(1))
    assert ids(first) != ids(second)
    assert all(map(same, first, data.train_batches(0)))  # from memory now
    assert all(map(same, first, module(base).train_batches(0)))


@pytest.mark.parametrize("workers", [0, 1])
def test_batch_k_is_the_same_after_a_restart(base: schema.Config, workers: int) -> None:
    config = with_data(base, num_workers=workers)
    whole = list(module(config).train_batches(3))
    resumed = list(module(config).train_batches(3, skip=4))
    assert len(resumed) == len(whole) - 4 > 2
    assert all(map(same, whole[4:], resumed))
    assert all(map(same, whole, module(with_data(base, num_workers=0)).train_batches(3)))


def test_the_rest_of_the_program_keeps_its_random_state(base: schema.Config) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    with random_state(1):
        expected = draw()
    with random_state(1):
        list(module(base).train_batches(0))
        assert draw() == expected


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_an_epoch(base: schema.Config, world_size: int) -> None:
    data = module(base)
    ranks = [list(data.train_batches(0, rank=r, world_size=world_size)) for r in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert sorted(i for batches in ranks for i in ids(batches)) == sorted(ids(list(data.train_batches(0))))
    valid = [i for r in range(world_size) for i in ids(list(data.valid_batches(rank=r, world_size=world_size)))]
    assert set(valid) == set(ids(list(data.valid_batches())))


def test_more_ranks_than_utterances_repeat_some() -> None:
    cuts = CutSet.from_cuts(dummy_cut(i, duration=1.0) for i in range(2))
    ranks = [list(Plan(cuts, 2.0, 10.0, rank=r, world_size=3)) for r in range(3)]
    assert [len(batches) for batches in ranks] == [1, 1, 1]
    assert Counter(cut.id for batches in ranks for _, batch in batches for cut in batch).total() == 3


def test_buckets_keep_lengths_together_and_batches_full() -> None:
    rng = random.Random(0)
    cuts = CutSet.from_cuts(dummy_cut(i, duration=rng.uniform(1, 20)) for i in range(600))
    seconds = sum(c.duration for c in cuts)

    def plan(num_buckets: int, quadratic: float = 0.0) -> list[list[float]]:
        plan = Plan(cuts, seconds, 60.0, quadratic, num_buckets, shuffle=True)
        return [[c.duration for c in batch] for _, batch in plan]

    def padding(batches: list[list[float]]) -> float:
        return 1 - seconds / sum(max(b) * len(b) for b in batches)

    assert padding(plan(10)) < 0.6 * padding(plan(1))
    assert sum(map(len, plan(10))) == 600
    assert sum(sum(b) < 30 for b in plan(10)) <= 1
    longest = [sum(b) for b in plan(10, quadratic=20.0) if min(b) > 15]
    assert longest and max(longest) < 45  # 15 s count as 26 s each


def test_order_without_shuffling(base: schema.Config) -> None:
    data = module(with_data(base, shuffle=False))
    assert ids(list(data.train_batches(0))) == ids(list(data.train_batches(1)))


# ------------------------------------------------------------------------------------------------------------- checking


def test_unusable_utterances_are_counted_and_named(base: schema.Config, caplog: pytest.LogCaptureFixture) -> None:
    cuts = list(CutSet.from_file(training_manifest(base)))
    cuts[0].supervisions[0].text = "SEVEN " * 40
    cuts[1].supervisions[0].text = ""
    cuts[2].supervisions[0].text = "ONE %"
    durations = sorted(c.duration for c in cuts[3:])
    config = with_data(base, min_seconds=durations[0] + 1e-4, max_seconds=durations[-1] - 1e-4)
    config = dataclasses.replace(config, corpus=dataclasses.replace(config.corpus, name="changed"))
    training_manifest(config).parent.mkdir(parents=True)
    CutSet.from_cuts(cuts).to_file(training_manifest(config))
    data = DataModule(plain(config), Tokenizer.load(base.tokens_dir))
    with caplog.at_level(logging.INFO):
        batches = list(data.train_batches(0))
    assert sum(data.training_set.left_out.values()) == 4 == 40 - len(ids(batches)) == 40 - data.training_set.count
    assert data.training_set.left_out["fewer encoder frames than tokens"] == 1
    assert data.training_set.left_out["no text"] == 1
    for cut in cuts[:2]:
        assert cut.id in caplog.text and cut.id not in ids(batches)
    assert "1 utterances have characters that the tokens cannot spell" in caplog.text
    assert data.train_seconds_per_epoch == pytest.approx(sum(b.seconds for b in batches))


def test_nothing_left_to_train_on_is_an_error(base: schema.Config) -> None:
    with pytest.raises(ValueError, match=r"no utterance to train on.*more than data\.max_seconds=0\.2"):
        list(module(with_data(base, max_seconds=0.2)).train_batches(0))


def test_decoding_leaves_nothing_out(base: schema.Config) -> None:
    data = module(with_data(base, max_seconds=0.2))
    assert len(ids(list(data.test_batches("valid")))) == 6
    assert list(data.valid_batches()) == []
    with pytest.raises(ValueError, match="part='dev'"):
        data.test_batches("dev")


def test_not_prepared_says_what_to_run(base: schema.Config, tmp_path: Path) -> None:
    data = DataModule(with_data(base, root=str(tmp_path)), Tokenizer.load(base.tokens_dir))
    with pytest.raises(FileNotFoundError, match=r"run recipes/librispeech/prepare\.sh"):
        data.train_batches(0)


# --------------------------------------------------------------------------------------------------------- augmentation


def test_spec_augment_masks_within_each_utterance(base: schema.Config) -> None:
    clean = next(iter(module(plain(base)).train_batches(0)))
    config = with_data(plain(base), spec_augment=schema.SpecAugmentConfig(probability=1.0, time_warp_factor=0))
    masked = next(iter(module(config).train_batches(0)))
    assert masked.ids == clean.ids and torch.equal(masked.feature_lens_N, clean.feature_lens_N)
    changed_NTF = masked.features_NTF != clean.features_NTF
    for i, length in enumerate(clean.feature_lens_N.tolist()):
        assert not changed_NTF[i, length:].any()
        share = changed_NTF[i, :length].float().mean()
        assert 0.0 < share < 0.9
    assert len({tuple(row.all(dim=0).nonzero().flatten().tolist()) for row in changed_NTF}) > 1


def test_noise_is_mixed_at_the_given_ratio(base: schema.Config) -> None:
    clean = next(iter(module(plain(base)).train_batches(0)))
    noise = dataclasses.replace(base.data.noise, probability=1.0, snr_db=[10.0, 10.0])
    noisy = next(iter(module(with_data(plain(base), noise=noise)).train_batches(0)))
    assert noisy.ids == clean.ids and noisy.texts == clean.texts
    for i, length in enumerate(clean.feature_lens_N.tolist()):
        a, b = clean.features_NTF[i, :length].exp().sum(), noisy.features_NTF[i, :length].exp().sum()
        assert ((b - a) / a).item() == pytest.approx(0.1, abs=0.03)


def test_noise_that_was_not_prepared_is_an_error(base: schema.Config) -> None:
    config = dataclasses.replace(base, corpus=dataclasses.replace(base.corpus, name="quiet"))
    quiet = with_data(config, noise=schema.NoiseConfig())
    prepare(quiet)
    assert len(list(module(quiet).train_batches(0))) > 0
    with pytest.raises(FileNotFoundError, match=r"noise\.jsonl: run recipes"):
        module(config).train_batches(0)

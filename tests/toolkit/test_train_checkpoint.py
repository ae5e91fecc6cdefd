"""Checkpoints: what survives, what is refused and what averaging over epochs gives."""

from __future__ import annotations

import dataclasses
import resource
from pathlib import Path

import pytest
import torch
from train_fakes import WORDS, FakeData, FakeModel, WordTokenizer, count_errors, fake_config, tiny_config

import toolkit.config as schema
from toolkit.data.tokenizer import Tokenizer
from toolkit.search import greedy_search
from toolkit.train import checkpoint as checkpoints
from toolkit.train import validation
from toolkit.train.averaging import RunningAverage, mean, stretch
from toolkit.train.checkpoint import CheckpointError, load_checkpoint, save_checkpoint, select_weights
from toolkit.train.loop import Trainer


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of six epochs."""
    root = tmp_path_factory.mktemp("exp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "count_errors", count_errors)
        torch.manual_seed(0)
        config = fake_config(root, num_epochs=6, keep_checkpoints=6)
        return Trainer(config, FakeModel(), WordTokenizer(), FakeData()).run() and config.exp_dir


# ------------------------------------------------------------------------------------------------ writing and reading


def test_full_disk_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"model": torch.arange(3)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # a write beyond it fails, as on a full disk
    try:
        with pytest.raises(
            CheckpointError, match=r"cannot save .*last.pt.*MB are free.*the one before it is still there"
        ):
            save_checkpoint(path, {"model": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_checkpoint(path)["model"].tolist() == [0, 1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_no_space_while_training_stops_with_the_last_good_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "count_errors", count_errors)
    config = fake_config(tmp_path)
    trainer = Trainer(config, FakeModel(), WordTokenizer(), FakeData())
    fsync = checkpoints.os.fsync

    def full_after_first_epoch(fd):
        if trainer.state.epoch == 2:
            raise OSError(28, "No space left on device")
        fsync(fd)

    monkeypatch.setattr(checkpoints.os, "fsync", full_after_first_epoch)
    with pytest.raises(CheckpointError, match="No space left on device"):
        trainer.run()
    monkeypatch.setattr(checkpoints.os, "fsync", fsync)
    assert load_checkpoint(config.exp_dir / "last.pt")["epoch"] == 1
    assert Trainer(config, FakeModel(), WordTokenizer(), FakeData()).run().epoch == 3


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken zip"])
def test_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last.pt is damaged or not a checkpoint"):
        load_checkpoint(path)


def test_truncated_file_is_named(run_dir, tmp_path):
    path = tmp_path / "best.pt"
    path.write_bytes((run_dir / "best.pt").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"best.pt is damaged"):
        load_checkpoint(path)


def test_foreign_checkpoint_is_refused(tmp_path):
    path = tmp_path / "epoch-30.pt"
    torch.save({"model": {}, "model_avg": {}, "sampler": {}}, path)
    with pytest.raises(CheckpointError, match=r"not a checkpoint of this toolkit.*found model, model_avg, sampler"):
        load_checkpoint(path)


def test_missing_file_lists_what_there_is(run_dir):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*epoch-9.pt; there are best.pt, epoch-1.pt"):
        load_checkpoint(run_dir / "epoch-9.pt")
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        load_checkpoint(run_dir / "nowhere" / "best.pt")


def test_loads_with_weights_only_and_carries_config_and_tokens(run_dir):
    for name in ("last.pt", "best.pt", "epoch-6.pt"):
        contents = torch.load(run_dir / name, weights_only=True)
        assert contents["tokenizer"]["tokens"] == WORDS
        config = checkpoints.config_from_dict(contents["config"])
        assert config == fake_config(run_dir.parent, num_epochs=6, keep_checkpoints=6)
        assert ("optimizer" in contents) == (name == "last.pt")


@pytest.mark.parametrize(
    ("corpus", "optim"),
    [
        (schema.SyntheticCorpus(train_minutes=3.0), schema.ScaledAdamConfig(decay=0.5)),
        (schema.DirectoryCorpus(name="mine", dir="somewhere"), schema.AdamWConfig(betas=[0.8, 0.9])),
    ],
)
def test_config_survives_the_round_trip(corpus, optim):
    config = schema.Config(
        name="x", corpus=corpus, optim=optim, loss=schema.LossConfig(simple=schema.Schedule(0.3, 0.5))
    )
    again = checkpoints.config_from_dict(checkpoints.config_to_dict(config))
    assert again == config and type(again.corpus) is type(corpus) and type(again.optim) is type(optim)


# ---------------------------------------------------------------------------------------------- another model's file


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("model", "joiner_dim", 77), ("features", "num_mel_bins", 40), ("tokens", "kind", "char")],
)
def test_resume_with_another_model_names_the_key(run_dir, section, key, value):
    config = fake_config(run_dir.parent, num_epochs=6)
    config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{key: value})})
    with pytest.raises(
        CheckpointError, match=rf"last.pt is of another model \({section}.{key}: .* there, {value!r} here\)"
    ):
        Trainer(config, FakeModel(), WordTokenizer(), FakeData()).run()


def test_resume_with_another_optimizer_names_it(run_dir):
    config = fake_config(run_dir.parent, optim=schema.ScaledAdamConfig(), num_epochs=6)
    with pytest.raises(CheckpointError, match=r"kinds.optim: 'adamw' there, 'scaled_adam' here"):
        Trainer(config, FakeModel(), WordTokenizer(), FakeData()).run()


def test_resume_with_other_tokens_says_where(run_dir):
    tokenizer = WordTokenizer([*WORDS[:3], "deux", *WORDS[4:]])
    with pytest.raises(CheckpointError, match=r"other tokens: 7 there, 7 here, the first difference at id 3"):
        Trainer(fake_config(run_dir.parent, num_epochs=6), FakeModel(), tokenizer, FakeData()).run()


def test_other_parameters_are_named(run_dir):
    contents = load_checkpoint(run_dir / "best.pt")
    model = FakeModel(vocab_size=9)
    del contents["model"]["hidden.bias"]
    with pytest.raises(
        CheckpointError, match=r"hidden.bias is missing there; output.weight has shape \(7, 32\) there, \(9"
    ):
        checkpoints.load_weights(model, contents["model"], run_dir / "best.pt")


# ----------------------------------------------------------------------------------------------------------- averages


def walk(power: float, period: int, steps: int, seed: int = 0) -> tuple[dict[int, dict], dict[int, torch.Tensor]]:
    """(states of the running average, weights) after each step of a random walk."""
    torch.manual_seed(seed)
    model = torch.nn.Linear(2, 1, bias=False)
    average, states, weights = RunningAverage(model, power), {}, {}
    for step in range(1, steps + 1):
        with torch.no_grad():
            model.weight.add_(torch.randn(1, 2))
        weights[step] = model.weight.detach().double().clone()
        if step % period == 0:
            average.update(model, step)
            states[step] = {**average.state_dict(), "weights": {k: v.clone() for k, v in average.weights.items()}}
    return states, weights


@pytest.mark.parametrize("power", [1.0, 9.0])
def test_average_is_the_weighted_mean_of_the_path(power):
    states, weights = walk(power, 1, 40)
    share = {s: s**power - (s - 1) ** power for s in weights}
    expected = sum(share[s] * weights[s] for s in weights) / 40**power
    torch.testing.assert_close(states[40]["weights"]["weight"], expected)
    expected = sum(share[s] * weights[s] for s in range(26, 41)) / (40**power - 25**power)
    torch.testing.assert_close(stretch(states[40], states[25])["weight"], expected)


def test_average_does_not_depend_on_update_times_where_weights_stand_still():
    model = torch.nn.Linear(2, 2)
    often, seldom = RunningAverage(model), RunningAverage(model)
    for step in range(1, 31):
        if step == 11:
            with torch.no_grad():
                model.weight.add_(1.0)
        often.update(model, step)
        if step in (10, 30):
            seldom.update(model, step)
    torch.testing.assert_close(often.weights, seldom.weights)


def test_average_forgets_the_start_and_keeps_its_precision():
    """After 20,000 updates the mean of weights of 1 is 1 to nine digits, whatever they were at first."""
    model = torch.nn.Linear(1, 1, bias=False)
    average = RunningAverage(model)
    for step in range(1, 20_001):
        average.step += 1
        share = 1 - ((step - 1) / step) ** average.power
        average.weights["weight"].lerp_(torch.ones(1, 1).double() * (1e3 if step < 200 else 1.0), share)
    assert average.weights["weight"].item() == pytest.approx(1.0, abs=1e-9)


def test_applied_average_gives_the_own_weights_back():
    states, _ = walk(9.0, 1, 5)
    model = torch.nn.Linear(2, 1, bias=False)
    average = RunningAverage(model)
    average.load_state_dict(states[5])
    own = model.weight.detach().clone()
    with average.applied_to(model):
        torch.testing.assert_close(model.weight.double(), states[5]["weights"]["weight"])
    assert torch.equal(model.weight, own)


def test_select_weights(run_dir):
    saved = {n: load_checkpoint(run_dir / f"epoch-{n}.pt") for n in range(1, 7)}
    path = run_dir / "epoch-6.pt"

    def select(avg, use_averaged_model):
        return select_weights(path, saved[6], avg, use_averaged_model)

    torch.testing.assert_close(select(1, False), mean([saved[6]["model"]]), rtol=0, atol=0)
    torch.testing.assert_close(select(1, True), saved[6]["average"]["weights"])
    torch.testing.assert_close(select(3, False), mean([saved[n]["model"] for n in (4, 5, 6)]))
    expected = stretch(saved[6]["average"], saved[3]["average"])
    torch.testing.assert_close(select(3, True), expected)
    for name, x in select(2, True).items():  # the last two epochs alone lie nearer to the last weights than all of them
        if name == "output.weight":
            distance = (x - saved[6]["model"][name]).norm()
            assert 0 < distance < (saved[6]["average"]["weights"][name] - saved[6]["model"][name]).norm()
    with pytest.raises(ValueError, match=r"avg=7: expected at most 6"):
        select(7, True)


def test_load_model_needs_nothing_but_the_folder(tmp_path):
    """Real model and tokenizer, trained for two epochs, come back as they were, in every selection."""
    tokenizer = Tokenizer.train(["one two three four five"], schema.TokenConfig(kind="char"))
    config = tiny_config(tmp_path, num_epochs=2)
    state = Trainer(config, checkpoints.build_model(config, tokenizer), tokenizer, FakeData(8)).run()
    model, loaded_tokenizer, loaded_config = checkpoints.load_model(config.exp_dir, "last", use_averaged_model=False)
    assert loaded_config == config and loaded_tokenizer.tokens == tokenizer.tokens and not model.training
    torch.testing.assert_close(model.state_dict(), state.model.state_dict(), rtol=0, atol=0)
    averaged, *_ = checkpoints.load_model(config.exp_dir, 2)
    with state.average.applied_to(state.model):
        torch.testing.assert_close(averaged.state_dict(), state.model.state_dict(), rtol=1e-6, atol=1e-7)
    last_epoch, *_ = checkpoints.load_model(config.exp_dir / "last.pt", avg=1)
    torch.testing.assert_close(last_epoch.state_dict(), averaged.state_dict(), rtol=1e-6, atol=1e-7)
    assert checkpoints.load_model(config.exp_dir, str(config.exp_dir / "best.pt"), avg=1)[2] == config
    batch = next(FakeData(8).valid_batches())
    encoder_out_NTD, lens_N = averaged.encode(batch.features_NTF, batch.feature_lens_N)
    assert len(greedy_search(averaged, encoder_out_NTD, lens_N)) == 8


def test_averaging_over_deleted_epochs_says_which(run_dir, tmp_path):
    for n in (4, 6):
        (tmp_path / f"epoch-{n}.pt").write_bytes((run_dir / f"epoch-{n}.pt").read_bytes())
    contents = load_checkpoint(tmp_path / "epoch-6.pt")
    with pytest.raises(
        FileNotFoundError, match=r"averaging 3 epochs up to epoch-6.pt needs .*epoch-3.pt; there are epoch-4"
    ):
        select_weights(tmp_path / "epoch-6.pt", contents, 3, True)


def test_which_file_is_meant(tmp_path):
    assert checkpoints.checkpoint_path(tmp_path, "best") == tmp_path / "best.pt"
    assert (
        checkpoints.checkpoint_path(tmp_path, 12)
        == checkpoints.checkpoint_path(tmp_path, "12")
        == tmp_path / "epoch-12.pt"
    )
    other = tmp_path / "mine.pt"
    other.touch()
    assert checkpoints.checkpoint_path(tmp_path, str(other)) == other == checkpoints.checkpoint_path(other)


# ------------------------------------------------------------------------------------------------------- fine-tuning


def test_a_new_run_begins_with_another_runs_weights(tmp_path):
    config = tiny_config(tmp_path)
    torch.manual_seed(0)
    first = Trainer(config, checkpoints.build_model(config, WordTokenizer()), WordTokenizer(), FakeData())
    first.save_last()
    other = dataclasses.replace(
        config,
        name="other",
        model=dataclasses.replace(config.model, joiner_dim=48),
        trainer=dataclasses.replace(config.trainer, init_from=str(first.exp_dir)),
    )
    second = Trainer(other, checkpoints.build_model(other, WordTokenizer()), WordTokenizer(), FakeData())
    second.resume()
    old, new = first.model.state_dict(), second.model.state_dict()
    fits = {name for name in new if old[name].shape == new[name].shape}
    assert all(torch.equal(old[name], new[name]) for name in fits) and any(name.startswith("decoder.") for name in fits)
    assert fits != set(new)  # the joiner has other sizes
    average = second.state.average.weights
    assert all(torch.equal(average[name].float(), new[name]) for name in average)


def test_fine_tuning_with_other_tokens_takes_the_encoder_alone(tmp_path):
    config = tiny_config(tmp_path)
    first = Trainer(config, checkpoints.build_model(config, WordTokenizer()), WordTokenizer(), FakeData())
    first.save_last()
    tokenizer = WordTokenizer(WORDS[:2] + WORDS[:1:-1])
    torch.manual_seed(1)
    model = checkpoints.build_model(config, tokenizer)
    message = checkpoints.init_weights(model, tokenizer, first.exp_dir)
    taken = {name for name, x in model.state_dict().items() if torch.equal(x, first.model.state_dict()[name])}
    assert "only the encoder" in message and "decoder.embedding.weight" not in taken
    assert {name for name in model.state_dict() if name.startswith("encoder.")} <= taken


def test_fine_tuning_from_an_encoder_of_other_sizes_is_refused(tmp_path):
    config = tiny_config(tmp_path)
    save_checkpoint(
        tmp_path / "other.pt",
        {
            "model": {"encoder.x": torch.zeros(1)},
            "average": {"step": 0, "weights": {}},
            "tokenizer": WordTokenizer().state_dict(),
        },
    )
    model = checkpoints.build_model(config, WordTokenizer())
    with pytest.raises(CheckpointError, match=r"init_from=.*other\.pt: no weight of the encoder"):
        checkpoints.init_weights(model, WordTokenizer(), tmp_path / "other.pt")

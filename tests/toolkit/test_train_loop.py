"""The training loop with a fake model and fake data: what it does to the loss, the log and the files."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from train_fakes import FakeData, FakeModel, WordTokenizer, count_errors, fake_config, losses

from toolkit.train import validation
from toolkit.train.loop import Trainer


@pytest.fixture(autouse=True)
def fake_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "count_errors", count_errors)
    torch.set_num_threads(1)


def make_trainer(exp_root: Path, data: FakeData | None = None, dropout: float = 0.1, **trainer) -> Trainer:
    torch.manual_seed(0)
    return Trainer(fake_config(exp_root, **trainer), FakeModel(dropout=dropout), WordTokenizer(), data or FakeData())


def test_learns_and_leaves_everything_behind(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    trainer = make_trainer(tmp_path, num_epochs=12, log_every=4, keep_checkpoints=3)
    state = trainer.run()
    assert (state.epoch, state.step, state.batch) == (12, 72, 0)
    assert state.seconds == pytest.approx(12 * trainer.data.train_seconds_per_epoch)
    by_step = losses(trainer.exp_dir)
    assert by_step[72] < 0.2 * by_step[1]
    assert state.best["valid/wer"] < 20
    files = {p.name for p in trainer.exp_dir.glob("*.pt")}
    assert files == {"last.pt", "best.pt", "epoch-10.pt", "epoch-11.pt", "epoch-12.pt"}
    lines = [r.getMessage() for r in caplog.records]
    assert any("audio s/s" in line and "ETA" in line and "data wait" in line for line in lines)
    assert len(lines) < 60
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(trainer.exp_dir / "tensorboard"))
    board.Reload()
    tags = {"train/loss_ctc", "train/lr", "train/grad_norm", "valid/wer", "valid/loss_ctc"}
    assert tags | {"perf/audio_seconds_per_second", "perf/data_wait", "mem/peak_gib"} <= set(board.Tags()["scalars"])


def test_accumulation_equals_the_large_batch(tmp_path):
    large = make_trainer(tmp_path / "a", FakeData(batch_size=8), dropout=0.0).run()
    small = make_trainer(tmp_path / "b", FakeData(batch_size=4), dropout=0.0, accumulate=2).run()
    assert large.step == small.step
    for a, b in zip(large.model.parameters(), small.model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_resume_in_one_process_is_exact(tmp_path):
    whole = make_trainer(tmp_path / "a", num_epochs=2)
    whole.run()
    part = make_trainer(tmp_path / "b", num_epochs=2, save_every_steps=3)
    train_step = part.train_step

    def interrupted(group):
        if part.state.step == 8:
            raise ZeroDivisionError
        return train_step(group)

    part.train_step = interrupted
    with pytest.raises(ZeroDivisionError):
        part.run()
    again = make_trainer(tmp_path / "b", num_epochs=2)
    again.run()
    assert losses(whole.exp_dir) == losses(again.exp_dir)
    assert_same(whole.state.state_dict(), again.state.state_dict(), skip=("pending",))


def assert_same(a, b, skip=()):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            if key not in skip:
                assert_same(a[key], b[key], skip)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y, skip)
    else:
        assert a == b


def test_finished_run_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    make_trainer(tmp_path, num_epochs=1).run()
    state = make_trainer(tmp_path, num_epochs=1).run()
    assert state.step == 6
    assert "resuming" in caplog.text and "raise trainer.num_epochs" in caplog.text
    assert make_trainer(tmp_path, num_epochs=2).run().step == 12
    assert "trainer.num_epochs was 1 and is 2" in caplog.text


def test_max_steps_ends_the_run_and_stretches_the_schedule(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=4)
    seen = []
    set_progress = trainer.state.scheduler.set_progress
    trainer.state.scheduler.set_progress = lambda p: (seen.append(p), set_progress(p))
    state = trainer.run()
    assert state.step == 4 and seen == pytest.approx([0, 0.25, 0.5, 0.75])
    assert (trainer.exp_dir / "best.pt").exists()


def test_max_minutes_ends_with_a_checkpoint_and_goes_on(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    state = make_trainer(tmp_path, num_epochs=2, max_minutes=1e-9).run()
    assert state.step == 1 and "start again" in caplog.text
    assert make_trainer(tmp_path, num_epochs=2).run().step == 12


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_finishes_the_step_and_saves(tmp_path, caplog, number):
    caplog.set_level(logging.INFO)
    trainer = make_trainer(tmp_path)
    forward = trainer.model.forward

    def interrupted(batch):
        if trainer.state.step == 3 and trainer.model.training:
            os.kill(os.getpid(), number)
        return forward(batch)

    trainer.model.forward = interrupted
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        trainer.run()
    assert stop.value.code == 128 + number and signal.getsignal(number) is before
    assert torch.load(trainer.exp_dir / "last.pt", weights_only=True)["step"] == trainer.state.step <= 5
    assert f"stopped by {number.name}" in caplog.text


def test_utterance_without_finite_loss_is_named_and_left_out(tmp_path, caplog):
    class Spoilt(FakeData):
        def batch(self, indexes, g):
            batch = super().batch(indexes, g)
            features_NTF = batch.features_NTF.clone()
            for row, i in enumerate(indexes):
                if i == 5:
                    features_NTF[row, 3] = float("nan")
            return dataclasses.replace(batch, features_NTF=features_NTF)

    trainer = make_trainer(tmp_path, Spoilt(), num_epochs=2, dropout=0.0)
    state = trainer.run()
    named = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert len(named) == 2 and all("cut-5 (ctc nan)" in line for line in named)
    assert "skipped" not in caplog.text
    assert all(p.isfinite().all() for p in state.model.parameters())
    left_out = losses(trainer.exp_dir, "train/left_out")
    assert sum(left_out.values()) == 2 and len(left_out) == 12


def test_left_out_utterance_changes_nothing_for_the_others(tmp_path):
    """A batch with a hopeless utterance gives the gradient of the batch without it."""
    trainer = make_trainer(tmp_path, dropout=0.0)
    batch = FakeData().batch([0, 1, 2], torch.Generator().manual_seed(0))
    features_NTF = batch.features_NTF.clone()
    features_NTF[1] = float("inf")
    trainer.forward_backward([dataclasses.replace(batch, features_NTF=features_NTF)])
    with_it = trainer.gradient.flat.clone()
    sums = trainer.forward_backward([batch.take(torch.tensor([0, 2]))])
    torch.testing.assert_close(with_it, trainer.gradient.flat)
    assert sums["frames"] == (batch.feature_lens_N[0] + batch.feature_lens_N[2]) // 4


def test_nothing_finite_gives_up_with_the_old_weights(tmp_path, caplog):
    class Nan(FakeData):
        def batch(self, indexes, g):
            batch = super().batch(indexes, g)
            return dataclasses.replace(batch, features_NTF=batch.features_NTF * float("nan"))

    trainer = make_trainer(tmp_path, Nan(), max_bad_batches=4)
    before = [p.clone() for p in trainer.model.parameters()]
    with pytest.raises(RuntimeError, match=r"4 steps in a row.*max_bad_batches"):
        trainer.run()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters()))
    assert torch.load(trainer.exp_dir / "last.pt", weights_only=True)["step"] == 4


def test_gradient_not_finite_skips_the_step(tmp_path, caplog):
    trainer = make_trainer(tmp_path, num_epochs=1)
    trainer.model.output.weight.register_hook(lambda g: g * float("inf") if trainer.state.step == 2 else g)
    state = trainer.run()
    assert [r.getMessage()[:6] for r in caplog.records if "skipped" in r.getMessage()] == ["step 3"]
    assert state.step == 6 and all(p.isfinite().all() for p in state.model.parameters())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes"),
    ],
)
def test_out_of_memory_names_the_batch_and_saves(tmp_path, error):
    trainer = make_trainer(tmp_path)
    forward = trainer.model.forward

    def greedy_for_memory(batch):
        if trainer.state.step == 3:
            raise error
        return forward(batch)

    trainer.model.forward = greedy_for_memory
    with pytest.raises(
        RuntimeError, match=r"out of memory on cpu at epoch 1, step 3.*4 utterances.*cut-.*data.max_duration"
    ):
        trainer.run()
    trainer.model.forward = forward
    again = make_trainer(tmp_path)
    assert again.run().step == 18


def test_memory_is_really_exhausted(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.model.forward = lambda batch: torch.empty(2**55, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="out of memory on cpu"):
        trainer.run()


def test_out_of_memory_in_validation_names_the_batch(tmp_path, monkeypatch):
    def count_errors(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(validation, "count_errors", count_errors)
    with pytest.raises(
        RuntimeError, match=r"out of memory on cpu in validation, on a batch of 8 utterances.*Lower data"
    ):
        make_trainer(tmp_path).run()


def test_other_errors_are_not_called_out_of_memory(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.model.forward = lambda batch: torch.ones(2) @ torch.ones(3)
    with pytest.raises(RuntimeError, match="size"):
        trainer.run()


def test_no_data_is_an_error(tmp_path):
    class Empty(FakeData):
        def train_batches(self, *args, **kwargs):
            return iter(())

    with pytest.raises(RuntimeError, match="epoch 1 has no batch at all"):
        make_trainer(tmp_path, Empty()).run()


def test_bf16_keeps_losses_in_fp32(tmp_path):
    trainer = make_trainer(tmp_path, precision="bf16", num_epochs=12)
    trainer.run()
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    by_step = losses(trainer.exp_dir)
    assert by_step[72] < 0.3 * by_step[1]

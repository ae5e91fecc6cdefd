"""A run that is killed with -9 and started again shows the losses of a run that was left alone, bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import train_fakes
from train_fakes import losses

from toolkit.train.distributed import World

# Each run in a process of its own, forked from one that has torch loaded already but never used it.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["torch.utils.tensorboard", "toolkit.train.loop"])


def start(output: Path, **arguments) -> multiprocessing.process.BaseProcess:
    process = context.Process(target=run, args=(output, arguments), daemon=True)
    process.start()
    return process


def run(output: Path, arguments: dict) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    train_fakes.main([arguments])


def train(output: Path, **arguments) -> str:
    process = start(output, **arguments)
    process.join(120)
    assert process.exitcode == (-signal.SIGKILL if "kill_at" in arguments else 0), output.read_text()
    return output.read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    train(root / "output", exp_root=str(root), num_epochs=3)
    return root / "fake"


def last_state(exp_dir: Path) -> dict:
    return torch.load(exp_dir / "last.pt", weights_only=True)


@pytest.mark.parametrize("kill_at", [1, 5, 6, 10])  # before the first save; within, at the end of and after an epoch
def test_killed_run_goes_on_exactly(undisturbed, tmp_path, kill_at):
    arguments = {"exp_root": str(tmp_path), "num_epochs": 3, "save_every_steps": 4}
    train(tmp_path / "output", kill_at=kill_at, **arguments)
    assert max(losses(tmp_path / "fake")) == kill_at
    output = train(tmp_path / "output", **arguments)
    assert ("resuming" in output) == (kill_at > 4)
    assert losses(tmp_path / "fake") == losses(undisturbed)
    assert losses(tmp_path / "fake", "valid/loss") == losses(undisturbed, "valid/loss")
    ours, theirs = last_state(tmp_path / "fake"), last_state(undisturbed)
    for part in ("model", "average", "optimizer"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)
    assert ours["best"] == theirs["best"]


def test_real_model_goes_on_exactly(tmp_path):
    """Conformer with layer dropout, native losses, ScaledAdam: none of them may remember more than the checkpoint."""
    common = {"num_epochs": 2, "real": True}
    train(tmp_path / "output", exp_root=str(tmp_path / "whole"), **common)
    train(tmp_path / "output", exp_root=str(tmp_path / "part"), kill_at=8, save_every_steps=4, **common)
    train(tmp_path / "output", exp_root=str(tmp_path / "part"), **common)
    for tag in (
        "train/loss_simple",
        "train/loss_pruned",
        "train/loss_ctc",
        "train/grad_norm",
        "valid/loss",
        "valid/wer",
    ):
        assert losses(tmp_path / "part" / "fake", tag) == losses(tmp_path / "whole" / "fake", tag)
    ours, theirs = last_state(tmp_path / "part" / "fake"), last_state(tmp_path / "whole" / "fake")
    for part in ("model", "average", "optimizer"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)


def test_ctrl_c_saves_and_says_how_to_go_on(undisturbed, tmp_path):
    arguments = {"exp_root": str(tmp_path), "num_epochs": 3}
    process = start(tmp_path / "output", **arguments, slow=0.2)
    metrics = tmp_path / "fake" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    output = (tmp_path / "output").read_text()
    assert process.exitcode == 130, output
    assert "SIGINT: will stop after this step" in output and "start again with the same command" in output
    assert "Traceback" not in output
    assert 2 <= last_state(tmp_path / "fake")["step"] < 18
    assert "resuming" in train(tmp_path / "output", **arguments)
    assert losses(tmp_path / "fake") == losses(undisturbed)


def test_second_ctrl_c_ends_it_at_once(tmp_path):
    process = start(tmp_path / "output", exp_root=str(tmp_path), slow=30.0)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (tmp_path / "fake" / "metrics.jsonl").exists():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    # The second one only when the first was noticed: two that wait for a busy process become one.
    while time.monotonic() < deadline and "will stop after this step" not in (tmp_path / "output").read_text():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.join(20)
    assert process.exitcode == 1 and "KeyboardInterrupt" in (tmp_path / "output").read_text()


def test_one_process_goes_on_where_two_were(tmp_path):
    """Only approximately, but it says so and runs to the end."""
    arguments = {"exp_root": str(tmp_path), "batch_size": 4, "pause_at": 4, "num_epochs": 2}
    train_fakes.train(World(), **arguments)
    path = tmp_path / "fake" / "last.pt"
    torch.save(last_state(tmp_path / "fake") | {"processes": 2, "batch": 1}, path)
    output = train(tmp_path / "output", **arguments)
    assert "2 processes before, 1 now" in output
    assert last_state(tmp_path / "fake")["epoch"] == 2

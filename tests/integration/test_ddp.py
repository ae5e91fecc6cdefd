"""Two processes under torchrun equal one with the doubled batch, and do not wait for each other in vain."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train_fakes
from train_fakes import losses

from toolkit.train.distributed import World

# Global batches of 8, or 4 in each of two processes. 24 utterances fill them; the last batch of 21 is 4 and 1, that of
# 17 is 1 and none; and with accumulation the two have different numbers of batches in a step.
PLAIN = {
    "even": {"num_epochs": 2},
    "unequal": {"num_epochs": 1, "utterances": 21},
    "empty": {"num_epochs": 1, "utterances": 17, "accumulate": 2},
}
REAL = {"num_epochs": 1, "real": True}
RUNS = {**PLAIN, "real": REAL}
INTERRUPTED = {"num_epochs": 2, "batch_size": 4, "dropout": 0.1}


@pytest.fixture(scope="module")
def two_processes(repo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs of two processes, all from one start of torchrun."""
    root = tmp_path_factory.mktemp("two")
    runs = [{"exp_root": str(root / name), "batch_size": 4, "dropout": 0.0, **plain} for name, plain in RUNS.items()]
    runs += [{"exp_root": str(root / "whole"), **INTERRUPTED}]
    runs += [
        {"exp_root": str(root / "part"), **INTERRUPTED, "pause_at": 2},
        {"exp_root": str(root / "part"), **INTERRUPTED},
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = os.environ | {"PYTHONPATH": f"{repo_dir}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, train_fakes.__file__, json.dumps(runs)], env=env, capture_output=True, text=True, timeout=540
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (root / "output").write_text(done.stdout)
    return root


def last_state(root: Path) -> dict:
    return torch.load(root / "fake" / "last.pt", weights_only=True)


@pytest.mark.parametrize("name", PLAIN)
def test_two_processes_equal_one_with_the_doubled_batch(two_processes, tmp_path, name):
    train_fakes.train(World(), exp_root=str(tmp_path), batch_size=8, dropout=0.0, **PLAIN[name])
    for tag in ("train/loss_ctc", "train/grad_norm", "valid/loss"):
        ours, theirs = (losses(root / "fake", tag) for root in (two_processes / name, tmp_path))
        assert ours == pytest.approx(theirs, rel=1e-5), tag
    ours, theirs = last_state(two_processes / name), last_state(tmp_path)
    assert ours["processes"] == 2 and ours["seconds"] == pytest.approx(theirs["seconds"])
    torch.testing.assert_close(ours["model"], theirs["model"], rtol=1e-5, atol=1e-5)


def test_two_processes_train_the_real_model_alike(two_processes, tmp_path):
    """The Conformer's balancers look at the statistics of the batch at hand, half as large in each of two processes. So
    only the losses of the first step are the same, and the gradients and what follows from them nearly so."""
    train_fakes.train(World(), exp_root=str(tmp_path), batch_size=8, dropout=0.0, **REAL)
    for tag in ("train/loss_simple", "train/loss_pruned", "train/loss_ctc"):
        ours, theirs = (losses(root / "fake", tag) for root in (two_processes / "real", tmp_path))
        assert ours[1] == pytest.approx(theirs[1], rel=1e-5), tag
        assert ours == pytest.approx(theirs, rel=5e-3), tag


def test_two_processes_agree_to_stop_and_resume_exactly(two_processes):
    output = (two_processes / "output").read_text()
    assert "another process stopped: 0 epochs, 2 steps" in output and "resuming" in output
    assert losses(two_processes / "part" / "fake") == losses(two_processes / "whole" / "fake")
    torch.testing.assert_close(
        last_state(two_processes / "part")["model"], last_state(two_processes / "whole")["model"], rtol=0, atol=0
    )


def test_one_process_tells_the_story(two_processes):
    assert (two_processes / "output").read_text().count("finished: 2 epochs") == 3

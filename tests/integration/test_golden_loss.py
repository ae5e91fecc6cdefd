"""Twenty steps of training against the figures on file: whatever changes them changed the training, meant or not.

Where a change is meant: `UPDATE_GOLDEN=1 python -m pytest tests/integration/test_golden_loss.py`, and say why.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import train_fakes
from train_fakes import losses

from toolkit.train.distributed import World

GOLDEN = Path(__file__).parent.parent / "golden" / "train_20_steps.json"
TAGS = ("train/loss_simple", "train/loss_pruned", "train/loss_ctc", "train/grad_norm", "train/lr", "valid/loss")
# Other processors and thread counts add up in another order, and training magnifies the difference from step to step.
TOLERANCE = 2e-3


def test_twenty_steps_are_as_on_file(tmp_path):
    torch.set_num_threads(1)
    train_fakes.train(World(), exp_root=str(tmp_path), real=True, num_epochs=4, max_steps=20)
    figures = {tag: losses(tmp_path / "fake", tag) for tag in TAGS}
    assert list(figures["train/loss_pruned"]) == list(range(1, 21))
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(figures, indent=1) + "\n")
    golden = {
        tag: {int(step): x for step, x in by_step.items()} for tag, by_step in json.loads(GOLDEN.read_text()).items()
    }
    assert figures == {tag: pytest.approx(by_step, rel=TOLERANCE) for tag, by_step in golden.items()}

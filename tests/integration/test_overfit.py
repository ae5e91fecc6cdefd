"""The real model, losses, optimizer and search, on so little data that they must learn it by heart."""

from __future__ import annotations

import time

import torch
from train_fakes import FakeData, WordTokenizer, tiny_config

from toolkit.config import ScaledAdamConfig
from toolkit.search import ctc_greedy_search, greedy_search, modified_beam_search
from toolkit.train.checkpoint import build_model, load_checkpoint, load_weights, select_weights
from toolkit.train.loop import Trainer


def test_overfits_eight_utterances(tmp_path):
    """WER 0 in less than a minute of one core, from the averaged weights of best.pt, with every search."""
    torch.set_num_threads(1)
    optim = ScaledAdamConfig(decay=1.0)
    config = tiny_config(tmp_path, optim, dropout=0.0, num_epochs=150, log_every=50, valid_every_epochs=50)
    data = FakeData(utterances=8, batch_size=8)
    started = time.process_time()
    state = Trainer(config, make(config), WordTokenizer(), data).run()
    assert time.process_time() - started < 60
    assert state.best["valid/wer"] == 0.0
    path = config.exp_dir / "best.pt"
    contents = load_checkpoint(path)
    model = build_model(config, WordTokenizer()).eval()
    load_weights(model, select_weights(path, contents, avg=1, use_averaged_model=True), path)
    (batch,) = data.valid_batches()
    with torch.inference_mode():
        encoder_out_NTD, lens_N = model.encode(batch.features_NTF, batch.feature_lens_N)
    for search in (greedy_search, modified_beam_search, ctc_greedy_search):
        found = [WordTokenizer().decode(r.best.tokens) for r in search(model, encoder_out_NTD, lens_N)]
        assert found == batch.texts, search.__name__


def make(config):
    torch.manual_seed(config.seed)
    return build_model(config, WordTokenizer())

"""The model: shapes, independence of an utterance from its batch, gradients, loss terms, and that it learns."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from toolkit.config import DecoderConfig, EncoderConfig, LossConfig, ModelConfig, ScaledAdamConfig, Schedule, load
from toolkit.data.batch import Batch
from toolkit.models.attention import NUM_FREQUENCIES, RelativeAttention, position_angles
from toolkit.models.conformer import Conformer
from toolkit.models.decoder import StatelessDecoder
from toolkit.models.joiner import Joiner
from toolkit.models.subsampling import Subsampling
from toolkit.models.transducer import TransducerModel
from toolkit.optim import build_optimizer

pytestmark = pytest.mark.usefixtures("one_thread")

ENCODER = EncoderConfig(
    num_layers=2,
    dim=32,
    num_heads=2,
    feedforward_dim=64,
    conv_kernel=7,
    subsampling_channels=[4, 8],
    dropout=0.1,
    layer_dropout=0.0,
)
MODEL = ModelConfig(encoder=ENCODER, decoder=DecoderConfig(dim=32), joiner_dim=32, ctc_head=True)
LOSS = LossConfig(ctc=Schedule(initial=0.2, final=0.2))
VOCAB = 11


def make_model(loss: LossConfig = LOSS, model: ModelConfig = MODEL) -> TransducerModel:
    torch.manual_seed(1)
    return TransducerModel(model, loss, VOCAB)


def make_batch(frames: list[int], tokens: list[int], seed: int = 0, padding: int = 0) -> Batch:
    """Random utterances; each depends on the seed and its place only. `padding`: frames of padding beyond the longest."""
    features = torch.full((len(frames), max(frames) + padding, 80), -15.9)
    tokens_NU = torch.zeros(len(frames), max(tokens), dtype=torch.int64)
    for i, (num_frames, num_tokens) in enumerate(zip(frames, tokens)):
        g = torch.Generator().manual_seed(1000 * seed + i)
        features[i, :num_frames] = -8 + 4 * torch.randn(num_frames, 80, generator=g)
        tokens_NU[i, :num_tokens] = torch.randint(1, VOCAB, (num_tokens,), generator=g)
    return Batch(
        features_NTF=features,
        feature_lens_N=torch.tensor(frames),
        tokens_NU=tokens_NU,
        token_lens_N=torch.tensor(tokens),
        texts=[""] * len(frames),
        ids=[f"utt{i}" for i in range(len(frames))],
        seconds=sum(frames) / 100,
    )


def pick(batch: Batch, rows: list[int], noise: float = 0.0) -> Batch:
    """Utterances `rows` of the batch, cut to the longest of them; `noise` replaces what is in the padding."""
    num_frames, num_tokens = int(batch.feature_lens_N[rows].max()), int(batch.token_lens_N[rows].max())
    features = batch.features_NTF[rows, :num_frames].clone()
    for row, length in zip(features, batch.feature_lens_N[rows]):
        row[length:] += noise
    return dataclasses.replace(
        batch,
        features_NTF=features,
        feature_lens_N=batch.feature_lens_N[rows],
        tokens_NU=batch.tokens_NU[rows, :num_tokens],
        token_lens_N=batch.token_lens_N[rows],
        ids=[batch.ids[r] for r in rows],
    )


# -------------------------------------------------------------------------------------------------------------- encoder


@pytest.mark.parametrize("channels", [[4, 8], [4, 4, 8]])
@pytest.mark.parametrize("num_frames", [7, 8, 10, 11, 50, 103])
def test_lengths_are_those_of_the_output(channels: list[int], num_frames: int) -> None:
    y_NTD, lens_N = Subsampling(80, channels, 16)(torch.randn(2, num_frames, 80), torch.tensor([num_frames, 7]))
    assert y_NTD.shape == (2, int(lens_N[0]), 16)
    assert lens_N.tolist() == [((num_frames - 1) // 2 - 1) // 2, 1]


def test_too_short_features_are_refused() -> None:
    with pytest.raises(ValueError, match="features of 6 frames"):
        Subsampling(80, [4, 8], 16)(torch.randn(1, 6, 80), torch.tensor([6]))
    with pytest.raises(ValueError, match=r"subsampling_channels=\[8\]"):
        Subsampling(80, [8], 16)


@pytest.mark.parametrize("channels", [[4, 8], [4, 4, 8]])
def test_encoder_output_does_not_depend_on_batch_or_padding(channels: list[int]) -> None:
    torch.manual_seed(0)
    encoder = Conformer(dataclasses.replace(ENCODER, subsampling_channels=channels)).eval()
    batch = make_batch([121, 64, 33, 90], [5, 5, 5, 5])
    whole_NTD, lens_N = encoder(batch.features_NTF, batch.feature_lens_N)
    for rows, noise in (([0], 0.0), ([1], 0.0), ([2], 0.0), ([2, 1], 0.0), ([3, 2, 1], 100.0)):
        part = pick(batch, rows, noise)
        y_NTD, part_lens_N = encoder(part.features_NTF, part.feature_lens_N)
        assert part_lens_N.tolist() == lens_N[rows].tolist()
        for i, row in enumerate(rows):
            length = int(lens_N[row])
            torch.testing.assert_close(y_NTD[i, :length], whole_NTD[row, :length], atol=1e-5, rtol=1e-5)


def test_an_utterance_too_short_for_one_frame_does_not_disturb_the_others() -> None:
    encoder = Conformer(ENCODER).eval()
    batch = make_batch([60, 3], [2, 2])
    y_NTD, lens_N = encoder(batch.features_NTF, batch.feature_lens_N)
    assert lens_N.tolist() == [14, 0] and y_NTD.isfinite().all()
    alone_NTD, _ = encoder(*(getattr(pick(batch, [0]), k) for k in ("features_NTF", "feature_lens_N")))
    torch.testing.assert_close(y_NTD[:1], alone_NTD, atol=1e-5, rtol=1e-5)


def test_relative_attention_is_its_formula() -> None:
    torch.manual_seed(0)
    T, H, K, W, lens = 5, 2, 4, NUM_FREQUENCIES, [5, 3]
    attention = RelativeAttention(H * K, H)
    x_NTD = torch.randn(2, T, H * K)
    y_NTD = attention(x_NTD, position_angles(T, x_NTD.device), torch.tensor(lens))
    rates_W = position_angles(2, x_NTD.device)[1]
    for n in range(2):
        q, a, b, k, v = attention.in_proj(x_NTD[n]).view(T, H, -1).split([K, W, W, K, K], dim=2)
        heads = []
        for h in range(H):
            rows = []
            for i in range(lens[n]):
                scores = []
                for j in range(lens[n]):
                    where = a[i, h] @ torch.cos(rates_W * (j - i)) + b[i, h] @ torch.sin(rates_W * (j - i))
                    scores.append(q[i, h] @ k[j, h] / K**0.5 + where / W**0.5)
                rows.append(torch.stack(scores).softmax(0) @ v[: lens[n], h])
            heads.append(torch.stack(rows))
        torch.testing.assert_close(
            y_NTD[n, : lens[n]], attention.out_proj(torch.cat(heads, dim=1)), atol=1e-5, rtol=1e-4
        )


def test_layer_dropout_leaves_layers_out_in_training_only() -> None:
    encoder = Conformer(dataclasses.replace(ENCODER, layer_dropout=1.0, dropout=0.0))
    x_NTF, lens_N = torch.randn(1, 40, 80), torch.tensor([40])
    torch.testing.assert_close(encoder(x_NTF, lens_N)[0], encoder.subsampling(x_NTF, lens_N)[0])
    encoder.eval()
    assert not torch.allclose(encoder(x_NTF, lens_N)[0], encoder.subsampling(x_NTF, lens_N)[0])


# --------------------------------------------------------------------------------------------------- decoder and joiner


@pytest.mark.parametrize("context_size", [1, 2])
def test_decoder_steps_equal_the_whole_sequence(context_size: int) -> None:
    decoder = StatelessDecoder(DecoderConfig(dim=16, context_size=context_size), VOCAB)
    y_NU = torch.randint(0, VOCAB, (3, 6))
    whole_NUD = decoder(y_NU)
    assert whole_NUD.shape == (3, 6, 16)
    padded = torch.cat([torch.zeros(3, context_size - 1, dtype=torch.int64), y_NU], dim=1)
    for u in range(6):
        step_N1D = decoder(padded[:, u : u + context_size], need_pad=False)
        assert step_N1D.shape == (3, 1, 16)
        torch.testing.assert_close(step_N1D[:, 0], whole_NUD[:, u])
    if context_size == 2:
        with pytest.raises(ValueError, match="y_NU has 1 tokens"):
            decoder(y_NU[:, :1], need_pad=False)


def test_joiner_in_one_piece_equals_its_parts() -> None:
    joiner = Joiner(8, 6, 10, VOCAB)
    encoder_out, decoder_out = torch.randn(2, 5, 1, 8), torch.randn(2, 1, 4, 6)
    logits = joiner(encoder_out, decoder_out)
    assert logits.shape == (2, 5, 4, VOCAB)
    parts = joiner(joiner.encoder_proj(encoder_out), joiner.decoder_proj(decoder_out), project_input=False)
    torch.testing.assert_close(logits, parts)


# ----------------------------------------------------------------------------------------------------------- transducer


@pytest.mark.parametrize("rnnt_type", ["regular", "modified", "constrained"])
def test_loss_of_an_utterance_does_not_depend_on_its_batch(rnnt_type: str) -> None:
    model = make_model(dataclasses.replace(LOSS, rnnt_type=rnnt_type)).eval()
    batch = make_batch([121, 64, 90], [9, 12, 4])
    whole = model(batch)
    assert set(whole.terms) == {"simple", "pruned", "ctc"}
    assert whole.frames_N.tolist() == [29, 15, 21]
    for rows in ([0], [1], [2], [2, 1]):
        part = model(pick(batch, rows, noise=50.0))
        for name, loss_N in part.terms.items():
            assert loss_N.dtype == torch.float32 and loss_N.shape == (len(rows),)
            torch.testing.assert_close(loss_N, whole.terms[name][rows], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("rnnt_type", ["regular", "modified", "constrained"])
def test_fused_pruned_loss_equals_the_joiner_as_it_stands(rnnt_type: str) -> None:
    batch = make_batch([60, 83, 71], [5, 8, 3])
    results = []
    for fused in (True, False):
        model = make_model(dataclasses.replace(LOSS, rnnt_type=rnnt_type, fused=fused)).eval()
        pruned_N = model(batch).terms["pruned"]
        pruned_N.sum().backward()
        results.append((pruned_N.detach(), [p.grad for p in model.parameters() if p.grad is not None]))
    (fused_N, fused_grads), (plain_N, plain_grads) = results
    torch.testing.assert_close(fused_N, plain_N)
    torch.testing.assert_close(fused_grads, plain_grads, rtol=1e-4, atol=1e-4)


def test_loss_memory_is_told_and_less_when_fused() -> None:
    batch = make_batch([200, 180], [20, 18])
    fused, plain = (make_model(dataclasses.replace(LOSS, fused=f)).loss_memory(batch) for f in (True, False))
    assert 0 < fused < plain


def test_only_terms_with_a_weight_are_computed() -> None:
    off, batch = Schedule(initial=0.0, final=0.0), make_batch([50], [3])
    for kept in ("simple", "pruned", "ctc"):
        terms = {name: getattr(LOSS, name) if name == kept else off for name in ("simple", "pruned", "ctc")}
        assert set(make_model(dataclasses.replace(LOSS, **terms))(batch).terms) == {kept}


def test_ctc_head_is_asked_for_where_it_is_missing() -> None:
    without = dataclasses.replace(MODEL, ctc_head=False)
    with pytest.raises(ValueError, match="ctc_head=true"):
        make_model(LOSS, without)
    model = make_model(LossConfig(), without)
    with pytest.raises(RuntimeError, match="no CTC head"):
        model.ctc_log_probs(torch.randn(1, 5, 32))


def test_an_utterance_with_more_tokens_than_frames_is_infinite_alone() -> None:
    model = make_model(dataclasses.replace(LOSS, rnnt_type="modified")).eval()
    batch = make_batch([80, 40], [6, 20])  # 40 frames leave 9
    terms, alone = model(batch).terms, model(pick(batch, [0])).terms
    for name in ("simple", "pruned", "ctc"):
        assert torch.isinf(terms[name][1]), name
        torch.testing.assert_close(terms[name][:1], alone[name], atol=1e-4, rtol=1e-5)


def test_gradient_reaches_every_parameter() -> None:
    model = make_model()
    total(model(make_batch([80, 100], [6, 9]))).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_bf16_autocast_gives_nearly_the_same_loss_and_float32_terms() -> None:
    model = make_model().eval()
    batch = make_batch([80, 100], [6, 9])
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch)
        total(output).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    for name, loss_N in output.terms.items():
        assert loss_N.dtype == torch.float32
        torch.testing.assert_close(loss_N, exact.terms[name], rtol=0.03, atol=0.0)


def test_state_dict_round_trip(tmp_path: Path) -> None:
    model, other, batch = make_model().eval(), TransducerModel(MODEL, LOSS, VOCAB).eval(), make_batch([60], [4])
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert not torch.equal(model(batch).terms["pruned"], other(batch).terms["pruned"])
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(model(batch).terms["pruned"], other(batch).terms["pruned"])


@pytest.mark.parametrize("size", ["tiny", "small", "medium", "paper"])
def test_every_size_builds_and_has_as_many_parameters_as_its_file_says(size: str, repo_dir: Path) -> None:
    config = load(repo_dir / "conf", [f"model={size}"])
    with torch.device("meta"):  # shapes only
        model = TransducerModel(config.model, config.loss, vocab_size=500)
    stated = (repo_dir / "conf" / "model" / f"{size}.yaml").read_text().split()[1]
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}" == stated


def test_it_learns_eight_utterances_by_heart() -> None:
    torch.manual_seed(1)
    encoder = dataclasses.replace(ENCODER, dim=48, dropout=0.0, feedforward_dim=96)
    model = TransducerModel(dataclasses.replace(MODEL, encoder=encoder), LOSS, VOCAB)
    batch = make_batch([60, 80, 70, 90, 100, 66, 77, 88], [5, 6, 4, 7, 8, 5, 6, 7])
    optimizer, scheduler = build_optimizer(model, ScaledAdamConfig(lr=0.05, warmup=0.05))
    num_steps, num_tokens = 200, int(batch.token_lens_N.sum())
    for step in range(num_steps):
        scheduler.set_progress(step / num_steps)
        optimizer.zero_grad()
        output = model(batch)
        (total(output) / num_tokens).backward()
        optimizer.step()
    model.eval()
    assert float(model(batch).terms["pruned"].sum().detach()) / num_tokens < 0.1


def total(output) -> Tensor:  # type: ignore[no-untyped-def]
    return torch.stack([loss_N.sum() for loss_N in output.terms.values()]).sum()

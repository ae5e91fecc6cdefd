"""The CTC and LF-MMI losses of the model: brute force over all labellings, per-utterance behaviour, heads by config."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from test_models import MODEL, VOCAB, make_batch, pick
from torch import Tensor

from toolkit.config import LfMmiConfig, LossConfig, ModelConfig, Schedule
from toolkit.models.lf_mmi import LfMmi, TokenNgram
from toolkit.models.transducer import TransducerModel

OFF, ON = Schedule(initial=0.0, final=0.0), Schedule()
CTC_ALONE = LossConfig(simple=OFF, pruned=OFF, ctc=ON)
HEAD_ALONE = dataclasses.replace(MODEL, transducer=False)


def random_ngram(states: int, vocab: int, seed: int, start: int = 0) -> TokenNgram:
    """Normalised: tokens 1 … vocab - 1 and the end share the mass of each state."""
    g = torch.Generator().manual_seed(seed)
    log_probs_SV = torch.randn(states, vocab, generator=g).log_softmax(1)
    final_S = log_probs_SV[:, 0].clone()
    log_probs_SV[:, 0] = -torch.inf
    return TokenNgram(log_probs_SV, torch.randint(0, states, (states, vocab), generator=g), final_S, start)


def log_prior(ngram: TokenNgram, tokens: tuple[int, ...]) -> float:
    state, total = ngram.start, 0.0
    for token in tokens:
        total += float(ngram.log_probs_SV[state, token])
        state = int(ngram.next_SV[state, token])
    return total + float(ngram.final_S[state])


def posterior_loss(ngram: TokenNgram, log_probs_TV: Tensor, tokens: list[int], den_scale: float) -> float:
    """The definition, by going through all labellings."""
    num, den = [], []
    for path in itertools.product(range(log_probs_TV.shape[1]), repeat=len(log_probs_TV)):
        said = tuple(c for c, _ in itertools.groupby(path) if c)
        score = sum(float(log_probs_TV[t, c]) for t, c in enumerate(path)) + log_prior(ngram, said)
        den.append(score)
        if list(said) == tokens:
            num.append(score)
    return -(float(torch.tensor(num).logsumexp(0)) - den_scale * float(torch.tensor(den).logsumexp(0)))


@pytest.mark.parametrize("den_scale", [1.0, 0.7])
@pytest.mark.parametrize("start", [0, 2])
def test_lf_mmi_is_its_definition(start: int, den_scale: float) -> None:
    ngram = random_ngram(3, 4, seed=start, start=start)
    log_probs_NTV = (torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(5)) * 2).log_softmax(2)
    tokens, lens = [[1, 2], [3], []], [4, 3, 2]
    tokens_NU = torch.tensor([t + [0] * (2 - len(t)) for t in tokens])
    lens_N, token_lens_N = torch.tensor(lens), torch.tensor([2, 1, 0])
    ctc_N = F.ctc_loss(log_probs_NTV.transpose(0, 1), tokens_NU, lens_N, token_lens_N, reduction="none")
    loss_N = LfMmi(ngram, LfMmiConfig(den_beam=100.0, den_scale=den_scale))(
        ctc_N, log_probs_NTV, lens_N, tokens_NU, token_lens_N
    )
    for i, found in enumerate(loss_N.tolist()):
        expected = posterior_loss(ngram, log_probs_NTV[i, : lens[i]], tokens[i], den_scale)
        assert found == pytest.approx(expected, abs=1e-4)
    assert den_scale < 1 or bool((loss_N > 0).all())


def test_lf_mmi_gradient_is_that_of_finite_differences() -> None:
    mmi = LfMmi(random_ngram(2, 3, seed=1), LfMmiConfig(den_beam=100.0))
    tokens_NU, lens_N, token_lens_N = torch.tensor([[1, 2]]), torch.tensor([4]), torch.tensor([2])

    def loss(log_probs_NTV: Tensor) -> Tensor:
        ctc_N = F.ctc_loss(log_probs_NTV.transpose(0, 1), tokens_NU, lens_N, token_lens_N, reduction="none")
        return mmi(ctc_N, log_probs_NTV, lens_N, tokens_NU, token_lens_N).sum()

    # On log-probabilities: torch's CTC gives the gradient before the softmax, as if its input were normalised.
    logits_NTV = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(2), requires_grad=True)
    loss(logits_NTV.log_softmax(2)).backward()
    assert logits_NTV.grad is not None
    eps = 1e-2
    for t, c in itertools.product(range(4), range(3)):
        step = torch.zeros_like(logits_NTV)
        step[0, t, c] = eps
        with torch.no_grad():
            slope = (loss((logits_NTV + step).log_softmax(2)) - loss((logits_NTV - step).log_softmax(2))) / (2 * eps)
        assert float(logits_NTV.grad[0, t, c]) == pytest.approx(float(slope), abs=2e-3)


def test_the_ngram_of_transcripts_gives_every_token_a_chance() -> None:
    ngram = TokenNgram.train([[1, 2, 3], [1, 3, 2, 2], [2, 3]] * 5, vocab_size=6, order=2)
    mass_S = torch.cat([ngram.log_probs_SV, ngram.final_S[:, None]], dim=1).exp().sum(1)
    assert bool((mass_S <= 1 + 1e-5).all() and (mass_S > 0.9).all())  # <unk> keeps the rest
    assert bool((ngram.log_probs_SV[:, 0] == -torch.inf).all())
    seen, unseen = ngram.log_prob(torch.tensor([[1, 2, 3], [5, 4, 5]]), torch.tensor([3, 3])).tolist()
    assert -torch.inf < unseen < seen < 0
    fsa = ngram.to_fsa()
    assert fsa.shape[0] == len(ngram.final_S) + 1


def mmi_model() -> TransducerModel:
    torch.manual_seed(1)
    model = TransducerModel(HEAD_ALONE, dataclasses.replace(CTC_ALONE, mmi=ON), VOCAB)
    model.lf_mmi = LfMmi(random_ngram(4, VOCAB, seed=0), LfMmiConfig())
    return model


def test_a_model_of_a_head_alone_has_no_decoder_and_no_joiner() -> None:
    torch.manual_seed(1)
    model = TransducerModel(HEAD_ALONE, CTC_ALONE, VOCAB)
    assert model.decoder is None and model.joiner is None
    assert not any(name.startswith(("decoder", "joiner", "simple")) for name in model.state_dict())
    assert set(model(make_batch([60, 80], [4, 5])).terms) == {"ctc"}
    with pytest.raises(ValueError, match=r"loss\.simple has a weight: expected model\.transducer=true"):
        TransducerModel(HEAD_ALONE, LossConfig(), VOCAB)
    with pytest.raises(ValueError, match=r"model\.transducer"):
        ModelConfig(transducer=False, ctc_head=False)


def test_mmi_trains_beside_other_terms_and_stays_out_of_checkpoints() -> None:
    model = mmi_model()
    output = model(make_batch([60, 80], [4, 5]))
    assert set(output.terms) == {"ctc", "mmi"}
    assert all(x.dtype == torch.float32 and x.shape == (2,) for x in output.terms.values())
    output.terms["mmi"].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert not any("mmi" in name for name in model.state_dict())
    model.lf_mmi = None
    with pytest.raises(RuntimeError, match="lf_mmi"):
        model(make_batch([60], [4]))
    both = TransducerModel(MODEL, LossConfig(ctc=ON, mmi=ON), VOCAB)
    both.lf_mmi = LfMmi(random_ngram(4, VOCAB, seed=0), LfMmiConfig())
    assert set(both(make_batch([60], [4])).terms) == {"simple", "pruned", "ctc", "mmi"}


def test_an_utterance_without_an_alignment_is_infinite_alone() -> None:
    model = mmi_model().eval()
    batch = make_batch([80, 40, 4], [6, 20, 2])  # 40 frames leave 9, 4 leave none
    terms, alone = model(batch).terms, model(pick(batch, [0])).terms
    for name in ("ctc", "mmi"):
        assert terms[name][1:].isinf().all()
        torch.testing.assert_close(terms[name][:1], alone[name], atol=1e-3, rtol=1e-4)


def test_a_nan_stays_in_its_utterance() -> None:
    mmi = LfMmi(random_ngram(2, 4, seed=0), LfMmiConfig())
    log_probs_NTV = torch.randn(2, 5, 4).log_softmax(2)
    log_probs_NTV[1, 2] = torch.nan
    tokens_NU, lens_N, token_lens_N = torch.tensor([[1, 2], [1, 2]]), torch.tensor([5, 5]), torch.tensor([2, 2])
    ctc_N = F.ctc_loss(log_probs_NTV.transpose(0, 1), tokens_NU, lens_N, token_lens_N, reduction="none")
    loss_N = mmi(ctc_N, log_probs_NTV, lens_N, tokens_NU, token_lens_N)
    assert loss_N[0].isfinite() and not loss_N[1].isfinite()

"""The acoustic model: an encoder with a transducer (decoder and joiner), a CTC head, or both, and the terms of its
training loss for a batch.

Shapes: N utterances, T encoder frames, U tokens, D encoder and E decoder dimension, J joiner dimension, V vocabulary with
blank, S = prune_range positions of the transcript looked at in each frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ops
from toolkit.config import LOSS_TERMS, LossConfig, ModelConfig
from toolkit.data.batch import Batch
from toolkit.models.conformer import Conformer
from toolkit.models.decoder import StatelessDecoder
from toolkit.models.joiner import Joiner
from toolkit.models.lf_mmi import LfMmi
from toolkit.models.linear import scaled_linear


@dataclass(frozen=True)
class TransducerOutput:
    """terms: loss of each utterance (N,), float32 and unweighted, by name: negative log-likelihoods "simple", "pruned" and
    "ctc", and "mmi", minus the log-posterior of the transcript among all that the token n-gram knows.

    An utterance that cannot be aligned (fewer frames than tokens, say) has inf in its own entry and nowhere else.
    frames_N: encoder frames, int64.
    """

    terms: dict[str, Tensor]
    frames_N: Tensor


class TransducerModel(nn.Module):
    """Pruned transducer (Kuang et al. 2022, arXiv 2206.13236) with an optional CTC head on the encoder, or the head alone.

    What is not there (`model.transducer`, `model.ctc_head`) is None. The CTC head trains by CTC, by LF-MMI, or by both.

    The full joiner at every (frame, position) is too large to compute. A trivial one, am[t] + lm[u], without a hidden layer,
    has a loss that needs no such tensor; its gradient says which few positions matter in each frame, and the real joiner is
    evaluated only there. Both losses are trained.
    """

    def __init__(
        self, model: ModelConfig, loss: LossConfig, vocab_size: int, num_features: int = 80, blank_id: int = 0
    ) -> None:
        super().__init__()
        if not 0 <= blank_id < vocab_size:
            raise ValueError(f"blank_id={blank_id}: expected a token id below vocab_size={vocab_size}")
        self.vocab_size, self.blank_id, self.loss = vocab_size, blank_id, loss
        self.encoder = Conformer(model.encoder, num_features)
        for part in ("transducer", "ctc_head"):
            used = [term for term in LOSS_TERMS[part] if getattr(loss, term).used]
            if used and not getattr(model, part):
                raise ValueError(f"loss.{used[0]} has a weight: expected model.{part}=true")
        if model.transducer:
            self.decoder = StatelessDecoder(model.decoder, vocab_size, blank_id)
            self.joiner = Joiner(model.encoder.dim, model.decoder.dim, model.joiner_dim, vocab_size)
            self.simple_am_proj = scaled_linear(model.encoder.dim, vocab_size, scale=0.25)
            self.simple_lm_proj = scaled_linear(model.decoder.dim, vocab_size, scale=0.25)
        else:
            self.decoder = self.joiner = None  # type: ignore[assignment]
        self.ctc_head = scaled_linear(model.encoder.dim, vocab_size) if model.ctc_head else None
        self.lf_mmi: LfMmi | None = None  # set before training with an mmi term; decoding needs none

    @property
    def subsampling_factor(self) -> int:
        return self.encoder.subsampling_factor

    def encode(self, features_NTF: Tensor, feature_lens_N: Tensor) -> tuple[Tensor, Tensor]:
        """Filterbanks and their lengths → encoder output (N, T, D) and its lengths."""
        return self.encoder(features_NTF, feature_lens_N)

    def ctc_log_probs(self, encoder_out_NTD: Tensor) -> Tensor:
        """(N, T, V) log-probabilities of the CTC head, float32."""
        if self.ctc_head is None:
            raise RuntimeError("this model has no CTC head (model.ctc_head=false)")
        return self.ctc_head(encoder_out_NTD).float().log_softmax(dim=2)

    def forward(self, batch: Batch) -> TransducerOutput:
        """The loss terms of a batch: those whose weight is not 0 throughout the run."""
        encoder_out_NTD, lens_N = self.encode(batch.features_NTF, batch.feature_lens_N)
        terms: dict[str, Tensor] = {}
        if self.loss.simple.used or self.loss.pruned.used:
            simple_N, pruned_N = self.transducer_losses(encoder_out_NTD, lens_N, batch.tokens_NU, batch.token_lens_N)
            if self.loss.simple.used:
                terms["simple"] = simple_N
            if pruned_N is not None:
                terms["pruned"] = pruned_N
        if self.loss.ctc.used or self.loss.mmi.used:
            log_probs_NTV = self.ctc_log_probs(encoder_out_NTD)
            ctc_N = self.ctc_loss(log_probs_NTV, lens_N, batch.tokens_NU, batch.token_lens_N)
            if self.loss.ctc.used:
                terms["ctc"] = ctc_N
            if self.loss.mmi.used:
                if self.lf_mmi is None:
                    raise RuntimeError("loss.mmi has a weight: expected model.lf_mmi to be set before training")
                terms["mmi"] = self.lf_mmi(ctc_N, log_probs_NTV, lens_N, batch.tokens_NU, batch.token_lens_N)
        return TransducerOutput(terms, lens_N)

    def transducer_losses(
        self, encoder_out_NTD: Tensor, lens_N: Tensor, tokens_NU: Tensor, token_lens_N: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """(simple loss, pruned loss or None where it has no weight), each (N,)."""
        blank, rnnt_type = self.blank_id, self.loss.rnnt_type
        start_N = torch.zeros_like(lens_N)
        boundary_N4 = torch.stack([start_N, start_N, token_lens_N, lens_N], dim=1)
        decoder_out_NUE = self.decoder(F.pad(tokens_NU, (1, 0), value=blank))
        lm_NUV, am_NTV = self.simple_lm_proj(decoder_out_NUE), self.simple_am_proj(encoder_out_NTD)
        with torch.autocast(am_NTV.device.type, enabled=False):  # recursions over hundreds of frames need float32
            simple_N, gradients = ops.rnnt_loss_smoothed(
                lm=lm_NUV.float(),
                am=am_NTV.float(),
                symbols=tokens_NU,
                termination_symbol=blank,
                lm_only_scale=self.loss.lm_only_scale,
                am_only_scale=self.loss.am_only_scale,
                boundary=boundary_N4,
                rnnt_type=rnnt_type,
                delay_penalty=self.loss.delay_penalty,
                reduction="none",
                return_grad=True,
            )
        if not self.loss.pruned.used:
            return simple_N, None
        ranges_NTS = ops.get_rnnt_prune_ranges(gradients[0], gradients[1], boundary_N4, self.loss.prune_range)
        am_NTJ, lm_NUJ = self.joiner.encoder_proj(encoder_out_NTD), self.joiner.decoder_proj(decoder_out_NUE)
        lattice: dict[str, Any] = {
            "symbols": tokens_NU,
            "ranges": ranges_NTS,
            "termination_symbol": blank,
            "boundary": boundary_N4,
            "rnnt_type": rnnt_type,
            "delay_penalty": self.loss.delay_penalty,
            "reduction": "none",
        }
        if self.loss.fused:
            output = self.joiner.output
            return simple_N, ops.rnnt_loss_pruned_fused(
                am_NTJ, lm_NUJ, joiner_weight=output.weight, joiner_bias=output.bias, **lattice
            )
        logits_NTSV = self.joiner(*ops.do_rnnt_pruning(am_NTJ, lm_NUJ, ranges_NTS), project_input=False)
        with torch.autocast(am_NTV.device.type, enabled=False):
            pruned_N = ops.rnnt_loss_pruned(logits_NTSV.float(), **lattice)
        return simple_N, pruned_N

    def loss_memory(self, batch: Batch) -> int:
        """Bytes that the pruned loss of `batch` will take, forward and backward, besides encoder and decoder."""
        if not self.loss.pruned.used:
            return 0
        frames = int(self.encoder.subsampling.output_lens(batch.feature_lens_N).max())
        return ops.rnnt_loss_memory(
            len(batch),
            frames,
            batch.tokens_NU.shape[1],
            self.vocab_size,
            self.joiner.output.in_features,
            s_range=self.loss.prune_range,
            fused=self.loss.fused,
            is_cpu=batch.features_NTF.device.type == "cpu",
        )

    def ctc_loss(self, log_probs_NTV: Tensor, lens_N: Tensor, tokens_NU: Tensor, token_lens_N: Tensor) -> Tensor:
        """The CTC head's negative log-likelihood (N,); inf where the frames cannot hold the tokens."""
        if log_probs_NTV.device.type == "cpu" and self.blank_id == 0 and ops.build.load() != "reference":
            # Seven to ten times as fast as torch's; CUDA has no kernel of it.
            inside_NU = torch.arange(tokens_NU.shape[1]) < token_lens_N[:, None]
            splits = F.pad(token_lens_N.cumsum(0), (1, 0)).int()
            tokens = ops.RaggedTensor(ops.RaggedShape(splits=[splits]), tokens_NU[inside_NU].int())
            segments_N3 = torch.stack([torch.arange(len(lens_N)), torch.zeros_like(lens_N), lens_N], dim=1)
            dense = ops.DenseFsaVec(log_probs_NTV, segments_N3.int())
            return ops.ctc_loss(ops.ctc_graph(tokens), dense, reduction="none", use_double_scores=False)
        log_probs_TNV = log_probs_NTV.transpose(0, 1)
        return F.ctc_loss(log_probs_TNV, tokens_NU, lens_N, token_lens_N, self.blank_id, reduction="none")

"""Forced alignment of a transducer: the best path of a transcript through the lattice that its loss sums over.

Legend: N utterances, T encoder frames, D encoder dim, U tokens, V vocabulary with blank; u counts tokens emitted, 0 … U.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.align.result import Alignment
from toolkit.search.predictor import check_encoder_out

JOINER_FLOATS = 1 << 24  # joiner outputs that are held at a time


@torch.inference_mode()
def align_transducer(
    model: Any, encoder_out_NTD: Tensor, lens_N: Tensor, tokens_NU: Tensor, token_lens_N: Tensor,
    rnnt_type: str = "regular",
) -> list[Alignment | None]:  # fmt: skip
    """The most probable alignment of each transcript; None where there is none (no frames; more tokens than frames where
    a frame holds one at most, that is unless rnnt_type is "regular").

    model: has `decoder`, `joiner` and `blank_id`. rnnt_type: the lattice, see ops/rnnt_loss.py; take what the model was
    trained with. The recursion runs in float64:

        regular      a[t, u] = max(a[t-1, u] + blank[t-1, u],  a[t, u-1] + symbol[t, u-1])
        modified     a[t, u] = max(a[t-1, u] + blank[t-1, u],  a[t-1, u-1] + symbol[t-1, u-1])
        constrained  as modified, the symbol's term with blank[t-1, u] added

    Score of the path: a[T, U]. Raises ValueError on shapes that do not fit or an unknown rnnt_type.
    """
    if rnnt_type not in ("regular", "modified", "constrained"):
        raise ValueError(f"rnnt_type={rnnt_type!r}: expected regular, modified or constrained")
    check_encoder_out(encoder_out_NTD, lens_N)
    n = len(lens_N)
    if tokens_NU.shape[:1] != (n,) or token_lens_N.shape != (n,):
        raise ValueError(
            f"tokens_NU {tuple(tokens_NU.shape)} and token_lens_N {tuple(token_lens_N.shape)}: expected a row an utterance"
        )
    if n == 0 or encoder_out_NTD.shape[1] == 0:
        return [None] * n
    symbol_NTU, blank_NTU1 = _log_probs(model, encoder_out_NTD, tokens_NU)
    before_NTU1, score_N = _viterbi(symbol_NTU, blank_NTU1, lens_N.cpu(), token_lens_N.cpu(), rnnt_type)
    results: list[Alignment | None] = []
    for i, (num_frames, num_tokens) in enumerate(zip(lens_N.tolist(), token_lens_N.tolist())):
        if num_frames == 0 or score_N[i] == -torch.inf:
            results.append(None)
            continue
        frames, states, u = [0] * num_tokens, [0] * num_frames, num_tokens
        for t in reversed(range(num_frames)):
            first = int(before_NTU1[i, t, u])  # tokens first … u - 1 were emitted in frame t
            states[t] = u
            frames[first:u] = [t] * (u - first)
            u = first
        log_probs = symbol_NTU[i, frames, range(num_tokens)].tolist() if num_tokens else []
        tokens = tokens_NU[i, :num_tokens].tolist()
        results.append(Alignment(tokens, frames, [t + 1 for t in frames], log_probs, float(score_N[i]), states))
    return results


def _log_probs(model: Any, encoder_out_NTD: Tensor, tokens_NU: Tensor) -> tuple[Tensor, Tensor]:
    """log P(token u | t, u) (N, T, U) and log P(blank | t, u) (N, T, U + 1), float64 on the CPU, a few frames at a time."""
    n, t, _ = encoder_out_NTD.shape
    encoder_NTJ = model.joiner.encoder_proj(encoder_out_NTD)
    decoder_NUJ = model.joiner.decoder_proj(model.decoder(F.pad(tokens_NU, (1, 0), value=model.blank_id)))
    u1 = decoder_NUJ.shape[1]
    index_NU1 = F.pad(tokens_NU, (0, 1), value=model.blank_id)[:, None, :, None]
    vocab_size = model.vocab_size
    frames = max(1, JOINER_FLOATS // max(1, n * u1 * vocab_size))
    symbols, blanks = [], []
    for start in range(0, t, frames):
        chunk_NTJ = encoder_NTJ[:, start : start + frames]
        logits = model.joiner(chunk_NTJ[:, :, None], decoder_NUJ[:, None], project_input=False)
        log_probs = logits.float().log_softmax(dim=3)
        symbols.append(log_probs.gather(3, index_NU1.expand(-1, chunk_NTJ.shape[1], -1, -1))[:, :, :-1, 0].cpu())
        blanks.append(log_probs[..., model.blank_id].cpu())
    return torch.cat(symbols, dim=1).double(), torch.cat(blanks, dim=1).double()


def _viterbi(
    symbol_NTU: Tensor, blank_NTU1: Tensor, lens_N: Tensor, token_lens_N: Tensor, rnnt_type: str
) -> tuple[Tensor, Tensor]:
    """(for each frame and u at its end, the u at its beginning on the best path, int32; score of the best path (N,))."""
    n, t, u1 = blank_NTU1.shape
    a_NU1 = torch.full((n, u1), -torch.inf, dtype=torch.float64)
    a_NU1[:, 0] = 0.0
    before_NTU1 = torch.zeros(n, t, u1, dtype=torch.int32)
    score_N = torch.full((n,), -torch.inf, dtype=torch.float64)
    places_U1 = torch.arange(u1, dtype=torch.int32)
    for frame in range(t):
        symbol_NU, blank_NU1 = symbol_NTU[:, frame], blank_NTU1[:, frame]
        if rnnt_type == "regular":
            # All runs of symbols in this frame at once: max over k <= u of a[k] + symbol[k] + … + symbol[u - 1].
            sums_NU1 = F.pad(symbol_NU.cumsum(1), (1, 0))
            best_NU1, before_NU1 = (a_NU1 - sums_NU1).cummax(1)
            before_NTU1[:, frame] = before_NU1.int()
            a_NU1 = best_NU1 + sums_NU1 + blank_NU1
        else:
            emit_NU = a_NU1[:, :-1] + symbol_NU
            if rnnt_type == "constrained":
                emit_NU = emit_NU + blank_NU1[:, 1:]
            emit_NU1 = F.pad(emit_NU, (1, 0), value=-torch.inf)
            stay_NU1 = a_NU1 + blank_NU1
            before_NTU1[:, frame] = places_U1 - (emit_NU1 > stay_NU1).int()
            a_NU1 = torch.maximum(emit_NU1, stay_NU1)
        ends_N = lens_N == frame + 1
        score_N = torch.where(ends_N, a_NU1.gather(1, token_lens_N[:, None])[:, 0], score_N)
    return before_NTU1, score_N

"""Forced alignment of a CTC head: the best frame labelling that CTC's rule reads as the transcript.

Legend: N utterances, T encoder frames, D encoder dim, U tokens.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

import ops
from toolkit.align.result import Alignment
from toolkit.search.predictor import check_encoder_out


@torch.inference_mode()
def align_ctc(
    model: Any, encoder_out_NTD: Tensor, lens_N: Tensor, tokens_NU: Tensor, token_lens_N: Tensor
) -> list[Alignment | None]:
    """The most probable alignment of each transcript; None where there is none (no frames, or fewer than the tokens and
    the blanks between equal ones need).

    model: has `ctc_log_probs(encoder_out_NTD) -> (N, T, V)` and `blank_id`.
    """
    check_encoder_out(encoder_out_NTD, lens_N)
    if encoder_out_NTD.shape[1] == 0:
        return [None] * len(lens_N)
    log_probs_NTV = model.ctc_log_probs(encoder_out_NTD).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the caller names the utterances, not their numbers
        labels_NT, scores_NT = ops.forced_align(log_probs_NTV, tokens_NU, lens_N, token_lens_N, model.blank_id)
    results: list[Alignment | None] = []
    for i, (num_frames, num_tokens) in enumerate(zip(lens_N.tolist(), token_lens_N.tolist())):
        labels_T, scores_T = labels_NT[i, :num_frames].tolist(), scores_NT[i, :num_frames].tolist()
        if num_frames == 0 or labels_T[0] < 0:
            results.append(None)
            continue
        results.append(_alignment(labels_T, scores_T, tokens_NU[i, :num_tokens].tolist(), model.blank_id))
    return results


def _alignment(labels_T: list[int], scores_T: list[float], tokens: list[int], blank: int) -> Alignment:
    starts: list[int] = []
    ends: list[int] = []
    peaks: list[float] = []
    states: list[int] = []
    previous = blank
    for t, (label, score) in enumerate(zip(labels_T, scores_T)):
        if label != blank and label == previous:
            ends[-1], peaks[-1] = t + 1, max(peaks[-1], score)
        elif label != blank:
            starts.append(t)
            ends.append(t + 1)
            peaks.append(score)
        states.append(2 * len(starts) - (label != blank))
        previous = label
    return Alignment(tokens, starts, ends, peaks, sum(scores_T), states)

"""The transducer recursion: the log of a sum over all paths through an (S, T) lattice, and each arc's share of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from ops import build


@overload
def mutual_information_recursion(
    px: Tensor, py: Tensor, boundary: Tensor | None = None, return_grad: Literal[False] = False
) -> Tensor: ...
@overload
def mutual_information_recursion(
    px: Tensor, py: Tensor, boundary: Tensor | None = None, *, return_grad: Literal[True]
) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...
def mutual_information_recursion(
    px: Tensor, py: Tensor, boundary: Tensor | None = None, return_grad: bool = False
) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
    """Total log-probability of all paths from the corner (0, 0) to (S, T) of each utterance's lattice.

    With p[0, 0] = 0 the recursion is, for px of shape (N, S, T + 1) ("regular": a symbol takes no frame)::

        p[s, t] = log_add(p[s-1, t] + px[s-1, t],  p[s, t-1] + py[s, t-1])

    and for px of shape (N, S, T) ("modified": a symbol takes a frame)::

        p[s, t] = log_add(p[s-1, t-1] + px[s-1, t-1],  p[s, t-1] + py[s, t-1])

    Args:
      px: log-probability of going from s to s + 1 at t. Any strides.
      py: (N, S + 1, T), log-probability of going from t to t + 1 at s. Same dtype.
      boundary: int64 (N, 4), rows [s_begin, t_begin, s_end, t_end] with 0 <= s_begin <= s_end <= S and
        0 <= t_begin <= t_end <= T: the utterance's part of the lattice; None: all of it.
      return_grad: also return (px_grad, py_grad), shaped like px and py: the occupation of each arc, i.e. the
        probability that a path drawn from the lattice uses it, which is the gradient of the sum of the scores. They are
        constants to autograd.

    Returns:
      The scores p[s_end, t_end] of shape (N,), or (scores, (px_grad, py_grad)).

    float32 and float64 on CPU and CUDA; half precision is computed, and returned, in float32. An utterance without any
    path (e.g. modified with T < S) has score -inf and zero gradients; nan stays in its utterance. S = 0 and T = 0 are
    allowed: the empty path scores 0. Differentiable once.

    Raises ValueError for shapes, dtypes or a boundary that do not fit (values of a boundary on the GPU are not checked,
    to spare a synchronisation: there a bad row gives score nan).

    Source: Kuang et al., "Pruned RNN-T for fast, memory-efficient ASR training", arXiv 2206.13236; k2 has it under
    this name.
    """
    check_lattice(px, py)
    boundary = check_boundary(boundary, px.shape[0], px.shape[1], py.shape[2], px.device)
    if px.dtype in (torch.float16, torch.bfloat16):
        px, py = px.float(), py.float()
    want_grad = return_grad or (torch.is_grad_enabled() and (px.requires_grad or py.requires_grad))
    build.load()
    scores, px_grad, py_grad = torch.ops.lattica.mutual_information(px, py, boundary, want_grad)
    return (scores, (px_grad, py_grad)) if return_grad else scores


def joint_mutual_information_recursion(
    px: Sequence[Tensor], py: Sequence[Tensor], boundary: Tensor | None = None
) -> Tensor:
    """The recursion over the sums of several terms, with the total broken down by term.

    Args:
      px: K tensors as in `mutual_information_recursion`; the recursion runs on their sum.
      py: K tensors likewise.
      boundary: as there.

    Returns:
      (K, N), whose sum over the first dimension is the total score. Row k is the expectation of term k over the paths
      of the lattice, Σ occupation · term; row 0 also holds what is left over, the entropy of the paths, so put the main
      term first. The gradient treats occupations as constants, which makes it the gradient of the total score.
    """
    if len(px) == 0 or len(px) != len(py):
        raise ValueError(f"px and py must hold as many tensors, at least one; got {len(px)} and {len(py)}")
    px_KNST, py_KNST = torch.stack(list(px)), torch.stack(list(py))
    with torch.no_grad():
        total_N, (px_grad, py_grad) = mutual_information_recursion(
            px_KNST.sum(0), py_KNST.sum(0), boundary, return_grad=True
        )

    def expectation(terms_KNST: Tensor, occupation_NST: Tensor) -> Tensor:
        # An arc that no path takes has occupation 0 and perhaps term -inf: it contributes nothing, not nan.
        terms_KNST = torch.where(occupation_NST > 0, terms_KNST, 0.0)
        return (terms_KNST * occupation_NST).sum(dim=(2, 3))

    parts_KN = expectation(px_KNST, px_grad) + expectation(py_KNST, py_grad)
    rest_N = total_N - parts_KN.detach().sum(0)
    return torch.cat([parts_KN[:1] + rest_N, parts_KN[1:]])


def check_lattice(px: Tensor, py: Tensor, names: tuple[str, str] = ("px", "py")) -> None:
    """ValueError unless px is (N, S, T + 1) or (N, S, T) and py (N, S + 1, T), of one floating dtype and device."""
    fits = px.ndim == 3 and py.ndim == 3 and py.shape[:2] == (px.shape[0], px.shape[1] + 1)
    if not fits or px.shape[2] - py.shape[2] not in (0, 1):
        raise ValueError(
            f"{names[0]} must be (N, S, T + 1) or (N, S, T) and {names[1]} (N, S + 1, T); "
            f"got {tuple(px.shape)} and {tuple(py.shape)}"
        )
    if px.dtype != py.dtype or not px.is_floating_point() or px.device != py.device:
        raise ValueError(
            f"{names[0]} and {names[1]} must have one floating dtype and one device; "
            f"got {px.dtype} on {px.device} and {py.dtype} on {py.device}"
        )


def check_boundary(boundary: Tensor | None, N: int, S: int, T: int, device: torch.device) -> Tensor | None:
    """`boundary` as the ops want it, on `device`; ValueError if its shape or, on the CPU, its values do not fit."""
    if boundary is None:
        return None
    if boundary.shape != (N, 4) or boundary.dtype != torch.int64:
        raise ValueError(
            f"boundary must be int64 of shape ({N}, 4), got {boundary.dtype} of shape {tuple(boundary.shape)}"
        )
    if boundary.is_cpu and not torch.compiler.is_compiling():
        begin, end = boundary[:, :2], boundary[:, 2:]
        ok = (begin >= 0) & (begin <= end) & (end <= torch.tensor([S, T]))
        if not bool(ok.all()):
            n = int((~ok.all(1)).nonzero()[0])
            raise ValueError(
                f"boundary[{n}] = {boundary[n].tolist()} must be [s_begin, t_begin, s_end, t_end] with "
                f"0 <= s_begin <= s_end <= S = {S} and 0 <= t_begin <= t_end <= T = {T}"
            )
    return boundary.to(device).contiguous()


@build.when_loaded
def _register() -> None:
    @torch.library.register_fake("lattica::mutual_information")
    def fake(px: Tensor, py: Tensor, boundary: Tensor | None, want_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
        if not want_grad:
            return px.new_empty(px.shape[0]), px.new_empty(0), py.new_empty(0)
        return px.new_empty(px.shape[0]), px.new_empty(px.shape), py.new_empty(py.shape)

    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        _, px_grad, py_grad = output
        ctx.mark_non_differentiable(px_grad, py_grad)
        ctx.save_for_backward(px_grad, py_grad)

    def backward(ctx: Any, scores_grad: Tensor, _px: Tensor, _py: Tensor) -> tuple[Tensor, Tensor, None, None]:
        px_grad, py_grad = ctx.saved_tensors
        weight = scores_grad[:, None, None]
        return px_grad * weight, py_grad * weight, None, None

    torch.library.register_autograd("lattica::mutual_information", backward, setup_context=setup_context)

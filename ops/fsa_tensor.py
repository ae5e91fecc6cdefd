"""k2's packed int32 tensors of automata, with the scores as bits of floats: reading and writing them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ops.ragged import RaggedShape
from ops.ragged.shape import check_num_rows, ids_to_splits

if TYPE_CHECKING:
    from ops.fsa import Fsa


def arcs_from_tensor(tensor: Tensor, num_states: int | None = None) -> tuple[RaggedShape, Tensor, Tensor]:
    """(shape, arcs3, scores) from k2's (A, 4) tensor of one FSA, or 1-D tensor of a vector: see to_tensor.

    num_states: of one FSA, if it has states above those that the arcs tell of.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"an Fsa is made of a tensor of arcs, got {type(tensor).__name__}")
    if tensor.dtype != torch.int32 or not (tensor.ndim == 1 or (tensor.ndim == 2 and tensor.shape[1] == 4)):
        raise ValueError(f"arcs must be int32 (A, 4), or 1-D for an FsaVec; got {tensor.dtype} {tuple(tensor.shape)}")
    if tensor.ndim == 2:
        arcs3 = tensor[:, :3].contiguous()
        src, dest, label = arcs3.unbind(1)
        final = dest[label == -1] if bool((label == -1).any()) else arcs3[:, :2].reshape(-1)
        if num_states is None:
            num_states = int(final.max()) + 1 if arcs3.shape[0] else 0
        if arcs3.shape[0] and (int(src.max()) >= num_states or int(dest.max()) >= num_states or int(dest.min()) < 0):
            raise ValueError(
                f"arcs leave states up to {int(src.max())} and enter {int(dest.min())} ... {int(dest.max())}, but the "
                f"final state is {num_states - 1}"
            )
        check_num_rows(num_states, arcs3.shape[0], "states", "arcs")
        shape = RaggedShape(splits=[ids_to_splits(src, num_states)])
        values = tensor
    else:
        num_fsas = int(tensor[0]) if tensor.numel() else -1
        begin = 2 + 2 * (num_fsas + 1)
        if num_fsas < 0 or tensor.numel() < begin or (tensor.numel() - begin) % 4:
            raise ValueError(f"a 1-D tensor of {tensor.numel()} numbers is no FsaVec")
        fsa_splits, arc_splits = tensor[2:begin].reshape(2, -1)
        values = tensor[begin:].reshape(-1, 4)
        arcs3 = values[:, :3].contiguous()
        bounds = [x.tolist() for x in (fsa_splits, arc_splits)]
        for splits, total in ((bounds[0], bounds[0][-1]), (bounds[1], values.shape[0])):
            if splits[0] != 0 or splits[-1] != total or sorted(splits) != splits:
                raise ValueError(f"the offsets in the tensor of an FsaVec are wrong: {splits[:20]}")
        check_num_rows(bounds[0][-1], values.shape[0], "states", "arcs")
        fsa_A = torch.repeat_interleave(torch.arange(num_fsas, device=tensor.device), arc_splits[1:] - arc_splits[:-1])
        state_A = arcs3[:, 0].long() + fsa_splits[fsa_A]
        if bool((state_A >= fsa_splits[fsa_A + 1]).any()) or bool((arcs3[:, 0] < 0).any()):
            raise ValueError("an arc of the FsaVec leaves a state that its FSA does not have")
        if bool((arcs3[:, 1] < 0).any()) or bool((arcs3[:, 1] >= (fsa_splits[1:] - fsa_splits[:-1])[fsa_A]).any()):
            raise ValueError("an arc of the FsaVec enters a state that its FSA does not have")
        shape = RaggedShape(splits=[fsa_splits.contiguous(), ids_to_splits(state_A, bounds[0][-1])])
    return shape, arcs3, values[:, 3].contiguous().view(torch.float32)


def to_tensor(fsa: Fsa) -> Tensor:
    """k2's int32 tensor: (A, 4) for one FSA; for a vector 1-D
    [number of FSAs, 0, where each FSA's states begin, where its arcs begin, then 4 numbers an arc]."""
    values = fsa.arcs.values()
    if not fsa.is_vec():
        return values
    fsa_splits, state_splits = fsa.splits()
    head = torch.tensor([fsa.shape[0], 0], dtype=torch.int32, device=fsa.device)
    return torch.cat([head, fsa_splits, state_splits[fsa_splits.long()], values.reshape(-1)])

"""Arcs made by numpy, in any order, to an Fsa."""

from __future__ import annotations

import numpy as np
import torch

from ops.fsa import Fsa
from ops.ragged import RaggedShape
from ops.ragged.shape import ids_to_splits


def fsa_of_arcs(
    src: np.ndarray, dest: np.ndarray, label: np.ndarray, score: np.ndarray, num_states: int,
    aux: np.ndarray | None = None,
) -> Fsa:  # fmt: skip
    """An Fsa of A arcs given as integer arrays (A,) and scores (A,); the arcs of each state come ordered by label (-1
    last), then destination.
    """
    order = np.lexsort((dest, label.astype(np.uint32), src))
    arcs3 = torch.from_numpy(np.stack([src, dest, label], axis=1)[order].astype(np.int32))
    shape = RaggedShape(splits=[ids_to_splits(arcs3[:, 0], num_states)])
    ans = Fsa.from_arcs(shape, arcs3, torch.from_numpy(score[order].astype(np.float32)))
    if aux is not None:
        ans.aux_labels = torch.from_numpy(aux[order].astype(np.int32))
    return ans

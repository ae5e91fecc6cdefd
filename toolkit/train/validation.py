"""Figures on the validation set: loss terms and word error rate, the same definition in every epoch of every run.

"valid/loss" is the loss that the search follows, without any schedule's weight: the pruned transducer loss, or LF-MMI or
CTC where there is no transducer, in nats per encoder frame. "valid/wer" is of greedy search (CTC greedy search without a
transducer). The best checkpoint is the one of the lowest WER, ties decided by the loss: WER is what decoding is about,
but early on all models have 100 %. (That is for recognizers; what another task measures is in its `Task`.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import kaldialign
import torch

from toolkit.data.batch import Batch
from toolkit.train.distributed import World
from toolkit.train.failures import is_out_of_memory

if TYPE_CHECKING:
    from toolkit.train.task import Task

MAIN_TERMS = ("pruned", "mmi", "ctc", "simple")  # the first one that a model has is "valid/loss"


@torch.no_grad()
def validate(
    model: Any, tokenizer: Any, batches: Iterable[Any], terms: Sequence[str], world: World, task: Task
) -> dict[str, float]:
    """Loss per frame of each term, `valid/loss`, and the task's figure; {} if there is nothing to validate on.

    Utterances without a finite loss are left out of the losses, not of the WER. Processes share the batches.
    """
    was_training = model.training
    model.eval()
    sums = dict.fromkeys([*terms, "frames", *task.counts, "utterances"], 0.0)
    for i, batch in enumerate(batches):
        if i % world.size != world.rank:
            continue
        try:
            figures = validate_batch(model, tokenizer, batch.to(world.device), terms, task)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise RuntimeError(
                f"out of memory on {world.device} in validation, on a batch of {batch.describe()}. "
                f"Lower {task.batch_key}"
            ) from error
        for name, value in figures.items():
            sums[name] += value
    model.train(was_training)
    total = world.sums(sums)
    if not total["utterances"]:
        return {}
    figures = {f"valid/loss_{name}": total[name] / max(total["frames"], 1.0) for name in terms}
    main = next(name for name in (*MAIN_TERMS, *terms) if name in terms)
    loss = figures[f"valid/loss_{main}"] if total["frames"] else float("inf")
    return figures | {"valid/loss": loss, task.figure: task.measure(total, loss)}


def validate_batch(model: Any, tokenizer: Any, batch: Any, terms: Sequence[str], task: Task) -> dict[str, float]:
    """The sums over a batch that `validate` adds up."""
    output = model(batch)
    finite_N = torch.stack([output.terms[name] for name in terms]).isfinite().all(0)
    return {name: output.terms[name][finite_N].double().sum().item() for name in terms} | {
        "frames": float(output.frames_N[finite_N].sum()),
        "utterances": len(batch),
        **task.count(model, tokenizer, batch, terms),
    }


def count_errors(model: Any, tokenizer: Any, batch: Batch, transducer: bool) -> tuple[int, int]:
    """(word errors of greedy search, reference words) of a batch."""
    from toolkit.search import ctc_greedy_search, greedy_search

    search = greedy_search if transducer else ctc_greedy_search
    encoder_out_NTD, lens_N = model.encode(batch.features_NTF, batch.feature_lens_N)
    results = search(model, encoder_out_NTD.float(), lens_N)
    errors = words = 0
    for result, text in zip(results, batch.texts):
        reference = text.split()
        errors += kaldialign.edit_distance(reference, tokenizer.decode(result.best.tokens).split())["total"]
        words += len(reference)
    return errors, words


def is_better(new: dict[str, float], best: dict[str, float], figure: str = "valid/wer") -> bool:
    """The figure is lower, or the same and the loss lower."""
    keys = (figure, "valid/loss")
    return not best or tuple(new[k] for k in keys) < tuple(best[k] for k in keys)

"""Which utterances make which batch: lhotse's dynamic buckets, full batches, equal shares for ranks, resuming."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset import DynamicBucketingSampler
from lhotse.dataset.sampling.base import TimeConstraint
from lhotse.dataset.sampling.dynamic import DurationBatcher

BATCHES_PER_BUCKET = 3  # at least; a bucket that never fills a batch is no help


@dataclass(frozen=True)
class Plan:
    """An iterable of (k, cuts of batch k), from batch `skip` on; what is skipped costs only the reading of manifests.

    The same for the same values. `quadratic_duration` as in DataConfig; `seconds` is the audio in `cuts`, all together.
    """

    cuts: CutSet
    seconds: float
    max_duration: float
    quadratic_duration: float = 0.0
    num_buckets: int = 10
    shuffle: bool = False
    seed: int = 0
    epoch: int = 0
    skip: int = 0
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[tuple[int, CutSet]]:
        num_buckets = min(self.num_buckets, int(self.seconds / (BATCHES_PER_BUCKET * self.max_duration)))
        quadratic = self.quadratic_duration or None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lhotse would rather have lazy manifests and larger buffers
            sampler = DynamicBucketingSampler(
                self.cuts,
                max_duration=self.max_duration,
                quadratic_duration=quadratic,
                num_buckets=num_buckets,
                duration_bins=None if num_buckets > 1 else [1e6],  # one bucket, and an empty one that lhotse wants
                shuffle=self.shuffle,
                world_size=1,  # the ranks are of_rank's matter, after the remainders are gathered
                rank=0,
                seed=self.seed,
            )
            sampler.set_epoch(self.epoch)
            batches = iter(sampler)
        constraint = TimeConstraint(max_duration=self.max_duration, quadratic_duration=quadratic)
        mine = of_rank(without_remainders(batches, constraint), self.rank, self.world_size)
        return itertools.islice(enumerate(mine), self.skip, None)


def without_remainders(batches: Iterable[CutSet], constraint: TimeConstraint) -> Iterator[CutSet]:
    """`batches` with those that are less than half full gathered into full ones at the end.

    Each bucket of the sampler ends with such a remainder; a step on two utterances teaches as little as it weighs much.
    """
    remainders: list[Cut] = []
    for cuts in batches:
        filled = constraint.copy()
        for cut in cuts:
            filled.add(cut)
        if filled.current < 0.5 * filled.max_duration:
            remainders += cuts
        else:
            yield cuts
    remainders.sort(key=lambda cut: cut.duration)
    yield from DurationBatcher(remainders, constraint=constraint)


def of_rank(batches: Iterator[CutSet], rank: int, world_size: int) -> Iterator[CutSet]:
    """Every `world_size`-th batch, equally many for every rank: the utterances of a last round with fewer batches than
    ranks are spread over the ranks, and repeated only if they are fewer than the ranks."""
    while batches_of_round := list(itertools.islice(batches, world_size)):
        if len(batches_of_round) < world_size:
            cuts = [cut for batch in batches_of_round for cut in batch]
            cuts = list(itertools.islice(itertools.cycle(cuts), max(len(cuts), world_size)))
            batches_of_round = [CutSet.from_cuts(cuts[r::world_size]) for r in range(world_size)]
        yield batches_of_round[rank]

"""The order in which a training sees its pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_pt_utils import get_length_grouped_indices


class EpochLengthSampler(Sampler[int]):
    """Groups pairs of like length, in an order that depends on the seed and the epoch alone.

    transformers' sampler draws from the common random state, which is another one after a training is resumed; and it
    goes from long texts to short ones, again and again. Here the batches are its, but their order is drawn, too. The
    first one still holds the longest text, so that a training that needs too much memory fails at once.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        indices = torch.as_tensor(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))
        first, *batches = indices.split(self.batch_size)
        # One that is not full stays the last, or all batches after it would be cut elsewhere.
        full = len(self) // self.batch_size - 1
        drawn = torch.randperm(max(full, 0), generator=generator).tolist()
        order = [first, *(batches[place] for place in drawn), *batches[len(drawn) :]]
        return iter(torch.cat(order).tolist())


class EpochCallback(TrainerCallback):
    """Tells the sampler the epoch; accelerate does not when it skips the batches before a checkpoint."""

    def __init__(self, sampler: EpochLengthSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The epoch as a whole number; resumed in its middle, it is the same one."""
        self.sampler.epoch = int(state.epoch or 0)


__all__ = ["EpochCallback", "EpochLengthSampler"]

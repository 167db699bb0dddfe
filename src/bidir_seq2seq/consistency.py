"""R-Drop (Liang et al. 2021, https://arxiv.org/abs/2106.14448): a model says the same, whatever dropout leaves out.

Each pair is read twice, under two draws of dropout. Beside the cross-entropy of both, the loss has how far the two
distributions over the next word are from each other. On few pairs, which a model would else learn by heart, it keeps
learning; it takes twice as long an update.

Letters: B pairs, R = 2 B rows (all pairs, and all of them again), S source length, T title length, E embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.utils.checkpoint import checkpoint

from .directions_bidir_seq2seq import IGNORE_INDEX
from .output_bidir_seq2seq import Words, Written

# So many places of all rows have probabilities of all words at a time; they are made again for the gradient.
STEPS = 4


@dataclass
class Consistency:
    """The loss of pairs that were read twice: the cross-entropy, and `weight` / 2 times the mean of both divergences.

    That is half the loss of Liang et al. (eq. 4), whose alpha is `weight`: it can stand beside the ordinary loss.

    Attributes:
        weight: 0 leaves the cross-entropy alone.
        smoothing: Of its targets, as for [`Words.loss`].
    """

    weight: float
    smoothing: float = 0.0

    def __call__(
        self,
        words: Words,
        written: Sequence[Written],
        targets: Sequence[torch.LongTensor],
        num_items: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Mean nats per target, averaged over the directions.

        Args:
            words: Of the documents, which are there twice.
            written: By each direction, of R rows.
            targets: Of each direction, `[R, T]`, -100 where there is none.
            num_items: Targets of one direction, of pairs counted once, to average over. Default: those that are there.
        """
        if num_items is None:
            num_items = (targets[0] != IGNORE_INDEX).sum().clamp(min=2) / 2
        loss = words.loss(written, targets, 2 * num_items, self.smoothing)
        total = sum(over_places(divergence, words, own, wanted) for own, wanted in zip(written, targets))
        return loss + self.weight / 4 * total / (num_items * len(targets))


def over_places(
    measure: Callable[..., torch.Tensor], words: Words, written: Written, targets: torch.LongTensor, *others: Any
) -> torch.Tensor:
    """What a measure such as [`divergence`] adds up to over all places of targets `[R, T]`, in little memory.

    Args:
        measure: Called with all that follows and the first of `STEPS` places, for the gradient once more.
        words, written, targets: As for it.
        *others: What else it takes.

    Returns:
        A scalar.
    """
    # Made here, and not while places are looked at one after the other.
    assert words.base is not None
    total = words.base.new_zeros((), dtype=torch.float32)
    for start in range(0, targets.shape[1], STEPS):
        total = total + checkpoint(measure, words, written, targets, *others, start, use_reentrant=False)
    return total


def divergence(words: Words, written: Written, targets: torch.LongTensor, start: int = 0) -> torch.Tensor:
    """KL(p, q) + KL(q, p), added up over the places `start` to `start + STEPS`, of the distributions p and q that the
    first and the second half of the rows have there.

    Args:
        words: Of the documents.
        written: By one direction, of R rows.
        targets: `[R, T]`, -100 where there is none and nothing is added.
        start: The first place.

    Returns:
        A scalar, in nats.
    """
    p, q = words.logits(some_places(written, start)).float().log_softmax(-1).chunk(2)
    is_target = targets[: len(p), start : start + STEPS] != IGNORE_INDEX
    return (((p.exp() - q.exp()) * (p - q)).sum(-1) * is_target).sum()


def some_places(written: Written, start: int) -> Written:
    """Of what was written, the places `start` to `start + STEPS`, and all inputs up to them."""
    end = start + STEPS
    inputs = None if written.inputs is None else cast(torch.LongTensor, written.inputs[:, :end])
    return Written(written.features[:, start:end], written.direction, inputs)


def read_twice(inputs: dict[str, Any], weight: float, smoothing: float = 0.0) -> dict[str, Any]:
    """What a model's forward takes instead of a batch, to learn by R-Drop.

    Args:
        inputs: `input_ids` `[B, S]` and `labels` `[B, T]`, and what else a collator gives.
        weight, smoothing: See [`Consistency`].

    Returns:
        All of it twice, `[R, ...]`, and the objective.
    """
    number = len(inputs["labels"])
    twice = {
        name: torch.cat([value, value]) if torch.is_tensor(value) and value.dim() and len(value) == number else value
        for name, value in inputs.items()
    }
    return {**twice, "objective": Consistency(weight, smoothing)}


__all__ = ["STEPS", "Consistency", "divergence", "over_places", "read_twice", "some_places"]

"""What a decoder reads of its twin in training: what the twin would write itself, not the true words.

A decoder that reads true words reads, from the middle of a title on, its own answer; and it never learns that what it
reads may be wrong. Beside a twin that writes by itself it learns from what a search will show it. Either the model
itself writes at each update, or an earlier model has written, once, what is kept beside each pair.

Letters: B documents, R rows, T steps, P tokens of a partner, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .directions_bidir_seq2seq import IGNORE_INDEX, Direction, pack_labels


@dataclass
class Shown:
    """What a decoder shows its twin.

    Attributes:
        states: `[R, P, H]` (or what `twin_memory="features"` concatenates).
        mask: Which of them each step may read, `[T, P]` or `[R, 1, T, P]`.
        keep: `[R, 1, 1]`, 0 for a row whose twin reads nothing.
    """

    states: torch.Tensor
    mask: torch.BoolTensor
    keep: torch.Tensor


@torch.no_grad()
def write_alone(
    steps: Any, next_tokens: Any, direction: Direction, batch_size: int, num_steps: int, never: torch.LongTensor
) -> torch.Tensor:
    """The likeliest word at each step, after the likeliest ones before: what a decoder alone reads and writes.

    Args:
        steps, next_tokens: Of B documents, as for `search_bidir_seq2seq.search`.
        direction: Which writes.
        batch_size: B.
        num_steps: T; so many tokens are read at most, the start among them.
        never: `[n]`, ids that are not written.

    Returns:
        `[B, T]`, in the order of writing, the start first, the end last where it comes, and padded.
    """
    written = torch.full((batch_size, 1), direction.start_id, device=never.device)
    ended = torch.zeros_like(written, dtype=torch.bool)
    certain = torch.zeros(batch_size, 1, 1, device=never.device)
    for _ in range(num_steps - 1):
        features = steps.step(written[None, :, -1:]).features[0]
        _, _, ids = next_tokens.best(features, certain, 1, [never], None, written[:, None])
        token = ids[:, 0].masked_fill(ended, direction.pad_id)
        ended = ended | (token == direction.end_id)
        written = torch.cat([written, token], dim=1)
    return written


def as_written(labels: torch.LongTensor, direction: Direction, keeps: torch.Tensor) -> torch.Tensor:
    """Titles that were written before, as a decoder alone would have read and written them.

    Args:
        labels: `[B, P]`, in reading order, their end included, -100 after it; none in a row without partner.
        direction: Which wrote them.
        keeps: `[B]`, false for a row that is to have no partner.

    Returns:
        `[B, P + 1]`, as [`write_alone`] returns them; a row without partner is padding.
    """
    labels = pack_labels(labels)
    start = labels.new_full((len(labels), 1), direction.start_id)
    written = torch.cat([start, direction.targets(labels)], dim=1)
    exists = (written != IGNORE_INDEX) & keeps[:, None] & (written[:, 1:2] != IGNORE_INDEX)
    return written.where(exists, direction.pad_id)


def visible(num_steps: int, partner_ids: torch.LongTensor, pad_id: int) -> torch.Tensor:
    """Which of its partner's words each step may read: those that the partner has written by then.

    Args:
        num_steps: T.
        partner_ids: `[B, P]`, in the partner's order, its start first; a row of padding has no partner.
        pad_id: What stands after the end.

    Returns:
        `[B, 1, T, P]`; of a row without partner everything, since a query must be able to read something.
    """
    written = partner_ids != pad_id
    steps = torch.arange(num_steps, device=partner_ids.device)[:, None]
    by_then = steps >= torch.arange(partner_ids.shape[1], device=partner_ids.device)
    return (by_then & written[:, None] | ~written.any(1)[:, None, None])[:, None]


__all__ = ["Shown", "as_written", "visible", "write_alone"]

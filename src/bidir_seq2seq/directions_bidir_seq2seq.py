"""The orders in which a title can be written: from the left, and from the right.

A title has two orders: its reading order, in which labels and results come, and the writing order of a direction.
What starts one direction ends the other: left-to-right goes from the start id to the end id, right-to-left back.

Letters: B rows, T target length, L length of a sequence with its start id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from .kernels_bidir_seq2seq import is_read_at_once

if TYPE_CHECKING:
    from .configuration_bidir_seq2seq import BidirSeq2SeqConfig

IGNORE_INDEX = -100


@dataclass(frozen=True)
class Direction:
    """Left-to-right writing: both orders are the same.

    Attributes:
        name: As in `decoding_direction`.
        start_id, end_id: Before the first token and after the last one, in writing order.
        pad_id: After the end.
    """

    name: str
    start_id: int
    end_id: int
    pad_id: int
    is_reversed = False

    def targets(self, labels: torch.LongTensor) -> torch.LongTensor:
        """Labels `[B, T]`, packed to the left, in writing order."""
        return labels

    def decoder_inputs(self, targets: torch.LongTensor) -> torch.LongTensor:
        """Targets `[B, T]` to what the decoder reads before each, `[B, T]`: the start id, then all but the last."""
        start = targets.new_full((targets.shape[0], 1), self.start_id)
        shifted = torch.cat([start, targets[:, :-1]], dim=1)
        return shifted.masked_fill(shifted == IGNORE_INDEX, self.pad_id)

    def order(self, sequences: torch.LongTensor) -> torch.LongTensor:
        """For sequences `[B, L]` in reading order the places `[B, L]` of their tokens in writing order, and back."""
        return torch.arange(sequences.shape[1], device=sequences.device).expand_as(sequences)

    def reading_order(self, written: torch.LongTensor) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Sequences `[B, L]` as they were written to reading order, padded after the end, and the places moved."""
        return self._pad(written, self.end_id), self.order(written)

    def writing_order(self, sequences: torch.LongTensor) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Sequences `[B, L]` in reading order to writing order, and the places moved; undoes `reading_order`."""
        return sequences, self.order(sequences)

    def _pad(self, sequences: torch.LongTensor, end_id: int) -> torch.LongTensor:
        is_end = sequences == end_id
        return sequences.masked_fill(is_end.cumsum(1) - is_end.long() > 0, self.pad_id)


class RightToLeft(Direction):
    """The last token first."""

    is_reversed = True

    def targets(self, labels: torch.LongTensor) -> torch.LongTensor:
        """Labels `[B, T]`, packed to the left, in writing order: their content reversed, then this direction's end.

        Labels without end (cut ones) have none on the other side either, so both directions count the same tokens.
        """
        lengths = (labels != IGNORE_INDEX).sum(1, keepdim=True)
        last = labels.gather(1, (lengths - 1).clamp(min=0))
        ended = (last == self.start_id) & (lengths > 0)
        content = lengths - ended.long()
        positions = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
        mirrored = labels.gather(1, (content - 1 - positions).clamp(min=0))
        reversed_labels = torch.where(positions < content, mirrored, IGNORE_INDEX)
        return torch.where(ended & (positions == content), self.end_id, reversed_labels)

    def order(self, sequences: torch.LongTensor) -> torch.LongTensor:
        """For sequences `[B, L]` in reading order the places `[B, L]` of their tokens in writing order, and back."""
        return self._mirror(sequences, self.start_id)

    def reading_order(self, written: torch.LongTensor) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Sequences `[B, L]` as they were written to reading order, padded after the end, and the places moved."""
        order = self._mirror(written, self.end_id)
        sequences = written.gather(1, order)
        sequences = sequences.where(sequences != self.end_id, self.start_id)
        sequences[:, 0] = self.end_id
        return self._pad(sequences, self.start_id), order

    def writing_order(self, sequences: torch.LongTensor) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Sequences `[B, L]` in reading order to writing order, and the places moved; undoes `reading_order`."""
        order = self.order(sequences)
        written = sequences.gather(1, order)
        written = written.where(written != self.start_id, self.end_id)
        written[:, 0] = self.start_id
        return written, order

    def _mirror(self, sequences: torch.LongTensor, end_id: int) -> torch.LongTensor:
        """For sequences `[B, L]` of a start, content and, if they came that far, `end_id` the places `[B, L]` that
        turn their content round and leave everything else where it is; their own inverse."""
        positions = super().order(sequences)
        is_end = (sequences == end_id) & (positions > 0)
        # Content stands at 1..size; pads at the tail of a sequence that did not end are no content.
        unended_size = ((sequences != self.pad_id) * positions).amax(1, keepdim=True)
        size = torch.where(is_end.any(1, keepdim=True), is_end.int().argmax(1, keepdim=True) - 1, unended_size)
        return torch.where((positions > 0) & (positions <= size), size + 1 - positions, positions)


_NAMES = ("l2r", "r2l", "both")


def directions_of(config: BidirSeq2SeqConfig, name: str | None = None) -> tuple[Direction, ...]:
    """The directions that `"l2r"`, `"r2l"` or `"both"` stands for; default: those that a model of `config` has.

    Raises:
        ValueError: If the name is none of these.
    """
    name = name or config.decoder_directions
    if name not in _NAMES:
        raise ValueError(f"decoding_direction={name!r} must be one of {', '.join(_NAMES)}")
    start_id, end_id, pad_id = config.bos_token_id, config.eos_token_id, config.pad_token_id
    both = (Direction("l2r", start_id, end_id, pad_id), RightToLeft("r2l", end_id, start_id, pad_id))
    return tuple(direction for direction in both if name in ("both", direction.name))


def check_ids(name: str, ids: object, vocab_size: int | None = None, is_setting: bool = False) -> None:
    """Refuses what are no ids, and ids outside the vocabulary.

    The latter in eager CPU code only: elsewhere looking at a tensor's numbers would stall or fail.

    Args:
        name: What the message calls them.
        ids: A tensor of any shape, such as `[B, T]`; a setting may be one id, a list of ids or `None` as well.
        vocab_size: V; ids go from 0 to V - 1. Default: any number will do.
        is_setting: Whether they are a setting of generation.

    Raises:
        ValueError: Naming the first id outside, or what is given instead of ids.
    """
    if is_setting and not isinstance(ids, torch.Tensor):
        values = [] if ids is None else list(ids) if isinstance(ids, (list, tuple)) else [ids]
        if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            raise ValueError(f"{name}={ids!r} must be a token's id, a whole number: see convert_tokens_to_ids")
        ids = torch.tensor(values, dtype=torch.long)
    if not isinstance(ids, torch.Tensor) or ids.is_floating_point() or ids.dtype == torch.bool:
        what = str(ids.dtype) if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise ValueError(f"{name} must be a tensor of ids, not {what}: tokenizer(text, return_tensors='pt') makes one")
    if vocab_size is None or ids.numel() == 0 or not is_read_at_once(ids):
        return
    low, high = (int(bound) for bound in ids.aminmax())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"{name} holds the id {low if low < 0 else high}, outside the vocabulary of {vocab_size}: "
            "use the tokenizer that the model was trained with, or resize_token_embeddings"
        )


def pack_labels(labels: torch.LongTensor, start_id: int | None = None) -> torch.LongTensor:
    """Pushes each row's targets `[B, T]` to the left, so that labels padded on the left mean the same.

    Args:
        labels: -100 where there is none.
        start_id: What a decoder starts with, and never writes: where a tokenizer has put it, there is no target.

    Raises:
        ValueError: If they are no tensor of ids.
    """
    check_ids("labels", labels)
    labels = cast(torch.LongTensor, labels.long())
    if start_id is not None:
        labels = cast(torch.LongTensor, labels.masked_fill(labels == start_id, IGNORE_INDEX))
    ignored = labels == IGNORE_INDEX
    return labels.gather(1, ignored.to(torch.uint8).argsort(dim=1, stable=True))


__all__ = ["IGNORE_INDEX", "Direction", "RightToLeft", "check_ids", "directions_of", "pack_labels"]

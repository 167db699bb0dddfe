"""What searches propose for each document: their finished titles, those of several searches together, in one pool.

A pool is a dictionary of tensors that begin with `[B, M]`, in reading order of the titles.

Letters: B documents, M candidates of each, K beams, L length of a sequence with its start id, N attention heads, S
source length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch.nn import functional as F
from transformers import PreTrainedConfig

from .directions_bidir_seq2seq import Direction
from .output_bidir_seq2seq import IMPOSSIBLE
from .search_bidir_seq2seq import BeamHistory, StepRecords

# Titles that are drawn at random, of either direction alone.
DRAWN = "drawn"
# Titles put together of those that others have proposed.
SPLICED = "spliced"
# What may propose: searches of either direction alone with its twin off, and of both in lock-step reading each other;
# chance; and what is made of all that.
PROPOSERS = ("l2r", "r2l", "both", DRAWN, SPLICED)
# Those that need titles that are drawn.
WITH_SAMPLES = (DRAWN, SPLICED)

Pool = dict[str, torch.Tensor]


def proposers_of(proposals: str) -> tuple[str, ...]:
    """The searches that `"l2r+r2l+both"` and the like name, in this order.

    Raises:
        ValueError: On another name, or one that is there twice.
    """
    names = proposals.split("+") if isinstance(proposals, str) else []
    if not names or len(set(names)) < len(names) or set(names) - set(PROPOSERS):
        raise ValueError(f"proposals={proposals!r} must be some of {', '.join(PROPOSERS)}, such as 'l2r+r2l+both'")
    return tuple(name for name in PROPOSERS if name in names)


def searches_in(names: Sequence[str]) -> tuple[str, ...]:
    """Those of some proposers that search, and need no titles that are drawn."""
    return tuple(name for name in names if name not in WITH_SAMPLES)


def searches_of(config: PreTrainedConfig, direction: str) -> str:
    """What proposes in a `decoding_direction` if nothing is said: its search, or, of twins that have not learned to
    read each other, each one's."""
    return "l2r+r2l" if direction == "both" and config.twin_partner == "none" else direction


@dataclass
class Found:
    """What one search has found, or chance, of D directions.

    Attributes:
        paths: `[D * B, K, L, 2]`, titles in writing order: each token, and which of the K rows of its document it was
            chosen from, -1 for the start and padding.
        scores: `[D * B, K]`, minus infinity where there is none.
        directions: Who wrote them.
        records: Of each direction.
        history: Of two directions, if it was asked for.
    """

    paths: torch.Tensor
    scores: torch.Tensor
    directions: tuple[Direction, ...]
    records: Sequence[StepRecords]
    history: BeamHistory | None = None

    @property
    def longest(self) -> torch.LongTensor:
        """`[B]`, how long the longest title of each document is, its start id included."""
        lengths = (self.paths[..., 1] >= 0).sum(2).masked_fill(self.scores <= IMPOSSIBLE, 0) + 1
        return lengths.unflatten(0, (len(self.directions), -1)).amax((0, 2))

    def pools(self) -> list[Pool]:
        """Of each direction `sequences` `[B, K, L]`, `own_scores` and `from_right` `[B, K]`, and what was recorded."""
        number = len(self.directions)
        sides = zip(self.paths.chunk(number), self.scores.chunk(number), self.records, self.directions)
        return [_pool_of(*side) for side in sides]


def merged(pools: Sequence[Pool], pad_id: int) -> Pool:
    """Several pools of the same documents as one; shorter titles are padded."""
    length = max(pool["sequences"].shape[2] for pool in pools)
    widened = [{name: _widen(name, values, length, pad_id) for name, values in pool.items()} for pool in pools]
    return {name: torch.cat([pool[name] for pool in widened], dim=1) for name in widened[0]}


# Which dimension of a pool's tensors counts the tokens of a title, the start among them or not.
TOKEN_DIMS = {"sequences": 2, "token_scores": 2, "beam_indices": 2, "source_attentions": 3}


def _widen(name: str, values: torch.Tensor, length: int, pad_id: int) -> torch.Tensor:
    if name not in TOKEN_DIMS:
        return values
    fill = {"sequences": pad_id, "beam_indices": -1}.get(name, 0)
    dim = TOKEN_DIMS[name]
    missing = length - (name != "sequences") - values.shape[dim]
    return F.pad(values, [0, 0] * (values.dim() - 1 - dim) + [0, missing], value=fill)


def _pool_of(paths: torch.Tensor, scores: torch.Tensor, records: StepRecords, direction: Direction) -> Pool:
    """What is known of the finished paths `[B, K, L, 2]` of one direction and their scores `[B, K]`."""
    pool_shape = paths.shape[:2]
    written, parents = paths.flatten(0, 1).unbind(-1)
    sequences, order = direction.reading_order(cast(torch.LongTensor, written))
    details = {
        "sequences": sequences,
        "own_scores": scores.flatten(),
        "from_right": torch.full(written.shape[:1], direction.name == "r2l", device=written.device),
    }
    if records.scores or records.weights:
        first_rows = torch.arange(len(written), device=written.device) // pool_shape[1] * pool_shape[1]
        tokens, rows = written[:, 1:], parents[:, 1:] + first_rows[:, None]
        exists = parents[:, 1:] >= 0
        details["beam_indices"] = rows.where(exists, -1)
        steps = order[:, 1:] - 1
        rows = rows.where(exists, 0).gather(1, steps)
        if records.scores:
            chosen = torch.stack(records.scores)[steps, rows, tokens.gather(1, steps)]
            details["token_scores"] = chosen.masked_fill(~exists, 0)
        if records.weights:
            read = torch.stack(records.weights)[steps, rows] * exists[..., None, None]
            details["source_attentions"] = read.transpose(1, 2)
    return {name: values.unflatten(0, pool_shape) for name, values in details.items()}


__all__ = [
    "DRAWN",
    "PROPOSERS",
    "SPLICED",
    "TOKEN_DIMS",
    "WITH_SAMPLES",
    "Found",
    "Pool",
    "merged",
    "proposers_of",
    "searches_in",
    "searches_of",
]

"""Titles drawn at random, each with the probability that a direction gives it: what a title might be.

They are not written to be read, but to be asked what a candidate has in common with them
([`ranking_bidir_seq2seq.consensus`]). So chance must not be seen in what is written: the same numbers are drawn for
every document and at every time, and the same document gets the same title, whatever stands beside it.

Letters: B documents, N samples of each, V vocabulary, L length of a sequence with its start id.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch.nn import functional as F

from .directions_bidir_seq2seq import Direction
from .search_bidir_seq2seq import Scorer, Steps

# Tokens that are less likely are not drawn: together they are many, and each of them spoils a title (Hewitt, Manning
# and Liang 2022, "Truncation Sampling as Language Model Desmoothing"; Freitag, Ghorbani and Fernandes 2023, "Epsilon
# Sampling Rocks": the best samples for minimum Bayes risk).
EPSILON = 0.02


def draw_titles(
    steps: Steps,
    next_tokens: Scorer,
    direction: Direction,
    num_samples: int,
    limits: torch.LongTensor,
    never_written: torch.LongTensor,
    goes_on: Callable[[bool], bool] = lambda done: not done,
) -> torch.LongTensor:
    """Draws titles of one direction, token by token, by epsilon sampling.

    Args:
        steps, next_tokens: Of B documents.
        direction: Writes them.
        num_samples: N.
        limits: `[B]`, the longest that a document's titles may be, the start id included; longer ones are cut.
        never_written: Ids that no title has.
        goes_on: Asked before each step whether to take it, told whether all titles have ended.

    Returns:
        `[B, N, L]`, in reading order.
    """
    shape, max_length = (len(limits), num_samples), int(limits.amax())
    chances = _chances(num_samples, max_length).to(limits.device)
    written = torch.full((*shape, 1), direction.start_id, device=limits.device)
    is_open, done = (limits > 1)[:, None].expand(shape), max_length <= 1
    while goes_on(done):
        features = steps.step(written[None, ..., -1]).features[0]
        if done:
            continue
        log_probs = next_tokens.log_probs(features, None, written if next_tokens.reads_written else None)
        tokens = _drawn(log_probs.index_fill(2, never_written, float("-inf")), chances[written.shape[2]])
        tokens = tokens.where(is_open, direction.pad_id)
        written = torch.cat([written, tokens[..., None]], dim=2)
        is_open = is_open & (tokens != direction.end_id) & (limits > written.shape[2])[:, None]
        done = not bool(is_open.any())
    return direction.reading_order(written.flatten(0, 1))[0].unflatten(0, shape)


def _drawn(log_probs: torch.Tensor, chances: torch.Tensor) -> torch.LongTensor:
    """For log-probabilities `[B, N, V]` a token of those above epsilon, `[B, N]`, by chances `[N]` from 0 to 1."""
    # Where all are below, the likeliest is drawn.
    is_likely = log_probs >= log_probs.amax(-1, keepdim=True).clamp(max=math.log(EPSILON))
    # They are few: one row after another, so that a row's probabilities are those between two sums.
    sums = log_probs[is_likely].double().exp().cumsum(0)
    last = is_likely.sum(-1).flatten().cumsum(0) - 1
    ends = sums[last]
    starts = F.pad(ends[:-1], (1, 0))
    reached = torch.searchsorted(sums, starts + chances.repeat(len(log_probs)) * (ends - starts), right=True)
    tokens = is_likely.nonzero()[:, 2]
    return tokens[reached.minimum(last)].view(log_probs.shape[:2])


@cache
def _chances(num_samples: int, max_length: int) -> torch.Tensor:
    """`[max_length, N]`, from 0 to 1: at each step one in each of N equal parts, which lets fewer samples do (McKay,
    Beckman and Conover 1979, "A Comparison of Three Methods for Selecting Values of Input Variables")."""
    generator = torch.Generator().manual_seed(0)
    # Step by step, so that those of a step do not hang on how many follow, which a longer title beside it would add.
    parts = (
        torch.randperm(num_samples, generator=generator) + torch.rand(num_samples, generator=generator)
        for _ in range(max_length)
    )
    return torch.stack(list(parts)) / num_samples


__all__ = ["EPSILON", "draw_titles"]

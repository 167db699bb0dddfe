"""Titles drawn at random, each with the probability that a direction gives it: what a title might be.

They are asked what a candidate has in common with them ([`ranking_bidir_seq2seq.consensus`]), and may be candidates
themselves. So chance must not be seen in what is written: the same numbers are drawn for every document and at every
time, and the same document gets the same title, whatever stands beside it.

Letters: B documents, N samples of each, V vocabulary, L length of a sequence with its start id.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch.nn import functional as F
from transformers import LogitsProcessorList, StoppingCriteriaList

from .directions_bidir_seq2seq import Direction
from .output_bidir_seq2seq import IMPOSSIBLE
from .proposals_bidir_seq2seq import Found
from .search_bidir_seq2seq import Scorer, StepRecords, Steps, forbidden_tokens

# Tokens that are less likely are not drawn: together they are many, and each of them spoils a title (Hewitt, Manning
# and Liang 2022, "Truncation Sampling as Language Model Desmoothing"; Freitag, Ghorbani and Fernandes 2023, "Epsilon
# Sampling Rocks": the best samples for minimum Bayes risk).
EPSILON = 0.02
# So many documents at a time are fastest on a CPU, whose caches then have room for a step.
DRAWN_TOGETHER = 16


def draw_titles(
    steps: Steps,
    next_tokens: Scorer,
    direction: Direction,
    num_samples: int,
    limits: torch.LongTensor,
    processors: LogitsProcessorList,
    criteria: StoppingCriteriaList,
    records: StepRecords,
    length_penalty: float = 1.0,
    goes_on: Callable[[bool], bool] = lambda done: not done,
) -> Found:
    """Draws titles of one direction, token by token, by epsilon sampling.

    Args:
        steps, next_tokens: Of B documents.
        direction: Writes them.
        num_samples: N.
        limits: `[B]`, the longest that a document's titles may be, the start id included; longer ones are cut.
        processors: Of log-probabilities; they rule out what may not be written.
        criteria: They say which titles end.
        records: Empty; what they are to keep of each step is added.
        length_penalty: Scores are log-probabilities divided by length ** length_penalty.
        goes_on: Asked before each step whether to take it, told whether all titles have ended.

    Returns:
        N titles of each document. One that was cut has a score of minus infinity: it is no candidate.
    """
    shape, max_length, device = (len(limits), num_samples), int(limits.amax()), limits.device
    chances = _chances(num_samples, max_length).to(device)
    rows = torch.arange(num_samples, device=device).expand(shape)
    paths = torch.full((*shape, max_length, 2), -1, device=device)
    paths[..., 0] = direction.pad_id
    paths[:, :, 0, 0] = direction.start_id
    scores, has_ended = torch.zeros(shape, device=device), torch.zeros(shape, dtype=torch.bool, device=device)
    length, is_open, done = 1, (limits > 1)[:, None].expand(shape), max_length <= 1
    while goes_on(done):
        step = steps.step(paths[None, :, :, length - 1, 0], records.weights is not None)
        if done:
            continue
        written = paths[:, :, :length, 0]
        log_probs = next_tokens.log_probs(step.features[0], None, written if next_tokens.reads_written else None)
        processed = _processed(log_probs, written, processors)
        weights = None if step.weights is None else step.weights[0]
        records.add(log_probs.flatten(0, 1), processed.flatten(0, 1), weights)
        tokens = _drawn(processed, chances[length])
        scores += processed.gather(2, tokens[..., None]).squeeze(2).where(is_open, 0)
        paths[:, :, length] = torch.stack([tokens.where(is_open, direction.pad_id), rows.where(is_open, -1)], dim=-1)
        length += 1
        ends = criteria(paths[:, :, :length, 0].flatten(0, 1), None).view(shape)
        has_ended |= is_open & ends
        is_open = is_open & ~ends & (limits > length)[:, None]
        done = not bool(is_open.any())
    lengths = (paths[..., 1] >= 0).sum(2).clamp(min=1)
    scores = (scores / lengths**length_penalty).masked_fill(~has_ended, IMPOSSIBLE)
    return Found(paths[:, :, :length], scores, (direction,), (records,))


def in_groups(draw: Callable[[torch.LongTensor], Found], limits: torch.LongTensor, together: int) -> Found:
    """What one direction draws for some documents at a time, those with like limits: few titles wait for a long one.

    Args:
        draw: Draws for some documents `[n]`, as [`draw_titles`] does, without records.
        limits: `[B]`, the longest that a document's titles may be.
        together: n; of B and more all are drawn at once, in their order.
    """
    everything = torch.arange(len(limits), device=limits.device)
    if together >= len(limits):
        return draw(everything)
    found = [(documents, draw(documents)) for documents in limits.argsort(stable=True).split(together)]
    first = found[0][1]
    (direction,) = first.directions
    length = max(one.paths.shape[2] for _, one in found)
    paths = first.paths.new_full((len(limits), first.paths.shape[1], length, 2), -1)
    paths[..., 0] = direction.pad_id
    scores = first.scores.new_empty(paths.shape[:2])
    for documents, one in found:
        paths[documents, :, : one.paths.shape[2]] = one.paths
        scores[documents] = one.scores
    return Found(paths, scores, (direction,), first.records)


def _processed(log_probs: torch.Tensor, written: torch.LongTensor, processors: LogitsProcessorList) -> torch.Tensor:
    """Log-probabilities `[B, N, V]` of what follows `written` `[B, N, t]`, as processors change them."""
    forbidden = forbidden_tokens(processors, written.shape[2])
    if forbidden is not None:
        return log_probs.index_fill(2, forbidden.to(log_probs.device), float("-inf"))
    return processors(written.flatten(0, 1), log_probs.flatten(0, 1)).view_as(log_probs)


def _drawn(log_probs: torch.Tensor, chances: torch.Tensor) -> torch.LongTensor:
    """For log-probabilities `[B, N, V]` a token of those above epsilon, `[B, N]`, by chances `[N]` from 0 to 1."""
    # Where all are below, the likeliest is drawn.
    is_likely = log_probs >= log_probs.amax(-1, keepdim=True).clamp(max=math.log(EPSILON))
    # They are few: one row after another, so that a row's probabilities are those between two sums.
    places = is_likely.flatten().nonzero().squeeze(1)
    rows, tokens = places // log_probs.shape[2], places % log_probs.shape[2]
    sums = log_probs.flatten()[places].double().exp().cumsum(0)
    last = rows.bincount().cumsum(0) - 1
    ends = sums[last]
    starts = F.pad(ends[:-1], (1, 0))
    reached = torch.searchsorted(sums, starts + chances.repeat(len(log_probs)) * (ends - starts), right=True)
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


__all__ = ["DRAWN_TOGETHER", "EPSILON", "draw_titles", "in_groups"]

"""Beam search in one direction, or in both in lock-step: hypotheses, their rules, and what is kept of each step.

[`search`] asks two things for nothing but numbers: steps, which read the last token of each hypothesis and give its
features, and next tokens, which score what may follow. So it can be tried with a vocabulary of three words.

Letters: B documents, K beams, D directions, G = D * B rows (all documents of the first direction before those of the
second), V vocabulary, E embedding size, L length of a sequence with its start id, N attention heads, S source length,
C candidates of a row, t tokens written so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn
from transformers import EosTokenCriteria, LogitsProcessorList, MaxLengthCriteria, StoppingCriteriaList
from transformers.generation.logits_process import (
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from .kernels_bidir_seq2seq import is_read_at_once
from .output_bidir_seq2seq import IMPOSSIBLE
from .steps_bidir_seq2seq import Step


class Steps(Protocol):
    """What reads tokens, as [`DecoderSteps`] does."""

    def step(self, ids: torch.LongTensor, need_weights: bool = False) -> Step:
        """Reads one token of each hypothesis, `[D, B, K]`."""

    def reorder(self, parents: torch.LongTensor) -> None:
        """Hypothesis k continues hypothesis `parents[d, b, k]`, `[D, B, K]`."""


class Scorer(Protocol):
    """What scores next tokens, as [`NextTokens`] does; its methods say how.

    Attributes:
        reads_written: Whether it looks at the tokens of hypotheses, not at their features alone.
    """

    reads_written: bool

    def log_probs(
        self,
        features: torch.Tensor,
        partners: torch.Tensor | None = None,
        written: torch.LongTensor | None = None,
    ) -> torch.Tensor:
        """Features `[B, Q, E]`, or `[B, Q, P, E]` with weights `[B, Q, P]`, to `[B, Q, V]`."""

    def best(
        self,
        features: torch.Tensor,
        scores: torch.Tensor,
        count: int,
        forbidden: Sequence[torch.LongTensor],
        partners: torch.Tensor | None = None,
        written: torch.LongTensor | None = None,
    ) -> tuple[torch.Tensor, torch.LongTensor, torch.LongTensor]:
        """The `count` best sums of `scores` `[B, D, K]` and log-probabilities, their hypotheses and tokens."""


def search(
    steps: Steps,
    next_tokens: Scorer,
    beam: Beam,
    processors: Sequence[LogitsProcessorList],
    records: Sequence[StepRecords],
    goes_on: Callable[[bool], bool] = lambda done: not done,
    history: BeamHistory | None = None,
) -> None:
    """Writes until the beam is done; the finished titles are in its pool.

    Of two directions each hypothesis reads all of the other direction's, and its next token has the mean of the
    probabilities that it has beside each of them.

    Args:
        steps, next_tokens: Of B documents.
        beam: New, of D directions.
        processors: Of each direction's log-probabilities.
        records: Of each direction.
        goes_on: Asked before each step whether to take it, told whether the beam is done; one that is goes on stepping
            only to keep other processes company.
        history: Empty; what it keeps of each step is added.
    """
    num_directions, _, num_beams = hypotheses = beam.hypotheses
    done = False
    while goes_on(done):
        step = steps.step(beam.last_ids.view(hypotheses), any(record.weights is not None for record in records))
        if done:
            continue
        # A document's hypotheses of all directions together: [B, Q, E], or [B, Q, K, E] beside their partners.
        features = step.features.transpose(0, 1).flatten(1, 2)
        partners = _equal_weights(beam.alive.view(hypotheses)) if num_directions == 2 else None
        written = None
        if next_tokens.reads_written:
            written = beam.running.view(*hypotheses, -1).transpose(0, 1).flatten(1, 2)
        forbidden = [forbidden_tokens(own, beam.length) for own in processors]
        looks_at_all = beam.do_sample or any(ids is None for ids in forbidden)
        if not looks_at_all and all(record.is_empty for record in records):
            scores = beam.scores.view(hypotheses).transpose(0, 1)
            found = next_tokens.best(features, scores, 2 * num_beams, forbidden, partners, written)
            parents = beam.advance(*(x.transpose(0, 1).flatten(0, 1) for x in found))
        else:
            log_probs = _by_direction(next_tokens.log_probs(features, partners, written), num_directions)
            scores = []
            for index, (running, logits) in enumerate(
                zip(beam.running.chunk(num_directions), log_probs.chunk(num_directions))
            ):
                logits = logits.flatten(0, 1)
                scores.append(processors[index](running.flatten(0, 1), logits))
                weights = None if step.weights is None else step.weights[index]
                records[index].add(logits, scores[index], weights)
            parents = beam.advance(*beam.candidates(torch.cat(scores).unflatten(0, (-1, num_beams))))
        done = not bool(beam.open.any())
        if history is not None:
            history.add(beam, step, parents.view(hypotheses))
        if not done or num_directions == 1:
            # What one direction remembers may be gone on from.
            steps.reorder(parents.view(hypotheses))


def _equal_weights(alive: torch.BoolTensor) -> torch.Tensor:
    """`[B, 2K, K]`, the weights of K partners for the K hypotheses of either direction.

    Partners that do not exist (`alive` `[2, B, K]`, at the first step and in a vocabulary smaller than the beam) have
    none, unless none exists.
    """
    num_beams = alive.shape[-1]
    if is_read_at_once(alive) and alive.all():
        return torch.full((alive.shape[1], 2 * num_beams, num_beams), 1 / num_beams, device=alive.device)
    alive = alive | ~alive.any(-1, keepdim=True)
    of_partners = (alive / alive.sum(-1, keepdim=True)).flip(0).transpose(0, 1)
    return of_partners.repeat_interleave(num_beams, dim=1)


def _by_direction(x: torch.Tensor, num_directions: int) -> torch.Tensor:
    """What is known of a document's hypotheses, `[B, D * K, ...]`, in a beam's order, `[D * B, K, ...]`."""
    return x if num_directions == 1 else x.unflatten(1, (num_directions, -1)).transpose(0, 1).flatten(0, 1)


def forbidden_tokens(processors: LogitsProcessorList, length: int) -> torch.LongTensor | None:
    """The ids `[N]` that processors rule out for sequences of `length`, if that is all they do; else `None`."""
    ids = []
    for processor in processors:
        kind = type(processor)
        if kind is SuppressTokensLogitsProcessor:
            # Of an empty list transformers makes a tensor of floats.
            ids.append(processor.suppress_tokens.long())
        elif kind is MinLengthLogitsProcessor:
            ids += [processor.eos_token_id] * (length < processor.min_length)
        elif kind is MinNewTokensLengthLogitsProcessor:
            ids += [processor.eos_token_id] * (length - processor.prompt_length_to_skip < processor.min_new_tokens)
        else:
            return None
    return ids[0] if len(ids) == 1 else torch.cat(ids)


class Beam:
    """Every document's hypotheses in one direction, or in both, with the rules of transformers' own beam search.

    A hypothesis that ends leaves the beam for a pool of the K best finished ones. A row is closed when no running
    hypothesis can enter its pool any more; what happens to other rows does not matter to it.

    Args:
        start_ids: `[G]`, the first token of each row; with one entry of `stopping_criteria` for each direction.
        num_beams: Hypotheses of a row, K.
        stopping_criteria: Of each direction; they say which candidates end, the end id and the maximum length among
            them.
        max_length: L, the longest.
        pad_id: What stands after the end.
        length_penalty: Scores in the pool are divided by length ** length_penalty.
        early_stopping: As in transformers.
        do_sample: Whether candidates are drawn.

    Attributes:
        paths: `[G, K, max_length, 2]` running hypotheses, best first; `length` of each is filled. The first number of
            a step is the token, the second the hypothesis that it continued (-1 before the first step).
        scores: `[G, K]` their summed log-probabilities; minus infinity for one that does not exist.
        finished_paths, finished_scores: The pool, best first.
        open: `[G, 1]` bool.
    """

    def __init__(
        self,
        start_ids: torch.LongTensor,
        num_beams: int,
        stopping_criteria: Sequence[StoppingCriteriaList],
        max_length: int,
        pad_id: int = 0,
        length_penalty: float = 1.0,
        early_stopping: bool | str = False,
        do_sample: bool = False,
    ):
        num_rows, device = len(start_ids), start_ids.device
        self.max_length, self.length_penalty, self.do_sample = max_length, length_penalty, do_sample
        # One hypothesis that is sampled is ancestral sampling: its first token decides, even when it is the end.
        self.ancestral = do_sample and num_beams == 1
        self.early_stopping = self.ancestral or early_stopping
        self.stopping_criteria = stopping_criteria
        self.paths = torch.full((num_rows, num_beams, max_length, 2), -1, device=device)
        self.paths[..., 0] = pad_id
        self.paths[:, :, 0, 0] = start_ids[:, None]
        self.length = 1
        # One hypothesis to start with: K equal ones would propose the same tokens K times.
        self.scores = torch.full((num_rows, num_beams), IMPOSSIBLE, device=device)
        self.scores[:, 0] = 0
        self.finished_paths = self.paths.clone()
        self.finished_scores = torch.full_like(self.scores, IMPOSSIBLE)
        self.open = torch.ones(num_rows, 1, dtype=torch.bool, device=device)
        self._worst = self.finished_scores[:, -1:]
        self._end_ids = self._plain_end_ids(num_rows // len(stopping_criteria))
        limits = [x.max_length for criteria in stopping_criteria for x in criteria if type(x) is MaxLengthCriteria]
        self._longest = min(limits, default=max_length)

    @property
    def hypotheses(self) -> tuple[int, int, int]:
        """D, B and K."""
        num_directions = len(self.stopping_criteria)
        return num_directions, len(self.scores) // num_directions, self.scores.shape[1]

    @property
    def last_ids(self) -> torch.LongTensor:
        """`[G, K]`, the last token of each running hypothesis."""
        return self.paths[:, :, self.length - 1, 0]

    @property
    def running(self) -> torch.LongTensor:
        """`[G, K, length]`, the tokens of the running hypotheses."""
        return self.paths[:, :, : self.length, 0]

    @property
    def alive(self) -> torch.BoolTensor:
        """`[G, K]`, which hypotheses exist."""
        return self.scores > IMPOSSIBLE

    def candidates(self, log_probs: torch.Tensor) -> tuple[torch.Tensor, torch.LongTensor, torch.LongTensor]:
        """The continuations that a step looks at.

        Args:
            log_probs: `[G, K, V]` of the next token.

        Returns:
            Their scores `[G, C]`, best first (or as drawn), which hypotheses they continue, and with which tokens.
        """
        totals = (log_probs + self.scores[:, :, None]).flatten(1)
        # 2K candidates: each hypothesis has one end, so at least K of them do not end.
        count = min(2 * self.scores.shape[1], totals.shape[1])
        if self.do_sample:
            # The largest sums of log-probability and Gumbel noise are a sample without replacement (Kool et al. 2019,
            # https://arxiv.org/abs/1903.06059).
            flat = (totals - torch.empty_like(totals).exponential_().log()).topk(count).indices
            scores = totals.gather(1, flat)
        else:
            scores, flat = totals.topk(count)
        return scores, flat // log_probs.shape[2], flat % log_probs.shape[2]

    def advance(self, scores: torch.Tensor, parents: torch.LongTensor, written: torch.LongTensor) -> torch.LongTensor:
        """Continues hypotheses by one token.

        Args:
            scores: `[G, C]` of the candidates, best first (or, of sampled ones, in the order drawn).
            parents: `[G, C]`, which hypotheses they continue.
            written: `[G, C]`, with which tokens.

        Returns:
            `[G, K]`, which hypothesis each new one continues.
        """
        num_beams = self.scores.shape[1]
        ends = None if self._end_ids is None else self._ends_of_tokens(written)
        if ends is not None and is_read_at_once(ends) and not (self.do_sample or ends.any()):
            # Nothing ends, as at most steps: the pool stays, and the best candidates, which come first, go on. Other
            # devices would have to be waited for to know it.
            self.scores, parents, written = (x[:, :num_beams] for x in (scores, parents, written))
            self.paths = self._lengthen(parents, written)
            self._close()
            return parents

        paths = self._lengthen(parents, written)
        if ends is None:
            ends = self._ends_of_paths(paths)
        self._keep_finished(paths[:, :num_beams], scores[:, :num_beams], ends[:, :num_beams])

        scores = scores.masked_fill(ends, IMPOSSIBLE)
        if self.ancestral:
            # After an end the second token goes on, for the twin to read.
            order = ends[:, :1].long()
            self.scores = scores.gather(1, order)
        else:
            self.scores, order = scores.topk(num_beams)
        self.paths = select(paths, order)
        self._close()
        return parents.gather(1, order)

    def _plain_end_ids(self, batch_size: int) -> torch.LongTensor | None:
        """Each row's end ids `[G, 1, number]`, or `None` if something else than end ids and lengths ends titles."""
        ids = []
        for criteria in self.stopping_criteria:
            if not {type(criterion) for criterion in criteria} <= {EosTokenCriteria, MaxLengthCriteria}:
                return None
            own = [criterion.eos_token_id for criterion in criteria if type(criterion) is EosTokenCriteria]
            ids.append(torch.cat(own).to(self.paths.device) if own else self.paths.new_empty(0))
        ids = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1)
        return ids.repeat_interleave(batch_size, dim=0)[:, None]

    def _ends_of_tokens(self, written: torch.LongTensor) -> torch.BoolTensor:
        """Which hypotheses `[G, C]` end with the tokens `written`, if only end ids and lengths decide."""
        if self.length + 1 >= self._longest:
            return torch.ones_like(written, dtype=torch.bool)
        return (written[..., None] == self._end_ids).any(-1)

    def _ends_of_paths(self, paths: torch.LongTensor) -> torch.BoolTensor:
        """Which hypotheses `[G, C, max_length, 2]` end, whatever decides."""
        shares = paths[:, :, : self.length, 0].chunk(len(self.stopping_criteria))
        ends = [
            criteria(share.flatten(0, 1), None).view(share.shape[:2])
            for criteria, share in zip(self.stopping_criteria, shares)
        ]
        return torch.cat(ends)

    def _lengthen(self, parents: torch.LongTensor, written: torch.LongTensor) -> torch.LongTensor:
        paths = select(self.paths, parents)
        paths[:, :, self.length] = torch.stack([written, parents], dim=-1)
        self.length += 1
        return paths

    def _keep_finished(self, paths: torch.Tensor, scores: torch.Tensor, ends: torch.Tensor) -> None:
        normalised = scores / (self.length - 1) ** self.length_penalty
        normalised = normalised.masked_fill(~(ends & self.open), IMPOSSIBLE)
        pool_size = self.scores.shape[1]
        merged = torch.cat([self.finished_scores, normalised], dim=1)
        self.finished_scores, order = merged.topk(pool_size)
        self.finished_paths = select(torch.cat([self.finished_paths, paths], dim=1), order)
        self._worst = self.finished_scores[:, -1:]

    def _close(self) -> None:
        if self.length >= self.max_length:
            self.open = torch.zeros_like(self.open)
            return
        length = self.length - 1
        if self.early_stopping == "never" and self.length_penalty > 0:
            length = self.max_length - 1
        self.open = self.open & (self.scores[:, :1] / length**self.length_penalty > self._worst)
        if self.early_stopping is True:
            self.open &= self._worst == IMPOSSIBLE


@dataclass
class StepRecords:
    """What a caller asked to keep of each step of one direction; `None` where nothing was asked for.

    Attributes:
        scores, logits: `[B * K, V]` for each step, after and before processing.
        weights: `[B * K, N, S]` for each step, the source attention.
    """

    scores: list[torch.Tensor] | None = None
    logits: list[torch.Tensor] | None = None
    weights: list[torch.Tensor] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was asked for."""
        return self.scores is None and self.logits is None and self.weights is None

    def add(self, logits: torch.Tensor, scores: torch.Tensor, weights: torch.Tensor | None) -> None:
        """One step: `[B * K, V]` twice and, for a model with source attention, `[B * K, N, S]`."""
        if self.scores is not None:
            self.scores.append(scores)
        if self.logits is not None:
            self.logits.append(logits)
        if self.weights is not None and weights is not None:
            self.weights.append(weights)


@dataclass
class BeamHistory:
    """How the beams grew, step by step.

    Attributes:
        tokens: `[D, B, K]` for each step, what each running hypothesis wrote.
        parents: `[D, B, K]` for each step, which hypothesis of the step before it continues; what no other continues
            has ended or died.
        scores: `[D, B, K]` for each step, summed log-probabilities; minus infinity for one that does not exist.
        source_attentions: `[D, B, K, S]` for each step, what it read of the source to write that, the mean over the
            heads; empty for a model without source attention.
        partner_attentions: `[D, B, K, K, t]` for each step, what it read of each partner, the hypotheses of the other
            direction before this step, and of their t tokens, the start among them.
        finished_tokens, finished_parents: `[D, B, K, t]`, the best finished hypotheses as they were written, the end
            included and padded after it, and which hypothesis each token continued, -1 at padding.
        finished_scores: `[D, B, K]`, summed log-probabilities divided by length ** length_penalty, best first.
        length_penalty: As of the search.
    """

    tokens: list[torch.Tensor] = field(default_factory=list)
    parents: list[torch.Tensor] = field(default_factory=list)
    scores: list[torch.Tensor] = field(default_factory=list)
    source_attentions: list[torch.Tensor] = field(default_factory=list)
    partner_attentions: list[torch.Tensor] = field(default_factory=list)
    finished_tokens: torch.Tensor | None = None
    finished_parents: torch.Tensor | None = None
    finished_scores: torch.Tensor | None = None
    length_penalty: float = 1.0

    def add(self, beam: Beam, step: Step, parents: torch.LongTensor) -> None:
        """One step of a beam that has taken it, whose hypotheses continue `parents`, `[D, B, K]`."""
        shape = beam.hypotheses
        self.tokens.append(beam.last_ids.view(shape))
        self.parents.append(parents)
        self.scores.append(beam.scores.view(shape))
        rows = parents.flatten(0, 1)
        if step.weights is not None:
            read = step.weights.mean(2).unflatten(1, shape[1:]).flatten(0, 1)
            self.source_attentions.append(select(read, rows).unflatten(0, shape[:2]))
        if step.twin_weights is not None:
            self.partner_attentions.append(select(step.twin_weights.flatten(0, 1), rows).unflatten(0, shape[:2]))
        finished = beam.finished_paths[:, :, 1 : beam.length].unflatten(0, shape[:2])
        self.finished_tokens, self.finished_parents = finished.unbind(-1)
        self.finished_scores = beam.finished_scores.view(shape)
        self.length_penalty = beam.length_penalty


def select(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`x` `[B, M, ...]` at the entries `index` `[B, K]` of its second dimension."""
    rows = index + torch.arange(0, x.shape[0] * x.shape[1], x.shape[1], device=x.device)[:, None]
    return x.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, index.shape)


__all__ = ["Beam", "BeamHistory", "Scorer", "StepRecords", "Steps", "forbidden_tokens", "search", "select"]

"""Two or more models of one direction that write together: at each step the mean of their probabilities.

The control of every claim that two directions are better than one: it costs as much. It shows, too, how little the
search asks of what steps and scores for it (`search_bidir_seq2seq.Steps` and `Scorer`).

Letters: B documents, Q = K hypotheses, E embedding size, V vocabulary, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from transformers import EosTokenCriteria, LogitsProcessorList, MaxLengthCriteria, StoppingCriteriaList
from transformers.generation.logits_process import SuppressTokensLogitsProcessor

from bidir_seq2seq.directions_bidir_seq2seq import directions_of
from bidir_seq2seq.search_bidir_seq2seq import Beam, StepRecords, search
from bidir_seq2seq.steps_bidir_seq2seq import Step


class EnsembleSteps:
    """Steps of several models side by side; their features stand one after another.

    Args:
        steps: Of each model.
    """

    def __init__(self, steps: Sequence):
        self.steps = steps

    def step(self, ids: torch.LongTensor, need_weights: bool = False) -> Step:
        """Reads one token of each hypothesis, `[1, B, K]`."""
        return Step(torch.cat([own.step(ids).features for own in self.steps], dim=-1), None)

    def reorder(self, parents: torch.LongTensor) -> None:
        """Hypothesis k continues hypothesis `parents[d, b, k]`, `[1, B, K]`."""
        for own in self.steps:
            own.reorder(parents)


class EnsembleScorer:
    """The mean of several models' probabilities of the next token.

    Args:
        scorers: Of each model.
    """

    reads_written = True

    def __init__(self, scorers: Sequence):
        self.scorers = scorers

    def log_probs(self, features: torch.Tensor, partners: None = None, written: torch.LongTensor | None = None):
        """Features `[B, Q, models * E]` and what each hypothesis has written, `[B, Q, t]`, to `[B, Q, V]`."""
        parts = features.chunk(len(self.scorers), dim=-1)
        each = [
            scorer.log_probs(part.contiguous(), None, written if scorer.reads_written else None)
            for scorer, part in zip(self.scorers, parts)
        ]
        return torch.stack(each).logsumexp(0) - math.log(len(each))

    def best(self, features, scores, count, forbidden, partners=None, written=None):
        """The `count` best sums of `scores` `[B, 1, K]` and log-probabilities, their hypotheses and tokens."""
        log_probs = self.log_probs(features, None, written).index_fill(2, forbidden[0], float("-inf"))
        sums = (log_probs + scores[:, 0, :, None]).flatten(1)
        found, flat = sums.topk(min(count, sums.shape[1]))
        return found[:, None], flat[:, None] // log_probs.shape[2], flat[:, None] % log_probs.shape[2]


@torch.no_grad()
def ensemble_generate(models: Sequence, inputs: dict[str, torch.Tensor], num_beams: int) -> torch.LongTensor:
    """The best title of each document, as `generate` gives it.

    Args:
        models: Of the same one direction and vocabulary, in evaluation mode.
        inputs: As for `generate`, `input_ids` `[B, S]` and so on.
        num_beams: K.

    Returns:
        `[B, L]`, in reading order, padded.
    """
    config, settings = models[0].config, models[0].generation_config
    (direction,) = directions_of(config)
    encoded = [model.get_encoder()(**inputs) for model in models]
    never = [direction.pad_id, config.unk_token_id, direction.start_id]
    processors = LogitsProcessorList([SuppressTokensLogitsProcessor(never, device=models[0].device)])
    criteria = StoppingCriteriaList([MaxLengthCriteria(settings.max_length), EosTokenCriteria(direction.end_id)])
    start_ids = torch.full((len(inputs["input_ids"]),), direction.start_id, device=models[0].device)
    beam = Beam(start_ids, num_beams, [criteria], settings.max_length, pad_id=direction.pad_id)
    steps = [model.model.start_steps(own, direction.name) for model, own in zip(models, encoded)]
    scorers = [model.words(own).next_tokens(None, [direction.name]) for model, own in zip(models, encoded)]
    search(EnsembleSteps(steps), EnsembleScorer(scorers), beam, [processors], [StepRecords()])
    return direction.reading_order(beam.finished_paths[:, 0, : beam.length, 0])[0]


__all__ = ["EnsembleScorer", "EnsembleSteps", "ensemble_generate"]

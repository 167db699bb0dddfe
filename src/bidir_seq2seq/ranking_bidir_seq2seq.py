"""How the titles that two directions propose are ranked: a rule is a function in a table.

Letters: B documents, M candidates of each, L length of a sequence with its start id.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from .directions_bidir_seq2seq import IGNORE_INDEX
from .output_bidir_seq2seq import IMPOSSIBLE
from .search_bidir_seq2seq import select


@dataclass
class Candidates:
    """What both directions propose for each document.

    Attributes:
        sequences: `[B, M, L]`, in reading order; padding where there is none.
        scores: `[B, M]`, what the direction that wrote each gave it; minus infinity where there is none.
        pad_id: What stands after the end.
        length_penalty: Scores are log-probabilities divided by length ** length_penalty.
        judge: From labels `[B * M, L - 1]` to the log-probability `[B * M]` of each title under each direction alone.
    """

    sequences: torch.LongTensor
    scores: torch.Tensor
    pad_id: int
    length_penalty: float
    judge: Callable[[torch.LongTensor], dict[str, torch.Tensor]]

    @cached_property
    def labels(self) -> torch.LongTensor:
        """`[B, M, L - 1]`, the end's included, -100 after it."""
        labels = self.sequences[:, :, 1:]
        return labels.masked_fill(labels == self.pad_id, IGNORE_INDEX)

    @cached_property
    def lengths(self) -> torch.LongTensor:
        """`[B, M]`, the end's included."""
        return (self.labels != IGNORE_INDEX).sum(-1).clamp(min=1)

    @cached_property
    def log_probs(self) -> dict[str, torch.Tensor]:
        """`[B, M]` log-probabilities under each direction alone, its twin off: a proper model of the title."""
        judged = self.judge(self.labels.flatten(0, 1))
        return {name: values.view(self.scores.shape) for name, values in judged.items()}

    def ranked(self, rule: str) -> tuple[torch.Tensor, torch.LongTensor]:
        """The scores `[B, M]` that a rule of `RANKING_RULES` gives, best first, and whose they are, `[B, M]`.

        No title stands there twice: of equal ones the better-scored is kept, and others are impossible.
        """
        scores = RANKING_RULES[rule](self).where(self.scores > IMPOSSIBLE, IMPOSSIBLE)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        sequences = select(self.sequences, order)
        repeats = (sequences[:, :, None] == sequences[:, None]).all(-1).tril(-1).any(-1)
        scores, distinct = scores.masked_fill(repeats, IMPOSSIBLE).sort(dim=1, descending=True, stable=True)
        return scores, order.gather(1, distinct)


def own(candidates: Candidates) -> torch.Tensor:
    """`[B, M]`: what the direction that wrote a title gave it, reading its twin."""
    return candidates.scores


def joint(candidates: Candidates) -> torch.Tensor:
    """`[B, M]`: the mean of both directions' log-probabilities (after Liu et al. 2016, "Agreement on
    Target-bidirectional Neural Machine Translation")."""
    log_probs = candidates.log_probs
    return (log_probs["l2r"] + log_probs["r2l"]) / 2 / candidates.lengths**candidates.length_penalty


# A new rule is a function and its name here; `generate(ranking=name)` then knows it.
RANKING_RULES = {"own": own, "joint": joint}
# Rules that ask how likely a title is to a direction alone.
ASKS_BOTH = ("joint",)

__all__ = ["ASKS_BOTH", "RANKING_RULES", "Candidates", "joint", "own"]

"""How the titles that two directions propose are ranked: a rule is a function in a table, or weighs features.

Letters: B documents, M candidates of each, L length of a sequence with its start id.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch.nn import functional as F

from .directions_bidir_seq2seq import IGNORE_INDEX
from .output_bidir_seq2seq import IMPOSSIBLE
from .search_bidir_seq2seq import select

# A name of `RANKING_RULES`, weights of some of `FEATURES` by their names, or a function of one's own.
Ranking = str | Mapping[str, float] | Callable[["Candidates"], torch.Tensor]


@dataclass
class Candidates:
    """What both directions propose for each document.

    Attributes:
        sequences: `[B, M, L]`, in reading order; padding where there is none.
        scores: `[B, M]`, what the direction that wrote each gave it; minus infinity where there is none.
        pad_id: What stands after the end.
        length_penalty: Scores are log-probabilities divided by length ** length_penalty.
        judge: From labels `[B * M, L - 1]` to the log-probability `[B * M]` of each title under each direction alone.
        draw: Gives titles that the directions draw at random, `[B, N, L]`, in reading order, each at most as long as
            is said for its document, `[B]`, the start id included; or those that are candidates. Default: none.
    """

    sequences: torch.LongTensor
    scores: torch.Tensor
    pad_id: int
    length_penalty: float
    judge: Callable[[torch.LongTensor], dict[str, torch.Tensor]]
    draw: Callable[[torch.LongTensor], torch.LongTensor] | None = None

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
    def is_first(self) -> torch.BoolTensor:
        """`[B, M]`, whether there is a title and none before is the same."""
        same = (self.sequences[:, :, None] == self.sequences[:, None]).all(-1)
        return ~same.tril(-1).any(-1) & (self.scores > IMPOSSIBLE)

    @cached_property
    def log_probs(self) -> dict[str, torch.Tensor]:
        """`[B, M]` log-probabilities under each direction alone, its twin off: a proper model of the title."""
        judged = self.judge(self.labels.flatten(0, 1))
        return {name: values.view(self.scores.shape) for name, values in judged.items()}

    @property
    def asked_log_probs(self) -> dict[str, torch.Tensor]:
        """`log_probs`, or nothing where no rule has asked for them."""
        return vars(self).get("log_probs", {})

    def ranked(self, ranking: Ranking) -> tuple[torch.Tensor, torch.LongTensor]:
        """The scores `[B, M]` that a ranking gives, best first, and whose they are, `[B, M]`.

        No title stands there twice: of equal ones the better-scored is kept, and others are impossible.
        """
        scores = rule_of(ranking)(self).where(self.scores > IMPOSSIBLE, IMPOSSIBLE)
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


def consensus(candidates: Candidates) -> torch.Tensor:
    """`[B, M]`: how much a title has in common with what else it might be, 0 to 1: minimum Bayes risk (Kumar and Byrne
    2004, "Minimum Bayes-Risk Decoding for Statistical Machine Translation").

    The mean of the F1 of the longest common subsequence, which is ROUGE-L, over titles that were drawn (Eikema and
    Aziz 2020, "Is MAP Decoding All You Need?"); or, without any, over all candidates, each as often as the directions
    find it likely.
    """
    words = candidates.labels.masked_fill(candidates.labels == IGNORE_INDEX, -1)
    if candidates.draw is not None:
        # What is longer than all candidates has no more in common with one than with another at its end.
        drawn = candidates.draw(candidates.lengths.amax(1) + 1)[:, :, 1:]
        return _overlap(words, drawn.masked_fill(drawn == candidates.pad_id, -1)).mean(2)
    log_probs = torch.stack([*candidates.log_probs.values()]).mean(0)
    weights = log_probs.masked_fill(~candidates.is_first, IMPOSSIBLE).softmax(1)
    return (_overlap(words, words) @ weights[:, :, None]).squeeze(2)


def _overlap(words: torch.LongTensor, others: torch.LongTensor) -> torch.Tensor:
    """`[B, M, N]`: what each of `[B, M, T]` has in common with each of `[B, N, U]`, -1 for no word: the F1 of their
    longest common subsequence, as in ROUGE-L; 1 where neither has any word."""
    total = (words >= 0).sum(2)[:, :, None] + (others >= 0).sum(2)[:, None]
    return torch.where(total > 0, 2 * _common(words, others) / total.clamp(min=1), 1)


# Places that an integer of 64 bits has room for, when two such are added.
_BITS = 62


def _common(words: torch.LongTensor, others: torch.LongTensor) -> torch.LongTensor:
    """`[B, M, N]`: how long the longest common subsequence of each of `[B, M, T]` and `[B, N, U]` is, -1 for no word.

    All places of the other title at once, a bit each (Hyyro 2004, "Bit-Parallel LCS-length Computation Revisited").
    """
    number, size = others.shape[1:]
    blocks = -(-size // _BITS)
    # Words as numbers from 0, and where each stands in the others: [B, things, N, blocks].
    things, order = torch.cat([words.flatten(1), others.flatten(1)], dim=1).sort(dim=1)
    things = torch.empty_like(things).scatter_(1, order, F.pad(things.diff(dim=1) != 0, (1, 0)).cumsum(1))
    known, things = things.split([words[0].numel(), others[0].numel()], dim=1)
    places = torch.arange(size, device=words.device)
    bits = (1 << places % _BITS) * (others >= 0)
    titles = torch.arange(number, device=words.device)[:, None]
    cells = ((things.view_as(others) * number + titles) * blocks + places // _BITS).flatten(1)
    shape = (int(max(known.amax(), things.amax())) + 1, number, blocks)
    table = words.new_zeros(len(words), math.prod(shape)).scatter_add_(1, cells, bits.flatten(1)).unflatten(1, shape)
    full = (1 << _BITS) - 1
    left = [words.new_full((*words.shape[:2], number), full) for _ in range(blocks)]
    for step in known.view_as(words).unbind(2):
        same, carry = select(table, step), torch.zeros_like(left[0])
        for block, rest in enumerate(left):
            found = rest & same[..., block]
            total = rest + found + carry
            carry = total >> _BITS
            left[block] = (total | (rest - found)) & full
    # A bit that is gone is a word in common.
    common = torch.zeros_like(left[0])
    for place in range(size):
        common += 1 - (left[place // _BITS] >> place % _BITS & 1)
    return common


def alone(candidates: Candidates, direction: str) -> torch.Tensor:
    """`[B, M]`: the log-probability under one direction, as `joint` has it of both."""
    return candidates.log_probs[direction] / candidates.lengths**candidates.length_penalty


def length(candidates: Candidates) -> torch.Tensor:
    """`[B, M]`: how many tokens a title has, its end included."""
    return candidates.lengths.to(candidates.scores.dtype)


def weighted(candidates: Candidates, weights: Mapping[str, float]) -> torch.Tensor:
    """`[B, M]`: the sum of features, each as often as its weight says (a log-linear model: Och and Ney 2002,
    "Discriminative Training and Maximum Entropy Models for Statistical Machine Translation")."""
    features = (FEATURES[name](candidates) * weight for name, weight in weights.items() if weight)
    return sum(features, torch.zeros_like(candidates.scores))


# A new rule is a function and its name here; `generate(ranking=name)` then knows it.
RANKING_RULES: dict[str, Callable[[Candidates], torch.Tensor]] = {"own": own, "joint": joint, "consensus": consensus}
# What may be weighed: `generate(ranking={"l2r": 0.4, "r2l": 0.6, "length": 0.02})`.
FEATURES: dict[str, Callable[[Candidates], torch.Tensor]] = {
    "own": own,
    "l2r": partial(alone, direction="l2r"),
    "r2l": partial(alone, direction="r2l"),
    "consensus": consensus,
    "length": length,
}
# Of both those that ask how likely a title is to a direction alone.
ASKS_ALONE = ("joint", "consensus", "l2r", "r2l")


def rule_of(ranking: Ranking) -> Callable[[Candidates], torch.Tensor]:
    """The function, from candidates to their scores `[B, M]`, that a ranking means.

    Raises:
        ValueError: On a name or a feature that there is not, and on weights that are none.
    """
    if isinstance(ranking, Mapping):
        for name, weight in ranking.items():
            if name not in FEATURES:
                raise ValueError(f"ranking={dict(ranking)}: {name!r} must be one of {', '.join(FEATURES)}")
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise ValueError(f"ranking={dict(ranking)}: the weight of {name!r} must be a number")
        if not any(ranking.values()):
            raise ValueError(
                f"ranking={dict(ranking)} must weigh something: give one of {', '.join(FEATURES)} a weight"
            )
        return partial(weighted, weights=ranking)
    if callable(ranking):
        return ranking
    if ranking not in RANKING_RULES:
        raise ValueError(f"ranking={ranking!r} must be one of {', '.join(RANKING_RULES)}, or weights of features")
    return RANKING_RULES[ranking]


def is_known_to(ranking: Ranking, directions: str) -> bool:
    """Whether directions, as for `features_of`, know all that a ranking asks for; a function sees for itself."""
    known = (*features_of(directions), *(RANKING_RULES if directions == "both" else ()))
    return callable(ranking) or all(name in known for name in _names_in(ranking))


def features_of(directions: str) -> tuple[str, ...]:
    """Those of `FEATURES` that `"l2r"`, `"r2l"` or `"both"` know: one direction knows nothing of the other."""
    return tuple(name for name in FEATURES if name not in ("l2r", "r2l") or directions in ("both", name))


def asks_for_samples(ranking: Any) -> bool:
    """Whether a ranking by name or weights compares candidates with titles that are drawn."""
    return "consensus" in _names_in(ranking)


def may_ask_for_samples(ranking: Any) -> bool:
    """As `asks_for_samples`; of a function nobody knows."""
    return callable(ranking) or asks_for_samples(ranking)


def asks_alone(ranking: Any) -> bool:
    """Whether a ranking asks how likely a title is to a direction alone, which not every twin model knows."""
    return any(name in ASKS_ALONE for name in _names_in(ranking))


def _names_in(ranking: Any) -> list[Any]:
    return [name for name, weight in ranking.items() if weight] if isinstance(ranking, Mapping) else [ranking]


__all__ = [
    "FEATURES",
    "RANKING_RULES",
    "Candidates",
    "Ranking",
    "alone",
    "asks_alone",
    "asks_for_samples",
    "consensus",
    "features_of",
    "is_known_to",
    "joint",
    "length",
    "may_ask_for_samples",
    "own",
    "rule_of",
    "weighted",
]

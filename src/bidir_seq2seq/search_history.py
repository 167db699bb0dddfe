"""A bidirectional search as it went, in words: which hypotheses lived, what each token's writer looked at.

Made from the `history` of what `generate` returns; reports and the demo show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .search_bidir_seq2seq import BeamHistory

DIRECTIONS = ("l2r", "r2l")
# What a look below this share adds to a picture is a byte count.
MIN_WEIGHT = 0.01
# Below it lie the scores of what does not exist.
IMPOSSIBLE = -1e6


@dataclass(frozen=True)
class Choice:
    """The token that one hypothesis got at one step.

    Attributes:
        text: The token as it is read, with the space before it.
        parent: Rank, at the step before, of the hypothesis that it continues; 0 at the first step.
        partner: Rank, at the step before, of the other direction's hypothesis that it looked at most; `None` if there
            was nothing to look at.
        score: Log-probability of the hypothesis with it.
        source: Where it looked in the document: pairs of a place and a share.
        partner_tokens: Where it looked in its partner: pairs of a step, at which the partner got the token, and a
            share.
    """

    text: str
    parent: int
    partner: int | None
    score: float
    source: list[tuple[int, float]]
    partner_tokens: list[tuple[int, float]]


@dataclass(frozen=True)
class Finished:
    """A complete title.

    Attributes:
        step: At which step it got its last token.
        rank: The rank that it had then.
        score: What it was ranked by in its direction.
        text: The title.
    """

    step: int
    rank: int
    score: float
    text: str


@dataclass(frozen=True)
class SearchHistory:
    """One document's search.

    Attributes:
        source: The document's tokens as they are read.
        prior: For each of them the bonus that the learned prior gives to writing it, in logits; empty without prior.
        steps: For `"l2r"` and `"r2l"` the choices of each step by rank; a place that was empty is `None`.
        finished: For each direction its complete titles, best first.
    """

    source: list[str]
    prior: list[float]
    steps: dict[str, list[list[Choice | None]]]
    finished: dict[str, list[Finished]]

    def path(self, direction: str, step: int, rank: int) -> list[tuple[int, int]]:
        """The places (step, rank) of a hypothesis from its first token to the one given."""
        places = []
        while step >= 0 and (choice := self.steps[direction][step][rank]) is not None:
            places.append((step, rank))
            step, rank = step - 1, choice.parent
        return places[::-1]

    def best(self, direction: str) -> list[tuple[int, int]]:
        """The path of the direction's best complete title; of the best beam if none is complete."""
        if self.finished[direction]:
            title = self.finished[direction][0]
            return self.path(direction, title.step, title.rank)
        return self.path(direction, len(self.steps[direction]) - 1, 0)

    def as_dict(self) -> dict:
        """Everything as lists, numbers and strings, for JSON."""
        return asdict(self)


def search_history(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    history: BeamHistory,
    input_ids: torch.LongTensor,
    row: int = 0,
) -> SearchHistory:
    """Puts one document's search in words.

    Args:
        model: The model that searched.
        tokenizer: Its tokenizer.
        history: The `history` of a bidirectional output of `generate` with `output_attentions`.
        input_ids: `[S]`, the document's ids, as long as they were given to `generate`.
        row: Which document of the batch it is.

    Returns:
        The search.
    """
    places = (input_ids != tokenizer.pad_token_id).nonzero().squeeze(1)
    steps: dict[str, list[list[Choice | None]]] = {}
    finished: dict[str, list[Finished]] = {}
    for side, direction in enumerate(DIRECTIONS):
        steps[direction] = [
            [
                _choice(tokenizer, history, (side, row, rank), step, places)
                for rank in range(history.tokens[step].shape[2])
            ]
            for step in range(len(history.tokens))
        ]
        finished[direction] = _finished(tokenizer, history, (side, row), steps[direction], places)
    ids = input_ids[places].tolist()
    prior = []
    if getattr(model, "prior", None) is not None:
        # Logits are (logits + prior) / 2.
        bonuses = (model.prior.log_scale.detach().exp()[ids] / 2).tolist()
        special = set(tokenizer.all_special_ids)
        prior = [0.0 if index in special else round(bonus, 2) for index, bonus in zip(ids, bonuses)]
    return SearchHistory([token_text(tokenizer, index) for index in ids], prior, steps, finished)


def _choice(
    tokenizer: PreTrainedTokenizerBase,
    history: BeamHistory,
    place: tuple[int, int, int],
    step: int,
    places: torch.LongTensor,
) -> Choice | None:
    score = float(history.scores[step][place])
    # A place that holds no hypothesis is scored minus infinity, or next to it.
    if score < IMPOSSIBLE:
        return None
    looks = _looks(history, place, step, places)
    token, parent = int(history.tokens[step][place]), int(history.parents[step][place])
    return Choice(text=token_text(tokenizer, token), parent=parent, score=round(score, 4), **looks)


def _looks(history: BeamHistory, place: tuple[int, int, int], step: int, places: torch.LongTensor) -> dict[str, Any]:
    looks: dict[str, Any] = {"source": [], "partner": None, "partner_tokens": []}
    if history.source_attentions:
        looks["source"] = _weights(history.source_attentions[step][place][places].tolist())
    if history.partner_attentions and step > 0:
        # The start, which all have in common, tells nothing.
        read = history.partner_attentions[step][place][:, 1:]
        looks["partner"] = int(read.sum(1).argmax())
        looks["partner_tokens"] = _weights(read[looks["partner"]].tolist())
    return looks


def _finished(
    tokenizer: PreTrainedTokenizerBase,
    history: BeamHistory,
    place: tuple[int, int],
    steps: list[list[Choice | None]],
    places: torch.LongTensor,
) -> list[Finished]:
    """The complete titles of one direction. The last token of one that was cut at the greatest length goes into
    `steps`: it is not among those that were gone on with."""
    found: list[Finished] = []
    if history.finished_tokens is None or history.finished_parents is None or history.finished_scores is None:
        return found
    for number, score in enumerate(history.finished_scores[place].tolist()):
        parents = [parent for parent in history.finished_parents[place][number].tolist() if parent >= 0]
        if score < IMPOSSIBLE or not parents:
            continue
        tokens = history.finished_tokens[place][number, : len(parents)].tolist()
        step, rank = len(parents) - 1, parents[-1]
        if tokens[-1] in (tokenizer.eos_token_id, tokenizer.bos_token_id):
            # The end is written by what it continues.
            step -= 1
        else:
            alike = (history.parents[step][place] == rank).nonzero().flatten().tolist()
            # Whatever continues a hypothesis has looked where that looked.
            looks = _looks(history, (*place, alike[0]), step, places) if alike else {**_NO_LOOKS}
            total = round(score * len(tokens), 4)
            rank = _put(steps[step], Choice(token_text(tokenizer, tokens[-1]), rank, score=total, **looks))
        text = "".join(token_text(tokenizer, token) for token in (tokens if place[0] == 0 else tokens[::-1]))
        found.append(Finished(step, rank, round(score, 4), text.strip()))
    return found


_NO_LOOKS: dict[str, Any] = {"source": [], "partner": None, "partner_tokens": []}


def _put(choices: list[Choice | None], choice: Choice) -> int:
    """Puts a choice into the first empty place, or behind the others; returns its rank."""
    if None in choices:
        rank = choices.index(None)
        choices[rank] = choice
        return rank
    choices.append(choice)
    return len(choices) - 1


def _weights(values: Sequence[float]) -> list[tuple[int, float]]:
    return [(place, round(value, 3)) for place, value in enumerate(values) if value >= MIN_WEIGHT]


def token_text(tokenizer: PreTrainedTokenizerBase, index: int) -> str:
    """A token as it stands in a text: the space that a piece begins with is one, and special tokens are empty."""
    if index == tokenizer.unk_token_id:
        return "\ufffd"
    if index in tokenizer.all_special_ids:
        return ""
    return tokenizer.convert_ids_to_tokens(index).replace("\u2581", " ")


__all__ = ["DIRECTIONS", "Choice", "Finished", "SearchHistory", "search_history", "token_text"]

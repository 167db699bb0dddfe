"""A bidirectional search as it went, in words: which hypotheses lived, what each token's writer looked at.

Made from the `history` of what `generate` returns; reports and the demo show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

DIRECTIONS = ("l2r", "r2l")
# What a look below this share adds to a picture is a byte count.
MIN_WEIGHT = 0.01


@dataclass(frozen=True)
class Choice:
    """The token that one hypothesis got at one step.

    Attributes:
        text: The token as it is read, with the space before it.
        is_end: Whether it is the end of the title.
        parent: Rank, at the step before, of the hypothesis that it continues; 0 at the first step.
        partner: Rank, at the step before, of the other direction's hypothesis that it looked at most; `None` if there
            was nothing to look at.
        score: Log-probability of the hypothesis with it.
        finished: Whether the hypothesis is complete.
        source: Where it looked in the document: pairs of a place and a share.
        partner_tokens: Where it looked in its partner: pairs of a step, at which the partner got the token, and a
            share.
    """

    text: str
    is_end: bool
    parent: int
    partner: int | None
    score: float
    finished: bool
    source: list[tuple[int, float]]
    partner_tokens: list[tuple[int, float]]


@dataclass(frozen=True)
class SearchHistory:
    """One document's search.

    Attributes:
        source: The document's tokens as they are read.
        prior: For each of them the bonus that the learned prior gives to writing it, in logits; empty without prior.
        steps: For `"l2r"` and `"r2l"` the choices of each step by rank; a place that was empty is `None`.
    """

    source: list[str]
    prior: list[float]
    steps: dict[str, list[list[Choice | None]]]

    def path(self, direction: str, step: int, rank: int) -> list[tuple[int, int]]:
        """The places (step, rank) of a hypothesis from its first token to the one given."""
        places = []
        while step >= 0 and self.steps[direction][step][rank] is not None:
            places.append((step, rank))
            step, rank = step - 1, self.steps[direction][step][rank].parent
        return places[::-1]

    def best(self, direction: str) -> list[tuple[int, int]]:
        """The path of the direction's best complete hypothesis, by its mean log-probability a token.

        If none is complete it is the best one of the last step; it is empty if the direction has written nothing.
        """
        places = [
            (choice.score / (step + 1), step, rank)
            for step, choices in enumerate(self.steps[direction])
            for rank, choice in enumerate(choices)
            if choice is not None and (choice.finished or step == len(self.steps[direction]) - 1)
        ]
        complete = [place for place in places if self.steps[direction][place[1]][place[2]].finished]
        if not places:
            return []
        _, step, rank = max(complete or places)
        return self.path(direction, step, rank)

    def as_dict(self) -> dict:
        """Everything as lists, numbers and strings, for JSON."""
        return asdict(self)


def search_history(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    history,
    input_ids: torch.LongTensor,
    row: int = 0,
) -> SearchHistory:
    """Puts one document's search in words.

    Args:
        model: The model that searched.
        tokenizer: Its tokenizer.
        history: The `history` of a bidirectional output of `generate` with `output_attentions`; see
            `BidirBeamSearchOutput`.
        input_ids: `[S]`, the document's ids, as long as they were given to `generate`.
        row: Which document of the batch it is.

    Returns:
        The search.
    """
    ends = {"l2r": tokenizer.eos_token_id, "r2l": tokenizer.bos_token_id}
    is_text = input_ids != tokenizer.pad_token_id
    places = is_text.nonzero().squeeze(1)
    steps = {
        direction: [
            [
                _choice(history, step, side, row, rank, tokenizer, ends[direction], places)
                for rank in range(history.tokens.shape[3])
            ]
            for step in range(history.tokens.shape[0])
        ]
        for side, direction in enumerate(DIRECTIONS)
    }
    ids = input_ids[places].tolist()
    prior = []
    if getattr(model, "prior", None) is not None:
        # Logits are (logits + prior) / 2.
        prior = (model.prior.log_scale.detach().exp()[ids] / 2).tolist()
        special = set(tokenizer.all_special_ids)
        prior = [0.0 if index in special else round(bonus, 2) for index, bonus in zip(ids, prior)]
    return SearchHistory([token_text(tokenizer, index) for index in ids], prior, steps)


def _choice(history, step: int, side: int, row: int, rank: int, tokenizer, end_id: int, places) -> Choice | None:
    at = (step, side, row, rank)
    score = float(history.scores[at])
    if score == float("-inf"):
        return None
    token = int(history.tokens[at])
    looked = history.partner_attentions[at][: step + 1].tolist()
    return Choice(
        text=token_text(tokenizer, token),
        is_end=token == end_id,
        parent=int(history.parents[at]),
        partner=int(history.partners[at]) if step > 0 else None,
        score=round(score, 4),
        finished=bool(history.finished[at]),
        source=_weights(history.attentions[at][places].tolist()),
        partner_tokens=_weights(looked),
    )


def _weights(values: Sequence[float]) -> list[tuple[int, float]]:
    return [(place, round(value, 3)) for place, value in enumerate(values) if value >= MIN_WEIGHT]


def token_text(tokenizer: PreTrainedTokenizerBase, index: int) -> str:
    """A token as it stands in a text: the space that a piece begins with is one, and special tokens are empty."""
    if index == tokenizer.unk_token_id:
        return "\ufffd"
    if index in tokenizer.all_special_ids:
        return ""
    return tokenizer.convert_ids_to_tokens(index).replace("\u2581", " ")


__all__ = ["DIRECTIONS", "Choice", "SearchHistory", "search_history", "token_text"]

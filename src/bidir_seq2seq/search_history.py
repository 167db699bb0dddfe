"""A bidirectional search as it went, in words: which hypotheses lived, what each token's writer looked at.

Made from the `history` of what `generate` returns; reports and the demo show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .pipeline import SOURCES, BidirSeq2SeqPipeline
from .search_bidir_seq2seq import BeamHistory
from .unknown_words import decode

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


def has_twin_search(config: PretrainedConfig) -> bool:
    """Whether a model of this config has two writers that have learned to read each other, and can be watched."""
    return config.decoder_directions == "both" and config.twin_partner != "none"


def record_search(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, document: str, **generate_kwargs: Any
) -> tuple[SearchHistory, str]:
    """Writes about one document in both directions, and keeps how.

    Args:
        model: A model whose directions read each other ([`has_twin_search`]).
        tokenizer: Its tokenizer.
        document: The text; not an empty one.
        **generate_kwargs: As for `generate`.

    Returns:
        The search, and the title that it found.
    """
    encoded: dict[str, Any] = BidirSeq2SeqPipeline(model=model, tokenizer=tokenizer, device=model.device).preprocess(
        document
    )
    sources = {name: encoded[name].to(model.device) for name in SOURCES if name in encoded}
    settings = {
        "decoding_direction": "both",
        "proposals": "both",
        "return_dict_in_generate": True,
        "output_attentions": True,
    }
    output = model.generate(**sources, **settings, **generate_kwargs)
    ids = sources.get("extended_input_ids", sources["input_ids"])[0]
    words = encoded.get("words", [])
    searched = search_history(model, tokenizer, output.history, ids, words=words)
    return searched, decode(tokenizer, output.sequences[0].tolist(), words, model.config.vocab_size).strip()


def search_history(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    history: BeamHistory,
    input_ids: torch.LongTensor,
    row: int = 0,
    words: Sequence[str] = (),
) -> SearchHistory:
    """Puts one document's search in words.

    Args:
        model: The model that searched.
        tokenizer: Its tokenizer.
        history: The `history` of a bidirectional output of `generate` with `output_attentions`.
        input_ids: `[S]`, the document's ids, as long as they were given to `generate`, and with words of its own from
            the vocabulary's size on, if it has any.
        row: Which document of the batch it is.
        words: The words of its own.

    Returns:
        The search.
    """
    reader = _Reader(tokenizer, words, model.config.vocab_size)
    places = (input_ids != tokenizer.pad_token_id).nonzero().squeeze(1)
    steps: dict[str, list[list[Choice | None]]] = {}
    finished: dict[str, list[Finished]] = {}
    for side, direction in enumerate(DIRECTIONS):
        steps[direction] = [
            [
                _choice(reader, history, (side, row, rank), step, places)
                for rank in range(history.tokens[step].shape[2])
            ]
            for step in range(len(history.tokens))
        ]
        finished[direction] = _finished(reader, history, (side, row), steps[direction], places)
    ids = input_ids[places].tolist()
    prior = []
    if getattr(model, "prior", None) is not None:
        # Logits are (logits + prior) / 2.
        bonuses = (model.prior.log_scale.detach().exp() / 2).tolist()
        known = range(len(bonuses))
        prior = [round(bonuses[i], 2) if i in known and not reader.is_special(i) else 0.0 for i in ids]
    return SearchHistory([reader.token(index) for index in ids], prior, steps, finished)


def _choice(
    reader: _Reader,
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
    return Choice(text=reader.token(token), parent=parent, score=round(score, 4), **looks)


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
    reader: _Reader,
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
        if reader.is_special(tokens[-1]):
            # The end is written by what it continues.
            step -= 1
        else:
            alike = (history.parents[step][place] == rank).nonzero().flatten().tolist()
            # Whatever continues a hypothesis has looked where that looked.
            looks = _looks(history, (*place, alike[0]), step, places) if alike else {**_NO_LOOKS}
            total = round(score * len(tokens) ** history.length_penalty, 4)
            rank = _put(steps[step], Choice(reader.token(tokens[-1]), rank, score=total, **looks))
        text = reader.text(tokens if place[0] == 0 else tokens[::-1])
        found.append(Finished(step, rank, round(score, 4), text))
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


class _Reader:
    """Tokens as texts.

    Args:
        tokenizer: The model's.
        words: A document's own, whose ids begin where the vocabulary ends.
        vocab_size: V.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, words: Sequence[str], vocab_size: int):
        self.tokenizer, self.words, self.vocab_size = tokenizer, words, vocab_size
        self.special = set(tokenizer.all_special_ids)
        # Pieces say where a word begins; whole words stand apart of themselves.
        self.gap = " " if tokenizer.convert_tokens_to_string(["a", "b"]) == "a b" else ""

    def is_special(self, index: int) -> bool:
        """Whether it is no part of a text."""
        return index in self.special

    def token(self, index: int) -> str:
        """A token as it stands in a text, with the space before it; unknown ones are U+FFFD, special ones empty."""
        if index >= self.vocab_size:
            return self.gap + self.words[index - self.vocab_size]
        if index == self.tokenizer.unk_token_id:
            return self.gap + "\ufffd"
        if self.is_special(index):
            return ""
        return self.gap + self.tokenizer.convert_ids_to_tokens(index).replace("\u2581", " ")

    def text(self, ids: Sequence[int]) -> str:
        """A whole title."""
        return decode(self.tokenizer, ids, self.words, self.vocab_size).strip()


__all__ = [
    "DIRECTIONS",
    "Choice",
    "Finished",
    "SearchHistory",
    "has_twin_search",
    "record_search",
    "search_history",
]

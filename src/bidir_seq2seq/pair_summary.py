"""What a set of pairs looks like: lengths, repetitions, texts that another set holds too, unknown and taken tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)

# Texts that are looked at together; of a pair nothing but 16 bytes and two lengths stays in memory.
BATCH = 1000
SHARES = (0.5, 0.9, 0.99, 1.0)


@dataclass
class PairSummary:
    """The account of one split.

    Attributes:
        pairs: How many there are.
        empty: Of how many a side is empty.
        repeated: How many are there before, source and target alike.
        unit: What lengths are counted in, `"tokens"` or `"characters"`.
        source_lengths, target_lengths: Of half, 90 %, 99 % and all of the pairs, the largest length.
        cut_source, cut_target: How many are longer than the limits given.
        unknown: Share of the tokens that the tokenizer does not know, 0 to 1; `None` without a tokenizer.
        sources, pair_hashes: A hash of each distinct source and pair, `[N]`, sorted.
    """

    pairs: int = 0
    empty: int = 0
    repeated: int = 0
    unit: str = "characters"
    source_lengths: list[int] = field(default_factory=list)
    target_lengths: list[int] = field(default_factory=list)
    cut_source: int = 0
    cut_target: int = 0
    unknown: float | None = None
    sources: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64), repr=False)
    pair_hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64), repr=False)

    def __str__(self) -> str:
        return f"{self.pairs:,} pairs, {self.empty:,} with an empty side, {self.repeated:,} repeated"

    def shared_sources(self, other: PairSummary) -> int:
        """How many distinct sources another split holds too."""
        return len(np.intersect1d(self.sources, other.sources, assume_unique=True))

    def shared_pairs(self, other: PairSummary) -> int:
        """How many distinct pairs another split holds too."""
        return len(np.intersect1d(self.pair_hashes, other.pair_hashes, assume_unique=True))


def summarize_pairs(
    pairs: Dataset,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_source_length: int | None = None,
    max_target_length: int | None = None,
) -> PairSummary:
    """Goes through pairs once.

    Args:
        pairs: With text columns `source` and `target`.
        tokenizer: To count lengths and unknown tokens with; default: lengths in characters.
        max_source_length, max_target_length: Limits to count longer texts by, in tokens; without a tokenizer none are.

    Raises:
        ValueError: If there are no pairs.
    """
    if len(pairs) == 0:
        raise ValueError("there are no pairs to summarize")
    summary = PairSummary(pairs=len(pairs), unit="tokens" if tokenizer else "characters")
    hashes = {name: np.empty(len(pairs), np.uint64) for name in ("source", "pair")}
    lengths = {name: np.empty(len(pairs), np.int32) for name in ("source", "target")}
    unknown = 0
    for start, batch in _batches(pairs):
        rows = slice(start, start + len(batch["source"]))
        hashes["source"][rows] = [_hash(text) for text in batch["source"]]
        hashes["pair"][rows] = [_hash(json.dumps(pair)) for pair in zip(batch["source"], batch["target"])]
        summary.empty += sum(not (a.strip() and b.strip()) for a, b in zip(batch["source"], batch["target"]))
        for name in lengths:
            lengths[name][rows], new = _measure(batch[name], tokenizer)
            unknown += new
    summary.sources, summary.pair_hashes = np.unique(hashes["source"]), np.unique(hashes["pair"])
    summary.repeated = len(pairs) - len(summary.pair_hashes)
    for name, limit in (("source", max_source_length), ("target", max_target_length)):
        found = np.quantile(lengths[name], SHARES, method="higher").astype(int).tolist()
        setattr(summary, f"{name}_lengths", found)
        if tokenizer and limit:
            setattr(summary, f"cut_{name}", int((lengths[name] > limit).sum()))
    if tokenizer:
        summary.unknown = unknown / max(int(sum(lengths[name].sum(dtype=np.int64) for name in lengths)), 1)
    return summary


def taken_share(
    sources: Sequence[str | None], targets: Sequence[str | None], tokenizer: PreTrainedTokenizerBase
) -> float:
    """How much of the targets is taken from their own sources: little in translation, much in titles.

    Args:
        sources, targets: The two sides of some pairs, one as long as the other.
        tokenizer: What a token is, a fast one; special ones do not count, and one outside its vocabulary, such as a
            name, is as good as any other.

    Returns:
        The share of the targets' tokens that stand in their own source, less the share that stand in the source of
        another pair: letters that every text has are not taken from any.

    Raises:
        ValueError: If there are fewer than two pairs: there is no other one.
    """
    if len(sources) < 2:
        raise ValueError(f"{len(sources)} pairs have no other one to be compared with: give at least two")
    read, written = (_words(texts, tokenizer) for texts in (sources, targets))
    words = [set(row) for row in read]
    half = len(words) // 2
    # The other one is far away, as neighbours may be of one kind.
    others = words[half:] + words[:half]
    found = [sum(token in there for row, there in zip(written, places) for token in row) for places in (words, others)]
    return (found[0] - found[1]) / max(sum(map(len, written)), 1)


def log_summaries(splits: dict[str, Dataset]) -> None:
    """Logs what pairs look like, an example of each split, and whether one holds pairs of the first."""
    first = None
    for name, pairs in splits.items():
        summary = summarize_pairs(pairs)
        example = f"{shorten(pairs[0]['source'])!r} -> {shorten(pairs[0]['target'])!r}"
        logger.warning_once(f"{name}: {summary}; the first: {example}")
        if first is None:
            first = summary
        elif shared := summary.shared_pairs(first):
            logger.warning_once(
                f"{name}: {shared:,} of its pairs are in {next(iter(splits))} too: scores will look better than they "
                "are"
            )


def shorten(text: str | None) -> str:
    """A text on one line, its beginning if it is long."""
    line = " ".join((text or "").split())
    return line if len(line) <= 100 else f"{line[:97]}..."


def _batches(pairs: Dataset) -> Iterator[tuple[int, dict[str, list[str]]]]:
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        yield start, {name: [text or "" for text in batch[name]] for name in ("source", "target")}


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


def _measure(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase | None) -> tuple[list[int], int]:
    """Lengths of texts, as training counts them, and how many of their tokens are unknown."""
    if tokenizer is None:
        return [len(text) for text in texts], 0
    ids = tokenizer(list(texts), truncation=False, split_special_tokens=True, verbose=False)["input_ids"]
    return [len(row) for row in ids], sum(row.count(tokenizer.unk_token_id) for row in ids)


def _words(texts: Sequence[str | None], tokenizer: PreTrainedTokenizerBase) -> list[list[int | str]]:
    """The tokens of each text: ids, and what is outside the vocabulary as it stands there."""
    given = [text or "" for text in texts]
    encoding = tokenizer(
        given, truncation=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    no_words = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return [
        [
            text[start:end].casefold() if token == tokenizer.unk_token_id else token
            for token, (start, end) in zip(ids, offsets)
            if token not in no_words
        ]
        for text, ids, offsets in zip(given, encoding["input_ids"], encoding["offset_mapping"])
    ]


__all__ = ["PairSummary", "log_summaries", "shorten", "summarize_pairs", "taken_share"]

"""Titles for documents in one call, as objects: the pipeline for a program that holds model and tokenizer."""

from __future__ import annotations

import itertools
import reprlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from .pipeline import BidirSeq2SeqPipeline

# A stream is sorted by length inside windows of so many batches.
WINDOW_BATCHES = 32


@dataclass(frozen=True)
class Title:
    """One candidate title.

    Attributes:
        text: The title; empty for an empty document.
        score: What it was ranked by (a length-normalised log-probability, or what `ranking` says), `None` for greedy
            search and sampling.
        direction: Which direction wrote it, `"l2r"` or `"r2l"`; `None` for an empty document.
        truncated: Whether the document was longer than what is read of one.
    """

    text: str
    score: float | None = None
    direction: str | None = None
    truncated: bool = False


def write_titles(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    batch_size: int = 32,
    max_source_length: int | None = None,
    progress: bool = False,
    **generate_kwargs: Any,
) -> list[list[Title]]:
    """Writes titles for documents with a [`BidirSeq2SeqPipeline`].

    Args:
        model: A model with `generate`; it stays where it is and is put in evaluation mode.
        tokenizer: Its tokenizer.
        documents: The texts. An empty one gets an empty title; its neighbours do not notice.
        batch_size: Documents per `generate` call.
        max_source_length: Tokens of a document that are read; default: what the tokenizer says.
        progress: Whether to show a progress bar.
        **generate_kwargs: As for `generate`: `num_beams`, `num_return_sequences`, `decoding_direction`, ...

    Returns:
        For each document, in the given order, its `num_return_sequences` titles, best first.

    Raises:
        ValueError: If a document is not a string (naming which), or as `generate` does.
    """
    if isinstance(documents, str):
        raise ValueError(f"documents is the single text {documents!r}: give a list of texts")
    write = BidirSeq2SeqPipeline(model=model, tokenizer=tokenizer, device=model.device)
    titles = write(
        documents,
        batch_size=batch_size,
        max_source_length=max_source_length,
        progress=progress,
        return_details=True,
        **generate_kwargs,
    )
    return [_as_titles(candidates) for candidates in titles]


def stream_titles(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[str],
    batch_size: int = 32,
    max_source_length: int | None = None,
    seed: int | None = None,
    start: int = 0,
    **generate_kwargs,
) -> Iterator[list[Title]]:
    """Writes titles for a stream of documents, one window of 32 batches after the other, in memory for two.

    Args:
        model, tokenizer, batch_size, max_source_length: As for [`write_titles`].
        documents: The texts, of which only a window is held at a time.
        seed: For sampling: each window has a random state of its own, made of this and the window's number.
        start: How many documents of the same stream were written before, whole windows of them.
        **generate_kwargs: As for `generate`.

    Yields:
        The titles of each document, in the given order, best first.

    Raises:
        ValueError: If a document is not a string (naming which), or as `generate` does.
    """
    if isinstance(documents, str):
        raise ValueError(f"documents is the single text {documents!r}: give texts")
    write = BidirSeq2SeqPipeline(model=model, tokenizer=tokenizer, device=model.device)
    settings = {"batch_size": batch_size, "max_source_length": max_source_length, "return_details": True}
    settings |= generate_kwargs
    documents = _checked(documents, start)
    if seed is None:
        written = _in_one_call(write, documents, settings)
    else:
        written = _window_by_window(write, documents, settings, seed + start // window_size(batch_size))
    yield from map(_as_titles, written)


def _checked(documents: Iterable[str], start: int) -> Iterator[str]:
    for number, document in enumerate(documents, start=start):
        if not isinstance(document, str):
            raise ValueError(f"document {number} is {reprlib.repr(document)}, which is not text")
        yield document


def _in_one_call(write: BidirSeq2SeqPipeline, documents: Iterable[str], settings: dict) -> Iterator[list[dict]]:
    """One account of all documents is logged in the end."""
    orders: deque[list[int]] = deque()

    def by_length() -> Iterator[str]:
        for window in windows(documents, settings["batch_size"]):
            # Similar lengths pad less, as in the pipeline's own order of a list.
            orders.append(sorted(range(len(window)), key=lambda index: len(window[index]), reverse=True))
            yield from (window[index] for index in orders[-1])

    stream = iter(write(by_length(), **settings))
    for first in stream:
        order = orders.popleft()
        titles = dict(zip(order, itertools.chain([first], itertools.islice(stream, len(order) - 1))))
        yield from (titles[index] for index in range(len(order)))


def _window_by_window(
    write: BidirSeq2SeqPipeline, documents: Iterable[str], settings: dict, seed: int
) -> Iterator[list[dict]]:
    for number, window in enumerate(windows(documents, settings["batch_size"])):
        set_seed(seed + number)
        yield from write(window, **settings)


def window_size(batch_size: int) -> int:
    """Documents in a window of a stream.

    Raises:
        ValueError: If there would be none.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    return WINDOW_BATCHES * batch_size


def windows(documents: Iterable[str], batch_size: int) -> Iterator[list[str]]:
    """The documents, a window at a time."""
    documents = iter(documents)
    while window := list(itertools.islice(documents, window_size(batch_size))):
        yield window


def _as_titles(candidates: list[dict]) -> list[Title]:
    return [Title(title.pop("generated_text"), **title) for title in candidates]


__all__ = ["WINDOW_BATCHES", "Title", "stream_titles", "window_size", "windows", "write_titles"]

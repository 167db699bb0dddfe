"""Titles for documents in one call, as objects: the pipeline for a program that holds model and tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .pipeline import BidirSeq2SeqPipeline


@dataclass(frozen=True)
class Title:
    """One candidate title.

    Attributes:
        text: The title; empty for an empty document.
        score: What it was ranked by (a length-normalised log-probability), `None` for greedy search and sampling.
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
    return [[Title(title.pop("generated_text"), **title) for title in candidates] for candidates in titles]


__all__ = ["Title", "write_titles"]

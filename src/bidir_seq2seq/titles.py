"""Writing titles for texts with a trained model: batching, and what a caller wants to know of each title."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Title:
    """One candidate title.

    Attributes:
        text: The title; empty for an empty document.
        score: What it was ranked by (a length-normalised log-probability), `None` for greedy search and sampling.
        direction: Which direction wrote it, `"l2r"` or `"r2l"`; `None` for an empty document.
    """

    text: str
    score: float | None = None
    direction: str | None = None


def write_titles(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    batch_size: int = 32,
    max_source_length: int | None = None,
    progress: bool = False,
    **generate_kwargs,
) -> list[list[Title]]:
    """Writes titles for documents, in batches of similar length.

    Args:
        model: A model with `generate`; it is put in evaluation mode.
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
    for index, document in enumerate(documents):
        if not isinstance(document, str):
            raise ValueError(f"document {index} is {document!r}, which is not text")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    model.eval()
    limit = max_source_length or tokenizer.model_max_length
    encoded = [
        tokenizer(text, truncation=False, split_special_tokens=True, verbose=False)["input_ids"] for text in documents
    ]
    cut = sum(len(ids) > limit for ids in encoded)
    if cut:
        logger.warning(f"{cut} of {len(documents)} documents are longer than {limit} tokens: their tails are not read")
    unknown = sum(ids.count(tokenizer.unk_token_id) for ids in encoded) / max(sum(map(len, encoded)), 1)
    if unknown > 0.1:
        logger.warning(
            f"{unknown:.0%} of the documents' tokens are unknown to the model: titles may make little sense"
        )

    titles: list[list[Title]] = [[Title("")] for _ in documents]
    by_length = sorted((i for i, text in enumerate(documents) if text.strip()), key=lambda i: len(encoded[i]))
    with tqdm(total=len(by_length), desc="Writing titles", disable=not progress) as bar:
        for start in range(0, len(by_length), batch_size):
            rows = by_length[start : start + batch_size]
            batch = tokenizer.pad({"input_ids": [encoded[i][:limit] for i in rows]}, return_tensors="pt")
            for row, candidates in zip(rows, _write_batch(model, tokenizer, batch, generate_kwargs)):
                titles[row] = candidates
            bar.update(len(rows))
    return titles


@torch.inference_mode()
def _write_batch(model, tokenizer, batch, generate_kwargs: dict) -> Iterator[list[Title]]:
    output = model.generate(
        **batch.to(model.device), **generate_kwargs, return_dict_in_generate=True, output_scores=True
    )
    texts = tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
    scores = getattr(output, "sequences_scores", None)
    scores = scores.tolist() if scores is not None else [None] * len(texts)
    direction = generate_kwargs.get("decoding_direction") or model.generation_config.decoding_direction
    directions = getattr(output, "directions", None) or [direction] * len(texts)
    candidates = [Title(*parts) for parts in zip(texts, scores, directions)]
    per_document = len(candidates) // batch["input_ids"].shape[0]
    for start in range(0, len(candidates), per_document):
        yield candidates[start : start + per_document]


__all__ = ["Title", "write_titles"]

"""What the learned prior does: how much probability the words of a document get, with it and without."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .directions_bidir_seq2seq import IGNORE_INDEX, pack_labels


def source_word_mass(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    titles: Sequence[str],
    num_positions: int = 10,
    batch_size: int = 16,
) -> dict[str, dict[str, list[float]]]:
    """Measures, while known titles are read, the probability of the next token being a word of the document.

    "Without" is the same model with the same weights that has not been told which words the document holds. The twin
    is off, as over a known title it would show each decoder its own answer.

    Args:
        model: A model with `use_prior`.
        tokenizer: Its tokenizer.
        documents: Some documents.
        titles: A title for each.
        num_positions: How many tokens of a title to look at, in the order in which a direction writes them.
        batch_size: Pairs at a time.

    Returns:
        For each direction that the model has, `"with"` and `"without"` the prior, and `"without_copies"` if it copies:
        the mean probability at each position, 0 to 1.
        Pairs without text on both sides are left out; without any other there are no positions.

    Raises:
        ValueError: If the model has no prior.
    """
    if getattr(model, "prior", None) is None:
        raise ValueError("the model has no prior over source words: train one with use_prior=True")
    pairs = [(text, title) for text, title in zip(documents, titles) if text.strip() and title.strip()]
    sums: dict[tuple[str, str], torch.Tensor] = {}
    counts: dict[tuple[str, str], torch.Tensor] = {}
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(pairs), batch_size):
            batch = _encode(tokenizer, pairs[start : start + batch_size], model.device)
            for key, (mass, is_token) in _masses(model, batch).items():
                mass, is_token = (
                    torch.nn.functional.pad(x, (0, num_positions))[:, :num_positions] for x in (mass, is_token)
                )
                sums[key] = sums.get(key, 0) + (mass * is_token).sum(0)
                counts[key] = counts.get(key, 0) + is_token.sum(0)
    finally:
        model.train(was_training)
    found: dict[str, dict[str, list[float]]] = {}
    for (direction, kind), total in sums.items():
        reached = counts[direction, kind] > 0
        found.setdefault(direction, {})[kind] = (total[reached] / counts[direction, kind][reached]).tolist()
    return found


def _encode(
    tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]], device: torch.device
) -> dict[str, torch.Tensor]:
    settings = {"padding": True, "truncation": True, "split_special_tokens": True, "return_tensors": "pt"}
    sources, targets = (tokenizer(list(texts), **settings) for texts in zip(*pairs))
    labels = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, IGNORE_INDEX)
    # As logits come, whatever side the tokenizer pads on.
    labels = pack_labels(labels, tokenizer.bos_token_id)
    batch = {name: sources[name] for name in ("input_ids", "attention_mask")} | {"labels": labels}
    return {name: values.to(device) for name, values in batch.items()}


@torch.no_grad()
def _masses(
    model: PreTrainedModel, batch: dict[str, torch.Tensor]
) -> dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]:
    """For each direction and kind the mass at each of a title's tokens `[B, T]`, and where there is one."""
    encoder_outputs = model.get_encoder()(batch["input_ids"], batch["attention_mask"], return_dict=True)
    words = encoder_outputs.source_words
    unaware = copy.copy(encoder_outputs)
    unaware["source_words"] = torch.zeros_like(words)
    masses = {}
    encodings = {"with": encoder_outputs, "without": unaware}
    if getattr(model.config, "use_copy", False):
        encodings["without_copies"] = copy.copy(encoder_outputs)
        encodings["without_copies"]["source_ids"] = None
    for kind, encoded in encodings.items():
        output = model(encoder_outputs=encoded, labels=batch["labels"], use_twin=False)
        only = model.config.decoder_directions
        sides = [("l2r", output.logits), ("r2l", output.r2l_logits)] if only == "both" else [(only, output.logits)]
        for direction, logits in sides:
            mass = (logits.float().softmax(-1) * words[:, None]).sum(-1)
            # A direction's own end takes the place of the other's, so both have tokens where the labels have.
            masses[direction, kind] = mass, batch["labels"] != IGNORE_INDEX
    return masses


__all__ = ["source_word_mass"]

"""Words of a document that the vocabulary does not have: ids of their own for a model that copies, and back to text.

Within one document the first such word has the id V, the second V + 1 and so on, each word wherever it stands the same
one (`extended_input_ids`). They mean nothing without their document's list of words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import BatchEncoding, DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from .directions_bidir_seq2seq import IGNORE_INDEX
from .encoders_bidir_seq2seq import PIECE_INPUTS

# What an earlier model wrote of each document, as the model's `forward` takes it. A Trainer takes every argument of it
# with "label" in its name for one without which nothing is validated.
PARTNER_INPUTS = ("l2r_partner_ids", "r2l_partner_ids")


def extend_ids(
    encoding: BatchEncoding,
    index: int,
    text: str,
    unk_id: int,
    vocab_size: int,
    words: Sequence[str] = (),
    grow: bool = True,
    normalize: Callable[[str], str] = str,
) -> tuple[list[int], list[str]]:
    """The ids of one text with its unknown words told apart.

    Args:
        encoding: Of a fast tokenizer, with `return_offsets_mapping=True`.
        index: Which of its texts.
        text: That text.
        unk_id: The unknown token's id.
        vocab_size: V.
        words: Unknown words that have an id already.
        grow: Whether others get one too; a title's words are those of its document.
        normalize: How the tokenizer reads words, [`normalizer_of`]: those that it reads alike are one word, and are
            written so.

    Returns:
        The ids, and the unknown words in the order of their ids.
    """
    known = list(words)
    ids = list(encoding["input_ids"][index])
    for place, (token_id, (start, end)) in enumerate(zip(ids, encoding["offset_mapping"][index])):
        # Few are: no other one is worth normalizing.
        if token_id != unk_id or not (word := normalize(text[start:end])):
            continue
        if word not in known and grow:
            known.append(word)
        if word in known:
            ids[place] = vocab_size + known.index(word)
    return ids, known


def normalizer_of(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], str]:
    """What a fast tokenizer makes of a text before it looks for tokens: lower case, say."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer is None:
        return str
    # Some put sentencepiece's sign of a space in front of every text.
    return lambda text: normalizer.normalize_str(text).removeprefix("\u2581")


def can_extend(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer tells which part of a text each of its tokens is."""
    return bool(tokenizer.is_fast) and tokenizer.unk_token_id is not None


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], words: Sequence[str], vocab_size: int) -> str:
    """The text of one title's ids, special tokens left out.

    Args:
        tokenizer: The model's.
        ids: Those from V on stand for `words`, the document's.
        words: In the order of their ids.
        vocab_size: V.
    """
    if all(token_id < vocab_size for token_id in ids):
        return tokenizer.decode(ids, skip_special_tokens=True)
    tokens = [
        words[token_id - vocab_size] if token_id >= vocab_size else tokenizer.convert_ids_to_tokens(token_id)
        for token_id in ids
        if token_id >= vocab_size or token_id not in tokenizer.all_special_ids
    ]
    return tokenizer.convert_tokens_to_string(tokens)


# Rare Chinese characters (Unicode's extension B), which no vocabulary of real text has: each is a token of its own for
# metrics, of characters and of words alike. The last one of them stands for what no title can hold.
FIRST_PLACEHOLDER, UNWRITABLE = 0x20000, "\U0002a6df"


def placeholders(number: int) -> list[str]:
    """So many words of one character that differ, for texts that are only compared, as in metrics."""
    return [chr(FIRST_PLACEHOLDER + index) for index in range(number)]


def decode_to_compare(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]], vocab_size: int, are_references: bool = False
) -> list[str]:
    """The texts of many titles, for who has no list of each document's words.

    A word outside the vocabulary is written as the same one only where it has the same id.

    Args:
        tokenizer: The model's.
        rows: The ids of each title.
        vocab_size: V.
        are_references: Whether the unknown token stands for a word that is missed in every title, not for nothing.
    """
    highest = max((max(row, default=0) for row in rows), default=0)
    words = placeholders(highest + 1 - vocab_size)
    if are_references:
        missing = vocab_size + len(words)
        words = [*words, UNWRITABLE]
        rows = [[missing if token_id == tokenizer.unk_token_id else token_id for token_id in row] for row in rows]
    return [decode(tokenizer, row, words, vocab_size) for row in rows]


class TitleCollator(DataCollatorForSeq2Seq):
    """transformers' collator, which pads `extended_input_ids`, what a pretrained encoder reads and what partners have
    written as well."""

    def __call__(self, features: Sequence[dict[str, Any]], return_tensors: str | None = None) -> BatchEncoding:
        """Rows of ids to a batch of tensors, `[B, S]`, `[B, T]` and, of partners, `[B, P]`."""
        rows = [dict(feature) for feature in features]
        pad_id, on_left = self.tokenizer.pad_token_id, self.tokenizer.padding_side == "left"
        # Pieces stand on the left whatever the tokenizer's side.
        ours = {"extended_input_ids": (pad_id, on_left), "encoder_positions": (0, on_left)}
        rules = dict.fromkeys(PIECE_INPUTS, (0, False)) | dict.fromkeys(PARTNER_INPUTS, (IGNORE_INDEX, False)) | ours
        taken = {name: [row.pop(name) for row in rows] for name in rules if name in rows[0]}
        batch = super().__call__(rows, return_tensors)
        for name, values in taken.items():
            value, on_left = rules[name]
            length = batch["input_ids"].shape[1] if name in ours else max(1, *map(len, values))
            padded = []
            for ids in values:
                padding = [value] * (length - len(ids))
                padded.append([*padding, *ids] if on_left else [*ids, *padding])
            batch[name] = torch.tensor(padded)
        return batch


__all__ = [
    "PARTNER_INPUTS",
    "TitleCollator",
    "can_extend",
    "decode",
    "decode_to_compare",
    "extend_ids",
    "normalizer_of",
    "placeholders",
]

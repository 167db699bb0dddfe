"""What suits a set of pairs, if nothing is said of it: tokens, vocabulary, width, decoders, dropout, smoothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .pair_summary import taken_share
from .training_arguments import WARMUP

if TYPE_CHECKING:
    from datasets import Dataset

    from .streaming import PairStream

logger = logging.get_logger(__name__)

# Twins are worth their time where at least so much of a title is taken from its text: 0.2 to 0.8 on titles, where they
# gain, 0.01 to 0.05 in translation. There one direction that trains as long is ahead, unless every pair is seen often
# (docs/bidirectional.md).
TWINS_FROM, TWINS_FROM_PASSES = 0.1, 10
# A model that sees every pair so often learns some by heart without dropout; one that sees them less often has no time
# to (docs/training.md).
DROPOUT, DROPOUT_FROM = 0.2, 5
# A wide model that sees every pair so often is better than one of half the width that sees it more often in the same
# time (docs/training.md).
WIDE, WIDE_FROM = 256, 2
# Of a short training so much is warm-up: it learns less with a tenth, and by far less where the learning rate never
# comes to its peak (docs/training.md).
WARMUP_SHARE = 0.5
# Of a new model; better in all trials but one (docs/training.md).
LABEL_SMOOTHING = 0.1
# Fewer pairs say little about what suits them.
FEW_PAIRS = 100
# Scripts that put no space between words: Thai, Lao, Tibetan, Burmese, Khmer, Kana, Han.
UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def suitable_tokenizer_type(pairs: Dataset | PairStream) -> str:
    """The `tokenizer_type` of a new tokenizer.

    Args:
        pairs: Of the training; the first thousand are looked at.

    Returns:
        "bpe" for scripts with spaces between words; "char" where a tenth of the letters are of one without, and where
        there are too few pairs to learn pieces from.
    """
    some = next(iter(pairs.iter(1000)))
    if len(some["source"]) < FEW_PAIRS:
        return "char"
    return "bpe" if has_spaces(text or "" for side in ("source", "target") for text in some[side]) else "char"


def has_spaces(texts: Iterable[str]) -> bool:
    """Whether the scripts of some texts have spaces between words, but for less than a tenth of the letters."""
    letters = unspaced = 0
    for text in texts:
        letters += sum(map(str.isalpha, text))
        unspaced += len(UNSPACED.findall(text))
    return 10 * unspaced < letters


def suitable_vocabulary(num_pairs: int, tokenizer_type: str) -> tuple[int, int]:
    """What a vocabulary is limited to if nothing is said: by how much there is to learn its words from.

    A word needs some examples, or a vector of its own is of no use; rarer ones can be copied all the same.

    Args:
        num_pairs: Of the training.
        tokenizer_type: "char", "word" or "bpe".

    Returns:
        The largest number of ids: 8,000; of BPE pieces, which are as many as they may be, a quarter of the pairs,
        from 1,000 on. And how often a character or word, or a pair of pieces, must have been seen: once in 2,000
        pairs, 2 to 10 times.
    """
    vocab_size = 8000 if tokenizer_type != "bpe" else max(1000, min(num_pairs // 4, 8000))
    return vocab_size, max(2, min(num_pairs // 2000, 10))


def suitable_directions(pairs: Dataset | PairStream, tokenizer: PreTrainedTokenizerBase, passes: float) -> str:
    """The `decoder_directions` of a new model if nothing is said, with a word about why.

    Args:
        pairs: Of the training; the first thousand are looked at.
        tokenizer: The model's.
        passes: How often each pair is seen.
    """
    some = next(iter(pairs.iter(1000)))
    if len(some["source"]) < FEW_PAIRS:
        return "both"
    share = taken_share(some["source"], some["target"], tokenizer)
    if share >= TWINS_FROM:
        logger.warning_once(f"twin decoders, as {share:.0%} of the titles' tokens are taken from their texts")
        return "both"
    if passes >= TWINS_FROM_PASSES:
        logger.warning_once(f"twin decoders, as every pair is seen {passes:.3g} times")
        return "both"
    logger.warning_once(
        f"one decoder, from left to right, as only {share:.0%} of the titles' tokens are taken from their texts, and "
        f"every pair is seen only {passes:.3g} times: it learns more in the same time than twins would; "
        "decoder_directions='both' makes twins"
    )
    return "l2r"


def suitable_width(passes: float) -> int | None:
    """The `hidden_size` of a new model that has a given time, with a word if it is another than that of the config.

    Args:
        passes: How often a model of width 256 would see each pair in this time.

    Returns:
        256, or `None`, which leaves it to the config.
    """
    if passes < WIDE_FROM:
        return None
    logger.warning_once(f"hidden_size={WIDE}, as there is time to see every pair {passes:.3g} times with it")
    return WIDE


def suitable_dropout(passes: float) -> float:
    """The `dropout` of a new model that sees every pair so many times, with a word if it has any."""
    if passes < DROPOUT_FROM:
        return 0.0
    logger.warning_once(f"dropout {DROPOUT}, as every pair is seen {passes:.3g} times; --dropout sets another")
    return DROPOUT


def suitable_warmup(updates: int) -> int:
    """The `warmup_steps` of a training of so many updates, with a word if they are few."""
    if updates * WARMUP_SHARE >= WARMUP:
        return WARMUP
    warmup = int(updates * WARMUP_SHARE)
    logger.warning_once(f"warmup_steps={warmup}, half of the updates; --warmup_steps sets another number")
    return warmup


__all__ = [
    "DROPOUT",
    "LABEL_SMOOTHING",
    "WIDE",
    "has_spaces",
    "suitable_directions",
    "suitable_dropout",
    "suitable_tokenizer_type",
    "suitable_vocabulary",
    "suitable_warmup",
    "suitable_width",
]

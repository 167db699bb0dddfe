"""Builds stock fast tokenizers, of characters, words or BPE pieces; nothing here is needed to load one again."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# Ids 0 to 3, in this order.
SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[START]", "eos_token": "[END]"}


def build_char_tokenizer(
    texts: Iterable[str],
    min_frequency: int = 2,
    vocab_size: int | None = None,
    lowercase: bool = False,
    model_max_length: int = 512,
) -> PreTrainedTokenizerFast:
    """Makes every character a token, spaces and newlines too: the choice for Chinese and Japanese titles.

    Args:
        texts: Any iterator of documents and titles; read once.
        min_frequency: Characters seen less often become the unknown token.
        vocab_size: Keep at most this many ids, the most frequent; default: no limit.
        lowercase: Whether to lower-case text.
        model_max_length: Longest source in tokens, longer ones are cut.

    Returns:
        A tokenizer that ends every text with the end token, and that `AutoTokenizer` loads without custom code.

    Raises:
        ValueError: If the texts hold no character that is frequent enough.
    """
    tokenizer = char_backend()
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size or 2**31 - 1,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS.values()),
        show_progress=False,
    )
    return _train(tokenizer, trainer, texts, lowercase, model_max_length, f"min_frequency={min_frequency}")


def build_word_tokenizer(
    texts: Iterable[str],
    min_frequency: int = 2,
    vocab_size: int | None = None,
    lowercase: bool = False,
    model_max_length: int = 512,
) -> PreTrainedTokenizerFast:
    """Makes what stands between white space a token: for pronunciations, and text that is cut or tagged already.

    Args:
        texts: Any iterator of documents and titles; read once.
        min_frequency: Words seen less often become the unknown token.
        vocab_size: Keep at most this many ids, the most frequent; default: no limit.
        lowercase: Whether to lower-case text.
        model_max_length: Longest source in tokens, longer ones are cut.

    Returns:
        A tokenizer that ends every text with the end token and writes words with a space between them, and that
        `AutoTokenizer` loads without custom code.

    Raises:
        ValueError: If the texts hold no word that is frequent enough.
    """
    tokenizer = Tokenizer(models.WordLevel({}, unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), _cut_literals()])
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size or 2**31 - 1,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS.values()),
        show_progress=False,
    )
    return _train(tokenizer, trainer, texts, lowercase, model_max_length, f"min_frequency={min_frequency}")


def build_bpe_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 8000,
    min_frequency: int = 2,
    lowercase: bool = False,
    model_max_length: int = 512,
) -> PreTrainedTokenizerFast:
    """Learns BPE pieces within words: the choice for languages that write spaces between words.

    White space of any kind and length is one boundary between words, and is written as one space.

    Args:
        texts: Any iterator of documents and titles; read once.
        vocab_size: Number of ids, the four special ones included.
        min_frequency: Pairs seen less often are not merged.
        lowercase: Whether to lower-case text.
        model_max_length: Longest source in tokens, longer ones are cut.

    Returns:
        A tokenizer that ends every text with the end token, and that `AutoTokenizer` loads without custom code.

    Raises:
        ValueError: If the texts are empty, or `vocab_size` leaves no room beside the special tokens.
    """
    if vocab_size <= len(SPECIAL_TOKENS):
        raise ValueError(f"vocab_size={vocab_size} must be above {len(SPECIAL_TOKENS)}, the number of special tokens")
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS["unk_token"], fuse_unk=True))
    # Tabs, line breaks and U+3000 would otherwise be signs of a word, and mostly unknown ones.
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), _cut_literals()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS.values()),
        # Every rare sign of the training text would otherwise take an id of its own from a useful piece.
        limit_alphabet=max(vocab_size // 4, 1),
        show_progress=False,
    )
    return _train(tokenizer, trainer, texts, lowercase, model_max_length, f"vocab_size={vocab_size}")


def _cut_literals() -> pre_tokenizers.PreTokenizer:
    """Cuts somebody's "[END]" into "[" and "END]", which is text: no word and no piece has a special token's name."""
    names = "|".join(token[1:].replace("]", r"\]") for token in SPECIAL_TOKENS.values())
    return pre_tokenizers.Split(Regex(rf"\[(?=(?:{names}))"), behavior="isolated")


def _train(
    tokenizer: Tokenizer,
    trainer: trainers.Trainer,
    texts: Iterable[str],
    lowercase: bool,
    model_max_length: int,
    setting: str,
) -> PreTrainedTokenizerFast:
    if lowercase:
        before = [tokenizer.normalizer] if tokenizer.normalizer else []
        tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Lowercase()])
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() <= len(SPECIAL_TOKENS):
        raise ValueError(f"no token found in the texts with {setting}: are they empty, or is the setting too strict?")
    special = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS.values()]
    assert special == list(range(len(special))), f"special tokens have the ids {special}"
    end = SPECIAL_TOKENS["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B:1 {end}:1", special_tokens=[(end, tokenizer.token_to_id(end))]
    )
    return as_fast_tokenizer(tokenizer, model_max_length)


def number_of_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many ids a model for a tokenizer has: ids may have holes, where a tokenizer counts its tokens."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def char_backend(vocab: dict[str, int] | None = None) -> Tokenizer:
    """A backend whose tokens are single characters, with the ids of `vocab` or yet to be trained."""
    tokenizer = Tokenizer(models.WordLevel(vocab or {}, unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def as_fast_tokenizer(backend: Tokenizer, model_max_length: int) -> PreTrainedTokenizerFast:
    """The stock tokenizer around a backend, with our special tokens and input names."""
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=model_max_length,
        model_input_names=["input_ids", "attention_mask"],
        **SPECIAL_TOKENS,
    )


__all__ = [
    "SPECIAL_TOKENS",
    "as_fast_tokenizer",
    "build_bpe_tokenizer",
    "build_char_tokenizer",
    "build_word_tokenizer",
    "char_backend",
    "number_of_ids",
]

"""Pairs of texts: loading, checking and encoding them, and an account of what was dropped or cut."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass

from datasets import Dataset, DatasetDict, load_dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

logger = logging.get_logger(__name__)

FILE_FORMATS = {"json": "json", "jsonl": "json", "csv": "csv", "tsv": "csv"}


@dataclass
class EncodingReport:
    """What became of the pairs of one split.

    Attributes:
        pairs: Pairs kept.
        empty_source, empty_target: Pairs dropped because that side has no text.
        cut_source, cut_target: Texts that were longer than the maximum and lost their tail.
        unknown_rate: Share of source tokens that the vocabulary does not know, 0 to 1.
    """

    pairs: int = 0
    empty_source: int = 0
    empty_target: int = 0
    cut_source: int = 0
    cut_target: int = 0
    unknown_rate: float = 0.0

    def __str__(self) -> str:
        return ", ".join(
            f"{name.replace('_', ' ')} {value:.2%}"
            if isinstance(value, float)
            else f"{name.replace('_', ' ')} {value}"
            for name, value in asdict(self).items()
            if value or name == "pairs"
        )


def load_pairs(
    files: dict[str, str] | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    source_column: str | None = None,
    target_column: str | None = None,
    cache_dir: str | None = None,
) -> DatasetDict:
    """Loads text pairs and names their columns `source` and `target`.

    Args:
        files: For each split (`"train"`, `"validation"`, `"test"`) a `.json`, `.jsonl`, `.csv` or `.tsv` file.
        dataset_name: A dataset of the Hub, or a local folder of one, instead of files.
        dataset_config_name: Which of its configurations.
        source_column: Column of the text to read; default: the first one.
        target_column: Column of the text to write; default: the second one.
        cache_dir: Where datasets keeps its cache.

    Raises:
        ValueError: On an unknown file type, a missing column, or when neither files nor a name are given.
    """
    files = {split: path for split, path in (files or {}).items() if path is not None}
    if bool(files) == bool(dataset_name):
        raise ValueError("give either data files (train_file, validation_file, ...) or dataset_name")
    if dataset_name:
        splits = load_dataset(dataset_name, dataset_config_name, cache_dir=cache_dir)
    else:
        splits = DatasetDict({split: load_file(path, cache_dir) for split, path in files.items()})
    return DatasetDict(
        {name: _name_columns(split, name, source_column, target_column) for name, split in splits.items()}
    )


def load_file(path: str, cache_dir: str | None = None) -> Dataset:
    """Loads one `.json`, `.jsonl`, `.csv` or `.tsv` file.

    Raises:
        ValueError: On another file type.
    """
    extension = path.rsplit(".", 1)[-1].lower()
    if extension not in FILE_FORMATS:
        raise ValueError(f"{path}: unknown file type .{extension}; use {', '.join(f'.{e}' for e in FILE_FORMATS)}")
    options = {"sep": "\t"} if extension == "tsv" else {}
    return load_dataset(FILE_FORMATS[extension], data_files=path, split="train", cache_dir=cache_dir, **options)


def _name_columns(split: Dataset, name: str, source_column: str | None, target_column: str | None) -> Dataset:
    columns = split.column_names
    if len(columns) < 2 and (source_column is None or target_column is None):
        raise ValueError(f"{name}: needs a source and a target column, but there is only {columns}")
    source_column = source_column or columns[0]
    target_column = target_column or columns[1]
    for option, column in (("source_column", source_column), ("target_column", target_column)):
        if column not in columns:
            close = difflib.get_close_matches(column, columns, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{name}: {option}={column!r} is not among its columns {columns}{hint}")
    if source_column == target_column:
        raise ValueError(f"source_column and target_column are both {source_column!r}: a model cannot learn from that")
    split = split.select_columns([source_column, target_column])
    return split.rename_columns({source_column: "source", target_column: "target"})


def encode_pairs(
    pairs: Dataset, tokenizer: PreTrainedTokenizerBase, max_source_length: int, max_target_length: int
) -> tuple[Dataset, EncodingReport]:
    """Tokenises pairs for training; drops those with an empty side and cuts long ones.

    A target is cut before anything reverses it, and keeps its end: both directions learn the same, shorter title.

    Args:
        pairs: With text columns `source` and `target`.
        tokenizer: Its end token is appended to targets if it does not do so itself.
        max_source_length: In tokens, the end token included.
        max_target_length: In tokens, the end token included.

    Returns:
        A dataset with columns `input_ids`, `attention_mask`, `labels` and `length`, and the account of it.

    Raises:
        ValueError: If a side is not text (naming the row), a limit is below 2, or no pair is left.
    """
    for name, limit in (("max_source_length", max_source_length), ("max_target_length", max_target_length)):
        if limit < 2:
            raise ValueError(f"{name}={limit} leaves no room for a token beside the end token: use at least 2")
    end_id, unk_id = tokenizer.eos_token_id, tokenizer.unk_token_id

    def encode(batch: dict, indices: list[int]) -> dict:
        for column in ("source", "target"):
            for index, text in zip(indices, batch[column]):
                if text is not None and not isinstance(text, str):
                    raise ValueError(f"row {index}: {column} is {text!r}, which is not text")
        sources = _tokenize(tokenizer, batch["source"])
        targets = _tokenize(tokenizer, batch["target"])
        cut = [_cut(ids, max_source_length, end_id if ids[-1:] == [end_id] else None) for ids in sources]
        return {
            "input_ids": cut,
            "attention_mask": [[1] * len(ids) for ids in cut],
            "labels": [_cut(ids, max_target_length, end_id) for ids in targets],
            "length": [len(ids) for ids in cut],
            "empty_source": [not (text or "").strip() for text in batch["source"]],
            "empty_target": [not (text or "").strip() for text in batch["target"]],
            "cut_source": [len(ids) > max_source_length for ids in sources],
            "cut_target": [len(_with_end(ids, end_id)) > max_target_length for ids in targets],
            "unknown": [ids.count(unk_id) for ids in cut],
        }

    encoded = pairs.map(
        encode, batched=True, with_indices=True, remove_columns=pairs.column_names, desc="Encoding pairs"
    )
    report = EncodingReport(
        **{name: sum(encoded[name]) for name in ("empty_source", "empty_target", "cut_source", "cut_target")}
    )
    kept = [i for i, bad in enumerate(map(max, encoded["empty_source"], encoded["empty_target"])) if not bad]
    report.pairs = len(kept)
    report.unknown_rate = sum(encoded["unknown"]) / max(sum(encoded["length"]), 1)
    if not kept:
        raise ValueError(f"no pair with text on both sides is left of {len(pairs)}: {report}")
    encoded = encoded.select_columns(["input_ids", "attention_mask", "labels", "length"])
    return encoded if len(kept) == len(encoded) else encoded.select(kept), report


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str | None]) -> list[list[int]]:
    # A literal "[END]" in somebody's text is text, not an end; lengths are cut by us, which can tell.
    encoding = tokenizer([text or "" for text in texts], truncation=False, split_special_tokens=True, verbose=False)
    return encoding["input_ids"]


def _with_end(ids: list[int], end_id: int | None) -> list[int]:
    return ids if end_id is None or ids[-1:] == [end_id] else [*ids, end_id]


def _cut(ids: list[int], max_length: int, end_id: int | None) -> list[int]:
    ids = _with_end(ids, end_id)
    if len(ids) <= max_length:
        return ids
    return ids[:max_length] if end_id is None else [*ids[: max_length - 1], end_id]


__all__ = ["FILE_FORMATS", "EncodingReport", "encode_pairs", "load_file", "load_pairs"]

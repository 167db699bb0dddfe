"""Pairs of texts: loading, checking and encoding them, and an account of what was dropped or cut."""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import BatchEncoding, PreTrainedTokenizerBase
from transformers.utils import logging

from .extras import extra
from .unknown_words import can_extend, extend_ids

# datasets and pandas take seconds to import, which who writes a title for a text has no need of.
if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.get_logger(__name__)

FILE_FORMATS = {"json": "json", "jsonl": "json", "csv": "csv", "tsv": "csv"}
# Names that say which column is the source and which the target, wherever they stand.
KNOWN_COLUMNS = (
    ("source", "target"),
    ("text", "title"),
    ("document", "summary"),
    ("article", "highlights"),
    ("content", "headline"),
    ("src", "tgt"),
)
# Cells are text: "NA" and "null" are words, "007" is not a number.
CSV_OPTIONS = {"keep_default_na": False, "encoding": "utf-8"}


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
    files: Mapping[str, str | None] | None = None,
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
        source_column: Column of the text to read; default: by name (see `KNOWN_COLUMNS`), else the first one.
        target_column: Column of the text to write; default: by name, else the second one.
        cache_dir: Where datasets keeps its cache.

    Raises:
        ValueError: On an unknown file type, an unreadable file, a missing column or one without text, or when
            neither files nor a name are given.
        ImportError: Without the extra `train`.
    """
    with extra("train"):
        from datasets import DatasetDict, load_dataset

    paths = {split: path for split, path in (files or {}).items() if path is not None}
    if bool(paths) == bool(dataset_name):
        raise ValueError("give either data files (train_file, validation_file, ...) or dataset_name")
    if dataset_name:
        splits = load_dataset(dataset_name, dataset_config_name, cache_dir=cache_dir)
    else:
        splits = DatasetDict({split: load_file(path, cache_dir) for split, path in paths.items()})
    return DatasetDict(
        {name: _name_columns(split, name, source_column, target_column) for name, split in splits.items()}
    )


def load_file(path: str, cache_dir: str | None = None) -> Dataset:
    """Loads one `.json`, `.jsonl`, `.csv` or `.tsv` file; every cell of the latter two is text.

    Raises:
        ValueError: On another file type, or if the file cannot be read (naming the place).
        ImportError: Without the extra `train`.
    """
    with extra("train"):
        import pandas as pd
        from datasets import load_dataset
        from datasets.exceptions import DatasetGenerationError

    extension = path.rsplit(".", 1)[-1].lower()
    if extension not in FILE_FORMATS:
        raise ValueError(f"{path}: unknown file type .{extension}; use {', '.join(f'.{e}' for e in FILE_FORMATS)}")
    options = _separation(extension) if FILE_FORMATS[extension] == "csv" else {}
    if not Path(path).is_file():
        # An address or a pattern of names, which datasets can read, or its own error.
        return load_dataset(FILE_FORMATS[extension], data_files=path, split="train", cache_dir=cache_dir, **options)
    try:
        line_end = _check_content(path)
        if FILE_FORMATS[extension] == "csv":
            options = _csv_options(path, extension, options | {"lineterminator": line_end})
        return load_dataset(FILE_FORMATS[extension], data_files=path, split="train", cache_dir=cache_dir, **options)
    except (DatasetGenerationError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(_what_is_wrong(path, extension, error)) from error


def read_lines(path: str) -> list[str]:
    """The lines of a UTF-8 text file, which end at a line feed and nowhere else; a byte order mark is dropped.

    Raises:
        ValueError: If the file is not UTF-8 (naming the place).
    """
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            return split_lines(file)
    except UnicodeDecodeError as error:
        raise ValueError(_what_is_wrong(path, "txt", error)) from error


def split_lines(stream: Iterable[str]) -> list[str]:
    """The lines of an open text stream, without their ends and without a byte order mark."""
    # Not str.splitlines: it also breaks at U+2028, U+0085 and form feeds, which stand inside documents.
    return [
        line.removesuffix("\n").removesuffix("\r").removeprefix("" if i else "\ufeff") for i, line in enumerate(stream)
    ]


def _check_content(path: str) -> str | None:
    """Reads a file once; returns a line feed if nothing but that ends its lines, else `None`.

    Raises:
        UnicodeDecodeError: If it is not UTF-8.
        ValueError: If it holds nothing.
    """
    feeds = returns = empty = True
    # Arrow takes the bytes of JSON strings as they are, and they would only fail where somebody reads them.
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for line in file:
            empty = empty and not line.strip()
            feeds = feeds and not line.endswith("\r\n")
            returns = returns and not line.endswith("\n")
    if empty:
        raise ValueError(f"{path}: the file is empty; it needs a row for every text")
    # A lone carriage return would end a row too, unless pandas is told; old files have no other line ends.
    return "\n" if feeds and not returns else None


def _separation(extension: str) -> dict:
    # Tab-separated text knows no quoting: a quotation mark is one of the text's own.
    return CSV_OPTIONS | ({"sep": "\t", "quoting": csv.QUOTE_NONE} if extension == "tsv" else {"sep": ","})


def _csv_options(path: str, extension: str, options: dict) -> dict:
    """How to read this very file: `options`, its delimiter, and every column as text."""
    import pandas as pd
    from datasets import Features, Value

    columns = list(pd.read_csv(path, nrows=0, **options).columns)
    if len(columns) == 1 and extension == "csv" and (separator := _other_separator(path, options)):
        options["sep"] = separator
        columns = list(pd.read_csv(path, nrows=0, **options).columns)
        logger.warning_once(f"{path}: no commas in its header; read as separated by {separator!r}, columns {columns}")
    # Of several columns a blank line is no row; of one it is an empty text, and rows must keep their places.
    options["skip_blank_lines"] = len(columns) > 1
    head = pd.read_csv(path, nrows=1, dtype=str, **options)
    if head.empty:
        raise ValueError(f"{path}: no row follows its header {columns}")
    if not isinstance(head.index, pd.RangeIndex):
        # pandas would take the first field for a row name and shift all others.
        raise ValueError(
            f"{path}: its first row has more fields than its header {columns}; name all columns, "
            f"and put text that contains {options['sep']!r} in quotation marks"
        )
    _warn_of_texts_as_names(path, columns)
    return options | {"features": Features({column: Value("string") for column in columns})}


def _other_separator(path: str, options: dict) -> str | None:
    """The separator, beside a comma, that cuts the header and most of the first rows into as many fields."""
    import pandas as pd

    for separator in (";", "\t"):
        try:
            head = pd.read_csv(path, nrows=10, dtype=str, **options | {"sep": separator})
        except pd.errors.ParserError:
            continue
        # A row too short has empty last cells, one too long has a row name.
        if len(head.columns) > 1 and isinstance(head.index, pd.RangeIndex) and (head.iloc[:, -1] != "").mean() > 0.5:
            return separator
    return None


def _warn_of_texts_as_names(path: str, columns: list[str]) -> None:
    texts = [name for name in columns if _looks_like_text(name)]
    if texts:
        logger.warning_once(
            f"{path}: its first line is taken as the names of its columns, but {texts[0][:80]!r} looks like text; "
            "if the file has no header, write one (source,target) as its first line, or that pair is lost"
        )


def _looks_like_text(name: str) -> bool:
    # Chinese and Japanese put no spaces between words: there it is the length or the punctuation that tells.
    chinese = re.findall(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]", name)
    if re.fullmatch(r"Unnamed: \d+", name):  # what pandas calls a column without a name
        return False
    return " " in name.strip() or len(name) > 40 or len(chinese) >= 8 or bool(re.search(r"[。，！？、；：]", name))


def _what_is_wrong(path: str, extension: str, error: Exception) -> str:
    """Says where a file cannot be read, and what to do about it."""
    content = Path(path).read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as bad:
        line = content.count(b"\n", 0, bad.start) + 1
        return (
            f"{path}: not UTF-8: byte {content[bad.start]:#04x} at position {bad.start} (line {line}); "
            "save it as UTF-8, for example with: iconv -f ENCODING -t UTF-8"
        )
    if FILE_FORMATS.get(extension) == "json":
        for number, text in enumerate(content.decode("utf-8-sig").split("\n"), start=1):
            try:
                json.loads(text or "null")
            except json.JSONDecodeError as bad:
                if number == 1 and _is_json(content):
                    break
                return f"{path}: line {number} is not JSON: {bad}; repair that line: each holds one object"
        return f"{path}: cannot be read: {error.__cause__ or error}; each line must be an object with the same columns"
    return (
        f"{path}: cannot be read: {str(error.__cause__ or error).strip()}; every row needs as many fields as the "
        "header, and text that contains the separator or a line break must stand in quotation marks"
    )


def _is_json(content: bytes) -> bool:
    """Whether the whole file is one JSON value, over however many lines."""
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


def choose_columns(
    columns: list[str], source_column: str | None = None, target_column: str | None = None
) -> tuple[str, str | None]:
    """The source and the target column: as given, else a pair of `KNOWN_COLUMNS`, else the first and the second.

    The target is `None` if there is no second column; a given name is returned whether it exists or not.
    """
    for source, target in KNOWN_COLUMNS:
        wanted = source_column in (None, source) and target_column in (None, target)
        if wanted and source in columns and target in columns:
            return source, target
    return source_column or columns[0], target_column or (columns[1] if len(columns) > 1 else None)


def check_text(rows: Dataset, column: str, option: str, name: str, given: bool = True) -> None:
    """Makes sure that a column holds text.

    Raises:
        ValueError: If it does not, or if it was not `given` by the user, is no known name and holds but numbers.
    """
    kind = getattr(rows.features[column], "dtype", None)
    known = any(column in pair for pair in KNOWN_COLUMNS)
    if kind not in ("string", "large_string", "null"):
        value = next((value for value in rows[column] if value is not None and not isinstance(value, str)), None)
    elif given or known:
        return
    else:
        values = [text for text in rows[: min(len(rows), 100)][column] if text]
        # Everything in a CSV file is text, so a column of row numbers is one of digits.
        if not values or not all(re.fullmatch(r"[\d.,+-]+", text) for text in values):
            return
        value = values[0]
    raise ValueError(
        f"{name}: column {column!r} does not hold text, but {value!r}; say which column does with --{option} "
        f"(there are {rows.column_names})"
    )


def _name_columns(split: Dataset, name: str, source_column: str | None, target_column: str | None) -> Dataset:
    columns = split.column_names
    if len(columns) < 2 and (source_column is None or target_column is None):
        raise ValueError(f"{name}: needs a source and a target column, but there is only {columns}")
    given = {"source_column": source_column is not None, "target_column": target_column is not None}
    source_column, target_column = choose_columns(columns, source_column, target_column)
    assert target_column is not None  # as there are two columns, or its name was given
    chosen = {"source_column": source_column, "target_column": target_column}
    for option, column in chosen.items():
        if column not in columns:
            close = difflib.get_close_matches(column, columns, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{name}: {option}={column!r} is not among its columns {columns}{hint}")
    if source_column == target_column:
        raise ValueError(f"source_column and target_column are both {source_column!r}: a model cannot learn from that")
    for option, column in chosen.items():
        check_text(split, column, option, name, given[option])
    if not all(given.values()):
        logger.warning_once(
            f"{name}: {source_column!r} is taken as the source and {target_column!r} as the target, of {columns}; "
            "others are named with --source_column and --target_column"
        )
    split = split.select_columns([source_column, target_column])
    return split.rename_columns({source_column: "source", target_column: "target"})


def encode_pairs(
    pairs: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_source_length: int,
    max_target_length: int,
    extend: bool = False,
) -> tuple[Dataset, EncodingReport]:
    """Tokenises pairs for training; drops those with an empty side and cuts long ones.

    A target is cut before anything reverses it, and keeps its end: both directions learn the same, shorter title.

    Args:
        pairs: With text columns `source` and `target`.
        tokenizer: Its end token is appended to targets if it does not do so itself.
        max_source_length: In tokens, the end token included.
        max_target_length: In tokens, the end token included.
        extend: Whether words outside the vocabulary get ids of their own, for a model that copies.

    Returns:
        A dataset with columns `input_ids`, `attention_mask`, `labels`, `length` and, if asked for,
        `extended_input_ids` (see `unknown_words.py`), and the account of it.

    Raises:
        ValueError: If a side is not text (naming the row), a limit is below 2, or no pair is left.
    """
    for name, limit in (("max_source_length", max_source_length), ("max_target_length", max_target_length)):
        if limit < 2:
            raise ValueError(f"{name}={limit} leaves no room for a token beside the end token: use at least 2")
    end_id, unk_id = tokenizer.eos_token_id, tokenizer.unk_token_id
    extend = extend and can_extend(tokenizer)

    def encode(batch: dict, indices: list[int]) -> dict:
        for column in ("source", "target"):
            for index, text in zip(indices, batch[column]):
                if text is not None and not isinstance(text, str):
                    raise ValueError(f"row {index}: {column} is {text!r}, which is not text")
        encodings = {name: _tokenize(tokenizer, batch[name], extend) for name in ("source", "target")}
        sources, targets = (encodings[name]["input_ids"] for name in encodings)
        cut = [_cut(ids, max_source_length, end_id if ids[-1:] == [end_id] else None) for ids in sources]
        columns = {}
        if extend:
            extended, targets = [], []
            for row, (source, target) in enumerate(zip(batch["source"], batch["target"])):
                settings = (unk_id, len(tokenizer))
                ids, words = extend_ids(encodings["source"], row, source or "", *settings)
                ids = _cut(ids, max_source_length, end_id if ids[-1:] == [end_id] else None)
                # What was cut off cannot be copied.
                words = words[: max([*ids, len(tokenizer) - 1]) - len(tokenizer) + 1]
                extended.append(ids)
                targets.append(extend_ids(encodings["target"], row, target or "", *settings, words, grow=False)[0])
            columns["extended_input_ids"] = extended
        return columns | {
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
    names = ["input_ids", "attention_mask", "labels", "length"]
    encoded = encoded.select_columns([*names, "extended_input_ids"] if extend else names)
    return encoded if len(kept) == len(encoded) else encoded.select(kept), report


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str | None], with_places: bool) -> BatchEncoding:
    # A literal "[END]" in somebody's text is text, not an end; lengths are cut by us, which can tell.
    settings = {"truncation": False, "split_special_tokens": True, "verbose": False}
    return tokenizer([text or "" for text in texts], **settings, return_offsets_mapping=with_places)


def _with_end(ids: list[int], end_id: int | None) -> list[int]:
    return ids if end_id is None or ids[-1:] == [end_id] else [*ids, end_id]


def _cut(ids: list[int], max_length: int, end_id: int | None) -> list[int]:
    ids = _with_end(ids, end_id)
    if len(ids) <= max_length:
        return ids
    return ids[:max_length] if end_id is None else [*ids[: max_length - 1], end_id]


__all__ = [
    "FILE_FORMATS",
    "KNOWN_COLUMNS",
    "EncodingReport",
    "check_text",
    "choose_columns",
    "encode_pairs",
    "load_file",
    "load_pairs",
    "read_lines",
    "split_lines",
]

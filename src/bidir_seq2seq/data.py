"""Pairs of texts: choosing their columns, loading and encoding them, and an account of what was dropped or cut."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from transformers import BatchEncoding, PreTrainedTokenizerBase
from transformers.utils import logging

from .charset import encoding_problem
from .encoders_bidir_seq2seq import PIECE_INPUTS, pieces_of, places_of, readable
from .extras import extra
from .files import is_saved_dataset
from .tables import Row, Table, cell, open_table
from .tokenization import number_of_ids
from .unknown_words import PARTNER_INPUTS, can_extend, extend_ids, normalizer_of
from .version import __version__

# datasets takes seconds to import, which who writes a title for a text has no need of.
if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from tokenizers import Tokenizer

logger = logging.get_logger(__name__)

# Names that say which column is the source and which the target, wherever they stand; the first pair that is there.
KNOWN_COLUMNS = (
    ("source", "target"),
    ("text", "title"),
    ("document", "summary"),
    ("article", "highlights"),
    ("content", "headline"),
    ("src", "tgt"),
    ("dialogue", "summary"),
    ("article", "title"),
    ("document", "title"),
    ("content", "title"),
    ("abstract", "title"),
    ("body", "title"),
    ("article", "headline"),
    ("article", "summary"),
    ("text", "summary"),
    ("input", "output"),
)
# Two columns named so are a translation from the first to the second. Not "id" and "no", which mean other things.
LANGUAGES = frozenset(
    (
        "ar", "bg", "bn", "ca", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "ga", "he", "hi", "hr",
        "hu", "is", "it", "ja", "ka", "kk", "ko", "lt", "lv", "mk", "ml", "mr", "ms", "mt", "nl", "pl", "pt", "ro",
        "ru", "sk", "sl", "sq", "sr", "sv", "sw", "ta", "te", "th", "tr", "uk", "ur", "vi", "zh",
    )
)  # fmt: skip
ON_BAD_ROWS = ("error", "skip")
# What an earlier model wrote of each document, from the left and from the right (`bidir-seq2seq partners`): where a
# file has these columns they are kept.
PARTNER_COLUMNS = ("l2r_title", "r2l_title")
# What a model is trained on; some only for a model that copies, has a pretrained encoder, or reads what another wrote.
ENCODED_COLUMNS = (
    *("input_ids", "attention_mask", "labels", "length", "extended_input_ids"),
    *PIECE_INPUTS,
    *PARTNER_INPUTS,
)


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
    files: dict[str, str | Sequence[str]] | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    source_column: str | None = None,
    target_column: str | None = None,
    cache_dir: str | None = None,
    on_bad_rows: str = "error",
    encoding: str | None = None,
) -> DatasetDict:
    """Loads text pairs and names their columns `source` and `target`.

    Every row of a file becomes a pair, in order; one without text on a side is one with an empty side. What an earlier
    model wrote (`PARTNER_COLUMNS`) is kept beside it.

    Args:
        files: For each split (`"train"`, `"validation"`, `"test"`) a file or several: `.json`, `.jsonl`, `.csv`,
            `.tsv` or `.parquet`, packed or not, a pattern, folder or address of such; or two files of plain text, the
            sources and their targets line by line.
        dataset_name: A dataset of the Hub, or a local folder of one, instead of files.
        dataset_config_name: Which of its configurations.
        source_column: Column of the text to read, or a dotted path into objects (`translation.en`); default: by name
            (see `KNOWN_COLUMNS`), else the first one.
        target_column: Column of the text to write; default: by name, else the second one.
        cache_dir: Where datasets keeps its cache.
        on_bad_rows: What to do with a row that cannot be read or holds no text: `"error"`, or `"skip"` it, after which
            the log says how many there were.
        encoding: Of files of text; default: found out.

    Raises:
        ValueError: On an unknown file type, an unreadable file or row (naming the place), a missing column or one
            without text, or when neither files nor a name are given.
        FileNotFoundError: If there is no such file.
    """
    with extra("train"):
        from datasets import DatasetDict, load_dataset

    if on_bad_rows not in ON_BAD_ROWS:
        raise ValueError(f"on_bad_rows={on_bad_rows!r} must be one of {', '.join(ON_BAD_ROWS)}")
    files = {split: names for split, names in (files or {}).items() if names}
    if bool(files) == bool(dataset_name):
        raise ValueError("give either data files (train_file, validation_file, ...) or dataset_name")
    if dataset_name:
        files = _files_of_folder(dataset_name) if dataset_config_name is None else {}
    if not files:
        if encoding is not None or on_bad_rows != "error":
            raise ValueError(
                f"dataset_name={dataset_name!r} is read by datasets, to which encoding={encoding!r} and on_bad_rows="
                f"{on_bad_rows!r} mean nothing: leave them out, or name the files with train_file"
            )
        splits = load_dataset(dataset_name, dataset_config_name, cache_dir=cache_dir)
        return DatasetDict(
            {
                name: _name_columns(split.flatten(), name, source_column, target_column)
                for name, split in splits.items()
            }
        )
    pairs = {}
    for split, names in files.items():
        table = open_table(names, encoding, split)
        columns = choose_text_columns(table, split, source_column, target_column)
        pairs[split] = _as_dataset(table, columns, on_bad_rows, cache_dir)
    return DatasetDict(pairs)


def _files_of_folder(folder: str) -> dict[str, list[str]]:
    """The files of each split of a local folder of a dataset; none if it is not one, or says itself how to be read."""
    if not Path(folder).is_dir() or _says_how_to_read(Path(folder) / "README.md"):
        return {}
    if is_saved_dataset(folder):
        parts = [path.name for path in Path(folder).iterdir() if is_saved_dataset(str(path))]
        return {part: [folder] for part in sorted(parts, key=lambda name: name != "train")} or {"train": [folder]}
    from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns

    try:
        return dict(DataFilesDict.from_patterns(get_data_patterns(folder), base_path=folder))
    except EmptyDatasetError as error:
        raise ValueError(f"{folder}: holds no files of data") from error


def _says_how_to_read(card: Path) -> bool:
    """Whether the card of a dataset has settings (`configs`) for those who load it, or such as nobody can read."""
    if not card.exists():
        return False
    from huggingface_hub import DatasetCard

    try:
        return "configs" in DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except ValueError:
        return True


def _as_dataset(table: Table, columns: tuple[str, ...], on_bad_rows: str, cache_dir: str | None) -> Dataset:
    from datasets import Dataset, Features, Value
    from datasets.exceptions import DatasetGenerationError

    # What stands here is part of the cache's key: files with their size and time, and how they are read.
    columns = (*columns, *(name for name in partner_columns(table.columns) if name not in columns))
    settings = {"table": table, "columns": columns, "on_bad_rows": on_bad_rows, "version": __version__}
    features = Features({name: Value("string") for name in ("source", "target", *columns[2:], "problem")})
    try:
        pairs = Dataset.from_generator(_pairs, features=features, gen_kwargs=settings, cache_dir=cache_dir)
    except DatasetGenerationError as error:
        raise error.__cause__ if isinstance(error.__cause__, ValueError) else error from None
    if on_bad_rows == "error":
        return pairs.remove_columns("problem")
    problems = pairs.data["problem"]
    bad = problems.length() - problems.null_count
    if bad:
        first = next(problem for problem in pairs["problem"] if problem)
        logger.warning(f"{table.name}: {bad} of {len(pairs)} rows are skipped, the first: {first}")
        pairs = pairs.select(problems.is_null().to_numpy().nonzero()[0])
    if len(pairs) == 0:
        raise ValueError(f"{table.name}: no good row is left")
    return pairs.remove_columns("problem")


def _pairs(table: Table, columns: tuple[str, ...], on_bad_rows: str, version: str) -> Iterator[dict]:
    names = ("source", "target", *columns[2:])
    for row, texts in read_texts(table, columns, on_bad_rows):
        yield {**dict(zip(names, texts or [None] * len(names))), "problem": None if texts else str(row)}


def partner_columns(columns: Sequence[str]) -> list[str]:
    """Those of some columns that hold what an earlier model wrote."""
    return [name for name in PARTNER_COLUMNS if name in columns]


def read_texts(
    table: Table, columns: Sequence[str], on_bad_rows: str = "error"
) -> Iterator[tuple[Row, list[str | None] | None]]:
    """The rows of a table, each with its texts in some columns.

    Args:
        table: The rows.
        columns: Which to read; a value that is missing or null is `None`, an empty text.
        on_bad_rows: `"error"`, or `"skip"` to be given bad rows in their place, with `None` for texts.

    Raises:
        ValueError: At a row that cannot be read or has another value than text, naming its place; with `"error"`.
    """
    for row in table:
        texts = None
        if row.problem is None:
            texts = [cell(row.values, column) for column in columns]
            problem = next(filter(None, map(_not_text, columns, texts)), None)
            row, texts = (row.bad(problem), None) if problem else (row, texts)
        if row.problem and on_bad_rows == "error":
            raise ValueError(f"{row} (or leave such rows out: --on_bad_rows skip)")
        yield row, texts


def _not_text(column: str, value) -> str | None:
    """Why a value is no text, if it is none."""
    if value is None:
        return None
    if not isinstance(value, str):
        # 1.50 would come out as 1.5, and true as True: only who wrote it knows which text is meant.
        return f"column {column!r} does not hold text, but {value!r}; write it in quotation marks"
    return f"column {column!r} holds half a sign: {value[:60]!r}" if encoding_problem(value) else None


def choose_columns(
    columns: Sequence[str], source_column: str | None = None, target_column: str | None = None
) -> tuple[str, str | None]:
    """The source and the target column: as given, else a known pair of names, else the first and the second.

    Known are the pairs of `KNOWN_COLUMNS`, whatever their case, and two languages such as `en` and `de`, of which the
    first is the source. In a dotted path the last name counts.

    The target is `None` if there is no second column; a given name is returned whether it exists or not.
    """
    source_column, target_column = (_same_name(name, columns) for name in (source_column, target_column))
    names = [_plain(column.rsplit(".", 1)[-1]) for column in columns]
    named = {name: column for name, column in zip(names, columns) if names.count(name) == 1}
    languages = [name for name in named if name in LANGUAGES]
    for source, target in (*KNOWN_COLUMNS, *([languages] if len(languages) == 2 else [])):
        if source not in named or target not in named:
            continue
        if source_column in (None, named[source]) and target_column in (None, named[target]):
            return named[source], named[target]
    return source_column or columns[0], target_column or (columns[1] if len(columns) > 1 else None)


def _plain(name: str) -> str:
    return name.strip().casefold()


def _same_name(name: str | None, columns: Sequence[str]) -> str | None:
    """A given name as its column is written, if but for case and blanks there is one such column."""
    if name is None or name in columns:
        return name
    alike = [column for column in columns if _plain(column) == _plain(name)]
    return alike[0] if len(alike) == 1 else name


def is_known_source(column: str) -> bool:
    """Whether a column's name says that it holds the texts to read."""
    return any(_plain(column.rsplit(".", 1)[-1]) == source for source, _ in KNOWN_COLUMNS)


def choose_text_columns(
    table: Table, name: str, source_column: str | None = None, target_column: str | None = None
) -> tuple[str, str]:
    """The columns of a table that hold the sources and the targets, by [`choose_columns`]; the log says which.

    Args:
        table: The rows.
        name: What to call it in messages.
        source_column, target_column: Names given by the user.

    Raises:
        ValueError: If a column is missing, does not hold text, or is both.
    """
    return _checked_columns(table.columns, table.head(), name, source_column, target_column)


def _checked_columns(
    columns: list[str], head: list[dict], name: str, source_column: str | None, target_column: str | None
) -> tuple[str, str]:
    if len(columns) < 2 and (source_column is None or target_column is None):
        raise ValueError(f"{name}: needs a source and a target column, but there is only {columns}")
    given = {"source_column": source_column, "target_column": target_column}
    chosen = dict(zip(given, choose_columns(columns, source_column, target_column)))
    for option, column in chosen.items():
        check_column(column, option, columns, name)
    if len(set(chosen.values())) == 1:
        raise ValueError(
            f"source_column and target_column are both {chosen['source_column']!r}: a model cannot learn from that"
        )
    for option, column in chosen.items():
        check_text(head, column, option, columns, name, given[option] is not None)
    source, target = chosen.values()
    if not all(given.values()):
        logger.warning_once(
            f"{name}: {source!r} is taken as the source and {target!r} as the target, of {columns}; "
            "others are named with --source_column and --target_column"
        )
    return source, target


def check_column(column: str, option: str, columns: Sequence[str], name: str) -> None:
    """Makes sure that a column is there.

    Raises:
        ValueError: If it is not, naming those that are.
    """
    if column in columns:
        return
    close = difflib.get_close_matches(column, columns, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{name}: {option}={column!r} is not among its columns {columns}{hint}")


def check_text(
    head: list[dict], column: str, option: str, columns: Sequence[str], name: str, given: bool = True
) -> None:
    """Makes sure that a column holds text, as far as its first rows tell.

    Raises:
        ValueError: If no row of `head` has text, but other values; or if the column was not `given` by the user, has
            no known name and holds but numbers.
    """
    values = [value for row in head if (value := cell(row, column)) not in (None, "")]
    texts = [value for value in values if isinstance(value, str)]
    known = any(_plain(column.rsplit(".", 1)[-1]) in pair for pair in KNOWN_COLUMNS)
    # Everything in a CSV file is text, so a column of row numbers is one of digits.
    numbers = not (given or known) and all(re.fullmatch(r"[\d.,+-]+", text) for text in texts)
    if values and (not texts or numbers):
        raise ValueError(
            f"{name}: column {column!r} does not hold text, but {values[0]!r}; say which column does with --{option} "
            f"(there are {columns})"
        )


def _name_columns(split: Dataset, name: str, source_column: str | None, target_column: str | None) -> Dataset:
    head = split.select(range(min(len(split), 100))).to_list()
    source, target = _checked_columns(split.column_names, head, name, source_column, target_column)
    kept = [column for column in partner_columns(split.column_names) if column not in (source, target)]
    return split.select_columns([source, target, *kept]).rename_columns({source: "source", target: "target"})


@dataclass(frozen=True)
class PairEncoder:
    """Makes ids of the texts of pairs.

    Attributes:
        tokenizer: Its end token is appended to targets if it does not do so itself.
        max_source_length, max_target_length: In tokens, the end token included.
        extend: Whether words outside the vocabulary get ids of their own, if the tokenizer tells where they stand.
        source_tokenizer: That of a model with a pretrained encoder, which reads pieces of its own.
        partners: Whether what an earlier model wrote of each document (`PARTNER_COLUMNS`) is read, too.
        vocab_size: From which id on words outside the vocabulary count: the model's, which may have more than the
            tokenizer. Default: the tokenizer's.

    Raises:
        ValueError: If a limit is below 2, or a pretrained encoder is to read and the tokenizer does not tell where its
            tokens stand.
    """

    tokenizer: PreTrainedTokenizerBase
    max_source_length: int
    max_target_length: int
    extend: bool = False
    source_tokenizer: Tokenizer | None = None
    partners: bool = False
    vocab_size: int | None = None

    def __post_init__(self):
        if self.source_tokenizer is not None and not self.tokenizer.is_fast:
            raise ValueError(
                "the tokenizer does not tell where its tokens stand, which a pretrained encoder needs: use a fast one"
            )
        for name in ("max_source_length", "max_target_length"):
            if (limit := getattr(self, name)) < 2:
                raise ValueError(f"{name}={limit} leaves no room for a token beside the end token: use at least 2")

    def __call__(self, batch: dict[str, list[str | None]], indices: Sequence[int] | None = None) -> dict[str, list]:
        """Columns of ids, and of what was cut, for columns `source` and `target` of texts.

        Args:
            batch: The texts; `None` is an empty one.
            indices: The numbers of the rows, for messages; default: from 0.

        Raises:
            ValueError: If a side is not text, naming the row, or what an earlier model wrote is to be read and is not
                there.
        """
        before = PARTNER_COLUMNS if self.partners else ()
        if missing := [name for name in before if name not in batch]:
            raise ValueError(
                f"twin_partner='written', and the training pairs have no column {missing[0]!r}: let `bidir-seq2seq "
                "partners` write what decoders are to read of each other, and train on the pairs that it leaves"
            )
        for column in ("source", "target", *before):
            for index, text in zip(indices or itertools.count(), batch[column]):
                if text is not None and not isinstance(text, str):
                    raise ValueError(f"row {index}: {column} is {text!r}, which is not text")
        end_id, unk_id = self.tokenizer.eos_token_id, self.tokenizer.unk_token_id
        extends = self.extend and can_extend(self.tokenizer)
        texts = {name: [text or "" for text in batch[name]] for name in ("source", "target", *before)}
        if self.source_tokenizer is not None:
            texts["source"] = [readable(self.source_tokenizer, text) for text in texts["source"]]
        with_places = extends or self.source_tokenizer is not None
        encodings = {name: _tokenize(self.tokenizer, texts[name], with_places) for name in texts}
        sources, *written = (encodings[name]["input_ids"] for name in encodings)
        cut = [self._cut_source(ids) for ids in sources]
        columns: dict[str, list] = {}
        if self.source_tokenizer is not None:
            columns |= self._pieces(texts["source"], encodings["source"], cut)
        if extends:
            columns["extended_input_ids"], *written = self._extended(texts, encodings)
        targets, *of_partners = ([self._without_start(ids) for ids in rows] for rows in written)
        for name, column, rows in zip(PARTNER_INPUTS, before, of_partners):
            # Who has written nothing is no partner.
            cut_rows = (_cut(ids, self.max_target_length, end_id) for ids in rows)
            columns[name] = [[] if is_empty(text) else ids for text, ids in zip(batch[column], cut_rows)]
        return columns | {
            "input_ids": cut,
            "attention_mask": [[1] * len(ids) for ids in cut],
            "labels": [_cut(ids, self.max_target_length, end_id) for ids in targets],
            "length": [len(ids) for ids in cut],
            "empty_source": [is_empty(text) for text in batch["source"]],
            "empty_target": [is_empty(text) for text in batch["target"]],
            "cut_source": [
                len(ids) > self.max_source_length or len(read) < len(text or "")
                for ids, read, text in zip(sources, texts["source"], batch["source"])
            ],
            "cut_target": [len(_with_end(ids, end_id)) > self.max_target_length for ids in targets],
            "unknown": [ids.count(unk_id) for ids in cut],
        }

    def encode(self, pairs: Dataset) -> tuple[Dataset, EncodingReport]:
        """All pairs as ids, as [`encode_pairs`] returns them, and the account of it.

        Raises:
            ValueError: If a side is not text (naming the row), or no pair is left.
        """
        report_columns = ("empty_source", "empty_target", "cut_source", "cut_target", "unknown")
        encoded = pairs.map(
            self, batched=True, with_indices=True, remove_columns=pairs.column_names, desc="Encoding pairs"
        )
        counts = {name: encoded.data[name].to_numpy() for name in report_columns}
        report = EncodingReport(**{name: int(counts[name].sum()) for name in report_columns if name != "unknown"})
        kept = np.flatnonzero(~(counts["empty_source"] | counts["empty_target"]))
        report.pairs = len(kept)
        report.unknown_rate = float(counts["unknown"].sum()) / max(int(encoded.data["length"].to_numpy().sum()), 1)
        if not report.pairs:
            raise ValueError(f"no pair with text on both sides is left of {len(pairs)}: {report}")
        encoded = encoded.select_columns([name for name in ENCODED_COLUMNS if name in encoded.column_names])
        return encoded if len(kept) == len(encoded) else encoded.select(kept), report

    def _pieces(self, texts: list[str], encodings: BatchEncoding, cut: list[list[int]]) -> dict[str, list]:
        """What a pretrained encoder reads of texts, of whose ids so many are left."""
        end_ids = itertools.repeat(self.tokenizer.eos_token_id)
        places = map(places_of, encodings["offset_mapping"], cut, end_ids)
        rows = [pieces_of(self.source_tokenizer, *row) for row in zip(texts, places)]
        return {name: [row[name] for row in rows] for name in PIECE_INPUTS}

    def _extended(self, batch: dict[str, list[str]], encodings: dict[str, BatchEncoding]) -> list[list[list[int]]]:
        """The ids of sources, cut, and of what was written of them, whole, in which the unknown words of each source
        have their own: a list for each column of the batch."""
        unk_id, vocab_size = self.tokenizer.unk_token_id, self.vocab_size or number_of_ids(self.tokenizer)
        normalize = normalizer_of(self.tokenizer)
        sources: list[list[int]] = []
        others: dict[str, list[list[int]]] = {name: [] for name in batch if name != "source"}
        for row, source in enumerate(batch["source"]):
            ids, words = extend_ids(encodings["source"], row, source, unk_id, vocab_size, normalize=normalize)
            sources.append(self._cut_source(ids))
            # What was cut off cannot be copied.
            words = words[: max([*sources[-1], vocab_size - 1]) - vocab_size + 1]
            for name, found in others.items():
                known = (unk_id, vocab_size, words)
                ids, _ = extend_ids(encodings[name], row, batch[name][row], *known, grow=False, normalize=normalize)
                found.append(ids)
        return [sources, *others.values()]

    def _without_start(self, ids: list[int]) -> list[int]:
        """Ids without what some tokenizers begin every text with: a decoder starts so, and never writes it."""
        start_id = self.tokenizer.bos_token_id
        return ids[1:] if start_id is not None and ids[:1] == [start_id] else ids

    def _cut_source(self, ids: list[int]) -> list[int]:
        end_id = self.tokenizer.eos_token_id
        return _cut(ids, self.max_source_length, end_id if ids[-1:] == [end_id] else None)


def is_empty(text: str | None) -> bool:
    """Whether a text holds nothing but white space: a pair with such a side is not trained on."""
    return not (text or "").strip()


def encode_pairs(
    pairs: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_source_length: int,
    max_target_length: int,
    extend: bool = False,
    source_tokenizer: Tokenizer | None = None,
) -> tuple[Dataset, EncodingReport]:
    """Tokenises pairs for training; drops those with an empty side and cuts long ones.

    A target is cut before anything reverses it, and keeps its end: both directions learn the same, shorter title.

    Args:
        pairs: With text columns `source` and `target`.
        tokenizer: Its end token is appended to targets if it does not do so itself.
        max_source_length: In tokens, the end token included.
        max_target_length: In tokens, the end token included.
        extend: Whether words outside the vocabulary get ids of their own, for a model that copies.
        source_tokenizer: That of a model with a pretrained encoder, which reads pieces of its own.

    Returns:
        A dataset with columns `input_ids`, `attention_mask`, `labels`, `length` and, if asked for,
        `extended_input_ids` (see `unknown_words.py`) or what the pretrained encoder reads, and the account of it.

    Raises:
        ValueError: If a side is not text (naming the row), a limit is below 2, or no pair is left; if a pretrained
            encoder is to read and the tokenizer does not tell where its tokens stand.
    """
    return PairEncoder(tokenizer, max_source_length, max_target_length, extend, source_tokenizer).encode(pairs)


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], with_places: bool) -> BatchEncoding:
    # A literal "[END]" in somebody's text is text, not an end; lengths are cut by us, which can tell.
    settings = {"truncation": False, "split_special_tokens": True, "verbose": False}
    return tokenizer(texts, **settings, return_offsets_mapping=with_places)


def _with_end(ids: list[int], end_id: int | None) -> list[int]:
    return ids if end_id is None or ids[-1:] == [end_id] else [*ids, end_id]


def _cut(ids: list[int], max_length: int, end_id: int | None) -> list[int]:
    ids = _with_end(ids, end_id)
    if len(ids) <= max_length:
        return ids
    return ids[:max_length] if end_id is None else [*ids[: max_length - 1], end_id]


__all__ = [
    "ENCODED_COLUMNS",
    "KNOWN_COLUMNS",
    "ON_BAD_ROWS",
    "PARTNER_COLUMNS",
    "EncodingReport",
    "PairEncoder",
    "check_column",
    "check_text",
    "choose_columns",
    "choose_text_columns",
    "encode_pairs",
    "is_empty",
    "is_known_source",
    "load_pairs",
    "partner_columns",
    "read_texts",
]

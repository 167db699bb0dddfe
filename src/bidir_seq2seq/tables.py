"""Rows of files: JSON, CSV, parquet, lines and saved datasets as one stream, in which bad rows keep their place."""

from __future__ import annotations

import csv
import itertools
import json
import operator
import re
import reprlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from transformers.utils import logging

from .extras import extra
from .files import DataFile, TextFile, find_files, inspect_text

logger = logging.get_logger(__name__)

# What is looked at to learn which columns there are.
HEAD_ROWS = 100
# csv would stop a row at each lone carriage return, which is a sign like others when lines end at line feeds.
_LONE_RETURN = (("\ufdd0", "\ufdd0\ufdd1"), ("\r", "\ufdd0\ufdd2"))


class Row(NamedTuple):
    """A row and its place; `str()` of a bad one says what is wrong with it.

    Attributes:
        values: Its values by the names of columns, objects inside of it as they are; `None` of a bad row.
        name, unit, number: The file, and which line, row or entry of it this is, from 1.
        problem: Why it cannot be read; `None` of a good row.
    """

    values: dict | None
    name: str
    unit: str
    number: int
    problem: str | None = None

    def bad(self, problem: str) -> Row:
        """The same row as one that cannot be read."""
        return self._replace(values=None, problem=problem)

    def __str__(self) -> str:
        return f"{self.name}: {self.unit} {self.number} {self.problem or 'is good'}"


@dataclass(frozen=True)
class Table:
    """Rows that can be read again and again, and never all at once.

    Attributes:
        name: For messages.
        columns: Names of columns; those inside of objects are dotted paths such as `translation.en`.
    """

    name: str
    columns: list[str]

    def __iter__(self) -> Iterator[Row]:
        raise NotImplementedError

    def __length_hint__(self) -> int:
        """About how many rows there are, 0 if nobody knows before they are read."""
        return 0

    def head(self, number: int = HEAD_ROWS) -> list[dict]:
        """The values of the first rows that are good."""
        return [row.values for row in itertools.islice(self, number) if row.values is not None]


def open_table(
    names: str | Sequence[str], encoding: str | None = None, split: str | None = None, shape: str = "pairs"
) -> Table:
    """The rows of one or several files.

    Args:
        names: See [`find_files`]. Several files of rows are read one after the other. Files of plain text, one text a
            line, are one for the sources and one for the targets (columns `source` and `target`).
        encoding: Of files of text; default: found out.
        split: Which split of a folder that `save_to_disk` wrote.
        shape: `"pairs"`, or `"texts"` if plain text is documents only, a line each (column `text`).

    Raises:
        ValueError: If a file cannot be read at all, or files do not belong together.
        FileNotFoundError: If there is no such file.
    """
    files = find_files(names)
    plain = [file.name for file in files if file.kind == "lines"]
    if plain and len(plain) < len(files):
        raise ValueError(f"{', '.join(plain)}: plain text cannot be mixed with files of rows")
    if plain:
        return _open_lines(files, encoding, shape)
    tables = [_open_file(file, encoding, split) for file in files]
    return tables[0] if len(tables) == 1 else _Chain.of(tables)


def _open_lines(files: list[DataFile], encoding: str | None, shape: str) -> Table:
    names = [file.name for file in files]
    texts = [inspect_text(file, encoding) for file in files]
    for text in texts:
        if text.num_lines == 0 and shape == "pairs":
            raise ValueError(f"{text.file.name}: the file is empty; it needs a line for every text")
    if shape == "texts":
        tables = [_Lines(text.file.name, ["text"], [text]) for text in texts]
        return tables[0] if len(tables) == 1 else _Chain.of(tables)
    if len(files) != 2:
        raise ValueError(
            f"{', '.join(names)}: unknown file type for pairs; give two files of plain text, line by line the sources "
            "and their targets (corpus.en corpus.de), or files of rows: .json(l), .csv, .tsv or .parquet"
        )
    if texts[0].num_lines != texts[1].num_lines:
        raise ValueError(
            f"{names[0]} has {texts[0].num_lines} lines and {names[1]} has {texts[1].num_lines}: each line needs its "
            "counterpart, an empty line where there is none"
        )
    logger.warning_once(f"{names[0]} is taken as the sources and {names[1]} as the targets, line by line")
    return _Lines(" and ".join(names), ["source", "target"], texts)


def _open_file(file: DataFile, encoding: str | None, split: str | None) -> Table:
    if file.kind == "dataset":
        return _Saved.of(file, split)
    if file.kind == "parquet":
        return _with_columns(_Parquet(file.name, [], file))
    text = inspect_text(file, encoding)
    if not any(line.strip() for line in text.lines()):
        raise ValueError(f"{file.name}: the file is empty; it needs a row for every text")
    if file.kind == "csv":
        return _open_csv(text)
    return _with_columns(_Json(file.name, [], text, _is_one_value(text)))


def _with_columns(table: Table) -> Table:
    """The table with the columns of its first rows, in the order in which they are met."""
    columns = list(dict.fromkeys(name for row in table.head() for name in leaves(row)))
    if not columns:
        bad = next((row for row in table if row.problem), None)
        raise ValueError(str(bad) if bad else f"{table.name}: holds no row with a column")
    return type(table)(**{**vars(table), "columns": columns})


def leaves(row: dict, prefix: str = "") -> Iterator[str]:
    """Names of a row's values; those of objects inside of it are dotted paths."""
    for name, value in row.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def cell(row: dict, column: str):
    """A row's value in a column, `None` if it has none."""
    if column in row:
        return row[column]
    outer, rest = _inside(row, column)
    return None if outer is None else cell(row[outer], rest)


def with_cell(row: dict, column: str, value) -> dict:
    """A copy of a row with another value where [`cell`] finds that of a column; beside it if there is none."""
    outer, rest = (None, "") if column in row else _inside(row, column)
    return {**row, column: value} if outer is None else {**row, outer: with_cell(row[outer], rest, value)}


def _inside(row: dict, column: str) -> tuple[str | None, str]:
    """Of a dotted path the object in a row that it leads into, `None` if there is none, and the path from there."""
    outer, dot, rest = column.partition(".")
    while dot:
        if isinstance(row.get(outer), dict):
            return outer, rest
        # A dot may be part of a name.
        name, dot, rest = rest.partition(".")
        outer = f"{outer}.{name}"
    return None, ""


@dataclass(frozen=True)
class _Chain(Table):
    """Tables one after the other."""

    tables: list[Table]

    @classmethod
    def of(cls, tables: list[Table]) -> _Chain:
        columns = [name for name in tables[0].columns if all(name in table.columns for table in tables)]
        if not columns:
            other = next(table for table in tables if not set(table.columns) & set(tables[0].columns))
            raise ValueError(
                f"{tables[0].name} has the columns {tables[0].columns}, but {other.name} has {other.columns}: files "
                "that are read together need the same"
            )
        return cls(f"{tables[0].name} and {len(tables) - 1} more", columns, tables)

    def __iter__(self) -> Iterator[Row]:
        return itertools.chain.from_iterable(self.tables)

    def __length_hint__(self) -> int:
        lengths = [operator.length_hint(table) for table in self.tables]
        return sum(lengths) if all(lengths) else 0


@dataclass(frozen=True)
class _Lines(Table):
    """Files of which each line is a text."""

    texts: list[TextFile]

    def __iter__(self) -> Iterator[Row]:
        columns = [split_lines(text.lines()) for text in self.texts]
        for number, lines in enumerate(zip(*columns), start=1):
            yield Row(dict(zip(self.columns, lines)), self.name, "line", number)

    def __length_hint__(self) -> int:
        return self.texts[0].num_lines


def split_lines(stream: Iterable[str]) -> Iterator[str]:
    """The lines of an open text stream, without their ends and without a byte order mark."""
    for number, line in enumerate(stream):
        yield line.removesuffix("\n").removesuffix("\r").removeprefix("" if number else "\ufeff")


@dataclass(frozen=True)
class _Json(Table):
    """JSON lines, or one JSON value that holds a list of objects."""

    text: TextFile
    is_one_value: bool

    def __iter__(self) -> Iterator[Row]:
        if self.is_one_value:
            for number, value in enumerate(_objects(json.loads("".join(self.text.lines()))), start=1):
                yield _as_row(value, Row(None, self.name, "entry", number))
            return
        for number, line in enumerate(self.text.lines(), start=1):
            if not line.strip():
                continue
            row = Row(None, self.name, "line", number)
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield row.bad(f"is not JSON: {error}; repair that line: each holds one object")
            else:
                yield _as_row(value, row)

    def __length_hint__(self) -> int:
        return 0 if self.is_one_value else self.text.num_lines


def _as_row(value, row: Row) -> Row:
    if isinstance(value, dict):
        return row._replace(values=value)
    return row.bad(f"is not an object, but {reprlib.repr(value)}; write each row as {{...}} with the same columns")


def _objects(value) -> list:
    """The rows in one JSON value: a list, or the only list of objects inside an object (`{"data": [...]}`); or what
    pandas makes of a table if it is not told how (`{"source": {"0": ..., "1": ...}, ...}`)."""
    if isinstance(value, list):
        return value
    columns = list(value.values())
    if columns and all(isinstance(column, dict) and column for column in columns):
        numbers = list(columns[0])
        if all(name.isdecimal() for name in value):
            return columns
        if all(number.isdecimal() for number in numbers) and all(list(column) == numbers for column in columns):
            return [{name: column[number] for name, column in value.items()} for number in numbers]
    lists = [inner for inner in value.values() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
    return lists[0] if len(lists) == 1 else [value]


def _is_one_value(text: TextFile) -> bool:
    """Whether a file is one JSON value, over however many lines, rather than one a line."""
    lines = (line for line in text.lines() if line.strip())
    first = next(lines)
    if not first.lstrip().startswith(("[", "{")):
        return False
    with suppress(ValueError):
        # A value a line, unless there is but one line; and of a format of lines that one is a row if it holds text.
        value = json.loads(first)
        if next(lines, None) is not None:
            return False
        if isinstance(value, list):
            return True
        is_row = text.file.extension != "json" and {str, list} <= {type(cell(value, name)) for name in leaves(value)}
        return not is_row and _objects(value) != [value]
    if first.strip() not in ("[", "{") and text.file.extension != "json":
        # A broken line; reading all of a large file to learn that would take its memory.
        return False
    try:
        value = json.loads("".join(text.lines()))
    except ValueError as error:
        if first.strip() in ("[", "{"):
            raise ValueError(f"{text.file.name}: is not JSON: {error}; repair it there") from error
        return False
    return isinstance(value, (dict, list))


@dataclass(frozen=True)
class _Csv(Table):
    """Cells separated by a sign; all of them are text, and only an empty one is empty."""

    text: TextFile
    separator: str

    def __iter__(self) -> Iterator[Row]:
        records = _records(self.text, self.separator)
        next(record for record in records if record.cells != [])
        for record in records:
            if record.cells == [] and len(self.columns) > 1:
                # Of one column a blank line is an empty text, of several it is no row.
                continue
            cells = record.cells or [""]
            row = Row(None, self.name, "line", record.line)
            if record.problem:
                yield row.bad(record.problem)
            elif len(cells) != len(self.columns):
                yield row.bad(self._miscounted(len(cells)))
            else:
                yield row._replace(values=dict(zip(self.columns, cells)))

    def __length_hint__(self) -> int:
        return self.text.num_lines - 1

    def _miscounted(self, number: int) -> str:
        advice = f"text that contains {self.separator!r} or a line break must stand in quotation marks"
        if self.text.file.extension == "tsv":
            advice = "a tab cannot stand in a text"
        return f"has {number} fields, its header {len(self.columns)} ({self.columns}); {advice}"


@dataclass(frozen=True)
class _Record:
    line: int
    cells: list[str] | None
    problem: str | None = None


def _records(text: TextFile, separator: str) -> Iterator[_Record]:
    """The cells of each record, `[]` for a blank line, and the line where it begins."""
    if text.file.extension == "tsv":
        # Tab-separated text knows no quoting: a quotation mark is one of the text's own.
        for number, line in enumerate(text.lines(), start=1):
            line = line.removesuffix(text.line_end).removesuffix("\r")
            yield _Record(number, line.split(separator) if line else [])
        return
    # Python refuses cells of more than 131,072 signs otherwise; a document may be longer.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    # What Excel is told of the separator is no record.
    before = 1 if _told_separator(text) else 0
    lines = itertools.islice(text.lines(), before, None)
    reader = csv.reader(map(_hide_lone_returns, lines), delimiter=separator, strict=True)
    while True:
        line = before + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            end = before + reader.line_num
            last = f" (read up to line {end})" if end > line else ""
            advice = 'text with a quotation mark must stand in quotation marks, and the mark be doubled: ""'
            yield _Record(line, None, f"cannot be read: {error}{last}; {advice}")
        else:
            yield _Record(line, [_show_lone_returns(value) for value in cells])


def _told_separator(text: TextFile) -> str | None:
    """The sign that a first line `sep=;` names, by which Excel knows how to read a file."""
    found = re.fullmatch(r'"?sep=(.)"?', next(text.lines(), "").rstrip("\r\n"), re.IGNORECASE)
    return found[1] if found else None


def _hide_lone_returns(line: str) -> str:
    if "\r" not in line and "\ufdd0" not in line:
        return line
    body = line.removesuffix("\n").removesuffix("\r")
    end = line[len(body) :]
    for sign, code in _LONE_RETURN:
        body = body.replace(sign, code)
    return body + end


def _show_lone_returns(value: str) -> str:
    if "\ufdd0" not in value:
        return value
    for sign, code in reversed(_LONE_RETURN):
        value = value.replace(code, sign)
    return value


def _open_csv(text: TextFile) -> _Csv:
    name = text.file.name
    separator = "\t" if text.file.extension == "tsv" else _separator(text)
    header = next(record for record in _records(text, separator) if record.cells != [])
    if header.problem:
        raise ValueError(f"{name}: its header {header.problem}")
    columns = _distinct(header.cells)
    if separator != ("\t" if text.file.extension == "tsv" else ",") and not _told_separator(text):
        logger.warning_once(f"{name}: no commas in its header; read as separated by {separator!r}, columns {columns}")
    _warn_of_texts_as_names(name, columns)
    table = _Csv(name, columns, text, separator)
    if next(iter(table), None) is None:
        raise ValueError(f"{name}: no row follows its header {columns}")
    return table


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
    if re.fullmatch(r"Unnamed: \d+", name):  # as _distinct calls a column without a name
        return False
    return " " in name.strip() or len(name) > 40 or len(chinese) >= 8 or bool(re.search(r"[。，！？、；：]", name))


def _separator(text: TextFile) -> str:
    """The sign that the file names; else a comma, unless another sign cuts more of the first rows as its header."""
    if told := _told_separator(text):
        return told

    def fits(separator: str) -> float:
        records = (record for record in _records(text, separator) if record.cells != [])
        counts = [len(record.cells or ()) for record in itertools.islice(records, 20)]
        if len(counts) < 2 or counts[0] < 2:
            return 0.0
        return sum(count == counts[0] for count in counts[1:]) / (len(counts) - 1)

    # max keeps the first of several that fit as well.
    best = max(",;\t|", key=fits)
    return best if fits(best) > 0.5 else ","


def _distinct(names: list[str]) -> list[str]:
    """Names of columns: those without one and those that are there twice get one of their own."""
    given = [name.strip() or f"Unnamed: {number}" for number, name in enumerate(names)]
    columns: list[str] = []
    for name in given:
        # A name of the file's own comes first, wherever it stands.
        free = (f"{name}.{number}" for number in itertools.count(1) if f"{name}.{number}" not in {*given, *columns})
        columns.append(next(free) if name in columns else name)
    return columns


@dataclass(frozen=True)
class _Parquet(Table):
    file: DataFile

    def __iter__(self) -> Iterator[Row]:
        with extra("train"):
            import pyarrow
            from pyarrow.parquet import ParquetFile

        try:
            with ParquetFile(self.file.path) as parquet:
                batches = parquet.iter_batches(batch_size=1000)
                rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
                for number, values in enumerate(rows, start=1):
                    yield Row(values, self.name, "row", number)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{self.name}: is no whole parquet file: {error}") from error


@dataclass(frozen=True)
class _Saved(Table):
    """A folder that `save_to_disk` of datasets wrote."""

    file: DataFile
    split: str | None

    @classmethod
    def of(cls, file: DataFile, split: str | None) -> Table:
        with extra("train"):
            from datasets import DatasetDict, load_from_disk

        saved = load_from_disk(file.path)
        if not isinstance(saved, DatasetDict):
            return _with_columns(cls(file.name, [], file, None))
        if split not in saved and len(saved) == 1:
            split = next(iter(saved))
        if split not in saved:
            raise ValueError(
                f"{file.name}: holds the splits {list(saved)}, none of which is {split!r}: name one's folder"
            )
        return _with_columns(cls(file.name, [], file, split))

    def __iter__(self) -> Iterator[Row]:
        from datasets import load_from_disk

        saved = load_from_disk(self.file.path)
        for number, values in enumerate(saved[self.split] if self.split else saved, start=1):
            yield Row(values, self.name, "row", number)


__all__ = ["Row", "Table", "cell", "leaves", "open_table", "split_lines", "with_cell"]

"""Files of data: which ones a name means, their kind, and the lines of text in them, packed or encoded as they are."""

from __future__ import annotations

import bz2
import codecs
import glob
import gzip
import io
import itertools
import lzma
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from transformers.utils import logging

from .charset import guess_encoding, marked_encoding
from .extras import extra

logger = logging.get_logger(__name__)

# Files of rows; every other file is taken to hold one text a line.
ROW_KINDS = {
    "json": "json",
    "jsonl": "json",
    "ndjson": "json",
    "csv": "csv",
    "tsv": "csv",
    "parquet": "parquet",
}
# What is known not to be text.
REFUSED = (
    "xlsx", "xls", "ods", "docx", "doc", "pdf", "zip", "tar", "tgz", "rar", "7z", "pt", "pth", "npz", "npy", "pkl",
)  # fmt: skip
PACKINGS = ("gz", "bz2", "xz", "zst")
# Bytes of lines beyond ASCII that an encoding is told from.
SAMPLE_BYTES = 65536


@dataclass(frozen=True)
class DataFile:
    """A file as the user named it, and where it lies.

    Attributes:
        name: For messages.
        path: The local file or folder; of an address its copy.
        kind: `"json"`, `"csv"`, `"parquet"`, `"dataset"` (a folder that `save_to_disk` wrote) or `"lines"`.
        extension: Its last extension without a packing's, in lower case.
        packing: `"gz"`, `"bz2"`, `"xz"`, `"zst"`, or empty.
        stamp: Size and time of change: a cache of what was read is stale when they differ.
    """

    name: str
    path: str
    kind: str
    extension: str
    packing: str
    stamp: tuple[int, int]


@dataclass(frozen=True)
class TextFile:
    """A file of text that has been looked through once.

    Attributes:
        file: The file.
        encoding: As Python calls it.
        line_end: What ends a line: a line feed, or in files without any a carriage return.
        num_lines: How many there are.
    """

    file: DataFile
    encoding: str
    line_end: str
    num_lines: int

    def lines(self) -> Iterator[str]:
        """The lines with their ends, which are read as they are asked for."""
        # Given a line end, it breaks at no other; str.splitlines would at U+2028, U+0085 and form feeds.
        with io.TextIOWrapper(open_bytes(self.file), encoding=self.encoding, newline=self.line_end) as stream:
            yield from stream


def find_files(names: str | Sequence[str]) -> list[DataFile]:
    """The files that names, patterns, folders and addresses stand for.

    Args:
        names: One or several of: a file; a pattern with `*`, `?` or `[...]` (its files in the order of their names)
            or with `{en,de}` (in the given order); a folder (all its files of rows, or one that `save_to_disk` wrote);
            an address such as `https://...`, which is copied into the cache of datasets.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is of a kind that cannot be read.
    """
    names = [names] if isinstance(names, (str, Path)) else list(names)
    return [file for name in names for plain in _braces(str(name)) for file in _resolve(plain)]


def _braces(name: str) -> list[str]:
    """`a.{en,de}` as `a.en` and `a.de`: shells that know this do it themselves, settings files do not."""
    found = re.search(r"\{([^{}]*,[^{}]*)\}", name)
    if found is None or Path(name).exists():
        return [name]
    choices = found[1].split(",")
    return [plain for choice in choices for plain in _braces(name[: found.start()] + choice + name[found.end() :])]


def _resolve(name: str) -> list[DataFile]:
    if re.match(r"[a-z][a-z0-9+]+://", name):
        with extra("train"):
            from datasets import DownloadManager

        return [_as_file(name, DownloadManager().download(name))]
    if Path(name).is_dir():
        return [_as_file(name, name)] if is_saved_dataset(name) else _files_of_rows(name)
    if Path(name).exists():
        return [_as_file(name, name)]
    _check_kind(name)
    paths = sorted(path for path in glob.glob(name, recursive=True) if Path(path).is_file())
    if not paths:
        raise FileNotFoundError(f"there is no file {name}")
    return [_as_file(path, path) for path in paths]


def _files_of_rows(folder: str) -> list[DataFile]:
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith("."))
    paths = [str(path) for path in paths if _extension(path.name)[0] in ROW_KINDS]
    if not paths:
        raise FileNotFoundError(f"the folder {folder} holds no file of {', '.join(f'.{e}' for e in ROW_KINDS)}")
    return [_as_file(path, path) for path in paths]


def is_saved_dataset(folder: str) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return any((Path(folder) / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))


def _extension(name: str) -> tuple[str, str]:
    """The last extension without a packing's, and the packing."""
    parts = name.lower().split(".")[1:]
    packing = parts.pop() if parts and parts[-1] in PACKINGS else ""
    return (parts[-1] if parts else ""), packing


def _as_file(name: str, path: str) -> DataFile:
    if Path(path).is_dir():
        return DataFile(name, path, "dataset", "", "", _stamp(*Path(path).rglob("*")))
    _check_kind(name)
    extension, packing = _extension(Path(urlsplit(name).path).name if "://" in name else Path(name).name)
    return DataFile(name, path, ROW_KINDS.get(extension, "lines"), extension, packing, _stamp(Path(path)))


def _check_kind(name: str) -> None:
    extension, _ = _extension(Path(name).name)
    if extension in REFUSED:
        kinds = ", ".join(f".{kind}" for kind in ROW_KINDS)
        raise ValueError(
            f"{name}: unknown file type .{extension}; use {kinds}, also as .gz, .bz2, .xz or .zst, or plain text with "
            "a text a line (a spreadsheet saves as CSV)"
        )


def _stamp(*paths: Path) -> tuple[int, int]:
    states = [path.stat() for path in paths]
    return sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)


def open_bytes(file: DataFile) -> BinaryIO:
    """The file's content, unpacked while it is read."""
    if file.packing == "zst":
        with extra("train"):
            import pyarrow

        return io.BufferedReader(pyarrow.input_stream(file.path, compression="zstd"))
    opener = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}.get(file.packing, open)
    return opener(file.path, "rb")


def inspect_text(file: DataFile, encoding: str | None = None) -> TextFile:
    """Reads a file of text once, for its encoding and its line ends.

    Args:
        file: The file.
        encoding: Its encoding; default: a mark at its beginning says it, or it is UTF-8, or it is told from its bytes
            beyond ASCII, with a warning.

    Raises:
        ValueError: If it is in no encoding that can be told (naming the first byte, its place and the remedy), if it
            is packed otherwise than its name says, or if it is not in the given encoding.
    """
    try:
        with open_bytes(file) as stream:
            beginning = stream.read(4096)
        # A mark is no part of the text, whoever says which encoding it is.
        marked = marked_encoding(beginning)
        if marked and (encoding is None or codecs.lookup(encoding).name.split("-")[:2] == marked.split("-")[:2]):
            encoding = marked
        if encoding is None and (order := _unmarked_utf16(beginning)):
            raise ValueError(f"{file.name}: looks like UTF-16 without a mark; say so with --encoding {order}")
        if encoding in (None, "utf-8-sig"):
            encoding = _utf8_or_guess(file, marked)
        return _measure(file, encoding)
    except LookupError as error:
        raise ValueError(f"{file.name}: encoding={encoding!r} is not one that Python knows") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name}: not {encoding}: {error}; give another --encoding, or leave it out") from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{file.name}: cannot be unpacked as .{file.packing}: {error}; is it whole?") from error


def _unmarked_utf16(beginning: bytes) -> str | None:
    """UTF-16 has a zero beside each sign of ASCII, and no other text has many."""
    if len(beginning) < 8 or len(beginning) % 2:
        return None
    even, odd = (beginning[start:200:2] for start in (0, 1))
    shares = [part.count(0) / max(len(part), 1) for part in (even, odd)]
    if max(shares) > 0.7 and min(shares) < 0.1:
        return "utf-16-le" if shares[1] > shares[0] else "utf-16-be"
    return None


def _utf8_or_guess(file: DataFile, marked: str | None) -> str:
    """UTF-8 if the whole file is that, else what its bytes beyond ASCII tell."""
    sample, bad, position, number = b"", None, 0, 0
    with open_bytes(file) as stream:
        for line in stream:
            number += 1
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                bad = bad or (line[error.start], position + error.start, number)
            position += len(line)
            # Lines that are UTF-8 tell nothing about the others.
            if bad and not line.isascii() and len(sample) < SAMPLE_BYTES:
                # A comma is no half of a sign in any of the encodings.
                sample += line if len(line) < SAMPLE_BYTES else line[:SAMPLE_BYTES].rpartition(b",")[0]
    if bad is None:
        return marked or "utf-8"
    return _guess(file, b"" if marked else sample, bad)


def _guess(file: DataFile, sample: bytes, bad: tuple[int, int, int]) -> str:
    encoding, readings = guess_encoding(sample)
    place = f"{file.name}: not UTF-8: byte {bad[0]:#04x} at position {bad[1]} (line {bad[2]})"
    # What differs stands where a reading is not ASCII.
    shown = {name: _around_first_letter(text) for name, text in readings.items()}
    if encoding is None:
        could = "".join(f"; in {name} it reads {text!r}" for name, text in itertools.islice(shown.items(), 4))
        raise ValueError(
            f"{place}{could}. Say which encoding it is in with --encoding NAME, or save it as UTF-8, for example "
            "with: iconv -f ENCODING -t UTF-8"
        )
    logger.warning_once(
        f"{place}; read as {encoding}: {shown[encoding]!r}. If that is not what it should say, give --encoding NAME"
    )
    return encoding


def _around_first_letter(text: str) -> str:
    found = re.search(r"\S{0,20}[^\x00-\x7f]\S{0,20}", text)
    return found[0] if found else text[:20]


def _measure(file: DataFile, encoding: str) -> TextFile:
    feeds = returns = 0
    last = "\n"
    with open_bytes(file) as stream:
        decoder = codecs.getincrementaldecoder(encoding)()
        while block := stream.read(1 << 20):
            text = decoder.decode(block)
            feeds, returns, last = feeds + text.count("\n"), returns + text.count("\r"), text[-1:] or last
        decoder.decode(b"", final=True)
    # Old files of rows end their lines so. In a file of lines it is part of a text, as in standard input.
    line_end = "\r" if returns and not feeds and file.kind != "lines" else "\n"
    whole = returns if line_end == "\r" else feeds
    return TextFile(file, encoding, line_end, whole + (last != line_end))


__all__ = ["PACKINGS", "DataFile", "TextFile", "find_files", "inspect_text", "is_saved_dataset", "open_bytes"]

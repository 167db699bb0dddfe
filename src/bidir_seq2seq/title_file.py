"""The file that titles are written into: whole or absent, and to be gone on with after a kill."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from transformers.utils import logging

from .files import DataFile

logger = logging.get_logger(__name__)

# The column of titles in a file of rows.
WRITTEN_COLUMN = "generated_title"


class TitleFile:
    """Takes the lines of one document after the other.

    While it is written it is called `NAME.partial`, beside it the settings in `NAME.partial.json`; when it is finished
    it gets its name. Lines reach the file a window of documents at a time.

    Args:
        path: Where the titles are to be. What is no regular file, such as a pipe, is written directly.
        lines_per_document: Each document has so many lines.
        window: Documents that are written at a time, and gone on with only from whole windows.
        settings: All that decides what is written, as JSON can hold it.
        resume: Whether to go on with an unfinished file.
        keep_record: Whether the settings, in `NAME.json`, stay beside a finished file and are compared with then, too.

    Raises:
        ValueError: If `resume` finds a file of other settings, or another process writes it.
    """

    def __init__(
        self,
        path: str,
        lines_per_document: int,
        window: int,
        settings: dict,
        resume: bool = False,
        keep_record: bool = False,
    ):
        # A link stays one.
        self.path = Path(path).resolve()
        self.partial = self.path.with_name(f"{self.path.name}.partial")
        self.record = self.path.with_name(f"{self.path.name}{'' if keep_record else '.partial'}.json")
        self.keep_record = keep_record
        self.lines_per_document, self.window = lines_per_document, window
        self.is_special = self.path.exists() and not self.path.is_file()
        self.documents = 0
        self._waiting: list[str] = []
        self.is_finished = resume and not self.partial.exists() and self.path.is_file()
        settings = json.loads(json.dumps(settings))
        if not self.is_finished:
            self._file = self._open(settings, resume)
        elif keep_record:
            self._compare(self.path, settings)

    def _open(self, settings: dict, resume: bool) -> BinaryIO:
        if self.is_special:
            return open(self.path, "wb")
        if self.partial.exists() and not resume:
            logger.warning_once(f"{self.partial} is begun anew; with --resume it would have been gone on with")
        file = open(self.partial, "a+b")  # noqa: SIM115 (closed by `close`)
        try:
            _lock(file, self.partial)
            if resume and file.tell() > 0:
                self._compare(self.partial, settings)
                self.documents = self._keep_whole_windows(file)
            else:
                file.truncate(0)
                self.record.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except BaseException:
            file.close()
            raise
        return file

    def _compare(self, file: Path, settings: dict) -> None:
        try:
            before = json.loads(self.record.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.record} is missing or damaged, so that nobody knows how {file} was begun; "
                f"delete both{'' if self.keep_record else ', or leave out --resume'}"
            ) from error
        changed = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
        if changed:
            raise ValueError(
                f"{file} was begun with other settings: "
                + ", ".join(f"{name} was {before.get(name)!r} and is {settings.get(name)!r}" for name in changed)
                + f"; give the same ones, or {'delete it' if self.keep_record else 'leave out --resume'} to begin anew"
            )

    def _keep_whole_windows(self, file: BinaryIO) -> int:
        """Cuts off what is no whole window, a torn last line with it; returns how many documents are left."""
        size, lines, kept = self.window * self.lines_per_document, 0, 0
        file.seek(0)
        position = end = 0
        for line in file:
            position += len(line)
            lines += line.endswith(b"\n")
            if lines and lines % size == 0 and line.endswith(b"\n"):
                kept, end = lines, position
        file.truncate(end)
        file.seek(0, os.SEEK_END)
        return kept // self.lines_per_document

    def write(self, lines: Sequence[str]) -> None:
        """Takes one document's lines, without their ends.

        Raises:
            ValueError: If they are not as many as a document has.
        """
        if len(lines) != self.lines_per_document:
            raise ValueError(f"{len(lines)} lines for a document that has {self.lines_per_document}")
        self._waiting += lines
        self.documents += 1
        if self.documents % self.window == 0:
            self._flush()

    def _flush(self) -> None:
        self._file.write("".join(f"{line}\n" for line in self._waiting).encode("utf-8"))
        self._file.flush()
        self._waiting.clear()

    def finish(self) -> None:
        """Writes what is left and gives the file its name."""
        self._flush()
        if not self.is_special:
            os.fsync(self._file.fileno())
        self._file.close()
        if not self.is_special:
            self.partial.replace(self.path)
            if not self.keep_record:
                self.record.unlink(missing_ok=True)

    def close(self) -> None:
        """Leaves an unfinished file to be gone on with."""
        if not self.is_finished:
            self._file.close()


def _lock(file: BinaryIO, path: Path) -> None:
    """Keeps two processes from writing into one file; the lock goes with the process."""
    with suppress(ImportError):
        # Not on every system.
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{path} is being written by another process; use another output_file") from error
        except OSError:
            logger.warning_once(f"{path} cannot be locked here: do not write it from two processes")


def content_hash(paths: Iterable[str | Path]) -> str:
    """A short hash of what is in files."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def describe_input(files: Iterable[DataFile]) -> str:
    """A short hash of the content of files of documents, in their order."""
    paths = []
    for file in files:
        inside = sorted(path for path in Path(file.path).rglob("*") if path.is_file())
        paths += inside if Path(file.path).is_dir() else [file.path]
    return content_hash(paths)


def describe_model(name_or_path: str) -> str:
    """A model's name, and for a folder a short hash of what it computes with."""
    patterns = ("*.safetensors", "config.json", "generation_config.json", "tokenizer*.json")
    paths = [path for pattern in patterns for path in sorted(Path(name_or_path).glob(pattern))]
    return f"{name_or_path} ({content_hash(paths)})" if paths else name_or_path


__all__ = ["WRITTEN_COLUMN", "TitleFile", "content_hash", "describe_input", "describe_model"]

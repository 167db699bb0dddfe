"""Pairs that are read while a model is trained on them: neither memory nor the disk holds them a second time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch.utils.data import IterableDataset, get_worker_info
from transformers import BatchEncoding
from transformers.utils import logging

from .data import ENCODED_COLUMNS, EncodingReport, PairEncoder, choose_text_columns, is_empty, read_texts
from .pair_summary import shorten
from .run_folder import fingerprint
from .tables import Row, Table, open_table
from .unknown_words import TitleCollator

logger = logging.get_logger(__name__)

# Pairs that are looked at together before the training.
BATCH = 1000


class Pair(NamedTuple):
    """Two texts; `None` is an empty one."""

    source: str | None
    target: str | None

    @property
    def is_whole(self) -> bool:
        """Whether both sides have text."""
        return not (is_empty(self.source) or is_empty(self.target))


@dataclass
class StreamSurvey:
    """What one pass over a stream has found.

    Attributes:
        pairs: Pairs that can be read.
        whole: Those of them with text on both sides, which are trained on.
        bad: Rows that cannot be read.
        first_bad: The first of these.
        fingerprint: Of the pairs in their order, as `run_folder.fingerprint` makes it.
    """

    pairs: int = 0
    whole: int = 0
    bad: int = 0
    first_bad: Row | None = None
    fingerprint: str = ""

    def __str__(self) -> str:
        bad = f", {self.bad:,} rows skipped, the first: {self.first_bad}" if self.bad else ""
        return f"{self.pairs:,} pairs, {self.pairs - self.whole:,} with an empty side{bad}"


class PairStream(IterableDataset):
    """Pairs of texts without an end: one pass over the files after the other, each in another order.

    The order depends on the files, the seed and the buffer alone, so that a training may be gone on with at any of
    them. Its processes share the pairs out as accelerate does with any stream, and the workers of a `DataLoader` take
    turns. Pairs with an empty side are left out.

    Args:
        table: The rows.
        columns: Which of its columns are the source and the target.
        on_bad_rows: At a row that cannot be read: `"error"`, or `"skip"` it.
        max_samples: Of each pass only the first so many pairs.
        shuffle_buffer_size: Pairs held in memory to draw from, by which the order of a pass is mixed; below 2 it
            is that of the files.
        seed: Of that order.

    Attributes:
        skipped: Pairs at the beginning that a resumed run has been trained on: `None` is in the place of each.
        batch_size: Pairs that one batch of all processes takes together, by which workers take turns.
    """

    def __init__(
        self,
        table: Table,
        columns: Sequence[str],
        on_bad_rows: str = "error",
        max_samples: int | None = None,
        shuffle_buffer_size: int = 0,
        seed: int = 0,
    ):
        self.table, self.columns, self.on_bad_rows, self.max_samples = table, columns, on_bad_rows, max_samples
        self.shuffle_buffer_size, self.seed = shuffle_buffer_size, seed
        self.skipped, self.batch_size = 0, 1
        self._survey: StreamSurvey | None = None

    @property
    def survey(self) -> StreamSurvey:
        """What is in the files, by a pass over them when it is first asked for.

        Raises:
            ValueError: At a bad row, naming its place, unless such are skipped; if no pair has text on both sides.
        """
        if self._survey is None:
            survey = StreamSurvey()
            survey.fingerprint = fingerprint(self._batches(BATCH, survey))
            if not survey.whole:
                raise ValueError(f"{self.table.name}: no pair with text on both sides is left: {survey}")
            self._survey = survey
        return self._survey

    def iter(self, batch_size: int) -> Iterator[dict[str, list[str | None]]]:
        """One pass in the order of the files, as `datasets.Dataset.iter` gives it: columns `source` and `target`.

        Raises:
            ValueError: At a bad row, naming its place, unless such are skipped.
        """
        return self._batches(batch_size, StreamSurvey())

    def _batches(self, batch_size: int, survey: StreamSurvey) -> Iterator[dict[str, list[str | None]]]:
        pairs = self._read(survey)
        while batch := list(itertools.islice(pairs, batch_size)):
            yield {name: [getattr(pair, name) for pair in batch] for name in Pair._fields}

    def _read(self, survey: StreamSurvey) -> Iterator[Pair]:
        for row, texts in read_texts(self.table, self.columns, self.on_bad_rows):
            if texts is None:
                survey.bad, survey.first_bad = survey.bad + 1, survey.first_bad or row
                continue
            if survey.pairs == self.max_samples:
                return
            pair = Pair(*texts)
            survey.pairs, survey.whole = survey.pairs + 1, survey.whole + pair.is_whole
            yield pair

    def one_pass(self, number: int) -> Iterator[Pair]:
        """The pairs of pass `number`, from 0, in its order."""
        pairs = (pair for pair in self._read(StreamSurvey()) if pair.is_whole)
        if self.shuffle_buffer_size < 2:
            return pairs
        return shuffled(pairs, self.shuffle_buffer_size, random.Random(f"{self.seed} {number}"))

    def _all(self) -> Iterator[Pair | None]:
        passes, read = divmod(self.skipped, self.survey.whole)
        yield from itertools.repeat(None, passes * self.survey.whole)
        for number in itertools.count(passes):
            pairs = self.one_pass(number)
            # These must be read, since which others are left in the buffer depends on them.
            yield from (None for _ in itertools.islice(pairs, read))
            yield from pairs
            read = 0

    def __iter__(self) -> Iterator[Pair | None]:
        worker = get_worker_info()
        if worker is None:
            yield from self._all()
            return
        # A DataLoader takes a batch of each worker in turn.
        for number, pair in enumerate(self._all()):
            if number // self.batch_size % worker.num_workers == worker.id:
                yield pair


def shuffled(pairs: Iterator[Pair], buffer_size: int, generator: random.Random) -> Iterator[Pair]:
    """Pairs mixed over a distance of some `buffer_size`: half of the full buffer goes, and half waits for others."""
    buffer: list[Pair] = []
    for pair in pairs:
        buffer.append(pair)
        if len(buffer) == buffer_size:
            generator.shuffle(buffer)
            yield from buffer[buffer_size // 2 :]
            del buffer[buffer_size // 2 :]
    generator.shuffle(buffer)
    yield from buffer


def open_stream(
    names: str | Sequence[str],
    source_column: str | None = None,
    target_column: str | None = None,
    on_bad_rows: str = "error",
    encoding: str | None = None,
    **settings: Any,
) -> PairStream:
    """A stream of the training pairs in files, which are found, understood and refused as `data.load_pairs` does it.

    Args:
        names, source_column, target_column, on_bad_rows, encoding: As for `data.load_pairs`.
        settings: Others of [`PairStream`].

    Raises:
        ValueError: On an unknown file type, an unreadable file, or a missing column.
        FileNotFoundError: If there is no such file.
    """
    table = open_table(names, encoding, "train")
    columns = choose_text_columns(table, "train", source_column, target_column)
    return PairStream(table, columns, on_bad_rows, **settings)


def log_survey(stream: PairStream) -> None:
    """Logs what a stream's files hold, and its first pair."""
    first = next(stream.iter(1))
    example = f"{shorten(first['source'][0])!r} -> {shorten(first['target'][0])!r}"
    logger.warning_once(f"train: streamed, {stream.survey}; the first: {example}")


def encoded_titles(stream: PairStream, encoder: PairEncoder, report: EncodingReport) -> Iterator[list[int]]:
    """The ids of the titles of one pass, `labels` of varying length, after which `report` is an account of it."""
    tokens = unknown = 0
    for batch in stream.iter(BATCH):
        columns = encoder(batch)
        for name in ("empty_source", "empty_target", "cut_source", "cut_target"):
            setattr(report, name, getattr(report, name) + sum(columns[name]))
        tokens, unknown = tokens + sum(columns["length"]), unknown + sum(columns["unknown"])
        for ids, *empty in zip(columns["labels"], columns["empty_source"], columns["empty_target"]):
            if not any(empty):
                report.pairs += 1
                yield ids
    report.unknown_rate = unknown / max(tokens, 1)


class StreamCollator:
    """Makes batches of ids of texts that a stream gives; rows that have ids already are padded as they are.

    Args:
        encoder: For the texts.
        collator: Pads ids.
    """

    def __init__(self, encoder: PairEncoder, collator: TitleCollator):
        self.encoder, self.collator = encoder, collator

    def __call__(self, rows: Sequence[Any]) -> BatchEncoding | dict[str, Any]:
        """A batch of tensors `[B, S]` and `[B, T]`; of `None`, for what a resumed run knows, an empty one."""
        if rows[0] is None:
            return {}
        if isinstance(rows[0], dict):
            return self.collator(rows)
        texts = {name: [getattr(pair, name) for pair in rows] for name in Pair._fields}
        columns = self.encoder(texts)
        names = [name for name in ENCODED_COLUMNS if name in columns and name != "length"]
        return self.collator([dict(zip(names, ids)) for ids in zip(*(columns[name] for name in names))])


__all__ = [
    "Pair",
    "PairStream",
    "StreamCollator",
    "StreamSurvey",
    "encoded_titles",
    "log_survey",
    "open_stream",
    "shuffled",
]

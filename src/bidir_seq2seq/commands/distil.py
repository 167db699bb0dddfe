"""Distils a teacher into a student: writes pseudo-titles with the one, and trains the other on them.

    bidir-seq2seq distil settings.yaml --teacher_name_or_path my_twins --decoder_directions l2r --output_dir my_student
    bidir-seq2seq distil --train_file train.jsonl --unlabelled_file more.txt --teacher_name_or_path my_twins \\
        --proposals l2r+r2l+both --ranking consensus --num_beams 5 --output_dir my_student
    bidir-seq2seq distil --train_file train.jsonl --teacher_name_or_path a_bart --pairs pseudo --output_dir my_student

The teacher, a model of this package or any other that transformers loads for sequence-to-sequence, writes a title for
each training document, and for each document of --unlabelled_file; the student learns from these pairs beside the
given ones, or alone (sequence-level knowledge distillation, Kim and Rush 2016, https://arxiv.org/abs/1606.07947). All
settings of `train` are the student's, and may stand in the same file. The same command goes on where it was stopped,
while titles are written as well as in training.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..allocator import keep_freed_memory
from ..arguments import check_numbers, parse_arguments
from ..data import load_pairs, read_texts
from ..files import find_files
from ..loading import load_model_and_tokenizer
from ..manifest import flush
from ..run_folder import fingerprint
from ..tables import Table, open_table
from ..title_file import TitleFile, describe_input, describe_model
from ..titles import stream_titles, window_size
from ..training import DataArguments, ModelArguments, TrainingArguments, train
from ..version import __version__
from .generate import as_lines, read_ranking, source_column
from .train import leave_processes

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)

# Of the student's folder: what the teacher has written, a line for each document, and what the student learns from and
# is validated on.
TITLES, PAIRS, VALIDATION = "pseudo_titles.txt", "training_pairs.jsonl", "validation_pairs.jsonl"


@dataclass
class DistillationArguments:
    """The teacher, what it writes titles for and how, and what the student learns from."""

    teacher_name_or_path: str = field(
        metadata={"help": "Model that writes the pseudo-titles: of this package, or another seq2seq model."}
    )
    unlabelled_file: list[str] | None = field(
        default=None,
        metadata={
            "help": "Further documents, without titles: plain text with one a line, or rows (.json, .jsonl, .csv, "
            ".tsv, .parquet), packed or not."
        },
    )
    unlabelled_column: str | None = field(
        default=None, metadata={"help": "Their column to read, or path. Default: by name, else the first."}
    )
    pairs: str = field(
        default="gold+pseudo",
        metadata={
            "help": "What the student learns from: the given pairs and the teacher's, or the teacher's alone.",
            "choices": ["gold+pseudo", "pseudo"],
        },
    )
    decoding_direction: str | None = field(
        default=None,
        metadata={"help": "As for generate. Default: what the teacher has.", "choices": ["both", "l2r", "r2l"]},
    )
    proposals: str | None = field(
        default=None, metadata={"help": "As for generate, such as l2r+r2l+both. Default: the teacher's own."}
    )
    ranking: dict | str | None = field(
        default=None, metadata={"help": "As for generate, a name or weights. Default: the teacher's own."}
    )
    consensus_samples: int | None = field(
        default=None, metadata={"help": "As for generate. Default: the teacher's own, 16."}
    )
    num_beams: int | None = field(default=None, metadata={"help": "Beams per direction. Default: the teacher's own."})
    length_penalty: float | None = field(default=None, metadata={"help": "Above 1 favours longer titles."})
    max_new_tokens: int | None = field(default=None, metadata={"help": "Longest pseudo-title in tokens."})
    no_repeat_ngram_size: int | None = field(default=None, metadata={"help": "No n-gram of this size twice."})
    source_prefix: str = field(
        default="", metadata={"help": "What a teacher such as T5 wants before each document ('summarize: ')."}
    )
    teacher_max_source_length: int | None = field(
        default=None, metadata={"help": "Tokens of a document that the teacher reads. Default: as many as it can."}
    )
    teacher_batch_size: int = field(default=32, metadata={"help": "Documents per batch of the teacher."})
    teacher_processes: int = field(
        default=1, metadata={"help": "Processes that share the documents. A GPU each, if there are."}
    )
    teacher_device: str | None = field(
        default=None, metadata={"help": "Such as cpu or cuda:1. Default: a GPU if there is one."}
    )
    teacher_dtype: str = field(
        default="auto",
        metadata={
            "help": "Precision to load the teacher in; 'auto' is the checkpoint's.",
            "choices": ["auto", "float32", "bfloat16", "float16"],
        },
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the code that a teacher's folder or Hub page brings along."}
    )

    def __post_init__(self) -> None:
        counts = (
            "num_beams",
            "max_new_tokens",
            "teacher_max_source_length",
            "teacher_batch_size",
            "teacher_processes",
        )
        check_numbers(self, **dict.fromkeys(counts, 1), length_penalty=-math.inf)
        check_numbers(self, no_repeat_ngram_size=0, consensus_samples=0)
        self.ranking = read_ranking(self.ranking)


OWN_KWARGS = ("decoding_direction", "proposals", "ranking", "consensus_samples")
GENERATE_KWARGS = (*OWN_KWARGS, "num_beams", "length_penalty", "max_new_tokens", "no_repeat_ngram_size")
# What else decides which titles are written.
RUN_SETTINGS = ("source_prefix", "teacher_max_source_length", "teacher_batch_size", "teacher_dtype")


class Sources:
    """All documents that get a pseudo-title: those of the given pairs, then the unlabelled ones.

    Args:
        args: Where the unlabelled ones are.
        data_args: Where the pairs are.

    Attributes:
        gold, validation: The given pairs; without validation pairs `None`.
        description: Of what all documents hold, for a run that goes on.

    Raises:
        ValueError: If a file or its column cannot be read.
    """

    def __init__(self, args: DistillationArguments, data_args: DataArguments):
        self.gold, self.validation = given_pairs(data_args)
        self.table: Table | None = None
        self.column, self.on_bad_rows = "", data_args.on_bad_rows
        self.description = fingerprint(self.gold.iter(1000))
        if args.unlabelled_file:
            self.table = open_table(args.unlabelled_file, data_args.encoding, shape="texts")
            self.column = source_column(self.table, args.unlabelled_column)
            self.description += f"+{describe_input(find_files(args.unlabelled_file))}:{self.column}"

    def __iter__(self) -> Iterator[str]:
        return chain((text or "" for text in column_of(self.gold, "source")), self._unlabelled())

    def _unlabelled(self) -> Iterator[str]:
        if self.table is not None:
            for _, texts in read_texts(self.table, [self.column], self.on_bad_rows):
                yield (texts and texts[0]) or ""


def column_of(pairs: Dataset, name: str) -> Iterator[str | None]:
    """A column, some rows in memory at a time."""
    return chain.from_iterable(pairs[start : start + 1000][name] for start in range(0, len(pairs), 1000))


def given_pairs(data_args: DataArguments) -> tuple[Dataset, Dataset | None]:
    """The training pairs that are to be read more than once, and those for validation, if there are any.

    Raises:
        ValueError: If they cannot be read, or are to be streamed.
    """
    if data_args.streaming:
        raise ValueError(
            "streaming=True is for train, and here the pairs are read more than once: leave streaming out, or train "
            "on the pairs that this writes"
        )
    pairs = load_pairs(
        {"train": data_args.train_file or [], "validation": data_args.validation_file or []},
        data_args.dataset_name,
        data_args.dataset_config_name,
        data_args.source_column,
        data_args.target_column,
        on_bad_rows=data_args.on_bad_rows,
        encoding=data_args.encoding,
    )
    if "train" not in pairs:
        raise ValueError(f"there are no training pairs, only {list(pairs)}: give train_file")
    gold = pairs["train"]
    return gold.select(range(min(data_args.max_train_samples or len(gold), len(gold)))), pairs.get("validation")


def write_pseudo_titles(
    args: DistillationArguments, documents: Iterable[str], description: str, path: Path, desc: str = "pseudo-titles"
) -> Path:
    """Leaves the teacher's titles of documents in a file, a line each, empty where there is none.

    A file that an earlier run of the same command has begun is gone on with.

    Args:
        args: The teacher, and how it writes.
        documents: What it writes titles for.
        description: Of what they hold.
        path: The file; its folder is made.
        desc: What the progress bar calls the titles.

    Returns:
        The file.

    Raises:
        ValueError: If the file there is of other settings, or the teacher cannot be loaded or write so.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {
        "teacher": describe_model(args.teacher_name_or_path),
        "documents": description,
        "version": __version__,
        **{name: getattr(args, name) for name in (*RUN_SETTINGS, *GENERATE_KWARGS)},
    }
    window = window_size(args.teacher_batch_size)
    output = TitleFile(str(path), 1, window, settings, resume=True, keep_record=True)
    if output.is_finished:
        return output.path
    with closing(output):
        if output.documents:
            logger.warning(f"going on after {output.documents:,} documents in {output.partial}")
        texts = (f"{args.source_prefix}{text}" if text.strip() else "" for text in documents)
        titles_of = _written(args, islice(texts, output.documents, None), output.documents)
        for titles in tqdm(titles_of, desc=f"Writing {desc}", unit=" documents"):
            output.write(as_lines(titles, 1))
        output.finish()
    return output.path


def _written(args: DistillationArguments, texts: Iterator[str], start: int) -> Iterator[list]:
    keep_freed_memory()
    model, tokenizer = load_model_and_tokenizer(
        args.teacher_name_or_path, args.teacher_dtype, args.teacher_device, args.trust_remote_code
    )
    settings = {name: value for name in GENERATE_KWARGS if (value := getattr(args, name)) is not None}
    foreign = [name for name in OWN_KWARGS if name in settings]
    if foreign and not hasattr(model.generation_config, "decoding_direction"):
        raise ValueError(
            f"{foreign[0]}={settings[foreign[0]]!r} is for a teacher of this package, and "
            f"{args.teacher_name_or_path} is a {type(model).__name__}: leave it out"
        )
    settings["max_source_length"] = args.teacher_max_source_length or _most_tokens(model, tokenizer)
    settings |= {"batch_size": args.teacher_batch_size, "start": start}
    if args.teacher_processes == 1:
        return stream_titles(model, tokenizer, texts, **settings)
    from .workers import write_in_processes

    settings |= {"dtype": args.teacher_dtype, "device": args.teacher_device}
    settings["trust_remote_code"] = args.trust_remote_code
    return write_in_processes(args.teacher_processes, args.teacher_name_or_path, texts, **settings)


def _most_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """As many as the tokenizer says, which of a foreign model may be more than there are positions."""
    positions = getattr(model.config, "max_position_embeddings", None)
    return min(tokenizer.model_max_length, positions or tokenizer.model_max_length)


def write_training_pairs(sources: Sources, titles: Path, pairs: str, output_dir: Path) -> Path:
    """Leaves what the student learns from in its folder, and says how many pairs there are of each kind.

    Args:
        sources: The documents, with the given pairs.
        titles: The pseudo-titles of all of them.
        pairs: `"gold+pseudo"` or `"pseudo"`.
        output_dir: The student's folder.

    Returns:
        The file of pairs, the given ones first.

    Raises:
        ValueError: If no document has a pseudo-title.
    """
    gold = sources.gold if pairs == "gold+pseudo" else sources.gold.select([])
    empty = 0

    def pseudo() -> Iterator[dict[str, str]]:
        nonlocal empty
        with open(titles, encoding="utf-8", newline="\n") as lines:
            for source, line in zip(sources, lines, strict=True):
                title = line.rstrip("\n")
                empty += not title
                if title:
                    yield {"source": source, "target": title}

    number = write_rows(output_dir / PAIRS, chain(rows_of(gold), pseudo())) - len(gold)
    if number == 0:
        raise ValueError(f"all {empty} pseudo-titles in {titles} are empty: use another teacher")
    logger.warning(
        f"{output_dir / PAIRS}: {len(gold):,} given pairs, {number:,} with pseudo-titles; {empty:,} pseudo-titles are "
        "empty and left out"
    )
    return output_dir / PAIRS


def rows_of(pairs: Dataset) -> Iterator[dict[str, str]]:
    """The pairs, one at a time, an empty text where there is none."""
    columns = (column_of(pairs, name) for name in ("source", "target"))
    return ({"source": source or "", "target": target or ""} for source, target in zip(*columns))


def write_rows(path: Path, rows: Iterable[Mapping[str, str | None]]) -> int:
    """Writes a file of rows, whole or not at all, and returns how many there are."""
    unfinished, number = path.with_suffix(".tmp"), 0
    with open(unfinished, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            number += 1
    flush(unfinished)
    unfinished.replace(path)
    return number


def distil(
    args: DistillationArguments,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
) -> dict[str, float]:
    """Writes pseudo-titles with a teacher, and trains a student on them.

    Args:
        args: The teacher, and what the student learns from.
        model_args, data_args, training_args: The student's, as for [`train`].

    Returns:
        As [`train`].

    Raises:
        ValueError: On arguments that do not go together, or as [`train`].
    """
    refuse_processes("for a student of several")
    output_dir = Path(training_args.output_dir)
    sources = Sources(args, data_args)
    titles = write_pseudo_titles(args, sources, sources.description, output_dir / TITLES)
    files: dict[str, Any] = {"train_file": [str(write_training_pairs(sources, titles, args.pairs, output_dir))]}
    if sources.validation is not None:
        # All pairs have the columns of ours.
        write_rows(output_dir / VALIDATION, rows_of(sources.validation))
        files["validation_file"] = [str(output_dir / VALIDATION)]
    return train(model_args, DataArguments(**files, **limits_of(data_args)), training_args)


def refuse_processes(why: str) -> None:
    """Refuses to be one of several processes, which would all write the same files.

    Raises:
        ValueError: With the remedy.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"every process of torchrun would write all titles: start one process; {why}, give the {PAIRS} that it "
            "leaves to train"
        )


def limits_of(data_args: DataArguments) -> dict[str, Any]:
    """Those of texts and validation, which pairs that have been written anew are read with as well."""
    names = ("max_source_length", "max_target_length", "max_eval_samples")
    return {name: getattr(data_args, name) for name in names}


def main(argv: list[str] | None = None) -> None:
    """Runs the command; `argv` instead of the process's own arguments."""
    arguments = parse_arguments(
        DistillationArguments, ModelArguments, DataArguments, TrainingArguments, description=__doc__, args=argv
    )
    for name, value in distil(*arguments).items():
        print(f"{name:32} {value:.4f}")
    leave_processes()

"""Writes titles for texts with a trained model.

    bidir-seq2seq generate my_model --text "The article ..."
    bidir-seq2seq generate my_model --input_file articles.txt --output_file titles.txt
    bidir-seq2seq generate my_model --input_file pairs.csv.gz --output_file titles.jsonl --resume
    cat articles.txt | bidir-seq2seq generate my_model --show_details

Plain text holds one document a line; files of rows are read by column. Titles are written while they come, in the
order of the documents, and memory does not grow with their number. An empty document gets as many empty lines as
others get candidates, so that input and output lines correspond. With --show_details each document's line is JSON:
the candidates with score and direction.
"""

import io
import json
import math
import operator
import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

from tqdm.auto import tqdm
from transformers import set_seed
from transformers.utils import logging

from ..allocator import keep_freed_memory
from ..arguments import check_numbers, parse_arguments
from ..data import check_column, check_text, choose_columns, is_known_source, read_texts
from ..files import find_files
from ..loading import load_model_and_tokenizer
from ..ranking_bidir_seq2seq import rule_of
from ..tables import Row, Table, open_table, split_lines
from ..title_file import WRITTEN_COLUMN, TitleFile, describe_input, describe_model
from ..titles import Title, stream_titles, window_size
from ..version import __version__

logger = logging.get_logger(__name__)

# What an output file is by its name: rows, and what is never written.
ROWS = (".jsonl", ".ndjson")
NEITHER_LINES_NOR_ROWS = (".csv", ".tsv", ".json", ".parquet", ".gz", ".bz2", ".xz", ".zst")


@dataclass
class GenerateArguments:
    """What to write titles for, with which model and how."""

    model_name_or_path: str = field(metadata={"help": "Trained model; also as the first argument."})
    text: list[str] | None = field(default=None, metadata={"help": "One or more documents. Default: standard input."})
    input_file: list[str] | None = field(
        default=None,
        metadata={
            "help": "File of documents instead: plain text with one a line, or rows (.json, .jsonl, .csv, .tsv, "
            ".parquet), packed or not; several are read one after the other."
        },
    )
    source_column: str | None = field(
        default=None,
        metadata={"help": "Its column to read, or path (translation.en). Default: by name, else the first."},
    )
    encoding: str | None = field(
        default=None, metadata={"help": "Encoding of input_file, such as cp1252. Default: found out."}
    )
    on_bad_rows: str = field(
        default="error",
        metadata={
            "help": "At a row that cannot be read: stop, or skip it (its title is empty, so that rows correspond).",
            "choices": ["error", "skip"],
        },
    )
    output_file: str | None = field(
        default=None,
        metadata={
            "help": "Where titles go; called NAME.partial until it is finished. A .jsonl file keeps each row and adds "
            "generated_title and generated_candidates. Default: standard output."
        },
    )
    resume: bool = field(
        default=False, metadata={"help": "Go on with the output file of the same command, after a kill."}
    )
    decoding_direction: str | None = field(
        default=None, metadata={"help": "Default: what the model has.", "choices": ["both", "l2r", "r2l"]}
    )
    proposals: str | None = field(
        default=None,
        metadata={
            "help": "What proposes candidates, joined by '+': the searches both, l2r and r2l; drawn, which is chance; "
            "and spliced, beginnings of the best from the left with ends of the best from the right. l2r+r2l+both "
            "takes about twice as long as both. Default: the model's own, and with --ranking consensus what is drawn "
            "and spliced, too."
        },
    )
    ranking: dict | str | None = field(
        default=None,
        metadata={
            "help": "How both directions' candidates are ranked: 'own', by the one that wrote each; 'joint', by both; "
            "'consensus', by what each has in common with titles that both draw at random, which is slower and best "
            'for titles; or weights of features, such as \'{"consensus": 1, "l2r": 0.1, "r2l": 0.1}\'. Default: '
            "the model's own."
        },
    )
    consensus_samples: int | None = field(
        default=None,
        metadata={"help": "Titles that each direction draws for 'consensus'; the same each time. Default: 16."},
    )
    joint_rescoring: bool | None = field(default=None, metadata={"help": "The older name: true is --ranking joint."})
    num_beams: int | None = field(default=None, metadata={"help": "Beams per direction. Default: the model's own."})
    num_return_sequences: int = field(default=1, metadata={"help": "Candidates per document; at most num_beams."})
    length_penalty: float | None = field(default=None, metadata={"help": "Above 1 favours longer titles."})
    max_new_tokens: int | None = field(default=None, metadata={"help": "Longest title in tokens."})
    min_new_tokens: int | None = field(default=None, metadata={"help": "Shortest title in tokens."})
    no_repeat_ngram_size: int | None = field(default=None, metadata={"help": "No n-gram of this size twice."})
    do_sample: bool = field(default=False, metadata={"help": "Sample titles instead of searching for the best."})
    vocabulary_shortlist: int | None = field(
        default=None,
        metadata={
            "help": "Write only words of the document and so many likeliest others: faster. Default: all words."
        },
    )
    batch_size: int = field(default=32, metadata={"help": "Documents per batch."})
    num_processes: int = field(
        default=1, metadata={"help": "Processes that share the documents; the order stays. A GPU each, if there are."}
    )
    device: str | None = field(
        default=None, metadata={"help": "Such as cpu or cuda:1. Default: a GPU if there is one."}
    )
    dtype: str = field(
        default="auto",
        metadata={
            "help": "Precision to load the model in; 'auto' is the checkpoint's. bfloat16 is faster where the "
            "processor has it.",
            "choices": ["auto", "float32", "bfloat16", "float16"],
        },
    )
    show_details: bool = field(default=False, metadata={"help": "JSON lines with all candidates, scores, directions."})
    seed: int = field(default=0, metadata={"help": "Random seed, for sampling."})

    def __post_init__(self):
        counts = ("num_beams", "num_return_sequences", "max_new_tokens", "vocabulary_shortlist")
        check_numbers(self, **dict.fromkeys((*counts, "batch_size", "num_processes"), 1), length_penalty=-math.inf)
        check_numbers(self, min_new_tokens=0, no_repeat_ngram_size=0, seed=0, consensus_samples=0)
        self.ranking = read_ranking(self.ranking)


def read_ranking(ranking: dict | str | None) -> dict | str | None:
    """A ranking as `generate` takes it: the name of a rule, or weights of features, which may be JSON.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(ranking, str) and ranking.lstrip().startswith("{"):
        try:
            ranking = json.loads(ranking)
        except ValueError as error:
            raise ValueError(
                f"ranking={ranking!r} is no JSON ({error}): write weights as "
                """'{"consensus": 1, "l2r": 0.1, "r2l": 0.1}'"""
            ) from error
    if ranking is not None:
        rule_of(ranking)
    return ranking


GENERATE_KWARGS = (
    "decoding_direction",
    "proposals",
    "ranking",
    "consensus_samples",
    "joint_rescoring",
    "num_beams",
    "num_return_sequences",
    "length_penalty",
    "max_new_tokens",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "do_sample",
    "vocabulary_shortlist",
)
# What else decides which titles are written, and how.
RUN_SETTINGS = ("source_column", "encoding", "on_bad_rows", "batch_size", "dtype", "show_details", "seed")


class Documents:
    """The documents that the arguments name, one after the other, and what is needed of their rows.

    Args:
        args: The arguments of the command.

    Attributes:
        files: The files they are read from; none for texts and standard input.
        number: About how many there are; `None` if nobody knows.
        bad: How many rows could not be read so far.

    Raises:
        ValueError: If the arguments name two places, or the file or its column cannot be read.
    """

    def __init__(self, args: GenerateArguments):
        if args.text and args.input_file:
            raise ValueError("give either text or input_file")
        self.files, self.number, self.bad = [], None, 0
        self._pending: deque[Row] = deque()
        if args.input_file:
            self.files = find_files(args.input_file)
            table = open_table(args.input_file, args.encoding, shape="texts")
            column = source_column(table, args.source_column)
            self.number = operator.length_hint(table) or None
            self._rows = read_texts(table, [column], args.on_bad_rows)
        else:
            texts = args.text or _standard_input(args.encoding)
            self._rows = ((Row({"text": text}, "input", "line", i), [text]) for i, text in enumerate(texts, start=1))

    def texts(self, start: int = 0) -> Iterator[str]:
        """The texts from the document number `start` on."""
        for row, texts in islice(self._rows, start, None):
            self._pending.append(row)
            if texts is None:
                self.bad += 1
                if self.bad == 1:
                    logger.warning(f"{row}: it gets an empty title, as others like it will")
            yield (texts and texts[0]) or ""

    def next_row(self) -> Row:
        """The row of the next text that was handed out."""
        return self._pending.popleft()


def _standard_input(encoding: str | None) -> Iterator[str]:
    if isinstance(sys.stdin, io.TextIOWrapper):
        # A lone carriage return is no line end, as in files; and what is not text is not let through.
        sys.stdin.reconfigure(encoding=encoding or "utf-8", errors="strict", newline="\n")
    try:
        yield from split_lines(sys.stdin)
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input: not {error.encoding}: {error}; say what it is with --encoding") from error


def source_column(table: Table, given: str | None) -> str:
    """As in training; without a target beside it a known name of a source tells as well."""
    known = [column for column in table.columns if is_known_source(column)]
    paired, _ = choose_columns(table.columns, given)
    column = paired if given or paired in known or not known else known[0]
    check_column(column, "source_column", table.columns, table.name)
    check_text(table.head(), column, "source_column", table.columns, table.name, given=given is not None)
    if given is None and len(table.columns) > 1:
        logger.warning_once(
            f"{table.name}: {column!r} is taken as the source, of {table.columns}; another: --source_column"
        )
    return column


def as_lines(candidates: list[Title], number: int) -> list[str]:
    """One line a candidate, and empty ones up to `number`: the lines of all documents correspond.

    A line break inside a title, of whatever kind, becomes a space.
    """
    lines = [" ".join(title.text.split()) for title in candidates]
    return lines + [""] * (number - len(lines))


def as_row(row: Row, candidates: list[Title]) -> str:
    """The input row as JSON, with `generated_title` and `generated_candidates`; of a bad row, its `problem`."""
    values = {"problem": str(row)} if row.values is None else row.values
    written = {WRITTEN_COLUMN: candidates[0].text, "generated_candidates": [asdict(title) for title in candidates]}
    # A parquet file may hold dates.
    return json.dumps({**values, **written}, ensure_ascii=False, default=str)


def write_all(args: GenerateArguments, documents: Documents, start: int = 0) -> Iterator[list[Title]]:
    """The titles of all documents from the number `start` on, in their order."""
    settings = {name: getattr(args, name) for name in GENERATE_KWARGS if getattr(args, name) is not None}
    settings |= {"batch_size": args.batch_size, "seed": args.seed if args.do_sample else None, "start": start}
    texts = documents.texts(start)
    if args.num_processes > 1:
        from .workers import write_in_processes

        return write_in_processes(
            args.num_processes, args.model_name_or_path, texts, dtype=args.dtype, device=args.device, **settings
        )
    keep_freed_memory()
    model, tokenizer = load_model_and_tokenizer(args.model_name_or_path, args.dtype, args.device)
    return stream_titles(model, tokenizer, texts, **settings)


def _keeps_rows(args: GenerateArguments) -> bool:
    return bool(args.output_file) and args.output_file.endswith(ROWS)


def format_titles(args: GenerateArguments, row: Row, candidates: list[Title]) -> list[str]:
    """The lines of one document."""
    if _keeps_rows(args):
        return [as_row(row, candidates)]
    if args.show_details:
        return [json.dumps([asdict(title) for title in candidates], ensure_ascii=False)]
    return as_lines(candidates, args.num_return_sequences)


def open_output(args: GenerateArguments, documents: Documents) -> TitleFile:
    """The output file, with the settings that a later run must have to go on with it."""
    settings = {
        "model": describe_model(args.model_name_or_path),
        "input": describe_input(documents.files),
        "version": __version__,
        **{name: getattr(args, name) for name in (*RUN_SETTINGS, *GENERATE_KWARGS)},
    }
    lines = 1 if args.show_details or _keeps_rows(args) else args.num_return_sequences
    return TitleFile(args.output_file, lines, window_size(args.batch_size), settings, args.resume)


def check_arguments(args: GenerateArguments) -> None:
    """Refuses what cannot be done before anything is loaded.

    Raises:
        ValueError: Naming the argument and the remedy.
    """
    if args.resume and not (args.input_file and args.output_file):
        raise ValueError("resume goes on with an output_file made from an input_file: give both")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("every process of torchrun would write all titles: start one, with --num_processes N")
    if args.output_file and args.output_file.endswith(NEITHER_LINES_NOR_ROWS):
        raise ValueError(
            f"output_file={args.output_file!r}: titles are written as lines, or as rows of .jsonl, and others would "
            "read this name as something else; use .txt or .jsonl"
        )
    if args.output_file and not Path(args.output_file).resolve().parent.is_dir():
        raise ValueError(f"output_file={args.output_file!r}: there is no folder {Path(args.output_file).parent}")


def main(argv: list[str] | None = None) -> None:
    """Runs the command; `argv` instead of the process's own arguments."""
    (args,) = parse_arguments(GenerateArguments, description=__doc__, args=argv, first="model_name_or_path")
    check_arguments(args)
    set_seed(args.seed)
    documents = Documents(args)
    if args.output_file is None:
        for candidates in write_all(args, documents):
            sys.stdout.writelines(f"{line}\n" for line in format_titles(args, documents.next_row(), candidates))
            sys.stdout.flush()
    else:
        with closing(open_output(args, documents)) as output:
            write_file(args, documents, output)
    if documents.bad:
        logger.warning(f"{documents.bad} rows could not be read; their titles are empty")


def write_file(args: GenerateArguments, documents: Documents, output: TitleFile) -> None:
    """Writes the titles of all documents that are not yet in a file, and shows how far it is."""
    if output.is_finished:
        logger.warning(f"{output.path} is finished: there is nothing to go on with; delete it to write it anew")
        return
    if output.documents:
        logger.warning(f"going on after {output.documents:,} documents in {output.partial}")
    truncated = 0
    with tqdm(desc="Writing titles", total=documents.number, initial=output.documents, unit=" documents") as progress:
        for candidates in write_all(args, documents, output.documents):
            output.write(format_titles(args, documents.next_row(), candidates))
            truncated += candidates[0].truncated
            progress.update()
    output.finish()
    if truncated and args.num_processes > 1:
        logger.warning(f"{truncated} documents are longer than what is read of one: their tails are not read")

"""Writes titles for texts with a trained model.

    python scripts/generate.py --model_name_or_path my_model --text "The article ..."
    python scripts/generate.py --model_name_or_path my_model --input_file articles.txt --output_file titles.txt
    cat articles.txt | python scripts/generate.py --model_name_or_path my_model --show_details

Plain text holds one document a line; .json(l), .csv and .tsv files are read by column. An empty document gets as many
empty lines as others get candidates, so that input and output lines correspond. With --show_details each document's
line is JSON: the candidates with score and direction.
"""

import io
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transformers import set_seed
from transformers.utils import logging

from ..allocator import keep_freed_memory
from ..arguments import parse_arguments
from ..data import FILE_FORMATS, KNOWN_COLUMNS, check_text, choose_columns, load_file, read_lines, split_lines
from ..loading import load_model_and_tokenizer
from ..titles import Title, write_titles

logger = logging.get_logger(__name__)


@dataclass
class GenerateArguments:
    """What to write titles for, with which model and how."""

    model_name_or_path: str = field(metadata={"help": "Trained model."})
    text: list[str] | None = field(default=None, metadata={"help": "One or more documents. Default: standard input."})
    input_file: str | None = field(default=None, metadata={"help": "File of documents instead."})
    source_column: str | None = field(
        default=None, metadata={"help": "Its column to read. Default: by name, else the first."}
    )
    output_file: str | None = field(default=None, metadata={"help": "Where titles go. Default: standard output."})
    decoding_direction: str | None = field(
        default=None, metadata={"help": "Default: what the model has.", "choices": ["both", "l2r", "r2l"]}
    )
    joint_rescoring: bool | None = field(
        default=None, metadata={"help": "Rank both directions' candidates by both. Default: the model's own."}
    )
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


GENERATE_KWARGS = (
    "decoding_direction",
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


def read_documents(args: GenerateArguments) -> list[str]:
    """The documents that the arguments name, or those of standard input.

    Raises:
        ValueError: If the arguments name two places, or the file or its column cannot be read.
    """
    if args.text and args.input_file:
        raise ValueError("give either text or input_file")
    if args.text:
        return args.text
    if args.input_file is None:
        if isinstance(sys.stdin, io.TextIOWrapper):
            # A lone carriage return is no line end, as in files.
            sys.stdin.reconfigure(newline="\n")
        return split_lines(sys.stdin)
    if Path(args.input_file).suffix[1:].lower() not in FILE_FORMATS:
        return read_lines(args.input_file)
    return _read_column(args.input_file, args.source_column)


def _read_column(path: str, source_column: str | None) -> list[str]:
    rows = load_file(path)
    columns = rows.column_names
    column = source_column or _source_column(columns)
    if column not in columns:
        raise ValueError(f"{path}: source_column={column!r} is not among its columns {columns}")
    check_text(rows, column, "source_column", path, given=source_column is not None)
    if source_column is None:
        logger.warning_once(f"{path}: {column!r} is taken as the source, of {columns}; another: --source_column")
    return [text or "" for text in rows[column]]


def _source_column(columns: list[str]) -> str:
    """As in training; without a target beside it a known name of a source tells as well."""
    known = [source for source, _ in KNOWN_COLUMNS if source in columns]
    paired, _ = choose_columns(columns)
    return paired if paired in known or not known else known[0]


def as_lines(candidates: list[Title], number: int) -> list[str]:
    """One line a candidate, and empty ones up to `number`: the lines of all documents correspond.

    A line break inside a title, of whatever kind, becomes a space.
    """
    lines = [" ".join(title.text.split()) for title in candidates]
    return lines + [""] * (number - len(lines))


def main(argv: list[str] | None = None) -> None:
    """Runs the command; `argv` instead of the process's own arguments."""
    (args,) = parse_arguments(GenerateArguments, description=__doc__, args=argv)
    set_seed(args.seed)
    keep_freed_memory()
    model, tokenizer = load_model_and_tokenizer(args.model_name_or_path, args.dtype)
    given = {name: getattr(args, name) for name in GENERATE_KWARGS if getattr(args, name) is not None}
    titles = write_titles(
        model,
        tokenizer,
        read_documents(args),
        batch_size=args.batch_size,
        progress=args.output_file is not None,
        **given,
    )
    lines = []
    for candidates in titles:
        if args.show_details:
            lines.append(json.dumps([asdict(title) for title in candidates], ensure_ascii=False))
        else:
            lines += as_lines(candidates, args.num_return_sequences)
    text = "".join(f"{line}\n" for line in lines)
    if args.output_file:
        Path(args.output_file).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)

"""Puts the most similar training pairs behind each document, for a model that reads them beside it.

    bidir-seq2seq retrieve --train_file train.jsonl --input_file train.jsonl validation.jsonl --output_dir similar
    bidir-seq2seq train --train_file similar/train.jsonl --validation_file similar/validation.jsonl ...
    bidir-seq2seq retrieve --train_file train.jsonl --input_file new.jsonl --output_dir similar
    bidir-seq2seq generate my_model --input_file similar/new.jsonl

The pairs of train_file are all that is remembered: what is trained on and what is written for later are looked up
among the same ones, a document's own title never. Behind an English word stand so the letters and phonemes of the word
most like it, behind a sentence the translation of another one (--num_neighbors, --template). Rows keep all columns and
their order, and become .jsonl; lines stay lines. Whoever deploys the model deploys train_file with it.
"""

from __future__ import annotations

import json
import operator
import os
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from tqdm.auto import tqdm
from transformers.utils import logging

from ..arguments import check_numbers, parse_arguments
from ..data import load_pairs, read_texts
from ..files import PACKINGS, DataFile, find_files
from ..manifest import flush
from ..pair_memory import TEMPLATE, UNITS, PairMemory
from ..recipe import has_spaces
from ..tables import open_table, with_cell
from .distil import column_of
from .generate import source_column

logger = logging.get_logger(__name__)


@dataclass
class RetrieveArguments:
    """What is remembered, and behind which documents it is put."""

    train_file: list[str] = field(
        metadata={"help": "Pairs to remember: .json, .jsonl, .csv, .tsv, .parquet, or two files of plain text."}
    )
    input_file: list[str] = field(
        metadata={"help": "Files of documents, also train_file itself: each is written anew. Rows or lines of text."}
    )
    output_dir: str = field(metadata={"help": "Folder for files of the same names."})
    num_neighbors: int = field(default=1, metadata={"help": "Similar pairs behind each document."})
    template: str = field(
        default=TEMPLATE,
        metadata={
            "help": "How each of them is put there: {target} is its title and {source} its document, which short "
            "documents gain by, as ' | {source} / {target}'."
        },
    )
    unit: str | None = field(
        default=None,
        metadata={
            "help": "What documents are compared by: what stands between spaces, or characters. Default: characters "
            "where a script has no spaces, such as Chinese.",
            "choices": list(UNITS),
        },
    )
    ngram_sizes: list[int] | None = field(
        default=None,
        metadata={
            "help": "How many of these in a row. Default: 1 2, of characters 2 3; letters with spaces need 2 3, too."
        },
    )
    source_column: str | None = field(
        default=None, metadata={"help": "Column of the documents, in all files. Default: by name, else the first."}
    )
    target_column: str | None = field(
        default=None, metadata={"help": "Column of train_file's titles. Default: by name, else the second."}
    )
    encoding: str | None = field(
        default=None, metadata={"help": "Encoding of all files, such as cp1252. Default: found out."}
    )
    on_bad_rows: str = field(
        default="error",
        metadata={
            "help": "At a row that cannot be read: stop, or skip it (it is left out, and counted; a line is empty).",
            "choices": ["error", "skip"],
        },
    )

    def __post_init__(self) -> None:
        check_numbers(self, num_neighbors=1)


def retrieve(args: RetrieveArguments) -> list[Path]:
    """Writes each input file anew, with similar pairs behind its documents.

    Returns:
        The files that were written, in the order of the input files.

    Raises:
        ValueError: On arguments that do not go together, or a file or row that cannot be read.
        FileNotFoundError: If there is no such file.
        ImportError: If bm25s is not installed.
    """
    files = find_files(args.input_file)
    outputs = [Path(args.output_dir) / _name(file) for file in files]
    for number, (file, output) in enumerate(zip(files, outputs)):
        if output in outputs[:number]:
            other = files[outputs.index(output)].name
            raise ValueError(f"{other} and {file.name} would both become {output}: give them in two calls")
        if output.exists() and os.path.samefile(output, file.path):
            raise ValueError(f"output_dir={args.output_dir!r} is where {file.name} lies: choose another folder")
    pairs = load_pairs(
        {"train": args.train_file},
        source_column=args.source_column,
        target_column=args.target_column,
        encoding=args.encoding,
        on_bad_rows=args.on_bad_rows,
    )["train"]
    # As many as a tokenizer is chosen by.
    some = (text or "" for text in islice(column_of(pairs, "source"), 1000))
    unit = args.unit or ("word" if has_spaces(some) else "char")
    columns = (column_of(pairs, name) for name in ("source", "target"))
    known = ((source or "", target or "") for source, target in zip(*columns))
    memory = PairMemory(known, unit, args.ngram_sizes, args.template)
    sizes = " and ".join(map(str, memory.ngram_sizes))
    logger.warning(
        f"{len(memory):,} documents are remembered, of {len(pairs):,} pairs, and compared by n-grams of {sizes} "
        f"{'words' if unit == 'word' else 'characters'}"
    )
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    for file, output in zip(files, outputs):
        _write(args, memory, file, output)
    return outputs


def _name(file: DataFile) -> str:
    """The name of what an input file becomes: lines keep theirs, rows become `.jsonl`."""
    name = Path(file.name.rstrip("/"))
    if name.suffix[1:].lower() in PACKINGS:
        name = name.with_suffix("")
    if file.kind == "lines":
        return name.name
    return f"{name.name if file.kind == 'dataset' else name.stem}.jsonl"


def _write(args: RetrieveArguments, memory: PairMemory, file: DataFile, output: Path) -> None:
    """Writes one file anew, whole or not at all."""
    table = open_table(file.path, args.encoding, shape="texts")
    column, is_lines = source_column(table, args.source_column), file.kind == "lines"
    number, alone, bad = 0, 0, []
    # Of this process: another one may be writing the same file.
    unfinished = output.with_name(f"{output.name}.{os.getpid()}.tmp")
    try:
        with open(unfinished, "w", encoding="utf-8", newline="\n") as stream:
            rows = read_texts(table, [column], args.on_bad_rows)
            for row, texts in tqdm(rows, output.name, operator.length_hint(table) or None, unit=" documents"):
                if texts is None:
                    bad.append(row)
                    # The line beside it, of another file, has its own number.
                    stream.write("\n" if is_lines else "")
                    continue
                number += 1
                text = texts[0] or ""
                extended = memory.extend(text, args.num_neighbors)
                alone += extended == text
                # What has no text keeps what it has: nothing, or null.
                values = row.values if extended == text else with_cell(row.values, column, extended)
                # A parquet file may hold dates.
                line = extended if is_lines else json.dumps(values, ensure_ascii=False, default=str)
                stream.write(line + "\n")
        flush(unfinished)
        unfinished.replace(output)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    left_out = (
        f"; {len(bad):,} bad rows are {'empty lines' if is_lines else 'left out'}, the first: {bad[0]}" if bad else ""
    )
    logger.warning(f"{output}: {number:,} documents, {alone:,} of which are like none that is remembered{left_out}")


def main(argv: list[str] | None = None) -> None:
    """Runs the command; `argv` instead of the process's own arguments."""
    (args,) = parse_arguments(RetrieveArguments, description=__doc__, args=argv)
    print(*retrieve(args), sep="\n")


if __name__ == "__main__":
    main()

"""Scores titles: a model's directions on held-out pairs, or lines that something else wrote.

    bidir-seq2seq score my_model --test_file test.jsonl
    bidir-seq2seq score --predictions_file mine.txt --test_file test.jsonl
    torchrun --nproc_per_node 2 -m bidir_seq2seq score my_model --test_file test.jsonl

Prints ROUGE-1/2/L, BLEU and the share of the first and last four tokens in their place, in percent, each system
compared with the first by paired bootstrap. Works without a network, for Chinese characters and for spaced words. With
--output_dir my_model/scores, `bidir-seq2seq report my_model` finds what it needs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..allocator import keep_freed_memory
from ..arguments import check_numbers, parse_arguments
from ..data import read_texts
from ..evaluation import (
    PRONUNCIATION_METRICS,
    TITLE_METRICS,
    available_systems,
    format_table,
    listed_references,
    load_test_pairs,
    predict_titles,
    processes,
    save_scores,
    score,
    score_pairs,
)
from ..loading import load_model_and_tokenizer
from ..metrics import Tokenization
from ..tables import open_table
from ..title_file import WRITTEN_COLUMN
from ..titles import Title

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class ScoreArguments:
    """What to score, and how."""

    test_file: list[str] = field(
        metadata={
            "help": "Pairs with the references: a file of rows (.json, .jsonl, .csv, .tsv, .parquet; packed or not), "
            "or two files of plain text, sources and targets line by line."
        }
    )
    encoding: str | None = field(
        default=None, metadata={"help": "Encoding of test_file, such as cp1252. Default: found out."}
    )
    device: str | None = field(
        default=None, metadata={"help": "Such as cpu or cuda:1. Default: a GPU if there is one."}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model to score; also as the first argument."}
    )
    predictions_file: list[str] | None = field(
        default=None, metadata={"help": "Files of titles to score instead, one a line, in the order of the pairs."}
    )
    systems: list[str] | None = field(
        default=None,
        metadata={
            "help": "Of a model: lead, l2r, r2l, both, joint, tuned, consensus. Default: all it can run but "
            "consensus, which takes longer than the others together."
        },
    )
    source_column: str | None = field(
        default=None, metadata={"help": "Column of documents. Default: by name, else the first."}
    )
    target_column: list[str] | None = field(
        default=None,
        metadata={
            "help": "Column(s) of references, each of texts or of lists of texts; the best reference counts. "
            "Default: by name, else the second."
        },
    )
    metrics: list[str] = field(
        default_factory=lambda: list(TITLE_METRICS),
        metadata={
            "help": "Scores to print. For pronunciations there are also wer and per, the word and phoneme error rates "
            "against the nearest reference.",
            "choices": [*TITLE_METRICS, *PRONUNCIATION_METRICS],
        },
    )
    max_samples: int | None = field(default=None, metadata={"help": "Score only the first so many pairs."})
    num_beams: int | None = field(default=None, metadata={"help": "Beams per direction. Default: the model's own."})
    batch_size: int = field(default=32, metadata={"help": "Documents per batch."})
    dtype: str = field(
        default="auto",
        metadata={
            "help": "Precision to load the model in; 'auto' is the checkpoint's. bfloat16 is faster where the "
            "processor has it.",
            "choices": ["auto", "float32", "bfloat16", "float16"],
        },
    )
    tokenization: str = field(
        default="auto", metadata={"help": "What a token is for the scores.", "choices": ["auto", "char", "word"]}
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder for the scores (scores.json), each system's titles (NAME.txt) and all by pair."},
    )
    num_examples: int = field(default=0, metadata={"help": "Show so many pairs with every system's title."})

    def __post_init__(self) -> None:
        check_numbers(self, max_samples=1, num_beams=1, batch_size=1, num_examples=0)


def read_predictions(path: str, pairs: int, wanted: int) -> list[str]:
    """The first `wanted` titles of a file with one for each of all `pairs`, or for each of the wanted ones.

    Raises:
        ValueError: If the file has another number of lines, since nothing tells which pairs they belong to; on rows of
            which nothing says where the title is.
    """
    table = open_table(path, shape="texts")
    column = WRITTEN_COLUMN if WRITTEN_COLUMN in table.columns else table.columns[0]
    if column != WRITTEN_COLUMN and len(table.columns) > 1:
        raise ValueError(
            f"{path}: which of the columns {table.columns} holds the titles? call it {WRITTEN_COLUMN!r}, as "
            "`bidir-seq2seq generate` does, or write a title a line"
        )
    lines = []
    for row, texts in read_texts(table, [column], on_bad_rows="skip"):
        if texts is None:
            # None is left out, or the lines after it would be other pairs' titles.
            raise ValueError(str(row))
        lines.append(texts[0] or "")
    if len(lines) not in (pairs, wanted):
        expected = f"{pairs}" if pairs == wanted else f"{wanted} (max_samples) or all {pairs}"
        raise ValueError(
            f"{path}: {len(lines)} lines for {expected} references; write one line for every pair, "
            "an empty one where there is no title"
        )
    return lines[:wanted]


def main(argv: list[str] | None = None) -> None:
    """Runs the command; `argv` instead of the process's own arguments."""
    (args,) = parse_arguments(ScoreArguments, description=__doc__, args=argv, first="model_name_or_path")
    if (args.model_name_or_path is None) == (args.predictions_file is None):
        raise ValueError("give either model_name_or_path or predictions_file")
    state = processes()
    with state.main_process_first():
        pairs = load_test_pairs(args.test_file, args.source_column, args.target_column, args.encoding)
    number = len(pairs)
    pairs = pairs.select(range(min(args.max_samples or len(pairs), len(pairs))))
    titles = _titles_of_model(args, pairs) if args.model_name_or_path else _titles_of_files(args, number, len(pairs))
    if not state.is_main_process:
        return
    predictions = {name: [title.text for title in written] for name, written in titles.items()}
    references = listed_references(pairs)
    by_pair = score_pairs(predictions, references, args.tokenization)
    results = score(predictions, references, args.tokenization, args.metrics, by_pair)
    print(format_table(results, args.metrics))
    for index in range(min(args.num_examples, len(pairs))):
        print(f"\nsource     {' '.join((pairs['source'][index] or '').split())[:300]}")
        print(f"reference  {' | '.join(references[index])}")
        for name, texts in predictions.items():
            print(f"{name:10} {texts[index]}")
    if args.output_dir:
        about = {"model": args.model_name_or_path, "test_file": args.test_file, "num_beams": args.num_beams}
        save_scores(args.output_dir, pairs, titles, results, by_pair, args.tokenization, **about)


def _titles_of_model(args: ScoreArguments, pairs: Dataset) -> dict[str, list[Title]]:
    keep_freed_memory()
    model, tokenizer = load_model_and_tokenizer(str(args.model_name_or_path), args.dtype, args.device)
    settings: dict[str, Any] = {"batch_size": args.batch_size}
    if args.num_beams:
        settings["num_beams"] = args.num_beams
    state = processes()
    if state.num_processes > 1:
        model.to(state.device)
    return predict_titles(
        model,
        tokenizer,
        pairs,
        args.systems or available_systems(model),
        tokenization=cast(Tokenization, args.tokenization),
        **settings,
    )


def _titles_of_files(args: ScoreArguments, number: int, wanted: int) -> dict[str, list[Title]]:
    paths = args.predictions_file or []
    files = {Path(path).stem: read_predictions(path, number, wanted) for path in paths}
    if len(files) < len(paths):
        raise ValueError(f"predictions_file: {args.predictions_file} must differ in name: it names the system")
    return {name: [Title(text) for text in texts] for name, texts in files.items()}

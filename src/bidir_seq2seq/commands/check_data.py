"""Shows what files of pairs hold, before a model is trained on them.

    bidir-seq2seq check --train_file train.jsonl --test_file test.jsonl
    bidir-seq2seq check --train_file corpus.en corpus.de
    bidir-seq2seq check --train_file train.csv --tokenizer_name my_model --max_source_length 400

For each file: which columns are taken, the first pairs, how long texts are, how many pairs are empty or there twice,
how many rows cannot be read; with a tokenizer what training would cut, and which share of the tokens is unknown; and
how many pairs files have in common, by which scores would look better than they are.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from ..arguments import check_numbers, parse_arguments
from ..data import load_pairs
from ..loading import load_tokenizer
from ..pair_summary import PairSummary, shorten, summarize_pairs


@dataclass
class CheckArguments:
    """What to look at, and how."""

    train_file: list[str] | None = field(
        default=None,
        metadata={
            "help": "Training pairs: files of rows (.json, .jsonl, .csv, .tsv, .parquet; packed or not), a pattern, "
            "folder or address; or two files of plain text, sources and targets line by line (corpus.en corpus.de)."
        },
    )
    validation_file: list[str] | None = field(default=None, metadata={"help": "Validation pairs; as train_file."})
    test_file: list[str] | None = field(default=None, metadata={"help": "Test pairs; as train_file."})
    dataset_name: str | None = field(
        default=None, metadata={"help": "A dataset of the Hub, or a local folder of one, instead of files."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    source_column: str | None = field(
        default=None, metadata={"help": "Column to read, or path (translation.en). Default: by name, else the first."}
    )
    target_column: str | None = field(
        default=None, metadata={"help": "Column to write, or path. Default: by name, else the second."}
    )
    on_bad_rows: str = field(
        default="skip",
        metadata={"help": "At a row that cannot be read: stop, or skip and count it.", "choices": ["error", "skip"]},
    )
    encoding: str | None = field(
        default=None, metadata={"help": "Encoding of the files, such as cp1252. Default: found out."}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer, or trained model, to count with. Default: characters are counted."}
    )
    max_source_length: int = field(default=400, metadata={"help": "Tokens of a source that training would keep."})
    max_target_length: int = field(default=64, metadata={"help": "Tokens of a target that training would keep."})
    num_examples: int = field(default=3, metadata={"help": "Pairs to show of each file."})

    def __post_init__(self) -> None:
        check_numbers(self, max_source_length=2, max_target_length=2, num_examples=0)


def main(argv: list[str] | None = None) -> None:
    """Runs the command; `argv` instead of the process's own arguments."""
    (args,) = parse_arguments(CheckArguments, description=__doc__, args=argv)
    splits = load_pairs(
        {"train": args.train_file, "validation": args.validation_file, "test": args.test_file},
        args.dataset_name,
        args.dataset_config_name,
        args.source_column,
        args.target_column,
        on_bad_rows=args.on_bad_rows,
        encoding=args.encoding,
    )
    tokenizer = load_tokenizer(args.tokenizer_name) if args.tokenizer_name else None
    summaries = {}
    for name, pairs in splits.items():
        summaries[name] = summarize_pairs(pairs, tokenizer, args.max_source_length, args.max_target_length)
        print("\n".join(describe(name, summaries[name], args)))
        for pair in pairs.select(range(min(args.num_examples, len(pairs)))):
            print(f"  source  {shorten(pair['source'])}\n  target  {shorten(pair['target'])}")
    for (one, first), (other, second) in itertools.combinations(summaries.items(), 2):
        print(
            f"{one} and {other}: {first.shared_pairs(second):,} pairs and {first.shared_sources(second):,} sources in "
            "common"
        )


def describe(name: str, summary: PairSummary, args: CheckArguments) -> list[str]:
    """The account of one split, in lines."""
    lines = [f"{name}: {summary}"]
    for side, lengths in (("source", summary.source_lengths), ("target", summary.target_lengths)):
        half, most, nearly_all, longest = lengths
        lines.append(
            f"  {side} length in {summary.unit}: half up to {half:,}, 90 % {most:,}, 99 % {nearly_all:,}, "
            f"all {longest:,}"
        )
    if summary.unknown is not None:
        cut = (summary.cut_source / summary.pairs, summary.cut_target / summary.pairs)
        lines.append(
            f"  cut: {cut[0]:.1%} of sources (above {args.max_source_length}), {cut[1]:.1%} of targets (above "
            f"{args.max_target_length}); unknown tokens: {summary.unknown:.2%}"
        )
    return lines

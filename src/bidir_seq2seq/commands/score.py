"""Scores titles: a model's directions on held-out pairs, or lines that something else wrote.

    bidir-seq2seq score --model_name_or_path my_model --test_file test.jsonl
    bidir-seq2seq score --predictions_file mine.txt --test_file test.jsonl

Prints ROUGE-1/2/L, BLEU and the share of the first and last four tokens in their place, in percent, each system
compared with the first by paired bootstrap. Works without a network, for Chinese characters and for spaced words.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from ..allocator import keep_freed_memory
from ..arguments import parse_arguments
from ..data import load_pairs
from ..evaluation import available_systems, format_table, predict, score
from ..tables import open_table
from .loading import load_model


@dataclass
class ScoreArguments:
    """What to score, and how."""

    test_file: list[str] = field(
        metadata={
            "help": "Pairs with the references: a file of rows (.json, .jsonl, .csv, .tsv, .parquet; packed or not), "
            "or two files of plain text, sources and targets line by line."
        }
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "Model to score."})
    predictions_file: list[str] | None = field(
        default=None, metadata={"help": "Files of titles to score instead, one a line, in the order of the pairs."}
    )
    systems: list[str] | None = field(
        default=None, metadata={"help": "Of a model: lead, l2r, r2l, both, joint. Default: all that it can run."}
    )
    source_column: str | None = field(
        default=None, metadata={"help": "Column of documents. Default: by name, else the first."}
    )
    target_column: str | None = field(
        default=None, metadata={"help": "Column of references. Default: by name, else the second."}
    )
    max_samples: int | None = field(default=None, metadata={"help": "Score only the first so many pairs."})
    num_beams: int | None = field(default=None, metadata={"help": "Beams per direction. Default: the model's own."})
    encoding: str | None = field(
        default=None, metadata={"help": "Encoding of test_file, such as cp1252. Default: found out."}
    )
    batch_size: int = field(default=32, metadata={"help": "Documents per batch."})
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
    tokenization: str = field(
        default="auto", metadata={"help": "What a token is for the scores.", "choices": ["auto", "char", "word"]}
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for the scores (scores.json) and each system's titles (NAME.txt)."}
    )
    num_examples: int = field(default=0, metadata={"help": "Show so many pairs with every system's title."})


def read_predictions(path: str, pairs: int, wanted: int) -> list[str]:
    """The first `wanted` titles of a file with one for each of all `pairs`, or for each of the wanted ones.

    Raises:
        ValueError: If the file has another number of lines, since nothing tells which pairs they belong to.
    """
    lines = [row.values["text"] for row in open_table(path, shape="texts")]
    if len(lines) not in (pairs, wanted):
        expected = f"{pairs}" if pairs == wanted else f"{wanted} (max_samples) or all {pairs}"
        raise ValueError(
            f"{path}: {len(lines)} lines for {expected} references; write one line for every pair, "
            "an empty one where there is no title"
        )
    return lines[:wanted]


def main(argv: list[str] | None = None) -> None:
    """Runs the command; `argv` instead of the process's own arguments."""
    (args,) = parse_arguments(ScoreArguments, description=__doc__, args=argv)
    if (args.model_name_or_path is None) == (args.predictions_file is None):
        raise ValueError("give either model_name_or_path or predictions_file")
    pairs = load_pairs(
        {"test": args.test_file},
        source_column=args.source_column,
        target_column=args.target_column,
        encoding=args.encoding,
    )["test"]
    number = len(pairs)
    pairs = pairs.select(range(min(args.max_samples or len(pairs), len(pairs))))
    if args.model_name_or_path:
        keep_freed_memory()
        model, tokenizer = load_model(args.model_name_or_path, args.dtype, args.device)
        predictions = predict(
            model,
            tokenizer,
            pairs,
            args.systems or available_systems(model),
            tokenization=args.tokenization,
            batch_size=args.batch_size,
            **({"num_beams": args.num_beams} if args.num_beams else {}),
        )
    else:
        predictions = {Path(path).stem: read_predictions(path, number, len(pairs)) for path in args.predictions_file}
        if len(predictions) < len(args.predictions_file):
            raise ValueError(f"predictions_file: {args.predictions_file} must differ in name: it names the system")
    results = score(predictions, [text or "" for text in pairs["target"]], args.tokenization)
    print(format_table(results))
    for index in range(min(args.num_examples, len(pairs))):
        print(f"\nsource     {' '.join((pairs['source'][index] or '').split())[:300]}")
        print(f"reference  {pairs['target'][index]}")
        for name, texts in predictions.items():
            print(f"{name:10} {texts[index]}")
    if args.output_dir:
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scores.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        for name, texts in predictions.items():
            lines = (" ".join(text.split()) for text in texts)
            (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

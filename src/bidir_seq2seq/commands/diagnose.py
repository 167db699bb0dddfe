"""Shows what the twins of a model do for each other: a leak of the answer, and what reading the twin is worth.

    bidir-seq2seq diagnose my_model --test_file test.jsonl

Prints how likely true words are to each decoder beside a twin that shows nothing, the true words or its own; how much
of that is the answer itself, read from the twin; how well each way of writing does at both ends; and what becomes of
titles when the twins are muted. --output_dir also gets these figures and a picture of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..allocator import keep_freed_memory
from ..arguments import check_numbers, parse_arguments
from ..diagnosis import describe, diagnose, save_diagnosis
from ..evaluation import load_test_pairs
from ..loading import load_model_and_tokenizer


@dataclass
class DiagnoseArguments:
    """What to look at."""

    model_name_or_path: str = field(metadata={"help": "A model with two decoders; also as the first argument."})
    test_file: list[str] = field(metadata={"help": "Held-out pairs: a file of rows, or two of plain text."})
    source_column: str | None = field(default=None, metadata={"help": "Column of the documents. Default: by name."})
    target_column: str | None = field(default=None, metadata={"help": "Column of the titles. Default: by name."})
    encoding: str | None = field(
        default=None, metadata={"help": "Encoding of test_file, such as cp1252. Default: found out."}
    )
    max_samples: int | None = field(default=200, metadata={"help": "Use only the first so many pairs."})
    num_beams: int = field(default=3, metadata={"help": "Beams per direction."})
    batch_size: int = field(default=32, metadata={"help": "Pairs per batch."})
    device: str | None = field(
        default=None, metadata={"help": "Such as cpu or cuda:1. Default: a GPU if there is one."}
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder for diagnosis.json and diagnosis.png."})

    def __post_init__(self) -> None:
        check_numbers(self, max_samples=1, num_beams=1, batch_size=1)


def main(argv: list[str] | None = None) -> None:
    """Runs the command; `argv` instead of the process's own arguments."""
    (args,) = parse_arguments(DiagnoseArguments, description=__doc__, args=argv, first="model_name_or_path")
    keep_freed_memory()
    model, tokenizer = load_model_and_tokenizer(args.model_name_or_path, device=args.device)
    columns = [args.target_column] if args.target_column else None
    pairs = load_test_pairs(args.test_file, args.source_column, columns, args.encoding)
    pairs = pairs.select(range(min(args.max_samples or len(pairs), len(pairs))))
    found = diagnose(model, tokenizer, pairs, args.batch_size, args.num_beams, progress=True)
    print(describe(found))
    if args.output_dir:
        about = {"model": args.model_name_or_path, "test_file": args.test_file}
        for path in save_diagnosis(args.output_dir, found, about):
            print(f"written: {path}")


if __name__ == "__main__":
    main()

"""Writes train, validation and test files of (document, summary) pairs from the docstrings on this machine.

    python scripts/gather_docstrings.py --output_dir data/docstrings

Needs no network and takes about a minute: the text comes from the installed Python packages and the standard library.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from bidir_seq2seq.arguments import parse_arguments
from bidir_seq2seq.docstrings import gather_docstrings


@dataclass
class GatherArguments:
    output_dir: str = field(
        default="data/docstrings",
        metadata={"help": "Folder for train.jsonl, validation.jsonl and test.jsonl, with the keys document, summary."},
    )
    roots: list[str] | None = field(
        default=None,
        metadata={"help": "Folders with Python files; default the installed packages and the standard library."},
    )
    max_train_samples: int = field(default=25_000, metadata={"help": "Most pairs in the training file."})
    eval_samples: int = field(default=500, metadata={"help": "Most pairs in each of the other two files."})
    num_workers: int | None = field(
        default=None, metadata={"help": "Processes that parse files; default one for each core."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace files that are already there."})


def write_json_lines(path: Path, rows: list[dict[str, str]]) -> None:
    """Writes one JSON object per line; an interrupted run leaves no half-written `path` behind."""
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    os.replace(partial, path)


def main(args: list[str] | None = None) -> None:
    (options,) = parse_arguments(GatherArguments, description=__doc__, args=args)
    output_dir = Path(options.output_dir)
    files = {split: output_dir / f"{split}.jsonl" for split in ("train", "validation", "test")}
    if (existing := [str(file) for file in files.values() if file.exists()]) and not options.overwrite:
        print(f"Already there: {', '.join(existing)}. Nothing written; --overwrite replaces them.")
        return

    splits, dropped = gather_docstrings(
        roots=[Path(root) for root in options.roots] if options.roots else None,
        max_train_samples=options.max_train_samples,
        eval_samples=options.eval_samples,
        num_workers=options.num_workers,
    )
    output_dir.mkdir(parents=True, exist_ok=True)
    for split, file in files.items():
        write_json_lines(file, splits[split])
        print(f"{len(splits[split]):>7,} pairs in {file}")
    for rule, count in dropped.most_common():
        print(f"{count:>7,} dropped: {rule}")
    for pair in splits["train"][:3]:
        print(f"\ndocument: {pair['document']}\nsummary:  {pair['summary']}")


if __name__ == "__main__":
    main()

"""Writes titles for texts with a trained model.

    python scripts/generate.py --model_name_or_path my_model --text "The article ..."
    python scripts/generate.py --model_name_or_path my_model --input_file articles.txt --output_file titles.txt
    cat articles.txt | python scripts/generate.py --model_name_or_path my_model --show_details

Plain text holds one document a line; .json(l), .csv and .tsv files are read by column. An empty document gets an empty
line, so that input and output lines correspond. With --show_details each line is JSON: the candidates with score and
direction.
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, set_seed

from ..allocator import keep_freed_memory
from ..arguments import parse_arguments
from ..data import FILE_FORMATS, load_file
from ..titles import write_titles


@dataclass
class GenerateArguments:
    """What to write titles for, with which model and how."""

    model_name_or_path: str = field(metadata={"help": "Trained model."})
    text: list[str] | None = field(default=None, metadata={"help": "One or more documents. Default: standard input."})
    input_file: str | None = field(default=None, metadata={"help": "File of documents instead."})
    source_column: str | None = field(default=None, metadata={"help": "Its column to read. Default: the first."})
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
    """The documents that the arguments name, or those of standard input."""
    if args.text and args.input_file:
        raise ValueError("give either text or input_file")
    if args.text:
        return args.text
    if args.input_file is None:
        return [line.rstrip("\r\n") for line in sys.stdin]
    extension = Path(args.input_file).suffix[1:].lower()
    if extension not in FILE_FORMATS:
        return Path(args.input_file).read_text(encoding="utf-8-sig").splitlines()
    rows = load_file(args.input_file)
    column = args.source_column or rows.column_names[0]
    if column not in rows.column_names:
        raise ValueError(f"{args.input_file}: source_column={column!r} is not among its columns {rows.column_names}")
    return [text or "" for text in rows[column]]


def main(argv: list[str] | None = None) -> None:
    """Runs the command; `argv` instead of the process's own arguments."""
    (args,) = parse_arguments(GenerateArguments, description=__doc__, args=argv)
    set_seed(args.seed)
    keep_freed_memory()
    model = AutoModelForSeq2SeqLM.from_pretrained(args.model_name_or_path, dtype=args.dtype, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
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
            # One line a candidate; a line break inside a title would break the correspondence.
            lines += [" ".join(title.text.split()) for title in candidates]
    text = "".join(f"{line}\n" for line in lines)
    if args.output_file:
        Path(args.output_file).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)

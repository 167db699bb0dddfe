"""What a vocabulary shortlist saves and what it changes, for a trained model and its test pairs.

    make quickstart
    python benchmarks/shortlist.py --model_name_or_path quickstart/model --test_file quickstart/data/test.jsonl

Writes the titles of the test pairs in each direction, with the whole vocabulary and with `vocabulary_shortlist` at
several lengths. For each length: ROUGE-L in percent and its difference to the whole vocabulary, with the 95 % interval
and p-value of a paired bootstrap over the pairs; the share of titles that differ in anything; and how many times as
fast it was, in seconds of the processor.
"""

import json
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from comparison import machine
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import bidir_seq2seq  # noqa: F401  (registers the model with the Auto classes)
from bidir_seq2seq.allocator import keep_freed_memory
from bidir_seq2seq.arguments import parse_arguments
from bidir_seq2seq.data import load_pairs
from bidir_seq2seq.evaluation import available_systems, predict
from bidir_seq2seq.metrics import pair_scores, paired_bootstrap


@dataclass
class ShortlistArguments:
    model_name_or_path: str = field(metadata={"help": "Trained model."})
    test_file: str = field(metadata={"help": "Pairs with the references: .json(l), .csv or .tsv."})
    sizes: list[int] = field(
        default_factory=lambda: [500, 1000, 2000], metadata={"help": "Lengths of the list to try."}
    )
    systems: list[str] | None = field(
        default=None, metadata={"help": "Of l2r, r2l, both, joint. Default: all that the model can run."}
    )
    source_column: str | None = field(default=None, metadata={"help": "Column of documents. Default: the first."})
    target_column: str | None = field(default=None, metadata={"help": "Column of references. Default: the second."})
    max_samples: int | None = field(default=None, metadata={"help": "Use only the first so many pairs."})
    num_beams: int = field(default=3, metadata={"help": "Beams per direction."})
    batch_size: int = field(default=64, metadata={"help": "Documents per batch."})
    threads: int = field(default=1, metadata={"help": "CPU threads."})
    output: str | None = field(default=None, metadata={"help": "JSON file to write the figures to."})


def main(args: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(ShortlistArguments, description=__doc__, args=args)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    model = AutoModelForSeq2SeqLM.from_pretrained(arguments.model_name_or_path, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model_name_or_path)
    columns = {"source_column": arguments.source_column, "target_column": arguments.target_column}
    pairs = load_pairs({"test": arguments.test_file}, **columns)["test"]
    pairs = pairs.select(range(min(arguments.max_samples or len(pairs), len(pairs))))
    references = [text or "" for text in pairs["target"]]

    def write(system: str, **flags) -> tuple[list[str], float]:
        """The titles, and the seconds they took."""
        start = time.process_time()
        settings = {"num_beams": arguments.num_beams, "batch_size": arguments.batch_size, **flags}
        titles = predict(model, tokenizer, pairs, [system], **settings)[system]
        return titles, time.process_time() - start

    rows = []
    print(f"{len(pairs)} pairs, vocabulary of {model.config.vocab_size}, {arguments.num_beams} beams")
    print(
        f"{'system':8}{'words':>7}{'ROUGE-L':>9}{'difference':>12}{'interval':>18}{'p':>8}{'changed':>9}{'times':>7}"
    )
    for system in arguments.systems or [name for name in available_systems(model) if name != "lead"]:
        whole, whole_seconds = write(system)
        whole_scores = pair_scores(whole, references)["rougeL"]
        print(f"{system:8}{model.config.vocab_size:7}{statistics.mean(whole_scores):9.2f}", flush=True)
        for size in arguments.sizes:
            titles, seconds = write(system, vocabulary_shortlist=size)
            scores = pair_scores(titles, references)["rougeL"]
            test = paired_bootstrap(scores, whole_scores)
            row = {
                "system": system,
                "vocabulary_shortlist": size,
                "rougeL": statistics.mean(scores),
                **asdict(test),
                "changed": sum(a != b for a, b in zip(titles, whole)) / len(titles),
                "times": whole_seconds / seconds,
            }
            rows.append(row)
            interval = f"[{test.low:+.2f}, {test.high:+.2f}]"
            print(
                f"{system:8}{size:7}{row['rougeL']:9.2f}{test.difference:+12.2f}{interval:>18}{test.p_value:8.4f}"
                f"{row['changed']:9.1%}{row['times']:7.2f}",
                flush=True,
            )
    if arguments.output:
        report = {"machine": machine(), "arguments": asdict(arguments), "results": rows}
        Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
